"""Which columns of a table of scored answers are rewards: recognised by name and content.

`jaxalign reward score` writes rewards as an object per row; other files have a column per reward.
Where nothing says which columns are rewards, numbers are taken, and whatever looks like the number
of a row or like a time is refused until the user names the rewards.
"""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxalign.data.columns import Origin, as_list, number_column
from jaxalign.data.tables import Table
from jaxalign.data.values import RowError, as_number, short
from jaxalign.errors import InputError
from jaxalign.palm.domain import Floats

OBJECT = "rewards"
"""Column of the objects of `jaxalign reward score`."""
_TEXTS = ("prompt", "answer", "completion", "messages", "log_ref")
_NAMES = {
    "id", "ids", "uid", "uuid", "key", "index", "idx", "row", "rows", "line", "number", "rank",
    "sample", "samples", "seed", "step", "epoch", "fold", "split", "user", "group", "rater",
    "tokens", "logprob", "stopped", "time", "timestamp", "date", "datetime", "created", "updated",
    "year", "seconds", "latency", "duration",
}  # fmt: skip
_ENDINGS = ("_id", "_index", "_idx", "_row", "_number", "_tokens", "_time", "_at", "_date")
_SECONDS = 9e8, 4.2e9  # since 1970: from 1998 to 2103
_FLAGS = {"true": 1.0, "false": 0.0}


class RewardColumns(NamedTuple):
    """The rewards of N rows, and what was not taken.

    Attributes:
        names: [R] of the rewards.
        values: [N, R].
        left_out: other columns, with why, such as "note (text)".
    """

    names: tuple[str, ...]
    values: Floats
    left_out: tuple[str, ...]


def reward_columns(table: Table, names: Sequence[str] = ()) -> RewardColumns:
    """Return the rewards of a table.

    Args:
        table: with all its columns.
        names: of the rewards, in order; empty for those of the column `rewards`, or else for all
            columns of numbers. true and false count as 1 and 0.

    Raises:
        InputError: no rewards; a column with numbers in some rows and something else in others; or,
            without `names`, numbers that look like those of rows or like times.

    Example:
        >>> from jaxalign.data.columns import Origin
        >>> from jaxalign.data.tables import Table
        >>> from jaxalign.palm.reward_columns import reward_columns
        >>> columns = {"prompt": ["a", "a"], "kind": [0.5, -1.0], "ok": [True, False], "by": "xy"}
        >>> found = reward_columns(Table(columns, Origin("memory")))
        >>> found.names, found.values.tolist(), found.left_out
        (('kind', 'ok'), [[0.5, 1.0], [-1.0, 0.0]], ('by (text)',))
    """
    origin = table.origin
    columns = {name: as_list(values) for name, values in table.columns.items()}
    found = _of_objects(columns.get(OBJECT), origin)
    if not names and found:
        left = tuple(name for name in columns if name not in (OBJECT, *_TEXTS))
        return RewardColumns(tuple(found), np.stack(list(found.values()), axis=1), left)
    if names:
        _check_names(names)
        table.require([name for name in names if name not in found])
        values = [
            found[name] if name in found else _numbers(name, columns[name], origin)
            for name in names
        ]
        left = tuple(name for name in (*columns, *found) if name not in (OBJECT, *_TEXTS, *names))
        return RewardColumns(tuple(names), np.stack(values, axis=1), left)
    kinds = {name: _kind(name, columns[name], origin) for name in columns if name not in _TEXTS}
    taken = [name for name, kind in kinds.items() if kind in ("numbers", "true or false")]
    if not taken:
        listed = ", ".join(f"`{name}` ({kind})" for name, kind in kinds.items()) or "no others"
        raise InputError(
            f"{origin.source} has no rewards: found no column of numbers beside "
            f"{', '.join(f'`{name}`' for name in columns if name in _TEXTS) or 'these'} ({listed}),"
            " expected one per reward, or objects in `rewards` as `jaxalign reward score` writes "
            "them; score the answers first."
        )
    values = [_numbers(name, columns[name], origin) for name in taken]
    _refuse_doubts(dict(zip(taken, values, strict=True)), origin)
    left = tuple(f"{name} ({kind})" for name, kind in kinds.items() if name not in taken)
    return RewardColumns(tuple(taken), np.stack(values, axis=1), left)


def _check_names(names: Sequence[str]) -> None:
    if len(set(names)) < len(names) or set(names) & set(_TEXTS):
        raise InputError(f"rewards: found {', '.join(names)}, expected columns of rewards, once.")


def _of_objects(values: Sequence[object] | None, origin: Origin) -> dict[str, Floats]:
    """The rewards of a column of objects by name, none where it holds something else."""
    if values is None:
        return {}
    rows = [_object(value, origin.typed) for value in values]
    if not any(isinstance(row, Mapping) for row in rows):
        return {}
    names: tuple[str, ...] | None = None
    for place, row in enumerate(rows):
        if not isinstance(row, Mapping) or not row or set(row) != set(names or row):
            expected = f"an object of {', '.join(names)}" if names else "an object of rewards"
            raise InputError(
                f"{origin.at(place)}: `{OBJECT}` is {short(row)}, expected {expected} as in the "
                "other rows; score the answers anew, or remove the row."
            )
        names = names or tuple(map(str, row))
    kept = [row for row in rows if isinstance(row, Mapping)]
    typed = Origin(origin.source, origin.lines, origin.start)
    return {name: _numbers(name, [row[name] for row in kept], typed) for name in names or ()}


def _object(value: object, typed: bool) -> object:
    """A cell of a CSV file may hold an object as JSON."""
    if typed or not isinstance(value, str) or not value.lstrip().startswith("{"):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _numbers(name: str, values: Sequence[object], origin: Origin) -> Floats:
    """A column as float64 [N], true and false as 1 and 0."""
    if _kind(name, values, origin) == "true or false":
        values = [_flag(value, origin.typed) for value in values]
        origin = Origin(origin.source, origin.lines, origin.start)
    return number_column(name, values, origin)


def _flag(value: object, typed: bool) -> object:
    if isinstance(value, bool | np.bool_):
        return float(value)
    return _FLAGS.get(value.lower()) if not typed and isinstance(value, str) else value


def _kind(name: str, values: Sequence[object], origin: Origin) -> str:
    """What a column holds; refuses numbers in some rows and something else in others."""
    there = [(row, value) for row, value in enumerate(values) if value is not None]
    kinds = [_kind_of(value, origin.typed) for _, value in there]
    if not kinds:
        return "empty"
    counted = ("numbers", "true or false")
    if len(set(kinds)) == 1 or not set(kinds) & set(counted):
        return kinds[0]
    most = max(dict.fromkeys(kinds), key=kinds.count)
    odd = next(place for place, kind in enumerate(kinds) if kind != most)
    row, value = there[odd]
    raise RowError(
        f"{origin.at(row)}: `{name}` is {short(value)} ({kinds[odd]}), where {kinds.count(most)} "
        f"rows hold {most}; correct the row, or name the rewards to take with --rewards.",
        f"`{name}` is mixed",
    )


def _kind_of(value: object, typed: bool) -> str:
    if isinstance(_flag(value, typed), float) and not isinstance(value, float):
        return "true or false"
    if isinstance(value, int | float | np.number) or not np.isnan(as_number(value, typed)):
        return "numbers"
    if isinstance(value, str):
        return "text"
    return "objects" if isinstance(value, Mapping) else "lists"


def _refuse_doubts(found: Mapping[str, Floats], origin: Origin) -> None:
    """Refuse numbers that are probably no rewards, for all would be certified as such."""
    doubts = {name: why for name, values in found.items() if (why := _doubt(name, values))}
    if doubts:
        listed = ", ".join(f"`{name}` ({why})" for name, why in doubts.items())
        rest = " ".join(name for name in found if name not in doubts) or "NAME ..."
        raise InputError(
            f"{origin.source}: found {listed} among the columns of numbers, expected rewards only; "
            f"name the columns that are rewards, such as --rewards {rest}."
        )


def _doubt(name: str, values: Floats) -> str:
    """Why a column of numbers is probably no reward; empty where nothing speaks against it."""
    low, high = values.min(), values.max()
    ends = f"{low:.10g} to {high:.10g}"
    if len(values) > 2 and (values == np.round(values)).all() and (np.diff(values) > 0).all():
        return f"{ends}, growing from row to row"
    if any(_SECONDS[0] * unit <= low and high <= _SECONDS[1] * unit for unit in (1, 1e3)):
        return f"{ends}, like the seconds of a clock"
    plain = name.lower()
    if plain in _NAMES or plain.endswith(_ENDINGS):
        return f"{ends}, by its name no reward"
    return ""
