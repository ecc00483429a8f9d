"""The loss of an update: one forward and one backward pass, however many objectives there are."""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jaxalign.moc.combination import combine, policy_directions
from jaxalign.moc.config import MocConfig
from jaxalign.moc.experience import Experience
from jaxalign.moc.ppo import policy_loss, value_loss
from jaxalign.train.step import Sums

Tree = TypeVar("Tree")


class Group(NamedTuple):
    """What the loss of one group, or of each of many, is computed from.

    Attributes:
        experience: [rows, M, ...] of its completions.
        mask: [rows, M] bool, set on the tokens of the completions.
        preference: [K] weights of the objectives that the rule "linear" takes.
        similarity_error: scalar.
    """

    experience: Experience
    mask: jax.Array
    preference: jax.Array
    similarity_error: jax.Array


def objective_weights(
    group: Group, logprobs: jax.Array, config: MocConfig, progress: jax.Array
) -> jax.Array:
    """Return the weights c [K] of the objectives of one group, without a gradient.

    Args:
        group: one.
        logprobs: [rows, M] under the policy that is trained.
        config: rule and clip range.
        progress: share of the training that is done.
    """
    if config.reward != "vector":
        return jnp.ones_like(group.preference)
    experience = group.experience
    ratio = jnp.exp(jnp.where(group.mask, logprobs - experience.old_logprobs, 0))
    streams = [experience.advantages, experience.similarity_advantages[:, :, None]]
    advantages = jnp.moveaxis(jnp.concatenate(streams, axis=2), 2, 0)
    directions = policy_directions(ratio, advantages, group.mask, config.clip)
    weights = combine(
        directions[:-1],
        directions[-1],
        config.combine,
        preference=group.preference,
        error=group.similarity_error,
        progress=progress,
    )
    return jax.lax.stop_gradient(weights)


def group_loss(
    group: Group,
    logprobs: jax.Array,
    entropy: jax.Array,
    values: jax.Array,
    config: MocConfig,
    progress: jax.Array,
) -> Sums:
    """Return the loss of one group, summed over its tokens.

    sum_i c_i L_i + (1 - sum_i c_i) L_similarity + L_kl + value_coef sum_j V_j, with clipped policy
    losses L and value losses V. Policy losses are linear in their advantages but for the clip, so
    that all of them share one forward pass.

    Args:
        group: one.
        logprobs: [rows, M] under the policy that is trained.
        entropy: [rows, M] of its distributions.
        values: [rows, M, K + 1] of its heads.
        config: of the run.
        progress: share of the training that is done.

    Returns:
        Sums over the tokens, to be divided by `weight`, their number.
    """
    experience, mask = group.experience, group.mask
    count = jnp.sum(mask, dtype=logprobs.dtype)
    weights = objective_weights(group, logprobs, config, progress)
    streams = [
        experience.advantages,
        experience.similarity_advantages[:, :, None],
        experience.kl_advantages[:, :, None],
    ]
    shares = jnp.concatenate(
        [weights, 1 - jnp.sum(weights, keepdims=True), jnp.ones(1, weights.dtype)]
    )

    def one(advantages: jax.Array) -> tuple[jax.Array, jax.Array]:
        return policy_loss(logprobs, experience.old_logprobs, advantages, mask, config.clip)

    losses, clipped = jax.vmap(one, 2)(jnp.concatenate(streams, axis=2))

    def head(values: jax.Array, old_values: jax.Array, returns: jax.Array) -> jax.Array:
        return value_loss(values, old_values, returns, mask, config.value_clip)[0]

    value = jnp.sum(jax.vmap(head, 2)(values, experience.values, experience.returns))
    policy = jnp.sum(shares * losses)
    change = jnp.where(mask, logprobs - experience.old_logprobs, 0)
    sums = {
        "loss": policy + config.value_coef * value,
        "weight": count,
        "policy_loss": policy,
        "value_loss": value,
        "entropy": jnp.sum(entropy),
        "clip_share": count * jnp.sum(shares * clipped) / jnp.sum(shares),
        # Never negative, unlike the mean of the change itself.
        "policy_kl": jnp.sum(jnp.exp(change) - 1 - change),
        "drift": jnp.sum(jnp.abs(jnp.exp(change) - 1)),
    }
    return sums | {f"weight_{number}": count * c for number, c in enumerate(weights)}


def batch_loss(
    groups: Group,
    logprobs: jax.Array,
    entropy: jax.Array,
    values: jax.Array,
    config: MocConfig,
    progress: jax.Array,
) -> Sums:
    """Return the loss of G groups, see `group_loss`.

    Args:
        groups: `experience` and `mask` [G * rows, M, ...], `preference` [G, K] and
            `similarity_error` [G].
        logprobs, entropy, values: [G * rows, M, ...].
        config: of the run.
        progress: share of the training that is done.
    """
    count = len(groups.preference)

    def split(tree: Tree) -> Tree:
        return jax.tree.map(lambda leaf: leaf.reshape(count, -1, *leaf.shape[1:]), tree)

    each = groups._replace(experience=split(groups.experience), mask=split(groups.mask))
    over = (0, 0, 0, 0, None, None)
    sums: Sums = jax.vmap(group_loss, over)(
        each, split(logprobs), split(entropy), split(values), config, progress
    )
    return {name: jnp.sum(value) for name, value in sums.items()}
