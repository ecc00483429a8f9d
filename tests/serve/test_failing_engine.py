"""An engine that fails, is down or full, and rewards that refuse a chat: what clients get then."""

import dataclasses
import json
import threading

import fake_upstream
import pytest
from running import CHAT, client_of, config_of, error_of, rows_of

from jaxalign.errors import InputError


@pytest.mark.parametrize(
    ("mode", "status", "code"),
    [
        ("fail", 502, "engine_failed"),
        ("refuse", 400, "context_length_exceeded"),
        ("busy", 429, "engine_busy"),
        ("nonsense", 502, "engine_not_understood"),
    ],
)
@pytest.mark.parametrize("model", ["auto", fake_upstream.MODEL])
@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_fails(client, upstream, mode, status, code, model, stream):
    if (mode, stream, model) == ("nonsense", True, fake_upstream.MODEL):
        code = "engine_broke_off"  # a stream without any piece
    upstream.mode = mode
    found = client.post("/v1/chat/completions", json={**CHAT, "model": model, "stream": stream})
    assert error_of(found) == (status, code)
    assert "secret" not in found.text


def test_an_engine_that_breaks_off_in_a_stream(client, upstream, user, folder):
    upstream.mode = "break"
    body = {**CHAT, "model": fake_upstream.MODEL, "stream": True, "user": user}
    lines = [line for line in client.post("/v1/chat/completions", json=body).text.split("\n\n")
             if line]  # fmt: skip
    assert '"code": "engine_broke_off"' in lines[-1]
    assert "[DONE]" not in lines[-1]
    assert not [row for row in rows_of(folder) if row[2] == f"local:{user}"]


def test_an_answer_that_breaks_off_is_not_drawn_again(client, upstream):
    upstream.mode = "break"
    found = client.post("/v1/chat/completions", json={**CHAT, "model": fake_upstream.MODEL})
    assert error_of(found) == (502, "engine_unreachable")
    assert len(upstream.requests) == 1


def test_an_engine_that_is_down_or_slow(tmp_path, upstream_server, upstream):
    config = config_of(tmp_path, upstream_server, most_waiting=1)
    slow = dataclasses.replace(config.engine, read_seconds=0.1, model="fake-model")
    with client_of(dataclasses.replace(config, engine=slow)) as client:
        upstream.mode = "slow"
        found = client.post("/v1/chat/completions", json=CHAT)
        assert error_of(found) == (504, "engine_timeout")
    down = dataclasses.replace(slow, url="http://127.0.0.1:9/v1")
    with client_of(dataclasses.replace(config, engine=down)) as client:
        found = client.post("/v1/chat/completions", json=CHAT)
        assert error_of(found) == (502, "engine_unreachable")
        assert error_of(client.get("/readyz")) == (503, "engine_not_ready")
        assert client.get("/healthz").json() == {"status": "ok"}


def test_an_engine_that_lists_no_models_is_ready_where_its_model_is_named(
    tmp_path, upstream_server, upstream
):
    config = config_of(tmp_path, upstream_server)
    named = dataclasses.replace(config.engine, model="fake-model")
    upstream.mode = "lists_nothing"
    with client_of(dataclasses.replace(config, engine=named)) as client:
        assert client.get("/readyz").json() == {"status": "ready"}
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
        upstream.mode = "fail_models"
        assert error_of(client.get("/readyz")) == (503, "engine_not_ready")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("dropped", "status"), [(1, 200), (2, 200), (9, 502)])
def test_a_connection_that_the_engine_closes_before_it_answers(
    client, upstream, stream, dropped, status, caplog
):
    upstream.dropped = dropped
    body = {**CHAT, "model": fake_upstream.MODEL, "stream": stream}
    found = client.post("/v1/chat/completions", json=body)
    assert found.status_code == status, found.text
    assert len(upstream.requests) == min(dropped + 1, 3)
    logged = [record.fields for record in caplog.records if record.msg == "engine unreachable"]
    assert logged == ([] if status == 200 else [{"why": "RemoteProtocolError"}])


def test_more_requests_than_may_wait(tmp_path, upstream_server, upstream):
    upstream.mode, upstream.pause = "slow", 1.0
    with client_of(config_of(tmp_path, upstream_server, most_waiting=1)) as client:
        first = threading.Thread(
            target=client.post, args=("/v1/chat/completions",), kwargs={"json": CHAT}
        )
        first.start()
        assert upstream.asked.wait(30)
        found = client.post("/v1/chat/completions", json=CHAT)
        first.join()
    assert error_of(found) == (429, "engine_busy")
    assert found.headers["retry-after"]


@pytest.fixture
def strict_rewards(served, monkeypatch):
    """Rewards that refuse a system turn, as the template of a Gemma does; the roles they read."""
    space, roles = served.service.space, []

    def read(prompts, answers):
        roles.extend(turn["role"] for turn in prompts[0])
        if "system" in roles:
            raise InputError("the chat template refuses these turns (no system); remove them.")
        return space.read(prompts, answers)

    monkeypatch.setattr(served.service, "space", dataclasses.replace(space, read=read))
    return roles


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["auto", fake_upstream.MODEL])
@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_chat_that_rewards_cannot_be_read_of_is_answered_plainly_and_not_stored(
    client, user, folder, strict_rewards, model, role, stream
):
    turns = [{"role": role, "content": "Be brief."}, *CHAT["messages"]]
    body = {"model": model, "messages": turns, "user": user, "stream": stream}
    found = client.post("/v1/chat/completions", json=body)
    assert found.status_code == 200, found.text
    last = found.text.split("\n\n")[-3].removeprefix("data: ") if stream else found.text
    about = json.loads(last)["jaxalign"]
    assert (about["strategy"], about["answers"]) == ("plain", [])
    assert ("refuses these turns (no system)" in about["reason"]) == (model == "auto")
    assert not [row for row in rows_of(folder) if row[2] == f"local:{user}"]
    assert "developer" not in strict_rewards
    refused = client.post("/v1/compare", json=body)
    assert error_of(refused) == (400, "invalid_prompt")


def test_an_edit_that_rewards_cannot_be_read_of_is_refused(client, user, strict_rewards):
    (answer,) = client.post("/v1/chat/completions", json={**CHAT, "user": user}).json()["jaxalign"][
        "answers"
    ]
    strict_rewards.append("system")
    edit = {"response_id": answer, "edited": "A day.", "user": user}
    assert error_of(client.post("/v1/feedback", json=edit)) == (400, "invalid_prompt")
