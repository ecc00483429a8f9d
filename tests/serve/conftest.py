"""One fake upstream and one service for the tests of a module; each test has users of its own."""

import itertools
import threading
from dataclasses import dataclass, field

import fake_upstream
import httpx
import pytest
from running import config_of, running

from jaxalign.serve.engines.decode_pool import DecodePool

_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def upstream_server():
    server = fake_upstream.start()
    yield server
    fake_upstream.stop(server)


@pytest.fixture
def upstream(upstream_server):
    upstream_server.world.reset()
    yield upstream_server.world
    upstream_server.world.reset()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def served(folder, upstream_server):
    with running(config_of(folder, upstream_server)) as service:
        yield service


@pytest.fixture
def client(served, upstream):
    served.service.engine._ignores_n = False
    with httpx.Client(base_url=served.url, timeout=60) as client:
        yield client


@pytest.fixture
def user():
    return f"user-{next(_NUMBERS)}"


@dataclass
class Chunks:
    """The chunks that the engine `local` decodes: the rows of each, and a gate before them."""

    counts: list[int] = field(default_factory=list)
    entered: threading.Event = field(default_factory=threading.Event)
    gate: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def chunks(monkeypatch):
    """Return the chunks that are decoded; where the gate is closed, the next one waits."""
    found, advance = Chunks(), DecodePool.advance
    found.gate.set()

    def watched(pool):
        found.counts.append(len(pool.rows))
        found.entered.set()
        assert found.gate.wait(60)
        advance(pool)

    monkeypatch.setattr(DecodePool, "advance", watched)
    return found
