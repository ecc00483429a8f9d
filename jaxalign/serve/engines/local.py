"""The engine `local`: a language model in this process draws the answers.

Rows of all users that wait together are drawn in one batch, with their policies and personas. A
batch is drawn to its end before the next one begins, and a streamed answer is drawn by itself.
"""

import asyncio
import queue
import secrets
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import InputError
from jaxalign.models.chat import Chat, Completion, complete_tokens, prompt_ids, text_of
from jaxalign.models.generate import GenerationArguments
from jaxalign.models.language import LanguageModel, load_language_model
from jaxalign.models.sampling import Sampling
from jaxalign.models.stream import StreamedPiece, stream
from jaxalign.serve.api_errors import ApiError
from jaxalign.serve.config import DEFAULT_MODEL, EngineConfig
from jaxalign.serve.engines.local_policies import LocalPolicies, load_policies
from jaxalign.serve.engines.registry import (
    AnswerEngine,
    Call,
    SoftTokens,
    known_roles,
    register_engine,
    too_long,
    too_many,
)
from jaxalign.serve.wire import (
    AnswerMessage,
    ChunkChoice,
    Delta,
    Endpoint,
    Reply,
    ReplyChoice,
    ReplyChunk,
    TokenUsage,
)

_MOST_ROWS = 16  # of a batch
_MAX_TOKENS = 256  # where the client states none
_TEMPERATURE, _TOP_P = 0.8, 0.95
_REFUSED = ("tools", "functions", "response_format", "logprobs", "top_logprobs", "logit_bias")
_SEED_BITS = 63


@dataclass(eq=False)
class _DecodeRow:
    """One answer to draw; its policy is a number, 0 for the model alone."""

    prompt: str | Chat
    ids: list[int]
    policy: int
    soft: SoftTokens | None
    max_tokens: int
    temperature: float
    top_p: float
    key: jax.Array
    done: Future[Completion] = field(default_factory=Future)


@dataclass(eq=False)
class _StreamJob:
    """One answer to draw piece by piece; `put` takes each piece, None at the end, or a failure."""

    row: _DecodeRow
    loop: asyncio.AbstractEventLoop
    pieces: asyncio.Queue[StreamedPiece | Exception | None]
    dropped: threading.Event = field(default_factory=threading.Event)

    def put(self, piece: StreamedPiece | Exception | None) -> None:
        self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)


class LocalEngine:
    """Draws with a model of this process, in one thread."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        saved = config.saved_policies if config.model is None else None
        self._name = config.model or (DEFAULT_MODEL if saved is None else saved.base)
        self._soft_tokens = 0
        self._jobs: queue.SimpleQueue[_DecodeRow | _StreamJob | None] = queue.SimpleQueue()
        self._waiting = 0
        self._loaded: LanguageModel | None = None
        self._policies = LocalPolicies.of_reference()
        self._thread = threading.Thread(target=self._work, name="jaxalign decode", daemon=True)

    @property
    def model(self) -> str:
        """The name of its model, as `GET /v1/models` lists it."""
        return self._name

    @property
    def _room(self) -> int:
        """Tokens of a prompt and its answer together."""
        return self._language.config.positions - self._reserved

    @property
    def _reserved(self) -> int:
        """Soft tokens that may stand beside a prompt: of a policy, or of a persona."""
        return self._policies.prefix_tokens or self._soft_tokens

    @property
    def policies(self) -> Collection[str]:
        """The policies of the portfolio, or the preferences of the policy, that it was given."""
        return self._policies.numbers

    @property
    def personas(self) -> bool:
        """Whether it was given a persona plug."""
        return self._soft_tokens > 0

    async def start(self) -> None:
        """Load the model, and the policies if there are some.

        Raises:
            InputError: there is no such model, or it is not the one of the policies; policies and
                a persona that both have soft tokens.
        """
        self._loaded = await asyncio.to_thread(self._load)
        saved = self._config.saved_policies
        if saved is not None:
            self._policies = await asyncio.to_thread(load_policies, saved, self._loaded)
        if self._policies.prefix_tokens and self._soft_tokens:
            raise InputError(
                f"--policy {self._config.policy} and --plug {self._config.plug}: found soft tokens "
                "in both, expected them in one: leave one of the two out."
            )
        self._thread.start()

    def _load(self) -> LanguageModel:
        """The model, which is the plug's own where there is one."""
        opened = self._config.opened_plug
        if opened is None:
            return load_language_model(self._name, self._config.dtype)
        self._soft_tokens = opened.plug.persona.prefix_length
        self._name = self._config.model or opened.plug.model.name
        return opened.plug.model

    @property
    def _language(self) -> LanguageModel:
        if self._loaded is None:
            raise InputError("the engine has no model yet: call start() first.")
        return self._loaded

    async def complete(self, call: Call) -> Reply:
        """Return n answers.

        Raises:
            ApiError: too many answers wait, or the request cannot be drawn by a model alone.
        """
        _check(call.body)
        self._reserve(call.n)
        try:
            rows = self._rows(call)
            for row in rows:
                self._jobs.put(row)
            found = await asyncio.gather(*(asyncio.wrap_future(row.done) for row in rows))
        finally:
            self._waiting -= call.n
        stops = _stops(call.body)
        pairs = zip(rows, found, strict=True)
        choices = [
            self._choice(call.endpoint, number, row, completion, stops)
            for number, (row, completion) in enumerate(pairs)
        ]
        read, drawn = len(rows[0].ids), sum(len(completion.tokens) for completion in found)
        usage = TokenUsage(prompt_tokens=read, completion_tokens=drawn, total_tokens=read + drawn)
        return Reply(choices=choices, usage=usage)

    async def stream(self, call: Call) -> AsyncGenerator[ReplyChunk, None]:
        """Yield one answer piece by piece.

        Raises:
            ApiError: as `complete`.
        """
        _check(call.body)
        self._reserve(1)
        try:
            (row,) = self._rows(call)
            job = _StreamJob(row, asyncio.get_running_loop(), asyncio.Queue())
            self._jobs.put(job)
            try:
                async for chunk in self._pieces(call, job, len(row.ids)):
                    yield chunk
            finally:
                job.dropped.set()
        finally:
            self._waiting -= 1

    async def _pieces(self, call: Call, job: _StreamJob, read: int) -> AsyncIterator[ReplyChunk]:
        text, sent, stops = "", 0, _stops(call.body)
        longest = max(map(len, stops), default=1)
        drawn, finish = 0, "length"
        while (piece := await job.pieces.get()) is not None:
            if isinstance(piece, Exception):
                raise piece
            text, drawn = text + piece.text, piece.tokens
            cut = _cut(text, stops)
            # What may be the beginning of a stop text waits.
            ready = len(cut) if len(cut) < len(text) else max(sent, len(text) - longest + 1)
            if ready > sent:
                yield _piece(call.endpoint, cut[sent:ready])
                sent = ready
            if piece.stopped or len(cut) < len(text):
                finish = "stop"
                break
        rest = _cut(text, stops)[sent:]
        if rest:
            yield _piece(call.endpoint, rest)
        yield _piece(call.endpoint, "", finish)
        yield ReplyChunk(usage=TokenUsage(prompt_tokens=read, completion_tokens=drawn,
                                     total_tokens=read + drawn))  # fmt: skip

    async def is_ready(self) -> bool:
        """Return whether the thread that draws is running."""
        return self._thread.is_alive()

    async def close(self) -> None:
        """Finish what waits, and stop."""
        if self._thread.is_alive():
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join)

    def _reserve(self, rows: int) -> None:
        if self._waiting + rows > self._config.most_waiting:
            raise too_many(self._config.most_waiting)
        self._waiting += rows

    def _rows(self, call: Call) -> list[_DecodeRow]:
        body, policies = call.body, self._policies
        policy = policies.number(call.policy)
        prompt = policies.prompt(known_roles(call.prompt), policy)
        try:
            ids = prompt_ids(self._language, prompt, 1 + self._reserved)
        except InputError as error:
            raise too_long(error) from None
        room = self._room - len(ids)
        most = body.get("max_completion_tokens") or body.get("max_tokens") or _MAX_TOKENS
        temperature, top_p = body.get("temperature"), body.get("top_p")
        seed = body.get("seed")
        number = seed if isinstance(seed, int) else secrets.randbits(_SEED_BITS)
        key = jax.random.key(number % 2**_SEED_BITS)
        return [
            _DecodeRow(
                prompt,
                ids,
                policy,
                call.soft,
                min(int(str(most)), room),
                float(str(_TEMPERATURE if temperature is None else temperature)),
                float(str(_TOP_P if top_p is None else top_p)),
                jax.random.fold_in(key, place),
            )
            for place in range(call.n)
        ]

    def _choice(
        self, endpoint: Endpoint, number: int, row: _DecodeRow, found: Completion,
        stops: Sequence[str],
    ) -> ReplyChoice:  # fmt: skip
        text = _cut(found.text, stops)
        finish = "stop" if found.stopped or len(text) < len(found.text) else "length"
        if endpoint == "text":
            return ReplyChoice(index=number, text=text, finish_reason=finish)
        message = AnswerMessage(role="assistant", content=text)
        return ReplyChoice(index=number, message=message, finish_reason=finish)

    def _work(self) -> None:
        held: list[_DecodeRow | _StreamJob | None] = []
        while True:
            first = held.pop(0) if held else self._jobs.get()
            while not self._jobs.empty():
                held.append(self._jobs.get())
            if first is None:
                return
            if isinstance(first, _StreamJob):
                self._draw_stream(first)
                continue
            rows = [first, *_fitting(first, held, self._room)]
            held = [job for job in held if job not in rows]
            self._draw([row for row in rows if row.done.set_running_or_notify_cancel()])

    def _draw(self, rows: list[_DecodeRow]) -> None:
        if not rows:
            return
        try:
            for row, completion in zip(rows, self._completions(rows), strict=True):
                row.done.set_result(completion)
        except Exception as error:  # raised again in the requests that wait
            for row in rows:
                if not row.done.done():
                    row.done.set_exception(error)

    def _completions(self, rows: list[_DecodeRow]) -> Iterator[Completion]:
        """Draw all rows in one batch, whose size is a power of two; each ends at its own limit."""
        size = 1
        while size < len(rows):
            size *= 2
        filled = rows + rows[-1:] * (size - len(rows))
        settings = Sampling(
            max_tokens=max(row.max_tokens for row in rows),
            temperature=[row.temperature for row in filled],
            top_p=[row.top_p for row in filled],
        )
        ids, keys = [row.ids for row in filled], jnp.stack([row.key for row in filled])
        arguments = self._arguments(filled)
        (found,) = complete_tokens(
            self._language, ids, settings, keys, **arguments, batch_size=size
        )
        for number, row in enumerate(rows):
            one = found[number]
            if len(one.tokens) <= row.max_tokens:
                yield one
                continue
            tokens = one.tokens[: row.max_tokens]
            yield Completion(
                text_of(self._language, tokens), tokens, one.logprobs[: row.max_tokens],
                one.prompt_tokens, False,
            )  # fmt: skip

    def _arguments(self, rows: Sequence[_DecodeRow]) -> GenerationArguments:
        """The policies and the personas of rows."""
        return {**self._policies.arguments([row.policy for row in rows]), **_soft_arguments(rows)}

    def _draw_stream(self, job: _StreamJob) -> None:
        row = job.row
        settings = Sampling(
            max_tokens=row.max_tokens, temperature=row.temperature, top_p=row.top_p
        )  # fmt: skip
        try:
            arguments = self._arguments([row])
            for piece in stream(self._language, row.prompt, settings, row.key, **arguments):
                if job.dropped.is_set():
                    return
                job.put(piece)
            job.put(None)
        except Exception as error:  # raised again in the request that waits
            job.put(error)


@register_engine("local")
def make_local(config: EngineConfig) -> AnswerEngine:
    """Return the engine of a model in this process.

    Raises:
        InputError: the settings name a server.
    """
    if config.url is not None:
        raise InputError(
            f"--engine.url {config.url} is not used by --engine local; add --engine openai, or "
            "leave the address out."
        )
    return LocalEngine(config)


def _fitting(
    first: _DecodeRow, held: Sequence[_DecodeRow | _StreamJob | None], room: int
) -> list[_DecodeRow]:
    """The waiting rows that fit into a batch with the first, whose prompts and answers are padded
    to the longest, and which has room for so many tokens.
    """
    found: list[_DecodeRow] = []
    prompt, answer = len(first.ids), first.max_tokens
    for job in held:
        if not isinstance(job, _DecodeRow) or len(found) == _MOST_ROWS - 1:
            continue
        longest, most = max(prompt, len(job.ids)), max(answer, job.max_tokens)
        if longest + most <= room:
            found.append(job)
            prompt, answer = longest, most
    return found


def _check(body: Mapping[str, object]) -> None:
    given = [name for name in _REFUSED if body.get(name) not in (None, False, [], {})]
    if given:
        raise ApiError(
            400,
            f"{given[0]} is not offered by --engine local; leave it out, or serve the model by an "
            "OpenAI-compatible server and use --engine openai.",
            "not_supported",
            given[0],
        )


def _soft_arguments(rows: Sequence[_DecodeRow]) -> GenerationArguments:
    """The soft tokens of rows, of which some may have none."""
    known = {number: row.soft for number, row in enumerate(rows) if row.soft is not None}
    if not known:
        return {}
    shape = next(iter(known.values())).values.shape
    values = np.zeros((len(rows), *shape), np.float32)
    lengths, starts = np.zeros((2, len(rows)), np.int32)
    for number, soft in known.items():
        values[number], lengths[number] = soft.values, len(soft.values)
        starts[number] = soft.start(len(rows[number].ids))
    return {"prefix": values, "prefix_lengths": lengths, "prefix_starts": starts}


def _stops(body: Mapping[str, object]) -> list[str]:
    stop = body.get("stop")
    texts = [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else []
    return [text for text in texts if text]


def _cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first of some stop texts."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text


def _piece(endpoint: Endpoint, text: str, finish: str | None = None) -> ReplyChunk:
    content = {"text": text} if endpoint == "text" else {"delta": Delta(content=text)}
    return ReplyChunk(choices=[ChunkChoice(index=0, finish_reason=finish, **content)])
