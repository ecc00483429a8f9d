"""What is refused before a request is read: foreign hosts and pages, other bodies than JSON.

A browser lets any page send requests to 127.0.0.1. They are distinguished from those of programs
by Host, Origin and Sec-Fetch-Site, and those of the service's own page carry a token.
"""

import hmac
import json
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxalign.serve.api_errors import ApiError
from jaxalign.serve.config import LOOPBACK

TOKEN = "x-csrf-token"
_WITH_BODY = ("POST", "PUT", "PATCH", "DELETE")
_HOST = re.compile(r"(\[[0-9a-fA-F:]+\]|[^:]+)(?::\d{1,5})?")
_UNSOUND = re.compile(rb"\\u[dD][89a-fA-F]|NaN|Infinity|[eE]\+?\d{3}|\d{200}")
"""Where halves of characters, and numbers beyond those of float64, may stand."""
_MOST_NESTED = 100
"""Objects and lists within each other; what copies requests ends at 255."""


@dataclass(frozen=True)
class Guard:
    """What requests must look like.

    Attributes:
        hosts: names that requests may come to; empty for any.
        has_keys: whether requests carry keys, which no foreign page knows.
        body_bytes: most of a body.
        token: that requests of the service's own page carry.
    """

    hosts: frozenset[str]
    has_keys: bool
    body_bytes: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    def check(self, method: str, headers: Mapping[str, str]) -> None:
        """Refuse a request by its headers.

        Raises:
            ApiError: a foreign host or page, or a body that is no JSON.
        """
        host = headers.get("host", "")
        match = _HOST.fullmatch(host)
        name = match[1].strip("[]").lower() if match else ""
        if self.hosts and name not in self.hosts:
            raise ApiError(
                403,
                f"The request came to the host {host!r:.80}, which is not one of this service; "
                "expected one of its own names (--allowed-host adds one).",
                "host_not_allowed",
            )
        self._check_origin(method, headers, host)
        if method not in _WITH_BODY:
            return
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        if kind != "application/json" and (has_body or method != "DELETE"):
            raise ApiError(
                415,
                f"The content type is {kind!r:.80}; expected application/json.",
                "unsupported_media_type",
            )

    def _check_origin(self, method: str, headers: Mapping[str, str], host: str) -> None:
        origin = headers.get("origin")
        foreign = origin is not None and origin not in (f"http://{host}", f"https://{host}")
        elsewhere = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if foreign or (elsewhere and not _follows_link(method, headers)):
            raise ApiError(
                403,
                "The request comes from a page of another origin, which this service does not "
                "answer; send it from a program, or from the service's own page.",
                "origin_not_allowed",
            )
        by_page = origin is not None or "sec-fetch-site" in headers
        given = headers.get(TOKEN, "")
        if (
            by_page
            and not self.has_keys
            and method in _WITH_BODY
            and not hmac.compare_digest(given.encode(), self.token.encode())
        ):
            raise ApiError(
                403,
                "The request comes from a browser without the token of the service's page; load "
                "the page again.",
                "csrf_token_invalid",
            )


def _follows_link(method: str, headers: Mapping[str, str]) -> bool:
    """Whether a link opens the service in a tab of its own, which the other page cannot read."""
    mode, target = headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")
    return method == "GET" and mode == "navigate" and target == "document"


def allowed_hosts(host: str, more: tuple[str, ...], has_keys: bool) -> frozenset[str]:
    """Return the names that requests may come to; none, for any, where keys protect an address.

    Args:
        host: address that the service is bound to.
        more: names that were added.
        has_keys: whether requests carry keys.

    Example:
        >>> from jaxalign.serve.guards import allowed_hosts
        >>> sorted(allowed_hosts("127.0.0.1", ("chat.local",), False))
        ['127.0.0.1', '::1', 'chat.local', 'localhost']
        >>> allowed_hosts("0.0.0.0", (), True)
        frozenset()
    """
    if has_keys and not more and host not in LOOPBACK:
        return frozenset()
    return frozenset(name.lower() for name in (*LOOPBACK, host, *more))


class GuardMiddleware:
    """Checks headers, reads the body up to its limit, and hands it on."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self.app, self.guard = app, guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self.guard.check(scope["method"], Headers(scope=scope))
            replay = await self._read(scope, receive) if scope["method"] in _WITH_BODY else receive
        except ApiError as error:
            refusal = JSONResponse(error.body(), error.status, error.headers)
            await refusal(scope, receive, send)
            return
        await self.app(scope, replay, send)

    async def _read(self, scope: Scope, receive: Receive) -> Receive:
        """Read the body, and return what gives it to the application."""
        most = self.guard.body_bytes
        stated = Headers(scope=scope).get("content-length", "0")
        if stated.isdecimal() and int(stated) > most:
            _refuse_size(most)
        parts, size, going = [], 0, True
        while going:
            message = await receive()
            if message["type"] != "http.request":
                break
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > most:
                _refuse_size(most)
            going = message.get("more_body", False)
        body = b"".join(parts)
        _check_json(body)
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        return replay


def _refuse_size(most: int) -> NoReturn:
    raise ApiError(
        413, f"The body is larger than {most} bytes, the most allowed.", "request_too_large"
    )


def _check_json(body: bytes) -> None:
    """Refuse what Python reads as JSON and cannot be kept or sent on as JSON in UTF-8."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _no_json("The body is no UTF-8; expected JSON in UTF-8.") from None
    if "\0" in text:  # UTF-16 and UTF-32, which Python recognises by it
        raise _no_json("The body holds a null character; expected JSON in UTF-8.")
    nested = body.count(b"{") + body.count(b"[") > _MOST_NESTED
    if not nested and not _UNSOUND.search(body):
        return
    try:
        found = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise _no_json("The body holds half of a surrogate pair, which is no text.") from None
    except (ValueError, RecursionError):
        return  # every other mistake is refused where the body is parsed
    if nested and _depth(found) > _MOST_NESTED:
        raise _no_json(
            f"The body holds objects and lists in more than {_MOST_NESTED} others; expected fewer."
        )


def _no_json(message: str) -> ApiError:
    return ApiError(400, message, "invalid_json")


def _refuse_constant(name: str) -> NoReturn:
    raise _no_json(f"The body holds {name}, which is no JSON number.")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise _no_json(f"The body holds the number {digits:.40}, which is too large.")
    return number


def _depth(value: object) -> int:
    """Objects and lists within each other."""
    depth, level = 0, [value]
    while level := [one for one in level if isinstance(one, dict | list)]:
        depth += 1
        level = [part for one in level for part in (one.values() if isinstance(one, dict) else one)]
    return depth
