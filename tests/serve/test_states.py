"""The state of a user: as if built from all rows anew, whatever came in which order."""

import asyncio
import contextlib
import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxalign.mrm.feedback_belief import BLOCK
from jaxalign.serve import ServeConfig, learning, users
from jaxalign.serve.identity import LOCAL, Caller
from jaxalign.serve.learning import (
    MOST_NEWEST,
    advance,
    current_feedback,
    first_state,
    infer_taste,
    unseen_rows,
)
from jaxalign.serve.reward_space import demo_space
from jaxalign.serve.store import events
from jaxalign.serve.store.database import open_database
from jaxalign.serve.store.events import Event, Limits

SPACE = demo_space()
USER = "local:ann"


@pytest.fixture
def database(tmp_path):
    database = open_database(f"sqlite:///{tmp_path}/service.sqlite")
    with database._writer.connect() as connection, connection.begin():
        events.ensure_salt(connection)
    yield database
    database.close()


def row(number, subject=None, kind=None, space=SPACE.ids.digest):
    rng = np.random.default_rng(number)
    vector = rng.standard_normal(len(SPACE.ids.names)).tolist()
    kind = kind or ("preferred" if number % 3 else "rating")
    named = "features" if kind == "rating" else "difference"
    value = {named: vector, "rating": 1 if number % 2 else -1}
    about = subject or f"answer-{number}"
    return Event(f"{number:032x}", 1, USER, kind, about, value, space)


def write(database, *rows):
    with database._writer.connect() as connection, connection.begin():
        for one in rows:
            events.insert(connection, one, "local", Limits())


def follow(database, state):
    with database._engine.connect() as connection:
        version, start, rows = unseen_rows(connection, USER, state, first_state(SPACE))
    return replace(advance(SPACE, start, rows), version=version), len(rows)


def expect_rebuilt(database, state):
    rebuilt = infer_taste(
        SPACE, database.read_now(lambda connection: events.feedback(connection, USER))
    )
    np.testing.assert_array_equal(state.taste.utility.mean, rebuilt.utility.mean)
    np.testing.assert_array_equal(state.taste.utility.cov, rebuilt.utility.cov)
    counts = [(one.used, one.ratings, one.unused) for one in (state.taste, rebuilt)]
    assert counts[0] == counts[1]


def test_a_state_that_follows_reads_the_new_row_alone_and_does_not_grow(database):
    write(database, *(row(number) for number in range(150)))
    state, read = follow(database, first_state(SPACE))
    assert read == 150
    sizes = []
    for number in range(150, 216):
        write(database, row(number))
        state, read = follow(database, state)
        assert read == 1
        sizes.append(len(state.newest))
    assert max(sizes) == MOST_NEWEST
    assert min(sizes) == MOST_NEWEST - BLOCK + 1
    assert len(state.beliefs) <= 1 + MOST_NEWEST // BLOCK
    expect_rebuilt(database, state)
    assert follow(database, state)[1] == 0


def test_another_number_of_rows_compiles_nothing(caplog):
    """The transfer of an array of a new shape is a program too."""
    state = advance(SPACE, first_state(SPACE), [row(1)])
    with jax.log_compiles(), caplog.at_level(logging.WARNING, "jax"):
        advance(SPACE, state, [row(number) for number in range(2, 5)])
    assert not [record.message for record in caplog.records]


@pytest.mark.parametrize(("replaced", "again"), [(None, 2), (100, 29), (70, 61)])
def test_rows_are_observed_once_unless_one_before_them_is_replaced(
    database, monkeypatch, replaced, again
):
    """The newest rows are those from 64 on: 70 is in their first block, 100 in the second."""
    write(database, *(row(number) for number in range(124)))
    state, _ = follow(database, first_state(SPACE))
    counts, observe = [], learning.observe_rows
    monkeypatch.setattr(
        learning,
        "observe_rows",
        lambda belief, rows: (counts.append(len(rows.vectors)), observe(belief, rows))[1],
    )
    if replaced is not None:
        write(database, row(200, f"answer-{replaced}", row(replaced).kind))
    write(database, *(row(number) for number in range(201, 203 - (replaced is not None))))
    state, _ = follow(database, state)
    assert sum(counts) == again
    monkeypatch.undo()
    expect_rebuilt(database, state)


@pytest.mark.parametrize(("replaced", "read"), [(90, 1), (3, 99)])
def test_a_row_that_is_replaced_is_taken_out(database, replaced, read):
    """One of the newest rows at once; of an older one, all rows are read anew."""
    write(database, *(row(number) for number in range(99)))
    state, _ = follow(database, first_state(SPACE))
    write(database, row(200, f"answer-{replaced}", row(replaced).kind))
    state, found = follow(database, state)
    assert found == read
    assert state.taste.used == 99
    expect_rebuilt(database, state)


def test_a_row_that_is_replaced_time_and_again_is_taken_out_each_time(database):
    write(database, *(row(number) for number in range(99)))
    state, _ = follow(database, first_state(SPACE))
    for number in range(200, 204):
        write(database, row(number, "answer-90", row(90).kind))
        state, read = follow(database, state)
        assert (read, state.taste.used) == (1, 99)
        expect_rebuilt(database, state)
    write(database, *(row(number) for number in range(300, 300 + MOST_NEWEST)))
    state, _ = follow(database, state)
    write(database, row(400, "answer-90", row(90).kind))  # no longer among the newest
    state, read = follow(database, state)
    assert read == state.taste.used == 99 + MOST_NEWEST
    expect_rebuilt(database, state)


def test_rows_that_come_together_and_replace_each_other_count_once(database):
    state = first_state(SPACE)
    write(database, row(1), row(2, "answer-1", row(1).kind), row(4, space="another"))
    state, _ = follow(database, state)
    assert (state.taste.used, sum(state.taste.unused.values())) == (1, 1)
    write(database, row(7, "answer-4", row(4).kind))  # on the present rewards
    state, _ = follow(database, state)
    assert (state.taste.used, state.taste.unused) == (2, {})
    expect_rebuilt(database, state)


def test_a_state_is_dropped_when_old_rows_are_deleted(database):
    write(database, *(row(number) for number in range(40)))
    state, _ = follow(database, first_state(SPACE))
    with database._writer.connect() as connection, connection.begin():
        events.expire(connection, before=11)
    write(database, row(50))
    state, read = follow(database, state)
    assert read == state.taste.used == 31
    expect_rebuilt(database, state)
    with database._writer.connect() as connection, connection.begin():
        events.erase(connection, USER)
    write(database, row(60))
    state, _ = follow(database, state)
    assert state.taste.used == 1
    expect_rebuilt(database, state)


def test_rows_of_a_user_are_in_the_order_in_which_they_were_written(database):
    """A clock that went back, or another copy's, cannot put a row before those that are read."""
    write(database, *(row(number) for number in (5, 1, 3)))
    found = database.read_now(lambda connection: events.feedback(connection, USER))
    assert [one.id for one in found] == [row(number).id for number in (5, 1, 3)]
    assert len({one.received for one in found}) == 3
    assert current_feedback(found) == found


def test_an_export_is_read_in_pages(database, monkeypatch):
    monkeypatch.setattr(events, "_PAGE", 2)
    write(database, *map(row, range(5)))
    service = SimpleNamespace(
        database=database, space=SPACE, config=ServeConfig(), taste=lambda _: taste()
    )

    async def taste():
        return first_state(SPACE).taste

    async def pieces():
        return [piece async for piece in users.export(service, Caller(LOCAL, USER))]

    found = asyncio.run(pieces())
    assert len(found) == 5  # three pages between the first and the last piece
    whole = json.loads(b"".join(found))
    assert [one["id"] for one in whole["events"]] == [f"{n:032x}" for n in range(5)]
    assert whole["rows"] == 5


def test_reads_do_not_wait_for_a_connection(database):
    with contextlib.ExitStack() as stack:
        for _ in range(16):  # more than SQLAlchemy allows by itself
            stack.enter_context(database._engine.connect())
        row = asyncio.run(database.look(lambda connection: events.user_row(connection, USER)))
    assert row is None
