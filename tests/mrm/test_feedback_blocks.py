"""A state in steps of whole blocks against a fit of all rows anew."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_feedback_belief import in_sds
from test_mixed_feedback import a_prior, simulated

from jaxalign.errors import InputError
from jaxalign.mrm import feedback, feedback_blocks
from jaxalign.mrm.feedback import Feedback
from jaxalign.mrm.feedback_belief import BLOCK, feedback_moments, init_feedback_belief

ROWS = 100


@pytest.fixture(scope="module")
def rows():
    found, _ = simulated(np.random.default_rng(2), 1, ROWS, 0.4)
    return Feedback(*(np.asarray(leaf) for leaf in found))


def part(rows, start, end):
    return Feedback(*(leaf[0, start:end] for leaf in rows))


def after(rows, blocks, end=ROWS):
    belief = init_feedback_belief(a_prior())
    for number in range(blocks):
        belief = feedback_blocks.observe_rows(
            belief, part(rows, number * BLOCK, (number + 1) * BLOCK)
        )
    return feedback_blocks.observe_rows(belief, part(rows, blocks * BLOCK, end))


@pytest.mark.parametrize(("blocks", "end"), [(0, 40), (2, ROWS)])
def test_any_kind_of_row_is_as_if_fitted_anew(rows, blocks, end):
    padded = jax.tree.map(jnp.asarray, rows._replace(weight=np.arange(ROWS)[None] < end))
    whole = feedback.feedback_posterior(a_prior(), padded)
    belief = after(rows, blocks, end)
    assert belief.num_rows == end
    assert in_sds(feedback_moments(belief), (whole.mean[0], whole.cov[0])) < 1e-3


def test_old_blocks_are_let_go(rows, monkeypatch):
    monkeypatch.setattr(feedback_blocks, "KEPT", 2)
    belief = after(rows, 3, 3 * BLOCK)
    assert len(belief.blocks) == 2
    assert np.isfinite(feedback_moments(belief)[0]).all()


def test_a_belief_in_the_middle_of_a_block_and_too_many_rows_are_refused(rows):
    belief = init_feedback_belief(a_prior())
    with pytest.raises(InputError, match="64 new ones or fewer"):
        feedback_blocks.observe_rows(belief, part(rows, 0, 70))
    with pytest.raises(InputError, match="a belief of 40 rows"):
        feedback_blocks.observe_rows(belief._replace(num_rows=40), part(rows, 0, 1))
