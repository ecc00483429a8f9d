"""Tables of how methods fare, for the terminal and for documents.

Both read `report`, {regime: {method: what `users.judge` returned}}. Figures are in per cent, gains
in percentage points, negative log-likelihood in nats.
"""

from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

Results = Mapping[str, Mapping[str, float]]
Report = Mapping[str, Results]

_MISSING = "-"
_GAIN = 2
_ITEMS = 4

# In documents, and in the terminal, where eighty columns must do.
_HEADERS = (
    ("method", "method"),
    ("accuracy %", "acc.\n%"),
    ("gain, points", "gain\n"),
    ("95 % over users", "95 %\nusers"),
    ("95 % over users and items", "95 %\n& items"),
    ("nll", "nll\n"),
    ("worst_10_split %", "worst\n10 %\nsplit"),
    ("worst_10 %", "worst\n10 %\n"),
    ("harmed %", "harm\n%"),
    ("flipped %", "flip\n%"),
)


def terminal_table(report: Report, baseline: str = "bt") -> Group:
    """Return one rich table a regime, as one thing to print; eighty columns wide at most.

    Args:
      report: {regime: {method: what `users.judge` returned}}.
      baseline: the method that gains are over; its own gain is left blank.

    Returns:
      Group of rich tables, for `Console.print`. A gain is bold where its interval over users lies
      above 0, red where it lies below.
    """
    parts: list[Text | Table] = []
    for regime, results in report.items():
        # Not the table's own title: that would wrap at the width of the table.
        title = f"{_title(regime, results)}; gain over {baseline} in points"
        parts += [Text(title, style="italic"), _regime_table(results, baseline)]
    return Group(*parts)


def _regime_table(results: Results, baseline: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=0)
    for place, (_, header) in enumerate(_HEADERS):
        if place == 0:
            table.add_column(header, overflow="fold")
        elif place != _ITEMS or _has_items(results):
            table.add_column(header, justify="right", no_wrap=True)
    for method, result in results.items():
        cells = [Text(cell) for cell in _cells(method, result, baseline, _has_items(results))]
        cells[_GAIN].stylize(_gain_style(result))
        table.add_row(*cells)
    table.add_row()
    return table


def markdown_table(report: Report, baseline: str = "bt") -> str:
    """Return one Markdown table a regime, each under a line that names it.

    Args:
      report: {regime: {method: what `users.judge` returned}}.
      baseline: the method that gains are over; its own gain is left blank.

    Returns:
      Markdown, ending in a newline.
    """
    blocks = []
    for regime, results in report.items():
        items = _has_items(results)
        header = [name for place, (name, _) in enumerate(_HEADERS) if items or place != _ITEMS]
        lines = [header, ["---", *["---:"] * (len(header) - 1)]]
        lines += [_cells(name, result, baseline, items) for name, result in results.items()]
        rows = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in lines]
        title = f"{_title(regime, results)}; gain over {baseline}"
        blocks.append(f"**{title}**\n\n" + "\n".join(rows) + "\n")
    return "\n".join(blocks)


def _title(regime: str, results: Results) -> str:
    sizes = {(int(result["users"]), int(result["pairs"])) for result in results.values()}
    if len(sizes) != 1:
        return regime
    users, pairs = sizes.pop()
    return f"{regime}: {users:,} users, {pairs:,} pairs"


def _has_items(results: Results) -> bool:
    return any("gain_items_low" in result for result in results.values())


def _cells(method: str, result: Mapping[str, float], baseline: str, items: bool) -> list[str]:
    gain, over_users, over_items = _MISSING, _MISSING, _MISSING
    if method != baseline:
        gain = _points(result["gain"])
        over_users, over_items = _range(result, "gain"), _range(result, "gain_items")
    return [
        method,
        _percent(result, "accuracy"),
        gain,
        over_users,
        *([over_items] if items else []),
        f"{result['nll']:.3f}",
        _percent(result, "worst_10_split"),
        _percent(result, "worst_10"),
        _percent(result, "harmed"),
        _percent(result, "flipped"),
    ]


def _gain_style(result: Mapping[str, float]) -> str:
    if result["gain_low"] > 0:
        return "bold"
    return "red" if result["gain_high"] < 0 else ""


def _points(fraction: float) -> str:
    text = f"{100 * fraction:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def _range(result: Mapping[str, float], key: str) -> str:
    if f"{key}_low" not in result:
        return _MISSING
    return f"{_points(result[f'{key}_low'])}..{_points(result[f'{key}_high'])}"


def _percent(result: Mapping[str, float], key: str) -> str:
    return f"{100 * result[key]:.1f}" if key in result else _MISSING
