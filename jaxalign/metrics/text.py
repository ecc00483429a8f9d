"""LaMP's rules for answers: accuracy and macro-F1, MAE and RMSE, ROUGE.

Answers and right answers are stripped first, as LaMP's evaluator does. What it leaves open is
settled here: a right answer outside the task's labels is refused (the evaluator would count every
unknown answer as right beside it), "nan" and "inf" are no numbers, and ROUGE is the exact mean over
samples where the evaluator draws a bootstrap median about it.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from jaxalign.data import lamp
from jaxalign.errors import InputError

Floats = NDArray[np.float64]


def score(
    task: str | lamp.Task, predictions: Sequence[str], golds: Sequence[str]
) -> dict[str, float]:
    """Return what LaMP reports of a task.

    Args:
      task: a name in `jaxalign.data.lamp.TASKS`, or a task.
      predictions: N answers of a model.
      golds: N right answers, in the same order.

    Returns:
      `accuracy` and `f1`, the mean over the task's labels of each label's F1 (0 for one that occurs
      nowhere), where answers are labels; `MAE` and `RMSE` where they are numbers; `rouge-1` and
      `rouge-L`, F-measures, for texts.

    Raises:
      InputError: the task is unknown, the counts differ, there is nothing to score, or a right
        answer is not one that the task allows.

    Source: LaMP-Benchmark/LaMP @ 38c9d4d, eval.

    Example:
        >>> from jaxalign.metrics.text import score
        >>> score("LaMP_3", ["4", "2"], ["5", "2"])
        {'MAE': 0.5, 'RMSE': 0.7071067811865476}
    """
    return summary(task, sample_scores(task, predictions, golds), predictions, golds)


def summary(
    task: str | lamp.Task,
    values: Mapping[str, Floats],
    predictions: Sequence[str],
    golds: Sequence[str],
) -> dict[str, float]:
    """Return `score`, of which the part of each sample is known already.

    Args:
      task: a name in `jaxalign.data.lamp.TASKS`, or a task.
      values: what `sample_scores` returned of the same answers.
      predictions: N answers of a model.
      golds: N right answers, in the same order.

    Returns:
      As `score`.
    """
    rules = lamp.task(task)
    if rules.kind == "rating":
        error = values["MAE"]
        return {"MAE": float(error.mean()), "RMSE": float(np.sqrt((error**2).mean()))}
    means = {name: float(value.mean()) for name, value in values.items()}
    if rules.kind == "choice":
        means["f1"] = _macro_f1(rules.labels, _stripped(predictions), _stripped(golds))
    return means


def sample_scores(
    task: str | lamp.Task, predictions: Sequence[str], golds: Sequence[str]
) -> dict[str, Floats]:
    """Return each sample's share in the figures that are means over samples.

    Args:
      task: a name in `jaxalign.data.lamp.TASKS`, or a task.
      predictions: N answers of a model.
      golds: N right answers, in the same order.

    Returns:
      `accuracy`, 0 or 1; or `MAE`, the distance, for which less is better, a prediction that is no
      number counting as the farther of the least and the greatest label (the greatest where both
      are as far); or `rouge-1` and `rouge-L`. Each [N].

    Raises:
      InputError: as `score`.
    """
    rules = lamp.task(task)
    answers, right = _stripped(predictions), _stripped(golds)
    if len(answers) != len(right) or not right:
        raise InputError(
            f"{rules.name}: found {len(answers)} predictions for {len(right)} right answers, "
            "expected one for each of at least one."
        )
    if rules.kind == "choice":
        if unknown := [gold for gold in right if gold not in rules.labels]:
            raise InputError(
                f"{rules.name}: the right answer {unknown[0]!r} is none of "
                f"{', '.join(rules.labels)}; check the file of outputs and the task."
            )
        equal = [answer == gold for answer, gold in zip(answers, right, strict=True)]
        return {"accuracy": np.asarray(equal, np.float64)}
    if rules.kind == "rating":
        return {"MAE": _distances(rules, answers, right)}
    return _rouge(answers, right)


def _stripped(texts: Sequence[str]) -> list[str]:
    return [str(text).strip() for text in texts]


def _macro_f1(labels: Sequence[str], answers: list[str], right: list[str]) -> float:
    """2 hits / (answered + right) of each label, 0 where neither occurs; mean over labels."""
    found, true = np.asarray(answers), np.asarray(right)
    shares = []
    for label in labels:
        hits = ((found == label) & (true == label)).sum()
        said = (found == label).sum() + (true == label).sum()
        shares.append(2 * hits / said if said else 0.0)
    return float(np.mean(shares))


def _distances(task: lamp.Task, answers: list[str], right: list[str]) -> Floats:
    low, high = float(task.labels[0]), float(task.labels[-1])
    distances = np.empty(len(right))
    for place, (answer, gold) in enumerate(zip(answers, right, strict=True)):
        true = _number(gold)
        if true is None:
            raise InputError(
                f"{task.name}: the right answer {gold!r} is no number; check the file of outputs "
                "and the task."
            )
        found = _number(answer)
        if found is None:
            found = low if abs(low - true) > abs(high - true) else high
        distances[place] = abs(found - true)
    return distances


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _rouge(answers: list[str], right: list[str]) -> dict[str, Floats]:
    from rouge_score.rouge_scorer import RougeScorer  # slow to import, and only texts need it

    names: Mapping[str, str] = {"rouge-1": "rouge1", "rouge-L": "rougeL"}
    scorer = RougeScorer(list(names.values()), use_stemmer=False)
    found = [scorer.score(gold, answer) for gold, answer in zip(right, answers, strict=True)]
    return {
        name: np.array([one[inner].fmeasure for one in found], np.float64)
        for name, inner in names.items()
    }
