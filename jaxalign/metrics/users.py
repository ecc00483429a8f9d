"""How personalised reward models are judged: the protocol, and all of its parts in one place.

Inputs everywhere: `probability [U, P]`, the predicted probability that the chosen item of a pair
wins, and `mask [U, P]` bool of real, strict (non-tie) pairs; a prediction of exactly one half is
half right. A leading axis [S, U, P] holds seeds: the test users are fixed, seeds vary
initialisation and order only, so each user is averaged over seeds before anything is drawn. Users
without pairs are left out. All is NumPy in float64.
"""

import numpy as np
from numpy.typing import ArrayLike

from jaxalign.metrics.bootstrap import Interval, paired_bootstrap
from jaxalign.metrics.calibration import Reliability, calibration_error, reliability
from jaxalign.metrics.groups import worst_groups
from jaxalign.metrics.harm import harm_floor, harmed
from jaxalign.metrics.scores import (
    Floats,
    accuracy,
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
    "harm_floor",
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
      calibration_error as fractions, nll in nats; harm_floor, the share that would look harmed if
      the probabilities were exact, and harm_excess, what harmed has beyond it; gain_low, gain_high,
      harmed_low, harmed_high at 95 % over users; gain_items_low, gain_items_high over users and
      items, if items are given; worst_10_split to worst_50_split, unless no user has two pairs;
      accuracy_sd and gain_sd between seeds (0 for one seed); users and pairs, the numbers judged.

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
    floor = harm_floor(probability, unadapted, keep)
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
        "harm_floor": floor,
        "harm_excess": worse.mean - floor,
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
