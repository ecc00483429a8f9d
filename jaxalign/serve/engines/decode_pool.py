"""Rows that are decoded together: they join and leave every 16 tokens, whatever their users.

A pool has places for rows of one shape. Each row has its own step, so that one may begin where
another is in the middle: the decoding of one row is mapped over all places. A row depends on its
own prompt and key alone.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.models.buckets import bucket_length, padded
from jaxalign.models.chat import Completion, check_finite, text_of, with_stops
from jaxalign.models.generate import (
    DecodeInputs,
    DecodeSpec,
    DecodeState,
    GenerationArguments,
    Prompt,
    decode_step,
    prefill,
    prepare_decode,
    unstack_adapters,
)
from jaxalign.models.language import LanguageModel
from jaxalign.models.sampling import Sampling, computed
from jaxalign.models.stream import StreamedPiece, whole_characters
from jaxalign.serve.engines.registry import SoftTokens

CHUNK = 16
"""Tokens between two looks at the rows that wait and those that have ended."""


@dataclass(eq=False)
class DecodeRow:
    """One answer to draw.

    Attributes:
        ids: tokens of the prompt.
        policy: its number, 0 for the model alone.
        soft: soft tokens of the user's persona; None for none.
        max_tokens: most tokens of the answer.
        temperature: that its tokens are sampled with.
        top_p: that they are sampled with.
        key: random key.
        put: takes each piece of a streamed answer; None for an answer that is not streamed.
        done: the whole answer; whoever no longer wants it cancels it.
    """

    ids: list[int]
    policy: int
    soft: SoftTokens | None
    max_tokens: int
    temperature: float
    top_p: float
    key: jax.Array
    put: Callable[[StreamedPiece], None] | None = None
    done: Future[Completion] = field(default_factory=Future)
    sent: int = 0

    def fail(self, error: Exception) -> None:
        """Raise an error in the request that waits, if it still waits."""
        # The client may go away at any moment: after this, the row can no longer be cancelled.
        if not self.done.done() and self.done.set_running_or_notify_cancel():
            self.done.set_exception(error)


class PoolShape(NamedTuple):
    """What is compiled for a pool: its rows differ in nothing of it.

    Attributes:
        prompt: most tokens of a prompt.
        answer: most tokens of an answer.
        sampled: whether their tokens are sampled at a temperature above 0.
        top_p: whether improbable tokens are left out.
    """

    prompt: int
    answer: int
    sampled: bool
    top_p: bool

    @classmethod
    def of(cls, row: DecodeRow, room: int) -> "PoolShape":
        """Return the smallest shape for a row, where prompts and answers have `room` tokens."""
        prompt, answer = (bucket_length(end, room) for end in (len(row.ids), row.max_tokens))
        # As the program has them: a row that is greedy there would change the program of others.
        temperature, top_p = computed(row.temperature, row.top_p)
        sampled = bool(temperature > 0)
        return cls(prompt, answer, sampled, sampled and bool(top_p < 1))

    def holds(self, other: "PoolShape") -> bool:
        """Return whether rows of another shape have room."""
        return self[2:] == other[2:] and self.prompt >= other.prompt and self.answer >= other.answer


class RowInputs(NamedTuple):
    """What `DecodeInputs` holds of each row: arrays of one row, or of R rows on a leading axis.

    Attributes:
        rows: which adapter of a stack the row has, or by how much it weighs each; None for none.
        weights: [1, C] of a mixture, or None.
        keys: [1] random key.
        temperature: [1].
        top_p: [1].
    """

    rows: jax.Array | None
    weights: jax.Array | None
    keys: jax.Array
    temperature: jax.Array
    top_p: jax.Array

    def within(self, shared: DecodeInputs) -> DecodeInputs:
        """Return the inputs of a batch of this row alone."""
        sampling = shared.sampling._replace(temperature=self.temperature, top_p=self.top_p)
        return shared._replace(
            rows=self.rows, weights=self.weights, keys=self.keys, sampling=sampling
        )


class _Held(NamedTuple):
    """R places: the inputs and the state of each, as a batch of one row, on a leading axis."""

    own: RowInputs
    state: DecodeState


class DecodePool:
    """Rows of one shape that are decoded together.

    Args:
        model: the language model.
        shape: of the rows.
        arguments: of rows to the policies and personas that generation takes.
    """

    def __init__(
        self,
        model: LanguageModel,
        shape: PoolShape,
        arguments: Callable[[Sequence[DecodeRow]], GenerationArguments],
    ) -> None:
        self.shape = shape
        self._model, self._arguments = model, arguments
        self._places: list[DecodeRow | None] = []
        self._shared: tuple[DecodeSpec, DecodeInputs] | None = None
        self._held: _Held | None = None

    @property
    def rows(self) -> list[DecodeRow]:
        """The rows that are being decoded."""
        return [row for row in self._places if row is not None]

    def join(self, rows: Sequence[DecodeRow]) -> None:
        """Read the prompts of more rows, and sample the first token of each."""
        size = _power_of_two(len(rows))
        begun = self._begun([*rows, *([rows[-1]] * (size - len(rows)))])
        if self._held is None:
            self._held, self._places = begun, [*rows, *([None] * (size - len(rows)))]
        else:
            self._held = self._beside(self._held, rows, begun)
        self._look()

    def advance(self) -> None:
        """Sample up to 16 more tokens of each row, and hand out what was sampled."""
        if self._shared is None or self._held is None:
            return
        limits = np.array([0 if row is None else row.max_tokens for row in self._places], np.int32)
        state = _decode_chunk(*self._shared, *self._held, limits)
        self._held = self._held._replace(state=state)
        self._look()

    def clear(self) -> None:
        """Drop all rows, after a failure."""
        self._places, self._held = [], None

    def _beside(self, held: _Held, rows: Sequence[DecodeRow], begun: _Held) -> _Held:
        """Give more rows places beside those that are being decoded."""
        room = max(len(self._places), _power_of_two(len(self.rows) + len(rows)))
        more = room - len(self._places)
        if more:
            held = _with_room(held, more)
            self._places += [None] * more
        free = [place for place, row in enumerate(self._places) if row is None][: len(rows)]
        # Rows that fill the group up are placed beyond the last place, and not kept.
        unused = _power_of_two(len(rows)) - len(rows)
        held = _placed(held, begun, np.array(free + [room] * unused, np.int32))
        for place, row in zip(free, rows, strict=True):
            self._places[place] = row
        return held

    def _begun(self, rows: Sequence[DecodeRow]) -> _Held:
        """Rows after their first token."""
        settings = Sampling(
            max_tokens=1,  # the first; each row has a limit of its own
            temperature=[row.temperature for row in rows],
            top_p=[row.top_p for row in rows],
        )
        given = self._arguments(rows)
        prompt = Prompt(
            padded([row.ids for row in rows], (len(rows), self.shape.prompt)),
            np.array([len(row.ids) for row in rows], np.int32),
            given.get("prefix"),
            given.get("prefix_lengths"),
            given.get("prefix_starts"),
        )
        spec, inputs, prompt = prepare_decode(
            self._model.config,
            self._model.params,
            prompt,
            jnp.stack([row.key for row in rows]),
            with_stops(self._model, settings),
            adapters=given.get("adapters"),
            rows=given.get("rows"),
            combine=given.get("combine"),
        )
        # One slot more than any answer has: what a row draws after its end falls into it.
        spec = spec._replace(slots=self.shape.answer + 1)
        own = _each_row(inputs, len(rows), spec.adapters_per_row)
        if self._shared is None:  # or else it is that of the rows that are being decoded
            one = RowInputs(None, None, *(leaf[0] for leaf in own[2:]))
            self._shared = spec, one.within(inputs)
        alone = jax.tree.map(lambda leaf: leaf[:, None], prompt)
        return _Held(own, _prefill(*self._shared, own, alone))

    def _look(self) -> None:
        """Hand out what was sampled; rows that have ended or are no longer wanted leave."""
        if self._held is None:
            return
        state = self._held.state
        lengths, stopped, tokens, logprobs = (
            np.asarray(leaf)[:, 0]
            for leaf in (state.lengths, state.stopped, state.tokens, state.logprobs)
        )
        for place, row in enumerate(self._places):
            if row is None:
                continue
            if row.done.cancelled():
                self._places[place] = None
                continue
            end = int(lengths[place])
            found = tokens[place, :end], logprobs[place, :end], bool(stopped[place])
            try:
                ended = self._hand_out(row, *found)
            except Exception as error:  # of this row alone
                row.fail(error)
                ended = True
            if ended:
                self._places[place] = None

    def _hand_out(
        self, row: DecodeRow, tokens: np.ndarray, logprobs: np.ndarray, stopped: bool
    ) -> bool:
        """Whether a row has ended."""
        last = stopped or len(tokens) >= row.max_tokens
        if not last and row.put is None:
            return False
        check_finite(self._model, logprobs)
        text = text_of(self._model, tokens)
        if row.put is not None:
            ready = len(text) if last else whole_characters(text)
            if ready > row.sent or last:
                row.put(StreamedPiece(text[row.sent : ready], len(tokens), stopped))
                row.sent = ready
        if last and row.done.set_running_or_notify_cancel():
            row.done.set_result(Completion(text, tokens, logprobs, len(row.ids), stopped))
        return last


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _each_row(inputs: DecodeInputs, count: int, adapters_per_row: int) -> RowInputs:
    """The inputs of each row of a batch, as those of a batch of one."""
    rows, sampling = inputs.rows, inputs.sampling
    if rows is not None and np.ndim(rows) == 1:  # adapters outermost
        rows = jnp.reshape(jnp.asarray(rows), (adapters_per_row, count)).T
    elif rows is not None:
        rows = jnp.asarray(rows)[:, None]
    weights = None if inputs.weights is None else jnp.asarray(inputs.weights)[:, None]
    temperature, top_p = (
        jnp.asarray(leaf)[:, None] for leaf in (sampling.temperature, sampling.top_p)
    )
    return RowInputs(rows, weights, inputs.keys[:, None], temperature, top_p)


@partial(jax.jit, static_argnums=0)
def _prefill(spec: DecodeSpec, shared: DecodeInputs, own: RowInputs, prompt: Prompt) -> DecodeState:
    def one(own: RowInputs, prompt: Prompt) -> DecodeState:
        return prefill(spec, own.within(shared), prompt)

    found: DecodeState = jax.vmap(one)(own, prompt)
    return found


@partial(jax.jit, static_argnums=1)
def _with_room(held: _Held, more: int) -> _Held:
    """More places, which hold the first row."""
    grown: _Held = jax.tree.map(
        lambda leaf: jnp.concatenate([leaf, jnp.repeat(leaf[:1], more, axis=0)]), held
    )
    return grown


@partial(jax.jit, donate_argnums=0)
def _placed(held: _Held, begun: _Held, places: jax.Array) -> _Held:
    placed: _Held = jax.tree.map(
        lambda leaf, new: leaf.at[places].set(new, mode="drop"), held, begun
    )
    return placed


@partial(jax.jit, static_argnums=0, donate_argnums=3)
def _decode_chunk(
    spec: DecodeSpec, shared: DecodeInputs, own: RowInputs, state: DecodeState, limits: jax.Array
) -> DecodeState:
    """The state after up to 16 more tokens of the rows that have not reached their limits [R]."""
    shared = unstack_adapters(spec, shared)

    def at_limit(state: DecodeState) -> DecodeState:
        return state._replace(ended=state.ended | (state.lengths >= limits[:, None]))

    def going(carry: tuple[jax.Array, DecodeState]) -> jax.Array:
        count, state = carry
        return (count < CHUNK) & ~jnp.all(state.ended)

    def once(carry: tuple[jax.Array, DecodeState]) -> tuple[jax.Array, DecodeState]:
        count, state = carry
        after = jax.vmap(lambda own, one: decode_step(spec, own.within(shared), one))(own, state)
        return count + 1, at_limit(after)

    start = (jnp.zeros((), jnp.int32), at_limit(state))
    _, after = jax.lax.while_loop(going, once, start)
    return after
