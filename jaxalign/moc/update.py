"""The updates of a step: one forward and one backward pass, however many objectives there are."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.moc.combination import combine, policy_directions
from jaxalign.moc.config import MocConfig
from jaxalign.moc.experience import Experience
from jaxalign.moc.ppo import policy_loss, value_loss
from jaxalign.train.step import Sums


class Group(NamedTuple):
    """What the loss of one group, or of each of many, is computed from.

    Attributes:
        experience: [rows, M, ...] of its answers.
        mask: [rows, M] bool, set on the tokens of the answers.
        preference: [K] weights of the objectives that the rule "linear" takes.
        error: scalar, of the similarity.
    """

    experience: Experience
    mask: jax.Array
    preference: jax.Array
    error: jax.Array


def weights_of(group: Group, logp: jax.Array, config: MocConfig, progress: jax.Array) -> jax.Array:
    """What each objective of a group weighs [K], without a gradient.

    Args:
        group: one.
        logp: [rows, M] under the policy that is trained.
        config: rule and clip.
        progress: share of the training that is done.
    """
    if config.reward != "vector":
        return jnp.ones_like(group.preference)
    own = group.experience
    ratio = jnp.exp(jnp.where(group.mask, logp - own.old, 0))
    streams = jnp.concatenate([own.advantages, own.similarity[:, :, None]], axis=2)
    directions = policy_directions(ratio, jnp.moveaxis(streams, 2, 0), group.mask, config.clip)
    weights = combine(
        directions[:-1],
        directions[-1],
        config.combine,
        preference=group.preference,
        error=group.error,
        progress=progress,
    )
    return jax.lax.stop_gradient(weights)


def group_loss(
    group: Group,
    logp: jax.Array,
    entropy: jax.Array,
    values: jax.Array,
    config: MocConfig,
    progress: jax.Array,
) -> Sums:
    """Loss of one group, summed over its tokens.

    sum_i c_i L_i + (1 - sum_i c_i) L_similarity + L_kl + value_coef * sum_j V_j: losses are linear
    in their advantages but for the clip, so the weighted advantages share one forward pass.

    Args:
        group: one.
        logp: [rows, M] under the policy that is trained.
        entropy: [rows, M] of its distributions.
        values: [rows, M, K + 1] of its heads.
        config: of the run.
        progress: share of the training that is done.

    Returns:
        Sums over the tokens, to be divided by `weight`, their number.
    """
    own, mask = group.experience, group.mask
    count = jnp.sum(mask, dtype=logp.dtype)
    weights = weights_of(group, logp, config, progress)
    streams = [own.advantages, own.similarity[:, :, None], own.kl[:, :, None]]
    shares = jnp.concatenate(
        [weights, 1 - jnp.sum(weights, keepdims=True), jnp.ones(1, weights.dtype)]
    )

    def one(advantages: jax.Array) -> tuple[jax.Array, jax.Array]:
        return policy_loss(logp, own.old, advantages, mask, config.clip)

    losses, clipped = jax.vmap(one, 2)(jnp.concatenate(streams, axis=2))

    def head(values: jax.Array, old: jax.Array, returns: jax.Array) -> jax.Array:
        return value_loss(values, old, returns, mask, config.value_clip)[0]

    value = jnp.sum(jax.vmap(head, 2)(values, own.values, own.returns))
    policy = jnp.sum(shares * losses)
    change = jnp.where(mask, logp - own.old, 0)
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
    logp: jax.Array,
    entropy: jax.Array,
    values: jax.Array,
    config: MocConfig,
    progress: jax.Array,
) -> Sums:
    """Loss of many groups, see `group_loss`.

    Args:
        groups: `experience` and `mask` [G * rows, M, ...], `preference` [G, K], `error` [G].
        logp, entropy, values: [G * rows, M, ...].
        config: of the run.
        progress: share of the training that is done.
    """
    count = len(groups.preference)

    def split(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.reshape(count, -1, *leaf.shape[1:]), tree)

    own = groups._replace(experience=split(groups.experience), mask=split(groups.mask))
    over = (0, 0, 0, 0, None, None)
    each = jax.vmap(group_loss, over)
    sums: Any = each(own, split(logp), split(entropy), split(values), config, progress)
    return {name: jnp.sum(value) for name, value in sums.items()}
