"""From a user's feedback to the posterior of the user's weights: a pure function of the rows."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxalign.personalize.choices import from_choices
from jaxalign.personalize.utility import Utility
from jaxalign.serve.reward_space import RewardSpace
from jaxalign.serve.store.events import Event

LEAST_ROOM = 32
"""Rows of the smallest program; twice as many each time that they do not suffice."""
UNREAD = "ratings, which the user model does not read yet"
OTHER_SPACE = "rows on other rewards than the present ones"


@dataclass(frozen=True, eq=False)
class UserTaste:
    """What is believed of a user, and from what.

    Attributes:
        utility: mean [K] and covariance [K, K] of the user's weights.
        used: rows of feedback that it is based on.
        unused: number of rows that it is not based on, by the reason.
    """

    utility: Utility
    used: int
    unused: dict[str, int] = field(default_factory=dict)


def current_feedback(rows: Sequence[Event]) -> list[Event]:
    """Return the rows that count: of one kind about one subject, the last.

    Args:
        rows: of one user, by time and id.

    Example:
        >>> from jaxalign.serve.learning import current_feedback
        >>> from jaxalign.serve.store.events import Event
        >>> rows = [Event(name, 0, "ann", "rating", "1.0", {}, "s") for name in "ab"]
        >>> [row.id for row in current_feedback(rows)]
        ['b']
    """
    last = {(row.kind, row.subject): row.id for row in rows}
    return [row for row in rows if last[row.kind, row.subject] == row.id]


def infer_taste(space: RewardSpace, rows: Sequence[Event]) -> UserTaste:
    """Return the posterior of a user's weights.

    The same rows give the same bits on one machine: all of them are fitted anew, in their order, in
    a program whose size is a power of two.

    Args:
        space: the base rewards, and the population.
        rows: feedback of one user, by time and id.
    """
    unused: Counter[str] = Counter()
    differences = []
    for row in current_feedback(rows):
        difference = row.value.get("difference")
        if row.space != space.ids.digest:
            unused[OTHER_SPACE] += 1
        elif isinstance(difference, list):
            differences.append(difference)
        else:
            unused[UNREAD] += 1
    count, size = len(differences), len(space.ids.names)
    room = LEAST_ROOM
    while room < count:
        room *= 2
    table = np.zeros((1, room, size), np.float32)
    weight = np.zeros((1, room), np.float32)
    if count:
        table[0, :count], weight[0, :count] = differences, 1
    found = from_choices(space.prior, table, weight, space.ids)
    return UserTaste(Utility(found.mean[0], found.cov[0], space.ids), count, dict(unused))
