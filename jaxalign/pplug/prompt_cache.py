"""Keys and values of prompts, each read once by the frozen model, however many samples ask it."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data.sequences import Sequences
from jaxalign.models import families
from jaxalign.models.attention import Cache
from jaxalign.models.buckets import by_length
from jaxalign.models.global_arrays import to_host
from jaxalign.models.params import Array, Params
from jaxalign.progress import track

_TOKENS = 1_024  # of the prompts that are read together


@dataclass(eq=False)
class PromptCache:
    """The keys and values of the prompts that were requested last.

    They are held once, on the device: a second request for some of the same prompts returns them.

    Attributes:
        config: Of the language model.
        params: Of the language model.
        gib: Most memory of the keys and values, in GiB.
        progress: Whether bars are shown on standard error.
    """

    config: families.Config
    params: Params
    gib: float
    progress: bool = False
    _places: dict[bytes, int] = field(default_factory=dict, repr=False)
    _held: Cache | None = field(default=None, repr=False)

    def read(self, prompts: Sequences) -> tuple[Cache | None, np.ndarray]:
        """Return keys and values that hold all prompts, and which of them each prompt is.

        Args:
            prompts: N prompts.

        Returns:
            [L, U, G, S, H] of U distinct prompts, or None if they need more than `gib`; and [N]
            int32.
        """
        first, own = distinct(prompts)
        texts = [prompts.tokens_of(n) for n in first]
        keys = [text.tobytes() for text in texts]
        if not all(key in self._places for key in keys):
            config, width = self.config, int(prompts.lengths.max())
            shape = (config.layers, len(first), config.kv_heads, width, config.head_width)
            size = 2 * np.prod(shape, dtype=float) * jnp.dtype(config.dtype).itemsize
            if size > self.gib * 2**30:
                return None, own
            self._places, self._held = {}, None  # before as much memory is needed again
            self._held = self._read(texts, shape)
            self._places = {key: place for place, key in enumerate(keys)}
        return self._held, np.array([self._places[key] for key in keys], np.int32)[own]

    def _read(self, texts: list[np.ndarray], shape: tuple[int, ...]) -> Cache:
        """Keys and values of a shape, of prompts that are read together with those of like length.

        Each batch is written where it belongs, so that nothing is held twice.
        """
        dtype = jnp.dtype(self.config.dtype)
        whole = Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
        batches = by_length([len(text) for text in texts], shape[3], _TOKENS)
        own = Sequences.of([text.tolist() for text in texts])
        for rows, (size, width) in track(
            "reading the prompts", batches, len(texts), lambda batch: len(batch[0]), self.progress
        ):
            filled = np.array(rows + rows[-1:] * (size - len(rows)))
            tokens, lengths = own.padded(filled, width)
            found = _read(self.config, self.params, tokens, lengths)
            whole = _written(whole, Cache(*map(to_host, found)), filled, lengths)
        return whole


def read_prompts(config: families.Config, params: Params, tokens: Array, lengths: Array) -> Cache:
    """Return the keys and values [L, B, G, T, H] of prompts [B, T] with `lengths` [B]."""
    cache = families.new_cache(config, *np.shape(tokens))
    _, kept = families.forward(config, params, tokens, lengths, cache=cache)
    return families.stacked_cache(kept)


def distinct(sequences: Sequences) -> tuple[np.ndarray, np.ndarray]:
    """Return the first place of each distinct sequence [U], and which of them each one is [N].

    Example:
        >>> from jaxalign.data.sequences import Sequences
        >>> from jaxalign.pplug.prompt_cache import distinct
        >>> first, own = distinct(Sequences.of([[5, 6], [7], [5, 6]]))
        >>> first.tolist(), own.tolist()
        ([0, 1], [0, 1, 0])
    """
    bounds = zip(sequences.starts[:-1].tolist(), sequences.starts[1:].tolist(), strict=True)
    texts = [sequences.tokens[first:last].tobytes() for first, last in bounds]
    number = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    own = np.fromiter((number[text] for text in texts), np.int32, len(texts))
    return np.unique(own, return_index=True)[1], own


def chosen_past(prompts: Cache, numbers: Array, width: int) -> Cache:
    """Return the keys and values [L, B, G, T, H] of some of the prompts [L, U, G, S, H].

    Args:
        prompts: Keys and values of U prompts.
        numbers: [B] int32 prompts.
        width: T, at least as long as each of them.
    """
    key, value = (jnp.take(kept[..., :width, :], numbers, axis=1) for kept in prompts)
    return Cache(key, value)


def _write(whole: Cache, found: Cache, places: Array, lengths: Array) -> Cache:
    """`whole` with the keys and values of some prompts [L, B, G, T, H], zeros behind their ends."""
    width = min(found.key.shape[3], whole.key.shape[3])
    there = (jnp.arange(width)[None, :] < jnp.asarray(lengths)[:, None])[None, :, None, :, None]
    both = zip(whole, found, strict=True)
    return Cache(
        *(
            held.at[:, places, :, :width].set(jnp.where(there, new[..., :width, :], 0))
            for held, new in both
        )
    )


_read = jax.jit(read_prompts, static_argnums=0)
_written = jax.jit(_write, donate_argnums=0)
