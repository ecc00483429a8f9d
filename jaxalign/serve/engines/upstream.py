"""The engine `openai`: answers come from any server that speaks the OpenAI protocol."""

import asyncio
import base64
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator

import httpx
import numpy as np
from pydantic import ValidationError

from jaxalign.data.torch_files import tensor_bytes
from jaxalign.errors import InputError
from jaxalign.experiments.pplug.ask import embed_with_soft_tokens
from jaxalign.integrations.open_webui import is_address
from jaxalign.models.language import LanguageModel
from jaxalign.serve.api_errors import ApiError
from jaxalign.serve.cancelling import cancelling
from jaxalign.serve.config import EngineConfig
from jaxalign.serve.engines.registry import (
    RETRY_AFTER,
    AnswerEngine,
    Call,
    SoftTokens,
    known_roles,
    register_engine,
    tokens_of,
    too_many,
)
from jaxalign.serve.telemetry import log
from jaxalign.serve.wire import (
    PATHS,
    AnswerMessage,
    ChunkChoice,
    Delta,
    Endpoint,
    Reply,
    ReplyChoice,
    ReplyChunk,
    sum_usage,
)

_RETRIES = 2
_FIRST_PAUSE = 0.1  # seconds, doubled each time: a server that restarts needs moments
_REPEATED = (
    httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout, httpx.PoolTimeout,
)  # fmt: skip
"""Failures after which a request is sent again, as OpenAI's client does: a connection that was not
made, or that the server closed before it answered, as it may close any that was idle."""
_IDLE_SECONDS = 2.0
"""Connections idle for longer are closed here; vLLM and others close them after 5 seconds, and a
request sent at that moment is lost."""


class UpstreamEngine:
    """Sends requests to a server; connections are kept and shared."""

    def __init__(self, config: EngineConfig) -> None:
        if not is_address(config.url):
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
        pool = httpx.Limits(
            max_connections=None, max_keepalive_connections=config.most_waiting,
            keepalive_expiry=_IDLE_SECONDS,
        )  # fmt: skip
        self._client = httpx.AsyncClient(
            base_url=str(config.url).rstrip("/") + "/", headers=keys, timeout=times, limits=pool
        )

    @property
    def model(self) -> str:
        """The name of its model, as `GET /v1/models` lists it."""
        return self._model

    @property
    def policies(self) -> frozenset[str]:
        """The adapters of its model that the server lists, as vLLM does, and other models."""
        return self._policies

    @property
    def personas(self) -> bool:
        """Whether it was given a persona plug, whose embeddings the server takes."""
        return self._config.plug is not None

    async def start(self) -> None:
        """Find the model's name where none was given, and what else the server offers.

        Raises:
            InputError: the server does not respond, lists no such model, or does not take the
                embeddings of a persona.
        """
        await self._find_models()
        if self._config.opened_plug is not None:
            await self._check_embeddings(self._config.opened_plug.plug.model)

    async def _find_models(self) -> None:
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

    async def _check_embeddings(self, model: LanguageModel) -> None:
        """Refuse a server that does not answer to a prompt of the plug's model as embeddings."""
        soft = SoftTokens(np.zeros((0, model.config.width), np.float32))
        try:
            await self._request(Call("text", {"max_tokens": 1}, "Hello", soft=soft), 1)
        except ApiError as error:
            raise InputError(
                f"--plug {self._config.plug}: {self._config.url} refused a prompt as embeddings "
                f"({error.message}), expected a vLLM that serves {model.name}, started with "
                "--enable-prompt-embeds."
            ) from None

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
        draws = [
            asyncio.ensure_future(self._request(_seeded(call, place), 1))
            for place in range(have, call.n)
        ]
        with cancelling(*draws):
            more = await asyncio.gather(*draws)
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
        endpoint, body = await self._sent(call)
        body |= {"n": n} if n > 1 else {}
        response = await self._post(endpoint, body)
        try:
            async with contextlib.aclosing(response):
                content = await response.aread()
        except httpx.HTTPError as error:
            raise _unreachable(error) from error
        if response.status_code != httpx.codes.OK:
            raise _refused(response.status_code, content, response.headers)
        try:
            reply = Reply.model_validate_json(content)
        except ValidationError:
            raise _nonsense() from None
        return reply if endpoint == call.endpoint else _as_chat(reply)

    async def _post(self, endpoint: Endpoint, body: dict[str, object]) -> httpx.Response:
        """The response, whose body is not read yet; requested again where none came. What breaks
        off in its body has been drawn, and is not drawn again.
        """
        request = self._client.build_request("POST", PATHS[endpoint], json=body)
        attempt = 0
        while True:
            try:
                return await self._client.send(request, stream=True)
            except httpx.HTTPError as error:
                if attempt == _RETRIES or not isinstance(error, _REPEATED):
                    raise _unreachable(error) from error
            await asyncio.sleep(_FIRST_PAUSE * 2**attempt)
            attempt += 1

    async def stream(self, call: Call) -> AsyncGenerator[ReplyChunk, None]:
        """Yield one answer piece by piece, as the server sends them.

        Raises:
            ApiError: as `complete`, and where the server breaks off.
        """
        async with self._place():
            endpoint, body = await self._sent(call)
            body |= {"stream": True, "stream_options": {"include_usage": True}}
            response = await self._post(endpoint, body)
            try:
                async with contextlib.aclosing(response):
                    if response.status_code != httpx.codes.OK:
                        content = await response.aread()
                        raise _refused(response.status_code, content, response.headers)
                    finished = False
                    async for chunk in _events(response):
                        finished = finished or any(one.finish_reason for one in chunk.choices)
                        yield chunk if endpoint == call.endpoint else _as_chat_chunk(chunk)
                    if not finished:
                        raise ApiError(
                            502, "The engine broke off in the middle.", "engine_broke_off"
                        )
            except httpx.HTTPError as error:
                raise _unreachable(error) from error

    async def is_ready(self) -> bool:
        """Return whether the server answers; some list no models, with a status such as 404."""
        try:
            found = await self._client.get("models")
            return found.status_code < httpx.codes.INTERNAL_SERVER_ERROR
        except httpx.HTTPError:
            return False

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _sent(self, call: Call) -> tuple[Endpoint, dict[str, object]]:
        """The endpoint and the body of a request; a persona is sent as embeddings of a text."""
        body = {**call.body, "model": self._name(call)}
        opened = self._config.opened_plug
        if call.soft is None or opened is None:
            return call.endpoint, body
        embeds = await asyncio.to_thread(_embedded, opened.plug.model, call, call.soft)
        for name in ("messages", "prompt", "max_completion_tokens"):
            body.pop(name, None)
        if call.endpoint == "chat":  # of texts, servers draw few tokens where none are stated
            body["max_tokens"] = call.body.get("max_completion_tokens") or call.body.get(
                "max_tokens"
            )
        return "text", {**body, "prompt_embeds": embeds}

    def _name(self, call: Call) -> str:
        """The name under which the server offers what answers."""
        return self._model if call.policy is None else call.policy

    @contextlib.asynccontextmanager
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


def _seeded(call: Call, place: int) -> Call:
    """The call that draws one of several answers: of one seed, all would be alike."""
    seed = call.body.get("seed")
    if not isinstance(seed, int):
        return call
    return call._replace(body={**call.body, "seed": seed + place})


async def _events(response: httpx.Response) -> AsyncIterator[ReplyChunk]:
    """Yield the pieces of a stream of server-sent events."""
    async for line in _lines(response):
        if not line.startswith(b"data:"):
            continue
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return
        try:
            yield ReplyChunk.model_validate_json(data)
        except ValidationError:
            raise _nonsense() from None


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the lines of a stream. httpx ends lines at U+2028 and others too, which stand in JSON
    as they are.
    """
    rest = b""
    async for part in response.aiter_bytes():
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            yield line
    if rest:
        yield rest


def _embedded(model: LanguageModel, call: Call, soft: SoftTokens) -> str:
    """The embeddings of a prompt with its soft tokens, as vLLM takes them."""
    ids = tokens_of(model, known_roles(call.prompt), call.endpoint, 1 + len(soft.values))
    values = embed_with_soft_tokens(model, ids, soft.values, soft.start(len(ids)))
    return base64.b64encode(tensor_bytes(values)).decode()


def _as_chat(reply: Reply) -> Reply:
    """A reply to a text as that to a chat."""
    choices = [
        ReplyChoice(
            index=choice.index,
            message=AnswerMessage(role="assistant", content=choice.content()),
            finish_reason=choice.finish_reason,
        )
        for choice in reply.choices
    ]
    return Reply(choices=choices, usage=reply.usage)


def _as_chat_chunk(chunk: ReplyChunk) -> ReplyChunk:
    """A piece of a text as that of a message."""
    choices = [
        ChunkChoice(
            index=choice.index,
            delta=Delta(content=choice.content()),
            finish_reason=choice.finish_reason,
        )
        for choice in chunk.choices
    ]
    return ReplyChunk(choices=choices, usage=chunk.usage)


def _nonsense() -> ApiError:
    return ApiError(502, "The engine's response cannot be understood.", "engine_not_understood")


def _unreachable(error: Exception) -> ApiError:
    log("engine unreachable", logging.WARNING, why=type(error).__name__)
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
