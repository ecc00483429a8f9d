"""The HTTP face of the service: routes, errors, and what surrounds every request."""

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxalign.integrations.open_webui import RECEIVER
from jaxalign.serve import answering, users
from jaxalign.serve.api_errors import ERROR_SCHEMA, ApiError
from jaxalign.serve.cancelling import while_connected
from jaxalign.serve.comparing import compare as compare_answers
from jaxalign.serve.feedback import receive_feedback
from jaxalign.serve.guards import GuardMiddleware
from jaxalign.serve.learning import compile_feedback
from jaxalign.serve.page import render_page
from jaxalign.serve.service import Service
from jaxalign.serve.store import events
from jaxalign.serve.store.database import StorageError
from jaxalign.serve.store.events import MICROSECONDS, Json, LimitReached
from jaxalign.serve.telemetry import LOGGER, log
from jaxalign.serve.webhooks import receive_webui
from jaxalign.serve.wire import (
    ChatRequest,
    Endpoint,
    FeedbackRequest,
    GenerationRequest,
    TextRequest,
)
from jaxalign.version import __version__

_RETENTION_SECONDS = 3600.0
_METHODS = ("GET", "POST", "DELETE", "HEAD", "OPTIONS")  # any other method counts as "other"
_OF_ERRORS = {"application/json": {"schema": ERROR_SCHEMA}}
_ERRORS: dict[int | str, dict[str, object]] = {
    "4XX": {"description": "The request is refused.", "content": _OF_ERRORS},
    "5XX": {"description": "The service, its database or its engine failed.",
            "content": _OF_ERRORS},
}  # fmt: skip
_DAY_MICROSECONDS = 86_400 * MICROSECONDS


def create_app(service: Service) -> FastAPI:
    """Return the application of a service.

    Args:
        service: open, its engine started; the application closes it when it stops.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        retention = asyncio.create_task(_retain(service))
        compiling = asyncio.create_task(asyncio.to_thread(compile_feedback, service.space))
        try:
            yield
        finally:
            service.stopping = True
            retention.cancel()
            try:
                await compiling
            finally:
                await service.engine.close()
                await asyncio.to_thread(service.database.close)

    app = FastAPI(title="jaxalign", version=__version__, lifespan=lifespan, docs_url=None,
                  redoc_url=None, responses=_ERRORS)  # fmt: skip
    _add_answers(app, service)
    _add_users(app, service)
    _add_operations(app, service)
    _add_errors(app)
    app.add_middleware(GuardMiddleware, guard=service.guard)
    app.add_middleware(_Watch, service=service)
    return app


def _add_answers(app: FastAPI, service: Service) -> None:
    async def generate(endpoint: Endpoint, body: GenerationRequest, request: Request) -> Response:
        prepared = await answering.prepare(service, endpoint, body, request.headers)
        if not body.stream:
            answer = answering.answer_whole(service, prepared)
            found, about = await while_connected(request, answer)
            return JSONResponse(found, headers=about)
        through = answering.streams_through(prepared)
        streamed = answering.stream_through if through else answering.stream_whole
        pieces = streamed(service, prepared)
        # What fails before the first piece still has a status of its own.
        first = await while_connected(request, _next(pieces))
        headers = {"x-request-id": prepared.response_id, "cache-control": "no-cache"}
        return StreamingResponse(
            _guarded(first, pieces), media_type="text/event-stream", headers=headers
        )

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer a chat."""
        return await generate("chat", body, request)

    @app.post("/v1/completions", response_model=None)
    async def text(body: TextRequest, request: Request) -> Response:
        """Complete a text."""
        return await generate("text", body, request)

    @app.get("/v1/models")
    async def models(request: Request) -> Json:
        """List the models: `auto` for personal answers, the engine's own, and its policies."""
        service.gate.key_of(request.headers)
        return {
            "object": "list",
            "data": [
                {"id": name, "object": "model", "created": 0, "owned_by": "jaxalign"}
                for name in answering.model_names(service)
            ],
        }

    @app.post("/v1/compare")
    async def compare(body: ChatRequest, request: Request) -> Json:
        """Return two answers to one prompt, of which the user may choose one."""
        prepared = await answering.prepare(service, "chat", body, request.headers)
        return await while_connected(request, compare_answers(service, prepared))


async def _next(pieces: AsyncGenerator[bytes, None]) -> bytes:
    return await anext(pieces)


async def _joined(first: bytes, pieces: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    """Yield the pieces of a response, which breaks off where one of them fails."""
    async with contextlib.aclosing(pieces):
        yield first
        async for piece in pieces:
            yield piece


async def _guarded(first: bytes, pieces: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    """Yield the pieces of a response; after a failure in the middle, the last one is the error."""
    try:
        async with contextlib.aclosing(pieces):
            yield first
            async for piece in pieces:
                yield piece
    except Exception as error:
        yield answering.event_line(_as_api_error(error).body())


def _add_users(app: FastAPI, service: Service) -> None:
    @app.post("/v1/feedback")
    async def feedback(body: FeedbackRequest, request: Request) -> Json:
        """Take feedback of a user about an answer."""
        caller = service.gate.caller(request.headers, body.users())
        source = request.headers.get("idempotency-key")
        return await receive_feedback(service, caller, body, source)

    @app.post(RECEIVER)
    async def webui(body: dict[str, object] | list[dict[str, object]], request: Request) -> Json:
        """Take rows of open-webui's feedback export: one, or a list of them."""
        rows = body if isinstance(body, list) else [body]
        return await receive_webui(service, request.headers, rows)

    @app.get("/v1/user")
    async def user(request: Request, id: str | None = None) -> Json:
        """Return the belief about a user, and the number of rows that it is based on."""
        return await users.describe(service, service.gate.caller(request.headers, {"id": id}))

    @app.get("/v1/user/export", response_model=None)
    async def export(request: Request, id: str | None = None) -> Response:
        """Return all that is stored about a user."""
        pieces = users.export(service, service.gate.caller(request.headers, {"id": id}))
        first = await anext(pieces)
        return StreamingResponse(_joined(first, pieces), media_type="application/json")

    @app.delete("/v1/user")
    async def delete(request: Request, id: str | None = None) -> Json:
        """Delete all rows of a user."""
        return await users.forget(service, service.gate.caller(request.headers, {"id": id}))


def _add_operations(app: FastAPI, service: Service) -> None:
    if not service.guard.has_keys:

        @app.get("/", response_model=None, include_in_schema=False)
        async def page() -> Response:
            """Return the page, which is served on loopback without keys alone."""
            return render_page(service.guard.token)

    @app.get("/healthz")
    async def health() -> Json:
        """Return that the process runs."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def ready() -> Json:
        """Return whether requests can be answered now."""
        if service.stopping:
            raise ApiError(503, "The service is being shut down.", "stopping")
        await service.database.read(lambda connection: events.user_row(connection, ""))
        if not await service.engine.is_ready():
            raise ApiError(503, "The engine is not ready.", "engine_not_ready")
        return {"status": "ready"}

    @app.get("/metrics", response_model=None)
    async def metrics() -> Response:
        """Return the counters in the format of Prometheus."""
        return Response(service.telemetry.text(), media_type=CONTENT_TYPE_LATEST)


def _add_errors(app: FastAPI) -> None:
    async def refuse(_: Request, error: Exception) -> Response:
        found = _as_api_error(error)
        return JSONResponse(found.body(), found.status, found.headers)

    for kind in (ApiError, StorageError, LimitReached, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, refuse)


def _as_api_error(error: Exception) -> ApiError:
    """Return an exception as the client sees it; of an unexpected one, it sees no message."""
    match error:
        case ApiError():
            return error
        case StorageError():
            log("storage failed", logging.ERROR, why=str(error))
            return ApiError(
                503,
                f"The database failed: {error}; try again later.",
                "storage_unavailable",
                headers={"Retry-After": "1"},
            )
        case LimitReached():
            return ApiError(429, f"Nothing was stored: {error}.", "insufficient_quota")
        case RequestValidationError():
            return _invalid(error)
        case HTTPException():
            return ApiError(error.status_code, f"{error.detail}.", None, None, error.headers)
    LOGGER.error("unexpected failure", exc_info=error)
    return ApiError(500, "The service failed; its log says where.", "internal_error")


def _invalid(error: RequestValidationError) -> ApiError:
    """The first invalid field of a body, in one sentence."""
    found = error.errors()[0]
    where = [str(part) for part in found["loc"] if part not in ("body", "query")]
    if found["type"] == "json_invalid":
        return ApiError(400, "The body is no JSON; expected a JSON object.", "invalid_json")
    place = ".".join(where)
    message = str(found["msg"]).removeprefix("Input should be ")
    return ApiError(
        400,
        f"{place or 'The body'}: expected {message[:1].lower()}{message[1:]}."
        if found["type"] != "missing"
        else f"{place or 'The body'} is missing.",
        "invalid_value",
        place or None,
    )


async def _retain(service: Service) -> None:
    """Delete rows that are older than they may be, now and every hour."""
    days = service.config.retain_days
    while days is not None:
        before = events.now() - round(days * _DAY_MICROSECONDS)
        try:
            count = await service.database.write(functools.partial(events.expire, before=before))
            if count:
                await service.database.compact()
                log("rows expired", rows=count)
        except Exception as error:  # tried again in an hour, whatever it is
            log("rows not expired", logging.WARNING, why=str(error) or type(error).__name__)
        await asyncio.sleep(_RETENTION_SECONDS)


class _Watch:
    """Counts, times and logs every request, and answers what nothing else has caught."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        telemetry = self.service.telemetry
        began: float | None = None

        async def note(message: Message) -> None:
            nonlocal status, began
            if message["type"] == "http.response.start":
                status, began = message["status"], time.perf_counter() - started
            await send(message)

        telemetry.in_flight.inc()
        try:
            await self._answer(scope, receive, note, lambda: began is not None)
        finally:
            telemetry.in_flight.dec()
            route = getattr(scope.get("route"), "path", "unmatched")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            telemetry.requests.labels(route, method, str(status)).inc()
            telemetry.seconds.labels(route).observe(began or 0.0)
            took = round(1000 * (time.perf_counter() - started), 2)
            log("request", route=route, method=method, status=status, ms=took)

    async def _answer(
        self,
        scope: Scope,
        receive: Receive,
        send: Callable[[Message], Awaitable[None]],
        has_begun: Callable[[], bool],
    ) -> None:
        try:
            await self.app(scope, receive, send)
        except Exception as error:
            found = _as_api_error(error)
            if not has_begun():
                await JSONResponse(found.body(), found.status)(scope, receive, send)
