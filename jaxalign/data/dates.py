"""Dates of records, which order histories."""

import datetime
import re

from jaxalign.data.values import short
from jaxalign.errors import InputError

_DATE = re.compile(r"(\d{1,4})(?:-(\d{1,2})(?:-(\d{1,2}))?)?")


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
        >>> from jaxalign.data.dates import date_key
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
