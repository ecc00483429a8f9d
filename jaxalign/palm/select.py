"""Members from a pool: fewest within the tolerances or best of a size, for every user."""

import time
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from jaxalign.palm._cover import Cover, Indices, Selection, best_of_size, cover
from jaxalign.palm._search import targets
from jaxalign.palm.bounds import tie_points
from jaxalign.palm.config import PalmConfig
from jaxalign.palm.domain import Floats, corners
from jaxalign.palm.gaps import Gap, worst_ratio

# Least rows of the domain that a selection starts from.
_STARTS = 256


@dataclass(frozen=True)
class SelectionSummary:
    """How the members of a portfolio were chosen, and how far from optimal that may be.

    Attributes:
        mode: "cover", the fewest members within the tolerances, or "budget", the best of a size.
        size: number of members chosen.
        asked: number of members that was requested, None for a cover. It is above `size` where
            fewer policies of the pool differ from each other and from the reference.
        distinct: number of policies of the pool that differ from each other and from the reference.
        optimal: whether no better choice from the pool exists.
        rounds: rounds in which the worst weights were added to the targets.
        seconds: time of the last integer program.
        worst: largest loss over all weights that is left: beyond the tolerance for a cover (0 if
            none is), in the units of the criterion for a budget.
        lower_bound: what no choice can go below: the number of members of a cover, the worst loss
            of a budget.
    """

    mode: Literal["cover", "budget"]
    size: int
    asked: int | None
    distinct: int
    optimal: bool
    rounds: int
    seconds: float
    worst: float
    lower_bound: float


class Chosen(NamedTuple):
    """Members of a pool (indices, ascending), and how they were chosen."""

    members: Indices
    summary: SelectionSummary


def choose(pool: Floats, reference: Floats, spread: Floats, config: PalmConfig) -> Chosen:
    """Return the members to keep of a pool, the reference being one for free.

    The weights that must be served are first a sample of the domain; then, as long as the exact
    worst case over all weights is worse than what was seen, the weights where it occurs are added.
    No two members have the same values, and none has those of the reference.

    Args:
        pool: [C, D] values of the policies.
        reference: [D] value of the reference.
        spread: [R] standard deviations of the rewards.
        config: tolerances or size.

    Returns:
        Chosen.

    Example:
        >>> import numpy as np
        >>> from jaxalign.palm import PalmConfig
        >>> from jaxalign.palm.select import choose
        >>> pool = np.array([[1.0, 0.0], [0.0, 1.0], [0.9, 0.8]])
        >>> chosen = choose(pool, np.zeros(2), np.ones(2), PalmConfig(size=1))
        >>> chosen.members.tolist(), chosen.summary.optimal
        ([2], True)
    """
    differing = distinct(pool, reference)
    if not len(differing):  # the reference is as good as any for everyone
        mode: Literal["cover", "budget"] = "cover" if config.size is None else "budget"
        return Chosen(differing, SelectionSummary(mode, 0, config.size, 0, True, 0, 0.0, 0.0, 0.0))
    pool = pool[differing]
    domain = corners(config.weights, len(spread))
    everyone = np.concatenate([pool, reference[None]])
    points = _start(everyone, config, domain)
    deadline = time.monotonic() + config.time_limit
    # Covers measure in units of reward, the others in spreads or shares.
    rounding = 1e-9 * (float(np.abs(everyone @ domain.T).max()) if config.size is None else 1.0)
    kept: Chosen | None = None
    worst, rounds = np.inf, 0
    while True:
        limit = max(deadline - time.monotonic(), 0.1)
        found = _on_points(points, pool, reference, spread, config, limit)
        gap = _worst(everyone, found.members, pool, reference, spread, domain, config)
        seen = found.worst if isinstance(found, Selection) else 0.0
        if kept is None or isinstance(found, Cover) or gap.value <= max(worst, seen + rounding):
            # Out of time, a later round may find a worse budget than an earlier one did.
            optimal = bool(found.optimal and gap.value <= seen + rounding)
            summary = _summary(found, gap.value, optimal, rounds, config.size, len(pool))
            worst, kept = gap.value, Chosen(differing[found.members], summary)
        if gap.value <= seen + rounding or rounds == config.refine or time.monotonic() > deadline:
            return kept
        points, rounds = np.concatenate([points, gap.weight[None]]), rounds + 1


def distinct(pool: Floats, reference: Floats) -> Indices:
    """Return the policies that differ from each other and from the reference, the first of equals.

    Args:
        pool: [C, D] values of the policies.
        reference: [D] value of the reference.

    Returns:
        Indices [c], ascending.

    Example:
        >>> import numpy as np
        >>> from jaxalign.palm.select import distinct
        >>> distinct(np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), np.zeros(2))
        array([0, 3])
    """
    everyone = np.concatenate([reference[None], pool])
    scale = float(np.abs(everyone).max()) or 1.0
    _, first = np.unique(np.round(everyone / scale, 9) + 0.0, axis=0, return_index=True)
    return np.sort(first[first > 0]) - 1


def _summary(
    found: Cover | Selection,
    worst: float,
    optimal: bool,
    rounds: int,
    asked: int | None,
    differing: int,
) -> SelectionSummary:
    size = len(found.members)
    mode: Literal["cover", "budget"] = "cover" if isinstance(found, Cover) else "budget"
    if mode == "cover" or worst == -np.inf:  # of a budget: nobody improves by the floor
        worst = max(worst, 0.0)
    bound = float(found.lower_bound)
    return SelectionSummary(
        mode, size, asked, differing, optimal, rounds, found.seconds, float(worst), bound
    )


def _start(everyone: Floats, config: PalmConfig, domain: Floats) -> Floats:
    """Weights [W, D] that the selection starts from."""
    fixed = targets(domain.shape[1], config) if config.weights == "simplex" else None
    if fixed is not None:
        return fixed
    mixtures = np.random.default_rng(0).dirichlet(np.full(len(domain), 0.3), _STARTS)
    return np.concatenate([domain, tie_points(everyone, domain), mixtures @ domain])


def _on_points(
    points: Floats,
    pool: Floats,
    reference: Floats,
    spread: Floats,
    config: PalmConfig,
    limit: float,
) -> Cover | Selection:
    values, free = points @ pool.T, points @ reference
    best = np.maximum(values.max(axis=1), free)
    loss, free_loss = (best[:, None] - values).T, best - free
    if config.size is None:
        rounding = 1e-12 * np.abs(best).max()
        allowed = config.prune_eps * np.maximum(best, 0) + config.prune_delta + rounding
        needed = free_loss > allowed
        if not needed.any():
            return Cover(np.zeros(0, np.intp), 0, 0.0)
        return cover((loss <= allowed[None])[:, needed], config.selection, limit)
    size = np.abs(points[:, : len(spread)])
    # A signed user short of the L1 ball's surface mixes in a corner and its mirror, at the least
    # spread that there is: so the programs measure, too.
    unit = size @ spread + (1 - size.sum(axis=1)) * spread.min()
    if config.criterion == "share":
        keep = free_loss >= config.floor * unit
        if not keep.any():
            return Selection(np.zeros(0, np.intp), 0.0, 0.0, 0.0)
        loss, free_loss, unit = loss[:, keep], free_loss[keep], free_loss[keep]
    return best_of_size(loss / unit[None], config.size, free_loss / unit, config.selection, limit)


def _worst(
    everyone: Floats,
    members: Indices,
    pool: Floats,
    reference: Floats,
    spread: Floats,
    domain: Floats,
    config: PalmConfig,
) -> Gap:
    """What the members are worst at over all weights, in the terms of `_on_points`."""
    kept = np.concatenate([pool[members], reference[None]])
    if config.size is None:
        # V - eps max(V, 0) is the lesser of V and (1 - eps) V: a row each in the programs.
        at_pool = everyone @ domain.T
        lesser = np.stack([at_pool, (1 - config.prune_eps) * at_pool], axis=1) - config.prune_delta
        rows = lesser[:, :, None] - (kept @ domain.T)[None, None]
        rows = rows.reshape(len(everyone), -1, len(domain))
        return worst_ratio(rows, np.zeros((1, len(domain))), np.ones_like(at_pool), domain)
    at_pool, at_kept = everyone @ domain.T, kept @ domain.T
    units = np.abs(domain[:, : len(spread)]) @ spread
    if config.criterion == "share":
        improvement = at_pool - reference @ domain.T
        return worst_ratio(at_pool, at_kept, improvement, domain, config.floor * units)
    return worst_ratio(at_pool, at_kept, np.broadcast_to(units, at_pool.shape), domain)
