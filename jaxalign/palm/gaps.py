"""The exact worst gap of a portfolio over all users, by small linear programs.

For one policy c of the pool, over mixtures lambda of the domain's corners:
max t such that <lambda, c - p> >= t for every member p and <lambda, unit_c> = 1.
With unit 1 the gap is additive, with unit c - reference it is the share of the improvement lost,
with unit c itself it is multiplicative.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linprog

from jaxalign.arrays import check_numpy
from jaxalign.errors import InputError
from jaxalign.palm.domain import Floats

Kind = Literal["additive", "multiplicative", "mixed"]

_INFEASIBLE = 2  # of linprog: here, no mixture has that unit
# The tightest that HiGHS takes.
_OPTIONS = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}


class Gap(NamedTuple):
    """A worst gap and the weights [D] where it occurs."""

    value: float
    weight: Floats


class _Program(NamedTuple):
    value: float
    mixture: Floats  # [N], over the corners
    dual: Floats  # [M], over the members


def worst_gap(
    pool: ArrayLike,
    members: ArrayLike,
    kind: Kind = "additive",
    eps: float = 0.0,
    delta: float = 0.0,
    corners: ArrayLike | None = None,
) -> Gap:
    """Return the largest gap between the best of the pool and the best member, over all weights.

    V(w) = max over the pool of <w, c>, B(w) = max over the members of <w, p>. Additive: the largest
    V - B. Multiplicative: the largest 1 - B / V where V > 0; it depends on where the rewards' zero
    lies. Mixed: the largest (1 - eps) V - delta - B, so the members are an (eps, delta)-portfolio
    of the pool if and only if it is at most 0.

    Args:
        pool: [C, D] values of the known policies, in units of reward.
        members: [M, D] values of the portfolio.
        kind: "additive", "multiplicative" or "mixed".
        eps: multiplicative tolerance of "mixed".
        delta: additive tolerance of "mixed", in units of reward.
        corners: [N, D] of the weights' domain, None for the simplex (`palm.corners`).

    Returns:
        Gap(value, weight [D]); below 0 if the members beat the pool everywhere.

    Raises:
        InputError: shapes that do not fit, values that are not finite, or a multiplicative gap that
            is not defined: members that reach no positive value for some weights, or a pool
            that nowhere does.

    Source: ours (linear programs of the PALM specification, derived and checked by enumeration).

    Example:
        >>> from jaxalign.palm import worst_gap
        >>> gap = worst_gap(pool=[[1.0, 0.0], [0.0, 1.0]], members=[[0.7, 0.7]])
        >>> round(gap.value, 6), sorted(gap.weight.round(6).tolist())
        (0.3, [0.0, 1.0])
    """
    corner, pooled, chosen = _at_corners(pool, members, corners)
    if kind == "mixed":
        pooled = (1 - eps) * pooled - delta
    if kind != "multiplicative":
        return worst_ratio(pooled, chosen, np.ones_like(pooled), corner)
    lowest = -_solve(-chosen, np.ones(len(corner)), None).value
    if lowest < 0:
        raise InputError(
            f"members: found a best value of {lowest:.4g} for some weights, expected 0 or more "
            "for a multiplicative gap; shift the values, or ask for the additive gap."
        )
    found = worst_ratio(pooled, chosen, pooled, corner)
    if not np.isfinite(found.value):
        raise InputError(
            "pool: found no policy of positive value for any weights, expected one for a "
            "multiplicative gap; shift the values, or ask for the additive gap."
        )
    return found


def _at_corners(
    pool: ArrayLike, members: ArrayLike, corners: ArrayLike | None
) -> tuple[Floats, Floats, Floats]:
    given = {"pool": pool, "members": members}
    arrays = [check_numpy(name, x, "...", finite=False) for name, x in given.items()]
    for name, array in zip(given, arrays, strict=True):
        if array.ndim != 2 or 0 in array.shape or array.shape[1] != arrays[0].shape[1]:
            raise InputError(
                f"{name}: found shape {array.shape}, expected one row per policy, as wide as the "
                "pool."
            )
        if not np.isfinite(array).all():
            raise InputError(f"{name}: found NaN or infinity, expected finite values.")
    corner = np.eye(arrays[0].shape[1])
    if corners is not None:
        corner = check_numpy("corners", corners, "...", finite=False)
    if corner.ndim != 2 or corner.shape[1] != arrays[0].shape[1] or not np.isfinite(corner).all():
        raise InputError(
            f"corners: found shape {corner.shape} or values that are not finite, expected finite "
            f"weights [N, {arrays[0].shape[1]}]; `palm.corners` gives them."
        )
    return corner, arrays[0] @ corner.T, arrays[1] @ corner.T


def worst_ratio(
    pooled: Floats,
    chosen: Floats,
    unit: Floats,
    corner: Floats,
    cap: Floats | None = None,
) -> Gap:
    """Return the largest of (c - best member) / unit_c over policies c and mixtures of corners.

    Most policies need no program: the dual solution of each solved one bounds all others.

    Args:
        pooled: [C, N] values of the pool at the corners; or [C, M, N], its differences to each
            member (then `chosen` is zero).
        chosen: [M, N] values of the members at the corners.
        unit: [C, N] what a gap is measured in, at the corners.
        corner: [N, D] corners of the domain.
        cap: [N], None or a bound <lambda, cap> <= 1 where the unit of lambda is 1; [C, N] where
            every policy has its own.

    Returns:
        Gap(value, weight [D]); value -inf where no mixture has a positive unit.
    """
    rows = (pooled if pooled.ndim == 3 else pooled[:, None, :]) - chosen[None]
    bounds = np.min(_bounds(rows, unit[:, None, :]), axis=1)
    best = Gap(-np.inf, corner.mean(axis=0))
    while bounds.max() > best.value:
        index = int(np.argmax(bounds))
        own = cap[index] if cap is not None and cap.ndim == 2 else cap
        program = _solve(rows[index], unit[index], own, float(bounds[index]))
        bounds[index] = -np.inf
        if program.value > best.value:
            mixture = program.mixture / program.mixture.sum()
            best = Gap(program.value, mixture @ corner)
        if program.dual.any():
            bounds = np.minimum(bounds, _bounds(np.tensordot(rows, program.dual, (1, 0)), unit))
    return best


def share_of(gap: Gap) -> Gap:
    """Return a worst share of improvements over the reference that is lost, 0 where nobody has one.

    The reference is one of the members, so that nobody loses more than the whole improvement: 1
    stands for a gap that no program could bound.
    """
    return gap._replace(value=0.0 if gap.value == -np.inf else min(gap.value, 1.0))


def _bounds(gains: Floats, unit: Floats) -> Floats:
    """Least v [...] with gains <= v unit at every corner [..., N]; infinite where there is none."""
    positive = unit > 0
    ratio = gains / np.where(unit == 0, 1.0, unit)
    least = np.max(np.where(positive, ratio, -np.inf), axis=-1)
    ceiling = np.min(np.where(unit < 0, ratio, np.inf), axis=-1)
    fails = (least > ceiling) | ((unit == 0) & (gains > 0)).any(axis=-1)
    return np.where(fails, np.inf, least)


def _solve(rows: Floats, unit: Floats, cap: Floats | None, limit: float = np.inf) -> _Program:
    """Max t such that rows [M, N] lambda >= t, <unit, lambda> = 1, <cap, lambda> <= 1.

    `limit` is a known bound of t, which stands where the solver finds no answer.
    """
    count, size = rows.shape
    # The solver's tolerances are absolute: gaps and units are measured in their own largest.
    height, width = (float(np.abs(x).max()) or 1.0 for x in (rows, unit))
    rows, unit, cap = rows / height, unit / width, None if cap is None else cap / width
    upper, most = np.concatenate([-rows, np.ones((count, 1))], axis=1), np.zeros(count)
    if cap is not None:
        upper = np.concatenate([upper, np.append(cap, 0.0)[None]])
        most = np.append(most, 1.0)
    result = linprog(
        np.append(np.zeros(size), -1.0),
        A_ub=upper,
        b_ub=most,
        A_eq=np.append(unit, 0.0)[None],
        b_eq=np.ones(1),
        bounds=[(0, None)] * size + [(None, None)],
        method="highs",
        options=_OPTIONS,
    )
    if result.status != 0:
        value = -np.inf if result.status == _INFEASIBLE else limit
        return _Program(value, np.ones(size), np.zeros(count))
    mixture = np.maximum(result.x[:-1], 0.0)
    dual = np.maximum(-result.ineqlin.marginals[:count], 0.0)
    if dual.sum() > 0:
        dual /= dual.sum()
    # The dual's own bound is above the optimum by rounding only, where the solver's may be below.
    value = float(_bounds(dual @ rows, unit))
    value = value if abs(value + result.fun) < 1e-7 else -result.fun
    return _Program(value * height / width, mixture, dual)
