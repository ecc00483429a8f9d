"""Records of JSON files: read one by one, their fields and dates checked."""

import codecs
import datetime
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from jaxalign.errors import InputError

_BLOCK = 2**22  # characters read at a time
_SOMETHING = re.compile(r"[^\s,]")
_DATE = re.compile(r"(\d{1,4})(?:-(\d{1,2})(?:-(\d{1,2}))?)?")


def read_array(path: Path) -> Iterator[object]:
    """The elements of a JSON file that holds one array, one at a time.

    Benchmarks hold gigabytes of them, which parsed at once would take several times as much memory.

    Raises:
        InputError: there is no such file, or it is not a JSON array.
    """
    count = 0
    try:
        with _opened(path) as file:
            text = file.read(_BLOCK)
            start = len(text) - len(text.lstrip())
            if text[start : start + 1] != "[":
                raise InputError(
                    f"{path} is not a JSON array, expected a list of objects; check that it is "
                    "the file of questions."
                )
            place, wanted, decoder = start + 1, _BLOCK, json.JSONDecoder()
            while True:
                found = _SOMETHING.search(text, place)
                place = found.start() if found else len(text)
                if text.startswith("]", place):
                    return
                try:
                    value, place = decoder.raw_decode(text, place)
                except ValueError:  # also where an element goes on in what is not read yet
                    more = file.read(wanted)
                    if not more:
                        raise
                    text, place, wanted = text[place:] + more, 0, wanted * 2
                    continue
                yield value
                count, wanted = count + 1, _BLOCK
    except InputError:
        raise
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise _unreadable(path, error, f" after element {count}" if count else "") from None


def identity(row: object, where: str, field: str = "id") -> str:
    """The id of a record: text, or a whole number, which becomes text.

    Raises:
        InputError: the record is no object, or has no id.
    """
    return text_of(row, field, where, numbers=True, blank=False)


def text_of(
    row: object, field: str, where: str, *, numbers: bool = False, blank: bool = True
) -> str:
    """A field of a record as text.

    Args:
        row: the record.
        field: its name.
        where: of the record, for messages.
        numbers: let numbers stand for their text.
        blank: let the text be empty.

    Raises:
        InputError: the record is no object, or lacks the field or has something else there.
    """
    if not isinstance(row, dict):
        raise InputError(f"{where}: found {short(row)}, expected an object; correct it.")
    value = row.get(field)
    if numbers and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not (blank or value.strip()):
        found = "missing" if value is None else short(value)
        others = ", ".join(f"`{name}`" for name in row) or "none"
        raise InputError(
            f"{where}: `{field}` is {found}, expected text (fields found: {others}); fill it in, "
            "or check the task."
        )
    try:
        if not value.isascii():
            value.encode()
    except UnicodeError:
        raise InputError(
            f"{where}: `{field}` holds half of a surrogate pair, expected valid Unicode; correct "
            "it."
        ) from None
    return value


def check_text(value: object, name: str, where: str, empty: bool = False) -> str:
    """Return a value of a row, if it is text that can be encoded.

    Args:
        value: of the row.
        name: of its column, for messages.
        where: of the row, for messages.
        empty: let the text be blank.

    Raises:
        InputError: it is no text, blank, or no valid Unicode.

    Example:
        >>> from jaxalign.data.records import check_text
        >>> check_text("Hi", "prompt", "a.jsonl, line 1")
        'Hi'
    """
    if not isinstance(value, str) or not (empty or value.strip()):
        found = "missing" if value is None else short(value)
        raise InputError(f"{where}: `{name}` is {found}, expected text; fill in or remove the row.")
    try:
        value.encode()
    except UnicodeError:
        raise InputError(
            f"{where}: `{name}` holds half of a surrogate pair, expected valid Unicode; correct "
            "the row."
        ) from None
    return value


def date_key(value: str, where: str) -> tuple[int, ...]:
    """What dates are ordered by: year, month, day and time of day, as far as given.

    Args:
        value: a year, year-month or year-month-day, or an ISO 8601 date and time.
        where: of the record, for messages.

    Returns:
        The parts; times with an offset are in UTC.

    Raises:
        InputError: the date cannot be read.

    Example:
        >>> from jaxalign.data.records import date_key
        >>> date_key("2024-05", "line 1") < date_key("2024-05-02T10:00:00", "line 2")
        True
    """
    try:
        if found := _DATE.fullmatch(value.strip()):
            parts = tuple(int(part) for part in found.groups() if part is not None)
            datetime.date(*(*parts, 1, 1)[:3])
            return parts
        moment = datetime.datetime.fromisoformat(value.strip())
        if moment.tzinfo is not None:
            moment = moment.astimezone(datetime.UTC)
    except (ValueError, OverflowError):
        raise InputError(
            f"{where}: `date` is {short(value)}, expected year, year-month or year-month-day; "
            "correct it, or leave the date out of every item."
        ) from None
    return (*moment.timetuple()[:6], moment.microsecond)


def short(value: object) -> str:
    """A value in at most 40 characters, for messages."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _opened(path: Path) -> IO[str]:
    with open(path, "rb") as raw:  # a text reader would take the mark for a character
        mark = raw.read(3) == codecs.BOM_UTF8
    encoding = "utf-8-sig" if mark else "utf-8"
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding=encoding)
    return open(path, encoding=encoding)


def _unreadable(path: Path, error: Exception, place: str = "") -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path} does not exist; check the path.")
    reason = str(error).rstrip(".")
    return InputError(f"{path} cannot be read as JSON{place} ({reason}); restore the file.")
