"""The page: what it may load, who gets its token, and the requests that it makes."""

import re

from running import CHAT, client_of, config_of

from jaxalign.serve.identity import add_key


def test_the_page_loads_nothing_from_elsewhere(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    (nonce,) = set(re.findall(r"'nonce-([^']+)'", policy))
    assert page.text.count(f'nonce="{nonce}"') == 2
    assert "{{" not in page.text
    assert not re.findall(r"https?://|\bsrc=|\bhref=|innerHTML", page.text)
    assert client.get("/").headers["content-security-policy"] != policy


def test_the_page_needs_no_secure_context(client):
    """It also comes by http from a name of --allowed-host, where browsers lack some functions."""
    page = client.get("/").text
    assert not re.findall(r"randomUUID\(|crypto\.subtle|navigator\.clipboard", page)


def test_another_page_does_not_get_the_token(client):
    found = client.get("/", headers={"origin": "http://evil.example"})
    assert found.status_code == 403
    assert found.json()["error"]["code"] == "origin_not_allowed"


def test_a_link_on_another_page_opens_the_page_and_a_frame_does_not(client):
    link = {
        "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"
    }  # fmt: skip
    assert client.get("/", headers=link).headers["content-type"].startswith("text/html")
    refused = [
        client.get("/", headers=link | {"sec-fetch-dest": "iframe"}),
        client.get("/", headers=link | {"sec-fetch-mode": "no-cors"}),
        client.get("/", headers=link | {"origin": "http://evil.example"}),
        client.post("/v1/chat/completions", json=CHAT, headers=link),
    ]
    assert [one.status_code for one in refused] == [403] * 4


def test_what_the_page_does(client, served, user):
    """Two answers, a choice, a personal answer, and nothing after forgetting."""
    token = re.search(r'name="csrf" content="([^"]+)"', client.get("/").text)[1]
    browser = {"origin": served.url, "sec-fetch-site": "same-origin", "x-csrf-token": token}
    body = {**CHAT, "user": user}
    compared = client.post("/v1/compare", json=body, headers=browser).json()
    assert compared["pays"] is True
    one, other = compared["answers"]
    said = {"response_id": other["id"], "preferred": one["id"], "user": user}
    assert client.post("/v1/feedback", json=said, headers=browser).json()["used"] is True
    about = client.get(f"/v1/user?id={user}", headers={"sec-fetch-site": "same-origin"}).json()
    assert about["feedback_used"] == 1
    answered = client.post("/v1/chat/completions", json=body, headers=browser).json()
    rating = {"response_id": answered["jaxalign"]["answers"][0], "rating": "up", "user": user}
    assert client.post("/v1/feedback", json=rating, headers=browser).status_code == 200
    json_type = {"content-type": "application/json"}
    gone = client.delete(f"/v1/user?id={user}", headers=browser | json_type)
    assert gone.json()["rows"] == 4
    assert client.get(f"/v1/user?id={user}").json()["rows"] == 0


def test_with_keys_there_is_no_page(tmp_path, upstream_server):
    path = tmp_path / "keys.yaml"
    add_key(path, "webui")
    with client_of(config_of(tmp_path, upstream_server, keys=str(path))) as client:
        assert client.get("/").status_code == 404
