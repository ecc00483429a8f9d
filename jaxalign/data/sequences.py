"""Token sequences of different lengths, held flat, and cut into padded arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sequences:
    """N token sequences, one after another.

    Attributes:
        tokens: [sum of lengths] int32.
        starts: [N + 1] int64; sequence n is tokens[starts[n] : starts[n + 1]].

    Example:
        >>> import numpy as np
        >>> from jaxalign.data.sequences import Sequences
        >>> tokens, lengths = Sequences.of([[5, 6], [7]]).padded(np.array([1, -1]), width=2)
        >>> tokens.tolist(), lengths.tolist()
        ([[7, 0], [0, 0]], [1, 1])
    """

    tokens: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "Sequences":
        """From lists of token ids."""
        lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        flat = (token for row in rows for token in row)
        return cls(np.fromiter(flat, np.int32, int(starts[-1])), starts)

    @classmethod
    def joined(cls, parts: Sequence["Sequences"]) -> "Sequences":
        """All sequences of several, in order."""
        lengths = np.concatenate([part.lengths for part in parts])
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        return cls(np.concatenate([part.tokens for part in parts]), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """[N] int64 tokens of each sequence."""
        return np.diff(self.starts)

    def tokens_of(self, row: int) -> np.ndarray:
        """Return the tokens [T] of one sequence."""
        return self.tokens[self.starts[row] : self.starts[row + 1]]

    def padded(self, rows: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Some sequences as one array, padded on the right with 0.

        Args:
            rows: [B] int numbers of sequences; -1 for a row without one.
            width: T, at least the longest of them.

        Returns:
            tokens [B, T] int32 and lengths [B] int32. A row without a sequence counts as one token
            long: attention over nothing would be NaN.
        """
        return pad_flat(self.tokens, self.starts, rows, width), np.where(
            rows < 0, 1, self.lengths[rows]
        ).astype(np.int32)


def pad_flat(flat: np.ndarray, starts: np.ndarray, rows: np.ndarray, width: int) -> np.ndarray:
    """Values that stand beside the tokens of `Sequences`, padded alike with 0: [B, T].

    Example:
        >>> import numpy as np
        >>> from jaxalign.data.sequences import pad_flat
        >>> pad_flat(np.array([5, 6, 7]), np.array([0, 2, 3]), np.array([1, 0]), width=3).tolist()
        [[7, 0, 0], [5, 6, 0]]
    """
    first, length = starts[rows], np.where(rows < 0, 0, starts[rows + 1] - starts[rows])
    if length.max(initial=0) > width:
        raise ValueError(f"a sequence has {length.max()} tokens, more than the width {width}")
    within = np.arange(width) < length[:, None]
    place = np.where(within, first[:, None] + np.arange(width), 0)
    return np.where(within, flat[place] if len(flat) else 0, 0).astype(flat.dtype)
