"""Two copies of the service on one PostgreSQL: a real server, started here as user postgres."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from running import choose_on_both, client_of, config_of
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from jaxalign.serve.store import events
from jaxalign.serve.store.database import open_database

pytestmark = pytest.mark.slow


def binary(name):
    """Return where a program of PostgreSQL is, None where it is not installed."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(places[-1]) if places else None)


@contextlib.contextmanager
def server():
    """Yield the address of a fresh server.

    Its folder is its own: pytest's are closed to other users than the one who runs the tests.
    """
    if binary("initdb") is None or binary("postgres") is None:
        pytest.skip("PostgreSQL's server is not installed")
    as_user = []
    if os.getuid() == 0:  # the server refuses to run as root
        if shutil.which("runuser") is None:
            pytest.skip("runuser, to start PostgreSQL as another user than root, is not installed")
        as_user = ["runuser", "-u", "postgres", "--"]
    with tempfile.TemporaryDirectory() as folder:
        if as_user:
            shutil.chown(folder, "postgres")
        with started(Path(folder) / "data", as_user) as url:
            yield url


@contextlib.contextmanager
def started(data, as_user):
    """Yield the address of a server with its rows in a new folder."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/"}
    command = [*as_user, binary("initdb"), "-D", data, "-A", "trust", "-U", "jaxalign", "-N"]
    subprocess.run(command, check=True, **quiet)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["-D", data, "-k", "", "-h", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen([*as_user, binary("postgres"), *where], **quiet)
    url = f"postgresql+psycopg://jaxalign@127.0.0.1:{port}/postgres"
    try:
        wait_for(url)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def wait_for(url):
    """Return once the server answers: it takes connections before, and refuses to serve them."""
    engine, deadline = create_engine(url), time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OperationalError), engine.connect():
            break
        time.sleep(0.1)
    engine.dispose()


def test_two_copies_count_every_row_once(tmp_path, upstream_server, upstream):
    with server() as url:
        config = config_of(tmp_path, upstream_server, database=url)
        with client_of(config) as one, client_of(config) as two:
            tastes = choose_on_both(one, two, 5)
            assert [taste.used for taste in tastes] == [5, 5]
            np.testing.assert_allclose(
                tastes[0].utility.mean, tastes[1].utility.mean, rtol=0, atol=1e-6
            )
            read = two.service.service.database.read_now
            choices = read(lambda c: events.choices_with_answers(c, "local:ann", 3))
            assert [row.kind for row, *_ in choices] == ["preferred"] * 3
            assert all(one and two for _, one, two in choices)
            about = two.get("/v1/user", params={"id": "ann"}).json()
            assert about["rows"] == 10
            # What one copy forgets, the other forgets too.
            assert one.delete("/v1/user", params={"id": "ann"}).json()["rows"] == 10
            assert two.get("/v1/user", params={"id": "ann"}).json()["feedback_used"] == 0


def insert(connection, received):
    row = events.Event(events.new_id(), received, "local:ann", "answers", "1", {}, "space")
    events.insert(connection, row, "local", events.Limits())


def in_turn(engine, first, second):
    """Return what two transactions return, of which the second waits for the first's commit."""
    found = []

    def run_second():
        with engine.begin() as connection:
            found.append(second(connection))

    thread = threading.Thread(target=run_second)
    with engine.connect() as watch, engine.begin() as connection:
        found.append(first(connection))
        thread.start()
        waiting = text("SELECT COUNT(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        deadline = time.monotonic() + 30
        while not watch.execute(waiting).scalar() and time.monotonic() < deadline:
            watch.rollback()
            time.sleep(0.01)
        assert time.monotonic() < deadline
    thread.join()
    return found


def test_copies_that_delete_at_once_leave_the_counts_right():
    with server() as url:
        open_database(url).close()
        engine = create_engine(url)
        with engine.begin() as connection:
            events.ensure_salt(connection)
            for received in [1] * 5 + [100] * 5:
                insert(connection, received)
        found = in_turn(
            engine, lambda c: events.expire(c, before=50), lambda c: events.expire(c, before=50)
        )
        assert found == [5, 0]
        with engine.begin() as connection:
            assert events.user_row(connection, "local:ann").events == 5
            assert len(events.page(connection, "local:ann")) == 5
        # A row that is being written when its user is deleted goes too.
        found = in_turn(engine, lambda c: insert(c, 101), lambda c: events.erase(c, "local:ann"))
        assert found == [None, 6]
        with engine.begin() as connection:
            assert events.user_row(connection, "local:ann") is None
            assert not events.page(connection, "local:ann")
        engine.dispose()
