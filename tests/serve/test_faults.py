"""Faults around the service: a full disk, locks, streams that stall, readers that are slow."""

import contextlib
import dataclasses
import json
import socket
import sqlite3
import threading

import fake_upstream
import httpx
import pytest
from running import CHAT, choose_on_both, client_of, config_of, rows_of
from sqlalchemy import event

from jaxalign.serve.store import database


def error_of(response):
    return response.status_code, response.json()["error"]["code"]


def chat(client, **changes):
    return client.post("/v1/chat/completions", json={**CHAT, "user": "ann", **changes})


@contextlib.contextmanager
def few_pages(engine, pages):
    """Every connection finds the disk full beyond some pages of the database."""

    def limit(raw, _):
        raw.execute(f"PRAGMA max_page_count = {pages}")

    event.listen(engine, "connect", limit)
    engine.dispose()
    yield
    event.remove(engine, "connect", limit)
    engine.dispose()


def test_a_full_disk_loses_nothing_that_was_acknowledged(tmp_path, upstream_server, upstream):
    with client_of(config_of(tmp_path, upstream_server)) as client:
        long = [{"role": "user", "content": "x" * 20_000}]
        with few_pages(client.service.service.database._engine, 40):
            kept = []
            for _ in range(40):
                found = chat(client, messages=long)
                if found.status_code != 200:
                    break
                kept += found.json()["jaxalign"]["answers"]
            assert error_of(found) == (503, "storage_unavailable")
            assert found.headers["retry-after"]
            assert kept
            body = {"response_id": kept[0], "rating": "up", "user": "ann", "reason": "x" * 20_000}
            refused = client.post("/v1/feedback", json=body)
            assert error_of(refused) == (503, "storage_unavailable")
            about = client.get("/v1/user", params={"id": "ann"}).json()
            assert (about["rows"], about["feedback_used"]) == (len(kept), 0)
        assert len(rows_of(tmp_path)) == len(kept)
        assert client.post("/v1/feedback", json=body).json()["feedback_used"] == 1


def test_a_locked_database_is_waited_for_and_then_given_up(
    tmp_path, upstream_server, upstream, monkeypatch
):
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0.3)
    with (
        client_of(config_of(tmp_path, upstream_server)) as client,
        contextlib.closing(sqlite3.connect(tmp_path / "service.sqlite")) as other,
    ):
        (answer,) = chat(client).json()["jaxalign"]["answers"]
        body = {"response_id": answer, "rating": "up", "user": "ann"}
        other.execute("BEGIN IMMEDIATE")
        assert error_of(client.post("/v1/feedback", json=body)) == (503, "storage_unavailable")
        # What only reads is answered.
        assert client.get("/v1/user", params={"id": "ann"}).json()["feedback_used"] == 0
        other.rollback()
        assert client.post("/v1/feedback", json=body).json()["feedback_used"] == 1
    assert len(rows_of(tmp_path)) == 2


def test_two_copies_on_one_file_count_every_row_once(tmp_path, upstream_server, upstream):
    config = config_of(tmp_path, upstream_server)
    with client_of(config) as one, client_of(config) as two:
        tastes = choose_on_both(one, two, 3)
        assert [taste.used for taste in tastes] == [3, 3]
        assert (tastes[0].utility.mean == tastes[1].utility.mean).all()
    assert len(rows_of(tmp_path)) == 6


@pytest.mark.parametrize(
    ("mode", "code"), [("stall", "engine_timeout"), ("garble", "engine_not_understood")]
)
def test_a_stream_that_goes_wrong_ends_with_the_error(
    tmp_path, upstream_server, upstream, mode, code
):
    config = config_of(tmp_path, upstream_server)
    quick = dataclasses.replace(config.engine, read_seconds=0.2)
    with client_of(dataclasses.replace(config, engine=quick)) as client:
        upstream.mode, upstream.pause = mode, 0.6
        found = chat(client, model=fake_upstream.MODEL, stream=True)
        lines = [line for line in found.text.split("\n\n") if line]
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == code
        assert '"content": "It"' in lines[0]
        assert client.service.service.engine._waiting == 0
    assert rows_of(tmp_path) == []


def test_a_client_that_does_not_read_holds_up_itself_alone(tmp_path, upstream_server, upstream):
    with client_of(config_of(tmp_path, upstream_server)) as client:
        upstream.mode = "long"
        body = json.dumps({**CHAT, "model": fake_upstream.MODEL, "stream": True}).encode()
        host, port = httpx.URL(client.service.url).host, httpx.URL(client.service.url).port
        engine = client.service.service.engine
        with socket.create_connection((host, port)) as idle:
            idle.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
                b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
            )
            assert upstream.asked.wait(30)
            upstream.mode = "well"
            for _ in range(5):
                assert chat(client).status_code == 200
            assert engine._waiting == 1  # the pieces wait for their reader
        for _ in range(200):
            if not engine._waiting:
                break
            threading.Event().wait(0.05)
        assert engine._waiting == 0
