"""Rows that cannot be used: the file is refused, or they are dropped and counted."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

from jaxalign.data.columns import Origin
from jaxalign.data.tables import Row, Table, read_each
from jaxalign.data.values import RowError
from jaxalign.errors import InputError
from jaxalign.progress import counted

OnBadRow = Literal["refuse", "drop"]
Checked = TypeVar("Checked")


class BadRows:
    """Rows that were dropped, by reason.

    Attributes:
        count: of the rows.
        ratings: rows that rate one answer, where choices between two are read; they are not bad.
        zero_weight: rows whose weight is 0; they are not bad either.

    Example:
        >>> from jaxalign.data.bad_rows import BadRows
        >>> from jaxalign.data.values import RowError
        >>> bad = BadRows("drop", "a.jsonl")
        >>> bad.add(RowError("a.jsonl, line 7: `chosen` is empty; ...", "`chosen` is empty"))
        >>> bad.notes(good=99)
        ('1 of 100 rows dropped: `chosen` is empty (1, first: a.jsonl, line 7)',)
    """

    def __init__(self, on_bad_row: OnBadRow, source: str | Path) -> None:
        self.on_bad_row, self.source, self.count = on_bad_row, str(source), 0
        self.ratings = self.zero_weight = 0
        self._counts: dict[str, int] = {}
        self._first: dict[str, RowError] = {}

    def add(self, error: RowError) -> None:
        """Count a row.

        Raises:
            RowError: the error itself, unless bad rows are dropped.
        """
        if self.on_bad_row == "refuse":
            raise error
        self.count += 1
        self._counts[error.reason] = self._counts.get(error.reason, 0) + 1
        self._first.setdefault(error.reason, error)

    def notes(self, good: int) -> tuple[str, ...]:
        """Return what was dropped and why, in one sentence, or nothing.

        Args:
            good: rows that are left.

        Raises:
            InputError: most rows are bad, so that the file is not what it is taken for.
        """
        left_out = []
        if self.ratings:
            left_out.append(
                f"{counted(self.ratings, 'rating')} left out: choices between two answers are "
                "learned from"
            )
        if self.zero_weight:
            left_out.append(f"{counted(self.zero_weight, 'row')} of weight 0 left out")
        if not self.count:
            return tuple(left_out)
        by_count = sorted(self._counts, key=self._counts.__getitem__, reverse=True)
        why = "; ".join(
            f"{reason} ({self._counts[reason]:,}, first: {str(self._first[reason]).split(': ')[0]})"
            for reason in by_count
        )
        total = self.count + good
        if self.count > good:
            raise InputError(
                f"{self.source}: {self.count:,} of {total:,} rows are bad, which is more than half "
                f"({why}); check that this is the right file."
            )
        return (f"{self.count:,} of {counted(total, 'row')} dropped: {why}", *left_out)


def checked_rows(
    source: str | Path,
    check: Callable[[Row], Checked],
    bad: BadRows,
    line_column: str | None = None,
) -> Iterator[tuple[Row, Checked]]:
    """Read rows, and what a check makes of each; bad ones go to `bad`.

    Args:
        source, line_column: as of `jaxalign.data.tables.read_rows`.
        check: takes a row, and raises `RowError` for one that cannot be used.
        bad: counts or refuses.
    """
    for row in read_each(source, line_column):
        try:
            if isinstance(row, RowError):
                raise row
            found = check(row)
        except RowError as error:
            bad.add(error)
        else:
            yield row, found


def checked_table(
    source: str | Path, names: Sequence[str], check: Callable[[Row], object], bad: BadRows
) -> Table:
    """Read columns of the rows that pass a check.

    Args:
        source, check, bad: as of `checked_rows`.
        names: of the columns, as far as they are there.

    Raises:
        InputError: no row is good.
    """
    table = next(checked_tables(source, names, check, bad), None)
    bad.notes(0 if table is None else len(table.origin.lines or ()))
    if table is None:
        raise InputError(f"{source} has no good row, expected at least one.")
    return table


def checked_tables(
    source: str | Path,
    names: Sequence[str],
    check: Callable[[Row], object],
    bad: BadRows,
    size: int | None = None,
) -> Iterator[Table]:
    """Read columns as `checked_table` does, of at most `size` good rows at a time."""
    good = checked_rows(source, check, bad)
    while rows := [row for row, _ in islice(good, size)]:
        there = dict.fromkeys(name for row in rows for name in row.values)
        origin = Origin(
            str(source), [row.place for row in rows], typed=rows[0].typed, unit=rows[0].unit
        )
        columns = {n: [row.values.get(n) for row in rows] if n in names else () for n in there}
        yield Table(columns, origin)
