"""Users whom adaptation leaves worse off: how many, and how many would look so by chance alone."""

import numpy as np
from numpy.typing import ArrayLike

from jaxalign.metrics.bootstrap import Interval, mean_interval
from jaxalign.metrics.scores import Floats, check_probabilities, correct_both

_USERS_AT_ONCE = 4096


def harmed_users(probability: ArrayLike, unadapted: ArrayLike, mask: ArrayLike) -> Floats:
    """Return the share of seeds in which each user has a lower accuracy with adaptation.

    Compared seed by seed, then averaged: a user is harmed by a model, not by a mean of models.

    Args:
      probability: [..., U, P], with adaptation.
      unadapted: [..., U, P], the same model before it saw the user; seeds as in probability, or one
        for all of them.
      mask: [U, P] bool, real strict pairs.

    Returns:
      [U], NaN for a user without pairs.

    Raises:
      InputError: shapes differ, or there is nothing to judge.
    """
    keep = np.asarray(mask)
    after, before = correct_both(probability, unadapted, keep, "unadapted")
    # Sums of halves are exact, so equal accuracies compare equal; padding adds 0.
    share = ((after - before).sum(-1) < 0).mean(0)
    return np.where(keep.any(-1), share, np.nan)


def harmed(
    probability: ArrayLike,
    unadapted: ArrayLike,
    mask: ArrayLike,
    seed: int = 0,
    draws: int = 2000,
) -> Interval:
    """Return the share of users whom adaptation leaves with a lower accuracy, with its interval.

    Args:
      probability: [..., U, P], with adaptation.
      unadapted: [..., U, P], as for `harmed_users`.
      mask: [U, P] bool, real strict pairs.
      seed: of the bootstrap over users.
      draws: bootstrap draws, at least 2.

    Returns:
      Interval of the share, as a fraction.

    Raises:
      InputError: shapes differ, nothing to judge, or fewer than 2 draws.

    Example:
        >>> import numpy as np
        >>> from jaxalign.metrics import harmed
        >>> mask = np.ones((2, 1), bool)
        >>> harmed([[0.9], [0.2]], [[0.4], [0.8]], mask).mean
        0.5
    """
    return mean_interval(seed, harmed_users(probability, unadapted, mask), draws)


def harm_floor(probability: ArrayLike, unadapted: ArrayLike, mask: ArrayLike) -> float:
    """Return the share of users who would look harmed if the adapted probabilities were exact.

    Only pairs whose prediction adaptation changes matter. If the adapted probabilities are right,
    adaptation helps every user in expectation, and still some have more of these pairs wrong than
    right by chance. The probability of that is exact, without simulated labels: the distribution of
    each user's difference is built up pair by pair.

    Args:
      probability: [..., U, P], with adaptation.
      unadapted: [..., U, P], as for `harmed_users`.
      mask: [U, P] bool, real strict pairs.

    Returns:
      The expected share, as a fraction; averaged over seeds.

    Raises:
      InputError: shapes differ, or there is nothing to judge.

    Example:
        >>> import numpy as np
        >>> from jaxalign.metrics import harm_floor
        >>> mask = np.ones((2, 1), bool)
        >>> harm_floor([[0.9], [0.2]], [[0.4], [0.1]], mask)  # the first pair's prediction changes
        0.05
    """
    values, keep = check_probabilities(probability, mask)
    after, before = correct_both(values, unadapted, keep, "unadapted")
    change = np.rint(2 * (after - before)).astype(int)  # in half pairs: a tie is half right
    values = np.broadcast_to(values, change.shape)
    gained = np.where(change > 0, values, 1 - values)
    judged = keep.any(-1)
    chances = [
        _chance_of_loss(np.abs(c), g)
        for c, g in zip(change[:, judged], gained[:, judged], strict=True)
    ]
    return float(round(np.mean(chances), 12))


def _chance_of_loss(size: np.ndarray, gained: Floats) -> Floats:
    """Return the probability [U] that changes [U, P] of given sizes, 0 to 2, sum to below 0.

    Args:
      size: [U, P] of a change, 0 for none.
      gained: [U, P] the probability that it is a gain.
    """
    # Changed pairs first, so that the width is that of the user who has most of them.
    order = np.argsort(size == 0, axis=1, kind="stable")
    width = int((size > 0).sum(1).max(initial=0))
    size, gained = (np.take_along_axis(a, order, 1)[:, :width] for a in (size, gained))
    chances = np.zeros(len(size))
    for start in range(0, len(size), _USERS_AT_ONCE):
        users = slice(start, start + _USERS_AT_ONCE)
        chances[users] = _distribution(size[users], gained[users])[:, : 2 * width].sum(1)
    return chances


def _distribution(size: np.ndarray, gained: Floats) -> Floats:
    """Return the distribution [U, 4 P + 1] of the sum of changes, from -2 P to 2 P."""
    users, width = size.shape
    chance = np.zeros((users, 4 * width + 1))
    chance[:, 2 * width] = 1
    for pair in range(width):
        up = gained[:, pair, None]
        for step in (1, 2):
            moved = np.zeros_like(chance)
            moved[:, step:] += up * chance[:, :-step]
            moved[:, :-step] += (1 - up) * chance[:, step:]
            chance = np.where(size[:, pair, None] == step, moved, chance)
    return chance
