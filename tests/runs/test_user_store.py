"""Files of users: what is damaged, and what is only locked or full."""

import sqlite3
from contextlib import closing

import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.runs.user_store import (
    AboutUsers,
    UserRecord,
    create_users,
    open_users,
    refuse_foreign_file,
)


@pytest.fixture
def path(tmp_path):
    place = tmp_path / "users.sqlite"
    with closing(create_users(AboutUsers("", "bayes", 2, 1))) as users:
        users.put([UserRecord("ann", 1, np.nan, np.ones(2), np.ones((1, 1)))])
        users.save(place)
    return place


def test_a_file_that_is_locked_or_full_is_not_called_damaged(path):
    many = [UserRecord(f"u{n}", 1, np.nan, np.ones(2), np.ones((9, 1))) for n in range(999)]
    with closing(open_users(path)) as users, closing(sqlite3.connect(path)) as other:
        users._database.execute("PRAGMA busy_timeout = 0")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(InputError, match=r"cannot be used now .*locked.* it is not damaged"):
            users.put(many)
        other.rollback()
        users._database.execute("PRAGMA max_page_count = 5")
        with (
            pytest.raises(InputError, match=r"cannot be used now .*full.* it is not damaged"),
            users.changing(),
        ):
            users.put(many)
        assert users.names() == ["ann"]


def test_weights_of_another_length_are_named_by_their_user(path):
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("UPDATE users SET weights = x'00'")
    with (
        closing(open_users(path)) as users,
        pytest.raises(
            InputError, match=r"damaged.*user 'ann': found 1 bytes of weights, expected 8"
        ),
    ):
        list(users.weights(4))


def test_a_database_that_cannot_be_read_now_is_not_replaced(tmp_path):
    path = tmp_path / "others.sqlite"
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE bookmarks (name TEXT)")
        other.commit()
        with pytest.raises(InputError, match="was not written by `jaxalign mrm adapt`"):
            refuse_foreign_file(path)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(InputError, match=r"cannot be used now .*locked"):
            refuse_foreign_file(path)
