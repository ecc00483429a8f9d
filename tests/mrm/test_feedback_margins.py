"""A short history of many features, by the joint posterior of its margins, against a fit anew."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_feedback_belief import after, in_sds
from test_mixed_feedback import a_prior, simulated

from jaxalign.mrm import bayes, feedback
from jaxalign.mrm.feedback import Feedback
from jaxalign.mrm.feedback_belief import (
    feedback_moments,
    fits_margins,
    init_feedback_belief,
    observe,
)

SIZE, ROWS = 70, 70


@pytest.fixture(scope="module")
def history():
    """Rows of every kind of one user whose answers have 70 features, and the prior."""
    rng = np.random.default_rng(4)
    rows, _ = simulated(rng, 1, ROWS, 0.4)
    kind, lower, upper, weight = (np.asarray(leaf)[0] for leaf in rows[1:])
    # Answers lie close to a line, so that each row says much of the others.
    vectors = rng.standard_normal((ROWS, SIZE)) / 8 + np.asarray(rows.vectors)[0] / np.sqrt(SIZE)
    weight = np.where(np.arange(ROWS) % 5 == 4, 0.4, weight)
    one = Feedback(vectors.astype(np.float32), kind, lower, upper, weight.astype(np.float32))
    return a_prior()._replace(weights=bayes.Prior(jnp.zeros(SIZE), jnp.eye(SIZE))), one


def test_every_length_is_as_if_fitted_anew(history):
    """In one block of margins, in two, and with too many rows for margins."""
    prior, rows = history
    assert [fits_margins(blocks, SIZE + 1) for blocks in (1, 2, 3)] == [True, True, False]
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), prior)
        every = [rows._replace(weight=rows.weight * (np.arange(ROWS) < n)) for n in (20, 50, ROWS)]
        wide = jax.tree.map(lambda *leaves: jnp.stack(leaves), *every)
        wide = wide._replace(vectors=wide.vectors.astype(jnp.float64))
        expected = feedback.feedback_posterior(exact, wide)
    belief = init_feedback_belief(prior)
    for number, (start, end) in enumerate(((0, 20), (20, 50), (50, ROWS))):
        belief = after(belief, Feedback(*(leaf[start:end] for leaf in rows)))
        assert belief.num_rows == end
        assert (belief.joint is None) == (end > 64)
        whole = (expected.mean[number], expected.cov[number])
        assert in_sds(feedback_moments(belief), whole) < 1e-3


def test_choices_alone_need_one_spread(history):
    _, rows = history
    prior = bayes.Prior(jnp.zeros(SIZE), jnp.eye(SIZE))
    vectors = rows.vectors[:20]
    belief = init_feedback_belief(prior)
    for vector in vectors:
        belief = observe(belief, vector)
    mean, cov = bayes.posterior(prior, vectors[None], np.ones((1, 20), np.float32))
    assert in_sds(feedback_moments(belief), (mean[0], cov[0])) < 1e-3
