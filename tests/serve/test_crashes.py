"""kill -9 under load: nothing that was acknowledged is lost, and nothing counts twice.

`JAXALIGN_TEST_KILLS=20 pytest -m slow tests/serve/test_crashes.py` kills at 20 moments each.
"""

import contextlib
import functools
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import pytest
from running import CHAT
from test_postgres import server

from jaxalign.serve.learning import infer_taste
from jaxalign.serve.reward_space import demo_space
from jaxalign.serve.store import events
from jaxalign.serve.store.database import open_database

USERS = ("ann", "bob", "eve")
KILLS = os.environ.get("JAXALIGN_TEST_KILLS")
"""Moments of each test; a few by default, since each takes a start of the service."""


class Process:
    """`jaxalign serve` in a process of its own, with a client."""

    def __init__(self, folder, upstream, url):
        command = [
            sys.executable, "-m", "jaxalign.cli", "serve", "--port", "0", "--engine", "openai",
            "--engine.url", upstream.url, "--database", url,
        ]  # fmt: skip
        self.log = (folder / "log").open("ab")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)

    @functools.cached_property
    def client(self):
        """A client, once the service is up; several start side by side."""
        line = self.process.stdout.readline()
        return httpx.Client(base_url=re.search(r"http://[^/]+", line)[0], timeout=60)

    def end(self, number):
        """Send a signal, and return the exit status."""
        self.process.send_signal(number)
        status = self.process.wait(60)
        for each in (self.client, self.process.stdout, self.log):
            each.close()
        return status


def talk(client, user, sent, acknowledged):
    """Choose the short answer again and again; note what is sent and what is acknowledged."""
    with contextlib.suppress(httpx.HTTPError):
        while True:
            answers = client.post("/v1/chat/completions", json={**CHAT, "user": user, "n": 2})
            long, short = answers.json()["jaxalign"]["answers"]
            key = f"{user}-{len(sent)}-{os.urandom(4).hex()}"
            body = {"response_id": long, "preferred": short, "user": user}
            sent[key] = body
            found = client.post("/v1/feedback", json=body, headers={"Idempotency-Key": key})
            if found.status_code == 200:
                acknowledged.add(key)


def kill_and_compare(folder, upstream, url, copies, moments, rng):
    """Kill all copies again and again, and compare what is stored with what was acknowledged."""
    sent, acknowledged = {}, set()
    for _ in range(moments):
        services = [Process(folder, upstream, url) for _ in range(copies)]
        # What was sent and not acknowledged is sent again: it may or may not be there already.
        for key, body in sent.items():
            if key not in acknowledged:
                found = services[0].client.post(
                    "/v1/feedback", json=body, headers={"Idempotency-Key": key}
                )
                assert found.status_code == 200
                acknowledged.add(key)
        threads = [
            threading.Thread(
                target=talk, args=(services[number % copies].client, user, sent, acknowledged)
            )
            for number, user in enumerate(USERS)
        ]
        before, deadline = len(acknowledged), time.monotonic() + 120
        for thread in threads:
            thread.start()
        # The first row of feedback may wait for its program to be compiled.
        while len(acknowledged) == before and time.monotonic() < deadline:
            threading.Event().wait(0.02)
        threading.Event().wait(rng.uniform(0, 1.5))
        for service in services:
            service.process.send_signal(signal.SIGKILL)
        for thread in threads:
            thread.join()
        assert [service.end(signal.SIGKILL) for service in services] == [-signal.SIGKILL] * copies
    service = Process(folder, upstream, url)
    served = {user: service.client.get("/v1/user", params={"id": user}).json() for user in USERS}
    assert service.end(signal.SIGTERM) == 128 + signal.SIGTERM
    database = open_database(url)
    space, seen = demo_space(), []
    for user in USERS:
        rows = database.read_now(lambda c, user=user: events.feedback(c, f"local:{user}"))
        seen += [row.source for row in rows]
        rebuilt = infer_taste(space, rows).utility
        weights = {one["name"]: one["weight"] for one in served[user]["rewards"]}
        for name, weight in zip(space.ids.names, rebuilt.mean, strict=True):
            assert weights[name] == float(np.float32(weight))
        assert served[user]["feedback_used"] == len(rows)
    database.close()
    assert len(seen) == len(set(seen))
    assert acknowledged <= set(seen) <= set(sent)
    assert len(acknowledged) >= moments


@pytest.mark.slow
def test_kills_lose_nothing(tmp_path, upstream_server, upstream):
    url = f"sqlite:///{tmp_path}/service.sqlite"
    kill_and_compare(tmp_path, upstream_server, url, 1, int(KILLS or 8), random.Random(1))


@pytest.mark.slow
def test_kills_of_two_copies_on_postgresql_lose_nothing(tmp_path, upstream_server, upstream):
    with server() as url:
        kill_and_compare(tmp_path, upstream_server, url, 2, int(KILLS or 3), random.Random(2))
