"""Scalarised rewards against NumPy in float64, at odd sizes, and with absent candidates."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.kernels import scalarize
from jaxalign.kernels.scalarize.chunked import best_in_one_pass
from jaxalign.kernels.scalarize.shapes import ROUTES, SWEEPS

BETA = 0.1


def world(shape, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    rewards = rng.random((shape.prompts, shape.candidates, shape.rewards))
    log_ref = np.log(rng.dirichlet(np.ones(shape.candidates), shape.prompts))
    weights = rng.dirichlet(np.ones(shape.rewards), shape.weights)
    return tuple(x.astype(dtype) for x in (rewards, log_ref, weights))


def numpy_tilt(rewards, log_ref, weights, beta):
    """One softmax a weight and prompt, in loops and float64."""
    rewards, log_ref, weights = (np.asarray(x, np.float64) for x in (rewards, log_ref, weights))
    shape = len(weights), len(rewards)
    log_partition, kl = np.zeros(shape), np.zeros(shape)
    expected = np.zeros((*shape, rewards.shape[2]))
    for i, weight in enumerate(weights):
        for j, (reward, ref) in enumerate(zip(rewards, log_ref, strict=True)):
            here = np.isfinite(ref)
            mass = np.exp(ref[here]) * np.exp(reward[here] @ weight / beta)
            pi = mass / mass.sum()
            log_partition[i, j] = np.log(mass.sum())
            expected[i, j] = pi @ reward[here]
            kl[i, j] = np.sum(pi[pi > 0] * (np.log(pi) - ref[here])[pi > 0])
    return log_partition, expected, kl


@pytest.mark.parametrize(
    ("backend", "chunk"), [("reference", None), ("chunked", None), ("chunked", 16)]
)
def test_tilt_is_the_softmax(backend, chunk, x64):
    arrays = world(SWEEPS["uneven"])
    reference = numpy_tilt(*arrays, BETA)
    found = scalarize.tilt(*map(jnp.asarray, arrays), BETA, chunk, backend)
    chex.assert_trees_all_close(found, reference, rtol=1e-11, atol=1e-12)
    means = scalarize.tilt_means(*map(jnp.asarray, arrays), BETA, chunk, backend)
    chex.assert_trees_all_close(means, tuple(x.mean(1) for x in reference), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("tile", [1, 4])
def test_tiles_that_do_not_divide_the_prompts(tile, x64, monkeypatch):
    arrays = world(SWEEPS["uneven"])
    monkeypatch.setitem(scalarize.chunked._TILE, "cpu", tile * 9 * 16)
    found = scalarize.tilt(*map(jnp.asarray, arrays), BETA, 16)
    means = scalarize.tilt_means(*map(jnp.asarray, arrays), BETA, 16)
    reference = numpy_tilt(*arrays, BETA)
    chex.assert_trees_all_close(found, reference, rtol=1e-11, atol=1e-12)
    chex.assert_trees_all_close(means, tuple(x.mean(1) for x in reference), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("backend", scalarize.BACKENDS)
def test_float32_stays_close_to_float64_at_small_beta(backend):
    arrays = world(SWEEPS["uneven"], dtype=np.float32)
    found = scalarize.tilt_means(*map(jnp.asarray, arrays), 0.01, backend=backend)
    assert {x.dtype for x in found} == {jnp.dtype(jnp.float32)}
    log_partition, expected, kl = (x.mean(1) for x in numpy_tilt(*arrays, 0.01))
    np.testing.assert_allclose(0.01 * found[0], 0.01 * log_partition, atol=1e-6)
    np.testing.assert_allclose(found[1], expected, atol=1e-5)
    np.testing.assert_allclose(found[2], kl, rtol=1e-5)


@pytest.mark.parametrize("backend", scalarize.BACKENDS)
def test_absent_candidates_count_for_nothing(backend, x64):
    rewards, log_ref, weights = world(SWEEPS["uneven"])
    rng = np.random.default_rng(1)
    log_ref = np.where(rng.random(log_ref.shape) < 0.6, -np.inf, log_ref)
    log_ref[:, 0] = -1.0
    log_ref[3, 1:] = -np.inf  # one candidate alone
    found = scalarize.tilt(*map(jnp.asarray, (rewards, log_ref, weights)), BETA, 16, backend)
    chex.assert_trees_all_close(
        found, numpy_tilt(rewards, log_ref, weights, BETA), rtol=1e-11, atol=1e-12
    )

    def value(rewards, log_ref, weights):
        log_partition, _, kl = scalarize.tilt_means(rewards, log_ref, weights, BETA, 16, backend)
        return BETA * jnp.sum(log_partition) + jnp.sum(kl)

    gradients = jax.grad(value, argnums=(0, 1, 2))(*map(jnp.asarray, (rewards, log_ref, weights)))
    chex.assert_tree_all_finite(gradients)


def test_gradient_of_the_value_is_the_expected_reward(x64):
    rewards, log_ref, weights = map(jnp.asarray, world(SWEEPS["uneven"]))

    def total(weights):
        return BETA * jnp.sum(scalarize.tilt_means(rewards, log_ref, weights, BETA, 16)[0])

    expected = scalarize.tilt_means(rewards, log_ref, weights, BETA)[1]
    chex.assert_trees_all_close(jax.grad(total)(weights), expected, rtol=1e-10)


def test_rounding_never_costs_a_nan_at_large_scales():
    rewards, log_ref, weights = world(SWEEPS["uneven"], dtype=np.float32)
    found = scalarize.tilt(*map(jnp.asarray, (rewards, log_ref, weights)), 1e-4)
    chex.assert_tree_all_finite(found)
    best = np.einsum("wr,xcr->wxc", weights, rewards).max(-1)
    along = np.einsum("wr,wxr->wx", weights, found[1])
    np.testing.assert_allclose(along, best, atol=2e-3)


@pytest.mark.parametrize(
    ("backend", "chunk", "members"),
    [("reference", None, 5), ("chunked", None, 1), ("chunked", 1, 16), ("chunked", 100, 37)],
)
def test_best_member_is_the_argmax(backend, chunk, members, x64):
    shape = ROUTES["uneven"]
    rng = np.random.default_rng(2)
    weights = rng.normal(size=(shape.users, shape.rewards))
    values = rng.normal(size=(members, shape.rewards))
    value, index = scalarize.best_member(jnp.asarray(weights), jnp.asarray(values), chunk, backend)
    scores = weights @ values.T
    np.testing.assert_array_equal(index, scores.argmax(1))
    np.testing.assert_allclose(value, scores.max(1), rtol=1e-12, atol=1e-12)
    assert index.dtype == jnp.int32


def test_one_pass_finds_what_chunks_find(x64):
    rng = np.random.default_rng(4)
    weights, values = (jnp.asarray(rng.normal(size=(count, 3))) for count in (50, 20))
    values = values.at[11].set(values[7])
    found, expected = best_in_one_pass(weights, values), scalarize.best_member(weights, values)
    chex.assert_trees_all_close(found, expected, rtol=1e-14)
    alike = best_in_one_pass(weights, jnp.zeros((5, 3)))
    np.testing.assert_array_equal(alike[1], np.zeros(50))
    assert jnp.isnan(best_in_one_pass(weights.at[3].set(jnp.nan), values)[0][3])


@pytest.mark.parametrize("backend", scalarize.BACKENDS)
def test_the_first_of_equal_members_wins(backend):
    weights = jnp.ones((20, 2), jnp.float32)
    values = jnp.asarray([[0.0, 1.0], [1.0, 1.0], [1.0, 1.0]], jnp.float32)
    _, index = scalarize.best_member(weights, values, 7, backend)
    np.testing.assert_array_equal(index, np.ones(20))


def test_one_compilation_for_any_beta():
    rewards, log_ref, weights = map(jnp.asarray, world(SWEEPS["uneven"], dtype=np.float32))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def means(weights, beta):
        return scalarize.tilt_means(rewards, log_ref, weights, beta)

    for beta in (0.1, 0.2, 0.5):
        means(weights, beta)


def test_no_backend_holds_all_users_by_all_members():
    shape = ROUTES["million"]
    weights = jax.ShapeDtypeStruct((shape.users, shape.rewards), jnp.float32)
    values = jax.ShapeDtypeStruct((shape.members, shape.rewards), jnp.float32)
    compiled = jax.jit(scalarize.best_member).lower(weights, values).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * shape.users * shape.rewards * 3


def test_the_sweep_of_a_grid_stays_under_a_gibibyte():
    shape = SWEEPS["grid_d3"]
    inputs = (
        (shape.prompts, shape.candidates, shape.rewards),
        (shape.prompts, shape.candidates),
        (shape.weights, shape.rewards),
    )
    inputs = [jax.ShapeDtypeStruct(size, jnp.float32) for size in inputs]
    compiled = jax.jit(scalarize.tilt_means).lower(*inputs, 0.1).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2**26


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"backend": "triton"}, "backend: found 'triton', expected one of chunked, reference"),
        ({"chunk": 0}, "chunk: found 0, expected at least 1"),
        (
            {"values": np.zeros((0, 2))},
            r"values: found shape \[0, 2\], expected 2 axes",
        ),
    ],
)
def test_what_no_backend_can_compute_is_refused(changes, match):
    with pytest.raises(InputError, match=match):
        scalarize.best_member(**({"weights": np.ones((3, 2)), "values": np.ones((4, 2))} | changes))
    with pytest.raises(InputError, match=r"log_ref: found shape \[2\]"):
        scalarize.tilt_means(np.ones((2, 1, 1)), np.ones(2), np.ones((1, 1)), 1.0)
