"""Statistics of a comparison: each method's gain over the baselines, and what can be detected.

Users are the sampling unit. Every number with an interval is a mean over users of the user's mean
over samples, so that each user counts once. Seeds are averaged before users are resampled.
"""

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxalign.data import lamp
from jaxalign.errors import InputError
from jaxalign.metrics import labels, text
from jaxalign.metrics.bootstrap import mean_interval

Floats = NDArray[np.float64]

LENGTHS = (0, 1, 16, 64, 256)
LABEL_LOSS = "label loss"


class Gain(TypedDict):
    """A method's gain over a baseline; all but the mean are None for one user.

    Attributes:
        mean: Mean over users.
        low, high: 95 % bootstrap interval over users.
        standard_error: Bootstrap standard error.
        detectable: Smallest true difference that 80 % power finds.
    """

    mean: float
    low: float | None
    high: float | None
    standard_error: float | None
    detectable: float | None


class GroupMethod(TypedDict):
    """A method on a group of samples: its mean over users, and its gain over each baseline."""

    user_mean: float
    gains: dict[str, Gain]


class MethodStatistics(GroupMethod):
    """A method on all samples.

    Attributes:
        seeds: Number of seeds.
        mean: Mean over samples and seeds.
        seed_sd: Standard deviation over seeds of the mean over users; None for one seed.
    """

    seeds: int
    mean: float
    seed_sd: float | None


class LengthGroup(TypedDict):
    """Samples with at least `least` items in the history and fewer than `below`, None for any."""

    least: int
    below: int | None
    users: int
    samples: int
    methods: dict[str, GroupMethod]


class MetricStatistics(TypedDict):
    """One metric of all methods.

    Attributes:
        users, samples: Their numbers.
        expected_detectable: Difference that was expected to be detectable, computed from the first
            baseline alone at a correlation of 0.5; None for one user.
        methods: Statistics of each method.
        by_length: The same by length of the history.
    """

    users: int
    samples: int
    expected_detectable: float | None
    methods: dict[str, MethodStatistics]
    by_length: list[LengthGroup]


class TaskStatistics(TypedDict):
    """All metrics of a task, as JSON.

    Attributes:
        task: Name of the task.
        baselines: Methods over which gains are given, the main one first.
        scores: Scores of each method as LaMP reports them, means over seeds.
        metrics: Statistics of each metric.
    """

    task: str
    baselines: list[str]
    scores: dict[str, dict[str, float]]
    metrics: dict[str, MetricStatistics]


def detectable_difference(differences: ArrayLike, power: float = 0.8, level: float = 0.05) -> float:
    """Return the smallest true difference of two methods that users like these would show.

    (z_(1 - level/2) + z_power) s / sqrt(U), with s the standard deviation over users of the user's
    mean paired difference: 2.8 standard errors for the default power and level.

    Args:
        differences: [U] each user's mean difference between the scores of two methods on the same
            samples.
        power: Probability in (0, 1) of finding the difference.
        level: Two-sided probability in (0, 1) of finding a difference where none exists.

    Returns:
        A non-negative number in the units of the scores.

    Raises:
        InputError: There are fewer than two users, or a probability is out of range.

    Example:
        >>> from jaxalign.experiments.pplug.statistics import detectable_difference
        >>> round(detectable_difference([0.1, 0.3]), 3)
        0.28
    """
    if not 0 < power < 1 or not 0 < level < 1:
        raise InputError(f"power is {power} and level {level}; expected numbers between 0 and 1.")
    means = np.asarray(differences, np.float64)
    if len(means) < 2:
        raise InputError(f"users: found {len(means)}, expected at least two to see a spread.")
    normal = NormalDist()
    errors = max(normal.inv_cdf(1 - level / 2) + normal.inv_cdf(power), 0.0)
    return errors * float(means.std(ddof=1) / np.sqrt(len(means)))


def expected_detectable_difference(
    scores: ArrayLike,
    users: Sequence[str],
    correlation: float = 0.5,
    power: float = 0.8,
    level: float = 0.05,
) -> float:
    """Return `detectable_difference` as expected before a second method is evaluated.

    The variance of a paired difference is taken as 2 (1 - correlation) times the variance over
    users of a user's mean score.

    Args:
        scores: [N] scores of one method.
        users: User of each of the N samples.
        correlation: Correlation over users in [-1, 1] between the mean scores of two methods.
            Trainings that share the language model mostly agree better than 0.5, so that the
            default overstates the difference.
        power: Probability in (0, 1) of finding the difference.
        level: Two-sided probability in (0, 1) of finding a difference where none exists.

    Returns:
        A non-negative number in the units of the scores.

    Raises:
        InputError: There are fewer than two users, or an argument is out of range.
    """
    if not -1 <= correlation <= 1:
        raise InputError(f"correlation is {correlation}; expected a number from -1 to 1.")
    means = _user_means(_checked(scores, len(users), "scores"), users)[0].mean(0)
    return detectable_difference(means, power, level) * float(np.sqrt(2 * (1 - correlation)))


def compare_methods(
    scores: Mapping[str, ArrayLike],
    users: Sequence[str],
    lengths: ArrayLike,
    baselines: Sequence[str],
    edges: Sequence[int] = LENGTHS,
    seed: int = 0,
    draws: int = 2000,
) -> MetricStatistics:
    """Return every method's mean and gain over each baseline, overall and by history length.

    Args:
        scores: [S, N] or [N] scores of each method on the same N samples; the number of seeds S
            may differ between methods.
        users: User of each sample, the clusters of the paired bootstrap.
        lengths: [N] int number of items in the history of each sample.
        baselines: Methods over which gains are computed.
        edges: Smallest lengths of the groups by history length, ascending from 0.
        seed: Seed of the bootstrap.
        draws: Bootstrap resamples.

    Raises:
        InputError: Shapes do not fit, a score is not finite, or a baseline is not among the
            methods.
    """
    count = len(users)
    if lacking := [name for name in baselines if name not in scores]:
        raise InputError(f"baseline {lacking[0]!r} is no method; expected one of {[*scores]}.")
    if not baselines:
        raise InputError("baselines: found none, expected at least one method.")
    checked = {name: _checked(values, count, name) for name, values in scores.items()}
    items = np.asarray(lengths)
    if items.shape != (count,):
        raise InputError(f"lengths: expected {count} of them, found {items.shape}.")
    if list(edges) != sorted({*edges, 0}):
        raise InputError(f"edges are {[*edges]}; expected ascending whole numbers from 0.")

    def group(least: int, below: int | None) -> LengthGroup:
        rows = (items >= least) & (items < (np.inf if below is None else below))
        return _group(checked, users, rows, baselines, seed, draws, least, below)

    whole = group(0, None)
    groups = [group(least, below) for least, below in zip(edges, [*edges[1:], None], strict=True)]
    first = checked[baselines[0]].mean(0)
    several = whole["users"] > 1
    return {
        "users": whole["users"],
        "samples": count,
        "expected_detectable": expected_detectable_difference(first, users) if several else None,
        "methods": {
            name: _method(values, users, whole["methods"][name]) for name, values in checked.items()
        },
        "by_length": [one for one in groups if one["samples"]],
    }


def score_predictions(
    task: str | lamp.Task,
    predictions: Mapping[str, Sequence[Sequence[str]]],
    golds: Sequence[str],
    users: Sequence[str],
    lengths: ArrayLike,
    baselines: Sequence[str],
    edges: Sequence[int] = LENGTHS,
    seed: int = 0,
    draws: int = 2000,
) -> TaskStatistics:
    """Return `compare_methods` of every metric of a task, and the scores that LaMP reports.

    Args:
        task: A name in `jaxalign.data.lamp.TASKS`, or a task.
        predictions: For each method, one list of N answers per seed.
        golds: N right answers.
        users, lengths, baselines, edges, seed, draws: As in `compare_methods`.

    Returns:
        The statistics. For `MAE`, a negative gain is better.

    Raises:
        InputError: As `compare_methods` and `jaxalign.metrics.text.score`.
    """
    samples: dict[str, dict[str, Floats]] = {}
    scores: dict[str, dict[str, float]] = {}
    for name, seeds in predictions.items():
        if not seeds:
            raise InputError(f"{name}: found no predictions, expected those of at least one seed.")
        values = [text.sample_scores(task, answers, golds) for answers in seeds]
        summaries = [
            text.summary(task, own, answers, golds)
            for own, answers in zip(values, seeds, strict=True)
        ]
        scores[name] = {
            key: float(np.mean([one[key] for one in summaries])) for key in summaries[0]
        }
        for key in values[0]:
            samples.setdefault(key, {})[name] = np.stack([own[key] for own in values])
    return _task_statistics(
        lamp.task(task), scores, samples, users, lengths, baselines, edges, seed, draws
    )


def score_distributions(
    task: lamp.Task,
    logprobs: Mapping[str, Sequence[Floats]],
    right: ArrayLike,
    users: Sequence[str],
    lengths: ArrayLike,
    baselines: Sequence[str],
    edges: Sequence[int] = LENGTHS,
    seed: int = 0,
    draws: int = 2000,
) -> TaskStatistics:
    """Return `compare_methods` of distributions over a task's labels.

    Args:
        task: The task, with labels.
        logprobs: For each method, one [N, K] array of log-probabilities per seed.
        right: [N] int numbers of the right labels, as of `Histories.label_numbers`.
        users, lengths, baselines, edges, seed, draws: As in `compare_methods`.

    Returns:
        The statistics of `accuracy` (the likeliest label), of `MAE` (the median) for ratings, and
        of `label loss`, nats per answer; as scores also macro-F1, `RMSE` (the mean) for ratings,
        and the calibration error of the likeliest label.

    Raises:
        InputError: As `compare_methods` and `jaxalign.metrics.labels.score_labels`.
    """
    values = [float(label) for label in task.labels] if task.kind == "rating" else None
    samples: dict[str, dict[str, Floats]] = {}
    scores: dict[str, dict[str, float]] = {}
    for name, tables in logprobs.items():
        found = [labels.score_labels(table, right, values) for table in tables]
        parts = {"accuracy": np.stack([one.accuracy for one in found])}
        if values is not None:
            parts["MAE"] = np.stack([one.distance for one in found if one.distance is not None])
        parts[LABEL_LOSS] = np.stack([one.loss for one in found])
        own = {key: float(part.mean()) for key, part in parts.items()}
        count = len(task.labels)
        own["f1"] = float(np.mean([labels.macro_f1(one.likeliest, right, count) for one in found]))
        squared = [one.squared for one in found if one.squared is not None]
        if squared:
            own["RMSE"] = float(np.mean([np.sqrt(part.mean()) for part in squared]))
        own["calibration error"] = float(
            np.mean([labels.label_calibration_error(table, right) for table in tables])
        )
        scores[name] = own
        for key, part in parts.items():
            samples.setdefault(key, {})[name] = part
    return _task_statistics(task, scores, samples, users, lengths, baselines, edges, seed, draws)


def _task_statistics(
    task: lamp.Task,
    scores: dict[str, dict[str, float]],
    samples: Mapping[str, Mapping[str, Floats]],
    users: Sequence[str],
    lengths: ArrayLike,
    baselines: Sequence[str],
    edges: Sequence[int],
    seed: int,
    draws: int,
) -> TaskStatistics:
    """Return the statistics of each metric, from every method's scores of the samples."""
    metrics = {
        key: compare_methods(methods, users, lengths, baselines, edges, seed, draws)
        for key, methods in samples.items()
    }
    return {"task": task.name, "baselines": [*baselines], "scores": scores, "metrics": metrics}


def _checked(values: ArrayLike, count: int, name: str) -> Floats:
    """Return scores as [S, N] float64."""
    found = np.atleast_2d(np.asarray(values, np.float64))
    if found.ndim != 2 or found.shape[1] != count or not found.size:
        raise InputError(
            f"{name}: expected [seeds, {count} samples], found {np.asarray(values).shape}."
        )
    if not np.isfinite(found).all():
        raise InputError(f"{name}: expected finite scores, found NaN or infinity.")
    return found


def _user_means(values: Floats, users: Sequence[str]) -> tuple[Floats, int]:
    """Return the means [S, U] over the samples of each user, and U."""
    names, code = np.unique(np.asarray(users, dtype=object).astype(str), return_inverse=True)
    count = np.bincount(code)
    sums = np.stack([np.bincount(code, row, len(names)) for row in values])
    return sums / count, len(names)


def _method(values: Floats, users: Sequence[str], own: GroupMethod) -> MethodStatistics:
    means = _user_means(values, users)[0].mean(1) if len(values) > 1 else None
    return {
        "seeds": len(values),
        "mean": float(values.mean()),
        "user_mean": own["user_mean"],
        "seed_sd": None if means is None else float(means.std(ddof=1)),
        "gains": own["gains"],
    }


def _group(
    scores: Mapping[str, Floats],
    users: Sequence[str],
    rows: NDArray[np.bool_],
    baselines: Sequence[str],
    seed: int,
    draws: int,
    least: int,
    below: int | None,
) -> LengthGroup:
    """Return means and gains on some of the samples."""
    own = [user for user, kept in zip(users, rows, strict=True) if kept]
    methods: dict[str, GroupMethod] = {}
    # Paired sample by sample before users are averaged, so that common terms cancel exactly.
    averaged = {name: values[:, rows].mean(0) for name, values in scores.items() if own}
    for name, values in averaged.items():
        gains = {}
        for other in baselines:
            if other != name:
                differences = _user_means((values - averaged[other])[None], own)[0][0]
                gains[other] = _gain(differences, seed, draws)
        mean = float(_user_means(values[None], own)[0].mean())
        methods[name] = {"user_mean": mean, "gains": gains}
    return {
        "least": least,
        "below": below,
        "users": len(set(own)),
        "samples": len(own),
        "methods": methods,
    }


def _gain(differences: Floats, seed: int, draws: int) -> Gain:
    found = mean_interval(seed, differences, draws)
    # One user has no spread: all resamples are alike and say nothing about others.
    if len(differences) < 2:
        return {"mean": found.mean, "low": None, "high": None, "standard_error": None,
                "detectable": None}  # fmt: skip
    return {
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "standard_error": found.standard_error,
        "detectable": detectable_difference(differences),
    }
