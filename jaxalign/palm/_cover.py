"""Which policies to keep: the fewest within a tolerance, or the best of a given number.

Everything works on losses [P, W], of policy p for weight w; a free member's losses [W] cap them.
Covers are exact integer programs (HiGHS) or greedy; either says how far from optimal it may be.
"""

import time
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import LinearConstraint, milp
from scipy.sparse import csr_array

from jaxalign.arrays import Sizes, check_count, check_mask, check_numpy
from jaxalign.errors import InputError
from jaxalign.palm.domain import Floats

Bools = NDArray[np.bool_]
Indices = NDArray[np.intp]

# Weights that a budget is first solved on.
_FIRST_ROWS = 64


class Cover(NamedTuple):
    """A cover: its members, the fewest there can be as far as is proven, and the seconds spent."""

    members: Indices
    lower_bound: int
    seconds: float

    @property
    def optimal(self) -> bool:
        """Whether no smaller cover exists."""
        return len(self.members) <= self.lower_bound


class Selection(NamedTuple):
    """The best of a given size: members, their worst loss, and what no choice can go below."""

    members: Indices
    worst: float
    lower_bound: float
    seconds: float

    @property
    def optimal(self) -> bool:
        """Whether no other choice of that size has a smaller worst loss."""
        return self.worst <= self.lower_bound


def cover(
    covers: Bools, method: Literal["exact", "greedy"] = "exact", time_limit: float = 60.0
) -> Cover:
    """Return few policies such that every weight is covered by one of them.

    Args:
        covers: [P, W] whether policy p is good enough for weight w.
        method: "exact", the fewest by an integer program; or "greedy".
        time_limit: seconds for the integer program; past it the best found, with its bound.

    Returns:
        Cover, members in ascending order; never larger than the greedy one.

    Raises:
        InputError: no array [P, W] of bool, or of numbers of 0 or more; or a weight that no policy
            covers.

    Source: set cover; HiGHS (Huangfu and Hall 2018) by scipy.optimize.milp.

    Example:
        >>> import numpy as np
        >>> from jaxalign.palm import cover
        >>> covers = np.array([[True, True, False], [False, True, True], [True, False, False]])
        >>> found = cover(covers)
        >>> found.members.tolist(), found.optimal
        ([0, 1], True)
    """
    begun = time.monotonic()
    if getattr(covers, "dtype", None) != np.bool_ or covers.ndim != 2:
        covers = np.asarray(check_mask("covers", covers, "P W", empty="W")) > 0
    if not covers.any(axis=0).all():
        missing = int((~covers.any(axis=0)).sum())
        raise InputError(
            f"cover: found {missing} weights that no policy is good enough for, expected none; "
            "raise prune_eps or prune_delta, or solve more policies."
        )
    policies, small = reduce(covers)
    chosen = _greedy(small)
    bound = _packing(small)
    if method == "exact" and len(chosen) > bound:
        exact, proven = _integer_program(small, time_limit)
        bound = max(bound, proven)
        if exact is not None and len(exact) < len(chosen):
            chosen = exact
    return Cover(np.sort(policies[chosen]), bound, time.monotonic() - begun)


def best_of_size(
    losses: Floats,
    size: int,
    free: Floats | None = None,
    method: Literal["exact", "greedy"] = "exact",
    time_limit: float = 60.0,
) -> Selection:
    """Return the policies of a given number whose worst loss over the weights is least.

    A greedy choice improved by exchanges gives the first answer; integer programs then ask, by
    bisection over the losses that occur, whether fewer losses can be had.

    Args:
        losses: [P, W].
        size: number of policies; more than P are taken as P.
        free: [W] losses of a member that costs nothing, None for none.
        method: "exact" or "greedy".
        time_limit: seconds in all; past it the best found, with what is proven.

    Returns:
        Selection; `worst` less `lower_bound` is the gap left.

    Raises:
        InputError: shapes that disagree, no policy or weight, NaN or infinity, or a size that is
            not whole or below 1.

    Example:
        >>> import numpy as np
        >>> from jaxalign.palm import best_of_size
        >>> losses = np.array([[0.0, 0.9], [0.9, 0.0], [0.4, 0.5]])
        >>> best_of_size(losses, 1).members.tolist(), best_of_size(losses, 2).members.tolist()
        ([2], [0, 1])
    """
    begun = time.monotonic()
    deadline = begun + time_limit
    sizes = Sizes()
    losses = check_numpy("losses", losses, "P W", sizes)
    size = check_count("size", size)
    if free is not None:
        losses = np.minimum(losses, check_numpy("free", free, "W", sizes)[None])
    size = min(size, len(losses))
    # Few weights decide: begin with some, and add those at which the answer turns out worst.
    rows = np.unique(np.linspace(0, losses.shape[1] - 1, _FIRST_ROWS).astype(np.intp))
    best, worst, lower = np.zeros(0, np.intp), np.inf, -np.inf
    while True:
        members, bound = _bisect(losses[:, rows], size, method, deadline)
        after = losses[members].min(axis=0)
        if after.max() < worst:
            best, worst = members, float(after.max())
        lower = max(lower, bound)
        # The worst user of each member: far apart, where the worst of all would be neighbours.
        served = np.argmin(losses[members], axis=0)
        users = [np.flatnonzero(served == place) for place in range(len(members))]
        new = np.array([user[np.argmax(after[user])] for user in users if len(user)], np.intp)
        new = np.setdiff1d(new, rows)
        # What is seen is as bad as what is not: the answer holds for every weight.
        seen = after.max() <= after[rows].max()
        if seen or worst <= lower or len(new) == 0 or time.monotonic() > deadline:
            break
        rows = np.concatenate([rows, new])
    return Selection(np.sort(best), worst, min(lower, worst), time.monotonic() - begun)


def _bisect(
    losses: Floats, size: int, method: Literal["exact", "greedy"], deadline: float
) -> tuple[Indices, float]:
    """Members and a proven lower bound of the worst loss, on the weights given."""
    members = _exchange(losses, _greedy_worst(losses, size), deadline)
    worst = float(losses[members].min(axis=0).max())
    # No choice beats all policies together.
    lower = float(losses.min(axis=0).max())
    levels = np.unique(losses)
    while method == "exact" and time.monotonic() < deadline:
        between = levels[(levels >= lower) & (levels < worst)]
        if len(between) == 0:
            return members, worst
        level = between[len(between) // 2]
        found = _within(losses, level, size, deadline - time.monotonic())
        if found is None:
            break
        if found is False:
            lower = float(levels[np.searchsorted(levels, level, side="right")])
        else:
            members = found
            worst = float(losses[members].min(axis=0).max())
    return members, lower


def _within(
    losses: Floats, level: float, size: int, seconds: float
) -> "Indices | Literal[False] | None":
    """At most `size` policies of worst loss at most `level`; False if none, None if unsure."""
    good = losses <= level
    if not good.any(axis=0).all():
        return False
    found = cover(good, "exact", max(seconds, 0.01))
    if len(found.members) <= size:
        return found.members
    return False if found.lower_bound > size else None


def reduce(covers: Bools) -> tuple[Indices, Bools]:
    """Return what is left of a cover without policies and weights that cannot matter.

    A policy that covers no more than another one is dropped, and so is a weight that every policy
    covers which covers some other weight.

    Args:
        covers: [P, W].

    Returns:
        kept policies [p], covers of what is left [p, w].
    """
    policies, shape = np.arange(len(covers)), None
    while covers.shape != shape:
        shape = covers.shape
        keep = _undominated(covers)
        policies, covers = policies[keep], covers[keep]
        # Seen from the weights it is the other way round: those that more policies cover go.
        covers = covers[:, _undominated(~covers.T)]
    return policies, covers


def _undominated(sets: Bools) -> Indices:
    """Rows [n, m] that are in no other row; of equal rows the first."""
    _, first = np.unique(np.packbits(sets, axis=1), axis=0, return_index=True)
    first = np.sort(first)
    rows = sets[first].astype(np.float32)
    sizes = rows.sum(axis=1)
    # Row i lies in row j if they share all of row i; rows are distinct, so j is then larger.
    inside = (rows @ rows.T >= sizes[:, None]) & (sizes[None, :] > sizes[:, None])
    return first[~inside.any(axis=1)]


def _greedy(covers: Bools) -> Indices:
    left = np.ones(covers.shape[1], bool)
    members = []
    while left.any():
        members.append(int(np.argmax((covers & left).sum(axis=1))))
        left &= ~covers[members[-1]]
    # What later members made superfluous goes.
    for member in list(members):
        others = [m for m in members if m != member]
        if others and covers[others].any(axis=0).all():
            members = others
    return np.array(members, np.intp)


def _packing(covers: Bools) -> int:
    """Weights of which no policy covers two, greedily: no cover has fewer members."""
    left = np.ones(covers.shape[1], bool)
    order = np.argsort(covers.sum(axis=0), kind="stable")
    count = 0
    for weight in order:
        if left[weight]:
            count += 1
            left &= ~covers[covers[:, weight]].any(axis=0)
    return count


def _integer_program(covers: Bools, time_limit: float) -> tuple[Indices | None, int]:
    """Members of the best cover found, None for none in time; and a proven lower bound."""
    result = milp(
        np.ones(len(covers)),
        constraints=LinearConstraint(csr_array(covers.T.astype(np.float64)), lb=1),
        integrality=np.ones(len(covers)),
        bounds=(0, 1),
        options={"time_limit": float(time_limit), "mip_rel_gap": 0.0},
    )
    members = None if result.x is None else np.flatnonzero(result.x > 0.5)
    if members is not None and not covers[members].any(axis=0).all():
        members = None
    dual = getattr(result, "mip_dual_bound", None)
    proven = 0 if dual is None or not np.isfinite(dual) else int(np.ceil(dual - 1e-6))
    return members, proven


def _greedy_worst(losses: Floats, size: int) -> Indices:
    """Members one after the other: least worst loss, then least mean loss."""
    best = np.full(losses.shape[1], np.inf)
    members: list[int] = []
    for _ in range(size):
        after = np.minimum(losses, best[None])
        order = np.lexsort((after.mean(axis=1), after.max(axis=1)))
        members.append(next(int(i) for i in order if int(i) not in members))
        best = after[members[-1]]
    return np.array(members, np.intp)


def _exchange(losses: Floats, members: Indices, deadline: float) -> Indices:
    """Members exchanged one at a time as long as the worst loss falls and time is left."""
    members = members.copy()
    worst = losses[members].min(axis=0).max()
    improved = True
    while improved and time.monotonic() < deadline:
        improved = False
        for place in range(len(members)):
            rest = np.delete(members, place)
            others = losses[rest].min(axis=0) if len(rest) else np.full(losses.shape[1], np.inf)
            after = np.minimum(losses, others[None]).max(axis=1)
            after[rest] = np.inf
            if after.min() < worst:
                members[place], worst, improved = int(np.argmin(after)), after.min(), True
    return members
