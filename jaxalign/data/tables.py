"""The one reader of files with rows: JSON lines, JSON arrays, CSV, Parquet and text, and data sets.

Every format gives the same rows. A UTF-8 byte order mark is left off, a line ends at a line feed
and nowhere else, and whatever cannot be used is refused with its line or row.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from jaxalign.data.columns import (
    Column,
    Origin,
    identifier_column,
    number_column,
    require_values,
    text_column,
)
from jaxalign.data.hub import is_dataset_name, read_dataset
from jaxalign.data.messages import as_text, check_messages, is_messages
from jaxalign.data.parsers import (
    BytesFile,
    Parsed,
    csv_rows,
    is_array,
    json_rows,
    open_bytes,
    open_parquet,
    parquet_rows,
    text_rows,
)
from jaxalign.data.values import (
    RowError,
    check_flag,
    check_identifier,
    check_number,
    check_text,
    first_line,
    is_text,
)
from jaxalign.errors import InputError
from jaxalign.files import expand_user

ANSWERS = ("completion", "answer")
"""Columns of an answer, as `jaxalign generate` writes it and as other files call it."""
_ENDINGS = (".jsonl", ".json", ".csv", ".parquet", ".txt")
_BATCH = 4096
_SAMPLE = 2**20  # bytes that the number of lines is estimated from


class Row(NamedTuple):
    """One row of a file or data set.

    Attributes:
        values: by column, as the file has them; a column may be missing, or its value None.
        file: what it was read from.
        place: number of the line, or of the row where the format has no lines; from 1.
        unit: what is counted, `line` or `row`.
        typed: whether numbers are numbers; in CSV every value is text.

    Example:
        >>> from jaxalign.data.tables import Row
        >>> row = Row({"user": 7, "prompt": "Hi"}, "a.jsonl", 3)
        >>> row.identifier("user"), row.text("prompt"), row.where
        ('7', 'Hi', 'a.jsonl, line 3')
    """

    values: Mapping[str, object]
    file: str
    place: int
    unit: str = "line"
    typed: bool = True

    @property
    def where(self) -> str:
        """File and line or row, as messages name it."""
        return f"{self.file}, {self.unit} {self.place}"

    def has(self, name: str) -> bool:
        """Return whether the row has a value there."""
        return self.values.get(name) is not None

    def text(self, name: str, *, blank: bool = False) -> str:
        """Return a text, which may be empty only if `blank` says so.

        Raises:
            RowError: it is missing, something else, or no valid Unicode.
        """
        value = self.values.get(name)
        if is_text(value, blank):  # before the place is put in words: most rows are good
            return value
        return check_text(value, name, self.where, blank=blank, others=self.values)

    def answer(self) -> str:
        """Return an answer: `completion`, or else `answer`; of messages as `messages.as_text`.

        Raises:
            RowError: both are missing, or it is something else.
        """
        name = next((name for name in ANSWERS if self.has(name)), ANSWERS[0])
        return self.conversation(name, "assistant")

    def any_text(self) -> str:
        """Return `text`, or else an answer; not blank.

        Raises:
            RowError: all are missing, or it is something else.
        """
        if self.has("text") or not any(self.has(name) for name in ANSWERS):
            return self.text("text")
        found = self.answer()
        return found if found.strip() else check_text(found, "answer", self.where)

    def conversation(self, name: str, role: str) -> str:
        """Return a text, which may be empty, or messages as `messages.as_text` writes them.

        Args:
            name: of the column.
            role: whose lone turn is a text like any other.

        Raises:
            RowError: it is missing or something else.
        """
        value = self.values.get(name)
        if is_messages(value):
            return as_text(check_messages(value, name, self.where), role)
        return self.text(name, blank=True)

    def identifier(self, name: str) -> str:
        """Return an id: text, or a whole number as its text.

        Raises:
            RowError: it is something else, such as true, 1.5, null or a list.
        """
        return check_identifier(self.values.get(name), name, self.where, others=self.values)

    def number(self, name: str) -> float:
        """Return a finite number.

        Raises:
            RowError: it is missing or something else.
        """
        value = self.values.get(name)
        return check_number(value, name, self.where, typed=self.typed, others=self.values)

    def flag(self, name: str) -> bool:
        """Return true or false.

        Raises:
            RowError: it is missing or something else.
        """
        value = self.values.get(name)
        return check_flag(value, name, self.where, typed=self.typed, others=self.values)


@dataclass(frozen=True)
class Table:
    """Columns of N rows.

    Attributes:
        columns: by name; those that were not asked for are named and empty.
        origin: where the rows came from.
    """

    columns: Mapping[str, Column]
    origin: Origin

    def texts(self, name: str, *, blank: bool = False) -> pa.LargeStringArray:
        """Return a column of texts [N], which may be empty only if `blank` says so.

        Raises:
            InputError: there is no such column, or a value is missing or something else.
        """
        found = text_column(name, self._column(name), self.origin)
        require_values(name, found, self.origin, blank=blank)
        return found

    def identifiers(self, name: str) -> pa.LargeStringArray:
        """Return a column of ids [N]: texts, or whole numbers as their text.

        Raises:
            InputError: there is no such column, or a value is missing or something else.
        """
        found = identifier_column(name, self._column(name), self.origin)
        require_values(name, found, self.origin)
        return found

    def numbers(self, name: str, allowed: Sequence[float] = ()) -> np.ndarray:
        """Return a column of finite numbers as float64 [N], or of others that are `allowed`.

        Raises:
            InputError: there is no such column, or a value is missing or something else.
        """
        return number_column(name, self._column(name), self.origin, allowed)

    def require(self, names: Sequence[str]) -> None:
        """Refuse a table that lacks one of the columns.

        Raises:
            InputError: naming those that are missing and those that are there.
        """
        if missing := [name for name in names if name not in self.columns]:
            lacking, found = (
                ", ".join(f"`{name}`" for name in some) for some in (missing, self.columns)
            )
            remedy = "rename or add"
            if "user" in missing:
                remedy += ", or name the users with `jaxalign import --user-column COLUMN`"
            raise InputError(
                f"{self.origin.source} has no column {lacking}; found {found or 'none'}; {remedy}."
            )

    def _column(self, name: str) -> Column:
        self.require([name])
        return self.columns[name]


def read_rows(source: str | Path, line_column: str | None = None) -> Iterator[Row]:
    """Read rows one by one, in bounded memory.

    Args:
        source: a path ending in .jsonl, .json (an object per line, or an array of objects), .csv
            (with a header), .parquet or .txt, or any of these with .gz; or, as str, the name of a
            Hugging Face data set: `name`, `name:split` or `name/config:split`, where a name may
            hold its owner and the split is `train` unless given.
        line_column: column that a line of a .txt file is the value of; None refuses such files.

    Yields:
        Row, at least one.

    Raises:
        InputError: there is no such file or data set, it holds no rows, or a row is unreadable.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from jaxalign.data.tables import read_rows
        >>> path = Path(tempfile.mkdtemp()) / "users.csv"
        >>> _ = path.write_text("user,score\\n7,0.5\\n")
        >>> [(row.identifier("user"), row.number("score")) for row in read_rows(path)]
        [('7', 0.5)]
    """
    for row in read_each(source, line_column):
        if isinstance(row, RowError):
            raise row
        yield row


def read_texts(path: Path) -> list[str]:
    """Read the texts of a file: `text`, `completion` or `answer` of each row, or lines of a .txt.

    Raises:
        InputError: as of `read_rows`, or a text is missing, blank or something else.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from jaxalign.data.tables import read_texts
        >>> path = Path(tempfile.mkdtemp()) / "texts.txt"
        >>> _ = path.write_text("one\\ntwo\\n")
        >>> read_texts(path)
        ['one', 'two']
    """
    return [row.any_text() for row in read_rows(path, "text")]


def read_each(source: str | Path, line_column: str | None = None) -> Iterator[Row | RowError]:
    """Read rows as `read_rows` does, and yield what is wrong with those that are unreadable.

    Args:
        source, line_column: as of `read_rows`.

    Raises:
        InputError: there is no such file or data set, or nothing in it can be read.
    """
    name, empty = str(source), True
    with _opened(source, line_column) as (parsed, unit, typed):
        for place, values in parsed:
            empty = False
            if isinstance(values, RowError):
                yield values
            else:
                yield Row(values, name, place, unit, typed)
    if empty:
        raise InputError(f"{name} is empty, expected at least one row.")


def read_table(source: str | Path, names: Sequence[str] | None = None) -> Table:
    """Read columns whole.

    Args:
        source: as of `read_rows`.
        names: columns to read, as far as they are there; the others are named and left empty, for
            they may be large. None reads all.

    Returns:
        The columns; a value that a row lacks is None.

    Raises:
        InputError: as of `read_rows`.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from jaxalign.data.tables import read_table
        >>> path = Path(tempfile.mkdtemp()) / "users.jsonl"
        >>> _ = path.write_text('{"user": 7, "score": 0.5}\\n')
        >>> table = read_table(path)
        >>> table.identifiers("user").to_pylist(), table.numbers("score").tolist()
        (['7'], [0.5])
    """
    return next(read_tables(source, names))


def read_tables(
    source: str | Path, names: Sequence[str] | None = None, size: int | None = None
) -> Iterator[Table]:
    """Read columns as `read_table` does, at most `size` rows at a time."""
    kind = _kind(source)
    if kind == "parquet":
        yield from _parquet_tables(expand_user(source), names, size)
    elif kind == "data set":
        found = read_dataset(str(source))
        kept = {n: c if names is None or n in names else () for n, c in found.items()}
        yield Table(kept, Origin(str(source)))
    else:
        with _opened(source, None) as (parsed, unit, typed):
            origin, empty = Origin(str(source), typed=typed), True
            while table := _collected(islice(parsed, size), names, origin, unit == "line"):
                empty = False
                yield table
                origin = replace(origin, start=origin.start + (size or 0))
        if empty:
            raise InputError(f"{source} is empty, expected at least one row.")


def estimate_rows(source: str | Path) -> int | None:
    """Return about how many rows a file has, for progress; None where that is not known cheaply."""
    kind, path = _kind(source), expand_user(source)
    if kind == "data set" or not path.is_file():
        return None
    if kind == "parquet":
        return int(open_parquet(path).metadata.num_rows)
    with path.open("rb") as file:
        lines = file.read(_SAMPLE).count(b"\n")
    size = path.stat().st_size
    if path.suffix == ".gz" or not lines:
        return None
    return lines if size <= _SAMPLE else size * lines // _SAMPLE


def read_metadata(path: Path) -> Mapping[bytes, bytes]:
    """Return what a Parquet file states about itself; nothing for the other formats."""
    if _kind(path) != "parquet":
        return {}
    return open_parquet(path).schema_arrow.metadata or {}


def _kind(source: str | Path) -> str:
    """The format of a source: an ending without its dot, or `data set`."""
    path = expand_user(source)
    ending = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if ending in _ENDINGS:
        return ending[1:]
    if isinstance(source, str) and not path.exists() and is_dataset_name(source):
        return "data set"
    if path.is_dir():
        raise InputError(f"{source} is a folder, expected a file; name the file.")
    if isinstance(source, Path) and not path.exists():
        raise InputError(f"{source} does not exist; check the path.")
    if path.exists() and not ending:
        return "txt"
    raise InputError(
        f"{source} is neither a file ending in {', '.join(_ENDINGS)} (or one of these with .gz) "
        "nor the name of a data set; check the path, or convert the file."
    )


@contextmanager
def _opened(
    source: str | Path, line_column: str | None
) -> Iterator[tuple[Iterator[Parsed], str, bool]]:
    """Rows of a source, what they are counted in, and whether their values have types."""
    kind, path = _kind(source), expand_user(source)
    try:
        if kind == "data set":
            batches = pa.table(read_dataset(str(source))).to_batches(_BATCH)
            yield enumerate((row for b in batches for row in b.to_pylist()), 1), "row", True
        elif kind == "parquet":
            yield parquet_rows(open_parquet(path)), "row", True
        else:
            with open_bytes(path) as file:
                yield _text_format(kind, file, str(source), line_column)
    except FileNotFoundError:
        raise InputError(f"{source} does not exist; check the path.") from None
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise InputError(f"{source} cannot be read ({first_line(error)}); restore it.") from None


def _text_format(
    kind: str, file: BytesFile, name: str, line_column: str | None
) -> tuple[Iterator[Parsed], str, bool]:
    if kind == "csv":
        return csv_rows(file, name), "line", False
    if kind == "txt":
        if line_column is None:
            raise InputError(
                f"{name} holds lines of text, expected columns; give a file ending in "
                f"{', '.join(_ENDINGS[:-1])}."
            )
        return text_rows(file, name, line_column), "line", True
    return json_rows(file, name), "row" if is_array(file) else "line", True


def _collected(
    rows: Iterator[Parsed], names: Sequence[str] | None, origin: Origin, lines: bool
) -> Table | None:
    """Columns of rows, straight from each row: a million dicts cost more than their parsing."""
    kept: dict[str, list[object]] = {name: [] for name in names or ()}
    found: dict[str, object] = {}
    places: list[int] = []
    for place, values in rows:
        if isinstance(values, RowError):
            raise values
        places.append(place)
        found.update(values)
        if names is None and len(kept) < len(found):
            for name in found:
                kept.setdefault(name, [None] * (len(places) - 1))
        for name, column in kept.items():
            column.append(values.get(name))
    if not places:
        return None
    columns = {name: kept.get(name, ()) for name in found}
    return Table(columns, replace(origin, lines=np.asarray(places)) if lines else origin)


def _parquet_tables(path: Path, names: Sequence[str] | None, size: int | None) -> Iterator[Table]:
    file = open_parquet(path)
    there = file.schema_arrow.names
    wanted = [name for name in there if names is None or name in names]
    if not file.metadata.num_rows:
        raise InputError(f"{path} has no rows, expected at least one.")
    try:
        batches = [file.read(wanted)] if size is None else file.iter_batches(size, columns=wanted)
        start = 0
        for batch in batches:
            columns = {name: batch[name] if name in wanted else () for name in there}
            yield Table(columns, Origin(str(path), start=start))
            start += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a readable Parquet file: {first_line(error)}.") from None
