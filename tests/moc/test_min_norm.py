"""The point of least norm against all faces in float64, and against a quadratic program."""

from itertools import combinations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from jaxalign.errors import InputError
from jaxalign.moc.min_norm_solver import EXACT_UP_TO, min_norm

ROUNDING = 4e-6
"""Of |sum c g|^2 in float32, relative to the largest |g|^2."""
SIZES = (1, 2, 4, EXACT_UP_TO)


def least_value(gram):
    """Least c' G c on the simplex: every face's stationary point by pseudo-inverse, in float64."""
    best = np.inf
    for size in range(1, len(gram) + 1):
        for face in combinations(range(len(gram)), size):
            inner = gram[np.ix_(face, face)]
            system = np.block([[inner, np.ones((size, 1))], [np.ones((1, size)), np.zeros((1, 1))]])
            found = (np.linalg.pinv(system, rcond=1e-12) @ np.eye(size + 1)[-1])[:-1]
            if found.min() >= -1e-9 and abs(found.sum() - 1) < 1e-6:
                found = np.maximum(found, 0) / np.maximum(found, 0).sum()
                best = min(best, found @ inner @ found)
    return best


def check(gram, weights, expected):
    weights = np.asarray(weights, np.float64)
    assert np.isfinite(weights).all()
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1, abs=1e-5)
    assert weights @ gram @ weights <= expected + ROUNDING * max(gram.diagonal().max(), 1e-30)


@st.composite
def grams(draw, sizes=SIZES):
    """Gram matrices of any rank, some of their vectors repeated, zero, opposite, long or short."""
    count = draw(st.sampled_from(sizes))
    rank = draw(st.integers(1, count))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    vectors = rng.normal(size=(count, rank)) + draw(st.sampled_from([0.0, 0.5, 3.0]))
    for kind in draw(st.lists(st.sampled_from(["same", "zero", "opposite", "long", "short"]))):
        one, other = rng.integers(count, size=2)
        scale = {"same": 1, "zero": 0, "opposite": -1, "long": 30, "short": 1e-3}[kind]
        vectors[one] = scale * vectors[other]
    vectors *= draw(st.sampled_from([1e-6, 1.0, 1e6]))
    return vectors @ vectors.T


@settings(max_examples=60, deadline=None)
@given(grams())
@example(np.zeros((3, 3)))
@example(np.ones((5, 5)))
@example(np.full((8, 8), 1e-30))
def test_least_norm_of_all_faces(gram):
    check(gram, min_norm(jnp.asarray(gram, jnp.float32)), least_value(gram))


def optimality_gap(gram, weights):
    """How far c' G c can be above the least value, of the largest |g|^2: Wolfe's criterion."""
    weights = np.asarray(weights, np.float64)
    slope = gram @ weights
    return (weights @ slope - slope.min()) / max(gram.diagonal().max(), 1e-30)


@settings(max_examples=60, deadline=None)
@given(grams(sizes=(EXACT_UP_TO + 1, 12, 16)))
def test_least_norm_of_up_to_sixteen_vectors(gram):
    with jax.enable_x64(True):
        weights = np.asarray(min_norm(jnp.asarray(gram)))
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert optimality_gap(gram, weights) <= 1e-9
    least = weights @ gram @ weights
    check(gram, min_norm(jnp.asarray(gram, jnp.float32)), least)


def test_many_equal_vectors_get_equal_weights():
    chex.assert_trees_all_close(min_norm(jnp.ones((12, 12))), jnp.full(12, 1 / 12), rtol=1e-6)
    chex.assert_trees_all_close(min_norm(jnp.zeros((9, 9))), jnp.full(9, 1 / 9), rtol=1e-6)


# Found at random: eight short vectors, the last one opposite to the second and one repeated.
OPPOSED = np.array(
    [
        [
            1.77111339e-11, -4.61876216e-10, 1.23683833e-11,
            1.76628252e-11, 1.53958739e-11, 2.35551182e-11,
        ],
        [
            -4.61876216e-10, 1.34136689e-08, -2.62945974e-10,
            -4.25129663e-10, -4.47122297e-10, -5.96103585e-10,
        ],
        [
            1.23683833e-11, -2.62945974e-10, 1.12326002e-11,
            1.38799004e-11, 8.76486581e-12, 1.72408369e-11,
        ],
        [
            1.76628252e-11, -4.25129663e-10, 1.38799004e-11,
            1.85347092e-11, 1.41709888e-11, 2.39620594e-11,
        ],
        [
            1.53958739e-11, -4.47122297e-10, 8.76486581e-12,
            1.41709888e-11, 1.49040766e-11, 1.98701195e-11,
        ],
        [
            2.35551182e-11, -5.96103585e-10, 1.72408369e-11,
            2.39620594e-11, 1.98701195e-11, 3.15686997e-11,
        ],
    ]
)  # fmt: skip


@pytest.mark.parametrize("repeated", [[4], [4, 2, 5]])
def test_opposed_short_vectors(repeated):
    places = [0, 1, 2, 3, 4, 5, *repeated, 1]
    signs = np.append(np.ones(len(places) - 1), -1.0)
    gram = OPPOSED[np.ix_(places, places)] * np.outer(signs, signs)
    check(gram, min_norm(jnp.asarray(gram, jnp.float32)), least_value(gram))
    with jax.enable_x64(True):
        assert optimality_gap(gram, min_norm(jnp.asarray(gram))) <= 1e-9


@pytest.mark.parametrize("count", [3, 5, 12])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_matches_a_quadratic_program(count, shift, x64):
    rng = np.random.default_rng(count)
    vectors = rng.normal(size=(count, count)) + shift
    gram = vectors @ vectors.T / count
    solved = minimize(
        lambda c: c @ gram @ c,
        np.full(count, 1 / count),
        jac=lambda c: 2 * gram @ c,
        bounds=[(0, 1)] * count,
        constraints={"type": "eq", "fun": lambda c: c.sum() - 1, "jac": np.ones_like},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    assert solved.success
    found = min_norm(jnp.asarray(gram))
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, solved.x, atol=1e-5)
    assert optimality_gap(gram, found) <= 1e-9


def test_two_corners_have_a_closed_form():
    gram = np.array([[4.0, 1.0], [1.0, 2.0]])
    chex.assert_trees_all_close(min_norm(jnp.asarray(gram)), jnp.array([0.25, 0.75]), atol=1e-6)
    # An angle below what the shorter one spans: it alone is nearest.
    near = jnp.array([[9.0, 2.5], [2.5, 1.0]])
    chex.assert_trees_all_close(min_norm(near), jnp.array([0.0, 1.0]), atol=1e-6)


def test_vmaps_and_compiles_once():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(6, 4, 7)).astype(np.float32)
    batch = jnp.einsum("gre,gse->grs", vectors, vectors)
    many = jax.jit(jax.vmap(chex.assert_max_traces(min_norm, n=1)))
    expected = jnp.stack([min_norm(gram) for gram in batch])
    for _ in range(2):
        chex.assert_trees_all_close(many(batch), expected, atol=1e-5)


def test_equal_weights_where_nothing_decides():
    for value in (0.0, 1.0):
        chex.assert_trees_all_close(min_norm(jnp.full((4, 4), value)), jnp.full(4, 0.25))
    equal = min_norm(jnp.zeros((10, 10)))
    chex.assert_trees_all_close(equal, jnp.full(10, 0.1), atol=1e-6)


@pytest.mark.parametrize("size", [4, 10])
def test_what_is_not_finite_is_refused_and_traced_gives_nan(size):
    for value, shown in ((jnp.nan, "nan"), (jnp.inf, "infinity")):
        gram = jnp.eye(size).at[1, 2].set(value)
        with pytest.raises(InputError) as refused:
            min_norm(gram)
        assert str(refused.value) == (
            f"gram[1, 2] is {shown}; expected finite numbers: correct it."
        )
        assert np.isnan(jax.jit(min_norm)(gram)).all()


def test_halves_and_integers_are_promoted():
    assert min_norm(jnp.eye(2, dtype=jnp.bfloat16)).dtype == jnp.float32
    assert min_norm(jnp.eye(2, dtype=jnp.int32)).dtype == jnp.float32
