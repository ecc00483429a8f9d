"""How personalised reward models are judged: the protocol, and all of its parts in one place.

Inputs everywhere: `probability [U, P]`, the predicted probability that the chosen item of a pair
wins, and `mask [U, P]` bool of real, strict (non-tie) pairs; a prediction of exactly one half is
half right. A leading axis [S, U, P] holds seeds: the test users are fixed, seeds vary
initialisation and order only, so each user is averaged over seeds before anything is drawn. Users
without pairs are left out. All is NumPy in float64.
"""

import numpy as np
from numpy.typing import ArrayLike

from jaxalign.metrics.bootstrap import Interval, mean_interval, paired_bootstrap
from jaxalign.metrics.calibration import Reliability, calibration_error, reliability
from jaxalign.metrics.groups import worst_groups
from jaxalign.metrics.scores import (
    Floats,
    accuracy,
    correct_both,
    flipped,
    nll,
    share_of_gap,
    user_accuracy,
    user_gain,
    user_nll,
)

__all__ = [
    "Interval",
    "Reliability",
    "accuracy",
    "calibration_error",
    "flipped",
    "harmed",
    "judge",
    "nll",
    "paired_bootstrap",
    "reliability",
    "share_of_gap",
    "user_accuracy",
    "user_gain",
    "user_nll",
    "worst_groups",
]


def harmed(
    probability: ArrayLike,
    unadapted: ArrayLike,
    mask: ArrayLike,
    seed: int = 0,
    draws: int = 2000,
) -> Interval:
    """Return the share of users whom adaptation leaves with a lower accuracy, with its interval.

    Compared seed by seed, then averaged: a user is harmed by a model, not by a mean of models.

    Args:
      probability: [..., U, P], with adaptation.
      unadapted: [..., U, P], the same model before it saw the user; seeds as in probability, or one
        for all of them.
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
    keep = np.asarray(mask)
    after, before = correct_both(probability, unadapted, keep, "unadapted")
    # Sums of halves are exact, so equal accuracies compare equal; padding adds 0.
    share = ((after - before).sum(-1) < 0).mean(0)
    return mean_interval(seed, np.where(keep.any(-1), share, np.nan), draws)


def judge(
    probability: ArrayLike,
    unadapted: ArrayLike,
    baseline: ArrayLike,
    mask: ArrayLike,
    chosen: ArrayLike | None = None,
    rejected: ArrayLike | None = None,
    seed: int = 0,
    draws: int = 2000,
) -> dict[str, float]:
    """Return everything a table says of one method in one regime, ready for JSON.

    Args:
      probability: [U, P] or [S, U, P], of the chosen item, with adaptation.
      unadapted: the same model before it saw the user; shaped like probability, or [U, P].
      baseline: one Bradley-Terry model for all; shaped like probability, or [U, P].
      mask: [U, P] bool, real strict pairs.
      chosen: [U, P] int, index of the chosen item, or None.
      rejected: [U, P] int, index of the rejected item, or None.
      seed: of bootstrap and half-splits; the same for all methods of a table.
      draws: bootstrap draws, at least 2.

    Returns:
      accuracy, gain (over the baseline), worst_10 to worst_50, harmed, flipped and
      calibration_error as fractions, nll in nats; gain_low, gain_high, harmed_low, harmed_high at
      95 % over users; gain_items_low, gain_items_high over users and items, if items are given;
      worst_10_split to worst_50_split, unless no user has two pairs; accuracy_sd and gain_sd
      between seeds (0 for one seed); users and pairs, the numbers judged.

    Raises:
      InputError: shapes differ, nothing to judge, or a value that makes no sense.

    Example:
        >>> import numpy as np
        >>> from jaxalign.metrics import judge
        >>> mask = np.ones((2, 1), bool)
        >>> found = judge([[0.9], [0.8]], [[0.4], [0.4]], [[0.4], [0.9]], mask, draws=50)
        >>> found["accuracy"], found["gain"], found["harmed"]
        (1.0, 0.5, 0.0)
    """
    keep = np.asarray(mask)
    gain = paired_bootstrap(seed, probability, baseline, keep, draws=draws)
    worse = harmed(probability, unadapted, keep, seed, draws)
    result = {
        "accuracy": accuracy(probability, keep),
        "accuracy_sd": _seed_spread(user_accuracy(probability, keep)),
        "nll": nll(probability, keep),
        "gain": gain.mean,
        "gain_low": gain.low,
        "gain_high": gain.high,
        "gain_sd": _seed_spread(user_accuracy(probability, keep) - user_accuracy(baseline, keep)),
        **worst_groups(probability, baseline, keep, seed=seed),
        "harmed": worse.mean,
        "harmed_low": worse.low,
        "harmed_high": worse.high,
        "flipped": flipped(probability, unadapted, keep),
        "calibration_error": calibration_error(probability, keep),
        "users": int(keep.any(-1).sum()),
        "pairs": int(keep.sum()),
    }
    if chosen is not None or rejected is not None:
        wide = paired_bootstrap(seed, probability, baseline, keep, chosen, rejected, draws)
        result |= {"gain_items_low": wide.low, "gain_items_high": wide.high}
    return result


def _seed_spread(per_user: Floats) -> float:
    """Return the standard deviation between seeds of the mean over users."""
    means = np.atleast_1d(np.nanmean(per_user, axis=-1)).ravel()
    # From the first: equal seeds then spread exactly 0, where their mean may be a rounding off.
    return float((means - means[0]).std(ddof=1)) if len(means) > 1 else 0.0
