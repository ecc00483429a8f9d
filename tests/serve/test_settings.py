"""Settings of the service: users of a run, retention, keys by the command, a stop in the middle."""

import asyncio
import json
import socket
import threading
import time

import answer_world
import fake_upstream
import httpx
import pytest
from cli_calls import call, refused
from running import CHAT, Running, client_of, config_of, rows_of

from jaxalign.errors import InputError
from jaxalign.mrm.adaptation import Gate
from jaxalign.serve import EngineConfig, open_service
from jaxalign.serve._run import bind
from jaxalign.serve.engines import Call
from jaxalign.serve.engines.upstream import UpstreamEngine
from jaxalign.serve.identity import hash_key, read_keys
from jaxalign.serve.store import events


def choose(client, first, second):
    asked = client.post("/v1/chat/completions", json={**CHAT, "user": "ann", "n": 3}).json()
    answers = asked["jaxalign"]["answers"]
    body = {"response_id": answers[first], "preferred": answers[second], "user": "ann"}
    return client.post("/v1/feedback", json=body).json()


def test_the_rewards_and_the_prior_come_from_a_run(tmp_path, upstream_server, upstream):
    run = answer_world.save_run(tmp_path / "run", answer_world.scale_of())
    config = config_of(tmp_path, upstream_server, users=str(run))
    with client_of(config) as client:
        before = client.get("/v1/user", params={"id": "ann"}).json()
        assert {one["name"] for one in before["rewards"]} == {"brevity", "warmth"}
        weights = {one["name"]: one["weight"] for one in before["rewards"]}
        assert weights == pytest.approx({"brevity": 1.0, "warmth": 0.0})
        assert choose(client, 1, 2)["used"] is True
        after = client.get("/v1/user", params={"id": "ann"}).json()
    assert {one["name"]: one["weight"] for one in after["rewards"]}["warmth"] > 0
    # Rows on these rewards are kept, and counted as not used, by a service on others.
    with client_of(config_of(tmp_path, upstream_server)) as client:
        about = client.get("/v1/user", params={"id": "ann"}).json()
        assert about["feedback_used"] == 0
        assert about["feedback_unused"] == {"rows on other rewards than the present ones": 1}
        assert choose(client, 0, 1)["feedback_used"] == 1


def test_edits_without_their_prompt_are_not_measured_by_rewards_that_may_read_it(
    tmp_path, upstream_server, upstream
):
    run = answer_world.save_run(tmp_path / "run", answer_world.scale_of())
    config = config_of(tmp_path, upstream_server, users=str(run), store="features")
    with client_of(config) as client:
        asked = client.post("/v1/chat/completions", json={**CHAT, "user": "ann"}).json()
        body = {"response_id": asked["jaxalign"]["answers"][0], "edited": "Hi", "user": "ann"}
        found = client.post("/v1/feedback", json=body)
    assert (found.status_code, found.json()["error"]["code"]) == (409, "texts_not_stored")


@pytest.mark.parametrize(
    ("gate", "before", "after", "draws"),
    [
        (Gate(adapts=False), "adapting to users did not help", "did not help", 1),
        (Gate(support=0.02), "too little so far (expected gain 0 nats", "better than the", 1),
        (Gate(pairs=0.02), "hardly differ on the answers", "better than the", 3),
    ],
)
def test_the_gate_of_a_run_says_who_is_answered_plainly(
    tmp_path, upstream_server, upstream, gate, before, after, draws
):
    run = answer_world.save_run(tmp_path / "run", answer_world.scale_of(), gate=gate)
    config = config_of(tmp_path, upstream_server, users=str(run), samples=3)
    with client_of(config) as client:
        about = []
        for _ in range(2):
            found = client.post("/v1/chat/completions", json={**CHAT, "user": "ann"}).json()
            about.append(found["jaxalign"])
            for _ in range(4):
                choose(client, 1, 2)
        reason = client.get("/v1/user", params={"id": "ann"}).json()["left_alone"]
    assert upstream.requests[0].body.get("n", 1) == draws
    assert about[0]["strategy"] == "plain"
    for said, expected in zip(about, (before, after), strict=True):
        assert expected in said["reason"]
    assert (reason is None) == gate.adapts


def test_rows_are_deleted_when_they_are_older_than_they_may_be(tmp_path, upstream_server, upstream):
    config = config_of(tmp_path, upstream_server)
    with client_of(config) as client:
        choose(client, 0, 1)
        service = client.service
        limit = events.now()
        choose(client, 0, 1)
        database = service.service.database
        count = service.run(database.write(lambda c: events.expire(c, limit)))
        assert count == 2
        about = client.get("/v1/user", params={"id": "ann"}).json()
        assert (about["rows"], about["feedback_used"]) == (2, 1)
        service.run(database.write(lambda c: events.expire(c, events.now())))
    assert rows_of(tmp_path) == []
    assert rows_of(tmp_path, "users") == []


def test_an_answer_that_is_being_drawn_is_finished_when_the_service_stops(
    tmp_path, upstream_server, upstream
):
    upstream.mode, upstream.pause = "slow", 0.5
    service = Running(config_of(tmp_path, upstream_server))
    found = []

    def ask():
        body = {**CHAT, "user": "ann"}
        found.append(httpx.post(f"{service.url}/v1/chat/completions", json=body, timeout=30))

    thread = threading.Thread(target=ask)
    thread.start()
    assert upstream.asked.wait(30)
    service.stop()
    thread.join()
    assert found[0].status_code == 200
    assert len(rows_of(tmp_path)) == 1


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("chat/completions", {}),
        ("chat/completions", {"stream": True}),
        ("chat/completions", {"stream": True, "model": fake_upstream.MODEL}),
        ("compare", {"user": "ann"}),
    ],
)
def test_a_client_that_goes_away_frees_its_place(served, client, upstream, path, change):
    upstream.mode, upstream.pause = "slow", 20.0
    engine, body = served.service.engine, json.dumps({**CHAT, **change}).encode()
    with socket.create_connection((client.base_url.host, client.base_url.port)) as leaving:
        leaving.sendall(
            b"POST /v1/%s HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n" % (path.encode(), len(body)) + body
        )
        assert upstream.asked.wait(30)
        assert engine._waiting
    end = time.monotonic() + 15
    while engine._waiting and time.monotonic() < end:
        time.sleep(0.05)
    assert engine._waiting == 0  # before the engine has answered


def test_the_command_makes_keys(tmp_path):
    path = tmp_path / "keys.yaml"
    words = ["serve", "--keys", str(path), "--new-key"]
    key = call(*words, "laptop", "--key-user", "ann").out.strip()
    assert read_keys(path)[hash_key(key)].user == "ann"
    assert call(*words, "webui").code == 0
    assert [one.user for one in read_keys(path).values()] == ["ann", None]
    refused(call(*words, "webui"), "taken")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "there is no --keys file"),
        (["--engine", "oracle"], "expected one of local, openai"),
        (["--engine", "openai"], "--engine.url: found None"),
        (["--database", "mysql://x/y"], "found 'mysql'"),
        (["--samples", "1"], "expected 2 to 128"),
        (["--samples", "129", "--engine.waiting", "200"], "expected 2 to 128"),
        (["--database", "postgresql+psycopg://a@b:abc/c"], "found no address of a database"),
        (["--engine", "openai", "--engine.url", "http://[::1/v1"], "--engine.url: found"),
        (["--engine.key-file", "~no-such-user/key"], "found no folder of this user"),
        (["--keys", "~no-such-user/keys"], "found no folder of this user"),
        (["--database", "sqlite:///~no-such-user/a"], "found no folder of this user"),
        (["--retain", "1e300"], "at most 36500"),
        (["--caution", "-1"], "caution: found -1, expected a finite number of 0 or more"),
        (["--least-probability", "1.5"], "least_probability: found 1.5, expected a finite number"),
        (["--retain", "nan"], "--retain: found nan, expected more than 0 days"),
        (["--port", "-1"], "expected 0 to 65535"),
        (["--keys", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["--new-key", "a"], "found no --keys"),
        (["--key-user", "ann"], "found no --new-key"),
        (["--engine.url", "http://127.0.0.1:1/v1"], "is not used by --engine local"),
        (["--engine.read-seconds", "0"], "engine.read_seconds: found 0"),
        (["--allowed-host", "chat.local:8080"], "--allowed-host chat.local:8080: expected a name"),
        (["--allowed-host", "http://chat.local"], "without a scheme, a port or brackets"),
        (["--allowed-host", "[::1]"], "without a scheme, a port or brackets"),
        (["--samples", "65"], "more than the 64 answers of --engine.waiting"),
        (["--reward-model", "folder"], "without --users"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    refused(call("serve", "--port", "0", *options), message)
    assert list(tmp_path.iterdir()) == []


def test_an_address_that_is_taken_is_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(call("serve", "--port", port), "cannot be bound")


def test_answers_do_not_wait_for_a_full_packet():
    async def option_of_a_connection():
        accepted = asyncio.Queue()
        with bind("127.0.0.1", 0) as listener:
            server = await asyncio.start_server(
                lambda _, writer: accepted.put_nowait(writer), sock=listener
            )
            async with server:
                _, client = await asyncio.open_connection(*listener.getsockname())
                served = await accepted.get()
                found = served.get_extra_info("socket").getsockopt(
                    socket.IPPROTO_TCP, socket.TCP_NODELAY
                )
                client.close()
                served.close()
        return found

    assert asyncio.run(option_of_a_connection())


@pytest.mark.parametrize("database", ["sqlite:///.", "postgresql+psycopg://a@127.0.0.1:1/b"])
def test_the_database_is_refused_before_the_engine_is_started(
    tmp_path, monkeypatch, upstream_server, upstream, database
):
    monkeypatch.chdir(tmp_path)
    config = config_of(tmp_path, upstream_server, database=database)
    upstream.mode = "fail_models"
    with pytest.raises(InputError, match="--database"):
        asyncio.run(open_service(config))


def test_a_stream_is_repeated_where_nothing_was_sent(upstream_server, upstream):
    failures = [httpx.ConnectError("down"), httpx.ConnectTimeout("slow")]
    sent = 'data: {"choices": [{"index": 0, "text": "Hi", "finish_reason": "stop"}]}\n\n'

    def answer(request):
        if failures:
            raise failures.pop()
        return httpx.Response(200, content=sent)

    async def run():
        engine = UpstreamEngine(EngineConfig("openai", url=upstream_server.url))
        await engine.close()
        transport = httpx.MockTransport(answer)
        async with httpx.AsyncClient(base_url="http://engine", transport=transport) as client:
            engine._client = client
            return [chunk async for chunk in engine.stream(Call("text", {}, "Hello"))]

    (chunk,) = asyncio.run(run())
    assert chunk.choices[0].content() == "Hi"
