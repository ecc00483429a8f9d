"""The database of the service: one thread writes, and many may read.

Writes that wait are committed together, so that one flush of the disk serves them all. A write is
acknowledged only after its commit.
"""

import asyncio
import functools
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from sqlalchemy import Connection, Engine, TextClause, create_engine, event
from sqlalchemy import text as make_text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DataError, IntegrityError, SQLAlchemyError

from jaxalign.errors import InputError
from jaxalign.files import check_output, expand_user
from jaxalign.serve.store.migrate import migrate

text: Callable[[str], TextClause] = functools.cache(make_text)
"""A statement of SQL, whose parameters are looked for once."""
Synchronous = Literal["FULL", "NORMAL"]
T = TypeVar("T")
_BUSY_SECONDS = 5.0  # another process may hold the lock of SQLite for as long as it commits
_TOGETHER = 256  # writes of one commit: enough to share a flush, few enough to answer soon
_CONNECT_SECONDS = 10  # until a connection to PostgreSQL must stand
_NO_LIMIT = -1
"""Of connections: a request that reads at once would hold up all others while it waits for one."""
_REMEDY = "give --database as sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME"


class StorageError(Exception):
    """The database cannot be read or written now; the request may be repeated later."""


@dataclass(eq=False)
class _Job(Generic[T]):
    run: Callable[[Connection], T]
    future: Future[T]


class Database:
    """An open database; made by `open_database`."""

    def __init__(self, url: URL, synchronous: Synchronous = "FULL") -> None:
        self.source = url.render_as_string(hide_password=True)
        self._file = _sqlite_file(url)
        self._engine = _engine(url, synchronous)
        self._writer = self._engine.execution_options(writes=True)
        with self._writer.connect() as connection, connection.begin():
            migrate(connection, self.source)
        self._inode = None if self._file is None else os.stat(self._file).st_ino
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._write_all, name="jaxalign writer", daemon=True)
        self._thread.start()

    async def write(self, job: Callable[[Connection], T]) -> T:
        """Run a job in the writing thread and return its result once it is committed.

        Args:
            job: reads and writes through the connection; if it raises, its changes are undone.

        Raises:
            StorageError: the database cannot be written, so that nothing was kept.
        """
        if self._closed:
            raise StorageError("the database is closed")
        future: Future[T] = Future()
        self._jobs.put(_Job(job, future))
        return await asyncio.wrap_future(future)

    async def look(self, job: Callable[[Connection], T]) -> T:
        """Run a job that reads a row or two: of SQLite's file at once, else as `read`.

        Raises:
            StorageError: the database cannot be read.
        """
        # A reader of the write-ahead log waits for nobody; to change threads takes longer.
        return await self.read(job) if self._file is None else self.read_now(job)

    async def read(self, job: Callable[[Connection], T]) -> T:
        """Run a job that only reads, in a thread of its own.

        Raises:
            StorageError: the database cannot be read.
        """
        return await asyncio.to_thread(self.read_now, job)

    def read_now(self, job: Callable[[Connection], T]) -> T:
        """Run a job that only reads, in this thread; as `read`."""
        try:
            self._check_file()
            with self._engine.connect() as connection:
                return job(connection)
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise StorageError(_message(error)) from error

    async def compact(self) -> bool:
        """Remove deleted rows from the files of SQLite too; return whether nothing is left of them.

        Rows are overwritten when they are deleted, and the write-ahead log is emptied here. It
        cannot be emptied while another process reads.
        """
        if self._file is None:
            return True
        return await asyncio.to_thread(self._truncate)

    def close(self) -> None:
        """Commit what waits, and close."""
        if self._closed:
            return
        self._closed = True
        self._jobs.put(None)
        self._thread.join()
        self._engine.dispose()

    def _truncate(self) -> bool:
        try:
            with self._engine.connect() as connection:
                # Outside of a transaction, or the log cannot be emptied.
                raw = connection.connection.dbapi_connection
                if not isinstance(raw, sqlite3.Connection):
                    return False
                connection.rollback()
                busy, *_ = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                return not busy
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise StorageError(_message(error)) from error

    def _check_file(self) -> None:
        """Refuse to go on with a file that was deleted or replaced: later rows would be lost."""
        if self._file is None:
            return
        try:
            inode = os.stat(self._file).st_ino
        except OSError as error:
            raise StorageError(f"the database file cannot be found ({error.strerror})") from None
        if inode != self._inode:
            raise StorageError("the database file was replaced while the service was running")

    def _write_all(self) -> None:
        going = True
        while going:
            jobs = [self._jobs.get()]
            while len(jobs) < _TOGETHER and not self._jobs.empty():
                jobs.append(self._jobs.get())
            going = None not in jobs
            wanted = [job for job in jobs if job is not None]
            self._commit([job for job in wanted if job.future.set_running_or_notify_cancel()])

    def _commit(self, jobs: list[_Job]) -> None:
        """Run jobs in one transaction, several each in a savepoint, and give each its result."""
        results: dict[_Job, object] = {}
        failures: dict[_Job, Exception] = {}
        if not jobs:
            return
        try:
            self._check_file()
            with self._writer.connect() as connection, connection.begin():
                if len(jobs) == 1:  # the transaction is undone with it
                    results[jobs[0]] = jobs[0].run(connection)
                else:
                    _run_each(connection, jobs, results, failures)
        except (SQLAlchemyError, sqlite3.Error, StorageError) as error:
            failures = dict.fromkeys(jobs, StorageError(_message(error))) | failures
        except Exception as error:  # a refusal of the only job
            failures = dict.fromkeys(jobs, error)
        for job in jobs:
            if job in failures:
                job.future.set_exception(failures[job])
            else:
                job.future.set_result(results[job])


def _run_each(
    connection: Connection, jobs: list[_Job], results: dict[_Job, object],
    failures: dict[_Job, Exception],
) -> None:  # fmt: skip
    for job in jobs:
        try:
            with connection.begin_nested():
                results[job] = job.run(connection)
        except (DataError, IntegrityError) as error:  # of its values, which the savepoint undid
            failures[job] = StorageError(_message(error))
        except SQLAlchemyError:
            raise
        except Exception as error:  # a refusal of one job leaves the others alone
            failures[job] = error


def open_database(url: str, synchronous: Synchronous = "FULL") -> Database:
    """Open a database, made if needed, and bring its schema up to date.

    Args:
        url: `sqlite:///FILE`, or `postgresql+psycopg://USER@HOST/NAME`.
        synchronous: of SQLite; FULL survives a loss of power, NORMAL a killed process only.

    Raises:
        InputError: another kind of database, one that cannot be opened, or a newer schema.

    Example:
        >>> import tempfile
        >>> from jaxalign.serve.store.database import open_database
        >>> database = open_database(f"sqlite:///{tempfile.mkdtemp()}/service.sqlite")
        >>> from jaxalign.serve.store.events import user_row
        >>> database.read_now(lambda connection: user_row(connection, "local:ann")) is None
        True
        >>> database.close()
    """
    parsed = database_url(url)
    shown = parsed.render_as_string(hide_password=True)
    if parsed.drivername == "sqlite":
        _create_private(Path(str(parsed.database)))
    try:
        return Database(parsed, synchronous)
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise InputError(
            f"--database {shown} cannot be opened ({_message(error)}): {_REMEDY}, and check "
            "that it can be reached."
        ) from None


def database_url(url: str) -> URL:
    """Return the address of a database, which is not opened.

    Raises:
        InputError: no address, or one of another kind of database.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # such as of a port that is no number
        raise InputError(f"--database: found no address of a database; {_REMEDY}.") from None
    shown = parsed.render_as_string(hide_password=True)
    if parsed.drivername not in ("sqlite", "postgresql+psycopg"):
        raise InputError(f"--database {shown}: found {parsed.drivername!r}; {_REMEDY}.")
    if parsed.drivername == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise InputError(f"--database {shown}: found no file; {_REMEDY}.")
    if parsed.drivername == "sqlite":
        file = expand_user(str(parsed.database))
        check_output(file, "file", option="--database")
        return parsed.set(database=str(file))
    return parsed


def is_new_file(url: URL) -> bool:
    """Return whether opening the database of an address would make a file."""
    file = _sqlite_file(url)
    return file is not None and not file.exists()


def _create_private(path: Path) -> None:
    """Create the file for its owner alone; SQLite gives its log and index the same mode."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        os.chmod(path, 0o600)
    except OSError as error:
        raise InputError(
            f"--database {path} cannot be written ({error.strerror}): give another file."
        ) from None


def _sqlite_file(url: URL) -> Path | None:
    return Path(str(url.database)) if url.drivername == "sqlite" else None


def _engine(url: URL, synchronous: Synchronous) -> Engine:
    if url.drivername != "sqlite":
        return create_engine(
            url, pool_pre_ping=True, max_overflow=_NO_LIMIT,
            connect_args={"connect_timeout": _CONNECT_SECONDS},
        )  # fmt: skip
    # A new file has no journal mode yet: transactions are begun here and not by the driver.
    options = {"check_same_thread": False, "timeout": _BUSY_SECONDS, "isolation_level": None}
    engine = create_engine(url, connect_args=options, max_overflow=_NO_LIMIT)

    @event.listens_for(engine, "connect")
    def prepare(raw: sqlite3.Connection, _: object) -> None:
        for pragma in ("journal_mode = WAL", f"synchronous = {synchronous}", "secure_delete = ON"):
            raw.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _message(error: Exception) -> str:
    """The driver's message, without the statement and its values, which may hold texts."""
    origin = getattr(error, "orig", None) or error
    lines = str(origin).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def scalar(connection: Connection, statement: str, **values: str | int) -> int | str | None:
    """Return the first value of the first row of a statement, None without a row."""
    found: int | str | None = connection.execute(text(statement), values).scalar()
    return found
