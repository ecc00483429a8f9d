"""From a user's feedback to the posterior of the user's weights: a pure function of the rows.

Rows enter the posterior in blocks. The rows of whole blocks are in a state whose size does not grow
with their number; the newest ones stand beside it, so that one of them can still be replaced. The
state is a cache: built anew from all rows, it has the same bits. Where the newest rows are as many
as they may be, their oldest block can enter the state before the next row comes.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sqlalchemy import Connection

from jaxalign.mrm import Feedback
from jaxalign.mrm.feedback_belief import BLOCK, FeedbackBelief, feedback_moments
from jaxalign.mrm.feedback_blocks import NEWEST, observe_rows
from jaxalign.personalize.utility import Utility
from jaxalign.serve.reward_space import LEVELS, RewardSpace
from jaxalign.serve.store import events
from jaxalign.serve.store.events import Event

MOST_NEWEST = NEWEST * BLOCK
_UNREAD = "ratings on learned features, which have no typical answer to be measured from"
_OTHER_SPACE = "rows on other rewards than the present ones"


@dataclass(frozen=True, eq=False)
class UserTaste:
    """The belief about a user, and the rows that it is based on.

    Attributes:
        utility: mean [K] and covariance [K, K] of the user's weights.
        used: rows of feedback that it is based on.
        unused: number of rows that it is not based on, by the reason.
        left_alone: why `auto` does not personalise for the user, None where it may.
        ratings: how many of the used rows are ratings.
    """

    utility: Utility
    used: int
    unused: dict[str, int] = field(default_factory=dict)
    left_alone: str | None = None
    ratings: int = 0


class LearnedRow(NamedTuple):
    """A row of feedback as the posterior takes it.

    Attributes:
        id: of the event.
        vector: [K] features of a rated answer, or of the preferred one less the other's.
        rating: whether an answer was rated.
        up: whether the rating was a thumb up.
    """

    id: str
    vector: np.ndarray
    rating: bool
    up: bool


class FoldedBlock(NamedTuple):
    """A belief after one more block of rows.

    Attributes:
        ids: of the rows of the block, in their order.
        belief: after them.
    """

    ids: tuple[str, ...]
    belief: FeedbackBelief


@dataclass(frozen=True, eq=False)
class TasteState:
    """What is kept of one user in memory.

    Attributes:
        taste: of all rows.
        belief: after the rows of whole blocks.
        newest: rows beside it, by kind and subject, in their order; `MOST_NEWEST` or fewer.
        first: id of the oldest row that is stored; None where there is none.
        last: when the last row was received, in microseconds since 1970.
        version: of the user, see `UserRow`.
        ahead: the belief that the next row begins with, where `fold_ahead` has made it.
    """

    taste: UserTaste
    belief: FeedbackBelief
    newest: dict[tuple[str, str], LearnedRow]
    first: str | None = None
    last: int = -1
    version: str = ""
    ahead: FoldedBlock | None = None

    @property
    def is_full(self) -> bool:
        """Whether the next row needs a belief after one more block."""
        return len(self.newest) == MOST_NEWEST

    @cached_property
    def size(self) -> int:
        """Bytes of its arrays, without those that all users share."""
        arrays = jax.tree.leaves(self.belief) if self.belief.num_rows else []
        arrays += [] if self.ahead is None else jax.tree.leaves(self.ahead.belief)
        utility = self.taste.utility
        rows = [row.vector for row in self.newest.values()]
        return sum(int(np.size(one)) * 4 for one in (*arrays, *rows, utility.mean, utility.cov))


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


def why_unused(space: RewardSpace, row: Event) -> str | None:
    """Return why nothing is learned from a row of feedback, None for a row that is learned from."""
    if row.space != space.ids.digest:
        return _OTHER_SPACE
    return _UNREAD if row.kind == "rating" and not space.named else None


def first_state(space: RewardSpace) -> TasteState:
    """Return the state of a user without feedback."""
    taste = UserTaste(space.population, 0, {}, space.left_alone(space.population))
    return TasteState(taste, space.start, {})


def infer_taste(space: RewardSpace, rows: Sequence[Event]) -> UserTaste:
    """Return the posterior of a user's weights. The same rows give the same bits on one machine.

    Args:
        space: the base rewards, and the population.
        rows: feedback of one user, by time and id.
    """
    return advance(space, first_state(space), current_feedback(rows)).taste


def advance(space: RewardSpace, state: TasteState, rows: Sequence[Event]) -> TasteState:
    """Return a user's state after more rows, as if it had been built from all of them.

    Args:
        space: the base rewards, and the population.
        state: after the rows before.
        rows: newer feedback, by time; none replaces a row that is in the belief.
    """
    if not rows:
        return state
    belief, newest = state.belief, dict(state.newest)
    used, ratings, unused = state.taste.used, state.taste.ratings, Counter(state.taste.unused)
    for row in rows:
        place = (row.kind, row.subject)
        reason = why_unused(space, row)
        if reason is not None:
            unused[reason] += 1
            continue
        new = newest.pop(place, None) is None
        used, ratings = used + new, ratings + (new and row.kind == "rating")
        if len(newest) == MOST_NEWEST:
            belief = _folded(belief, newest, state.ahead).belief
            newest = dict(list(newest.items())[BLOCK:])
        newest[place] = _learned(row)
    utility = space.population
    if newest:  # or else the belief is that of no row
        after = observe_rows(belief, _table(list(newest.values())))
        mean, cov = feedback_moments(after)
        utility = Utility(np.asarray(mean), np.asarray(cov), space.ids)
    taste = UserTaste(utility, used, dict(unused), space.left_alone(utility), ratings)
    return replace(
        state, taste=taste, belief=belief, newest=newest, last=rows[-1].received, ahead=None
    )


def fold_ahead(state: TasteState) -> TasteState:
    """Return a full state with the belief that its next row begins with; others as they are.

    A row that takes the place of one of that block makes it useless, and is as right without it.
    """
    if not state.is_full:
        return state
    return replace(state, ahead=_folded(state.belief, state.newest, state.ahead))


def _folded(
    belief: FeedbackBelief, newest: dict[tuple[str, str], LearnedRow], ahead: FoldedBlock | None
) -> FoldedBlock:
    """The belief after the oldest block of the newest rows, which may be there already."""
    oldest = list(newest.values())[:BLOCK]
    ids = tuple(row.id for row in oldest)
    if ahead is not None and ahead.ids == ids:
        return ahead
    return FoldedBlock(ids, observe_rows(belief, _table(oldest)))


def unseen_rows(
    connection: Connection, user: str, state: TasteState, empty: TasteState
) -> tuple[str, TasteState, list[Event]]:
    """Return the version of a user's rows, the state to go on from, and the rows that follow.

    Args:
        connection: to read from.
        user: whose.
        state: that is known, perhaps the empty one.
        empty: the state of a user without feedback.

    Returns:
        The known state and no rows where nothing has changed; the empty state and all rows where
        rows were deleted since, or where one replaces a row that can no longer be taken out.
    """
    row = events.user_row(connection, user)
    if row is None:
        return empty.version, empty, []
    if row.version == state.version:
        return row.version, state, []
    first = events.first_feedback(connection, user)
    if state.first == first:
        rows = events.feedback(connection, user, state.last)
        known = {row.id for row in rows} | {row.id for row in state.newest.values()}
        if all(events.about_same(connection, row) <= known for row in rows):
            return row.version, state, current_feedback(rows)
    rows = current_feedback(events.feedback(connection, user))
    return row.version, replace(empty, first=first), rows


def compile_feedback(space: RewardSpace) -> None:
    """Compile what the first row of feedback needs, which takes seconds."""
    value: dict[str, object] = {"preferred": 0, "difference": [0.0] * len(space.ids.names)}
    infer_taste(space, [Event("", 0, "", "preferred", "", value, space.ids.digest)])


def _learned(row: Event) -> LearnedRow:
    rating = row.kind == "rating"
    vector = np.asarray(row.value["features" if rating else "difference"], np.float32)
    return LearnedRow(row.id, vector, rating, row.value.get("rating", 1) == 1)


def _table(rows: Sequence[LearnedRow]) -> Feedback:
    """Rows of one user as the likelihood takes them.

    They are filled up to the most that there may be: jax compiles the transfer of each new shape,
    which takes longer than the posterior.
    """
    vectors = np.zeros((MOST_NEWEST, len(rows[0].vector)), np.float32)
    rating, up = np.zeros((2, MOST_NEWEST), bool)
    for number, row in enumerate(rows):
        vectors[number], rating[number], up[number] = row.vector, row.rating, row.up
    chosen = LEVELS.choice(None, np.zeros_like(rating))
    rated = LEVELS.rating(0, up.astype(np.int32))
    lower, upper = (np.where(rating, *both) for both in zip(rated, chosen, strict=True))
    weight = (np.arange(MOST_NEWEST) < len(rows)).astype(np.float32)
    return Feedback(*map(jnp.asarray, (vectors, rating, lower, upper, weight)))
