"""Requests made up from the OpenAPI schema: none fails inside, and errors have one shape."""

import fake_upstream
import hypothesis
import pytest
from hypothesis import HealthCheck, settings
from running import CHAT

from jaxalign.serve.engines.upstream import UpstreamEngine

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
pytestmark = pytest.mark.slow

EXAMPLES = 40
"""Requests of each kind to each operation: about a minute in all."""
ERROR = {"message", "type", "param", "code"}


def operations(url):
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    return [found.ok() for found in schema.get_all_operations()]


def known(case, answers):
    """The request with a model, a user and answers that there are, so that it is not refused."""
    body = case.body
    if isinstance(body, dict):
        for name, value in (
            ("model", "auto" if len(str(body)) % 2 else fake_upstream.MODEL),
            ("response_id", answers[0]), ("preferred", answers[1]), ("user", "ann"),
            ("safety_identifier", "ann"),
        ):  # fmt: skip
            if isinstance(body.get(name), str):
                body[name] = value
    if isinstance(case.query, dict) and isinstance(case.query.get("id"), str):
        case.query["id"] = "ann"
    return case


def test_no_request_fails_in_the_service(served, client, upstream, monkeypatch):
    # An upstream that repeats the largest n would take all of the time.
    request = UpstreamEngine._request
    monkeypatch.setattr(
        UpstreamEngine, "_request", lambda self, call, n: request(self, call, min(n, 4))
    )
    seen = {}
    asked = client.post("/v1/chat/completions", json={**CHAT, "user": "ann", "n": 2}).json()
    answers = asked["jaxalign"]["answers"]
    # The user is deleted last, and thus known to all other requests.
    for operation in sorted(operations(served.url), key=lambda one: one.method == "delete"):
        for mode in schemathesis.GenerationMode:
            if mode == schemathesis.GenerationMode.NEGATIVE and not operation.body.items:
                continue

            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            @settings(
                max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            def check(case):
                found = known(case, answers).call()
                assert found.status_code < 500, (case.method, case.path, case.body, found.text)
                seen.setdefault(case.path, set()).add(found.status_code)
                if found.status_code >= 400:
                    assert set(found.json()["error"]) == ERROR

            check()
    answered = {"/v1/chat/completions", "/v1/completions", "/v1/feedback", "/v1/compare"}
    assert not {path for path in answered if 200 not in seen[path]}
