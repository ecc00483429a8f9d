"""How the next token is drawn: temperature, top-k, nucleus, and what may not be drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import InputError

_BLOCK = 256  # near the square root of a vocabulary


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn, and when they end.

    Attributes:
        max_tokens: most tokens of an answer.
        min_tokens: tokens drawn before a stop id may be.
        temperature: divides the logits; 0 takes the likeliest token. One for all, or [B].
        top_k: draw among the k likeliest; of equal ones at the edge, those with lower ids. None
            for all.
        top_p: draw among the likeliest tokens that together have at least this share, after
            temperature and top-k; those as likely as the last one are kept too. One for all, or
            [B]; 1 for all tokens.
        stop_ids: an answer ends with any of these, which is its last token.
        suppressed_ids: never drawn.
        pad_id: what stands behind the end of an answer; any id of the vocabulary.

    Temperatures, top_p, ids and limits are data: changing them compiles nothing anew. `top_k`,
    top_p on or off, and temperature 0 for none, some or all rows change the program.
    """

    max_tokens: int = 128
    min_tokens: int = 0
    temperature: float | Sequence[float] = 1.0
    top_k: int | None = None
    top_p: float | Sequence[float] = 1.0
    stop_ids: tuple[int, ...] = ()
    suppressed_ids: tuple[int, ...] = ()
    pad_id: int = 0

    def __post_init__(self) -> None:
        for name, least in (("max_tokens", 1), ("min_tokens", 0), ("pad_id", 0)):
            _check_whole(name, getattr(self, name), least)
        if self.top_k is not None:
            _check_whole("top_k", self.top_k, 1)
        for name in ("stop_ids", "suppressed_ids"):
            for value in getattr(self, name):
                _check_whole(name, value, 0)
        if self.min_tokens > self.max_tokens:
            raise InputError(
                f"min_tokens is {self.min_tokens}, above max_tokens, {self.max_tokens}: lower one "
                "or raise the other."
            )
        temperature, top_p = np.asarray(self.temperature), np.asarray(self.top_p)
        if not (np.isfinite(temperature) & (temperature >= 0)).all():
            raise InputError(
                f"temperature is {self.temperature}; expected a finite number of at least 0."
            )
        if not ((top_p > 0) & (top_p <= 1)).all():
            raise InputError(f"top_p is {self.top_p}; expected a number above 0 and at most 1.")


class StaticSampling(NamedTuple):
    """The part of the settings that shapes the program.

    Attributes:
        greedy: whether no row, some rows or all rows have temperature 0.
        top_k: how many tokens are kept; None for all.
        top_p: whether the nucleus is cut out.
    """

    greedy: Literal["none", "some", "all"]
    top_k: int | None
    top_p: bool


class SamplingParams(NamedTuple):
    """The part of the settings that is data.

    Attributes:
        max_tokens, min_tokens, pad_id: scalars, int32.
        temperature, top_p: [B] float32.
        stop, suppressed: [V] bool.
    """

    max_tokens: Any
    min_tokens: Any
    pad_id: Any
    temperature: Any
    top_p: Any
    stop: Any
    suppressed: Any


def split_sampling(
    settings: Sampling, rows: int, padded: int, vocab_size: int
) -> tuple[StaticSampling, SamplingParams]:
    """Splits the settings into what is compiled and what is data.

    Args:
        settings: of one run.
        rows: B, which temperatures and top_p given by row must match.
        padded: rows after padding, at least B.
        vocab_size: V.

    Raises:
        InputError: for an id outside the vocabulary, values by row that do not match the rows, or
            nothing left to draw.
    """
    ids = (*settings.stop_ids, *settings.suppressed_ids, settings.pad_id)
    if max(ids) >= vocab_size:
        raise InputError(
            f"token id {max(ids)} is outside the vocabulary of {vocab_size}: check stop_ids, "
            "suppressed_ids and pad_id."
        )
    stop, suppressed = (np.zeros(vocab_size, bool) for _ in range(2))
    stop[list(settings.stop_ids)] = True
    suppressed[list(settings.suppressed_ids)] = True
    if (suppressed | (stop & (settings.min_tokens > 0))).all():
        raise InputError("all token ids are suppressed; expected one at least that may be drawn.")
    temperature = _by_row("temperature", settings.temperature, rows, padded)
    top_p = _by_row("top_p", settings.top_p, rows, padded)
    greedy = temperature == 0
    whole = settings.top_k is None or settings.top_k >= vocab_size
    static = StaticSampling(
        greedy="all" if greedy.all() else "some" if greedy.any() else "none",
        top_k=None if whole or greedy.all() else settings.top_k,
        top_p=bool((top_p < 1).any() and not greedy.all()),
    )
    most, least, pad = map(np.int32, (settings.max_tokens, settings.min_tokens, settings.pad_id))
    return static, SamplingParams(most, least, pad, temperature, top_p, stop, suppressed)


def sample_token(
    key: jax.Array,
    logits: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array,
    static: StaticSampling,
) -> tuple[jax.Array, jax.Array]:
    """One token and its log-probability under the distribution it was drawn from.

    Args:
        key: random key.
        logits: [V], -inf for what may not be drawn.
        temperature, top_p: scalars.
        static: compile-time settings, from `split_sampling`.

    Returns:
        Token int32 and log-probability. Above temperature 0, under the distribution of
        `truncated_logprobs`. At temperature 0 the token is the most likely one (of equal ones the
        lowest id), with its log-probability under softmax(logits), without truncation.
    """
    best = jnp.argmax(logits).astype(jnp.int32)
    plain = logits[best] - jax.nn.logsumexp(logits)
    if static.greedy == "all":
        return best, plain
    warm = temperature > 0
    shares, ids = truncated_logprobs(logits, jnp.where(warm, temperature, 1), top_p, static)
    choice = _pick(key, shares)
    token = (choice if ids is None else ids[choice]).astype(jnp.int32)
    if static.greedy == "none":
        return token, shares[choice]
    return jnp.where(warm, token, best), jnp.where(warm, shares[choice], plain)


def truncated_logprobs(
    logits: jax.Array, temperature: jax.Array, top_p: jax.Array, static: StaticSampling
) -> tuple[jax.Array, jax.Array | None]:
    """The distribution that is drawn from.

    Args:
        logits: [V], -inf for what may not be drawn.
        temperature: scalar above 0.
        top_p: scalar.
        static: compile-time settings, from `split_sampling`.

    Returns:
        Log-probabilities [k] or [V], -inf for what the nucleus leaves out, and the ids [k] that
        they belong to, or None for all V in order.

    Source: top-k Fan et al. 2018, https://arxiv.org/abs/1805.04833; nucleus Holtzman et al. 2019,
    https://arxiv.org/abs/1904.09751.
    """
    ids = None
    if static.top_k is not None:
        logits, ids = jax.lax.top_k(logits, static.top_k)
    # From the largest, so that a temperature near 0 gives -inf and never inf - inf.
    scaled = (logits - jnp.max(logits)) / temperature.astype(logits.dtype)
    if static.top_p:
        shares = jax.nn.softmax(scaled)
        scaled = jnp.where(shares >= _edge(shares, top_p), scaled, -jnp.inf)
    return jax.nn.log_softmax(scaled), ids


def _pick(key: jax.Array, shares: jax.Array) -> jax.Array:
    """An index drawn by log-probabilities [K]: first its block, then within the block.

    Exact, and -inf is never drawn, as with Gumbel noise on every value, but with random bits for
    some hundreds of values only, which for a whole vocabulary cost more than the softmax.
    """
    blocks = -(-shares.size // _BLOCK)
    padding = (0, blocks * _BLOCK - shares.size)
    table = jnp.pad(shares, padding, constant_values=-jnp.inf).reshape(blocks, _BLOCK)
    outer, inner = jax.random.split(key)
    block = jax.random.categorical(outer, jax.nn.logsumexp(table, axis=1))
    return block * _BLOCK + jax.random.categorical(inner, table[block])


def _edge(shares: jax.Array, top_p: jax.Array) -> jax.Array:
    """The largest value v such that the shares [K] of at least v sum to top_p or more.

    Non-negative floats are ordered as their bits are, so bisecting the bits finds v exactly, in
    some thirty sums; sorting a vocabulary takes several times as long on any machine.
    """
    top_p = top_p.astype(shares.dtype)
    bits = jnp.dtype(f"int{8 * shares.dtype.itemsize}")

    def halve(_: int, edges: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = edges
        middle = low + ((high - low) >> 1)
        value = jax.lax.bitcast_convert_type(middle, shares.dtype)
        enough = jnp.sum(jnp.where(shares >= value, shares, 0)) >= top_p
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    above = jax.lax.bitcast_convert_type(jnp.asarray(2, shares.dtype), bits)
    edges = (jnp.zeros((), bits), above)
    low, _ = jax.lax.fori_loop(0, 8 * shares.dtype.itemsize - 1, halve, edges)
    # Where rounding keeps the sum of all below top_p, the edge is 0 and all are kept.
    return jax.lax.bitcast_convert_type(low, shares.dtype)


def _by_row(name: str, value: Any, rows: int, padded: int) -> np.ndarray:
    values = np.asarray(value, np.float32)
    if values.ndim and values.shape != (rows,):
        raise InputError(
            f"{name} has shape {values.shape}; expected one number, or one for each of {rows} rows."
        )
    values = np.broadcast_to(values, (rows,))
    return np.pad(values, (0, padded - rows), mode="edge")


def _check_whole(name: str, value: Any, least: int) -> None:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least:
        raise InputError(f"{name} is {value!r}; expected a whole number of at least {least}.")
