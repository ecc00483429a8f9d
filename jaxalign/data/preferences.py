"""Choices as arrays: the table that every source fills and every split reads."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np


class RowDetails(NamedTuple):
    """What rows say beyond which answer was chosen, [N] or padded by user [U, P].

    Attributes:
        scale: int32 number of the scale that an answer was rated on; -1 for a choice.
        level: int32 level of the rating, from 0; of a choice, how many steps the chosen answer is
            ahead, 0 where that is not stated, and -1 of a tie in padded arrays.
        top: int32 highest level of the scale; 0 for a choice.
        weight: float32, how much the row counts; 0 for padding.
        implicit: bool, whether the choice was seen in what the user did, and not stated.
    """

    scale: Any
    level: Any
    top: Any
    weight: Any
    implicit: Any

    def take(self, rows: np.ndarray) -> "RowDetails":
        """Return the same of some rows."""
        return RowDetails(*(array[rows] for array in self))

    @property
    def mirrored(self) -> "RowDetails":
        """The same ratings turned round: the lowest level for the highest."""
        return self._replace(level=np.where(self.scale >= 0, self.top - self.level, self.level))


@dataclass(frozen=True)
class Preferences:
    """Choices of users between items, one row a choice or a rating, strings held once.

    An item is what a feature row belongs to: an id of a feature file or a text; with a prompt, the
    pair of the two. Rows keep the order of their source.

    Attributes:
        users: user ids; `user` points into it.
        items: item keys; `chosen` and `rejected` point into it. Features are looked up by them.
        texts: [len(items)] what an encoder reads for each item; with a prompt, a `Conversation`.
        user: [N] int32.
        chosen: [N] int32.
        rejected: [N] int32.
        group: [N] int32, numbered over the whole table; rows of one user with the same group are
            never split between support and query. A source without groups gives each row its own.
        prompt: [N] int32 prompt or topic of the row, -1 where there is none.
        tie: [N] bool; a tie has no winner and `chosen`/`rejected` are in file order.
        source: what the rows were read from, for messages and reports.
        held_out: [N] bool, rows that the source itself keeps to judge users on, or None where it
            leaves that to the splits.
        notes: what reading dropped or found remarkable, a sentence each.
        details: ratings, strengths, weights and implicit choices; None where all rows are plain
            choices. The item of a rating stands in `chosen` and in `rejected`.
        scales: lowest and highest rating of each scale that `details` points into.
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
    held_out: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    details: RowDetails | None = None
    scales: tuple[tuple[float, float], ...] = ()

    @property
    def rating(self) -> np.ndarray:
        """[N] bool, the rows that rate one item in place of choosing between two."""
        if self.details is None:
            return np.zeros(len(self), bool)
        return np.asarray(self.details.scale >= 0)

    @property
    def strict(self) -> np.ndarray:
        """[N] bool, the choices that have a winner."""
        return ~self.tie & ~self.rating

    def __len__(self) -> int:
        return int(self.user.shape[0])

    def take(self, rows: np.ndarray) -> "Preferences":
        """The same users and items with only the given rows ([M] int or [N] bool)."""
        fields = ("user", "chosen", "rejected", "group", "prompt", "tie")
        picked = {name: getattr(self, name)[rows] for name in fields}
        held_out = None if self.held_out is None else self.held_out[rows]
        details = None if self.details is None else self.details.take(rows)
        return replace(self, **picked, held_out=held_out, details=details)


@dataclass(frozen=True)
class ChoiceSource:
    """Choices together with what a split needs to know of where they come from.

    Attributes:
        choices: the table for splits by user.
        fold_choices: pairs whose two items lie in one item fold, for splits by item, with the same
            users, items and texts; None where `choices` serves for both or there are no folds.
        fold_of_item: [items] int32 fold of each item, or None.
        dropped: rows of the source left out because they are no choice: both texts the same or
            one of them blank, or the user had chosen the other way before.
    """

    choices: Preferences
    fold_choices: Preferences | None = None
    fold_of_item: np.ndarray | None = None
    dropped: int = 0
