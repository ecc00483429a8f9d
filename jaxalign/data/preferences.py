"""Choices as arrays: the table that every source fills and every split reads."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Preferences:
    """Choices of users between items, one row a choice, strings held once.

    An item is what a feature row belongs to: an id of a feature file or a text; with a prompt, the
    pair of the two. Rows keep the order of their source.

    Attributes:
        users: user ids; `user` points into it.
        items: item keys; `chosen` and `rejected` point into it. Features are looked up by them.
        texts: [len(items)] what an encoder reads for each item (prompt and answer, joined).
        user: [N] int32.
        chosen: [N] int32.
        rejected: [N] int32.
        group: [N] int32, numbered over the whole table; rows of one user with the same group are
            never split between support and query. A source without groups gives each row its own.
        prompt: [N] int32 prompt or topic of the row, -1 where there is none.
        tie: [N] bool; a tie has no winner and `chosen`/`rejected` are in file order.
        source: what the rows were read from, for messages and reports.
    """

    users: tuple[str, ...]
    items: tuple[str, ...]
    texts: tuple[str, ...]
    user: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    group: np.ndarray
    prompt: np.ndarray
    tie: np.ndarray
    source: str = "memory"

    def __len__(self) -> int:
        return int(self.user.shape[0])

    def take(self, rows: np.ndarray) -> "Preferences":
        """The same users and items with only the given rows ([M] int or [N] bool)."""
        fields = ("user", "chosen", "rejected", "group", "prompt", "tie")
        picked = {name: getattr(self, name)[rows] for name in fields}
        return Preferences(self.users, self.items, self.texts, **picked, source=self.source)
