"""The engine `openai`: answers come from any server that speaks the OpenAI protocol."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import httpx
from pydantic import ValidationError

from jaxalign.errors import InputError
from jaxalign.serve.api_errors import ApiError
from jaxalign.serve.config import EngineConfig
from jaxalign.serve.engines.registry import (
    RETRY_AFTER,
    AnswerEngine,
    Call,
    register_engine,
    too_many,
)
from jaxalign.serve.wire import PATHS, Reply, ReplyChunk, sum_usage

_RETRIES = 2
_FIRST_PAUSE = 0.1  # seconds, doubled each time: a server that restarts needs moments
_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""Failures before anything was sent: only then does a repeated request cost nothing twice."""


class UpstreamEngine:
    """Sends requests to a server; connections are kept and shared."""

    def __init__(self, config: EngineConfig) -> None:
        if not config.url or not config.url.startswith(("http://", "https://")):
            raise InputError(
                f"--engine.url: found {config.url!r}, expected the address of an OpenAI-compatible "
                "server, such as http://127.0.0.1:8000/v1."
            )
        self._config = config
        self._model = config.model or ""
        self._policies: frozenset[str] = frozenset()
        self._waiting = 0
        self._ignores_n = False
        keys = {"Authorization": f"Bearer {config.key}"} if config.key else {}
        times = httpx.Timeout(config.read_seconds, connect=config.connect_seconds)
        pool = httpx.Limits(max_connections=None, max_keepalive_connections=config.most_waiting)
        self._client = httpx.AsyncClient(
            base_url=config.url.rstrip("/") + "/", headers=keys, timeout=times, limits=pool
        )

    @property
    def model(self) -> str:
        """The name of its model, as `GET /v1/models` lists it."""
        return self._model

    @property
    def policies(self) -> frozenset[str]:
        """The adapters of its model that the server lists, as vLLM does, and other models."""
        return self._policies

    async def start(self) -> None:
        """Find the model's name where none was given, and what else the server offers.

        Raises:
            InputError: the server cannot be reached, or lists no such model.
        """
        try:
            response = await self._client.get("models")
            response.raise_for_status()
            bases = {str(entry["id"]): entry.get("parent") for entry in response.json()["data"]}
        except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
            if self._model and not self._config.has_policies:
                return  # some servers list nothing, and one that is down may come back
            remedy = "" if self._config.has_policies else ", or name its model with --engine.model"
            raise InputError(
                f"--engine.url {self._config.url}: its models cannot be listed "
                f"({_message(error)}); start the server{remedy}."
            ) from None
        if not self._model and not bases:
            raise InputError(
                f"--engine.url {self._config.url} lists no models; name one with --engine.model."
            )
        self._model = self._model or next(iter(bases))
        self._policies = frozenset(
            name for name, base in bases.items() if base is None or base == self._model
        )

    async def complete(self, call: Call) -> Reply:
        """Return n answers; from a server that returns fewer, the others are requested one by one.

        Raises:
            ApiError: too many requests wait, or the server is down, slow, refuses or is not
                understood.
        """
        async with self._place():
            if call.n == 1 or self._ignores_n:
                return await self._several(call, [])
            first = await self._request(call, call.n)
            if len(first.choices) >= call.n:
                return first
            self._ignores_n = True
            return await self._several(call, [first])

    async def _several(self, call: Call, known: list[Reply]) -> Reply:
        have = sum(len(reply.choices) for reply in known)
        more = await asyncio.gather(*(self._request(call, 1) for _ in range(call.n - have)))
        replies = [*known, *more]
        choices = [choice for reply in replies for choice in reply.choices]
        numbered = [
            choice.model_copy(update={"index": number}) for number, choice in enumerate(choices)
        ]
        usage = sum_usage([reply.usage for reply in replies])
        if len(replies) == 1:
            return replies[0]
        return replies[0].model_copy(update={"choices": numbered, "usage": usage})

    async def _request(self, call: Call, n: int) -> Reply:
        body = {**call.body, "model": self._name(call), **({"n": n} if n > 1 else {})}
        for attempt in range(_RETRIES + 1):
            try:
                response = await self._client.post(PATHS[call.endpoint], json=body)
                break
            except _UNSENT as error:
                if attempt == _RETRIES:
                    raise _unreachable(error) from error
                await asyncio.sleep(_FIRST_PAUSE * 2**attempt)
            except httpx.HTTPError as error:
                raise _unreachable(error) from error
        if response.status_code != httpx.codes.OK:
            raise _refused(response.status_code, response.content, response.headers)
        try:
            return Reply.model_validate_json(response.content)
        except ValidationError:
            raise _nonsense() from None

    async def stream(self, call: Call) -> AsyncGenerator[ReplyChunk, None]:
        """Yield one answer piece by piece, as the server sends them.

        Raises:
            ApiError: as `complete`, and where the server breaks off.
        """
        options = {"include_usage": True}
        body = {**call.body, "model": self._name(call), "stream": True, "stream_options": options}
        async with self._place():
            try:
                path = PATHS[call.endpoint]
                async with self._client.stream("POST", path, json=body) as response:
                    if response.status_code != httpx.codes.OK:
                        content = await response.aread()
                        raise _refused(response.status_code, content, response.headers)
                    finished = False
                    async for chunk in _events(response):
                        finished = finished or any(one.finish_reason for one in chunk.choices)
                        yield chunk
                    if not finished:
                        raise ApiError(
                            502, "The engine broke off in the middle.", "engine_broke_off"
                        )
            except httpx.HTTPError as error:
                raise _unreachable(error) from error

    async def is_ready(self) -> bool:
        """Return whether the server answers."""
        try:
            return (await self._client.get("models")).status_code < httpx.codes.BAD_REQUEST
        except httpx.HTTPError:
            return False

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def _name(self, call: Call) -> str:
        """The name under which the server offers what answers."""
        return self._model if call.policy is None else call.policy

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        if self._waiting >= self._config.most_waiting:
            raise too_many(self._config.most_waiting)
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1


@register_engine("openai")
def make_upstream(config: EngineConfig) -> AnswerEngine:
    """Return the engine of a server."""
    return UpstreamEngine(config)


async def _events(response: httpx.Response) -> AsyncIterator[ReplyChunk]:
    """Yield the pieces of a stream of server-sent events."""
    async for line in response.aiter_lines():
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        try:
            yield ReplyChunk.model_validate_json(data)
        except ValidationError:
            raise _nonsense() from None


def _nonsense() -> ApiError:
    return ApiError(502, "The engine's response cannot be understood.", "engine_not_understood")


def _unreachable(error: Exception) -> ApiError:
    if isinstance(error, httpx.TimeoutException):
        return ApiError(504, "The engine did not answer in time.", "engine_timeout")
    return ApiError(502, "The engine cannot be reached.", "engine_unreachable")


def _refused(status: int, content: bytes, headers: httpx.Headers) -> ApiError:
    """Return a refusal as the client sees it: its own mistakes unchanged, all else as a failure."""
    try:
        detail = json.loads(content)["error"]
        message = str(detail["message"])
        code, param = detail.get("code"), detail.get("param")
    except (ValueError, KeyError, TypeError, AttributeError):
        message, code, param = f"The engine answered with status {status}.", None, None
    code, param = (part if isinstance(part, str) else None for part in (code, param))
    if status == httpx.codes.TOO_MANY_REQUESTS:
        pause = headers.get("retry-after", RETRY_AFTER)
        return ApiError(429, message, code or "engine_busy", headers={"Retry-After": pause})
    if status in (400, 404, 409, 413, 415, 422):
        return ApiError(400 if status == httpx.codes.UNPROCESSABLE_ENTITY else status, message,
                        code, param)  # fmt: skip
    # What the server says of its keys and its inside is the operator's, and is not passed on.
    return ApiError(
        503 if status == httpx.codes.SERVICE_UNAVAILABLE else 502,
        f"The engine failed with status {status}.",
        "engine_failed",
    )


def _message(error: Exception) -> str:
    return str(error).strip() or type(error).__name__
