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
        preference: [K] over the objectives, for the rules "linear" and "two".
        similarity_error: scalar, for the rule "gate".
    """

    experience: Experience
    mask: jax.Array
    preference: jax.Array
    similarity_error: jax.Array


def objective_weights(
    group: Group, logprobs: jax.Array, config: MocConfig, progress: jax.Array
) -> jax.Array:
    """Return the weights c [K] of the objectives of one group, without a gradient.

    They follow the ratio, so that every update has its own. A single objective has weight 1.

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
    losses L, each clipped by itself, and value losses V of K + 1 heads. All of them are computed
    from the same log-probabilities and values, so that they share one forward and backward pass.

    Args:
        group: one.
        logprobs: [rows, M] under the policy that is trained.
        entropy: [rows, M] of its distributions.
        values: [rows, M, K + 1] of its heads.
        config: of the run.
        progress: share of the training that is done.

    Returns:
        Sums over the tokens, to be divided by `weight`, their number, as
        `jaxalign.train.step.gradient` does; the weights c are `weight_0`, `weight_1` and so on.
    """
    experience, mask = group.experience, group.mask
    count = jnp.sum(mask, dtype=logprobs.dtype)
    weights = objective_weights(group, logprobs, config, progress)
    streams = [
        experience.advantages,
        experience.similarity_advantages[:, :, None],
        experience.kl_advantages[:, :, None],
    ]
    stream_weights = jnp.concatenate(
        [weights, 1 - jnp.sum(weights, keepdims=True), jnp.ones(1, weights.dtype)]
    )

    def stream_loss(advantages: jax.Array) -> tuple[jax.Array, jax.Array]:
        return policy_loss(logprobs, experience.old_logprobs, advantages, mask, config.clip)

    losses, clipped = jax.vmap(stream_loss, 2)(jnp.concatenate(streams, axis=2))

    def head_loss(values: jax.Array, old_values: jax.Array, returns: jax.Array) -> jax.Array:
        return value_loss(values, old_values, returns, mask, config.value_clip)[0]

    value = jnp.sum(jax.vmap(head_loss, 2)(values, experience.values, experience.returns))
    policy = jnp.sum(stream_weights * losses)
    log_ratio = jnp.where(mask, logprobs - experience.old_logprobs, 0)
    sums = {
        "loss": policy + config.value_coef * value,
        "weight": count,
        "policy_loss": policy,
        "value_loss": value,
        "entropy": jnp.sum(entropy),
        # A share of the tokens, times their number, since all sums are divided by it; the weights
        # of the streams sum to 2.
        "clip_share": count * jnp.sum(stream_weights * clipped) / 2,
        # The KL estimator k3, never negative, unlike minus the log-ratio itself.
        "policy_kl": jnp.sum(jnp.exp(log_ratio) - 1 - log_ratio),
        "drift": jnp.sum(jnp.abs(jnp.exp(log_ratio) - 1)),
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
