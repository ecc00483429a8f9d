"""Columns of JSON lines and Parquet files, every value checked."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxalign.data.files import JSON_ENDINGS, Origin, read_json_lines
from jaxalign.errors import InputError
from jaxalign.palm.domain import Floats

Column: TypeAlias = Sequence[object] | pa.Array


def read_columns(path: Path) -> tuple[dict[str, Column], Origin]:
    """Return all columns by name, and where the rows came from.

    Raises:
        InputError: the file is missing, empty, unreadable or of another kind.
    """
    if path.name.endswith(JSON_ENDINGS):
        rows, lines = read_json_lines(path)
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: [row.get(name) for row in rows] for name in names}, Origin(str(path), lines)
    table = open_parquet(path).read()
    if not table.num_rows:
        raise InputError(f"{path} has no rows, expected at least one.")
    return {name: table[name].combine_chunks() for name in table.column_names}, Origin(str(path))


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a Parquet file.

    Raises:
        InputError: the file is missing, unreadable or of another kind.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path.")
    if path.suffix != ".parquet":
        raise InputError(f"{path} ends in neither .jsonl, .json nor .parquet; convert the file.")
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a readable Parquet file: {first_line(error)}.") from None


def is_numeric(values: Column) -> bool:
    """Return whether a column holds numbers."""
    if isinstance(values, pa.Array):
        return bool(pa.types.is_floating(values.type) or pa.types.is_integer(values.type))
    first = next((value for value in values if value is not None), None)
    return isinstance(first, int | float) and not isinstance(first, bool)


def read_numbers(name: str, values: Column, origin: Origin, start: int = 0) -> Floats:
    """Return a column as float64 [N].

    -inf stays in `log_ref` (an answer that the reference never gives).

    Args:
        name: name of the column.
        values: its N values.
        origin: where the rows came from.
        start: number of the first row, from 0.

    Raises:
        InputError: a value is missing, NaN, infinite or no number.
    """
    if isinstance(values, pa.Array):
        if not is_numeric(values):
            raise InputError(
                f"{origin.source}: `{name}` holds {values.type}, expected numbers; convert it."
            )
        found = np.asarray(values.cast(pa.float64()).to_numpy(zero_copy_only=False))
    else:
        found = np.array(
            [
                v if isinstance(v, int | float) and not isinstance(v, bool) else np.nan
                for v in values
            ],
            np.float64,
        )
    bad = ~np.isfinite(found)
    if name == "log_ref":
        bad &= found != -np.inf
    if bad.any():
        row = int(np.argmax(bad))
        value = values[row].as_py() if isinstance(values, pa.Array) else values[row]
        raise InputError(
            f"{origin.at(start + row)}: `{name}` is {short(value)}, expected a finite number; "
            "correct or remove the row."
        )
    return found


def read_texts(name: str, values: Column, origin: Origin) -> list[str]:
    """Return a column of texts or ids.

    Raises:
        InputError: a value is missing, empty, or neither a text nor a whole number.
    """
    listed = values.to_pylist() if isinstance(values, pa.Array) else values
    for row, value in enumerate(listed):
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise InputError(
                f"{origin.at(row)}: `{name}` is {short(value)}, expected an id or a text."
            )
    return [str(value) for value in listed]


def short(value: object) -> str:
    """Return a value as text for an error message, at most 40 characters."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")
