"""Protected rewards: their weights have a floor, are not learned, and cannot be reversed."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from jaxalign.arrays import Sizes, check_array, check_scalar
from jaxalign.errors import InputError
from jaxalign.personalize.utility import Array, Utility
from jaxalign.rewards.reward_scale import RewardIds


def floors(protected: Mapping[str, float], reward_ids: RewardIds) -> NDArray[np.float64]:
    """Return the least weight of every reward.

    Args:
        protected: name of a reward -> its floor, 0 or more, in units of the weights.
        reward_ids: names and scale of the K rewards.

    Returns:
        [K], -inf for rewards that are not protected.

    Raises:
        InputError: a name that is none of the rewards, or a floor below 0, which would allow the
            reward to be reversed.

    Example:
        >>> from jaxalign.personalize import floors
        >>> from jaxalign.rewards import RewardIds
        >>> floors({"harmless": 0.5}, RewardIds(("kind", "harmless"), "0" * 64))
        array([-inf,  0.5])
    """
    least = np.full(len(reward_ids.names), -np.inf)
    for name, floor in protected.items():
        if name not in reward_ids.names:
            raise InputError(
                f"protected: found {name!r}, expected one of {', '.join(reward_ids.names)}."
            )
        floor = check_scalar(f"protected.{name}", floor)
        if not (floor >= 0 and np.isfinite(floor)):
            raise InputError(f"protected.{name}: found {floor}, expected 0 or more; correct it.")
        least[reward_ids.names.index(name)] = floor
    return least


def constrain(weights: Array, least: NDArray[np.float64]) -> Array:
    """Return the closest weights [..., K] that are nowhere below their floors [K].

    Raises:
        InputError: weights that are not finite, or of another number of rewards.

    Example:
        >>> import numpy as np
        >>> from jaxalign.personalize import constrain
        >>> constrain(np.array([-1.0, -1.0]), np.array([-np.inf, 0.5]))
        array([-1. ,  0.5])
    """
    sizes = Sizes(K=(len(least), "least"))
    check_array("weights", weights, "... K", sizes)
    weights = np.asarray(weights)
    if not np.issubdtype(weights.dtype, np.floating):
        weights = weights.astype(np.float64)
    return np.maximum(weights, np.broadcast_to(least.astype(weights.dtype), weights.shape))


def pin(utility: Utility, level: Array, protected: Mapping[str, float]) -> Utility:
    """Return the utility with what a user's choices said about protected rewards taken out.

    Args:
        utility: as inferred.
        level: [K] weights of the population, before any choice; raised to the floors.
        protected: name of a reward -> its floor.

    Returns:
        Utility whose protected weights are the same for every user, without uncertainty; the other
        weights stay as they were inferred.

    Raises:
        InputError: as `floors`, or a level that is not finite or of another number of rewards.

    Example:
        >>> import numpy as np
        >>> from jaxalign.personalize import Utility, pin
        >>> from jaxalign.rewards import RewardIds
        >>> ids = RewardIds(("kind", "harmless"), "0" * 64)
        >>> found = pin(Utility([3.0, -2.0], np.eye(2), ids), np.ones(2), {"harmless": 0.5})
        >>> found.mean, found.cov.diagonal()
        (array([3., 1.]), array([1., 0.]))
    """
    least = floors(protected, utility.reward_ids)
    check_array("level", level, "K", Sizes(K=(len(least), "the utility")))
    held = np.isfinite(least)
    mean = np.where(held, np.maximum(np.asarray(level), least), utility.mean).astype(
        utility.mean.dtype
    )
    free = ~held[:, None] & ~held[None, :]
    return replace(utility, mean=mean, cov=utility.cov * free)
