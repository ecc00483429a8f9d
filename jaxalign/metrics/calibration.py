"""Whether a predicted probability means what it says."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxalign.errors import InputError
from jaxalign.metrics.scores import Floats, check_probabilities


class Reliability(NamedTuple):
    """Predictions gathered in bins [B]; predicted and observed are NaN where counts is 0."""

    centers: Floats
    predicted: Floats
    observed: Floats
    counts: NDArray[np.int64]


def reliability(probability: ArrayLike, mask: ArrayLike, bins: int = 10) -> Reliability:
    """Return how often predictions of each size come true, each pair counted in both orders.

    Which item of a pair comes first means nothing. Asked only for the chosen item's probability
    every prediction would have come true; so p, true, is counted along with 1 - p, false.

    Args:
      probability: [..., U, P], of the chosen item; users and seeds are pooled.
      mask: [U, P] bool, real strict pairs.
      bins: number of equal bins over 0..1, at least 2.

    Returns:
      Reliability: centers, mean prediction, observed frequency and counts, [bins] each, symmetric
      about one half.

    Raises:
      InputError: shapes differ, nothing to judge, or fewer than 2 bins.

    Example:
        >>> import numpy as np
        >>> from jaxalign.metrics import reliability
        >>> table = reliability([[0.75, 0.75]], np.ones((1, 2), bool), bins=2)
        >>> table.predicted.tolist(), table.observed.tolist(), table.counts.tolist()
        ([0.25, 0.75], [0.0, 1.0], [2, 2])
    """
    if bins < 2:
        raise InputError(f"bins: expected at least 2, found {bins}.")
    values, keep = check_probabilities(probability, mask)
    pooled = values[..., keep].ravel()
    # Binned by the favoured side and then mirrored: binning both orders on their own would put a
    # prediction on a bin's edge and its mirror image into bins that are not mirror images.
    sure = np.maximum(pooled, 1 - pooled)
    right = (np.sign(pooled - 0.5) + 1) / 2
    upper = np.minimum((sure * bins).astype(np.intp), bins - 1)
    lower = bins - 1 - upper
    index = np.concatenate([upper, lower])
    counts = np.bincount(index, minlength=bins)
    total = np.where(counts > 0, counts, np.nan)
    return Reliability(
        centers=(np.arange(bins) + 0.5) / bins,
        predicted=np.bincount(index, np.concatenate([sure, 1 - sure]), bins) / total,
        observed=np.bincount(index, np.concatenate([right, 1 - right]), bins) / total,
        counts=counts,
    )


def calibration_error(probability: ArrayLike, mask: ArrayLike, bins: int = 10) -> float:
    """Return the expected calibration error, the mean distance of predicted from observed.

    Guo, Pleiss, Sun, Weinberger, ICML 2017, over both orders of each pair.

    Args:
      probability: [..., U, P], of the chosen item.
      mask: [U, P] bool, real strict pairs.
      bins: number of equal bins over 0..1.

    Returns:
      A fraction; bins weigh by their counts.

    Raises:
      InputError: as `reliability`.

    Example:
        >>> import numpy as np
        >>> from jaxalign.metrics import calibration_error
        >>> calibration_error([[0.75, 0.75]], np.ones((1, 2), bool), bins=2)
        0.25
    """
    table = reliability(probability, mask, bins)
    used = table.counts > 0
    distance = np.abs(table.predicted - table.observed)[used]
    return float(np.average(distance, weights=table.counts[used]))
