"""The formats of table files, read row by row: what is not readable in a row is yielded with it."""

import codecs
import csv
import gzip
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from jaxalign.data.values import RowError, first_line
from jaxalign.errors import InputError

Values = dict[str, object]
BytesFile: TypeAlias = BufferedReader | gzip.GzipFile
Parsed = tuple[int, Values | RowError]
"""The number of a row, from 1, and its values or what is wrong with it."""

_BLOCK = 2**18  # bytes of a JSON array read at a time
_PEEK = 256  # bytes in which the first bracket stands
_decode = json.JSONDecoder().decode  # `json.loads` looks at its options for every line
_PARQUET_ROWS = 4096
_NEXT = re.compile(r"[^\s,]")


@contextmanager
def open_bytes(path: Path) -> Iterator[BytesFile]:
    """Open a file, unpacked if its name ends in .gz, behind a UTF-8 byte order mark."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        if file.peek(len(codecs.BOM_UTF8)).startswith(codecs.BOM_UTF8):
            file.read(len(codecs.BOM_UTF8))
        yield file


def is_array(file: BytesFile) -> bool:
    """Return whether a JSON file begins with an array."""
    return file.peek(_PEEK).lstrip()[:1] == b"["


def json_rows(file: BytesFile, name: str) -> Iterator[Parsed]:
    """Yield the objects of JSON lines, or of one JSON array.

    Args:
        file: as from `open_bytes`.
        name: of the file, for messages.
    """
    if is_array(file):
        yield from _array_rows(file, name)
        return
    # Bytes, since a text reader also splits at U+2028 and the like.
    for number, line in enumerate(file, 1):
        if not line.isspace():
            yield number, _json_object(line, name, number)


def csv_rows(file: BytesFile, name: str) -> Iterator[Parsed]:
    """Yield the rows of a CSV file with a header, numbered by the line where each begins.

    Every value is text, and None where the cell is empty.
    """
    csv.field_size_limit(2**31 - 1)  # the default refuses texts beyond 128 KiB
    lines = _Lines(file, name)
    reader = csv.reader(lines, strict=True)
    try:
        header = next(reader, None)
        if header is None:
            return
        # Spreadsheets of many countries write semicolons, and call the file .csv all the same.
        if len(header) == 1 and (other := next((c for c in ";\t|" if c in header[0]), None)):
            raise InputError(
                f"{name}, line 1: found columns separated by {other!r}, expected commas; save the "
                "file with commas between its columns."
            )
        if len(set(header)) < len(header) or not all(header):
            raise InputError(
                f"{name}, line 1: found the columns {', '.join(header)}, expected a header of "
                "different names; correct it."
            )
        start = reader.line_num + 1
        for cells in reader:
            if len(cells) == len(header):
                yield start, {key: cell or None for key, cell in zip(header, cells, strict=True)}
            elif cells:
                found = f"{len(cells)} values, expected {len(header)}"
                yield (
                    start,
                    RowError(
                        f"{name}, line {start}: found {found} as in the header; correct the row.",
                        "another number of values than the header has",
                    ),
                )
            start = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{name}, line {lines.number}: not readable as CSV ({error}); correct the line."
        ) from None


def text_rows(file: BytesFile, name: str, column: str) -> Iterator[Parsed]:
    """Yield every line that is not blank, as the one value of its row."""
    for number, line in enumerate(file, 1):
        try:
            text = line.decode().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            yield number, _not_utf8(f"{name}, line {number}", error)
            continue
        if text.strip():
            yield number, {column: text}


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a Parquet file, unpacked if its name ends in .gz.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path.")
    try:
        packed = path.suffix == ".gz"
        return pq.ParquetFile(
            pa.BufferReader(gzip.decompress(path.read_bytes())) if packed else path
        )
    except (pa.ArrowException, OSError, EOFError) as error:
        raise InputError(f"{path} is not a readable Parquet file: {first_line(error)}.") from None


def parquet_rows(file: pq.ParquetFile) -> Iterator[Parsed]:
    """Yield the rows of a Parquet file."""
    number = 0
    for batch in file.iter_batches(_PARQUET_ROWS):
        for values in batch.to_pylist():
            number += 1
            yield number, values


class _Lines(Iterator[str]):
    """The lines of a UTF-8 file, which end at a line feed and nowhere else."""

    def __init__(self, file: BytesFile, name: str) -> None:
        self.file, self.name, self.number = file, name, 0

    def __next__(self) -> str:
        line = next(self.file)
        self.number += 1
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            raise _not_utf8(f"{self.name}, line {self.number}", error) from None


def _json_object(line: bytes, name: str, number: int) -> Values | RowError:
    try:
        values = _decode(line.decode())
    except UnicodeDecodeError as error:
        return _not_utf8(f"{name}, line {number}", error)
    except (ValueError, RecursionError) as error:
        return RowError(
            f"{name}, line {number}: not readable as JSON ({error}), expected one object per "
            "line, or one array of objects; correct the line.",
            "not readable as JSON",
        )
    return values if isinstance(values, dict) else _object(values, f"{name}, line {number}")


def _object(values: object, where: str) -> Values | RowError:
    if isinstance(values, dict):
        return values
    return RowError(
        f"{where}: found a JSON {type(values).__name__}, expected an object with a value for each "
        "column; correct the row.",
        "not a JSON object",
    )


def _not_utf8(where: str, error: UnicodeDecodeError) -> RowError:
    return RowError(
        f"{where}: not UTF-8 text (found the byte 0x{error.object[error.start]:02x}); save the "
        "file as UTF-8.",
        "not UTF-8 text",
    )


def _array_rows(file: BytesFile, name: str) -> Iterator[Parsed]:
    """Yield the elements of an array, parsed one at a time: some files hold gigabytes of them."""
    decoder, utf8 = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8")()
    text, place, line, number, ended, wanted = "", 0, 1, 0, False, _BLOCK
    while True:
        block = file.read(wanted)
        try:
            text, place = text[place:] + utf8.decode(block, final=not block), 0
        except UnicodeDecodeError as error:
            line += error.object.count(b"\n", 0, error.start)
            raise _not_utf8(f"{name}, line {line}", error) from None
        line += block.count(b"\n")
        if not number and text.lstrip()[:1] == "[":
            text, number = text.lstrip()[1:], 1
        while found := _NEXT.search(text, place):
            place = found.start()
            if ended:
                raise InputError(
                    f"{name}: found {text[place : place + 20]!r} behind the array, expected "
                    "nothing; remove it."
                )
            if text[place] == "]":
                ended, place = True, place + 1
                continue
            try:
                value, place = decoder.raw_decode(text, place)
                # A number may go on in the next block.
                if place == len(text) and block:
                    raise ValueError
            except (ValueError, RecursionError) as error:
                if not block or isinstance(error, RecursionError):
                    raise InputError(
                        f"{name}, row {number}: not readable as JSON ({error}), expected an "
                        "object; correct the row."
                    ) from None
                place = found.start()
                break
            yield number, _object(value, f"{name}, row {number}")
            number, wanted = number + 1, _BLOCK
        else:
            place = len(text)
        if not block:
            break
        wanted *= 2
    if not ended:
        raise InputError(f"{name}: the JSON array does not end, expected `]`; restore the file.")
