"""Texts of many lengths in batches of few shapes: one compilation for each."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np

# Of a batch: enough to fill the machine, little enough to keep padding and waiting small.
_CPU_TOKENS = 2_048


def bucket_length(length: int, limit: int) -> int:
    """The padded length of a text: four steps an octave from 16 on, at most `limit`."""
    step = max(16, 1 << max(0, (length - 1).bit_length() - 3))
    return min(-(-length // step) * step, limit)


def default_tokens(accelerator: int) -> int:
    """Tokens of a batch, padding included, that suit the backend."""
    return _CPU_TOKENS if jax.default_backend() == "cpu" else accelerator


def by_length(
    lengths: Sequence[int], limit: int, batch_tokens: int
) -> Iterator[tuple[list[int], tuple[int, int]]]:
    """Rows of each batch with its padded shape (B, T), longest first.

    T alone decides B, so there is one compilation a bucket; what a bucket leaves free is filled
    with the next shorter texts, so only the last batch has empty rows. The longest come first: a
    machine too small fails at once.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    start = 0
    while start < len(order):
        width = bucket_length(lengths[order[start]], limit)
        size = max(1, batch_tokens // width)
        yield order[start : start + size], (size, width)
        start += size


def padded(rows: Sequence[Sequence[int]], shape: tuple[int, int]) -> np.ndarray:
    """Rows of token ids as one array of a shape (B, T), zeros where there is nothing."""
    table = np.zeros(shape, np.int32)
    for number, row in enumerate(rows):
        table[number, : len(row)] = row
    return table
