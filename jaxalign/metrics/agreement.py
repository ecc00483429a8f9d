"""How closely a policy follows the preference it is given: requested against achieved rewards.

Requested preferences p [W, R] lie on the simplex. Achieved rewards have the same columns, on a
scale where 0 is low and 1 is high. All is NumPy in float64. A figure that cannot be measured is
None, never NaN.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxalign.errors import InputError
from jaxalign.metrics.pareto import Floats, check_points

# Preferences are float32: thirds, or a tenth and its sum, must tie where they are equal.
_TIE_DIGITS = 5


def tau_b(requested: ArrayLike, achieved: ArrayLike) -> tuple[float | None, ...]:
    """Return Kendall's tau-b between requested preference and achieved reward, per objective.

    (concordant - discordant) / sqrt(pairs untied in requested x pairs untied in achieved).

    Args:
      requested: [W, R]; values that agree to 5 decimals tie.
      achieved: [W, R]; equal values tie.

    Returns:
      R numbers from -1 to 1; None where either column is constant and has no order.

    Raises:
      InputError: shapes that do not fit, or values that are not finite.

    Source: Kendall, Biometrika 1945.

    Example:
        >>> from jaxalign.metrics import tau_b
        >>> tau_b([[0.0], [0.5], [1.0]], [[1.0], [2.0], [1.5]])
        (0.3333333333333333,)
    """
    wanted, found = _pair(requested, achieved)
    wanted = wanted.round(_TIE_DIGITS)
    first, second = np.triu_indices(len(wanted), 1)
    up = np.sign(wanted[first] - wanted[second])
    same = np.sign(found[first] - found[second])
    untied = np.sqrt((up**2).sum(0) * (same**2).sum(0))
    agree = (up * same).sum(0)
    # Rounding of the root may carry a perfect agreement past 1.
    return tuple(
        float(np.clip(total / pairs, -1, 1)) if pairs > 0 else None
        for total, pairs in zip(agree, untied, strict=True)
    )


def tau_cap(requested: ArrayLike) -> tuple[float | None, ...]:
    """Return the largest possible tau-b if no two achieved rewards are equal.

    Preferences that tie achieve rewards that differ at least by chance, which lowers tau-b: 13
    preferences over three objectives allow about 0.96.

    Args:
      requested: [W, R].

    Returns:
      R numbers, sqrt(pairs untied in requested / all pairs); None where a column is constant.

    Raises:
      InputError: not [W, R], or not finite.

    Example:
        >>> from jaxalign.metrics import tau_cap
        >>> tau_cap([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])
        (1.0, 1.0)
    """
    wanted = check_points(requested).round(_TIE_DIGITS)
    first, second = np.triu_indices(len(wanted), 1)
    untied = (wanted[first] != wanted[second]).mean(0) if len(first) else np.zeros(wanted.shape[1])
    return tuple(float(np.sqrt(share)) if share > 0 else None for share in untied)


def squared_error(requested: ArrayLike, achieved: ArrayLike) -> float:
    """Return the mean over preferences and objectives of (achieved - requested)^2.

    Args:
      requested: [W, R].
      achieved: [W, R].

    Raises:
      InputError: shapes that do not fit, or values that are not finite.

    Example:
        >>> from jaxalign.metrics import squared_error
        >>> squared_error([[1.0, 0.0]], [[0.5, 0.5]])
        0.25
    """
    wanted, found = _pair(requested, achieved)
    return float(((found - wanted) ** 2).mean())


def corner_error(requested: ArrayLike, achieved: ArrayLike, best: ArrayLike) -> float | None:
    """Return the shortfall of an objective that is requested alone, mean over objectives.

    best_i - achieved_i where e_i was requested. Hypervolume hardly notices missed corners, and
    tau-b not at all.

    Args:
      requested: [W, R].
      achieved: [W, R].
      best: [R] or [M, R], points whose largest value is the best known of each objective; the
        achieved points count too.

    Returns:
      At least 0, in the objectives' units; None unless every corner was requested.

    Raises:
      InputError: shapes that do not fit, or values that are not finite.

    Example:
        >>> from jaxalign.metrics import corner_error
        >>> corner_error([[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.0], [0.0, 1.0]], best=[1.0, 1.0])
        0.25
    """
    wanted, found = _pair(requested, achieved)
    size = wanted.shape[1]
    corners = [row for corner in np.eye(size) if (row := _row_of(wanted, corner)) is not None]
    if len(corners) < size:
        return None
    top = np.maximum(check_points(np.atleast_2d(best)).max(0), found.max(0))
    return float((top - found[corners, np.arange(size)]).mean())


def corner_movement(requested: ArrayLike, achieved: ArrayLike) -> tuple[float | None, ...]:
    """Return by how much each objective is higher where it is requested alone than elsewhere.

    achieved_i at e_i less the mean of achieved_i at the other corners e_j. A policy that ignores
    the preference has 0 of it, whatever its hypervolume.

    Args:
      requested: [W, R].
      achieved: [W, R].

    Returns:
      [R], in the objectives' units; all None unless every corner was requested, or where there is
      one objective.

    Raises:
      InputError: shapes that do not fit, or values that are not finite.

    Example:
        >>> from jaxalign.metrics import corner_movement
        >>> corner_movement([[1.0, 0.0], [0.0, 1.0]], [[0.75, 0.25], [0.25, 0.5]])
        (0.5, 0.25)
    """
    wanted, found = _pair(requested, achieved)
    size = wanted.shape[1]
    corners = [row for corner in np.eye(size) if (row := _row_of(wanted, corner)) is not None]
    if len(corners) < size or size < 2:
        return (None,) * size
    at = found[corners]
    others = (at.sum(axis=0) - np.diag(at)) / (size - 1)
    return tuple(float(value) for value in np.diag(at) - others)


def linear_regret(weights: ArrayLike, values: ArrayLike, best: ArrayLike) -> float:
    """Return what users with linear utilities lose to the best point, mean over users.

    mean_w (max_m <w, best_m> - <w, values_w>), and never below 0 for any user.

    Args:
      weights: [n, R], of n users; on the simplex the regret has the objectives' units.
      values: [n, R], what each of them gets.
      best: [M, R], what each of them could have got.

    Raises:
      InputError: shapes that do not fit, or values that are not finite.

    Example:
        >>> from jaxalign.metrics import linear_regret
        >>> linear_regret([[1.0, 0.0]], [[0.5, 1.0]], [[1.0, 0.0], [0.0, 1.0]])
        0.5
    """
    wanted, found = _pair(weights, values)
    had = (wanted * found).sum(1)
    return float(np.maximum((wanted @ check_points(best).T).max(1) - had, 0).mean())


def _row_of(requested: Floats, preference: Floats) -> int | None:
    """Return the row of requested that is a preference, to 5 decimals; None without one."""
    same = (requested.round(_TIE_DIGITS) == preference.round(_TIE_DIGITS)).all(1)
    return int(np.argmax(same)) if same.any() else None


def _pair(first: ArrayLike, second: ArrayLike) -> tuple[Floats, NDArray[np.float64]]:
    pair = check_points(first), check_points(second)
    if pair[0].shape != pair[1].shape:
        raise InputError(
            f"found shapes {pair[0].shape} and {pair[1].shape}, expected one row a preference and "
            "one column an objective in both."
        )
    return pair
