"""From answers, rewards and log-probabilities to the advantages that an update follows."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.moc.combination import Form, similarity_directions, similarity_error
from jaxalign.moc.ppo import gae, whiten

_SMALL = 1e-8


class Scored(NamedTuple):
    """Answers under the policy that drew them, before it changes.

    Attributes:
        logp: [B, M] log-probabilities.
        reference: [B, M] log-probabilities under the reference.
        values: [B, M, K + 1] of the value heads, the last that of the KL.
    """

    logp: jax.Array
    reference: jax.Array
    values: jax.Array


class Experience(NamedTuple):
    """What the updates of a step learn from.

    Attributes:
        old: [B, M] log-probabilities when the answers were drawn.
        values: [B, M, K + 1] then.
        returns: [B, M, K + 1] to be learned by the heads.
        advantages: [B, M, K] of the objectives, whitened.
        similarity: [B, M], centred, in units of the objectives' pooled standard deviation.
        kl: [B, M], centred, in the units of the scaled rewards.
    """

    old: jax.Array
    values: jax.Array
    returns: jax.Array
    advantages: jax.Array
    similarity: jax.Array
    kl: jax.Array


class Reached(NamedTuple):
    """What the groups of a step reached.

    Attributes:
        mean: [G, R] mean rewards of each group.
        error: [G] of the similarity, in the form of the combination.
        distance: [G] mean squared error of mean rewards and preference.
    """

    mean: jax.Array
    error: jax.Array
    distance: jax.Array


def reached(rewards: jax.Array, preferences: jax.Array, form: Form) -> Reached:
    """How near each group came to its preference.

    Args:
        rewards: [B, R], scaled; rows of a group beside each other.
        preferences: [G, R] on the simplex.
        form: of the similarity.
    """
    groups, objectives = preferences.shape
    mean = jnp.mean(rewards.reshape(groups, -1, objectives), axis=1)
    over = (0, 0, None)
    return Reached(
        mean,
        jax.vmap(similarity_error, over)(mean, preferences, form),
        jax.vmap(similarity_error, over)(mean, preferences, "distance"),
    )


def slopes(rewards: jax.Array, preferences: jax.Array, form: Form) -> jax.Array:
    """How much each objective's advantage counts in the similarity's, answer by answer.

    Args:
        rewards: [B, R], scaled; rows of a group beside each other.
        preferences: [G, R] on the simplex.
        form: of the similarity.

    Returns:
        [B, R], see `jaxalign.moc.combine.similarity_directions`.
    """
    groups, objectives = preferences.shape
    each = jax.vmap(similarity_directions, (0, 0, None))
    return each(rewards.reshape(groups, -1, objectives), preferences, form).reshape(rewards.shape)


def weighted(rewards: jax.Array, preferences: jax.Array) -> jax.Array:
    """The one objective of plain RLHF: each answer's rewards, summed by their weights.

    Args:
        rewards: [B, R], scaled.
        preferences: [G, R].

    Returns:
        [B, 1], sum_j p_j r_j.
    """
    rows = jnp.repeat(preferences, len(rewards) // len(preferences), axis=0)
    return jnp.sum(rewards * rows, axis=1, keepdims=True)


def closeness(rewards: jax.Array, preferences: jax.Array) -> jax.Array:
    """The one objective of the ablation: how near each single answer came.

    Args:
        rewards: [B, R], scaled.
        preferences: [G, R].

    Returns:
        [B, 1], -mean_j (r_j - p_j)^2.
    """
    rows = jnp.repeat(preferences, len(rewards) // len(preferences), axis=0)
    return -jnp.mean((rewards - rows) ** 2, axis=1, keepdims=True)


def experience(
    objectives: jax.Array,
    slope: jax.Array,
    scored: Scored,
    mask: jax.Array,
    coefficient: jax.Array,
    gamma: float,
    lam: float,
) -> Experience:
    """Advantages of every objective, of the similarity and of the KL.

    A reward stands on the last token of its answer, the price of the KL on every token. Each
    stream has a head and advantages of its own; statistics run over all tokens of the step.

    Args:
        objectives: [B, K] rewards.
        slope: [B, K], how much each objective's advantage counts in the similarity's.
        scored: the answers.
        mask: [B, M] bool, set on the tokens of the answers, which come first.
        coefficient: scalar, of the KL.
        gamma: discount a token.
        lam: decay of the advantages.

    Returns:
        At least float32, 0 behind the end of an answer.
    """
    last = mask & ~jnp.pad(mask[:, 1:], ((0, 0), (0, 1)))
    task = jnp.where(last[:, :, None], objectives[:, None, :], 0)
    price = -coefficient * (scored.logp - scored.reference)
    streams = jnp.concatenate([task, price[:, :, None]], axis=2)
    by_stream = jax.vmap(gae, (1, 1, None, None, None), 1)
    raw = jax.vmap(by_stream, (0, 0, 0, None, None))(streams, scored.values, mask, gamma, lam)
    returns = jnp.where(mask[:, :, None], raw + scored.values, 0)
    whitened = jax.vmap(lambda row: whiten(row, mask), 2, 2)
    centred = jax.vmap(lambda row: whiten(row, mask, divide=False), 2, 2)(raw)
    similarity = jnp.sum(slope[:, None, :] * centred[:, :, :-1], axis=2)
    # In the objectives' unit and not its own: near the preference it fades, where whitening would
    # leave nothing but noise of full strength.
    inside = jnp.sum(mask) * objectives.shape[1]
    spread = jnp.sqrt(jnp.sum(centred[:, :, :-1] ** 2) / jnp.maximum(inside - 1, 1)) + _SMALL
    return Experience(
        old=scored.logp,
        values=scored.values,
        returns=returns,
        advantages=whitened(raw[:, :, :-1]),
        similarity=whiten(similarity, mask, divide=False) / spread,
        kl=centred[:, :, -1],
    )
