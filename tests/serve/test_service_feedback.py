"""Feedback: what is kept, what is learned, and that nothing is counted twice."""

import asyncio
import json
import threading

import fake_upstream
import numpy as np
import pytest
from running import CHAT, client_of, config_of, rows_of

from jaxalign.serve import service
from jaxalign.serve.learning import advance, infer_taste
from jaxalign.serve.store import events


def chat(client, user, **changes):
    found = client.post("/v1/chat/completions", json={**CHAT, "user": user, **changes})
    assert found.status_code == 200, found.text
    return found.json()


def two_answers(client, user):
    """Ids of a long plain answer and of a short one to the same prompt."""
    return chat(client, user, n=2)["jaxalign"]["answers"]


def prefer_short(client, user, **headers):
    long, short = two_answers(client, user)
    body = {"response_id": long, "preferred": short, "user": user}
    found = client.post("/v1/feedback", json=body, headers=headers)
    assert found.status_code == 200, found.text
    return body, found.json()


def weight(client, user, name="brevity"):
    found = client.get("/v1/user", params={"id": user}).json()
    return next(one["weight"] for one in found["rewards"] if one["name"] == name)


def test_choices_move_the_taste_and_the_answers(client, user):
    before = weight(client, user)
    for _ in range(5):
        _, found = prefer_short(client, user)
    assert found["used"] is True
    assert found["feedback_used"] == 5
    assert weight(client, user) > before + 0.5
    answer = chat(client, user)
    assert answer["jaxalign"]["strategy"] == "best_of"
    assert answer["jaxalign"]["probability"] > 0.8
    assert "better than the plain answer with probability" in answer["jaxalign"]["reason"]
    assert answer["choices"][0]["message"]["content"] == fake_upstream.ANSWERS[1]
    # Somebody else is not moved.
    assert weight(client, f"{user}-other") == before


def test_an_edited_answer_is_preferred_to_what_it_was(client, user):
    before = weight(client, user)
    answer = chat(client, user, model=fake_upstream.MODEL)["id"]
    body = {"response_id": answer, "edited": "A day.", "user": user}
    assert client.post("/v1/feedback", json=body).json()["used"] is True
    assert weight(client, user) > before


def test_thumbs_move_the_taste_and_a_corrected_one_takes_the_place_of_the_first(client, user):
    before = weight(client, user)
    long, short = two_answers(client, user)
    for answer, rating in ((long, "up"), (long, "down"), (short, 1)):
        body = {"response_id": answer, "rating": rating, "user": user}
        found = client.post("/v1/feedback", json=body).json()
        assert found["used"] is True
    assert found["feedback_used"] == 2
    assert weight(client, user) > before
    about = client.get("/v1/user", params={"id": user}).json()
    assert about["feedback_unused"] == {}
    assert about["words"][0] == f"user {user}, from 2 ratings and all other users:"
    prefer_short(client, user)
    (first, *_) = client.get("/v1/user", params={"id": user}).json()["words"]
    assert first == f"user {user}, from 1 choice, 2 ratings and all other users:"


def test_a_changed_mind_replaces_the_earlier_choice(client, user):
    long, short = two_answers(client, user)
    for body in ((long, short), (short, long)):
        said = {"response_id": body[0], "preferred": body[1], "user": user}
        found = client.post("/v1/feedback", json=said).json()
    assert found["feedback_used"] == 1
    assert weight(client, user) < weight(client, f"{user}-other")


def test_an_idempotency_key_counts_once(client, user):
    body, first = prefer_short(client, user, **{"Idempotency-Key": "a"})
    again = client.post("/v1/feedback", json=body, headers={"Idempotency-Key": "a"})
    assert again.json() == first
    other = {**body, "preferred": None, "rating": "up"}
    refused = client.post("/v1/feedback", json=other, headers={"Idempotency-Key": "a"})
    assert refused.status_code == 409
    assert refused.json()["error"]["code"] == "idempotency_key_reused"


def test_concurrent_feedback_is_counted_once_each(client, user, served, folder):
    long, short = two_answers(client, user)
    body = {"response_id": long, "preferred": short, "user": user}
    codes = []

    def send(number):
        headers = {"Idempotency-Key": f"key-{number % 5}"}
        codes.append(client.post("/v1/feedback", json=body, headers=headers).status_code)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [200] * 20
    mine = [row for row in rows_of(folder) if row[2] == f"local:{user}"]
    assert sorted(row[9] for row in mine if row[3] == "preferred") == [f"key-{n}" for n in range(5)]
    counted = [row[3] for row in rows_of(folder, "users") if row[0] == f"local:{user}"]
    assert counted == [len(mine)]


def test_comparison_gives_the_pair_that_tells_most(client, user):
    body = {**CHAT, "user": user}
    found = client.post("/v1/compare", json=body).json()
    assert (found["pays"], found["served"]) == (True, None)
    texts = [one["text"] for one in found["answers"]]
    assert len(set(texts)) == 2
    ids = [one["id"] for one in found["answers"]]
    said = {"response_id": ids[0], "preferred": ids[1], "user": user}
    assert client.post("/v1/feedback", json=said).json()["feedback_used"] == 1


def test_a_comparison_of_answers_that_are_all_alike_is_refused(client, user, upstream):
    found = client.post("/v1/compare", json={**CHAT, "user": user, "temperature": 0})
    assert (found.status_code, found.json()["error"]["param"]) == (400, "temperature")
    assert "all answers are alike" in found.json()["error"]["message"]
    assert upstream.requests == []


def test_a_comparison_that_does_not_pay_holds_the_answer_of_the_same_draws(
    client, user, upstream, monkeypatch
):
    monkeypatch.setattr("jaxalign.serve.comparing.LEAST_NATS", 1.0)  # more than a choice can tell
    for _ in range(5):
        prefer_short(client, user)
    drawn = len(upstream.requests)
    found = client.post("/v1/compare", json={**CHAT, "user": user}).json()
    assert len(upstream.requests) == drawn + 1
    assert found["pays"] is False
    served = found["served"]
    assert served["object"] == "chat.completion"
    assert served["choices"][0]["message"]["content"] == fake_upstream.ANSWERS[1]
    assert served["jaxalign"]["strategy"] == "best_of"
    (answer,) = served["jaxalign"]["answers"]
    body = {"response_id": answer, "rating": "up", "user": user}
    assert client.post("/v1/feedback", json=body).json()["used"] is True


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"response_id": "chatcmpl-" + "0" * 32}, 404, "response_not_found"),
        ({"response_id": "nonsense"}, 404, "response_not_found"),
        ({"preferred": "chatcmpl-" + "0" * 32}, 404, "response_not_found"),
        ({"rating": "up"}, 400, "invalid_feedback"),
        ({"preferred": None}, 400, "invalid_feedback"),
        ({"preferred": None, "rating": 3}, 400, "invalid_feedback"),
        ({"preferred": None, "edited": " "}, 400, "invalid_feedback"),
        ({"surprise": 1}, 400, "invalid_value"),
        ({"user": None}, 400, "user_required"),
        ({"user": "somebody else"}, 404, "response_not_found"),
    ],
)
def test_feedback_that_is_none_is_refused(client, user, change, status, code):
    long, short = two_answers(client, user)
    body = {"response_id": long, "preferred": short, "user": user, **change}
    found = client.post("/v1/feedback", json=body)
    assert (found.status_code, found.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize("rating", [True, "left", 1.5, []])
def test_a_rating_of_another_type_is_refused_with_all_that_is_one(client, user, rating):
    body = {"response_id": "chatcmpl-" + "0" * 32, "rating": rating, "user": user}
    found = client.post("/v1/feedback", json=body).json()["error"]
    assert (found["code"], found["param"]) == ("invalid_value", "rating")
    assert found["message"] == "rating: expected 'up', 'down', 1 or -1."


def test_feedback_names_its_user_as_chats_do(client, user):
    (answer, _) = two_answers(client, user)
    body = {"response_id": answer, "rating": "up", "safety_identifier": user}
    assert client.post("/v1/feedback", json=body).json()["used"] is True


def test_forgetting_empties_the_files_and_the_taste(client, user, folder):
    word = f"secret{user.replace('-', '')}"
    chat(client, user, messages=[{"role": "user", "content": word}])
    prefer_short(client, user, **{"Idempotency-Key": "a"})
    export = client.get("/v1/user/export", params={"id": user}).json()
    assert [event["source"] for event in export["events"]] == [None, None, "a"]
    assert {event["kind"] for event in export["events"]} == {"answers", "preferred"}
    assert word in json.dumps(export)
    found = client.delete("/v1/user", params={"id": user}).json()
    assert found["rows"] == 3
    assert found["log_emptied"] is True
    assert "not undone" in found["remains"]
    for name in ("service.sqlite", "service.sqlite-wal"):
        content = (folder / name).read_bytes()
        assert word.encode() not in content
        assert f"local:{user}".encode() not in content
    assert client.get("/v1/user", params={"id": user}).json()["rows"] == 0
    assert client.get("/v1/user/export", params={"id": user}).status_code == 404
    assert weight(client, user) == weight(client, f"{user}-other")
    assert rows_of(folder, "tombstones")


def test_a_restart_gives_the_same_posterior_bit_for_bit(tmp_path, upstream_server, upstream):
    config = config_of(tmp_path, upstream_server)
    with client_of(config) as client:
        for _ in range(3):
            prefer_short(client, "ann")
        one = client.service
        before = one.run(one.service.taste("local:ann")).utility
        rows = one.service.database.read_now(lambda c: events.feedback(c, "local:ann"))
        rebuilt = infer_taste(one.service.space, rows).utility
    with client_of(config) as client:
        other = client.service
        after = other.run(other.service.taste("local:ann")).utility
    for found in (rebuilt, after):
        np.testing.assert_array_equal(found.mean, before.mean)
        np.testing.assert_array_equal(found.cov, before.cov)


def test_requests_that_come_at_once_build_the_state_once(client, user, served, monkeypatch):
    prefer_short(client, user)
    one, read = served.service, []
    known = served.run(one.taste(f"local:{user}"))
    one._drop_state(f"local:{user}")  # as after a restart
    monkeypatch.setattr(
        service, "advance", lambda *some: (read.append(len(some[2])), advance(*some))[1]
    )

    async def at_once():
        return await asyncio.gather(*(one.taste(f"local:{user}") for _ in range(3)))

    for found in served.run(at_once()):
        np.testing.assert_array_equal(found.utility.mean, known.utility.mean)
    assert sum(read) == 1


def test_a_user_who_is_erased_meanwhile_is_not_remembered(client, user, served, monkeypatch):
    prefer_short(client, user)
    one, name = served.service, f"local:{user}"
    one._drop_state(name)  # as after a restart
    followed, read, gate = one._followed, threading.Event(), threading.Event()

    def slow(*some):
        state = followed(*some)
        read.set()
        assert gate.wait(30)
        return state

    monkeypatch.setattr(one, "_followed", slow)
    reads = threading.Thread(target=client.get, args=(f"/v1/user?id={user}",))
    erases = threading.Thread(target=client.delete, args=(f"/v1/user?id={user}",))
    reads.start()
    assert read.wait(30)
    erases.start()
    erases.join(0.3)
    gate.set()
    reads.join()
    erases.join()
    assert name not in one._states
    assert client.get("/v1/user", params={"id": user}).json()["rows"] == 0


@pytest.mark.parametrize("mode", ["features", "none"])
def test_texts_are_not_kept_unless_asked_for(tmp_path, upstream_server, upstream, mode):
    config = config_of(tmp_path, upstream_server, store=mode)
    with client_of(config) as client:
        answers = chat(client, "ann", n=2)["jaxalign"]["answers"]
        assert len(answers) == (2 if mode == "features" else 0)
        if answers:
            body = {"response_id": answers[0], "preferred": answers[1], "user": "ann"}
            said = {**body, "reason": "shorter"}
            assert client.post("/v1/feedback", json=said).json()["used"] is True
    dump = json.dumps(rows_of(tmp_path))
    assert "How was your day" not in dump
    assert "Fine." not in dump
    assert "shorter" not in dump
    assert bool(rows_of(tmp_path)) is (mode == "features")
