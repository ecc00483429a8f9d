"""Formats of feedback by name. A new one is a module with one registered reader."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jaxalign.data.importers.rows import Imported
from jaxalign.data.tables import Row
from jaxalign.data.values import RowError, as_number, check_identifier
from jaxalign.errors import InputError


@dataclass(frozen=True)
class ImportOptions:
    """What a file of feedback leaves open.

    Attributes:
        user: id of the one user whose feedback all of it is, where the format names no users.
        user_column: column that names the user of each row, in place of the format's own.
        scale: lowest and highest rating, where the format does not state them.
        score: name of the score or question to read, where a file holds several.
    """

    user: str | None = None
    user_column: str | None = None
    scale: tuple[float, float] | None = None
    score: str | None = None

    def user_of(self, row: Row, column: str | None = None) -> str:
        """Return the user of a row: `user_column`, then `user`, then the format's own column.

        Raises:
            RowError: nothing names the user.
        """
        if self.user_column is not None:
            return row.identifier(self.user_column)
        if self.user is not None:
            return self.user
        if column is not None and row.has(column):
            return row.identifier(column)
        raise RowError(
            f"{row.where}: nothing says whose feedback it is"
            f"{f' (`{column}` is missing)' if column else ''}, expected a user; give one name for "
            "all rows with --user, or a column with --user-column.",
            "nothing names the user",
        )

    def user_or(self, row: Row, found: object, field: str) -> str:
        """Return the user that the options say, else the one found in a field of the row.

        Raises:
            RowError: neither names a user.
        """
        if self.user is not None or self.user_column is not None:
            return self.user_of(row)
        return check_identifier(found, field, row.where)

    def scale_of(self, row: Row, rating: float, own: tuple[float, float] | None = None) -> tuple:
        """Return the scale of a rating: its `own`, which the file states, else the one given.

        Raises:
            RowError: there is none, or the rating lies outside.
        """
        scale = self.scale if own is None else own
        if scale is None:
            raise RowError(
                f"{row.where}: the rating {rating:g} has no scale, expected its lowest and highest "
                "value; give them with --scale LOW HIGH.",
                "the scale of a rating is not known",
            )
        if not scale[0] <= rating <= scale[1]:
            remedy = "" if own is not None else ", or give the scale with --scale LOW HIGH"
            raise RowError(
                f"{row.where}: the rating is {rating:g}, expected {scale[0]:g} to {scale[1]:g}; "
                f"correct the row{remedy}.",
                "a rating lies outside its scale",
            )
        return scale


Reader = Callable[[Iterator[Row], ImportOptions], Iterator[Imported | RowError]]


class FeedbackFormat(NamedTuple):
    """A format of feedback.

    Attributes:
        name: as it is typed.
        title: what it is, for help.
        recognise: whether the values of a first row are of this format.
        read: rows in, choices and ratings out. A RowError that it yields is a row that cannot be
            used; it goes on with the next one.
    """

    name: str
    title: str
    recognise: Callable[[Mapping[str, object]], bool]
    read: Reader


_FORMATS: dict[str, FeedbackFormat] = {}


def register_format(
    name: str, title: str, recognise: Callable[[Mapping[str, object]], bool]
) -> Callable[[Reader], Reader]:
    """Register a reader of a format of feedback, for `jaxalign import NAME`.

    Args:
        name: as it is typed.
        title: what it is, for help.
        recognise: whether the values of a first row are of this format; formats are tried in
            the order of their registration.

    Returns:
        A decorator for a reader, which returns it unchanged.

    Raises:
        InputError: another format has the name.
    """

    def register(read: Reader) -> Reader:
        if name in _FORMATS and _FORMATS[name].read.__qualname__ != read.__qualname__:
            raise InputError(f"two formats are registered as {name!r}; rename one of them.")
        _FORMATS[name] = FeedbackFormat(name, title, recognise, read)
        return read

    return register


def each_row(
    read: Callable[[Row, ImportOptions], Iterator[Imported]],
) -> Reader:
    """Make a reader of one row the reader of a file: a bad row is yielded as its error."""

    def reader(rows: Iterator[Row], options: ImportOptions) -> Iterator[Imported | RowError]:
        for row in rows:
            try:
                yield from read(row, options)
            except RowError as error:
                yield error

    reader.__qualname__ = read.__qualname__
    return reader


def formats() -> tuple[FeedbackFormat, ...]:
    """Return the registered formats, in the order of their registration."""
    return tuple(_FORMATS.values())


def find_format(name: str, first: Row) -> FeedbackFormat:
    """Return a format by its name, or the first that recognises a row where the name is `auto`.

    Raises:
        InputError: there is no such format, the row is of another, or no format recognises it.
    """
    recognised = [one for one in formats() if one.recognise(first.values)]
    if name == "auto":
        if recognised:
            return recognised[0]
        raise InputError(
            f"{first.where}: found the fields {_named(first.values)}, which are those of no known "
            f"format; name one of {', '.join(_FORMATS)}, or convert the file."
        )
    if name not in _FORMATS:
        raise InputError(f"format {name!r} is unknown, expected auto or {', '.join(_FORMATS)}.")
    if not _FORMATS[name].recognise(first.values):
        other = f"looks like {recognised[0].name}" if recognised else "is of no known format"
        raise InputError(
            f"{first.where}: found the fields {_named(first.values)}, expected {name}; the file "
            f"{other}."
        )
    return _FORMATS[name]


def _named(values: Mapping[str, object]) -> str:
    return ", ".join(f"`{name}`" for name in list(values)[:8]) or "none"


def seconds(value: object) -> float | str | None:
    """Return a time as seconds since 1970 or ISO 8601 text, None where it is neither.

    Times in milliseconds or nanoseconds, as some products write them, are brought to seconds.
    """
    if isinstance(value, str) and value.strip():
        return value.strip()
    number = as_number(value)
    if not 0 < number < math.inf:
        return None
    while number > 1e11:
        number /= 1000
    return number


def child(value: object, *path: str) -> object:
    """Return what lies in nested objects under a path of keys, None where something is missing."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def refuse(row: Row, field: str, found: str, expected: str) -> RowError:
    """Return the error of a field that is not what the format has there."""
    return RowError(
        f"{row.where}: `{field}` is {found}, expected {expected}; correct or remove the row.",
        f"`{field}` is not {expected}",
    )


def required(row: Row, name: str) -> object:
    """Return a field that all rows of a format have: the first row alone says which format it is.

    Raises:
        RowError: it is missing.
    """
    if not row.has(name):
        raise RowError(
            f"{row.where}: `{name}` is missing, expected it in every row of this format; correct "
            "or remove the row.",
            f"`{name}` is missing",
        )
    return row.values[name]


def sequence(value: object) -> Sequence[object]:
    """Return a list, empty where a value is none."""
    return value if isinstance(value, list | tuple) else ()
