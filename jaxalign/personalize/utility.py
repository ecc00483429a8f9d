"""Two vectors that look alike and are not: what a user wants, and what a policy is told.

A utility is signed weights on rewards, of any size; a target is levels of rewards. One fed where
the other is meant is a silent error, so they are two types, and each names its rewards.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxalign.errors import InputError
from jaxalign.rewards.reward_scale import RewardIds

Array = NDArray[np.floating[Any]]

LOGITS = "logits of a choice per standard deviation of a reward"
"""Units of weights that Bradley-Terry choices between answers with standardised rewards give."""


@dataclass(frozen=True, eq=False)
class Utility:
    """What a user wants, and how surely; or users, side by side on leading axes.

    Attributes:
        mean: [..., K] signed weights on named, standardised rewards, never normalised: the size
            says how decisively the user chooses.
        cov: [..., K, K] their covariance; zeros where the weights are known.
        reward_ids: of the K rewards.
        units: of the weights; the price of KL must be in the same per nat.
    """

    mean: Array
    cov: Array
    reward_ids: RewardIds
    units: str = LOGITS

    def __post_init__(self) -> None:
        mean, cov = _floats(self.mean), _floats(self.cov)
        size = len(self.reward_ids.names)
        if mean.ndim < 1 or mean.shape[-1] != size or cov.shape != (*mean.shape, size):
            raise InputError(
                f"utility: found mean {mean.shape} and cov {cov.shape}, expected (..., {size}) and "
                f"(..., {size}, {size}) for rewards {', '.join(self.reward_ids.names)}."
            )
        if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
            raise InputError("utility: found NaN or infinity, expected finite mean and cov.")
        if (np.diagonal(cov, axis1=-2, axis2=-1) < 0).any():
            raise InputError("utility: found a negative variance in cov, expected 0 or more.")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "cov", cov)


@dataclass(frozen=True, eq=False)
class Target:
    """What a conditioned policy is told: levels [..., R] of named rewards; no weights."""

    values: Array
    reward_ids: RewardIds

    def __post_init__(self) -> None:
        values = _floats(self.values)
        if values.ndim < 1 or values.shape[-1] != len(self.reward_ids.names):
            raise InputError(
                f"target: found values {values.shape}, expected one a reward of "
                f"{', '.join(self.reward_ids.names)}."
            )
        if not np.isfinite(values).all():
            raise InputError("target: found NaN or infinity, expected finite levels.")
        object.__setattr__(self, "values", values)


def _floats(values: ArrayLike) -> Array:
    array = np.asarray(values)
    return array.astype(np.promote_types(array.dtype, np.float32))


def known(weights: ArrayLike, reward_ids: RewardIds, units: str = LOGITS) -> Utility:
    """Return the utility of users whose weights are known, without uncertainty.

    Args:
        weights: [..., K].
        reward_ids: of the K rewards.
        units: of the weights.

    Returns:
        Utility, its covariance zero.
    """
    mean = _floats(weights)
    return Utility(mean, np.zeros((*mean.shape, mean.shape[-1]), mean.dtype), reward_ids, units)


def expect_utility(found: object, reward_ids: RewardIds, units: str | None = None) -> Utility:
    """Return the utility, or refuse what is none, or is one on other rewards or in other units.

    Args:
        found: what was given.
        reward_ids: what it must be about.
        units: what its weights must be in, None for any.

    Raises:
        InputError: a `Target`, a bare array, other rewards, another scale or other units.
    """
    if not isinstance(found, Utility):
        raise InputError(
            f"utility: found a {type(found).__name__}, expected a Utility; weights and levels of "
            "rewards are different things."
        )
    reward_ids.expect(found.reward_ids, "utility")
    if units is not None and found.units != units:
        raise InputError(
            f"utility: found weights in {found.units!r}, expected {units!r}, the units of the "
            "price of KL."
        )
    return found


def target_of(
    utility: Utility, values: ArrayLike, reward_ids: RewardIds, told: ArrayLike | None = None
) -> Target:
    """Return what to tell a policy for a user: p* = argmax over p of <w, F(p)>.

    The mean of the weights is what expected utility asks for, as <w, F> is linear in w.

    Args:
        utility: of one user, or of users side by side.
        values: [M, R] F(p), the rewards that the policy reaches when told each of M targets.
        reward_ids: of the R columns.
        told: [M, R] the targets p that it was told, None where it was told `values`.

    Returns:
        Target, values [..., R]; the first row among equals.

    Raises:
        InputError: what is no utility, other rewards, an empty table, or values not finite.

    Source: ours (weights given as a target lose more than twice the utility that the right one
        does on a bandit of two rewards).
    """
    utility = expect_utility(utility, reward_ids)
    table = _table("values", values, reward_ids)
    targets = table if told is None else _table("told", told, reward_ids)
    if len(targets) != len(table):
        raise InputError(
            f"told: found {len(targets)} targets, expected {len(table)}, one a row of values."
        )
    best = np.argmax(utility.mean.astype(np.float64) @ table.T, axis=-1)
    return Target(targets[best], reward_ids)


def _table(name: str, values: ArrayLike, reward_ids: RewardIds) -> NDArray[np.float64]:
    table = np.asarray(values, np.float64)
    if table.ndim != 2 or len(table) == 0 or table.shape[1] != len(reward_ids.names):
        raise InputError(
            f"{name}: found shape {table.shape}, expected one row a target and "
            f"{len(reward_ids.names)} columns."
        )
    if not np.isfinite(table).all():
        raise InputError(f"{name}: found NaN or infinity, expected finite values.")
    return table
