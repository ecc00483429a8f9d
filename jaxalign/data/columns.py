"""Named columns as arrays, every value checked."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jaxalign.data.values import RowError, as_number, check_identifier, check_number, check_text

Column: TypeAlias = Sequence[object] | np.ndarray | pa.Array | pa.ChunkedArray
"""The values of a column."""


@dataclass(frozen=True)
class Origin:
    """Where rows came from, so that a message can point at one of them.

    Attributes:
        source: file or data set.
        lines: [N] line of each row, or number of each row where they do not follow one another;
            None counts rows.
        start: number of the first row, from 0.
        typed: whether numbers are numbers; in CSV every value is text.
        unit: what `lines` counts, `line` or `row`.
    """

    source: str
    lines: Sequence[int] | np.ndarray | None = None
    start: int = 0
    typed: bool = True
    unit: str = "line"

    def place(self, row: int) -> str:
        """Return a row as its reader would count it: a line of a text file, or a row from 1."""
        if self.lines is None:
            return f"row {self.start + row + 1}"
        return f"{self.unit} {self.lines[row]}"

    def of(self, rows: Sequence[int]) -> "Origin":
        """Return where some of the rows came from."""
        if self.lines is None:
            lines, unit = [self.start + row + 1 for row in rows], "row"
        else:
            lines, unit = [int(self.lines[row]) for row in rows], self.unit
        return replace(self, lines=lines, start=0, unit=unit)

    def at(self, row: int) -> str:
        """Return source and place of a row."""
        return f"{self.source}, {self.place(row)}"


def text_column(name: str, values: Column, origin: Origin) -> pa.LargeStringArray:
    """Return a column of texts.

    Args:
        name: of the column, for messages.
        values: N of them.
        origin: where they came from, for messages.

    Returns:
        [N], null where there is no value. Blank texts are let through; `require_values` refuses
        both.

    Raises:
        RowError: a value is something else, or no valid Unicode.
    """
    return _strings(name, values, origin, numbers=False)


def identifier_column(name: str, values: Column, origin: Origin) -> pa.LargeStringArray:
    """Return a column of ids: as `text_column`, and whole numbers become text."""
    return _strings(name, values, origin, numbers=True)


def require_values(
    name: str, column: pa.LargeStringArray, origin: Origin, *, blank: bool = False
) -> None:
    """Refuse a column of texts with a gap, or with a blank text unless `blank` lets it through.

    Raises:
        RowError: naming the first such row, and how many there are.
    """
    bad = column.is_null()
    if not blank:
        length = pc.binary_length(pc.utf8_trim_whitespace(column))
        bad = pc.or_(bad, pc.equal(length, 0).fill_null(True))
    if (rows := np.flatnonzero(bad.to_numpy(zero_copy_only=False))).size:
        found = "missing" if column[int(rows[0])].as_py() is None else "empty"
        these = "the row" if rows.size == 1 else f"the {rows.size} such rows"
        raise RowError(
            f"{origin.at(rows[0])}: `{name}` is {found}, expected text; fill in or remove {these}.",
            f"`{name}` is {found}",
        )


def number_column(
    name: str, values: Column, origin: Origin, allowed: Sequence[float] = ()
) -> np.ndarray:
    """Return a column of finite numbers as float64 [N].

    Args:
        name: of the column, for messages.
        values: N of them.
        origin: where they came from, for messages.
        allowed: other values that are let through, such as -inf.

    Raises:
        RowError: a value is missing, NaN, infinite or no number.
    """
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if isinstance(array, pa.Array) and (
        pa.types.is_floating(array.type) or pa.types.is_integer(array.type)
    ):
        found = np.asarray(array.cast(pa.float64()).to_numpy(zero_copy_only=False))
    elif isinstance(array, np.ndarray) and array.dtype.kind in "iuf":
        found = array.astype(np.float64)
    else:
        found = np.array([as_number(value, origin.typed) for value in as_list(array)], np.float64)
    bad = ~np.isfinite(found)
    for value in allowed:
        bad &= found != value
    if bad.any():
        row = int(np.argmax(bad))
        check_number(as_list(array[row : row + 1])[0], name, origin.at(row), typed=origin.typed)
    return found


def as_list(values: Column) -> list[object]:
    """Return a column as Python values."""
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values.to_pylist()
    # NumPy's own numbers would be shown as such, and bfloat16's are none to it.
    return values.tolist() if isinstance(values, np.ndarray) else list(values)


def _strings(name: str, values: Column, origin: Origin, numbers: bool) -> pa.LargeStringArray:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values, pa.Array):
        kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
        text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
        whole = numbers and pa.types.is_integer(kind)
        if whole or pa.types.is_null(kind) or any(test(kind) for test in text):
            return values.cast(kind).cast(pa.large_string())
    listed = as_list(values)
    try:
        return pa.array(listed, type=pa.large_string())
    except (pa.ArrowException, TypeError, UnicodeError):
        if numbers and (found := _whole_numbers(listed)) is not None:
            return found
        return pa.array(_one_by_one(name, listed, origin, numbers), type=pa.large_string())


def _whole_numbers(values: Sequence[object]) -> pa.LargeStringArray | None:
    try:
        column = pa.array(values)
    except (pa.ArrowException, TypeError, OverflowError, UnicodeError):
        return None
    return column.cast(pa.large_string()) if pa.types.is_integer(column.type) else None


def _one_by_one(
    name: str, values: Iterable[object], origin: Origin, numbers: bool
) -> list[str | None]:
    """The slow way, once something in the column is known not to be text."""
    texts: list[str | None] = []
    for row, value in enumerate(values):
        if value is None:
            texts.append(None)
        elif numbers and not isinstance(value, str):
            texts.append(check_identifier(value, name, origin.at(row)))
        else:
            texts.append(check_text(value, name, origin.at(row), blank=True))
    return texts
