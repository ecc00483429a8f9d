"""Rows that are decoded together: their limits and failures are their own."""

import dataclasses
from concurrent.futures import Future

import jax
import numpy as np
import pytest
import tiny_lms

from jaxalign.errors import InputError
from jaxalign.models.language import load_language_model
from jaxalign.serve import EngineConfig
from jaxalign.serve.engines.decode_pool import DecodePool, DecodeRow, PoolShape
from jaxalign.serve.engines.local import LocalEngine


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_language_model(str(tiny_lms.write(tmp_path_factory.mktemp("lm"), "llama")))


def row_of(prompt, answer, policy=0):
    """Return a row with a prompt and an answer of so many tokens, which seldom ends before."""
    return DecodeRow([5] * prompt, policy, None, answer, 1.5, 1.0, jax.random.key(answer))


def drawn(model, rows, shape, arguments=lambda _: {}):
    pool = DecodePool(model, shape, arguments)
    pool.join(rows)
    while pool.rows:
        pool.advance()
    return [row.done for row in rows]


def test_a_long_prompt_and_a_long_answer_join_together(model):
    """Each has room in the model's 128 positions; the longest of both together have not."""
    first = PoolShape.of(row_of(65, 63), 128)
    rows = [row_of(80, 20), row_of(5, 64)]
    assert all(first.holds(PoolShape.of(row, 128)) for row in rows)
    together = [done.result().tokens for done in drawn(model, rows, first)]
    alone = [drawn(model, [row_of(*sizes)], first)[0] for sizes in ((80, 20), (5, 64))]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one, other.result().tokens)


@pytest.mark.parametrize(
    ("own", "same"),
    [
        ({"temperature": 1e-46}, {"temperature": 0.0}),
        ({"temperature": 1e-40}, {"temperature": 0.0}),
        ({"top_p": 0.99999999}, {"top_p": 1.0}),
        ({"top_p": 0.5}, {"top_p": 1e-46}),
    ],
)
def test_rows_join_by_the_numbers_that_the_program_has(own, same):
    """A row that is greedy in float32 would make the others of its pool greedy too."""
    rows = [dataclasses.replace(row_of(5, 8), **{"top_p": 0.9, **one}) for one in (own, same, {})]
    one, two, usual = (PoolShape.of(row, 128) for row in rows)
    assert one == two
    assert usual.holds(one) == (own == {"top_p": 0.5})


def test_logits_that_are_not_finite_fail_their_row_alone(model):
    def arguments(rows):
        prefix = np.zeros((len(rows), 1, model.config.width), np.float32)
        prefix[[row.policy == 1 for row in rows]] = np.nan
        return {"prefix": prefix}

    rows = [row_of(5, 8, policy) for policy in (1, 0)]
    broken, sound = drawn(model, rows, PoolShape(16, 16, True, False), arguments)
    with pytest.raises(InputError, match="not finite"):
        broken.result()
    assert len(sound.result().tokens) > 0


class _GoesAway(Future):
    """The answer of a client that goes away as soon as it was looked whether it waits."""

    def done(self):
        ended = super().done()
        self.cancel()
        return ended


def test_a_client_that_goes_away_during_a_failure_does_not_stop_the_engine(model):
    def failing():
        raise InputError("a failure")

    rows = [row_of(5, 8), row_of(5, 8)]
    rows[0].done = _GoesAway()
    engine = LocalEngine(EngineConfig("local", model="none"))
    pool = DecodePool(model, PoolShape(16, 16, True, False), lambda _: {})
    engine._try(pool, failing, rows)
    assert rows[0].done.cancelled()
    with pytest.raises(InputError, match="a failure"):
        rows[1].done.result()
