"""How far rewards conflict: what the best of n answers gives of each reward, for every weighting.

Rewards are maximised throughout. All is NumPy in float64.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxalign.errors import InputError
from jaxalign.metrics.pareto import hypervolume
from jaxalign.metrics.scores import floats

Floats = NDArray[np.float64]


class Conflict(NamedTuple):
    """How far R rewards conflict in answers to the same prompts.

    Each reward is counted from the least that it has on the front, 0, to the most, 1.

    Attributes:
        sd: [R] standard deviation of each reward over all answers, in the rewards' units.
        front: [W, R] mean rewards of the best answers for each weighting, in the rewards' units.
        single_share: hypervolume of the best single point of the front, as a share of that of the
            whole front: near 1, one policy serves every preference. None where a reward is the
            same on the whole front.
        balance: the most that the least of the R rewards can be in a mixture of the front's points,
            each of them taken for a share of the prompts: 1 / R where a gain in one reward costs as
            large a part of another, 1 where all have their most at once. None likewise.
    """

    sd: Floats
    front: Floats
    single_share: float | None
    balance: float | None


def best_of_front(rewards: ArrayLike, weights: ArrayLike) -> Floats:
    """Return the mean rewards of the best answer to each prompt, for each weighting.

    Args:
      rewards: [X, n, R] of n answers to each of X prompts.
      weights: [W, R].

    Returns:
      [W, R], means over the prompts; of equally good answers the first counts.

    Raises:
      InputError: shapes that do not fit, or values that are not finite.

    Example:
        >>> from jaxalign.metrics import best_of_front
        >>> best_of_front([[[1.0, 0.0], [0.0, 2.0]]], [[1.0, 0.0], [0.5, 0.5]]).tolist()
        [[1.0, 0.0], [0.0, 2.0]]
    """
    values, shares = _answers(rewards), floats("weights", weights)
    if shares.ndim != 2 or shares.shape[1] != values.shape[2] or not np.isfinite(shares).all():
        raise InputError(
            f"weights: found shape {shares.shape}, expected [W, {values.shape[2]}] finite numbers, "
            "a row a weighting and a column a reward."
        )
    best = np.argmax(np.einsum("XnR,WR->WXn", values, shares), axis=2)
    return np.asarray(values[np.arange(len(values))[None], best].mean(axis=1))


def conflict(rewards: ArrayLike, weights: ArrayLike) -> Conflict:
    """Return how far rewards conflict, from several answers to each prompt.

    Args:
      rewards: [X, n, R] of n answers to each of X prompts.
      weights: [W, R] weightings, each reward alone among them; 20 or more show the whole front.

    Returns:
      The conflict.

    Raises:
      InputError: shapes that do not fit, or values that are not finite.

    Example:
        >>> from jaxalign.metrics import conflict
        >>> answers = [[[1.0, 0.0], [0.0, 1.0], [0.75, 0.75]]]
        >>> found = conflict(answers, [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
        >>> found.balance, found.single_share
        (0.75, 1.0)
    """
    front = best_of_front(rewards, weights)
    sd = _answers(rewards).std(axis=(0, 1))
    low, width = front.min(axis=0), np.ptp(front, axis=0)
    if not (width > 0).all():
        return Conflict(sd, front, None, None)
    shares = (front - low) / width
    whole = hypervolume(shares, np.zeros(len(low)))
    # Two corners alone span no volume.
    single = float(shares.prod(axis=1).max()) / whole if whole > 0 else None
    return Conflict(sd, front, single, _balance(shares))


def _balance(shares: Floats) -> float:
    """The most that the least reward can be in a mixture of points [W, R], by linear programming.

    Weighted sums find corners of the front's hull alone, so that the best mixture lies between
    points: on a straight line there are two.
    """
    from scipy.optimize import linprog  # here, so that metrics load without it

    points, rewards = shares.shape
    # Over the points' shares and the least reward t: t <= shares^T mixture, the mixture sums to 1.
    least = np.column_stack([-shares.T, np.ones(rewards)])
    whole = np.append(np.ones(points), 0.0)[None]
    found = linprog(
        np.append(np.zeros(points), -1.0), least, np.zeros(rewards), whole, [1.0], bounds=(0, None)
    )
    return float(-found.fun)


def _answers(rewards: ArrayLike) -> Floats:
    values = floats("rewards", rewards)
    if values.ndim != 3 or 0 in values.shape or not np.isfinite(values).all():
        raise InputError(
            f"rewards: found shape {values.shape}, expected [X, n, R] finite numbers, n answers to "
            "each of X prompts; correct or leave out those that are not."
        )
    return values
