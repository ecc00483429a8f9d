"""Requests made up from the OpenAPI schema: none fails inside, and errors have one shape."""

import hypothesis
import pytest
from hypothesis import HealthCheck, settings

from jaxalign.serve.engines.upstream import UpstreamEngine

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
pytestmark = pytest.mark.slow

EXAMPLES = 60
"""Requests of each kind to each operation: about a minute in all."""
ERROR = {"message", "type", "param", "code"}


def operations(url):
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    return [found.ok() for found in schema.get_all_operations()]


def test_no_request_fails_in_the_service(served, upstream, monkeypatch):
    # An upstream that repeats the largest n would take all of the time.
    request = UpstreamEngine._request
    monkeypatch.setattr(
        UpstreamEngine, "_request", lambda self, call, n: request(self, call, min(n, 4))
    )
    seen = {}
    for operation in operations(served.url):
        for mode in schemathesis.GenerationMode:
            if mode == schemathesis.GenerationMode.NEGATIVE and not operation.body.items:
                continue

            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            @settings(
                max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            def check(case):
                found = case.call()
                assert found.status_code < 500, (case.method, case.path, case.body, found.text)
                seen.setdefault(case.path, set()).add(found.status_code)
                if found.status_code >= 400:
                    assert set(found.json()["error"]) == ERROR

            check()
    assert {"/v1/chat/completions", "/v1/feedback", "/v1/compare", "/v1/user"} <= seen.keys()
    assert 200 in seen["/v1/chat/completions"]
