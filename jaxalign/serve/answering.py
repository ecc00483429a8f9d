"""One request for answers: its user, its strategy, what is stored and what is sent."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxalign.integrations.open_webui import CHAT_HEADER, MESSAGE_HEADER, answer_key
from jaxalign.models.chat import Chat
from jaxalign.personalize.strategies.base import PersonalAnswer
from jaxalign.serve.api_errors import ApiError
from jaxalign.serve.engines import Call
from jaxalign.serve.identity import WEBUI_TOKEN, WEBUI_USER, Caller
from jaxalign.serve.learning import UserTaste
from jaxalign.serve.personas import Persona
from jaxalign.serve.service import Service
from jaxalign.serve.store import events
from jaxalign.serve.store.events import Event, Json, LimitReached
from jaxalign.serve.strategies import CHOOSE_FIRST, STRATEGIES, ServedReply, StrategyInputs
from jaxalign.serve.tasks import is_task, why_plain
from jaxalign.serve.telemetry import log
from jaxalign.serve.wire import (
    CHUNKS,
    PREFIXES,
    WHOLE,
    ChatRequest,
    Endpoint,
    GenerationRequest,
    Reply,
    ReplyChoice,
    TextRequest,
    TokenUsage,
)

AUTO = "auto"
KEEP_ALIVE_SECONDS = 5.0
_DROPPED = ("model", "stream", "stream_options", "n", "user", "safety_identifier", "jaxalign")
"""Fields that no engine gets: names of the user, and what this service does itself."""


@dataclass(frozen=True, eq=False)
class PreparedRequest:
    """A request with all that its answer depends on.

    Attributes:
        endpoint: chat or text.
        request: its body.
        caller: its key and user.
        taste: the belief about the user.
        strategy: name of the strategy.
        why: why the strategy is plain, None where it is not, or was requested.
        policy: the policy that the request names as its model; None for none.
        stored: whether the answers are kept, so that feedback about them can be learned from.
        id: of the response, without its prefix.
        persona: of the user, where it may be used; None where not.
        join: what a rating of open-webui is joined by: ids of chat and message; empty for question
            and answer; None for requests of other clients.
    """

    endpoint: Endpoint
    request: GenerationRequest
    caller: Caller
    taste: UserTaste
    strategy: str
    why: str | None
    policy: str | None
    stored: bool
    id: str
    persona: Persona | None = None
    join: tuple[str, ...] | None = None

    @property
    def prompt(self) -> str | Chat:
        """The prompt as rewards read it."""
        return _prompt(self.request)

    @property
    def response_id(self) -> str:
        """The id of the response."""
        return PREFIXES[self.endpoint] + self.id


async def prepare(
    service: Service, endpoint: Endpoint, request: GenerationRequest, headers: Mapping[str, str]
) -> PreparedRequest:
    """Return a request with its user and strategy.

    Raises:
        ApiError: an unknown model, a prompt that is too long, or a caller who is refused.
    """
    caller = service.gate.caller(headers, request.users())
    known = model_names(service)
    if request.model not in known:
        listed = " or ".join(repr(name) for name in known[1:])
        raise ApiError(
            404,
            f"There is no model {request.model!r}; expected {AUTO!r} for personal answers, or "
            f"{listed}.",
            "model_not_found",
            "model",
        )
    size = _characters(request)
    if size > service.config.limits.prompt_characters:
        raise ApiError(
            400,
            f"The prompt has {size} characters; expected {service.config.limits.prompt_characters} "
            "or fewer.",
            "prompt_too_long",
            "prompt" if endpoint == "text" else "messages",
        )
    task = isinstance(request, ChatRequest) and is_task(request.messages)
    configured = service.config.strategy
    others = service.policies is not None or service.personas is not None
    by_policy = others and configured != "best_of"
    why = why_plain(request, by_policy) if request.model == AUTO else None
    stored = caller.user is not None and not task and service.config.store != "none"
    taste = await service.taste(caller.user)
    personal, persona = request.model == AUTO and why is None, None
    strategy = configured if personal else "plain"
    if personal:
        persona = await service.persona(caller.user, _prompt(request))
    if strategy == AUTO and taste.left_alone:
        # What the rewards say of the user helps nobody; a persona has been judged by itself.
        why = None if persona else taste.left_alone
        strategy = "persona" if persona else "plain"
    policy = request.model if request.model in known[2:] else None
    return PreparedRequest(
        endpoint, request, caller, taste, strategy, why, policy, stored, events.new_id(), persona,
        _join(headers),
    )  # fmt: skip


def _join(headers: Mapping[str, str]) -> tuple[str, ...] | None:
    ids = tuple(headers.get(name, "") for name in (CHAT_HEADER, MESSAGE_HEADER))
    if all(ids):
        return ids
    return () if {CHAT_HEADER, WEBUI_USER, WEBUI_TOKEN} & set(headers) else None


def model_names(service: Service) -> tuple[str, ...]:
    """Return the models that requests may name: `auto`, the engine's own, and the policies."""
    offered = () if service.policies is None else service.policies.names[1:]
    return (AUTO, service.engine.model, *offered)


def call_of(prepared: PreparedRequest, n: int | None = None) -> Call:
    """Return a request as an engine takes it."""
    body = prepared.request.model_dump(exclude_unset=True, exclude=set(_DROPPED))
    metadata = body.get("metadata")
    if isinstance(metadata, dict):
        body["metadata"] = {key: one for key, one in metadata.items() if key != "user_id"}
    n = n or prepared.request.n or 1
    return Call(prepared.endpoint, body, prepared.prompt, n, prepared.policy)


def strategy_inputs(service: Service, prepared: PreparedRequest) -> StrategyInputs:
    """Return what the strategy of a request works with."""

    async def read(texts: list[str]) -> np.ndarray:
        return await service.read_rewards(prepared.prompt, texts)

    return StrategyInputs(
        prepared.strategy,
        service.engine,
        call_of(prepared),
        prepared.prompt,
        prepared.taste.utility,
        read,
        service.config.rule,
        service.config.samples,
        lambda values: service.space.left_alone_on(prepared.taste.utility, values),
        service.policies,
        prepared.persona,
    )


async def serve_reply(service: Service, prepared: PreparedRequest) -> ServedReply:
    """Return the answers to serve.

    Raises:
        ApiError: of the engine.
    """
    served = await STRATEGIES[prepared.strategy](strategy_inputs(service, prepared))
    usage = served.reply.usage
    service.telemetry.tokens.inc(usage.completion_tokens if usage else 0)
    service.telemetry.answers.labels(served.answer.strategy).inc()
    return served


async def store_answers(
    service: Service,
    prepared: PreparedRequest,
    texts: Sequence[str],
    answer: PersonalAnswer,
    features: np.ndarray | None = None,
) -> list[str]:
    """Store the answers that a user was given, with their base rewards.

    Args:
        service: where they are stored.
        prepared: the request.
        texts: of the answers.
        answer: the first of them, with the reason.
        features: [N, K], computed here where they are not known.

    Returns:
        The ids by which feedback names the answers; none where they are not to be stored.

    Raises:
        StorageError, LimitReached: nothing was stored.
        ApiError: nothing was stored, because the rewards cannot be computed for the prompt.
    """
    if not prepared.stored or prepared.caller.user is None:
        return []
    values = await service.read_rewards(prepared.prompt, texts) if features is None else features
    keep_texts = service.config.store == "texts"
    answers = [
        {"features": [float(x) for x in row], **({"text": text} if keep_texts else {})}
        for text, row in zip(texts, values, strict=True)
    ]
    event = Event(
        prepared.id,
        events.now(),
        prepared.caller.user,
        "answers",
        prepared.id,
        {"strategy": answer.strategy, "probability": answer.probability},
        service.space.ids.digest,
        json.dumps(prepared.prompt, ensure_ascii=False) if keep_texts else None,
        json.dumps(answers, ensure_ascii=False),
        _source(prepared, texts[0]) if keep_texts or prepared.join else None,
    )
    await service.keep(prepared.caller, event)
    return [f"{prepared.response_id}.{number}" for number in range(len(texts))]


def _source(prepared: PreparedRequest, answer: str) -> str | None:
    """By what a rating of open-webui finds an answer; of texts only where these are stored."""
    if prepared.join or prepared.join is None:
        return answer_key(*prepared.join) if prepared.join else None
    turns = prepared.prompt
    question = turns if isinstance(turns, str) else turns[-1]["content"]
    return answer_key(question, answer)


async def _ids_if_stored(storing: Awaitable[list[str]]) -> list[str]:
    """The ids of stored answers, or none: a user at the limit of rows is answered too, and so is a
    chat that rewards cannot be read of.
    """
    try:
        return await storing
    except (LimitReached, ApiError) as error:
        log("answers not stored", logging.WARNING, why=str(error))
        return []


def explain(
    prepared: PreparedRequest, answer: PersonalAnswer, ids: Sequence[str], why: str | None = None
) -> Json:
    """Return the `jaxalign` field of a response: what was chosen, how sure it is, and why.

    Args:
        prepared: the request.
        answer: the first answer that is served.
        ids: of the answers that are stored.
        why: why the plain answer was served whatever the gains, None where it was not.
    """
    return {
        "strategy": answer.strategy,
        "choice": answer.choice,
        "probability": answer.probability,
        "gain": answer.gain,
        "gain_sd": answer.sd,
        "reason": _reason(prepared, answer, why or prepared.why),
        "feedback_used": prepared.taste.used,
        "answers": list(ids),
    }


def _reason(prepared: PreparedRequest, answer: PersonalAnswer, why: str | None) -> str:
    """Why an answer is served, in a sentence for the user."""
    if why:
        return f"the plain answer: {why}"
    if prepared.strategy == "plain":
        if prepared.request.model == AUTO:
            return "the plain answer: the service runs with --strategy plain"
        if prepared.policy is None:
            return "the plain answer: the request names the engine's own model"
    if answer.strategy == "persona":
        return answer.choice
    if answer.probability is not None:
        words = f"{answer.choice}, better than the plain answer with probability "
        words += f"{answer.probability:.2f}"
    else:
        found = "likely enough" if answer.held_back else "expected"
        words = f"the plain answer: no other one is {found} to be better"
    if prepared.taste.used:
        return words
    who = "no user is named" if prepared.caller.user is None else "no feedback is known yet"
    return f"{words}; {who}, so the taste of the whole population decides"


def headers_of(prepared: PreparedRequest, about: Json) -> dict[str, str]:
    """Return the `x-jaxalign-*` headers of a response."""
    headers = {"x-jaxalign-strategy": str(about["strategy"]), "x-request-id": prepared.response_id}
    if about["probability"] is not None:
        headers["x-jaxalign-probability"] = f"{about['probability']:.4f}"
    return headers


def whole_body(prepared: PreparedRequest, reply: Reply, about: Json) -> Json:
    """Return the body of a response that is not streamed."""
    found = reply.model_dump(exclude_unset=True)
    stamp = found.get("created")
    return {
        **found,
        "id": prepared.response_id,
        "object": WHOLE[prepared.endpoint],
        "created": stamp if isinstance(stamp, int) else int(time.time()),
        "model": prepared.request.model,
        "jaxalign": about,
    }


def event_line(body: object) -> bytes:
    """Return a server-sent event, in ASCII: many clients end lines at U+2028 and others too."""
    return b"data: " + json.dumps(body).encode() + b"\n\n"


class Streaming:
    """Writes the pieces of one response."""

    def __init__(self, prepared: PreparedRequest) -> None:
        self.prepared = prepared
        self.created = int(time.time())

    def chunk(self, choices: list[Json], **more: object) -> bytes:
        """Return one piece as an event."""
        return event_line(
            {
                "id": self.prepared.response_id,
                "object": CHUNKS[self.prepared.endpoint],
                "created": self.created,
                "model": self.prepared.request.model,
                "choices": choices,
                **more,
            }
        )

    def piece(self, index: int, text: str, finish: str | None = None) -> Json:
        """Return a choice of a piece."""
        content: Json = {"delta": {"content": text} if text else {}}
        if self.prepared.endpoint == "text":
            content = {"text": text}
        return {"index": index, **content, "logprobs": None, "finish_reason": finish}

    def whole(self, index: int, choice: ReplyChoice) -> Json:
        """Return all of an answer as one choice of a piece."""
        found = self.piece(index, choice.content())
        found["logprobs"] = (choice.model_extra or {}).get("logprobs")
        if self.prepared.endpoint == "text":
            return found
        message = {} if choice.message is None else choice.message.model_dump(exclude_unset=True)
        calls = message.get("tool_calls")
        if isinstance(calls, list):  # in a stream, each says by a number which one it is
            message["tool_calls"] = [{"index": place, **one} for place, one in enumerate(calls)]
        return {**found, "delta": {"role": "assistant", **message}}

    def usage(self, usage: TokenUsage | None) -> list[bytes]:
        """Return the piece that states the tokens, if the client wants it."""
        options = self.prepared.request.stream_options
        if options is None or not options.include_usage:
            return []
        found = (usage or TokenUsage()).model_dump()
        return [self.chunk([], usage=found)]


async def stream_whole(service: Service, prepared: PreparedRequest) -> AsyncGenerator[bytes, None]:
    """Yield a response whose answers are chosen before the first piece can be sent."""
    wire = Streaming(prepared)
    task = asyncio.ensure_future(_serve_and_store(service, prepared))
    try:
        while not (await asyncio.wait({task}, timeout=KEEP_ALIVE_SECONDS))[0]:
            yield b": answers are being drawn\n\n"
        served, ids = task.result()
    finally:
        task.cancel()
    choices = served.reply.choices
    about = explain(prepared, served.answer, ids, served.why)
    for number, choice in enumerate(choices):
        yield wire.chunk([wire.whole(number, choice)])
    last = [
        wire.piece(number, "", choice.finish_reason or "stop")
        for number, choice in enumerate(choices)
    ]
    yield wire.chunk(last, jaxalign=about)
    for line in wire.usage(served.reply.usage):
        yield line
    yield b"data: [DONE]\n\n"


async def _serve_and_store(
    service: Service, prepared: PreparedRequest
) -> tuple[ServedReply, list[str]]:
    served = await serve_reply(service, prepared)
    texts = [choice.content() for choice in served.reply.choices]
    stored = store_answers(service, prepared, texts, served.answer, served.features)
    return served, await _ids_if_stored(stored)


async def answer_whole(service: Service, prepared: PreparedRequest) -> tuple[Json, dict[str, str]]:
    """Return the body and the headers of a response that is not streamed."""
    served, ids = await _serve_and_store(service, prepared)
    about = explain(prepared, served.answer, ids, served.why)
    return whole_body(prepared, served.reply, about), headers_of(prepared, about)


async def stream_through(
    service: Service, prepared: PreparedRequest
) -> AsyncGenerator[bytes, None]:
    """Yield a response whose policy is chosen before, as the engine's pieces come in."""
    wire = Streaming(prepared)
    inputs = strategy_inputs(service, prepared)
    call, answer = CHOOSE_FIRST[prepared.strategy](inputs)
    texts: dict[int, list[str]] = {}
    usage: TokenUsage | None = None
    held: Json | None = None
    # Closed at once when the client goes away, so that the engine stops drawing.
    async with contextlib.aclosing(service.engine.stream(call)) as chunks:
        async for chunk in chunks:
            usage = chunk.usage or usage
            if not chunk.choices:
                continue
            if held is not None:
                yield event_line(held)
            for choice in chunk.choices:
                # Clients take the role from the first piece, which not every engine states.
                if choice.index not in texts and choice.delta is not None:
                    choice.delta.role = choice.delta.role or "assistant"
                texts.setdefault(choice.index, []).append(choice.content())
            # One piece is held back, so that the last one can say what was kept.
            held = {
                **chunk.model_dump(exclude_unset=True, exclude={"usage"}),
                "id": prepared.response_id,
                "object": CHUNKS[prepared.endpoint],
                "created": wire.created,
                "model": prepared.request.model,
            }
    service.telemetry.tokens.inc(usage.completion_tokens if usage else 0)
    service.telemetry.answers.labels(answer.strategy).inc()
    answers = ["".join(texts[index]) for index in sorted(texts)]
    ids = await _ids_if_stored(store_answers(service, prepared, answers, answer))
    yield event_line({**(held or {}), "jaxalign": explain(prepared, answer, ids)})
    for line in wire.usage(usage):
        yield line
    yield b"data: [DONE]\n\n"


def streams_through(prepared: PreparedRequest) -> bool:
    """Return whether pieces can be sent as they are drawn: what answers is chosen before."""
    return prepared.strategy in CHOOSE_FIRST and (prepared.request.n or 1) == 1


def _prompt(request: GenerationRequest) -> str | Chat:
    if isinstance(request, TextRequest):
        return request.prompt
    turns = request.messages if isinstance(request, ChatRequest) else []
    return tuple({"role": turn.role, "content": _text(turn.content)} for turn in turns)


def _text(content: object) -> str:
    if isinstance(content, list):
        return "".join(part.text or "" for part in content)
    return content if isinstance(content, str) else ""


def _characters(request: GenerationRequest) -> int:
    if isinstance(request, TextRequest):
        return len(request.prompt)
    turns = request.messages if isinstance(request, ChatRequest) else []
    return sum(len(_text(turn.content)) for turn in turns)
