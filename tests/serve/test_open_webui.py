"""Requests as open-webui sends them: a chat, its title, its tags, and a signed user."""

import time

import fake_upstream
import jwt
import pytest
from running import CHAT, client_of, config_of, rows_of

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


def test_a_signed_user_is_believed(tmp_path, upstream_server, upstream):
    now = int(time.time())
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
