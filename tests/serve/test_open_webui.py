"""Requests as open-webui sends them: a chat, its title, its tags, and a signed user."""

import json
import time

import fake_upstream
import httpx
import jwt
import pytest
from running import CHAT, client_of, config_of, rows_of
from webui_feedback import webui

from jaxalign.errors import InputError
from jaxalign.integrations.open_webui import Poller, main, read_rating
from jaxalign.serve.store.events import Limits

SECRET = "a secret of at least thirty-two bytes"
TITLE = """### Task:
Generate a concise, 3-5 word title with an emoji summarizing the chat history.
### Guidelines:
- The title should clearly represent the main theme or subject of the conversation.
### Output:
JSON format: { "title": "your concise title here" }
### Chat History:
<chat_history>
USER: How was your day?
</chat_history>"""
TAGS = """### Task:
Generate 1-3 broad tags categorizing the main themes of the chat history, along with 1-3 more specific subtopic tags.

### Guidelines:
- Start with high-level domains (e.g. Science, Technology, Philosophy, Arts, Politics, Business)
### Output:
JSON format: { "tags": ["tag1", "tag2", "tag3"] }
### Chat History:
<chat_history>
USER: How was your day?
</chat_history>"""  # noqa: E501


def headers(user):
    """What it forwards with ENABLE_FORWARD_USER_INFO_HEADERS."""
    return {
        "authorization": "Bearer none",
        "x-openwebui-user-name": "Ann%20Other",
        "x-openwebui-user-id": user,
        "x-openwebui-user-email": "ann@example.org",
        "x-openwebui-user-role": "user",
        "x-openwebui-chat-id": "3b1a",
    }


def test_a_chat_is_streamed_for_the_forwarded_user(client, user, folder, upstream):
    body = {
        "stream": True,
        "model": "auto",
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "How was your day?"}]},
        ],
        "stream_options": {"include_usage": True},
    }
    found = client.post("/v1/chat/completions", json=body, headers=headers(user))
    assert found.headers["content-type"].startswith("text/event-stream")
    assert found.text.endswith("data: [DONE]\n\n")
    kept = [row for row in rows_of(folder) if row[2] == f"local:{user}"]
    assert len(kept) == 1
    assert "How was your day?" in kept[0][5]
    assert "ann@example.org" not in str(upstream.requests[0].headers)


@pytest.mark.parametrize("prompt", [TITLE, TAGS])
def test_tasks_are_answered_plainly_and_not_stored(client, user, folder, upstream, prompt):
    body = {
        "model": "auto",
        "messages": [{"role": "user", "content": prompt}],
        "stream": False,
        "max_completion_tokens": 1000,
    }
    found = client.post("/v1/chat/completions", json=body, headers=headers(user)).json()
    assert found["choices"][0]["message"]["content"] == fake_upstream.ANSWERS[0]
    assert "task of the chat application" in found["jaxalign"]["reason"]
    assert found["jaxalign"]["answers"] == []
    assert "n" not in upstream.requests[0].body
    assert not [row for row in rows_of(folder) if row[2] == f"local:{user}"]


@pytest.mark.parametrize("seconds", [0, 5, -305])
def test_a_signed_user_is_believed(tmp_path, upstream_server, upstream, seconds):
    """By a clock that differs by some seconds too."""
    now = int(time.time()) + seconds
    claims = {
        "sub": "ann", "email": "ann@example.org", "name": "Ann", "role": "user",
        "iss": "open-webui", "iat": now, "exp": now + 300,
    }  # fmt: skip
    signed = {"x-openwebui-user-jwt": jwt.encode(claims, SECRET, "HS256")}
    config = config_of(tmp_path, upstream_server, webui_secret=SECRET)
    with client_of(config) as client:
        found = client.post("/v1/chat/completions", json=CHAT, headers=signed)
    assert found.status_code == 200
    assert [row[2] for row in rows_of(tmp_path)] == ["local:ann"]


@pytest.fixture
def exported():
    """A row of the feedback export about the answer to "Hi", as the importer's tests have it."""

    def row(key, rating, user, answer, **changes):
        found = webui(key, rating, "a", user=user)
        messages = found["snapshot"]["chat"]["chat"]["history"]["messages"]
        messages["a"]["content"] = answer
        return {**found, "updated_at": 1700000000, **changes}

    return row


def ratings_of(client, user):
    export = client.get("/v1/user/export", params={"id": user}).json()
    return [row["value"]["rating"] for row in export["events"] if row["kind"] == "rating"]


HI = {"model": fake_upstream.MODEL, "messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize("named", [True, False])
def test_a_rating_finds_its_answer(client, user, folder, upstream, exported, named):
    """By the ids that came with the request, else by question and answer."""
    given = headers(user) | ({"x-openwebui-chat-id": "c1", "x-openwebui-message-id": "a"} if named
             else {})  # fmt: skip
    said = client.post("/v1/chat/completions", json=HI, headers=given).json()
    answer = "edited since" if named else said["choices"][0]["message"]["content"]
    rows = [
        exported(f"{user}-1", 1, user, answer),
        exported(f"{user}-1", -1, user, answer, updated_at=1700000001),
        exported(f"{user}-1", -1, user, answer, updated_at=1700000001),
        exported(f"{user}-2", 1, f"{user}-other", answer),
        {**exported(f"{user}-3", 1, user, answer), "data": {"rating": 5}},
    ]
    found = client.post("/v1/integrations/open-webui", json=rows).json()
    assert found["joined"] == 3
    assert sorted(found["left"].values()) == [1, 1]
    kept = [row for row in rows_of(folder) if row[2] == f"local:{user}" and row[3] == "rating"]
    assert len(kept) == 2
    about = client.get("/v1/user", params={"id": user}).json()
    assert (about["feedback_used"], about["feedback_unused"]) == (1, {})


def test_an_answer_that_is_drawn_again_under_its_ids_takes_the_place_of_the_first(
    client, user, folder, upstream
):
    given = headers(user) | {"x-openwebui-message-id": "a"}
    for _ in range(2):
        assert client.post("/v1/chat/completions", json=HI, headers=given).status_code == 200
    sources = [row[9] for row in rows_of(folder) if row[2] == f"local:{user}"]
    assert [source is None for source in sources] == [True, False]


def test_ratings_that_name_no_answer_are_counted_by_their_reasons(client, user, exported):
    rows = [
        exported("f1", 1, user, "never served"),
        {"id": "f2"},
        exported("f3", 1, user, "x", meta={"arena": True, "chat_id": "c1", "message_id": "a"}),
        exported("f4", 1, user, "x", snapshot=None),
    ]
    found = client.post("/v1/integrations/open-webui", json=rows).json()
    assert found["joined"] == 0
    assert len(found["left"]) == 4
    refused = client.post("/v1/integrations/open-webui", json="no rows")
    assert refused.status_code == 400


def test_the_export_is_polled_and_each_row_is_sent_once(client, user, upstream, exported):
    given = headers(user)
    said = client.post("/v1/chat/completions", json=HI, headers=given).json()
    rows = [exported(f"{user}-1", 1, user, said["choices"][0]["message"]["content"])]

    def export(request):
        if request.headers.get("authorization") != "Bearer admin":
            return httpx.Response(401)
        assert request.url.path == "/api/v1/evaluations/feedbacks/all/export"
        return httpx.Response(200, json=rows)

    def client_with(key):
        return httpx.Client(
            base_url="http://webui", transport=httpx.MockTransport(export),
            headers={"authorization": f"Bearer {key}"},
        )  # fmt: skip

    with client_with("admin") as asked:
        poller = Poller(asked, client)
        assert poller.poll() == (1, {})
        assert poller.poll() == (0, {})
        rows[0] = {**rows[0], "data": {"rating": -1}, "updated_at": 1700000002}
        assert poller.poll() == (1, {})
        rows[0] = {**rows[0], "data": {"rating": 1}}  # within the same second
        assert poller.poll() == (1, {})
        assert poller.poll() == (0, {})
    with client_with("wrong") as asked, pytest.raises(InputError, match="status 401"):
        Poller(asked, client).poll()
    assert client.get("/v1/user", params={"id": user}).json()["feedback_used"] == 1
    assert ratings_of(client, user) == [1, -1, 1]


@pytest.mark.parametrize("changes", [{}, {"updated_at": None}])
def test_a_thumb_that_is_corrected_within_a_second(client, user, upstream, exported, changes):
    said = client.post("/v1/chat/completions", json=HI, headers=headers(user)).json()
    answer = said["choices"][0]["message"]["content"]
    for rating in (1, -1, -1):
        row = exported(f"{user}-1", rating, user, answer, **changes)
        assert client.post("/v1/integrations/open-webui", json=row).json()["joined"] == 1
    assert ratings_of(client, user) == [1, -1]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"user_id": "x" * 300}, "expected a text of 1 to 256 characters"),
        ({"created_at": 1e300}, "no answer that was served"),
        ({"data": {"rating": 1, "note": float("nan")}}, "the row is no JSON"),
        ({"data": {"rating": 1, "note": "\udc00"}}, "refused the row with status 400"),
        ({"data": {"rating": 1, "note": "x" * 1_000_000}}, "refused the row with status 413"),
    ],
)
def test_a_bad_row_does_not_hold_up_the_ones_behind_it(client, user, exported, bad, reason):
    said = client.post("/v1/chat/completions", json=HI, headers=headers(user)).json()
    good = exported(f"{user}-2", 1, user, said["choices"][0]["message"]["content"])
    history = good["snapshot"]["chat"]["chat"]["history"]["messages"]
    history["a"]["files"] = "x" * 1_000_000  # which nothing reads
    rows = json.dumps([exported(f"{user}-1", 1, user, "x", **bad), good])
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=rows))
    with httpx.Client(base_url="http://webui", transport=transport) as asked:
        poller = Poller(asked, client)
        found = poller.poll()
        assert poller.poll() == (0, {})
    assert found.joined == 1
    ((left, count),) = found.left.items()
    assert reason in left
    assert count == 1


def test_half_of_a_surrogate_pair_beside_the_answer_is_no_traceback():
    row = webui("f1", 1, "a")
    messages = row["snapshot"]["chat"]["chat"]["history"]["messages"]
    messages["q"]["content"] = "\ud800"
    keys = read_rating(row).keys
    messages["q"]["content"] = "\ud801"
    assert read_rating(row).keys[1] != keys[1]


def test_a_user_with_as_many_rows_as_allowed_is_left_out_alone(
    tmp_path, upstream_server, upstream, exported
):
    config = config_of(tmp_path, upstream_server, stored=Limits(events_per_user=1))
    with client_of(config) as client:
        rows = []
        for user in ("ann", "bob"):
            said = client.post("/v1/chat/completions", json=HI, headers=headers(user)).json()
            answer = said["choices"][0]["message"]["content"]
            rows.append(exported(f"{user}-1", 1, user, answer))
        found = client.post("/v1/integrations/open-webui", json=rows).json()
    assert found["joined"] == 0
    assert found["left"] == {"this user has 1 stored rows, the most allowed": 2}


def test_a_list_of_too_many_rows_is_refused(client):
    found = client.post("/v1/integrations/open-webui", json=[{}] * 1001)
    assert (found.status_code, found.json()["error"]["code"]) == (413, "too_many_rows")


@pytest.mark.parametrize("words", [["--every", "inf"], ["--service", "http://[::1/v1"]])
def test_options_of_the_command_that_cannot_be_used(capsys, words):
    with pytest.raises(SystemExit):
        main(["--webui", "http://127.0.0.1:9", "--once", *words])
    assert f"{words[0]} {words[1]}: expected" in capsys.readouterr().err


def test_the_command_says_what_is_wrong(capsys):
    assert main(["--webui", "http://127.0.0.1:9", "--once"]) == 2
    assert "check that the server runs" in capsys.readouterr().err
