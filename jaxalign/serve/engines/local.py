"""The engine `local`: a language model in this process draws the answers.

Rows of all users are drawn together, with their policies and personas. Every 16 tokens, those that
have ended or whose client went away leave, and those that wait join.
"""

import asyncio
import queue
import secrets
import threading
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Collection,
    Mapping,
    Sequence,
)
from functools import partial

import jax
import numpy as np

from jaxalign.data.importers.registry import child
from jaxalign.errors import InputError
from jaxalign.models.chat import Completion
from jaxalign.models.generate import GenerationArguments
from jaxalign.models.language import LanguageModel, load_language_model
from jaxalign.models.stream import StreamedPiece
from jaxalign.serve.api_errors import ApiError
from jaxalign.serve.config import DEFAULT_MODEL, EngineConfig
from jaxalign.serve.engines.decode_pool import DecodePool, DecodeRow, PoolShape
from jaxalign.serve.engines.local_policies import LocalPolicies, load_policies
from jaxalign.serve.engines.registry import (
    AnswerEngine,
    Call,
    known_roles,
    register_engine,
    tokens_of,
    too_many,
)
from jaxalign.serve.tasks import requested_fields
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

_MOST_ROWS = 16  # that are drawn together
_MAX_TOKENS = 256  # where the client states none
_TEMPERATURE, _TOP_P = 0.8, 0.95
_REFUSED = (
    "tools", "functions", "response_format", "logprobs", "top_logprobs", "logit_bias", "audio",
    "modalities", "suffix", "echo", "best_of", "presence_penalty", "frequency_penalty",
)  # fmt: skip
_USUAL = {"modalities": ["text"], "best_of": 1}
"""What clients state that change nothing by it."""
_SEED_BITS = 63


class LocalEngine:
    """Draws with a model of this process, in one thread."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        saved = config.saved_policies if config.model is None else None
        self._name = config.model or (DEFAULT_MODEL if saved is None else saved.base)
        self._soft_tokens = 0
        self._jobs: queue.SimpleQueue[DecodeRow | None] = queue.SimpleQueue()
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
        rows: list[DecodeRow] = []
        try:
            rows = self._rows(call)
            for row in rows:
                self._jobs.put(row)
            found = await asyncio.gather(*(asyncio.wrap_future(row.done) for row in rows))
        finally:
            for row in rows:  # where one has failed, the others are no longer wanted
                row.done.cancel()
            self._waiting -= call.n
        stops = _stops(call.body)
        choices = [
            self._choice(call.endpoint, number, completion, stops)
            for number, completion in enumerate(found)
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
            loop = asyncio.get_running_loop()
            pieces: asyncio.Queue[StreamedPiece | None] = asyncio.Queue()

            def put(piece: StreamedPiece | None) -> None:
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

            row.put = put
            row.done.add_done_callback(lambda _: put(None))
            self._jobs.put(row)
            try:
                async for chunk in self._pieces(call, pieces, row):
                    yield chunk
            finally:
                row.done.cancel()
        finally:
            self._waiting -= 1

    async def _pieces(
        self, call: Call, pieces: asyncio.Queue[StreamedPiece | None], row: DecodeRow
    ) -> AsyncIterator[ReplyChunk]:
        text, sent, stops = "", 0, _stops(call.body)
        longest = max(map(len, stops), default=1)
        drawn, finish = 0, "length"
        read = len(row.ids)
        while (piece := await pieces.get()) is not None:
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
        if row.done.done():
            row.done.result()  # raises what went wrong
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
        if rows > self._config.most_waiting:
            raise ApiError(
                400,
                f"n: found {rows} answers, expected {self._config.most_waiting} at most, which is "
                "--engine.waiting; request fewer.",
                "invalid_value",
                "n",
            )
        if self._waiting + rows > self._config.most_waiting:
            raise too_many(self._config.most_waiting)
        self._waiting += rows

    def _rows(self, call: Call) -> list[DecodeRow]:
        body, policies = call.body, self._policies
        policy = policies.number(call.policy)
        prompt = policies.prompt(known_roles(call.prompt), policy)
        ids = tokens_of(self._language, prompt, call.endpoint, 1 + self._reserved)
        room = self._room - len(ids)
        most = body.get("max_completion_tokens") or body.get("max_tokens") or _MAX_TOKENS
        temperature, top_p = body.get("temperature"), body.get("top_p")
        seed = body.get("seed")
        number = seed if isinstance(seed, int) else secrets.randbits(_SEED_BITS)
        key = jax.random.key(number % 2**_SEED_BITS)
        return [
            DecodeRow(
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
        self, endpoint: Endpoint, number: int, found: Completion,
        stops: Sequence[str],
    ) -> ReplyChoice:  # fmt: skip
        text = _cut(found.text, stops)
        finish = "stop" if found.stopped or len(text) < len(found.text) else "length"
        if endpoint == "text":
            return ReplyChoice(index=number, text=text, finish_reason=finish)
        message = AnswerMessage(role="assistant", content=text)
        return ReplyChoice(index=number, message=message, finish_reason=finish)

    def _work(self) -> None:
        waiting: deque[DecodeRow] = deque()
        pools: list[DecodePool] = []
        open_for_more = True
        while open_for_more or waiting or pools:
            while open_for_more and (not (waiting or pools) or not self._jobs.empty()):
                row = self._jobs.get()
                if row is None:
                    open_for_more = False
                else:
                    waiting.append(row)
            self._admit(waiting, pools)
            for pool in pools:
                self._try(pool, pool.advance, pool.rows)
            pools = [pool for pool in pools if pool.rows]

    def _admit(self, waiting: deque[DecodeRow], pools: list[DecodePool]) -> None:
        """Let the rows that wait join a pool that has their shape, as far as there is room."""
        room = _MOST_ROWS - sum(len(pool.rows) for pool in pools)
        joining: dict[DecodePool, list[DecodeRow]] = {}
        while waiting and room:
            row = waiting.popleft()
            if row.done.cancelled():
                continue
            shape = PoolShape.of(row, self._room)
            fitting = (pool for pool in (*pools, *joining) if pool.shape.holds(shape))
            pool = next(fitting, None) or DecodePool(self._language, shape, self._arguments)
            joining.setdefault(pool, []).append(row)
            room -= 1
        for pool, rows in joining.items():
            if pool not in pools:
                pools.append(pool)
            self._try(pool, partial(pool.join, rows), [*pool.rows, *rows])

    def _try(self, pool: DecodePool, step: Callable[[], None], rows: Sequence[DecodeRow]) -> None:
        try:
            step()
        except Exception as error:  # raised again in the requests that wait
            pool.clear()
            for row in rows:
                row.fail(error)

    def _arguments(self, rows: Sequence[DecodeRow]) -> GenerationArguments:
        """The policies and the personas of rows."""
        soft = _soft_arguments(rows, self._soft_tokens, self._language.config.width)
        return {**self._policies.arguments([row.policy for row in rows]), **soft}


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


def _check(body: Mapping[str, object]) -> None:
    for name in requested_fields(body, _REFUSED):
        if body[name] != _USUAL.get(name):
            raise _not_offered(name, name)
    turns = body.get("messages")
    for turn in turns if isinstance(turns, list) else ():
        parts = child(turn, "content")
        for part in parts if isinstance(parts, list) else ():
            if (kind := child(part, "type")) != "text":
                raise _not_offered(f"a part of a message of the type {kind!r:.40}", "messages")


def _not_offered(what: str, param: str) -> ApiError:
    return ApiError(
        400,
        f"{what} is not offered by --engine local; leave it out, or serve the model by an "
        "OpenAI-compatible server and use --engine openai.",
        "not_supported",
        param,
    )


def _soft_arguments(rows: Sequence[DecodeRow], most: int, width: int) -> GenerationArguments:
    """The soft tokens of rows, of which some may have none.

    Args:
        rows: of a pool.
        most: soft tokens that a row may have; 0 for an engine without personas.
        width: of the embeddings.
    """
    if not most:
        return {}
    values = np.zeros((len(rows), most, width), np.float32)
    lengths, starts = np.zeros((2, len(rows)), np.int32)
    for number, row in enumerate(rows):
        if row.soft is not None:
            values[number], lengths[number] = row.soft.values, most
            starts[number] = row.soft.start(len(row.ids))
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
