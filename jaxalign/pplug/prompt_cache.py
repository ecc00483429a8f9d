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


@dataclass(frozen=True, eq=False)
class PromptCache:
    """The keys and values of all prompts that were requested, on the host.

    Attributes:
        config: Of the language model.
        params: Of the language model.
        gib: Most memory of the keys and values of one call of `read`, in GiB.
        progress: Whether bars are shown on standard error.
    """

    config: families.Config
    params: Params
    gib: float
    progress: bool = False
    _kept: dict[bytes, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)

    def read(self, prompts: Sequences) -> tuple[Cache | None, np.ndarray]:
        """Return the keys and values of the distinct prompts, and which of them each prompt is.

        Args:
            prompts: N prompts.

        Returns:
            [L, U, G, S, H] of U distinct prompts, or None if they need more than `gib`; and [N]
            int32.
        """
        first, own = distinct(prompts)
        config, width = self.config, int(prompts.lengths.max())
        shape = (config.layers, len(first), config.kv_heads, width, config.head_width)
        size = 2 * np.prod(shape, dtype=float) * jnp.dtype(config.dtype).itemsize
        if size > self.gib * 2**30:
            return None, own
        texts = [prompts.tokens_of(n) for n in first]
        self._add(texts)
        whole = [np.zeros(shape, jnp.dtype(config.dtype)) for _ in range(2)]
        for place, text in enumerate(texts):
            for array, kept in zip(whole, self._kept[text.tobytes()], strict=True):
                array[:, place, :, : len(text)] = kept
        key, value = map(jnp.asarray, whole)
        return Cache(key, value), own

    def _add(self, texts: list[np.ndarray]) -> None:
        """Read the prompts that are not there yet, those of like length together."""
        new = [text for text in texts if text.tobytes() not in self._kept]
        if not new:
            return
        longest = max(map(len, new))
        batches = by_length([len(text) for text in new], longest, _TOKENS)
        own = Sequences.of([text.tolist() for text in new])
        for rows, (size, width) in track(
            "reading the prompts", batches, len(new), lambda batch: len(batch[0]), self.progress
        ):
            filled = np.array(rows + rows[-1:] * (size - len(rows)))
            found = _read(self.config, self.params, *own.padded(filled, width))
            host = [np.asarray(to_host(array)) for array in found]
            for place, row in enumerate(rows):
                key, value = (array[:, place, :, : len(new[row])].copy() for array in host)
                self._kept[new[row].tobytes()] = (key, value)


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


_read = jax.jit(read_prompts, static_argnums=0)
