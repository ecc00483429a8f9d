"""Choices, ties, strengths and ratings as one likelihood, against quadrature."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_expit

from jaxalign.errors import InputError
from jaxalign.mrm import bayes, ep, feedback, feedback_population, feedback_rows
from jaxalign.mrm.config import BayesConfig
from jaxalign.mrm.feedback import Feedback, FeedbackPrior, Levels
from jaxalign.mrm.logistic_normal import choice_mass

LEVELS = Levels(ties=True, strengths=2, ratings=(2, 4))
THRESHOLDS = np.array([0.4, 1.5, 0.3, -1.8, -0.2, 1.7])


def a_prior(levels=LEVELS, thresholds=THRESHOLDS, level_sd=0.7, log_spread=0.1, spread_sd=0.4):
    weights = bayes.Prior(jnp.array([0.4]), jnp.array([[1.3]]))
    edges = levels.edges(jnp.asarray(thresholds, weights.mean.dtype))
    return FeedbackPrior(weights, edges, *map(jnp.asarray, (level_sd, log_spread, spread_sd)))


def mixed_rows(levels=LEVELS):
    """One user's rows of every kind: [1, 8, 1], the last of them padding that holds garbage."""
    vectors = np.array([[[1.0], [-0.6], [0.8], [0.5], [1.4], [-1.1], [0.9], [np.inf]]])
    rating = np.array([[False, False, False, True, True, True, True, True]])
    choices = levels.choice(np.array([0, 1, 2]), np.array([False, True, False]))
    thumbs, stars = levels.rating(0, np.array([1, 0])), levels.rating(1, np.array([3, 1]))
    ends = zip(choices, thumbs, stars, strict=True)
    lower, upper = (np.concatenate([*parts, [0]])[None].astype(np.int32) for parts in ends)
    weight = np.array([[1, 1, 1, 1, 0.5, 1, 1, 0.0]])
    return Feedback(*map(jnp.asarray, (vectors, rating, lower, upper, weight)))


def test_levels_number_their_edges():
    edges = np.asarray(LEVELS.edges(jnp.asarray(THRESHOLDS, jnp.float32)))
    tie, strict = np.array([True, False, False, False]), np.array([0, 0, 1, 2])
    lower, upper = LEVELS.choice(strict, tie)
    chex.assert_trees_all_close(edges[lower], np.float32([-0.4, 0.4, 0.4, 1.5]))
    chex.assert_trees_all_close(edges[upper], np.float32([0.4, np.inf, 1.5, np.inf]))
    lower, upper = LEVELS.rating(1, np.arange(4))
    chex.assert_trees_all_close(edges[lower], np.float32([-np.inf, -1.8, -0.2, 1.7]))
    chex.assert_trees_all_close(edges[upper], np.float32([-1.8, -0.2, 1.7, np.inf]))
    plain = Levels()
    assert plain.thresholds == 0
    assert np.asarray(plain.edges(jnp.zeros(0)))[plain.choice(None, False)[0]] == 0
    assert len(LEVELS.gaps @ THRESHOLDS) == 4
    assert (LEVELS.gaps @ THRESHOLDS > 0).all()


def log_level(margin, low, high):
    """Log probability of the level between two thresholds."""
    found = log_expit(margin - low) + log_expit(high - margin)
    return found + np.log(-np.expm1(low - high))


def dense_posterior(prior, rows):
    """Probabilities of spread, weight and level on a grid, and the grid's weights and levels."""
    spreads, log_mass = map(np.asarray, feedback.spread_grid(prior))
    theta, level = np.meshgrid(
        0.4 + np.sqrt(1.3) * np.linspace(-7, 7, 561), 0.7 * np.linspace(-7, 7, 401), indexing="ij"
    )
    log_prior = -0.5 * ((theta - 0.4) ** 2 / 1.3 + level**2 / 0.49)
    edges = np.asarray(prior.edges)
    posts = []
    for spread, mass in zip(spreads, log_mass, strict=True):
        log = log_prior + mass
        for p in range(7):
            f = float(rows.vectors[0, p, 0]) * theta
            margin = spread * (f - level) if bool(rows.rating[0, p]) else f
            ends = edges[rows.lower[0, p]], edges[rows.upper[0, p]]
            log = log + float(rows.weight[0, p]) * log_level(margin, *ends)
        posts.append(log)
    dense = np.exp(np.stack(posts) - np.max(posts))
    return dense / dense.sum(), theta, level


def test_the_posterior_is_that_of_quadrature(x64):
    """One feature: weight, level and spread on a grid each, the spread on the library's own."""
    prior, rows = a_prior(), mixed_rows()
    dense, theta, level = dense_posterior(prior, rows)
    mean = (dense * theta).sum()
    variance = (dense * (theta - mean) ** 2).sum()
    found = feedback.feedback_posterior(prior, rows)
    sd = np.sqrt(variance)
    # EP is an approximation: within a hundredth of the posterior standard deviation here.
    assert float(found.mean[0, 0]) == pytest.approx(mean, abs=0.01 * sd)
    assert float(found.cov[0, 0, 0]) == pytest.approx(variance, rel=0.01)
    assert float(found.level[0]) == pytest.approx((dense * level).sum(), abs=0.01)
    chex.assert_trees_all_close(found.spread[0], dense.sum((1, 2)), atol=2e-3)


def test_levels_of_a_held_out_rating_have_the_probabilities_of_quadrature(x64):
    prior, rows = a_prior(), mixed_rows()
    lower, upper = LEVELS.rating(1, np.arange(4))
    wanted = Feedback(np.ones((1, 4, 1)), np.ones((1, 4), bool), lower[None], upper[None],
                      np.ones((1, 4)))  # fmt: skip
    found = feedback_rows.log_likelihood(prior, rows, jax.tree.map(jnp.asarray, wanted))
    dense, theta, level = dense_posterior(prior, rows)
    spreads = np.asarray(feedback.spread_grid(prior)[0])[:, None, None]
    edges, margin = np.asarray(prior.edges), spreads * (theta - level)[None]
    expected = [
        (dense * np.exp(log_level(margin, edges[low], edges[high]))).sum()
        for low, high in zip(lower, upper, strict=True)
    ]
    chex.assert_trees_all_close(np.exp(found)[0], np.array(expected), atol=2e-3)


def test_choices_alone_have_the_posterior_of_choices(x64):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((3, 6, 1))
    levels, shape = Levels(), (3, 6)
    ends = levels.choice(None, np.zeros(shape, bool))
    rows = Feedback(vectors, np.zeros(shape, bool), *ends, np.ones(shape))
    prior = a_prior(levels, np.zeros(0))
    found = feedback.feedback_posterior(prior, jax.tree.map(jnp.asarray, rows))
    expected = bayes.posterior(prior.weights, vectors, np.ones(shape))
    chex.assert_trees_all_close((found.mean, found.cov), expected, atol=1e-6)


def test_thresholds_take_the_gradient_of_the_evidence(x64):
    """What EM steps along is the derivative of EP's log evidence, by differences of it."""
    prior, rows = a_prior(), mixed_rows()
    one = jax.tree.map(lambda leaf: leaf[0], rows)

    @jax.jit
    def evidence_and_slope(edges):
        at = prior._replace(edges=edges)
        mean, root = feedback.augmented(at)
        scaled = feedback.rows_at(mean, root, one, jnp.asarray(1.1))
        tilt = feedback.tilt_of(edges, one)
        sites = ep.converge(scaled, ep.no_sites(scaled), tilt)
        gram = ep.gram_of(scaled)
        _, evidence, found = ep.sweep(scaled, gram, sites, tilt)
        around = jax.tree.map(lambda leaf: leaf[None], ep.cavity(found, sites, scaled.weight))
        slope, bend = feedback_population._edge_terms(edges, one, around, jnp.ones(1))
        return evidence, slope, bend

    _, slope, bend = evidence_and_slope(prior.edges)
    for number in range(2, len(prior.edges)):
        moved = [prior.edges.at[number].add(step) for step in (-1e-4, 1e-4)]
        low, high = (float(evidence_and_slope(edges)[0]) for edges in moved)
        assert float(slope[number]) == pytest.approx((high - low) / 2e-4, abs=2e-4)
    assert float(jnp.linalg.eigvalsh(bend[2:, 2:]).max()) < 1e-9


def simulated(rng, users, rows, spread_sd, levels=LEVELS, thresholds=THRESHOLDS):
    """Users of one feature who give choices, thumbs and stars in turn; and their weights."""
    theta = 0.4 + np.sqrt(1.3) * rng.standard_normal((users, 1))
    level = 0.7 * rng.standard_normal((users, 1))
    spread = np.exp(spread_sd * rng.standard_normal((users, 1)))
    kind = np.broadcast_to(np.arange(rows) % 3, (users, rows))
    value = rng.standard_normal((users, rows)) * np.where(kind == 0, np.sqrt(2), 1)
    margin = np.where(kind > 0, spread * (value * theta - level), value * theta)
    utility = margin + rng.logistic(size=margin.shape)
    value = np.where((kind == 0) & (utility < 0), -value, value)
    lower, upper = levels.choice(np.where(abs(utility) > thresholds[1], 2, 1), abs(utility) < 0.4)
    for scale, cuts in enumerate((thresholds[2:3], thresholds[3:])):
        ends = levels.rating(scale, np.searchsorted(cuts, utility))
        lower, upper = (
            np.where(kind == scale + 1, end, old)
            for end, old in zip(ends, (lower, upper), strict=True)
        )
    weight = np.ones((users, rows), np.float32)
    vectors = value[..., None].astype(np.float32)
    return Feedback(vectors, kind > 0, lower, upper, weight), theta


def users_of_both_kinds():
    """73 users of whom every twentieth rates and all choose, and which of them rate."""
    rows, _ = simulated(np.random.default_rng(3), 73, 12, 0.4)
    rater = np.arange(73) % 20 == 7
    keep = rater[:, None] | ~rows.rating
    return rows._replace(weight=rows.weight * keep, rating=rows.rating & keep), rater


def test_users_without_ratings_need_no_grid_of_spreads():
    """They have the same posteriors at one spread, beside users who need the grid."""
    prior = a_prior()
    rows = Feedback(*map(jnp.asarray, users_of_both_kinds()[0]))
    expected = feedback.feedback_posterior(prior, rows)
    found = feedback_rows.inferred(prior, rows)
    chex.assert_trees_all_close(tuple(found), (expected.mean, expected.cov), atol=1e-5)
    query = jnp.ones((len(rows.weight), 1, 1))
    probability = feedback_rows.probabilities(prior, rows, query)
    # One is chosen, so that there is no tie.
    sides = [
        choice_mass(side * expected.mean - prior.edges[2], expected.cov[:, 0]) for side in (1, -1)
    ]
    chex.assert_trees_all_close(probability, sides[0] / sum(sides), atol=1e-5)


def test_em_takes_one_spread_for_users_without_ratings():
    rows, rater = users_of_both_kinds()
    whole = Feedback(*map(jnp.asarray, rows))
    parts = tuple(feedback_population._by_raters(whole))
    assert [len(part.weight) for part in parts] == [rater.sum(), (~rater).sum()]
    sites = feedback_population._no_sites(parts)
    assert [one.precision.shape[1] for one in sites] == [len(feedback.SPREAD_NODES), 1]
    config = BayesConfig(sweeps=3)
    expect = jax.jit(feedback_population._expect, static_argnames="config")
    found, _ = expect(a_prior(), parts, sites, config)
    expected, _ = expect(a_prior(), (whole,), feedback_population._no_sites((whole,)), config)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.slow  # the compilation of EM
def test_the_population_is_found_from_mixed_feedback():
    rows, _ = simulated(np.random.default_rng(1), 500, 24, 0.4)
    config = BayesConfig(em_steps=45, pseudo_users=(0.0,), least_gain=1e-5, user_chunk=500)
    found = feedback_population.fit_feedback([rows], LEVELS, config)
    # Within about three standard errors of 500 users.
    assert float(found.weights.mean[0]) == pytest.approx(0.4, abs=0.2)
    assert float(found.weights.cov[0, 0]) == pytest.approx(1.3, abs=0.4)
    chex.assert_trees_all_close(np.asarray(found.thresholds), THRESHOLDS, atol=0.2)
    assert float(found.level_sd) == pytest.approx(0.7, abs=0.15)
    assert float(found.log_spread) == pytest.approx(0.0, abs=0.25)
    assert float(found.log_spread_sd) == pytest.approx(0.4, abs=0.2)


def test_levels_are_numbered_without_a_gap():
    """Every level of every scale lies between neighbouring edges, whatever else there is."""
    for ties, strengths in itertools.product((False, True), (1, 3)):
        levels = Levels(ties, strengths, (2, 5))
        lower, upper = levels.rating(1, np.arange(5))
        assert (upper[:-1] == lower[1:]).all()
        assert upper.max() == len(levels.matrix) + 1
        first = levels.rating(0, np.arange(2))
        assert set(first[0]) | set(first[1]) == {0, 1, levels.strengths + 3}


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("vectors", np.nan, r"vectors\[0, 0, 0\] is nan"),
        ("lower", 99, r"lower\[0, 0\] is 99; expected the number of an edge below 9"),
        ("upper", -1, r"upper\[0, 0\] is -1"),
        ("weight", -1.0, r"weight\[0, 0\] is -1"),
    ],
)
def test_feedback_that_means_nothing_is_refused(field, change, message):
    rows = mixed_rows()
    wrong = np.array(getattr(rows, field))
    wrong[0, 0] = change
    rows = rows._replace(**{field: wrong})
    with pytest.raises(InputError, match=r"feedback\." + message):
        feedback.feedback_posterior(a_prior(), rows)
    with pytest.raises(InputError, match=r"buckets\[0\]\." + message):
        feedback_population.fit_feedback([rows], LEVELS)


def test_padding_may_hold_any_edge_and_no_feedback_is_refused():
    rows = mixed_rows()
    any_edge = rows._replace(lower=rows.lower.at[0, -1].set(99))
    chex.assert_trees_all_close(
        feedback.feedback_posterior(a_prior(), any_edge),
        feedback.feedback_posterior(a_prior(), rows),
    )
    for buckets in ([], [rows._replace(weight=0 * rows.weight)]):
        with pytest.raises(InputError, match="no weight above 0"):
            feedback_population.fit_feedback(buckets, LEVELS)
