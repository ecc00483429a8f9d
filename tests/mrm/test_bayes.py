"""Hierarchical Bradley-Terry against the NumPy reference, and what must hold of it in general."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_numpy as ref
import simulate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxalign.mrm import bayes, em, ep, newton, population
from jaxalign.mrm.config import BayesConfig

USERS, PAIRS, DIM = 5, 7, 4
WIDE = 12  # more features than the PAIRS + 2 rows: the smaller side of the Hessian is inverted
# One configuration for most tests: a compilation costs more than all the rest of a test.
CONFIG = BayesConfig(em_steps=3, user_chunk=2, pseudo_users=(0.0,))
# A step that no longer changes the loss in its last digit may be taken or not, so what is not run
# to the end is only the same up to about the square root of the rounding.
ROUGH = {"rtol": 1e-6, "atol": 1e-7}
SEEDS = st.integers(0, 2**32 - 1)
few = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    # x64 holds for the whole test and keeps nothing from one example to the next.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
posterior = jax.jit(bayes.posterior)
predict = jax.jit(bayes.predict, static_argnames="chunk")
fit_prior = population.fit_prior
choice_probability = jax.jit(jax.vmap(bayes.choice_probability))
bradley_terry = jax.jit(newton.bradley_terry, static_argnames="steps")


def a_prior(rng, kind="full", dim=DIM):
    """Mean [E] and cov [E, E]; "low" has rank 2, "singular" a feature without variance."""
    root = rng.standard_normal((dim, 2 if kind == "low" else dim))
    if kind == "singular":
        root[1] = 0.0
    return rng.standard_normal(dim), root @ root.T / dim


def users(rng, kind="full", dim=DIM):
    """Prior, ragged choices [U, P + 2, E] and weights; user 1 has a tie; padding holds garbage."""
    mean, cov = a_prior(rng, kind, dim)
    differences, mask = simulate.bayes_users(rng, USERS, PAIRS, dim, mean, cov)
    tie = rng.standard_normal(dim)
    extra = np.zeros((USERS, 2, dim))
    extra[1] = tie, -tie
    weight = np.zeros((USERS, 2))
    weight[1] = 0.5
    differences = np.concatenate([differences, extra], axis=1)
    weight = np.concatenate([mask.astype(float), weight], axis=1)
    garbage = 5 * rng.standard_normal(differences.shape)
    return bayes.Prior(mean, cov), np.where(weight[..., None] > 0, differences, garbage), weight


def each_user(prior, differences, weight):
    rows = [ref.posterior(*prior, d, w) for d, w in zip(differences, weight, strict=True)]
    return tuple(np.stack(column) for column in zip(*rows, strict=True))


def close(actual, expected, atol, rtol=0.0):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), actual, expected
    )


# Parity with the reference.


@pytest.mark.parametrize("kind", ["full", "low", "singular"])
@pytest.mark.parametrize("dim", [DIM, WIDE])
@pytest.mark.parametrize("seed", range(3))
def test_posterior(kind, dim, seed, x64):
    prior, differences, weight = users(np.random.default_rng(seed), kind, dim)
    expected = each_user(prior, differences, weight)
    mean, cov = posterior(prior, differences, weight)
    assert mean.dtype == cov.dtype == jnp.float64
    # The mixture of probits is good to 2e-9.
    close((mean, cov), expected, 2e-7)


def test_nothing_moves_outside_the_range_of_the_covariance(x64):
    prior, differences, weight = users(np.random.default_rng(3), "singular")
    mean, cov = posterior(prior, differences, weight)
    np.testing.assert_allclose(mean[:, 1], np.full(USERS, prior.mean[1]), atol=1e-12)
    assert np.abs(cov[:, 1]).max() < 1e-12
    still = bayes.Prior(prior.mean, np.zeros((DIM, DIM)))
    mean, cov = posterior(still, differences, weight)
    np.testing.assert_array_equal(mean, np.tile(prior.mean, (USERS, 1)))
    np.testing.assert_array_equal(cov, np.zeros((USERS, DIM, DIM)))


@jax.jit
def em_step(prior, buckets, pseudo_users=0.0):
    """One EM step around posteriors that have converged."""
    exact = dataclasses.replace(CONFIG, sweeps=60)
    moments, _ = population.expect(prior, buckets, population.no_sites(buckets), exact)
    users = sum(jnp.sum(jnp.any(b.weight > 0, axis=1)) for b in buckets)
    return population.maximise(prior, moments, users, pseudo_users), moments.evidence


@pytest.mark.parametrize("dim", [DIM, WIDE])
def test_em_step(dim, x64):
    prior, differences, weight = users(np.random.default_rng(4), dim=dim)
    prior = bayes.Prior(*map(jnp.asarray, prior))
    found, evidence = em_step(prior, (population.choices_of(differences, weight),))
    close(tuple(found), ref.em_step(*map(np.asarray, prior), differences, weight), 2e-7)
    assert float(evidence) == pytest.approx(ref.evidence(*prior, differences, weight), abs=1e-6)


def test_users_in_buckets_are_the_same_users(x64):
    prior, differences, weight = users(np.random.default_rng(4))
    prior = bayes.Prior(*map(jnp.asarray, prior))
    parts = (slice(0, 2), slice(2, None))
    buckets = tuple(population.choices_of(differences[p], weight[p]) for p in parts)
    whole, _ = em_step(prior, (population.choices_of(differences, weight),))
    close(tuple(em_step(prior, buckets)[0]), tuple(whole), 1e-9)


def test_em_step_from_a_singular_covariance(x64):
    # Users who never differ in one feature leave its direction where the prior has it.
    rng = np.random.default_rng(5)
    prior, differences, weight = users(rng)
    alone = np.ix_([0, 1, 3], [0, 1, 3])
    cov = np.diag([0.0, 0.0, 1.5, 0.0])
    cov[alone] = prior.cov[alone]
    prior = bayes.Prior(jnp.asarray(prior.mean), jnp.asarray(cov))
    differences[..., 2] = 0.0
    expected = ref.em_step(*map(np.asarray, prior), differences, weight)
    found, _ = em_step(prior, (population.choices_of(differences, weight),))
    close(tuple(found), expected, 2e-7)
    np.testing.assert_allclose(found.cov[2, 2], prior.cov[2, 2], rtol=1e-9)


def test_pseudo_users_are_users_of_one_variance(x64):
    prior, differences, weight = users(np.random.default_rng(4))
    prior = bayes.Prior(*map(jnp.asarray, prior))
    buckets = (population.choices_of(differences, weight),)
    plain, _ = em_step(prior, buckets)
    found, _ = em_step(prior, buckets, pseudo_users=3 * USERS)
    # Of the harmonic mean of the variances that come out.
    size = DIM / np.trace(np.linalg.inv(found.cov))
    close(tuple(found), (plain.mean, (plain.cov + 3 * size * np.eye(DIM)) / 4), 1e-6)


def test_the_start_is_broad(x64):
    _, differences, weight = users(np.random.default_rng(4))
    start = population.start_of((population.choices_of(differences, weight),), 1e-4)
    mean_norm = np.sum(weight * np.sum(differences**2, axis=-1)) / np.sum(weight)
    np.testing.assert_allclose(start.cov, np.eye(DIM) / mean_norm, rtol=1e-12)
    expected = ref.bradley_terry(differences.reshape(-1, DIM), weight.ravel(), 1e-4 * mean_norm)
    close(start.mean, expected, 1e-6)


def test_em_ends_where_a_step_changes_nothing(x64):
    """Accelerated EM has the fixed point of plain EM."""
    rng = np.random.default_rng(13)
    mean, cov = a_prior(rng)
    differences, mask = simulate.bayes_users(rng, 200, PAIRS, DIM, mean, 4 * cov)
    buckets = (population.choices_of(differences, mask),)
    config = BayesConfig(least_gain=1e-10, em_steps=600, pseudo_users=(20.0,))
    fitted = population.em(population.start_of(buckets, 1e-4), buckets, 20.0, config)
    again, _ = em_step(fitted.prior, buckets, 20.0)
    assert int(fitted.steps) < 600
    close(tuple(fitted.prior), tuple(again), 2e-4)


@pytest.mark.parametrize("rank", [1, 3])
def test_truncate(rank, x64):
    mean, cov = a_prior(np.random.default_rng(6))
    prior = bayes.truncate(bayes.Prior(mean, jnp.asarray(cov)), rank)
    close(tuple(prior), (mean, ref.truncate(cov, rank)), 1e-12)
    root = bayes.factor(jnp.asarray(cov), rank)
    chex.assert_shape(root, (DIM, rank))
    close(root @ root.T, ref.truncate(cov, rank), 1e-12)


def test_truncate_to_everything_is_nothing(x64):
    prior = bayes.Prior(*map(jnp.asarray, a_prior(np.random.default_rng(7))))
    for rank in (None, DIM, DIM + 1):
        assert bayes.truncate(prior, rank) is prior


def test_fit_prior_truncates_what_em_finds(x64):
    _, differences, weight = users(np.random.default_rng(8))
    whole = fit_prior(differences, weight, CONFIG)
    prior = fit_prior(differences, weight, dataclasses.replace(CONFIG, rank=2))
    close(tuple(prior), (whole.mean, ref.truncate(np.asarray(whole.cov), 2)), 1e-10)


def test_strength_and_temperature_are_in_posterior_and_prediction(x64):
    """A temperature is the same as larger features under the prior of smaller weights."""
    rng = np.random.default_rng(8)
    prior, differences, weight = users(rng)
    query = rng.standard_normal((USERS, 6, DIM))
    scaled = bayes.rescaled(prior, 3.0, 2.0)
    close(tuple(scaled), (prior.mean / 2, 0.75 * prior.cov), 1e-14)
    widened = bayes.Prior(prior.mean, 3.0 * prior.cov)
    mean, cov = posterior(scaled, differences, weight)
    expected = posterior(widened, differences / 2, weight)
    close((2 * mean, 4 * cov), expected, 1e-9)
    expected = predict(widened, differences / 2, weight, query / 2)
    close(predict(scaled, differences, weight, query), expected, 1e-9)


@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
def test_choice_probability(scale, x64):
    rng = np.random.default_rng(9)
    mean, cov = a_prior(rng)
    d = scale * rng.standard_normal((50, DIM))
    ours = bayes.choice_probability(jnp.asarray(mean), jnp.asarray(cov), jnp.asarray(d))
    # The quadrature is no better beyond a standard deviation of 10.
    close(ours, ref.predict_quadrature(mean, cov, d), 1e-8 if scale < 4 else 1e-5)
    swapped = bayes.choice_probability(jnp.asarray(mean), jnp.asarray(cov), jnp.asarray(-d))
    close(ours + swapped, np.ones(50), 1e-12)


@pytest.mark.parametrize("l2", [1e-3, 0.1])
def test_bradley_terry(l2, x64):
    _, differences, weight = users(np.random.default_rng(10))
    flat, rows = differences.reshape(-1, DIM), weight.reshape(-1)
    mean_norm = np.sum(rows * np.sum(flat**2, axis=1)) / np.sum(rows)
    expected = ref.bradley_terry(flat, rows, l2 * mean_norm)
    close(bradley_terry(differences, weight, l2, steps=30), expected, **ROUGH)
    close(bradley_terry(differences, weight, l2), expected, 1e-6)
    # The ridge means the same at any feature scale.
    close(100 * bradley_terry(100 * differences, weight, l2), expected, 1e-6)


def test_bradley_terry_without_choices_is_zero(x64):
    _, differences, weight = users(np.random.default_rng(11))
    np.testing.assert_array_equal(bradley_terry(differences, 0 * weight, 0.1), np.zeros(DIM))
    np.testing.assert_array_equal(bradley_terry(0 * differences, weight, 0.1), np.zeros(DIM))


@pytest.mark.parametrize(
    ("kind", "dim", "chunk"), [("full", DIM, 2), ("low", DIM, 128), ("full", WIDE, 2)]
)
def test_predict_is_posterior_and_choice_probability(kind, dim, chunk, x64):
    rng = np.random.default_rng(12)
    prior, differences, weight = users(rng, kind, dim)
    query = rng.standard_normal((USERS, 6, dim))
    ours = predict(prior, differences, weight, query, chunk=chunk)
    mean, cov = posterior(prior, differences, weight)
    close(ours, choice_probability(mean, cov, query), **ROUGH)


def test_held_out_users_choose_the_pseudo_users():
    """Equal variances ask for many pseudo-users; one direction that matters, for few."""
    rng = np.random.default_rng(13)
    mean, config = np.zeros(8), BayesConfig(pseudo_users=(0.0, 2000.0), em_steps=30)
    for cov, expected in ((np.eye(8) / 16, 2000.0), (np.diag([9.0] + 7 * [1e-3]), 0.0)):
        differences, mask = simulate.bayes_users(rng, 150, 12, 8, mean, cov)
        found = population.fit_population((population.choices_of(differences, mask),), config)
        assert found.pseudo_users == expected


def test_every_fifth_user_is_held_out_whatever_the_buckets():
    """Of twelve users in buckets of three, and of two more without choices."""
    weight = np.ones((14, 2), np.float32)
    weight[[0, 7]] = 0
    seen, held_out = (
        np.concatenate([bucket.weight for bucket in part])
        for part in em._hold_out(
            tuple(
                population.choices_of(np.ones((len(part), 2, 1), np.float32), part)
                for part in np.array_split(weight, 4)
            )
        )
    )
    np.testing.assert_array_equal(seen + held_out, weight)
    assert np.flatnonzero(held_out.any(axis=1)).tolist() == [5, 11]


# Properties.


@few
@given(seed=SEEDS)
def test_order_of_pairs_and_users_does_not_matter(seed, x64):
    rng = np.random.default_rng(seed)
    prior, differences, weight = users(rng)
    fitted = fit_prior(differences, weight, config=CONFIG)
    mean, cov = posterior(prior, differences, weight)
    pairs = rng.permutation(weight.shape[1])
    order = rng.permutation(USERS)
    shuffled = differences[order][:, pairs], weight[order][:, pairs]
    close(tuple(fit_prior(*shuffled, config=CONFIG)), tuple(fitted), **ROUGH)
    close(posterior(prior, *shuffled), (mean[order], cov[order]), **ROUGH)


@few
@given(seed=SEEDS)
def test_padding_and_users_without_pairs_do_not_matter(seed, x64):
    rng = np.random.default_rng(seed)
    prior, differences, weight = users(rng)
    real = np.array([1, 3, 4, 5, 8])
    wide = 9 * rng.standard_normal((9, weight.shape[1] + 3, DIM))
    wide_weight = np.zeros(wide.shape[:2])
    wide[real, :-3], wide_weight[real, :-3] = differences, weight
    expected = posterior(prior, differences, weight)
    mean, cov = posterior(prior, wide, wide_weight)
    close((mean[real], cov[real]), expected, **ROUGH)
    close(
        tuple(fit_prior(wide, wide_weight, config=CONFIG)),
        tuple(fit_prior(differences, weight, config=CONFIG)),
        **ROUGH,
    )


@few
@given(seed=SEEDS, exponent=st.floats(-4, 4))
def test_scale_of_the_features_does_not_matter(seed, exponent, x64):
    rng = np.random.default_rng(seed)
    _, differences, weight = users(rng)
    query = rng.standard_normal((USERS, 6, DIM))

    def probabilities(scale):
        prior = fit_prior(scale * differences, weight, config=CONFIG)
        return predict(prior, scale * differences, weight, scale * query)

    close(probabilities(10.0**exponent), probabilities(1.0), **ROUGH)


@few
@given(seed=SEEDS, kind=st.sampled_from(["full", "low"]))
def test_a_user_without_choices_gets_the_prior(seed, kind, x64):
    prior, differences, weight = users(np.random.default_rng(seed), kind)
    weight[3] = 0.0
    mean, cov = posterior(prior, differences, weight)
    np.testing.assert_array_equal(mean[3], prior.mean)
    close(cov[3], prior.cov, 1e-12)


def finite(*trees):
    for leaf in jax.tree.leaves(trees):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1e4, 1e6])
@pytest.mark.parametrize("dim", [DIM, WIDE])
def test_extreme_differences_stay_finite(dtype, size, dim, x64):
    rng = np.random.default_rng(14)
    differences = (size * rng.standard_normal((USERS, PAIRS + 2, dim))).astype(dtype)
    differences[:, 1] = -differences[:, 0]  # a tie
    weight = np.zeros((USERS, PAIRS + 2), dtype)
    # Fewer directions than features or rows: only the prior keeps the Hessian regular.
    weight[:, :2], weight[:, 2] = 0.5, 1
    broad = bayes.Prior(jnp.zeros(dim, dtype), jnp.eye(dim, dtype=dtype))
    mean, cov = posterior(broad, differences, weight)
    finite(mean, cov, predict(broad, differences, weight, differences))
    assert mean.dtype == cov.dtype == dtype
    assert (np.einsum("ue,ue->u", differences[:, 2], mean) >= 0).all()
    assert (np.diagonal(cov, axis1=1, axis2=2) > -1e-5).all()
    finite(tuple(fit_prior(differences, weight, config=CONFIG)))
    mixed = differences.copy()
    mixed[1:] /= size
    prior = fit_prior(mixed, weight, config=CONFIG)
    finite(tuple(prior), predict(prior, mixed, weight, mixed))


def test_a_wrong_and_confident_mean_is_left(x64):
    """Most choices are 30 or more logits from what the prior expects."""
    rng = np.random.default_rng(15)
    prior = bayes.Prior(np.full(DIM, -30.0), 100 * np.eye(DIM))
    differences = np.abs(rng.standard_normal((USERS, PAIRS, DIM)))
    weight = np.ones((USERS, PAIRS))
    mean, cov = posterior(prior, differences, weight)
    expected = each_user(prior, differences, weight)
    spread = np.sqrt(np.einsum("uii->ui", expected[1]))
    close((mean - expected[0]) / spread, np.zeros((USERS, DIM)), 1e-3)
    off = np.linalg.norm(cov - expected[1], axis=(1, 2)) / np.linalg.norm(expected[1], axis=(1, 2))
    close(off, np.zeros(USERS), 1e-3)


def test_a_cavity_that_is_no_normal_keeps_its_site(x64):
    rows = ep.ChoiceRows(jnp.ones((1, 1)), jnp.zeros(1), jnp.full(1, 0.5))
    sites = ep.Sites(jnp.full(1, 3.0), jnp.full(1, 0.2))  # more than half of it is there
    after, evidence, found = ep.sweep(rows, None, sites)
    assert not ep.cavity(found, sites, rows.weight).proper[0]
    close(tuple(after), tuple(sites), 0)
    assert np.isfinite(evidence)


def test_float32_is_near_float64():
    rng = np.random.default_rng(16)
    prior, differences, weight = users(rng)
    query = rng.standard_normal((USERS, 6, DIM))

    def run(dtype):
        d, w, q = (jnp.asarray(a, dtype) for a in (differences, weight, query))
        given_prior = bayes.Prior(*(jnp.asarray(a, dtype) for a in prior))
        fitted = fit_prior(d, w, config=CONFIG)
        out = (*posterior(given_prior, d, w), *fitted, predict(fitted, d, w, q))
        assert all(a.dtype == dtype for a in out)
        return jax.tree.map(np.asarray, out)

    single = run(jnp.float32)
    with jax.enable_x64(True):
        double = run(jnp.float64)
    finite(single)
    close(single, double, 2e-3, 2e-3)
    close(single[-1], double[-1], 1e-4)


def test_half_precision_differences_are_summed_in_single():
    prior, differences, weight = users(np.random.default_rng(17))
    prior = bayes.Prior(*(jnp.asarray(a, jnp.float32) for a in prior))
    half = jnp.asarray(differences, jnp.bfloat16)
    mean, cov = posterior(prior, half, weight)
    assert mean.dtype == cov.dtype == jnp.float32
    close((mean, cov), posterior(prior, half.astype(jnp.float32), weight.astype(np.float32)), 1e-6)


def test_equal_shapes_trace_once():
    chex.clear_trace_counter()
    once = jax.jit(chex.assert_max_traces(bayes.posterior, 1))
    for seed in range(3):
        prior, differences, weight = users(np.random.default_rng(seed))
        as32 = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (prior, differences, weight))
        once(*as32)


# Learning.


@functools.cache
def learned(seed):
    """Held-out accuracies of hierarchical Bayes and of one model, and how true the prior is."""
    count, dim, shown, asked = 200, 6, 20, 20
    rng = np.random.default_rng(seed)
    mean = 0.3 * rng.standard_normal(dim)
    root = rng.standard_normal((dim, dim)) * np.array([1.2, 1.0, 0.8, 0.6, 0.4, 0.2])
    cov = root @ root.T / 2
    theta = simulate.tastes(rng, 2 * count, mean, cov)
    support, support_mask = simulate.choices(rng, theta, shown)
    query, query_mask = simulate.choices(rng, theta, asked)
    seen, unseen = slice(0, count), slice(count, None)

    prior = fit_prior(support[seen], support_mask[seen], config=BayesConfig())
    ours = predict(prior, support[unseen], support_mask[unseen], query[unseen])
    shared = query[unseen] @ bradley_terry(support[seen], support_mask[seen])
    mask = query_mask[unseen]
    return {
        "bayes": float(np.mean(ours[mask] > 0.5)),
        "shared": float(np.mean(shared[mask] > 0)),
        "log loss": float(-np.mean(np.log(ours[mask]))),
        "shared log loss": float(np.mean(np.logaddexp(0, -shared[mask]))),
        "mean": float(np.linalg.norm(prior.mean - mean) / np.sqrt(np.trace(cov) / count)),
        "cov": float(np.linalg.norm(prior.cov - cov) / np.linalg.norm(cov)),
    }


@pytest.mark.parametrize("seed", range(3))
def test_learning_beats_one_model_and_recovers_the_population(seed):
    figures = learned(seed)
    assert figures["bayes"] > figures["shared"] + 0.1, figures
    assert figures["log loss"] < figures["shared log loss"] - 0.05, figures
    assert figures["mean"] < 3, figures
    assert figures["cov"] < 0.4, figures
