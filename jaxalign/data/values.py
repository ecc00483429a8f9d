"""One value of a row: texts, ids and numbers, taken as what they are or refused with the row."""

import math
from collections.abc import Collection
from typing import TypeGuard

import numpy as np

from jaxalign.errors import InputError


class RowError(InputError):
    """A row that cannot be used.

    Attributes:
        reason: what is wrong with it, without the row or the value, such as "`prompt` is no text".
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def check_text(
    value: object, name: str, where: str, *, blank: bool = False, others: Collection[str] = ()
) -> str:
    """Return a value that is text which can be encoded.

    Args:
        value: of a row.
        name: of its column, for messages.
        where: file and row, for messages.
        blank: let the text be empty.
        others: columns of the row, to be named where this one is missing.

    Raises:
        RowError: it is no text, blank, or no valid Unicode.

    Example:
        >>> from jaxalign.data.values import check_text
        >>> check_text("Hi", "prompt", "a.jsonl, line 1")
        'Hi'
    """
    if is_text(value, blank):
        return value
    if not isinstance(value, str):
        raise _refused(value, name, where, "text", others)
    if not _encodable(value):
        raise RowError(
            f"{where}: `{name}` holds half of a surrogate pair, expected valid Unicode; correct "
            "the row.",
            f"`{name}` holds half of a surrogate pair",
        )
    raise RowError(
        f"{where}: `{name}` is empty, expected text; fill in or remove the row.",
        f"`{name}` is empty",
    )


def is_text(value: object, blank: bool = False) -> TypeGuard[str]:
    """Return whether a value is text that can be encoded, and not blank unless that is allowed."""
    if not isinstance(value, str) or not (value.isascii() or _encodable(value)):
        return False
    return blank or bool(value.strip())


def check_identifier(value: object, name: str, where: str, *, others: Collection[str] = ()) -> str:
    """Return an id: text that is not blank, or a whole number as its text.

    Args:
        value, name, where, others: as of `check_text`.

    Raises:
        RowError: it is something else, such as true, 1.5, null or a list.

    Example:
        >>> from jaxalign.data.values import check_identifier
        >>> check_identifier(7, "user", "a.jsonl, line 1")
        '7'
    """
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise _refused(value, name, where, "text or a whole number", others)
    return check_text(value, name, where)


def check_number(
    value: object, name: str, where: str, *, typed: bool = True, others: Collection[str] = ()
) -> float:
    """Return a finite number.

    Args:
        value, name, where, others: as of `check_text`.
        typed: whether numbers are numbers; otherwise they are text, as in CSV.

    Raises:
        RowError: it is something else, NaN or infinite.

    Example:
        >>> from jaxalign.data.values import check_number
        >>> check_number(2, "reward", "a.jsonl, line 1")
        2.0
    """
    if not math.isfinite(number := as_number(value, typed)):
        raise _refused(value, name, where, "a finite number", others)
    return number


def as_number(value: object, typed: bool = True) -> float:
    """Return a value as a number, NaN if it is none."""
    if isinstance(value, int | float | np.number) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.nan
    try:
        return math.nan if typed or not isinstance(value, str) else float(value)
    except ValueError:
        return math.nan


def check_flag(
    value: object, name: str, where: str, *, typed: bool = True, others: Collection[str] = ()
) -> bool:
    """Return true or false.

    Args:
        value, name, where, typed, others: as of `check_number`.

    Raises:
        RowError: it is something else.

    Example:
        >>> from jaxalign.data.values import check_flag
        >>> check_flag(True, "tie", "a.jsonl, line 1")
        True
    """
    if not typed and isinstance(value, str):
        value = {"true": True, "false": False}.get(value.lower(), value)
    if not isinstance(value, bool | np.bool_):
        raise _refused(value, name, where, "true or false", others)
    return bool(value)


def field_text(
    record: object, name: str, where: str, *, numbers: bool = False, blank: bool = True
) -> str:
    """Return a field of a record within a row as text.

    Args:
        record: such as an item of a history.
        name: of the field.
        where: of the record, for messages.
        numbers: let whole numbers stand for their text.
        blank: let the text be empty.

    Raises:
        RowError: the record is no object, or lacks the field or has something else there.
    """
    values = _fields(record, where)
    value = values.get(name)
    if numbers and not isinstance(value, str):
        return check_identifier(value, name, where, others=values)
    return check_text(value, name, where, blank=blank, others=values)


def field_identifier(record: object, name: str, where: str) -> str:
    """Return a field of a record within a row as an id; see `check_identifier`."""
    values = _fields(record, where)
    return check_identifier(values.get(name), name, where, others=values)


def _fields(record: object, where: str) -> dict[str, object]:
    if isinstance(record, dict):
        return record
    raise RowError(
        f"{where}: found {short(record)}, expected an object; correct it.", "not an object"
    )


def short(value: object) -> str:
    """Return a value in at most 40 characters, for messages."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def first_line(error: Exception | None) -> str:
    """Return the first line of an error's message, without a full stop."""
    return (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")


def _refused(
    value: object, name: str, where: str, expected: str, others: Collection[str]
) -> RowError:
    reason = f"`{name}` is missing" if value is None else f"`{name}` is not {expected}"
    if value is None:
        there = ", ".join(f"`{other}`" for other in others if other != name)
        found = f"missing (the row has {there})" if there else "missing"
    else:
        found = f"{short(value)} ({type(value).__name__})"
    return RowError(
        f"{where}: `{name}` is {found}, expected {expected}; correct or remove the row.", reason
    )


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeError:
        return False
    return True
