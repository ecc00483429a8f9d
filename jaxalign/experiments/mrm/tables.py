"""Tables of how methods fare, one per regime, for the terminal and for documents.

Accuracies are in per cent, gains in percentage points, negative log-likelihood in nats.
"""

from collections.abc import Mapping

from rich.console import Group
from rich.text import Text

from jaxalign.runs import tables
from jaxalign.runs.tables import MISSING, percent, points

Results = Mapping[str, Mapping[str, float]]
Regimes = Mapping[str, Results]
"""Name of a regime -> name of a method -> what `metrics.users.judge` returned."""

_GAIN, _ITEMS = 2, 4
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


def terminal_tables(regimes: Regimes, baseline: str = "bt") -> Group:
    """Return one table per regime, at most eighty columns wide, for `Console.print`.

    A gain is bold where its interval over users lies above 0, and red where it lies below.

    Args:
        regimes: what is shown.
        baseline: the method that gains are over; its own gain is left blank.
    """
    parts: list[object] = []
    for regime, results in regimes.items():
        # Not the table's own title: that would wrap at the width of the table.
        title = f"{_title(regime, results)}; gain over {baseline} in points"
        rows: list[list[str | Text]] = []
        for method, result in results.items():
            cells: list[str | Text] = [*_cells(method, result, baseline, _has_items(results))]
            cells[_GAIN] = Text(str(cells[_GAIN]), style=_gain_style(result))
            rows.append(cells)
        table = tables.terminal_table(_header(results, 1), rows)
        table.add_row()
        parts += [Text(title, style="italic"), table]
    return Group(*parts)  # type: ignore[arg-type]


def markdown_tables(regimes: Regimes, baseline: str = "bt") -> str:
    """Return one Markdown table per regime, each under a line that names it.

    Args:
        regimes: what is shown.
        baseline: the method that gains are over; its own gain is left blank.
    """
    blocks = []
    for regime, results in regimes.items():
        items = _has_items(results)
        rows = [_cells(name, result, baseline, items) for name, result in results.items()]
        title = f"{_title(regime, results)}; gain over {baseline}"
        blocks.append(f"**{title}**\n\n{tables.markdown_table(_header(results, 0), rows)}")
    return "\n".join(blocks)


def _header(results: Results, form: int) -> list[str]:
    items = _has_items(results)
    return [names[form] for place, names in enumerate(_HEADERS) if items or place != _ITEMS]


def _title(regime: str, results: Results) -> str:
    sizes = {(int(result["users"]), int(result["pairs"])) for result in results.values()}
    if len(sizes) != 1:
        return regime
    users, pairs = sizes.pop()
    return f"{regime}: {users:,} users, {pairs:,} pairs"


def _has_items(results: Results) -> bool:
    return any("gain_items_low" in result for result in results.values())


def _cells(method: str, result: Mapping[str, float], baseline: str, items: bool) -> list[str]:
    gain, over_users, over_items = MISSING, MISSING, MISSING
    if method != baseline:
        gain = points(result["gain"])
        over_users, over_items = _ends(result, "gain"), _ends(result, "gain_items")
    shares = ("worst_10_split", "worst_10", "harmed", "flipped")
    return [
        method,
        percent(result.get("accuracy")),
        gain,
        over_users,
        *([over_items] if items else []),
        f"{result['nll']:.3f}",
        *(percent(result.get(name)) for name in shares),
    ]


def _gain_style(result: Mapping[str, float]) -> str:
    if result["gain_low"] > 0:
        return "bold"
    return "red" if result["gain_high"] < 0 else ""


def _ends(result: Mapping[str, float], key: str) -> str:
    if f"{key}_low" not in result:
        return MISSING
    return f"{points(result[f'{key}_low'])}..{points(result[f'{key}_high'])}"
