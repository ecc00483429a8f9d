"""Sampling of the next token: temperature, top-k, nucleus, suppressed ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import InputError
from jaxalign.models.params import Array

_BLOCK = 256  # near the square root of a vocabulary


@dataclass(frozen=True)
class Sampling:
    """How completions are sampled, and when they end.

    Attributes:
        max_tokens: most tokens of a completion, at least 1.
        min_tokens: tokens before a stop id may be sampled, from 0 to `max_tokens`.
        temperature: divides the logits, at least 0. 0 takes the most likely token, 1 samples from
            the model, more flattens the distribution. One number, or one per row of a batch.
        top_k: sample among the k most likely tokens, at least 1; of equal ones at the edge, those
            with lower ids. None for all tokens.
        top_p: sample among the most likely tokens that together have at least this probability,
            after temperature and top-k, above 0 and at most 1; tokens as likely as the last one are
            kept too. 1 for all tokens. One number, or one per row of a batch.
        stop_ids: token ids that end a completion, and are its last token.
        suppressed_ids: token ids that are never sampled.
        pad_id: token id behind the end of a completion; any id of the vocabulary.

    Temperatures, top_p, ids and limits are data: changing them compiles nothing anew. The program
    depends on `top_k`, on whether there is a top_p below 1, and on whether none, some or all rows
    have temperature 0.

    Example:
        >>> from jaxalign.models import Sampling
        >>> Sampling(max_tokens=32, temperature=0.7, top_p=0.95, stop_ids=(2,)).temperature
        0.7
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
        greedy: whether none, some or all rows have temperature 0.
        top_k: how many tokens are kept; None for all.
        top_p: whether the distribution is cut to its nucleus.
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

    max_tokens: Array | np.integer
    min_tokens: Array | np.integer
    pad_id: Array | np.integer
    temperature: Array
    top_p: Array
    stop: Array
    suppressed: Array


def split_sampling(
    settings: Sampling, rows: int, padded: int, vocab_size: int
) -> tuple[StaticSampling, SamplingParams]:
    """Split the settings into what is compiled and what is data.

    Args:
        settings: of one call.
        rows: B, which temperatures and top_p that are given per row must match.
        padded: rows after padding, at least B.
        vocab_size: V.

    Raises:
        InputError: an id lies outside the vocabulary, values per row do not match the rows, or no
            token is left to sample.

    Example:
        >>> from jaxalign.models.sampling import Sampling, split_sampling
        >>> static, params = split_sampling(Sampling(temperature=[0.0, 1.0], top_k=3), 2, 2, 11)
        >>> static
        StaticSampling(greedy='some', top_k=3, top_p=False)
        >>> params.temperature.tolist()
        [0.0, 1.0]
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
    temperature, top_p = computed(settings.temperature, settings.top_p)
    temperature = _by_row("temperature", temperature, rows, padded)
    top_p = _by_row("top_p", top_p, rows, padded)
    greedy = temperature == 0
    whole = settings.top_k is None or settings.top_k >= vocab_size
    static = StaticSampling(
        greedy="all" if greedy.all() else "some" if greedy.any() else "none",
        top_k=None if whole or greedy.all() else settings.top_k,
        top_p=bool((top_p < 1).any() and not greedy.all()),
    )
    most, least, pad = map(np.int32, (settings.max_tokens, settings.min_tokens, settings.pad_id))
    return static, SamplingParams(most, least, pad, temperature, top_p, stop, suppressed)


def computed(
    temperature: float | Sequence[float], top_p: float | Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return temperatures and top_p as programs have them: float32 without subnormal numbers.

    XLA takes subnormal numbers for 0 on some devices. A temperature that small is 0, and a top_p
    that small keeps the most likely token, as the smallest normal number does.

    Args:
        temperature: one number, or one per row.
        top_p: as the temperature.

    Example:
        >>> from jaxalign.models.sampling import computed
        >>> [float(value) for value in computed(1e-46, 0.99999999)]
        [0.0, 1.0]
    """
    least = np.finfo(np.float32).tiny
    temperatures = np.asarray(temperature, np.float32)
    temperatures = np.where(temperatures < least, np.float32(0), temperatures)
    return temperatures, np.maximum(np.asarray(top_p, np.float32), least)


def sample_token(
    key: jax.Array,
    logits: jax.Array,
    temperature: Array,
    top_p: Array,
    static: StaticSampling,
) -> tuple[jax.Array, jax.Array]:
    """Sample one token, with its log-probability under the distribution sampled from.

    Args:
        key: random key.
        logits: [V], -inf for suppressed tokens.
        temperature: scalar.
        top_p: scalar.
        static: compile-time settings, from `split_sampling`.

    Returns:
        Token int32 and log-probability. Above temperature 0, under the distribution of
        `truncated_logprobs`. At temperature 0 the token is the most likely one (of equal ones the
        lowest id), with its log-probability under softmax(logits), without truncation.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxalign.models.sampling import StaticSampling, sample_token
        >>> logits, one = jnp.log(jnp.asarray([0.2, 0.7, 0.1])), jnp.float32(1)
        >>> greedy = StaticSampling("all", None, False)
        >>> token, logprob = sample_token(jax.random.key(0), logits, 0 * one, one, greedy)
        >>> int(token), round(float(jnp.exp(logprob)), 3)
        (1, 0.7)
    """
    top = jnp.max(logits)
    # The first of the largest, or of the NaN. XLA on a CPU takes an argmax number by number.
    place = jnp.arange(logits.size, dtype=jnp.int32)
    best = jnp.min(jnp.where((logits == top) | jnp.isnan(logits), place, logits.size))
    plain = -jnp.log(jnp.sum(jnp.exp(logits - top)))
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
    logits: jax.Array, temperature: Array, top_p: Array, static: StaticSampling
) -> tuple[jax.Array, jax.Array | None]:
    """The distribution that a token is sampled from.

    Args:
        logits: [V], -inf for suppressed tokens.
        temperature: scalar above 0.
        top_p: scalar.
        static: compile-time settings, from `split_sampling`.

    Returns:
        Log-probabilities [k] or [V], -inf outside the nucleus, and the ids [k] that they belong to,
        or None for all V in order.

    Source: top-k Fan et al. 2018, https://arxiv.org/abs/1805.04833; nucleus Holtzman et al. 2019,
    https://arxiv.org/abs/1904.09751.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from jaxalign.models.sampling import StaticSampling, truncated_logprobs
        >>> logits = jnp.log(jnp.asarray([0.5, 0.25, 0.2, 0.05]))
        >>> static = StaticSampling("none", 3, True)
        >>> logprobs, ids = truncated_logprobs(logits, jnp.float32(1), jnp.float32(0.7), static)
        >>> ids.tolist(), np.exp(np.float64(logprobs)).round(3).tolist()
        ([0, 1, 2], [0.667, 0.333, 0.0])
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
    """An index sampled by log-probabilities [K]: first its block, then its place in the block.

    Exact, and -inf is never sampled, as with Gumbel noise on every value. Random bits are needed
    for a few hundred values only; for a whole vocabulary they would cost more than the softmax.
    """
    blocks = -(-shares.size // _BLOCK)
    padding = (0, blocks * _BLOCK - shares.size)
    table = jnp.pad(shares, padding, constant_values=-jnp.inf).reshape(blocks, _BLOCK)
    outer, inner = jax.random.split(key)
    block = jax.random.categorical(outer, jax.nn.logsumexp(table, axis=1))
    return block * _BLOCK + jax.random.categorical(inner, table[block])


def _edge(shares: jax.Array, top_p: Array) -> jax.Array:
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


def _by_row(name: str, values: np.ndarray, rows: int, padded: int) -> np.ndarray:
    if values.ndim and values.shape != (rows,):
        raise InputError(
            f"{name} has shape {values.shape}; expected one number, or one for each of {rows} rows."
        )
    values = np.broadcast_to(values, (rows,))
    return np.pad(values, (0, padded - rows), mode="edge")


def _check_whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f"{name} is {value!r}; expected a whole number of at least {least}.")
