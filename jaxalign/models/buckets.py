"""Batches of few shapes for texts of many lengths, so that each shape compiles once."""

from collections.abc import Iterator, Sequence

import numpy as np

from jaxalign.backend import program_backend

# Of a batch: enough to fill the machine, little enough to keep padding and waiting small.
_CPU_TOKENS = 2_048


def bucket_length(length: int, limit: int, finest: int = 16) -> int:
    """Return the padded length of a text: four steps per octave, at most `limit`.

    Args:
        length: tokens of the text, at least 1.
        limit: longest padded length.
        finest: the smallest step.

    Example:
        >>> from jaxalign.models.buckets import bucket_length
        >>> [bucket_length(length, 100) for length in (3, 17, 33, 65, 99)]
        [16, 32, 48, 80, 100]
    """
    step = max(finest, 1 << max(0, (length - 1).bit_length() - 3))
    return min(-(-length // step) * step, limit)


def default_tokens(accelerator: int) -> int:
    """Return the tokens of a batch, padding included, that suit the backend."""
    return _CPU_TOKENS if program_backend() == "cpu" else accelerator


def by_length(
    lengths: Sequence[int], limit: int, batch_tokens: int, few: bool = False
) -> Iterator[tuple[list[int], tuple[int, int]]]:
    """Yield the rows of each batch with its padded shape (B, T), longest first.

    T alone decides B, so that there is one compilation per bucket. Places that a bucket leaves free
    are filled with the next shorter texts, so that only the last batch has empty rows. The longest
    texts come first, so that a machine with too little memory fails at once.

    Args:
        lengths: tokens of each text.
        limit: longest padded length.
        batch_tokens: tokens of a batch, padding included.
        few: whether the shapes fit the texts: steps of 8 between the lengths of short ones, and the
            next power of two as the last batch. That is for a call with few texts, which would
            otherwise be a small part of one batch.

    Example:
        >>> from jaxalign.models.buckets import by_length
        >>> list(by_length([5, 30, 12], limit=64, batch_tokens=64))
        [([1, 2], (2, 32)), ([0], (4, 16))]
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    start = 0
    while start < len(order):
        width = bucket_length(lengths[order[start]], limit, 8 if few else 16)
        size = max(1, batch_tokens // width)
        rows = order[start : start + size]
        fitting = min(size, 1 << (len(rows) - 1).bit_length())
        yield rows, (fitting if few else size, width)
        start += size


def padded(rows: Sequence[Sequence[int]], shape: tuple[int, int]) -> np.ndarray:
    """Return rows of token ids as one array [B, T], zeros behind them.

    Example:
        >>> from jaxalign.models.buckets import padded
        >>> padded([[5, 6], [7]], (2, 3)).tolist()
        [[5, 6, 0], [7, 0, 0]]
    """
    table = np.zeros(shape, np.int32)
    for number, row in enumerate(rows):
        table[number, : len(row)] = row
    return table
