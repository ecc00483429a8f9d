"""From a user's feedback to the posterior of the user's weights: a pure function of the rows."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np

from jaxalign.mrm import Feedback, FeedbackPrior, Levels, feedback_posterior
from jaxalign.personalize.choices import from_choices
from jaxalign.personalize.utility import Utility
from jaxalign.serve.reward_space import RewardSpace
from jaxalign.serve.store.events import Event

LEVELS = Levels(ratings=(2,))
"""Choices without ties, and thumbs."""
LEVEL_SD, LOG_SPREAD_SD = 1.0, 0.5
"""How far people differ in where a good answer begins, in logits, and by which factor in how
decisively they rate. Assumed, and not fitted: no log of thumbs comes with the package.
"""
LEAST_ROOM = 32
"""Rows of the smallest program; twice as many each time that they do not suffice."""
_UNREAD = "ratings on learned features, which have no typical answer to be measured from"
_OTHER_SPACE = "rows on other rewards than the present ones"


@dataclass(frozen=True, eq=False)
class UserTaste:
    """The belief about a user, and the rows that it is based on.

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


def why_unused(space: RewardSpace, row: Event) -> str | None:
    """Return why nothing is learned from a row of feedback, None for a row that is learned from."""
    if row.space != space.ids.digest:
        return _OTHER_SPACE
    return _UNREAD if row.kind == "rating" and not space.named else None


def infer_taste(space: RewardSpace, rows: Sequence[Event]) -> UserTaste:
    """Return the posterior of a user's weights.

    The same rows give the same bits on one machine: all of them are fitted anew, in their order, in
    a program whose size is a power of two.

    Args:
        space: the base rewards, and the population.
        rows: feedback of one user, by time and id.
    """
    unused: Counter[str] = Counter()
    used = []
    for row in current_feedback(rows):
        reason = why_unused(space, row)
        if reason is None:
            used.append(row)
        else:
            unused[reason] += 1
    table = _table(used, len(space.ids.names))
    if any(row.kind == "rating" for row in used):
        found = feedback_posterior(_prior(space), table)
        utility = Utility(np.asarray(found.mean[0]), np.asarray(found.cov[0]), space.ids)
    else:
        both = from_choices(space.prior, table.vectors, table.weight, space.ids)
        utility = Utility(both.mean[0], both.cov[0], space.ids)
    return UserTaste(utility, len(used), dict(unused))


def compile_ratings(space: RewardSpace) -> None:
    """Compile what the first thumb needs, which takes seconds."""
    value: dict[str, object] = {"rating": 1, "features": [0.0] * len(space.ids.names)}
    infer_taste(space, [Event("", 0, "", "rating", "", value, space.ids.digest)])


def _table(rows: Sequence[Event], size: int) -> Feedback:
    """The rows as the likelihood takes them, of one user and padded to a power of two."""
    room = LEAST_ROOM
    while room < len(rows):
        room *= 2
    vectors = np.zeros((1, room, size), np.float32)
    rating = np.zeros((1, room), bool)
    up = np.ones((1, room), np.int32)
    weight = np.zeros((1, room), np.float32)
    for place, row in enumerate(rows):
        rating[0, place] = row.kind == "rating"
        named = "features" if rating[0, place] else "difference"
        vectors[0, place] = np.asarray(row.value[named], np.float32)
        up[0, place] = row.value.get("rating", 1) == 1
        weight[0, place] = 1
    chosen = LEVELS.choice(None, np.zeros_like(rating))
    rated = LEVELS.rating(0, up)
    edges = [np.where(rating, one, other) for one, other in zip(rated, chosen, strict=True)]
    return Feedback(*map(jnp.asarray, (vectors, rating, *edges, weight)))


def _prior(space: RewardSpace) -> FeedbackPrior:
    spread = (np.float32(x) for x in (LEVEL_SD, 0.0, LOG_SPREAD_SD))
    edges = LEVELS.edges(jnp.zeros(LEVELS.thresholds))
    return FeedbackPrior(space.prior, edges, *map(jnp.asarray, spread))
