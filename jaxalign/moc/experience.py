"""From completions, rewards and log-probabilities to the advantages that an update follows."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.moc.combination import Form, similarity_directions, similarity_error
from jaxalign.moc.ppo import gae, whiten

_SMALL = 1e-8


class RolloutScores(NamedTuple):
    """Completions under the policy that sampled them, before it is updated.

    Attributes:
        old_logprobs: [B, M] log-probabilities under the policy, nats; with the dropout of the
            updates, which the sampling was without.
        ref_logprobs: [B, M] log-probabilities under the reference, nats.
        values: [B, M, K + 1] of the value heads: K objectives, and last the KL.
    """

    old_logprobs: jax.Array
    ref_logprobs: jax.Array
    values: jax.Array


class Experience(NamedTuple):
    """What the updates of a step learn from.

    Attributes:
        old_logprobs: [B, M], as in `RolloutScores`.
        values: [B, M, K + 1], as in `RolloutScores`.
        returns: [B, M, K + 1] targets of the value heads; the values where these are not trained.
        advantages: [B, M, K] of the objectives, each whitened over the step.
        similarity_advantages: [B, M], centred, in units of the objectives' pooled standard
            deviation.
        kl_advantages: [B, M], centred, in nats times the KL coefficient: not divided by a standard
            deviation, or the coefficient would have no effect.
    """

    old_logprobs: jax.Array
    values: jax.Array
    returns: jax.Array
    advantages: jax.Array
    similarity_advantages: jax.Array
    kl_advantages: jax.Array


class GroupErrors(NamedTuple):
    """How far the G groups of a step are from their preferences.

    Attributes:
        similarity_error: [G] squared error of the similarity, in the form of the combination.
        squared_error: [G] mean squared error between mean rewards and preference.
    """

    similarity_error: jax.Array
    squared_error: jax.Array


def group_errors(rewards: jax.Array, preferences: jax.Array, form: Form) -> GroupErrors:
    """Return how far the mean rewards of each group are from its preference.

    Args:
        rewards: [B, R] in levels; the rows of a group are adjacent.
        preferences: [G, R] on the simplex.
        form: of the similarity.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.moc.experience import group_errors
        >>> rewards = jnp.array([[1.0, 0.0], [0.0, 1.0]])
        >>> group_errors(rewards, jnp.eye(2)[:1], "distance").squared_error.tolist()
        [0.25]
    """
    mean = jnp.mean(rewards.reshape(len(preferences), -1, rewards.shape[1]), axis=1)
    over = (0, 0, None)
    return GroupErrors(
        jax.vmap(similarity_error, over)(mean, preferences, form),
        jax.vmap(similarity_error, over)(mean, preferences, "distance"),
    )


def similarity_coefficients(rewards: jax.Array, preferences: jax.Array, form: Form) -> jax.Array:
    """Return s, by which the similarity's advantage is sum_j s_j A_j, for each completion.

    Args:
        rewards: [B, R] in levels; the rows of a group are adjacent.
        preferences: [G, R] on the simplex.
        form: of the similarity.

    Returns:
        [B, R], `jaxalign.moc.similarity_directions` of each group.
    """
    by_group = rewards.reshape(len(preferences), -1, rewards.shape[1])
    each = jax.vmap(similarity_directions, (0, 0, None))
    return each(by_group, preferences, form).reshape(rewards.shape)


def weighted_reward(rewards: jax.Array, preferences: jax.Array) -> jax.Array:
    """Return the single objective of plain RLHF: rewards weighted by the preference.

    Args:
        rewards: [B, R] in levels.
        preferences: [G, R].

    Returns:
        [B, 1], sum_j p_j r_j.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.moc.experience import weighted_reward
        >>> weighted_reward(jnp.array([[1.0, 0.5]]), jnp.array([[0.5, 0.5]])).tolist()
        [[0.75]]
    """
    rows = jnp.repeat(preferences, len(rewards) // len(preferences), axis=0)
    return jnp.sum(rewards * rows, axis=1, keepdims=True)


def closeness_reward(rewards: jax.Array, preferences: jax.Array) -> jax.Array:
    """Return the single objective of the ablation: how close each completion's rewards are.

    Args:
        rewards: [B, R] in levels.
        preferences: [G, R].

    Returns:
        [B, 1], -mean_j (r_j - p_j)^2.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.moc.experience import closeness_reward
        >>> closeness_reward(jnp.array([[1.0, 0.5]]), jnp.array([[0.5, 0.5]])).tolist()
        [[-0.125]]
    """
    rows = jnp.repeat(preferences, len(rewards) // len(preferences), axis=0)
    return -jnp.mean((rewards - rows) ** 2, axis=1, keepdims=True)


class BadRow(NamedTuple):
    """The first row of a step with a number that is not finite.

    Attributes:
        row: [] int32, -1 where all numbers are finite.
        part: [] int32, the place in `BAD_PARTS` of what is not finite.
    """

    row: jax.Array
    part: jax.Array


BAD_PARTS = ("reward", "log-probability or value", "advantage")


def find_bad_row(
    levels: jax.Array, scores: RolloutScores, experience: Experience, mask: jax.Array
) -> BadRow:
    """Return the first row with a number that is not finite, causes before what follows from them.

    Args:
        levels: [B, R].
        scores: of the completions.
        experience: that the updates would learn from.
        mask: [B, M] bool, set on the tokens of the completions.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxalign.moc.experience import Experience, RolloutScores, find_bad_row
        >>> good, wide = jnp.zeros((2, 1)), jnp.zeros((2, 1, 2))
        >>> experience = Experience(good, wide, wide, wide[:, :, :1], good, good)
        >>> mask = jnp.ones((2, 1), bool)
        >>> scores = RolloutScores(good, good.at[1].set(jnp.nan), wide)
        >>> tuple(map(int, find_bad_row(jnp.ones((2, 1)), scores, experience, mask)))
        (1, 1)
    """

    def bad(tree: tuple[jax.Array, ...]) -> jax.Array:
        wrong = jnp.zeros(mask.shape, bool)
        for leaf in tree:
            wrong |= jnp.any(~jnp.isfinite(leaf), axis=tuple(range(2, leaf.ndim)))
        return jnp.any(wrong & mask, axis=1)

    parts = jnp.stack([jnp.any(~jnp.isfinite(levels), axis=1), bad(scores), bad(experience)])
    part = jnp.argmax(jnp.any(parts, axis=1)).astype(jnp.int32)
    row = jnp.where(jnp.any(parts), jnp.argmax(parts[part]), -1)
    return BadRow(row.astype(jnp.int32), part)


def compute_experience(
    rewards: jax.Array,
    coefficients: jax.Array,
    scores: RolloutScores,
    mask: jax.Array,
    kl_coef: jax.Array,
    gamma: float,
    lam: float,
) -> Experience:
    """Return the advantages of every objective, of the similarity and of the KL.

    The reward of an objective is given at the last token of a completion. The KL is a reward at
    every token, -kl_coef (log pi - log pi_ref). Each of these K + 1 has a value head and GAE
    advantages A of its own. With s_j the `coefficients`, the advantage of the similarity is
    sum_j s_j (A_j - mean A_j), centred, over the pooled standard deviation of all A_j. The
    objectives' A_j are whitened, the KL's only centred. Means and deviations run over all tokens
    of the step, whatever their group.

    Args:
        rewards: [B, K] of the objectives.
        coefficients: [B, K], see `similarity_coefficients`; 0 where there is no similarity.
        scores: log-probabilities and values of the completions.
        mask: [B, M] bool, set on the tokens of the completions, which come first.
        kl_coef: scalar, KL coefficient.
        gamma: discount per token.
        lam: lambda of GAE.

    Returns:
        Experience, at least float32, 0 after the end of a completion.
    """
    last = mask & ~jnp.pad(mask[:, 1:], ((0, 0), (0, 1)))
    task = jnp.where(last[:, :, None], rewards[:, None, :], 0)
    streams = jnp.concatenate([task, _kl_prices(scores, kl_coef)], axis=2)
    by_stream = jax.vmap(gae, (1, 1, None, None, None), 1)
    raw = jax.vmap(by_stream, (0, 0, 0, None, None))(streams, scores.values, mask, gamma, lam)
    returns = jnp.where(mask[:, :, None], raw + scores.values, 0)
    return _experience(scores, raw, returns, coefficients, mask)


def group_advantages(rewards: jax.Array) -> jax.Array:
    """Return by how much each completion's rewards exceed the mean of its group's others.

    Args:
        rewards: [rows, K] of one group, 2 rows or more.

    Returns:
        [rows, K], at least float32; sums over the group are 0.

    Source: the leave-one-out baseline of REINFORCE (Kool et al. 2019; RLOO, arXiv 2402.14740).

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.moc.experience import group_advantages
        >>> group_advantages(jnp.array([[1.0], [0.0], [0.5]])).tolist()
        [[0.75], [-0.75], [0.0]]
    """
    rewards = rewards.astype(jnp.promote_types(rewards.dtype, jnp.float32))
    rows = len(rewards)
    return (rewards - jnp.mean(rewards, axis=0, keepdims=True)) * (rows / (rows - 1))


def compute_group_experience(
    rewards: jax.Array,
    coefficients: jax.Array,
    scores: RolloutScores,
    mask: jax.Array,
    kl_coef: jax.Array,
    groups: int,
) -> Experience:
    """Return the advantages where the baseline is the group's, in place of value heads.

    Every token of a completion has the advantage of `group_advantages`, whatever its place; the KL
    is priced at the token that causes it, -kl_coef (log pi - log pi_ref). What is made of these is
    as in `compute_experience`.

    Args:
        rewards: [B, K] of the objectives; the rows of a group are adjacent.
        coefficients: [B, K], see `similarity_coefficients`; 0 where there is no similarity.
        scores: log-probabilities of the completions; the values are not used.
        mask: [B, M] bool, set on the tokens of the completions, which come first.
        kl_coef: scalar, KL coefficient.
        groups: G, the number of groups.

    Returns:
        Experience, at least float32, 0 after the end of a completion.
    """
    own = jax.vmap(group_advantages)(rewards.reshape(groups, -1, rewards.shape[1]))
    each = jnp.where(mask[:, :, None], own.reshape(rewards.shape)[:, None, :], 0)
    raw = jnp.concatenate([each, _kl_prices(scores, kl_coef)], axis=2)
    return _experience(scores, raw, scores.values, coefficients, mask)


def _kl_prices(scores: RolloutScores, kl_coef: jax.Array) -> jax.Array:
    """[B, M, 1], the reward of the KL at each token."""
    return (-kl_coef * (scores.old_logprobs - scores.ref_logprobs))[:, :, None]


def _experience(
    scores: RolloutScores,
    raw: jax.Array,
    returns: jax.Array,
    coefficients: jax.Array,
    mask: jax.Array,
) -> Experience:
    """What `compute_experience` makes of the advantages [B, M, K + 1] of all streams."""
    whitened = jax.vmap(lambda stream: whiten(stream, mask), 2, 2)
    centred = jax.vmap(lambda stream: whiten(stream, mask, divide=False), 2, 2)(raw)
    similarity = jnp.sum(coefficients[:, None, :] * centred[:, :, :-1], axis=2)
    # Divided by the objectives' standard deviation and not by its own: near the preference it
    # fades, where whitening would leave nothing but noise of full strength.
    count = jnp.sum(mask) * coefficients.shape[1]
    pooled_std = jnp.sqrt(jnp.sum(centred[:, :, :-1] ** 2) / jnp.maximum(count - 1, 1)) + _SMALL
    return Experience(
        old_logprobs=scores.old_logprobs,
        values=scores.values,
        returns=returns,
        advantages=whitened(raw[:, :, :-1]),
        similarity_advantages=whiten(similarity, mask, divide=False) / pooled_std,
        kl_advantages=centred[:, :, -1],
    )
