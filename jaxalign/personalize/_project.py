"""Projection of users' reward functions on learned rewards onto named rewards."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxalign.arrays import check_numpy
from jaxalign.errors import InputError
from jaxalign.personalize.utility import LOGITS, Utility
from jaxalign.rewards.reward_scale import RewardIds

# What is left of the square of a constant, once its mean is taken off.
_ROUNDING = (8 * np.finfo(np.float64).eps) ** 2


def project(
    mean: ArrayLike,
    cov: ArrayLike,
    features: ArrayLike,
    named: ArrayLike,
    prompt: ArrayLike,
    reward_ids: RewardIds,
    least: float = 0.5,
    units: str = LOGITS,
) -> tuple[Utility, NDArray[np.float64]]:
    """Return utilities on named rewards of users who are known by weights on learned features.

    Learned base functions are identified only up to a linear map. The reward function itself is
    therefore regressed on the named rewards, over a pool of answers and within prompts, since only
    differences between answers to one prompt are meaningful.

    Args:
        mean: [..., E] weights on the features.
        cov: [..., E, E] covariance of the weights. It does not include what the named rewards leave
            unexplained.
        features: [N, E] features of the answers of the pool; base rewards, if weights are on those.
        named: [N, K] standardised rewards of the same answers.
        prompt: [N] the prompt of each answer.
        reward_ids: names and scale of the K named rewards.
        least: R^2 below which a user's projection is refused.
        units: units of the weights.

    Returns:
        Utility, mean [..., K] and cov [..., K, K]; and R^2 [...], the share of the variance of each
        user's reward function within prompts that the named rewards explain (1 for a function
        that is constant).

    Raises:
        InputError: shapes that do not fit, values that are not finite, named rewards that do not
            vary independently over the pool, or an R^2 below `least`.

    Source: ours. In a simulation, the correlation with the true traits was -0.54 to 0.17 by index
        and 0.49 to 0.75 after the projection.

    Example:
        >>> import numpy as np
        >>> from jaxalign.personalize import project
        >>> from jaxalign.rewards import RewardIds
        >>> named = np.random.default_rng(0).normal(size=(20, 2))
        >>> features = named @ [[0.0, 2.0], [1.0, 0.0]]  # the named rewards, mixed
        >>> ids, prompt = RewardIds(("kind", "brief"), "0" * 64), np.repeat(np.arange(5), 4)
        >>> utility, explained = project([1.0, 1.0], np.eye(2), features, named, prompt, ids)
        >>> utility.mean.round(6).tolist(), round(float(explained), 6)
        ([2.0, 1.0], 1.0)
    """
    weights = check_numpy("mean", mean, "... E")
    covariance = check_numpy("cov", cov, "... E1 E2")
    basis, rewards = check_numpy("features", features, "N E"), check_numpy("named", named, "N K")
    answered = np.asarray(prompt)
    size, width = len(reward_ids.names), weights.shape[-1]
    count = len(basis)
    expected = ((count, width), (count, size), (*weights.shape, width))
    if (basis.shape, rewards.shape, covariance.shape) != expected:
        raise InputError(
            f"features, named, cov: found {basis.shape}, {rewards.shape}, {covariance.shape}, "
            f"expected {expected[0]}, {expected[1]}, {expected[2]}."
        )
    if answered.shape != (count,):
        raise InputError(f"prompt: found shape {answered.shape}, expected ({count},).")
    onto, explained = regress(weights, basis, rewards, answered)
    if (explained < least).any():
        worst, count = float(np.min(explained)), int(np.sum(explained < least))
        raise InputError(
            f"named: found an R^2 of {worst:.2f} ({count} of {explained.size} users below the "
            f"threshold), expected {least:g} or more; these rewards do not say what the user "
            "wants: add the missing ones, or serve the user from choices on named rewards."
        )
    return Utility(weights @ onto.T, onto @ covariance @ onto.T, reward_ids, units), explained


def regress(
    weights: NDArray[np.float64],
    features: NDArray[np.float64],
    named: NDArray[np.float64],
    prompt: np.ndarray,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the map from weights on features to weights on named rewards, and how far it holds.

    Args:
        weights: [..., E] of users on the features.
        features: [N, E] of the answers of a pool.
        named: [N, K] rewards of the same answers.
        prompt: [N] which prompt each answers.

    Returns:
        [K, E]; and R^2 [...] within prompts of each user's reward function.

    Raises:
        InputError: named rewards that do not vary independently over the pool.
    """
    basis, rewards = (within(np.asarray(x, np.float64), prompt) for x in (features, named))
    solved, _, rank, _ = np.linalg.lstsq(rewards, basis, rcond=None)
    onto = np.asarray(solved, np.float64)
    if rank < len(onto):
        raise InputError(
            f"named: found {rank} independent rewards within prompts, expected {len(onto)}; "
            "enlarge the pool of answers, or leave a reward out."
        )
    size = np.sum((features @ weights.reshape(-1, weights.shape[-1]).T) ** 2, axis=0)
    return onto, _explained(weights, basis, rewards, onto, size)


def within(values: NDArray[np.float64], prompt: np.ndarray) -> NDArray[np.float64]:
    """Return values [N, D] less the mean over the answers to the same prompt."""
    _, index, count = np.unique(prompt, return_inverse=True, return_counts=True)
    sums = np.zeros((len(count), values.shape[1]))
    np.add.at(sums, index, values)
    return values - (sums / count[:, None])[index]


def _explained(
    weights: NDArray[np.float64],
    basis: NDArray[np.float64],
    rewards: NDArray[np.float64],
    onto: NDArray[np.float64],
    size: NDArray[np.float64],
) -> NDArray[np.float64]:
    """R^2 [...] of users' functions, whose squares add up to `size` with the prompts' means."""
    functions = basis @ weights.reshape(-1, weights.shape[-1]).T  # [N, users]
    rest = functions - rewards @ (onto @ weights.reshape(-1, weights.shape[-1]).T)
    total = np.sum(functions**2, axis=0)
    varies = total > _ROUNDING * size
    share = np.where(varies, np.sum(rest**2, axis=0) / np.where(varies, total, 1.0), 0.0)
    return np.asarray(1 - share).reshape(weights.shape[:-1])
