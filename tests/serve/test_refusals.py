"""Each wrong request has its status, in OpenAI's shape of errors; nobody sees another's rows."""

import asyncio
import contextlib
import json
import os
import re
import sqlite3
import stat
import threading
from types import SimpleNamespace

import fake_upstream
import jwt
import pytest
from running import CHAT, client_of, config_of, error_of, rows_of
from sqlalchemy.exc import DataError

from jaxalign.errors import InputError
from jaxalign.serve import ServeConfig
from jaxalign.serve.identity import add_key, read_keys
from jaxalign.serve.store.database import StorageError, open_database
from jaxalign.serve.store.events import Limits

SECRET = "a secret of at least thirty-two bytes"


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        (b"[]", 400, "invalid_value"),
        (b"{}", 400, "invalid_value"),
        (b'{"model": "auto", "messages": "hi"}', 400, "invalid_value"),
        (b'{"model": 3, "messages": [{"role": "user", "content": "hi"}]}', 400, "invalid_value"),
        (b'{"model": "auto", "messages": [], "temperature": NaN}', 400, "invalid_json"),
        (b'{"model": "auto", "x": "\\ud800"}', 400, "invalid_json"),
        (b'{"model": "auto", "x": "\\udc00"}', 400, "invalid_json"),
        (b'{"model": "auto", "x": "\xed\xb0\x80"}', 400, "invalid_json"),
        ('{"model": "auto", "x": "é"}'.encode("utf-16"), 400, "invalid_json"),
        ('{"model": "auto", "x": "é"}'.encode("utf-16-le"), 400, "invalid_json"),
        (b'{"model": "auto", "x": 1e999}', 400, "invalid_json"),
        (b'{"model": "auto", "x": ' + b"9" * 250 + b"e99}", 400, "invalid_json"),
        (b'{"model": "auto", "x": ' + b"[" * 300 + b"]" * 300 + b"}", 400, "invalid_json"),
        (b"[" * 100_000, 400, None),
        (b'{"model": "auto", "pad": "' + b"x" * 1_000_000 + b'"}', 413, "request_too_large"),
    ],
)
def test_bodies_that_cannot_be_read(client, content, status, code):
    found = client.post(
        "/v1/chat/completions", content=content, headers={"content-type": "application/json"}
    )
    assert error_of(found) == (status, code) or (code is None and found.status_code == status)


HI = b'"messages": [{"role": "user", "content": "hi"}]'


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("chat/completions", b'{"model": "auto", %s, "metadata": {"user_id": "\\udc00"}}' % HI),
        ("chat/completions", b'{"model": "auto", %s, "metadata": {"user_id": "a\\u0000"}}' % HI),
        ("chat/completions", b'{"model": "auto", %s, "presence_penalty": 1e999}' % HI),
        ("feedback", b'{"response_id": "a", "rating": 1, "metadata": {"user_id": "\\udc00"}}'),
        ("feedback", b'{"response_id": "a", "rating": 1, "user": "a", "metadata": {"a": %s}}'
         % (b"[" * 300 + b"]" * 300)),
        ("integrations/open-webui", b'[{"id": "f", "updated_at": 1e999}]'),
        ("integrations/open-webui", b'[{"id": "\\udc00"}]'),
    ],
)  # fmt: skip
def test_bodies_that_can_neither_be_kept_nor_sent_on(client, upstream, path, content):
    headers = {"content-type": "application/json"}
    found = client.post(f"/v1/{path}", content=content, headers=headers)
    assert error_of(found)[0] == 400
    assert upstream.requests == []


def test_text_and_numbers_of_json_pass(client, upstream):
    given = '{"x": "é \\ud83d\\ude00", "y": [1e99, %s]}' % ("1" * 220)
    content = b'{"model": "auto", %s, "more": %s}' % (HI, given.encode())
    headers = {"content-type": "application/json"}
    assert client.post("/v1/chat/completions", content=content, headers=headers).status_code == 200
    assert upstream.requests[0].body["more"] == json.loads(given)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"n": 0}, "n"),
        ({"n": "2"}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": [{"role": "king", "content": "hi"}]}, "messages.0.role"),
        ({"user": ""}, "user"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_fields_of_the_wrong_type_are_named(client, change, param):
    found = client.post("/v1/chat/completions", json={**CHAT, **change})
    assert error_of(found) == (400, "invalid_value")
    assert found.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("change", "param"),
    [({"max_completion_tokens": "many"}, "max_completion_tokens"), ({"stop": [5]}, "stop.str")],
)
def test_fields_of_text_completions_are_checked_too(client, change, param):
    body = {"model": "auto", "prompt": "Once", **change}
    found = client.post("/v1/completions", json=body)
    assert error_of(found) == (400, "invalid_value")
    assert found.json()["error"]["param"] == param


def test_prompts_are_limited(client):
    long = [{"role": "user", "content": "x" * 200_001}]
    found = client.post("/v1/chat/completions", json={**CHAT, "messages": long})
    assert error_of(found) == (400, "prompt_too_long")


def test_unknown_paths_and_methods(client):
    assert error_of(client.get("/v1/nowhere")) == (404, None)
    assert error_of(client.get("/v1/chat/completions")) == (405, None)


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"host": "evil.example"}, 403, "host_not_allowed"),
        ({"host": "127.0.0.1.evil.example"}, 403, "host_not_allowed"),
        ({"origin": "http://evil.example"}, 403, "origin_not_allowed"),
        ({"origin": "null"}, 403, "origin_not_allowed"),
        ({"sec-fetch-site": "cross-site"}, 403, "origin_not_allowed"),
        ({"sec-fetch-site": "same-origin"}, 403, "csrf_token_invalid"),
        ({"content-type": "text/plain"}, 415, "unsupported_media_type"),
    ],
)
def test_foreign_pages_and_hosts_are_refused(client, upstream, headers, status, code):
    found = client.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert error_of(found) == (status, code)
    assert not any(name.startswith("access-control") for name in found.headers)
    assert upstream.requests == []


def test_the_service_s_own_page_carries_a_token(served, client):
    own = {"origin": served.url, "sec-fetch-site": "same-origin"}
    token = {"x-csrf-token": served.service.guard.token}
    assert client.post("/v1/chat/completions", json=CHAT, headers=own).status_code == 403
    found = client.post("/v1/chat/completions", json=CHAT, headers=own | token)
    assert found.status_code == 200


@pytest.mark.parametrize(
    ("id", "message"), [(None, "No user is named; expected `id`"), ("a" * 300, "id: expected")]
)
def test_the_field_that_names_a_user_in_an_address_is_named(client, id, message):
    found = client.get("/v1/user", params={} if id is None else {"id": id})
    assert found.status_code == 400
    error = found.json()["error"]
    assert error["param"] == "id"
    assert error["message"].startswith(message)


def test_a_delete_of_another_page_is_refused(client):
    found = client.delete("/v1/user?id=ann", headers={"origin": "http://evil.example"})
    assert error_of(found) == (403, "origin_not_allowed")


@pytest.fixture(scope="module")
def keyed(tmp_path_factory, upstream_server):
    folder = tmp_path_factory.mktemp("keyed")
    path = folder / "keys.yaml"
    keys = {
        "any": add_key(path, "webui"),
        "other": add_key(path, "other"),
        "ann": add_key(path, "laptop", "ann"),
    }
    config = config_of(
        folder, upstream_server, keys=str(path), webui_secret=SECRET,
        stored=Limits(events_per_user=3, users_per_key=2),
    )  # fmt: skip
    with client_of(config) as client:
        yield SimpleNamespace(client=client, keys=keys, folder=folder)


def send(keyed, key, headers=None, **changes):
    given = {"authorization": f"Bearer {keyed.keys.get(key, key)}", **(headers or {})}
    return keyed.client.post("/v1/chat/completions", json={**CHAT, **changes}, headers=given)


def token(secret=SECRET, algorithm="HS256", **changes):
    claims = {"sub": "bob", "iss": "open-webui", "exp": 4_000_000_000, **changes}
    return jwt.encode({k: v for k, v in claims.items() if v is not None}, secret, algorithm)


def test_keys_are_required_where_there_are_any(keyed, upstream):
    assert error_of(keyed.client.post("/v1/chat/completions", json=CHAT)) == (
        401, "invalid_api_key"
    )  # fmt: skip
    assert error_of(send(keyed, "sk-wrong")) == (401, "invalid_api_key")
    assert keyed.client.get("/v1/models").status_code == 401
    assert send(keyed, "any").status_code == 200


def test_keys_are_stored_as_hashes_for_their_owner_alone(keyed):
    path = keyed.folder / "keys.yaml"
    assert not any(key in path.read_text() for key in keyed.keys.values())
    files = [path, *keyed.folder.glob("service.sqlite*")]
    assert {stat.S_IMODE(os.stat(file).st_mode) for file in files} == {0o600}


def test_a_bound_key_is_its_user_and_nobody_else(keyed, upstream):
    found = send(keyed, "ann").json()["jaxalign"]
    assert found["answers"]
    assert send(keyed, "ann", user="ann").status_code == 200
    assert error_of(send(keyed, "ann", user="bob")) == (403, "user_not_allowed")
    # The same name under another key is another user, whose answers are not found.
    body = {"response_id": found["answers"][0], "rating": "up", "user": "ann"}
    given = {"authorization": f"Bearer {keyed.keys['any']}"}
    refused = keyed.client.post("/v1/feedback", json=body, headers=given)
    assert error_of(refused) == (404, "response_not_found")
    export = keyed.client.get("/v1/user/export?id=ann", headers=given)
    assert error_of(export) == (404, "user_not_found")


@pytest.mark.parametrize(
    ("headers", "changes", "expected"),
    [
        ({"x-openwebui-user-id": "bob"}, {"user": "ann"}, (400, "users_disagree")),
        ({"x-openwebui-user-id": ""}, {}, (400, "invalid_user")),
        ({"x-openwebui-user-id": "bob"}, {}, (401, "identity_not_signed")),
        ({"x-openwebui-user-id": "bob"}, {"user": "bob"}, (401, "identity_not_signed")),
        ({}, {"metadata": {"user_id": 3}}, (400, "invalid_user")),
        ({"x-openwebui-user-jwt": token("another secret of many bytes, yes")}, {},
         (401, "invalid_token")),
        ({"x-openwebui-user-jwt": token(exp=1)}, {}, (401, "invalid_token")),
        ({"x-openwebui-user-jwt": token(exp=None)}, {}, (401, "invalid_token")),
        ({"x-openwebui-user-jwt": token(iss="evil")}, {}, (401, "invalid_token")),
        ({"x-openwebui-user-jwt": token(algorithm="HS512", secret=SECRET * 2)}, {},
         (401, "invalid_token")),
        ({"x-openwebui-user-jwt": token(), "x-openwebui-user-id": "ann"}, {},
         (400, "users_disagree")),
    ],
)  # fmt: skip
def test_identities_that_cannot_be_trusted(keyed, upstream, headers, changes, expected):
    assert error_of(send(keyed, "any", headers, **changes)) == expected


def test_rows_of_a_user_and_users_of_a_key_are_limited(keyed, upstream):
    """Beyond the limits, users are answered; nothing is stored, and feedback is refused."""
    given = {"authorization": f"Bearer {keyed.keys['other']}", "x-openwebui-user-jwt": token()}
    for _ in range(3):
        (kept,) = send(keyed, "other", given).json()["jaxalign"]["answers"]
    beyond = [{}, {"model": fake_upstream.MODEL}, {"stream": True}]
    beyond.append({"model": fake_upstream.MODEL, "stream": True})
    for change in beyond:
        found = send(keyed, "other", given, **change)
        assert found.status_code == 200
        assert re.search(r'"answers": ?\[\]', found.text)
    assert len([row for row in rows_of(keyed.folder) if row[2] == "other:bob"]) == 3
    body = {"response_id": kept, "rating": "up"}
    refused = keyed.client.post("/v1/feedback", json=body, headers=given)
    assert error_of(refused) == (429, "insufficient_quota")
    assert send(keyed, "other", user="second").json()["jaxalign"]["answers"]
    assert send(keyed, "other", user="third").json()["jaxalign"]["answers"] == []
    third = {"authorization": given["authorization"]}
    compared = keyed.client.post("/v1/compare", json={**CHAT, "user": "third"}, headers=third)
    assert error_of(compared) == (429, "insufficient_quota")


def test_a_database_that_is_gone_is_no_place_to_learn(tmp_path, upstream_server, upstream):
    with client_of(config_of(tmp_path, upstream_server)) as client:
        body = {**CHAT, "user": "ann"}
        assert client.post("/v1/chat/completions", json=body).status_code == 200
        (tmp_path / "service.sqlite").rename(tmp_path / "moved.sqlite")
        found = client.post("/v1/chat/completions", json=body)
        assert error_of(found) == (503, "storage_unavailable")
        assert error_of(client.get("/readyz")) == (503, "storage_unavailable")


def test_a_newer_schema_is_refused(tmp_path):
    url = f"sqlite:///{tmp_path}/service.sqlite"
    open_database(url).close()
    with contextlib.closing(sqlite3.connect(tmp_path / "service.sqlite")) as database:
        database.execute("INSERT INTO schema_versions VALUES (99)")
        database.commit()
    with pytest.raises(InputError, match="found a database of schema 99"):
        open_database(url)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"host": "0.0.0.0"}, "there is no --keys file"),
        ({"samples": 1}, "expected 2 to 128"),
        ({"retain_days": 0}, "more than 0 days"),
    ],
)
def test_settings_that_cannot_be_used(changes, message):
    with pytest.raises(InputError, match=message):
        ServeConfig(**changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no list of keys"),
        ("- {name: a}", "no sha256"),
        ("- {name: 'a b', sha256: x}", "found the name 'a b'"),
        ("- {name: a, sha256: " + "a" * 64 + "}", "either `user: ID` or `acts_for: any`"),
        ("- {name: a, sha256: " + "a" * 64 + ", user: b, acts_for: any}", "either"),
        ("- {name: local, sha256: " + "a" * 64 + ", user: b}", "requests without keys"),
        ("".join(f"- {{name: {name}, sha256: {'a' * 64}, user: b}}\n" for name in "cd"),
         "two entries have one sha256"),
    ],
)  # fmt: skip
def test_files_of_keys_that_cannot_be_read(tmp_path, text, message):
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match="can be read by others"):
        read_keys(path)
    path.chmod(0o600)
    with pytest.raises(InputError, match=message):
        read_keys(path)


@pytest.mark.parametrize("text", ["- name: 2024-13-45", "[" * 5000])
def test_files_of_keys_that_yaml_makes_no_values_of(tmp_path, text):
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(InputError, match="cannot be read"):
        read_keys(path)


def test_a_key_for_a_user_without_a_name_is_refused(tmp_path):
    for user in ("", "a\0"):
        with pytest.raises(InputError, match="--key-user"):
            add_key(tmp_path / "keys.yaml", "laptop", user)
    assert list(tmp_path.iterdir()) == []


def test_a_write_of_values_that_the_database_refuses_fails_alone(tmp_path):
    """Writes are committed together; PostgreSQL refuses a null character, for example."""
    database = open_database(f"sqlite:///{tmp_path}/service.sqlite")
    going = threading.Event()

    def refused(_):
        raise DataError("INSERT", {}, ValueError("no such text"))

    async def write():
        jobs = [lambda _: going.wait(30), lambda _: 1, refused, lambda _: 2]
        tasks = [asyncio.ensure_future(database.write(job)) for job in jobs]
        await asyncio.sleep(0)
        going.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    _, one, failed, two = asyncio.run(write())
    database.close()
    assert (one, two) == (1, 2)
    assert isinstance(failed, StorageError)
    assert "no such text" in str(failed)


def test_metrics_count_and_name_nobody(served, client, user):
    client.post("/v1/chat/completions", json={**CHAT, "user": user})
    text = client.get("/metrics").text
    assert 'jaxalign_requests_total{method="POST",route="/v1/chat/completions"' in text
    assert user not in text
    assert client.get("/readyz").json() == {"status": "ready"}
