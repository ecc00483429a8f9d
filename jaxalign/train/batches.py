"""Rows of like length together, in batches of few and fixed shapes, in an order that can resume."""

from dataclasses import dataclass

import numpy as np

from jaxalign.errors import InputError

SMALLEST_WIDTH = 32


@dataclass(frozen=True)
class Batches:
    """The batches of every epoch, a function of the seed and the number of the epoch alone.

    Each row stands in one batch an epoch. Batches hold rows of one bucket (a width that they are
    padded to); what is left over of a bucket moves on to the next wider one, so only the last
    batch of the widest is not full.

    Attributes:
        lengths: [N] tokens of each row.
        size: rows of a batch.
        seed: of the order.
        smallest: the least width; the others are its doubles.
        widest: bound on the widths, None for none.

    Example:
        >>> import numpy as np
        >>> from jaxalign.train.batches import Batches
        >>> batches = Batches(np.array([3, 40, 5]), size=2)
        >>> [(width, sorted(rows.tolist())) for width, rows in batches.in_order()]
        [(32, [0, 2]), (64, [-1, 1])]
    """

    lengths: np.ndarray
    size: int
    seed: int = 0
    smallest: int = SMALLEST_WIDTH
    widest: int | None = None

    def __post_init__(self) -> None:
        if not len(self.lengths) or self.size < 1:
            raise InputError(
                f"{len(self.lengths)} rows in batches of {self.size}; expected some rows, and at "
                "least one a batch."
            )

    def __len__(self) -> int:
        """Batches of an epoch."""
        return -(-len(self.lengths) // self.size)

    @property
    def widths(self) -> np.ndarray:
        """[N] int64 width of each row's own bucket."""
        doublings = np.ceil(np.log2(np.maximum(self.lengths, 1) / self.smallest))
        widths = self.smallest * 2 ** np.maximum(doublings, 0).astype(np.int64)
        return widths if self.widest is None else np.minimum(widths, self.widest)

    def epoch(self, number: int) -> list[tuple[int, np.ndarray]]:
        """Width and rows [size] of each batch, -1 where there is no row."""
        rng = np.random.Generator(np.random.PCG64([self.seed, number]))
        shuffled = rng.permutation(len(self.lengths))
        planned = self._fill(shuffled)
        return [planned[i] for i in rng.permutation(len(planned))]

    def in_order(self) -> list[tuple[int, np.ndarray]]:
        """The same without a shuffle, for judging."""
        return self._fill(np.arange(len(self.lengths)))

    def _fill(self, rows: np.ndarray) -> list[tuple[int, np.ndarray]]:
        widths = self.widths[rows]
        planned, left = [], np.zeros(0, np.int64)
        used = np.unique(widths)
        for width in used:
            mine = np.concatenate([left, rows[widths == width]])
            full = len(mine) // self.size * self.size
            planned += [(int(width), part) for part in mine[:full].reshape(-1, self.size)]
            left = mine[full:]
        if len(left):
            empty = np.full(self.size - len(left), -1, np.int64)
            planned.append((int(used[-1]), np.concatenate([left, empty])))
        return planned
