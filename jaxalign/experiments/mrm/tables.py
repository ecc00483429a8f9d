"""Tables of how methods fare, one per regime, for the terminal and for documents.

Accuracies are in per cent, gains in percentage points, negative log-likelihood in nats.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

from jaxalign.progress import counted
from jaxalign.runs import tables
from jaxalign.runs.tables import MISSING, percent, points

Result = Mapping[str, float]
Results = Mapping[str, Result]
Regimes = Mapping[str, Results]
"""Name of a regime -> name of a method -> what `metrics.users.judge` returned."""


def _share(key: str) -> Callable[[Result], str]:
    return lambda result: percent(result.get(key))


def _difference(key: str) -> Callable[[Result], str]:
    return lambda result: points(result[key]) if key in result else MISSING


def _interval(key: str) -> Callable[[Result], str]:
    return lambda result: (
        f"{points(result[f'{key}_low'])}..{points(result[f'{key}_high'])}"
        if f"{key}_low" in result
        else MISSING
    )


class _Column(NamedTuple):
    """One figure of a table.

    Attributes:
        title: in documents.
        narrow: title in the terminal, where eighty columns must do; None is not shown there.
        key: of the figure; the column is left out where no method has it.
        cell: text of the figure.
        over: whether it compares with the baseline, whose own cell is then left blank.
    """

    title: str
    narrow: str | None
    key: str
    cell: Callable[[Result], str]
    over: bool = False


_COLUMNS = (
    _Column("accuracy %", "acc.\n%", "accuracy", _share("accuracy")),
    _Column("gain, points", "gain\n", "gain", _difference("gain"), over=True),
    _Column("95 % over users", "95 %\nusers", "gain_low", _interval("gain"), over=True),
    _Column(
        "95 % over users and items",
        "95 %\n& items",
        "gain_items_low",
        _interval("gain_items"),
        over=True,
    ),
    _Column("gain over bt_items", None, "gain_best", _difference("gain_best")),
    _Column("95 % over users ", None, "gain_best_low", _interval("gain_best")),
    _Column("nll", "nll\n", "nll", lambda result: f"{result['nll']:.3f}"),
    _Column("calibration error %", None, "calibration_error", _share("calibration_error")),
    _Column("worst_10_split %", "worst\n10 %\n", "accuracy", _share("worst_10_split")),
    _Column("worst_10 %", None, "worst_10", _share("worst_10")),
    _Column("harmed %", "harm\n%", "harmed", _share("harmed")),
    _Column("harmed by noise alone %", "noise\nharm\n%", "harm_floor", _share("harm_floor")),
    _Column("excess harm, points", None, "harm_excess", _difference("harm_excess")),
    _Column("flipped %", "flip\n%", "flipped", _share("flipped")),
    _Column("flipped by swapped choices %", None, "swap_flipped", _share("swap_flipped")),
    _Column("gain with another user's choices", None, "gain_other", _difference("gain_other")),
)


GATES = {"support": "support choices", "pairs": "pairs to be ranked"}
"""What a gate sees, by the form that reports name it with."""
_TEST = (("gain", "+.4f"), ("standard_error", ".4f"), ("t", ".2f"), ("p", ".2g"))


def adaptation_table(decisions: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a Markdown table of the tests that decided which methods adapt.

    Args:
        decisions: name of a method -> what report.json says of its adaptation.
    """
    header = ["method", "adapts", "nats per choice", "standard error", "t", "p"]
    header += ["users", "tested on"]
    rows = [
        [
            name,
            "yes" if found["adapts"] else "no",
            *(_number(found[key], form) for key, form in _TEST),
            f"{found['users']:,}",
            found["tested_on"],
        ]
        for name, found in decisions.items()
        if "users" in found
    ]
    return tables.markdown_table(header, rows)


def _number(value: float | None, form: str) -> str:
    return MISSING if value is None else f"{value:{form}}"


def gate_table(results: Results) -> str:
    """Return a Markdown table of what each method's gate does, beside a random one of equal size.

    Args:
        results: name of a method -> its figures; methods without a gate are left out.
    """
    header = ["method", "gate sees", "left alone %", "gain, points", "harmed %"]
    header += ["harmed by noise alone %", "excess harm, points", "nll"]
    header += ["random gate: gain, points", "random gate: harmed %"]
    rows = []
    for name, result in results.items():
        for form, title in GATES.items():
            key = f"gate_{form}_"
            if f"{key}gain" not in result:
                continue
            rows.append([
                name,
                title,
                percent(result[key + "left_alone"]),
                points(result[key + "gain"]),
                percent(result[key + "harmed"]),
                percent(result[key + "harm_floor"]),
                points(result[key + "harm_excess"]),
                f"{result[key + 'nll']:.3f}",
                points(result[key + "random_gain"]),
                percent(result[key + "random_harmed"]),
            ])  # fmt: skip
    return tables.markdown_table(header, rows, left=2) if rows else ""


def terminal_tables(regimes: Regimes, baseline: str = "bt") -> Group:
    """Return one table per regime, at most eighty columns wide, for `Console.print`.

    A gain is bold where its interval over users lies above 0, and red where it lies below.

    Args:
        regimes: what is shown.
        baseline: the method that gains are over; its own gain is left blank.
    """
    parts: list[RenderableType] = []
    for regime, results in regimes.items():
        # Not the table's own title: that would wrap at the width of the table.
        title = f"{_title(regime, results)}; gain over {baseline} in points"
        columns = [column for column in _shown(results) if column.narrow is not None]
        rows: list[list[str | Text]] = []
        for method, result in results.items():
            row: list[str | Text] = [method]
            for column in columns:
                text = _cell(column, method, result, baseline)
                style = _gain_style(result) if column.key == "gain" else ""
                row.append(Text(text, style=style))
            rows.append(row)
        header = ["method", *(column.narrow or "" for column in columns)]
        table = tables.TerminalTable(header, rows)
        parts += [Text(title, style="italic"), table, Text()]
    return Group(*parts)


def markdown_tables(regimes: Regimes, baseline: str = "bt") -> str:
    """Return one Markdown table per regime, each under a line that names it.

    Args:
        regimes: what is shown.
        baseline: the method that gains are over; its own gain is left blank.
    """
    blocks = []
    for regime, results in regimes.items():
        columns = _shown(results)
        header = ["method", *(column.title for column in columns)]
        rows = [
            [name, *(_cell(column, name, result, baseline) for column in columns)]
            for name, result in results.items()
        ]
        title = f"{_title(regime, results)}; gain over {baseline}"
        blocks.append(f"**{title}**\n\n{tables.markdown_table(header, rows)}")
    return "\n".join(blocks)


def _shown(results: Results) -> list[_Column]:
    return [c for c in _COLUMNS if any(c.key in result for result in results.values())]


def _cell(column: _Column, method: str, result: Result, baseline: str) -> str:
    return MISSING if column.over and method == baseline else column.cell(result)


def _title(regime: str, results: Results) -> str:
    sizes = {(int(result["users"]), int(result["pairs"])) for result in results.values()}
    if len(sizes) != 1:
        return regime
    users, pairs = sizes.pop()
    return f"{regime}: {counted(users, 'user')}, {counted(pairs, 'pair')}"


def _gain_style(result: Mapping[str, float]) -> str:
    if result["gain_low"] > 0:
        return "bold"
    return "red" if result["gain_high"] < 0 else ""
