"""The table of controls as a page for people, and as JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from jaxalign.files import write_json, write_text
from jaxalign.pplug.figures import Figures

_LESS = {
    "MAE": "Less is better. ",
    "loss": "Nats a token of the right answers, of which less is better. ",
}


def markdown(judged: Figures) -> str:
    """Return a page of tables: what could be shown, then each figure in all and by length.

    Args:
      judged: what `judge` returned.

    Returns:
      Markdown, ending in a newline.
    """
    baselines, lines = judged["baselines"], [f"# {judged['task']}", ""]
    for name, figures in judged["figures"].items():
        lines += [
            f"## {name}",
            "",
            _LESS.get(name, "") + _lead(figures),
            "",
            *_methods(figures, baselines),
            "",
        ]
        if len(figures["by_length"]) > 1:
            lines += _by_length(figures["by_length"], baselines[0])
    lines += ["## As LaMP reports it", ""]
    keys = list(dict.fromkeys(key for own in judged["scores"].values() for key in own))
    rows = [
        [method, *(_number(own[key]) for key in keys)] for method, own in judged["scores"].items()
    ]
    lines += _rows(["method", *keys], rows)
    if notes := judged.get("notes"):
        lines += ["", "## Notes", "", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def terminal(judged: Figures) -> Table:
    """Return the means of all figures, and what is gained over the first baseline.

    Args:
      judged: what `judge` returned.
    """
    told, first = judged["figures"], judged["baselines"][0]
    # The first figure is the one that people look for, the last one shows the least differences.
    gained = list(dict.fromkeys([next(iter(told)), next(reversed(told))]))
    heads = ["method", "seeds", *told, *(f"{name} over {first}" for name in gained)]
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=0)
    for place, name in enumerate(heads):
        justify: Any = "right" if place else "left"
        table.add_column(name, justify=justify, overflow="fold")
    for method in judged["scores"]:
        own = [figures["methods"][method] for figures in told.values()]
        gains = [told[name]["methods"][method]["gains"].get(first) for name in gained]
        cells = [method, str(own[0]["seeds"]), *(_number(one["mean over users"]) for one in own)]
        cells += [_gain(gain).partition(" (")[0] for gain in gains]
        table.add_row(*[Text(cell) for cell in cells])
    return table


def write(folder: str | Path, judged: Figures, name: str = "controls") -> None:
    """Write <name>.json and <name>.md, each whole or not at all.

    Args:
      folder: made where it is not there.
      judged: what `judge` returned; more keys may be added.
      name: of the files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    page = markdown(judged)
    write_json(folder / f"{name}.json", judged)
    write_text(folder / f"{name}.md", page)


def _lead(figures: Figures) -> str:
    planned = figures["planned"]
    expected = (
        "No difference is expected to show with one user. "
        if planned is None
        else f"A difference of {planned:.4f} was expected to show (80 % power, correlation .5 "
        "over users). "
    )
    return (
        f"{figures['samples']:,} samples of {figures['users']:,} users. {expected}"
        "Gains are means over users, with 95 % intervals over users; in brackets the least that "
        "80 % power finds."
    )


def _methods(figures: Figures, baselines: Sequence[str]) -> list[str]:
    heads = ["method", "seeds", "mean", "over users", "sd of seeds"]
    rows = [
        [method, str(own["seeds"]), _number(own["mean"])]
        + [_number(own["mean over users"]), _number(own["sd over seeds"])]
        + [_gain(own["gains"].get(other)) for other in baselines]
        for method, own in figures["methods"].items()
    ]
    return _rows(heads + [f"gain over {other}" for other in baselines], rows)


def _by_length(groups: Sequence[Figures], baseline: str) -> list[str]:
    heads = [
        f"{_span(group['least'], group['below'])} ({group['users']:,} users, "
        f"{group['samples']:,} samples)"
        for group in groups
    ]
    rows = [
        [method]
        + [
            _number(group["methods"][method]["mean over users"])
            + _suffix(group["methods"][method]["gains"].get(baseline))
            for group in groups
        ]
        for method in groups[0]["methods"]
    ]
    title = f"By items in the history; in brackets the gain over {baseline}:"
    return [title, "", *_rows(["method", *heads], rows), ""]


def _span(least: int, below: int | None) -> str:
    if below is None:
        return f"{least} or more"
    return str(least) if below == least + 1 else f"{least} to {below - 1}"


def _rows(heads: list[str], rows: list[list[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (heads, rule, *rows)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _gain(gain: Figures | None) -> str:
    if gain is None:
        return "-"
    if gain["low"] is None:
        return f"{gain['mean']:+.4f}"
    return f"{gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}] ({gain['smallest']:.4f})"


def _suffix(gain: Figures | None) -> str:
    if gain is None:
        return ""
    if gain["low"] is None:
        return f" ({gain['mean']:+.4f})"
    return f" ({gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}])"
