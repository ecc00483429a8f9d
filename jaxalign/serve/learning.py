"""From a user's feedback to the posterior of the user's weights: a pure function of the rows.

Rows enter the posterior one by one, and its size does not grow with their number. The newest rows
stand beside it, with what was known before each block of them, so that one of them can still be
replaced. The state is a cache: built anew from all rows, it has the same bits.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import jax
import numpy as np
from sqlalchemy import Connection

from jaxalign.mrm.feedback_belief import BLOCK, FeedbackBelief, feedback_moments
from jaxalign.mrm.feedback_blocks import FeedbackRows, observe_rows
from jaxalign.personalize.utility import Utility
from jaxalign.serve.reward_space import LEVELS, RewardSpace
from jaxalign.serve.store import events
from jaxalign.serve.store.events import Event

MOST_NEWEST = 2 * BLOCK
"""Rows beside the state: those of the last block at least can be replaced."""
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


@dataclass(frozen=True, eq=False)
class TasteState:
    """What is kept of one user in memory.

    Attributes:
        taste: of all rows.
        beliefs: before the newest rows, after each whole block of them, and after the last one.
        newest: rows by kind and subject, in their order; `MOST_NEWEST` or fewer.
        first: id of the oldest row that is stored; None where there is none.
        last: when the last row was received, in microseconds since 1970.
        version: of the user, see `UserRow`.
    """

    taste: UserTaste
    beliefs: tuple[FeedbackBelief, ...]
    newest: dict[tuple[str, str], LearnedRow]
    first: str | None = None
    last: int = -1
    version: str = ""

    @cached_property
    def size(self) -> int:
        """Bytes of its arrays, without those that all users share."""
        learned = [belief for belief in self.beliefs if belief.num_rows]
        arrays = {id(leaf): leaf for leaf in jax.tree.leaves(learned)}
        utility = self.taste.utility
        rows = [row.vector for row in self.newest.values()]
        own = (*arrays.values(), *rows, utility.mean, utility.cov)
        return sum(int(np.size(one)) * 4 for one in own)


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
    return TasteState(taste, (space.start,), {})


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
    beliefs, newest = state.beliefs, dict(state.newest)
    known = len(newest)  # of the newest rows, those that the last belief is of
    used, ratings, unused = state.taste.used, state.taste.ratings, Counter(state.taste.unused)
    for row in rows:
        place = (row.kind, row.subject)
        reason = why_unused(space, row)
        if reason is not None:
            unused[reason] += 1
            continue
        if place in newest:
            beliefs, known = _before(beliefs, known, list(newest).index(place))
            del newest[place]
        else:
            used, ratings = used + 1, ratings + (row.kind == "rating")
        if len(newest) == MOST_NEWEST:
            beliefs = _with_rows(beliefs, known, list(newest.values()))[1:]
            newest = dict(list(newest.items())[BLOCK:])
            known = len(newest)
        newest[place] = _learned(row)
    utility = space.population
    if newest:  # or else the belief is that of no row
        beliefs = _with_rows(beliefs, known, list(newest.values()))
        mean, cov = feedback_moments(beliefs[-1])
        utility = Utility(np.asarray(mean), np.asarray(cov), space.ids)
    taste = UserTaste(utility, used, dict(unused), space.left_alone(utility), ratings)
    return replace(state, taste=taste, beliefs=beliefs, newest=newest, last=rows[-1].received)


def _before(
    beliefs: tuple[FeedbackBelief, ...], known: int, place: int
) -> tuple[tuple[FeedbackBelief, ...], int]:
    """The beliefs without the block of one of the newest rows and what follows, and their rows."""
    if place >= known:
        return beliefs, known
    whole = place // BLOCK
    return beliefs[: whole + 1], whole * BLOCK


def _with_rows(
    beliefs: tuple[FeedbackBelief, ...], known: int, newest: Sequence[LearnedRow]
) -> tuple[FeedbackBelief, ...]:
    """The beliefs of all newest rows, of which the first ones are known."""
    while known < len(newest):
        whole = known // BLOCK
        end = min((whole + 1) * BLOCK, len(newest))
        after = observe_rows(beliefs[-1], _table(newest[known:end]))
        beliefs, known = (*beliefs[: whole + 1], after), end
    return beliefs


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
        known = {None} | {row.id for row in state.newest.values()}
        if all(events.last_about_same(connection, row, state.last) in known for row in rows):
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


def _table(rows: Sequence[LearnedRow]) -> FeedbackRows:
    """Rows of one user as the likelihood takes them, on the host."""
    vectors = np.stack([row.vector for row in rows])
    rating, up = (
        np.array(flags) for flags in zip(*((row.rating, row.up) for row in rows), strict=True)
    )
    chosen = LEVELS.choice(None, np.zeros_like(rating))
    rated = LEVELS.rating(0, up.astype(np.int32))
    lower, upper = (np.where(rating, *both) for both in zip(rated, chosen, strict=True))
    return FeedbackRows(vectors, rating, lower, upper)
