"""The report of an evaluation: Markdown and terminal tables."""

from collections.abc import Sequence

from jaxalign.experiments.pplug.statistics import (
    LABEL_LOSS,
    Gain,
    LengthGroup,
    MetricStatistics,
    TaskStatistics,
)
from jaxalign.progress import counted
from jaxalign.runs.tables import MISSING, TerminalTable, markdown_table

_LESS = {
    "MAE": "Less is better. ",
    "loss": "Nats per token of the right answers; less is better. ",
    LABEL_LOSS: "Nats per answer, among the labels of the task; less is better. ",
}


def markdown(statistics: TaskStatistics, notes: Sequence[str] = ()) -> str:
    """Return a page of tables: each metric overall and by history length, then LaMP's scores.

    Args:
        statistics: As from `score_predictions`.
        notes: Lines to list at the end.

    Returns:
        Markdown, ending in a newline.
    """
    baselines, scores = statistics["baselines"], statistics["scores"]
    parts = [f"# {statistics['task']}\n"]
    for name, metric in statistics["metrics"].items():
        parts.append(f"## {name}\n")
        parts.append(f"{_LESS.get(name, '')}{_lead(metric)}\n")
        parts.append(_methods(metric, baselines))
        if len(metric["by_length"]) > 1:
            parts.append(f"By items in the history; in brackets the gain over {baselines[0]}:\n")
            parts.append(_by_length(metric["by_length"], baselines[0]))
    keys = list(dict.fromkeys(key for own in scores.values() for key in own))
    rows = [[method, *(_number(own[key]) for key in keys)] for method, own in scores.items()]
    parts += ["## As LaMP reports it\n", markdown_table(["method", *keys], rows)]
    if notes:
        parts += ["## Notes\n", "".join(f"- {note}\n" for note in notes)]
    return "\n".join(parts)


def terminal(statistics: TaskStatistics) -> TerminalTable:
    """Return a table of the means of all metrics, and of the gains over the first baseline."""
    metrics, first = statistics["metrics"], statistics["baselines"][0]
    # The first metric is the task's own, the last one is the most sensitive.
    gained = list(dict.fromkeys([next(iter(metrics)), next(reversed(metrics))]))
    heads = ["method", "seeds", *metrics, *(f"{name} over {first}" for name in gained)]
    rows = []
    for method in statistics["scores"]:
        own = [metric["methods"][method] for metric in metrics.values()]
        gains = [metrics[name]["methods"][method]["gains"].get(first) for name in gained]
        cells = [method, str(own[0]["seeds"]), *(_number(one["user_mean"]) for one in own)]
        rows.append(cells + [_gain(gain).partition(" (")[0] for gain in gains])
    return TerminalTable(heads, rows)


def _lead(metric: MetricStatistics) -> str:
    expected = metric["expected_detectable"]
    detectable = (
        "No difference is expected to show with one user. "
        if expected is None
        else f"A difference of {expected:.4f} was expected to show (80 % power, correlation 0.5 "
        "over users). "
    )
    return (
        f"{counted(metric['samples'], 'sample')} of {counted(metric['users'], 'user')}. "
        f"{detectable}Gains are means over users, with 95 % intervals over users; in brackets "
        "the least that 80 % power finds."
    )


def _methods(metric: MetricStatistics, baselines: Sequence[str]) -> str:
    heads = ["method", "seeds", "mean", "over users", "sd of seeds"]
    rows = [
        [method, str(own["seeds"]), _number(own["mean"])]
        + [_number(own["user_mean"]), _number(own["seed_sd"])]
        + [_gain(own["gains"].get(other)) for other in baselines]
        for method, own in metric["methods"].items()
    ]
    return markdown_table(heads + [f"gain over {other}" for other in baselines], rows)


def _by_length(groups: Sequence[LengthGroup], baseline: str) -> str:
    heads = [
        f"{_span(group['least'], group['below'])} ({counted(group['users'], 'user')}, "
        f"{counted(group['samples'], 'sample')})"
        for group in groups
    ]
    rows = [
        [method]
        + [
            _number(group["methods"][method]["user_mean"])
            + _suffix(group["methods"][method]["gains"].get(baseline))
            for group in groups
        ]
        for method in groups[0]["methods"]
    ]
    return markdown_table(["method", *heads], rows)


def _span(least: int, below: int | None) -> str:
    if below is None:
        return f"{least} or more"
    return str(least) if below == least + 1 else f"{least} to {below - 1}"


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4f}"


def _gain(gain: Gain | None) -> str:
    if gain is None:
        return MISSING
    if gain["low"] is None:
        return f"{gain['mean']:+.4f}"
    return (
        f"{gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}] ({gain['detectable']:.4f})"
    )


def _suffix(gain: Gain | None) -> str:
    if gain is None:
        return ""
    if gain["low"] is None:
        return f" ({gain['mean']:+.4f})"
    return f" ({gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}])"
