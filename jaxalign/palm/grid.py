"""The structured grid of weights: few directions, such that every user has one close by."""

import math

import numpy as np

from jaxalign.arrays import check_count, check_scalar
from jaxalign.errors import InputError
from jaxalign.palm.config import GRID_LIMIT, check_tolerances


def _checked(num_rewards: int, eps: float, delta: float) -> tuple[int, float, float]:
    """The same as numbers of Python, so that half precision does not round the levels."""
    eps, delta = check_scalar("eps", eps), check_scalar("delta", delta)
    check_tolerances(eps, delta)
    return check_count("num_rewards", num_rewards), eps, delta


def _top_level(num_rewards: int, eps: float, delta: float) -> int:
    """K, the exponent of the smallest level above 0."""
    if num_rewards == 1:
        return 0
    exponent = math.log((num_rewards - 1) / delta) / math.log1p(eps)
    # A whole number stays itself under rounding.
    return max(math.ceil(exponent - 1e-9), 0)


def grid_size(num_rewards: int, eps: float, delta: float) -> int:
    """Return how many weights `weight_grid` would have, without building it.

    (K + 2)^R - (K + 1)^R with K = ceil(ln((R - 1) / delta) / ln(1 + eps)); 1 for a single reward.

    Args:
        num_rewards: R.
        eps: multiplicative step between levels, in (0, 1).
        delta: additive tolerance, in (0, 1).

    Returns:
        The exact count.

    Raises:
        InputError: no reward, or a tolerance outside (0, 1).

    Source: PALM (arXiv 2604.04144), the grid as others describe it; the count is ours.

    Example:
        >>> from jaxalign.palm import grid_size
        >>> grid_size(3, eps=0.1, delta=0.05), grid_size(2, eps=0.1, delta=0.05)
        (4921, 67)
    """
    num_rewards, eps, delta = _checked(num_rewards, eps, delta)
    top = _top_level(num_rewards, eps, delta)
    return 1 if num_rewards == 1 else (top + 2) ** num_rewards - (top + 1) ** num_rewards


def weight_grid(
    num_rewards: int,
    eps: float,
    delta: float,
    limit: int = GRID_LIMIT,
    confirm: bool = False,
) -> np.ndarray:
    """Return the structured grid: levels (1 + eps)^-k and 0, largest entry 1, divided by the sum.

    Policies optimal at these weights leave every user w at least V(w) / (1 + eps) - delta /
    (1 + eps), when rewards are not negative.

    Args:
        num_rewards: R.
        eps: multiplicative step between levels, in (0, 1).
        delta: additive tolerance, in (0, 1).
        limit: most weights that are built without `confirm`.
        confirm: build them whatever their number.

    Returns:
        [W, R] float64, rows on the simplex, no two alike, in descending order of their levels.

    Raises:
        InputError: a tolerance outside (0, 1), or more weights than `limit`.

    Source: PALM (arXiv 2604.04144), the grid as others describe it.

    Example:
        >>> from jaxalign.palm import weight_grid
        >>> weight_grid(2, eps=0.9, delta=0.9).round(3).tolist()
        [[0.5, 0.5], [0.655, 0.345], [1.0, 0.0], [0.345, 0.655], [0.0, 1.0]]
    """
    num_rewards, eps, delta = _checked(num_rewards, eps, delta)
    count = grid_size(num_rewards, eps, delta)
    if count > limit and not confirm:
        raise InputError(
            f"eps {eps}, delta {delta}: found a grid of {count:,} weights for {num_rewards} "
            f"rewards, expected at most {limit:,}; raise the tolerances, take targets 'corners', "
            "or confirm the grid."
        )
    top = _top_level(num_rewards, eps, delta)
    levels = np.append((1 + eps) ** -np.arange(top + 1.0), 0.0)
    if num_rewards == 1:
        return np.ones((1, 1))
    # By the position of the first 1: below it levels under 1, after it any level.
    parts = []
    for first in range(num_rewards):
        ranges = [np.arange(1, top + 2)] * first + [np.zeros(1, int)]
        ranges += [np.arange(top + 2)] * (num_rewards - 1 - first)
        axes = np.meshgrid(*ranges, indexing="ij")
        parts.append(np.stack([axis.ravel() for axis in axes], axis=1))
    index = np.concatenate(parts)
    index = index[np.lexsort(index.T[::-1])]
    grid = levels[index]
    return grid / grid.sum(axis=1, keepdims=True)
