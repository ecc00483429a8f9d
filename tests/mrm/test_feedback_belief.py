"""A state of any length against a fit of all rows anew."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_mixed_feedback import LEVELS, a_prior, simulated

from jaxalign.errors import InputError
from jaxalign.mrm import bayes, feedback
from jaxalign.mrm.feedback import Feedback
from jaxalign.mrm.feedback_belief import feedback_moments, init_feedback_belief, observe


def after(belief, rows):
    """The belief after rows of one user [P]."""
    for vector, rating, lower, upper, weight in zip(*map(np.asarray, rows), strict=True):
        belief = observe(belief, vector, int(lower), int(upper), bool(rating), float(weight))
    return belief


def in_sds(found, expected):
    """Largest difference of means, and of standard deviations, in posterior sds."""
    (mean, cov), (other, other_cov) = (map(np.asarray, pair) for pair in (found, expected))
    sd, other_sd = np.sqrt(np.diagonal(cov)), np.sqrt(np.diagonal(other_cov))
    return max(abs((mean - other) / other_sd).max(), abs(sd / other_sd - 1).max())


@pytest.mark.parametrize(("size", "rows"), [pytest.param(5, 3000, marks=pytest.mark.slow), (5, 40)])
def test_choices_are_as_if_fitted_anew(size, rows):
    rng = np.random.default_rng(0)
    prior = bayes.Prior(jnp.zeros(size), jnp.diag(jnp.linspace(0.3, 1.5, size)))
    theta = rng.standard_normal(size)
    choices = rng.standard_normal((rows, size)).astype(np.float32)
    wins = rng.random(rows) < 1 / (1 + np.exp(-choices @ theta))
    choices = np.where(wins[:, None], choices, -choices)
    belief = init_feedback_belief(prior)
    for choice in choices:
        belief = observe(belief, choice)
    with jax.enable_x64(True):  # in float32 the fit itself ends a thousandth away
        exact = bayes.Prior(*(np.asarray(part, np.float64) for part in prior))
        whole = bayes.posterior(exact, choices[None].astype(np.float64), np.ones((1, rows)))
    assert in_sds(feedback_moments(belief), (whole[0][0], whole[1][0])) < 1e-3


def test_any_kind_of_row_is_as_if_fitted_anew():
    rows, _ = simulated(np.random.default_rng(2), 1, 30, 0.4)
    prior = a_prior()
    one = Feedback(*(np.asarray(leaf)[0] for leaf in rows))
    found = feedback.feedback_posterior(prior, jax.tree.map(jnp.asarray, rows))
    belief = after(init_feedback_belief(prior), one)
    assert belief.num_rows == 30
    assert in_sds(feedback_moments(belief), (found.mean[0], found.cov[0])) < 1e-3


def test_spreads_that_rows_have_made_improbable_are_left_out(monkeypatch):
    monkeypatch.setattr("jaxalign.mrm.feedback_belief._NEGLIGIBLE", 5e-3)
    rows, _ = simulated(np.random.default_rng(5), 1, 33, 0.0)
    prior = a_prior(spread_sd=2.0)
    belief = init_feedback_belief(prior)
    for part, spreads in ((slice(32), 9), (slice(32, None), 5)):
        belief = after(belief, Feedback(*(np.asarray(leaf)[0, part] for leaf in rows)))
        assert len(belief.spreads) == spreads
    found = feedback.feedback_posterior(prior, jax.tree.map(jnp.asarray, rows))
    # Those left out had 0.003 together.
    assert in_sds(feedback_moments(belief), (found.mean[0], found.cov[0])) < 2e-2


def test_old_rows_are_let_go_and_what_they_said_is_kept(monkeypatch):
    monkeypatch.setattr("jaxalign.mrm.feedback_belief.KEPT_PER_FEATURE", 1)
    monkeypatch.setattr("jaxalign.mrm.feedback_belief.LEAST_KEPT", 64)
    belief = init_feedback_belief(bayes.Prior(jnp.zeros(5), jnp.eye(5)))
    choice = np.eye(5, dtype=np.float32)[0]
    for _ in range(100):
        belief = observe(belief, choice)
    assert len(belief.blocks) == 2
    mean, cov = feedback_moments(belief)
    prior = bayes.Prior(jnp.zeros(5), jnp.eye(5))
    whole = bayes.posterior(prior, np.tile(choice, (1, 100, 1)), np.ones((1, 100)))
    # Let go after 64 rows of one direction, so that their sites are those of 64 rows for good.
    assert in_sds((mean, cov), (whole[0][0], whole[1][0])) < 0.3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"vector": np.ones(3)}, "shape"),
        ({"vector": np.array([np.nan, 0])}, "NaN"),
        ({"vector": np.ones(2), "weight": 0.0}, "weight"),
        ({"vector": np.ones(2), "rating": True}, "choices alone"),
        ({"vector": np.ones(2), "lower": 9}, "edges 9"),
    ],
)
def test_a_row_that_cannot_be_used_is_refused(row, message):
    belief = init_feedback_belief(bayes.Prior(jnp.zeros(2), jnp.eye(2)))
    with pytest.raises(InputError, match=message):
        observe(belief, **row)


def test_levels_of_the_simulation_are_those_of_the_prior():
    assert len(a_prior().edges) == len(LEVELS.matrix) + 2
