"""Advantages against NumPy in float64, stream by stream."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ppo_loop import loop_gae

from jaxalign.moc.experience import (
    BAD_PARTS,
    RolloutScores,
    closeness_reward,
    compute_experience,
    find_bad_row,
    group_errors,
    similarity_coefficients,
)

G, ROWS, M, R = 3, 4, 6, 2
B = G * ROWS
GAMMA, LAM, COEFFICIENT = 0.97, 0.9, 0.3


def draws(seed=0):
    rng = np.random.default_rng(seed)
    ends = rng.integers(1, M + 1, B)
    ends[:2] = 1, M
    mask = np.arange(M)[None] < ends[:, None]
    logp, reference = -rng.random((2, B, M)) * mask
    values = rng.normal(size=(B, M, R + 1))
    rewards, slope = rng.random((B, R)), rng.normal(size=(B, R))
    return rewards, slope, RolloutScores(logp, reference, values), mask


def expected(rewards, slope, scored, mask):
    ends = mask.sum(1)
    raw = np.zeros((B, M, R + 1))
    for row, end in enumerate(ends):
        for stream in range(R):
            own = np.zeros(M)
            own[end - 1] = rewards[row, stream]
            raw[row, :, stream] = loop_gae(own, scored.values[row, :, stream], end, GAMMA, LAM)
        price = -COEFFICIENT * (scored.old_logprobs - scored.ref_logprobs)[row]
        raw[row, :, R] = loop_gae(price, scored.values[row, :, R], end, GAMMA, LAM)
    inside = [raw[..., stream][mask] for stream in range(R + 1)]
    centred = np.zeros_like(raw)
    for stream, own in enumerate(inside):
        centred[..., stream][mask] = own - own.mean()
    task = centred[..., :R] / np.array([own.std(ddof=1) for own in inside[:R]])
    similarity = (slope[:, None] * centred[..., :R]).sum(-1)
    own = similarity[mask]
    pooled = np.sqrt((centred[..., :R][mask] ** 2).sum() / (R * mask.sum() - 1))
    similarity = (similarity - own.mean()) / pooled * mask
    returns = (raw + scored.values) * mask[..., None]
    return task, similarity, centred[..., R], returns


@pytest.mark.parametrize("seed", [0, 1])
def test_every_stream_is_that_of_numpy(seed, x64):
    rewards, slope, scored, mask = draws(seed)
    found = jax.jit(compute_experience, static_argnums=(5, 6))(
        jnp.asarray(rewards), jnp.asarray(slope), jax.tree.map(jnp.asarray, scored),
        jnp.asarray(mask), COEFFICIENT, GAMMA, LAM,
    )  # fmt: skip
    task, similarity, kl, returns = expected(rewards, slope, scored, mask)
    np.testing.assert_allclose(found.advantages, task, atol=1e-7)
    np.testing.assert_allclose(found.similarity_advantages, similarity, atol=1e-7)
    np.testing.assert_allclose(found.kl_advantages, kl, atol=1e-12)
    np.testing.assert_allclose(found.returns, returns, atol=1e-12)
    np.testing.assert_array_equal(found.old_logprobs, scored.old_logprobs)


def test_each_stream_stands_by_itself():
    """The price of the KL moves no objective, and one objective none of the others."""
    rewards, slope, scored, mask = draws()

    def of(rewards, coefficient):
        arrays = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (rewards, slope, scored))
        return compute_experience(*arrays, jnp.asarray(mask), jnp.float32(coefficient), GAMMA, LAM)

    one, dear = of(rewards, 0.1), of(rewards, 5.0)
    np.testing.assert_array_equal(one.advantages, dear.advantages)
    np.testing.assert_array_equal(one.similarity_advantages, dear.similarity_advantages)
    assert np.abs(one.kl_advantages - dear.kl_advantages).max() > 0.1
    other = of(rewards * np.array([1.0, 3.0]), 0.1)
    np.testing.assert_array_equal(one.advantages[..., 0], other.advantages[..., 0])
    assert np.abs(one.advantages[..., 1] - other.advantages[..., 1]).max() > 0.01
    assert one.kl_advantages.dtype == jnp.float32


def test_groups_reach_their_own_means():
    rng = np.random.default_rng(3)
    rewards = rng.random((B, R)).astype("f")
    preferences = rng.dirichlet(np.ones(R), G).astype("f")
    found = group_errors(jnp.asarray(rewards), jnp.asarray(preferences), "distance")
    mean = rewards.reshape(G, ROWS, R).mean(1)
    np.testing.assert_allclose(found.squared_error, ((mean - preferences) ** 2).mean(1), rtol=1e-5)
    # The slope of an answer is at the mean of the others, which it is no part of.
    slope = similarity_coefficients(
        jnp.asarray(rewards), jnp.asarray(preferences), "distance"
    ).reshape(G, ROWS, R)
    for row in range(ROWS):
        rest = np.delete(rewards.reshape(G, ROWS, R), row, axis=1).mean(1)
        np.testing.assert_allclose(slope[:, row], -2 * (rest - preferences), rtol=1e-4)
    ratio = group_errors(jnp.asarray(rewards), jnp.asarray(preferences), "ratio")
    share = mean / mean.sum(1, keepdims=True)
    np.testing.assert_allclose(
        ratio.similarity_error, ((share - preferences) ** 2).mean(1), rtol=1e-5
    )
    np.testing.assert_allclose(ratio.squared_error, found.squared_error)


def test_closeness_is_of_single_answers():
    rewards = jnp.array([[0.5, 0.5], [1.0, 0.0], [0.0, 0.0], [0.2, 0.8]])
    preferences = jnp.array([[0.5, 0.5], [0.0, 1.0]])
    found = closeness_reward(rewards, preferences)
    np.testing.assert_allclose(found[:, 0], [0.0, -0.25, -0.5, -0.04], atol=1e-7)


@pytest.mark.parametrize("part", BAD_PARTS)
def test_the_row_of_a_number_that_is_not_finite(part):
    rewards, slope, scored, mask = draws()
    experience = compute_experience(rewards, slope, scored, mask, COEFFICIENT, GAMMA, LAM)
    ends = mask.sum(1)
    row = int(np.argmax(ends < M))  # with a place behind its end
    find = jax.jit(find_bad_row)
    for value in (np.nan, np.inf):
        levels, scores, found = rewards.copy(), scored, experience
        if part == "reward":
            levels[row, 1] = value
        elif part == "advantage":
            found = experience._replace(advantages=experience.advantages.at[row, 0, 1].set(value))
        else:
            scores = scored._replace(values=np.array(scored.values))
            scores.values[row, 0, 0] = value
        bad = find(levels, scores, found, mask)
        assert (int(bad.row), BAD_PARTS[int(bad.part)]) == (row, part)
        # Behind the end of a completion anything may stand.
        behind = experience._replace(
            advantages=experience.advantages.at[row, ends[row] :].set(value)
        )
        assert int(find(rewards, scored, behind, mask).row) == -1
