"""Every rule of combination against NumPy in float64, with min-norm as a quadratic program."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from jaxalign.config import load_config
from jaxalign.errors import InputError
from jaxalign.moc.combination import (
    CombineConfig,
    combine,
    policy_directions,
    similarity_direction,
    similarity_directions,
    similarity_error,
)

RULES = ("linear", "minnorm", "two", "blend", "gate", "similarity")
few = settings(max_examples=30, deadline=None)
compiled = jax.jit(combine, static_argnums=2)
slope_of = jax.jit(similarity_direction, static_argnums=2)
error_of = jax.jit(similarity_error, static_argnums=2)


def program(vectors):
    """Weights of the least norm of rows [n, D], by SLSQP."""
    gram = vectors @ vectors.T
    gram = gram / gram.diagonal().max()
    found = minimize(
        lambda c: c @ gram @ c,
        np.full(len(gram), 1 / len(gram)),
        jac=lambda c: 2 * gram @ c,
        bounds=[(0, 1)] * len(gram),
        constraints={"type": "eq", "fun": lambda c: c.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-14, "maxiter": 500},
        method="SLSQP",
    )
    return found.x


def reference(rule, directions, similarity, p, error, gate, strength):
    """The step that a rule takes, written with the vectors themselves, and its weights."""
    flat, last = directions.reshape(len(directions), -1), similarity.ravel()
    if rule == "linear":
        return p
    if rule == "similarity":
        return np.zeros(len(p))
    if rule == "minnorm":
        return program(np.vstack([flat, last]))[:-1]
    if rule == "two":
        return program(np.vstack([p @ flat, last]))[0] * p
    if rule == "gate":
        return np.zeros(len(p)) if error > gate else program(flat)
    return program((flat + strength * last) / (1 + strength)) / (1 + strength)


def case(seed, objectives=3):
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(objectives, 4, 9))
    similarity = np.einsum("r,rbm->bm", rng.normal(size=objectives), directions)
    return directions, similarity + rng.normal(size=(4, 9)), rng.dirichlet(np.ones(objectives))


@pytest.mark.parametrize("error", [0.001, 0.1])
@pytest.mark.parametrize("objectives", [2, 4])
@pytest.mark.parametrize("rule", RULES)
def test_rules_match_numpy(rule, objectives, error, x64):
    directions, similarity, p = case(7, objectives)
    config = CombineConfig(rule, strength=1.5, strength_last=4.0)
    told = {"preference": jnp.asarray(p), "error": jnp.asarray(error), "progress": 0.4}
    found = compiled(jnp.asarray(directions), jnp.asarray(similarity), config, **told)
    assert found.dtype == jnp.float64
    expected = reference(rule, directions, similarity, p, error, config.gate, 2.5)
    np.testing.assert_allclose(found, expected, atol=2e-6)


@few
@given(st.integers(0, 2**32 - 1), st.sampled_from(RULES), st.floats(-30, 30))
def test_shares_of_one_whatever_the_directions(seed, rule, exponent):
    directions, similarity, p = case(seed)
    directions[seed % 3] *= seed % 2  # an objective that does not vary
    scale = 10.0**exponent
    arrays = [jnp.asarray(scale * given, jnp.float32) for given in (directions, similarity)]
    told = {"preference": jnp.asarray(p, jnp.float32), "error": jnp.asarray(0.005)}
    found = np.asarray(compiled(*arrays, CombineConfig(rule), **told))
    assert np.isfinite(found).all()
    assert found.min() >= 0
    assert found.sum() <= 1 + 1e-5


def test_nothing_to_follow_is_no_nan():
    zeros = jnp.zeros((3, 5))
    told = {"preference": jnp.full(3, 1 / 3), "error": jnp.zeros(())}
    for rule in RULES:
        found = compiled(zeros, zeros[0], CombineConfig(rule), **told)
        assert np.isfinite(found).all()


def test_the_step_of_a_blend_never_hurts_the_blended():
    directions, similarity, _ = case(3)
    weights = np.asarray(combine(jnp.asarray(directions), jnp.asarray(similarity), CombineConfig()))
    step = np.tensordot(weights, directions, 1) + (1 - weights.sum()) * similarity
    blended = (directions + 3 * similarity[None]) / 4
    assert (np.einsum("bm,rbm->r", step, blended) >= np.sum(step**2) - 1e-4).all()


def test_vmaps_over_groups_and_strengths():
    directions, similarity, _ = case(5)
    groups = jnp.asarray(np.stack([directions, -2 * directions]), jnp.float32)
    sims = jnp.asarray(np.stack([similarity, similarity]), jnp.float32)
    config = CombineConfig(strength_last=5.0)

    @chex.assert_max_traces(n=1)
    def one(own, close, progress):
        return combine(own, close, config, progress=progress)

    many = jax.jit(jax.vmap(one, (0, 0, None)))
    for progress in (0.0, 1.0, 2.0):
        found = many(groups, sims, jnp.float32(progress))
        share = 1 / (1 + 3 + 2 * min(progress, 1))
        chex.assert_trees_all_close(found.sum(1), jnp.full(2, share), rtol=1e-5)


def ratio_error(mean, p):
    return np.mean((mean / np.abs(mean).sum() - p) ** 2)


@few
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 5]), st.sampled_from(["ratio", "distance"]))
def test_slope_is_the_falling_error(seed, objectives, form):
    rng = np.random.default_rng(seed)
    mean, p = rng.uniform(0.1, 1, objectives), rng.dirichlet(np.ones(objectives))
    compare = ratio_error if form == "ratio" else lambda m, q: np.mean((m - q) ** 2)
    moved = 1e-5 * np.eye(objectives)
    numeric = [compare(mean + d, p) - compare(mean - d, p) for d in moved]
    with jax.enable_x64(True):
        error = error_of(jnp.asarray(mean), jnp.asarray(p), form)
        slope = slope_of(jnp.asarray(mean), jnp.asarray(p), form)
    assert float(error) == pytest.approx(compare(mean, p), rel=1e-9)
    np.testing.assert_allclose(slope, -objectives * np.array(numeric) / 2e-5, atol=1e-6)
    if form == "ratio":
        assert abs(np.asarray(slope) @ mean) < 1e-9  # a longer vector is neither nearer nor farther
    else:
        np.testing.assert_allclose(slope, -2 * (mean - p), rtol=1e-9)


def test_ratio_is_finite_at_zero_and_below():
    p = jnp.array([0.3, 0.7])
    for mean in ([0.0, 0.0], [1e-30, 0.0], [0.5, -0.5], [-1.0, -2.0], [0.0, 1e6]):
        assert np.isfinite(slope_of(jnp.array(mean), p, "ratio")).all()
        assert np.isfinite(similarity_error(jnp.array(mean), p, "ratio"))
    assert (similarity_direction(jnp.zeros(2), p, "ratio") > 0).all()


@pytest.mark.parametrize("form", ["ratio", "distance"])
def test_slopes_leave_the_answer_out(form):
    rewards = np.random.default_rng(0).uniform(0.1, 1, (5, 3)).astype(np.float32)
    p = jnp.array([0.2, 0.3, 0.5])
    found = similarity_directions(jnp.asarray(rewards), p, form)
    for row in range(5):
        others = jnp.asarray(np.delete(rewards, row, axis=0).mean(0))
        chex.assert_trees_all_close(found[row], slope_of(others, p, form), atol=1e-4)
    with pytest.raises(InputError, match="1 row; expected 2"):
        similarity_directions(jnp.ones((1, 3)), p, form)


def test_slopes_are_unbiased_in_small_groups():
    """Without itself, an answer that is always average is not preferred; with itself it is."""
    rewards = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    p = np.array([0.5, 0.5])
    drawn = rewards[np.random.default_rng(0).integers(3, size=(20_000, 4))]
    mean = drawn.mean(1, keepdims=True)
    with jax.enable_x64(True):
        slopes = jax.vmap(similarity_directions, (0, None, None))(
            jnp.asarray(drawn), jnp.asarray(p), "distance"
        )
    average = (drawn == 0.5).all(-1)

    def lead(slope):
        advantage = (slope * (drawn - mean)).sum(-1)
        return advantage[average].mean() - advantage[~average].mean()

    assert abs(lead(np.asarray(slopes))) < 0.01
    assert lead(-2 * (mean - p)) > 0.1


def test_directions():
    ratio = jnp.array([[0.5, 0.85, 1.0, 1.15, 1.3, jnp.inf, 1.0, jnp.nan]])
    mask = jnp.array([[1, 1, 1, 1, 1, 1, 0, 0]])
    advantages = jnp.stack([jnp.full((1, 8), 2.0), jnp.full((1, 8), -1.0)])
    counted = np.array([[0, 0.85, 1, 1.15, 0, 0, 0, 0]])
    found = policy_directions(ratio, advantages, mask, 0.2)
    np.testing.assert_allclose(found, np.stack([-2 * counted, counted]), rtol=1e-6)
    slope = jax.grad(lambda u: policy_directions(u, advantages, mask, 0.2).sum())(ratio)
    assert not np.asarray(slope).any()


@pytest.mark.parametrize(
    ("field", "value"),
    [("rule", "best"), ("form", "cosine"), ("strength", -1.0), ("gate", float("nan"))],
)
def test_refuses_a_wrong_config(field, value):
    with pytest.raises(InputError, match=f"{field}: found"):
        CombineConfig(**{field: value})


def test_reads_from_options():
    found = load_config(CombineConfig, None, ["--rule", "gate", "--strength_last", "5"])
    assert found == CombineConfig("gate", strength_last=5.0)


def test_refuses_what_does_not_belong_together():
    directions = jnp.ones((2, 3))
    with pytest.raises(InputError, match="preference: found none"):
        combine(directions, jnp.ones(3), CombineConfig("linear"))
    with pytest.raises(InputError, match=r"preference: found shape \(3,\)"):
        combine(directions, jnp.ones(3), CombineConfig("two"), preference=jnp.ones(3))
    with pytest.raises(InputError, match="error: found none"):
        combine(directions, jnp.ones(3), CombineConfig("gate"))
    with pytest.raises(InputError, match="the similarity"):
        combine(directions, jnp.ones(4), CombineConfig())


def test_what_is_not_finite_is_refused_by_place():
    directions, similarity, p = (jnp.asarray(part, jnp.float32) for part in case(0))
    poisoned = directions.at[1].set(jnp.nan)
    place = ", ".join(["1", *["0"] * (directions.ndim - 1)])
    with pytest.raises(InputError) as refused:
        combine(poisoned, similarity, CombineConfig())
    assert str(refused.value) == (
        f"directions[{place}] is nan; expected finite numbers: correct it."
    )
    with pytest.raises(InputError) as refused:
        combine(directions, similarity, CombineConfig(), progress=float("nan"))
    assert str(refused.value) == "progress: found nan, expected a finite number; correct it."
    with pytest.raises(
        InputError, match=r"^preference: \[3\.0, 0\.0, 0\.0\] sums to 3, expected 1"
    ):
        combine(directions, similarity, CombineConfig("linear"), preference=jnp.array([3.0, 0, 0]))
    with pytest.raises(InputError, match=r"^error: found nan, expected a finite number of 0 or"):
        combine(directions, similarity, CombineConfig("gate"), error=jnp.nan)
    # Traced, the weights are no numbers either: the loss is not, and the run stops.
    for rule in ("blend", "minnorm", "two", "gate"):
        told = {"preference": p, "error": jnp.zeros(())}
        assert np.isnan(compiled(poisoned, similarity, CombineConfig(rule), **told)).any()


def test_no_tokens_are_nothing_to_follow():
    found = combine(jnp.zeros((2, 0)), jnp.zeros(0), CombineConfig("minnorm"))
    np.testing.assert_allclose(found, np.full(2, 1 / 3), rtol=1e-6)


def test_the_ratio_form_raises_a_reward_below_level_0():
    mean, preference = jnp.array([-0.2, 0.6]), jnp.array([0.5, 0.5])
    # Counted as 0, the reward would have no slope; (s - p) is (-0.75, 0.25) in shares r / |r|_1.
    assert float(slope_of(mean, preference, "ratio")[0]) == pytest.approx(0.9375, rel=1e-5)
