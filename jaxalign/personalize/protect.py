"""Protected rewards: weights that have a floor, are not learned, and that nobody can turn round."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from jaxalign.errors import InputError
from jaxalign.personalize.utility import Array, Utility
from jaxalign.rewards.reward_scale import RewardIds


def floors(protected: Mapping[str, float], reward_ids: RewardIds) -> NDArray[np.float64]:
    """Return the least weight of every reward.

    Args:
        protected: name of a reward -> its floor, 0 or more, in units of the weights.
        reward_ids: of the K rewards.

    Returns:
        [K], -inf for rewards that are not protected.

    Raises:
        InputError: a name that is none of the rewards, or a floor below 0: that would let the
            reward be turned round.
    """
    least = np.full(len(reward_ids.names), -np.inf)
    for name, floor in protected.items():
        if name not in reward_ids.names:
            raise InputError(
                f"protected: found {name!r}, expected one of {', '.join(reward_ids.names)}."
            )
        if not (floor >= 0 and np.isfinite(floor)):
            raise InputError(f"protected.{name}: found {floor}, expected 0 or more; correct it.")
        least[reward_ids.names.index(name)] = floor
    return least


def constrain(weights: Array, least: NDArray[np.float64]) -> Array:
    """Return the closest weights [..., K] that are nowhere below their floors [K]."""
    return np.maximum(weights, np.broadcast_to(least.astype(weights.dtype), weights.shape))


def pin(utility: Utility, level: Array, protected: Mapping[str, float]) -> Utility:
    """Return the utility with what a user's choices said about protected rewards taken out.

    Args:
        utility: as inferred.
        level: [K] weights before any choice, the population's; floors are put under them.
        protected: name of a reward -> its floor.

    Returns:
        Utility: protected weights are the same for every user, and certain; what was learned of the
        other weights stays.

    Raises:
        InputError: as `floors`.
    """
    least = floors(protected, utility.reward_ids)
    held = np.isfinite(least)
    mean = np.where(held, np.maximum(level, least), utility.mean).astype(utility.mean.dtype)
    free = ~held[:, None] & ~held[None, :]
    return replace(utility, mean=mean, cov=utility.cov * free)
