"""Tables of text cells, for documents and for the terminal."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.table import Table
    from rich.text import Text

MISSING = "-"
"""Cell of a number that does not exist."""
_FOLDED = 24  # width below which the first column is not broken before columns move to a part below


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return a Markdown table.

    Args:
        header: names of the columns.
        rows: cells, as many in each row as in the header.
        left: how many columns are aligned to the left; the others are aligned to the right.

    Returns:
        Markdown, ending in a newline.

    Example:
        >>> from jaxalign.runs.tables import markdown_table
        >>> print(markdown_table(["method", "accuracy %"], [["bayes", "71.6"]]), end="")
        | method | accuracy % |
        | --- | ---: |
        | bayes | 71.6 |
    """
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    cells = [[cell.replace("|", r"\|") for cell in row] for row in (header, rule, *rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells) + "\n"


@dataclass(frozen=True)
class TerminalTable:
    """A table that rich prints, in several parts below each other where it is too wide.

    Attributes:
        header: names of the columns; a line break makes a narrow column.
        rows: cells, as many in each row as in the header.
        left: how many columns are aligned to the left; the others are aligned to the right. These
            are repeated in each part. Only the first column breaks long cells.
    """

    header: Sequence[str]
    rows: Sequence[Sequence["str | Text"]]
    left: int = 1

    def __rich_console__(
        self, console: "Console", options: "ConsoleOptions"
    ) -> Iterator["Table | Text"]:
        """Yield parts of at most the console's width."""
        from rich.text import Text

        widths = [
            _width([name, *cells]) for name, *cells in zip(self.header, *self.rows, strict=True)
        ]
        kept = min(widths[0], _FOLDED) + 1 + sum(width + 1 for width in widths[1 : self.left])
        parts: list[list[int]] = [[]]
        used = kept
        for place in range(self.left, len(widths)):
            if parts[-1] and used + widths[place] > options.max_width:
                parts.append([])
                used = kept
            parts[-1].append(place)
            used += widths[place] + 1
        for number, part in enumerate(parts):
            if number:
                yield Text()
            places = [*range(self.left), *part]
            rows = [[row[place] for place in places] for row in self.rows]
            yield _table([self.header[place] for place in places], rows, self.left)


def _width(cells: Sequence["str | Text"]) -> int:
    """Columns of the terminal that the longest line of some cells takes."""
    from rich.cells import cell_len

    return max(cell_len(line) for cell in cells for line in str(cell).split("\n"))


def _table(header: Sequence[str], rows: Sequence[Sequence["str | Text"]], left: int) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=0)
    for place, name in enumerate(header):
        table.add_column(
            Text(name),
            justify="left" if place < left else "right",
            overflow="fold",
            no_wrap=place > 0,
        )
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return table


def percent(fraction: float | None, digits: int = 1) -> str:
    """Return a fraction in per cent, without the sign.

    Example:
        >>> from jaxalign.runs.tables import percent
        >>> percent(0.716), percent(None)
        ('71.6', '-')
    """
    return MISSING if fraction is None else f"{100 * fraction:.{digits}f}"


def points(fraction: float, digits: int = 1) -> str:
    """Return a difference of fractions in percentage points, with its sign; no negative zero.

    Example:
        >>> from jaxalign.runs.tables import points
        >>> points(0.0261), points(-0.0001)
        ('+2.6', '0.0')
    """
    text = f"{100 * fraction:+.{digits}f}"
    return text[1:] if float(text) == 0 else text


def interval(low: float, high: float, digits: int = 3) -> str:
    """Return the two ends of an interval.

    Example:
        >>> from jaxalign.runs.tables import interval
        >>> interval(0.5, 0.73, 2)
        '0.50..0.73'
    """
    return f"{low:.{digits}f}..{high:.{digits}f}"
