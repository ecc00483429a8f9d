"""Users' states in one SQLite file, of which one user is read without the others."""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np

from jaxalign.errors import InputError
from jaxalign.files import expand_user, write_aside
from jaxalign.recognise import SQLITE, instead

KIND, FORMAT = "users", 3
REMEDY = "write it with `jaxalign mrm adapt`"
_AT_ONCE = 256
_PASSING = (
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR,
)  # fmt: skip
"""What says nothing of the file's content."""
_SCHEMA = """
CREATE TABLE about (value TEXT NOT NULL);
CREATE TABLE users (
    user TEXT PRIMARY KEY, choices INTEGER NOT NULL, accuracy REAL,
    weights BLOB NOT NULL, rows BLOB NOT NULL
)"""
_PUT = """
INSERT INTO users {} ON CONFLICT (user) DO UPDATE SET
    choices = excluded.choices, accuracy = excluded.accuracy,
    weights = excluded.weights, rows = excluded.rows"""
_PUT_ROW = _PUT.format("VALUES (?, ?, ?, ?, ?)")
# Without a condition, SQLite would take the conflict clause for one of a join.
_PUT_OTHER = _PUT.format("SELECT * FROM other.users WHERE true")


@dataclass(frozen=True)
class AboutUsers:
    """What a file of users says about all of them.

    Attributes:
        model: digest of the model that they were adapted with: its population and its settings.
        method: name of the model's method.
        weights: K, the number of a user's weights; 0 where the method has none.
        columns: C, the columns of a user's rows.
        rewards: names of the rewards that the weights are on; empty for learned ones.
        scale: digest of their scale, empty for learned ones.
        sources: digests of the choices that the users were adapted on.
    """

    model: str
    method: str
    weights: int
    columns: int
    rewards: tuple[str, ...] = ()
    scale: str = ""
    sources: tuple[str, ...] = ()


class UserRecord(NamedTuple):
    """One user of a file.

    Attributes:
        user: id.
        choices: number of choices that the user was adapted on.
        accuracy: on held-out choices of the user's own, NaN where there are too few.
        weights: [K] float32.
        rows: [P, C] float32, what the method keeps of each choice.
    """

    user: str
    choices: int
    accuracy: float
    weights: np.ndarray
    rows: np.ndarray


class UserStore:
    """An open file of users, or users in memory; made by `create_users` and `open_users`.

    Attributes:
        about: what holds for all users.
        source: the file, for messages.

    Example:
        >>> import numpy as np
        >>> from jaxalign.runs.user_store import AboutUsers, UserRecord, create_users
        >>> ann = UserRecord("ann", 3, 0.7, np.ones(2, np.float32), np.ones((3, 4), np.float32))
        >>> users = create_users(AboutUsers("", "bayes", weights=2, columns=4))
        >>> users.put([ann])
        >>> len(users), users.get("ann").weights.tolist(), users.get("bob")
        (1, [1.0, 1.0], None)
    """

    def __init__(self, database: sqlite3.Connection, about: AboutUsers, source: str) -> None:
        self.about = about
        self.source = source
        self._database = database

    def __len__(self) -> int:
        """Number of users."""
        return int(self._one("SELECT COUNT(*) FROM users", ())[0])

    def __contains__(self, user: str) -> bool:
        """Whether there is a user of an id."""
        return bool(self._all("SELECT 1 FROM users WHERE user = ?", (user,)))

    def names(self, most: int = -1) -> list[str]:
        """Return the ids of users, all or the first `most`, in the order of the file."""
        return [row[0] for row in self._all("SELECT user FROM users LIMIT ?", (most,))]

    def get(self, user: str) -> UserRecord | None:
        """Return one user, None if there is no such user."""
        found = self._all("SELECT * FROM users WHERE user = ?", (user,))
        return self._record(found[0]) if found else None

    def __iter__(self) -> Iterator[UserRecord]:
        """Yield every user, in the order of the file."""
        with self._guarded(), closing(self._database.execute("SELECT * FROM users")) as cursor:
            while rows := cursor.fetchmany(_AT_ONCE):
                yield from map(self._record, rows)

    def weights(self, size: int) -> Iterator[tuple[list[str], np.ndarray]]:
        """Yield the ids of at most `size` users and their weights [n, K], in the file's order."""
        statement = "SELECT user, weights FROM users"
        width = self.about.weights
        with self._guarded(), closing(self._database.execute(statement)) as cursor:
            while rows := cursor.fetchmany(size):
                for user, weights in rows:
                    if len(weights) != 4 * width:  # float32
                        raise InputError(
                            f"{self.source} is damaged (user {user!r}: found {len(weights)} bytes "
                            f"of weights, expected {4 * width}): {REMEDY} anew."
                        )
                flat = np.frombuffer(b"".join(row[1] for row in rows), "<f4")
                yield [row[0] for row in rows], flat.reshape(len(rows), width)

    def mean_accuracy(self) -> float | None:
        """Return the mean of the users' held-out accuracies, None where none was measured."""
        found = self._one("SELECT AVG(accuracy) FROM users", ())[0]
        return None if found is None else float(found)

    def put(self, records: Iterable[UserRecord]) -> None:
        """Write users, in place of those of the same ids; `changing` makes it last."""
        with self._guarded():
            self._database.executemany(_PUT_ROW, map(_row, records))

    @contextmanager
    def changing(self, sources: Sequence[str] = ()) -> Iterator[None]:
        """Keep all that is put in the block, or, if the block raises or is killed, nothing of it.

        Args:
            sources: digests that are added to `about.sources`.
        """
        about = replace(self.about, sources=(*self.about.sources, *sources))
        try:
            with self._guarded():
                self._database.execute("BEGIN IMMEDIATE")
            yield
            with self._guarded():
                self._database.execute("UPDATE about SET value = ?", (_stated(about),))
                self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise
        self.about = about

    @property
    def progress(self) -> int:
        """A number that is kept with the users, such as how many parts of the work are done."""
        return int(self._one("PRAGMA user_version", ())[0])

    @progress.setter
    def progress(self, done: int) -> None:
        self._all(f"PRAGMA user_version = {int(done)}", ())

    def put_all(self, path: Path) -> None:
        """Write all users of another file, in place of those of the same ids, or nothing."""
        with closing(open_users(path)) as other:
            sources = other.about.sources
        self._all("ATTACH DATABASE ? AS other", (str(path),))
        try:
            with self.changing(sources):
                self._all(_PUT_OTHER, ())
        finally:
            self._all("DETACH DATABASE other", ())

    def save(self, path: str | Path) -> None:
        """Write the users as a file in one step.

        Args:
            path: file to write, `.sqlite` by custom; an older file of users is replaced.

        Raises:
            InputError: the file holds something else.
        """
        refuse_foreign_file(path)
        with write_aside(path) as aside, closing(sqlite3.connect(aside)) as target:
            self._database.backup(target)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _record(self, row: tuple) -> UserRecord:
        user, choices, accuracy, weights, rows = row
        measured = np.nan if accuracy is None else accuracy
        try:
            kept = np.frombuffer(rows, "<f4").reshape(-1, self.about.columns)
            mean = np.frombuffer(weights, "<f4").reshape(self.about.weights)
        except ValueError as error:
            raise InputError(
                f"{self.source} is damaged (user {user!r}: {error}): {REMEDY} anew."
            ) from None
        return UserRecord(user, choices, measured, mean, kept)

    def _all(self, statement: str, values: tuple) -> list[tuple]:
        with self._guarded():
            return self._database.execute(statement, values).fetchall()

    def _one(self, statement: str, values: tuple) -> tuple:
        return self._all(statement, values)[0]

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _refusal(self.source, error) from None


def create_users(
    about: AboutUsers, path: str | Path | None = None, durable: bool = False
) -> UserStore:
    """Return new users, in memory or in a file.

    Args:
        about: what holds for all of them.
        path: a file that does not exist, such as `write_aside` gives.
        durable: whether the file outlives a crash with all that `UserStore.changing` has kept;
            otherwise a crash leaves half of it.
    """
    database = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False)
    # A file that is not read before it is whole needs no journal.
    how = ("TRUNCATE", "NORMAL") if durable else ("OFF", "OFF")
    database.executescript("PRAGMA journal_mode = {}; PRAGMA synchronous = {};".format(*how))
    database.executescript(_SCHEMA)
    database.execute("INSERT INTO about VALUES (?)", (_stated(about),))
    return UserStore(database, about, str(path or "memory"))


def open_users(path: str | Path, model: str | None = None) -> UserStore:
    """Open a file of users; none of them is read yet.

    Args:
        path: file that `jaxalign mrm adapt` wrote.
        model: digest of the model that the users must have been adapted with; None for any.

    Raises:
        InputError: no such file, another file, an older format, or users of another model.

    Example:
        >>> from jaxalign.errors import InputError
        >>> from jaxalign.runs.user_store import open_users
        >>> try:
        ...     open_users("nowhere.sqlite")
        ... except InputError as error:
        ...     print(error)
        nowhere.sqlite does not exist: write it with `jaxalign mrm adapt`.
    """
    path = expand_user(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist: {REMEDY}.")
    database = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
    try:
        stated = json.loads(database.execute("SELECT value FROM about").fetchone()[0])
        kind, version, about = stated["kind"], stated["format"], stated["about"]
        if (kind, version) != (KIND, FORMAT):
            raise InputError(
                f"{path} holds {kind} of format {version}; expected {KIND} of format {FORMAT}: "
                f"{REMEDY} anew."
            )
        lists = {name: tuple(about[name]) for name in ("rewards", "sources")}
        found = AboutUsers(**{**about, **lists})
    except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
        database.close()
        if isinstance(error, sqlite3.Error) and _passing(error):
            raise _refusal(str(path), error) from None
        raise InputError(
            f"{path} is no file of `jaxalign mrm adapt`, or of an older version ({error})"
            f"{instead(path)}: {REMEDY} anew."
        ) from None
    except InputError:
        database.close()
        raise
    if model is not None and found.model != model:
        database.close()
        raise InputError(
            f"{path} holds users that were adapted with another model ({found.model[:12]}, this "
            f"is {model[:12]}): adapt the users again with this model."
        )
    return UserStore(database, found, str(path))


def _passing(error: sqlite3.Error) -> bool:
    """Whether the file is whole, and only cannot be read or written now."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # the primary code
    return code in _PASSING


def _refusal(source: str, error: sqlite3.Error) -> InputError:
    if _passing(error):
        return InputError(
            f"{source} cannot be used now ({error}): free the disk, its permissions or the file, "
            "which another process may hold, and go on; it is not damaged."
        )
    return InputError(f"{source} is damaged ({error}): {REMEDY} anew.")


def is_users_file(path: Path) -> bool:
    """Return whether a file is a database, as `jaxalign mrm adapt` writes it."""
    with path.open("rb") as file:
        return file.read(len(SQLITE)) == SQLITE


def refuse_foreign_file(path: str | Path, option: str = "--out") -> None:
    """Refuse to replace a file that is not one of users; older formats and damage are accepted.

    Args:
        path: file that will be written; it may be missing.
        option: that names it, for messages.

    Raises:
        InputError: there is another file.
    """
    path = expand_user(path)
    if not path.is_file():
        return
    kind = None
    try:
        if is_users_file(path):
            with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as database:
                kind = json.loads(database.execute("SELECT value FROM about").fetchone()[0])["kind"]
    except sqlite3.Error as error:
        if _passing(error):
            raise _refusal(f"{option} {path}", error) from None
        # What is damaged is replaced; a whole database that lacks the table is another program's.
        kind = None if error.sqlite_errorcode == sqlite3.SQLITE_ERROR else KIND
    except (ValueError, KeyError, TypeError):
        pass
    if kind != KIND:
        raise InputError(
            f"{option} {path} is there and was not written by `jaxalign mrm adapt`"
            f"{instead(path)}: give another {option}, or remove the file."
        )


def _stated(about: AboutUsers) -> str:
    return json.dumps({"kind": KIND, "format": FORMAT, "about": asdict(about)})


def _row(record: UserRecord) -> tuple:
    accuracy = None if np.isnan(record.accuracy) else float(record.accuracy)
    arrays = (np.asarray(array, "<f4").tobytes() for array in (record.weights, record.rows))
    return (record.user, int(record.choices), accuracy, *arrays)
