"""Utilities and targets: two vectors over rewards that must not be confused.

A utility holds a user's signed weights on rewards, of any size. A target holds levels of rewards
that a conditioned policy aims at. Using one for the other would be a silent error, so they are two
types, and each states the rewards and the scale that it is about.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxalign.arrays import check_array
from jaxalign.errors import InputError
from jaxalign.rewards.reward_scale import RewardIds

Array = NDArray[np.floating]

LOGITS = "logits of a choice per standard deviation of a reward"
"""Units of weights that are inferred from choices between answers with standardised rewards."""


@dataclass(frozen=True, eq=False)
class Utility:
    """Weights of a user, or of users on leading axes, and their uncertainty.

    Attributes:
        mean: [..., K] signed weights on named, standardised rewards. They are not normalised: their
            size says how decisively the user chooses.
        cov: [..., K, K] covariance of the weights; zeros where the weights are known.
        reward_ids: names and scale of the K rewards.
        units: units of the weights; the price of KL must be in the same units per nat.

    Example:
        >>> import numpy as np
        >>> from jaxalign.personalize import Utility
        >>> from jaxalign.rewards import fit_scale
        >>> scale = fit_scale([[0.0, 1.0], [1.0, 0.5], [2.0, 0.0]], ("kind", "brief"))
        >>> Utility([2.0, -0.5], np.eye(2), scale.ids).mean
        array([ 2. , -0.5])
    """

    mean: Array
    cov: Array
    reward_ids: RewardIds
    units: str = LOGITS

    def __post_init__(self) -> None:
        mean, cov = _floats("utility.mean", self.mean), _floats("utility.cov", self.cov)
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
    """Levels of named rewards that a conditioned policy aims at; not weights.

    Attributes:
        values: [..., R] levels.
        reward_ids: names and scale of the R rewards.

    Example:
        >>> from jaxalign.personalize import Target
        >>> from jaxalign.rewards import RewardIds
        >>> Target([0.25, 0.75], RewardIds(("kind", "brief"), "0" * 64)).values
        array([0.25, 0.75])
    """

    values: Array
    reward_ids: RewardIds

    def __post_init__(self) -> None:
        values = _floats("target.values", self.values)
        if values.ndim < 1 or values.shape[-1] != len(self.reward_ids.names):
            raise InputError(
                f"target: found values {values.shape}, expected one per reward of "
                f"{', '.join(self.reward_ids.names)}."
            )
        if not np.isfinite(values).all():
            raise InputError("target: found NaN or infinity, expected finite levels.")
        object.__setattr__(self, "values", values)


def _floats(name: str, values: ArrayLike) -> Array:
    check_array(name, values, "...", finite=False)
    array = np.asarray(values)
    return array.astype(np.promote_types(array.dtype, np.float32))


def known(weights: ArrayLike, reward_ids: RewardIds, units: str = LOGITS) -> Utility:
    """Return the utility of users whose weights are known, without uncertainty.

    Args:
        weights: [..., K] weights on standardised rewards.
        reward_ids: names and scale of the K rewards.
        units: units of the weights.

    Returns:
        Utility with a covariance of zeros.

    Example:
        >>> from jaxalign.personalize import known
        >>> from jaxalign.rewards import RewardIds
        >>> utility = known([[1.0, 0.0], [-2.0, 0.5]], RewardIds(("kind", "brief"), "0" * 64))
        >>> utility.mean.shape, utility.cov.any().item()
        ((2, 2), False)
    """
    mean = _floats("weights", weights)
    return Utility(mean, np.zeros((*mean.shape, mean.shape[-1]), mean.dtype), reward_ids, units)


def expect_utility(found: object, reward_ids: RewardIds, units: str | None = None) -> Utility:
    """Return a utility after checking its type, rewards, scale and units.

    Args:
        found: the value to check.
        reward_ids: names and scale that it must have.
        units: units that its weights must have, None for any.

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
