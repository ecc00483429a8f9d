"""Metrics of distributions over a task's labels."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxalign.errors import InputError

Floats = NDArray[np.float64]
_BINS = 10


class LabelScores(NamedTuple):
    """Predictions of N distributions over K labels, and their distances to the right labels.

    Attributes:
        likeliest: [N] int, the likeliest label.
        median: [N] int, the least label that has half of the probability at or below it.
        mean: [N] expected value of the labels; None where labels are no numbers.
        loss: [N] nats, the negative log-probability of the right label.
        accuracy: [N] 0 or 1, of the likeliest.
        distance: [N] between the value of the median and the right one; None likewise.
        squared: [N] squared distance between the mean and the right value; None likewise.
    """

    likeliest: NDArray[np.int64]
    median: NDArray[np.int64]
    mean: Floats | None
    loss: Floats
    accuracy: Floats
    distance: Floats | None
    squared: Floats | None


def score_labels(logprobs: ArrayLike, right: ArrayLike, values: ArrayLike | None) -> LabelScores:
    """Return the predictions of distributions over labels, and each sample's part of the metrics.

    The median has the least expected distance and the mean the least expected squared distance, so
    that MAE is reported of the one and RMSE of the other.

    Args:
        logprobs: [N, K] log-probabilities of the labels, each row normalised.
        right: [N] int number of the right label.
        values: [K] ascending values of the labels; None where they are no numbers.

    Raises:
        InputError: The shapes do not fit, a label does not exist, or a number is not finite.

    Example:
        >>> import numpy as np
        >>> from jaxalign.metrics.labels import score_labels
        >>> found = score_labels(np.log([[0.2, 0.2, 0.6]]), [1], [1, 2, 3])
        >>> found.likeliest.tolist(), found.median.tolist(), found.mean.round(3).tolist()
        ([2], [2], [2.4])
    """
    table, gold = np.asarray(logprobs, np.float64), np.asarray(right)
    if table.ndim != 2 or not table.size or gold.shape != table.shape[:1]:
        raise InputError(
            f"logprobs have shape {table.shape} and right labels {gold.shape}; expected [N, K] and "
            "[N]."
        )
    if not np.isfinite(table).all() or (gold < 0).any() or (gold >= table.shape[1]).any():
        raise InputError(
            f"found log-probabilities that are not finite, or labels outside 0 to "
            f"{table.shape[1] - 1}; expected finite numbers of labels that exist."
        )
    likeliest, median = table.argmax(axis=1), median_labels(table)
    own = np.take_along_axis(table, gold[:, None], axis=1)[:, 0]
    mean = distance = squared = None
    if values is not None:
        places = np.asarray(values, np.float64)
        mean = np.exp(table) @ places
        distance = np.abs(places[median] - places[gold])
        squared = (mean - places[gold]) ** 2
    correct = np.asarray(likeliest == gold, np.float64)
    return LabelScores(likeliest, median, mean, -own, correct, distance, squared)


def median_labels(logprobs: ArrayLike) -> NDArray[np.int64]:
    """Return the least label that has half of the probability at or below it: [N].

    Args:
        logprobs: [N, K] log-probabilities of the labels.

    Example:
        >>> import numpy as np
        >>> from jaxalign.metrics.labels import median_labels
        >>> median_labels(np.log([[0.2, 0.2, 0.6], [0.5, 0.2, 0.3]])).tolist()
        [2, 0]
    """
    chances = np.exp(np.asarray(logprobs, np.float64))
    return (np.cumsum(chances, axis=1) >= 0.5 * chances.sum(axis=1)[:, None]).argmax(axis=1)


def macro_f1(found: ArrayLike, right: ArrayLike, labels: int) -> float:
    """Return the mean over labels of each label's F1, 0 for a label that occurs nowhere.

    Args:
        found: [N] int predicted labels.
        right: [N] int right labels.
        labels: K, their number.

    Example:
        >>> from jaxalign.metrics.labels import macro_f1
        >>> macro_f1([0, 1, 1], [0, 1, 0], 2)
        0.6666666666666666
    """
    one, two = np.asarray(found), np.asarray(right)
    hits = np.bincount(one[one == two], minlength=labels)
    counts = np.bincount(one, minlength=labels) + np.bincount(two, minlength=labels)
    return float(np.mean(np.where(counts > 0, 2 * hits / np.maximum(counts, 1), 0)))


def label_calibration_error(logprobs: ArrayLike, right: ArrayLike, bins: int = _BINS) -> float:
    """Return the expected calibration error of the likeliest label.

    Samples are binned by the probability of their likeliest label. The error is the mean over
    samples of the distance between the bin's mean probability and its share of right labels.

    Args:
        logprobs: [N, K] log-probabilities of the labels.
        right: [N] int number of the right label.
        bins: Number of bins of equal width.

    Example:
        >>> import numpy as np
        >>> from jaxalign.metrics.labels import label_calibration_error
        >>> round(label_calibration_error(np.log([[0.8, 0.2], [0.8, 0.2]]), [0, 1]), 3)
        0.3
    """
    table = np.asarray(logprobs, np.float64)
    confidence = np.exp(table.max(axis=1))
    correct = table.argmax(axis=1) == np.asarray(right)
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins)
    gap = np.bincount(place, confidence, bins) - np.bincount(place, correct, bins)
    return float(np.abs(gap).sum() / count.sum())
