"""One fake upstream and one service for the tests of a module; each test has users of its own."""

import itertools

import fake_upstream
import httpx
import pytest
from running import config_of, running

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
