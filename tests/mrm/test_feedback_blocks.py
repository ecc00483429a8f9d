"""A state of one program for any number of rows, against a fit of all rows anew."""

from itertools import pairwise

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_feedback_belief import in_sds
from test_mixed_feedback import a_prior, simulated

from jaxalign.errors import InputError
from jaxalign.mrm import feedback, feedback_blocks
from jaxalign.mrm.feedback import Feedback
from jaxalign.mrm.feedback_belief import feedback_moments, init_feedback_belief

ROWS = 100


@pytest.fixture(scope="module")
def rows():
    found, _ = simulated(np.random.default_rng(2), 1, ROWS, 0.4)
    return Feedback(*(np.asarray(leaf) for leaf in found))


def part(rows, start, end):
    return feedback_blocks.FeedbackRows(*(leaf[0, start:end] for leaf in rows[:-1]))


def after(rows, ends):
    belief = init_feedback_belief(a_prior())
    for start, end in pairwise((0, *ends)):
        belief = feedback_blocks.observe_rows(belief, part(rows, start, end))
    return belief


@pytest.mark.parametrize("ends", [(32, 40), (32, 64, 96, ROWS)])
def test_any_kind_of_row_is_as_if_fitted_anew(rows, ends):
    padded = jax.tree.map(jnp.asarray, rows._replace(weight=np.arange(ROWS)[None] < ends[-1]))
    whole = feedback.feedback_posterior(a_prior(), padded)
    belief = after(rows, ends)
    assert belief.num_rows == ends[-1]
    assert in_sds(feedback_moments(belief), (whole.mean[0], whole.cov[0])) < 1e-3


def test_a_state_is_that_of_its_rows_however_many_come_in_one_call(rows):
    chex.assert_trees_all_equal(
        after(rows, (32, 64, 80)), after(rows, (1, 2, 20, 32, 33, 64, 79, 80))
    )


def test_old_blocks_are_let_go(rows, monkeypatch):
    monkeypatch.setattr(feedback_blocks, "KEPT", 2)
    belief = after(rows, (32, 64, 96))
    assert len(belief.blocks) == 2
    assert np.isfinite(feedback_moments(belief)[0]).all()


def test_more_rows_than_have_room_in_a_block_are_refused(rows):
    with pytest.raises(InputError, match="found 33 rows after 0: expected 32 or fewer"):
        after(rows, (33,))
    with pytest.raises(InputError, match="found 32 rows after 10: expected 22 or fewer"):
        after(rows, (10, 42))
