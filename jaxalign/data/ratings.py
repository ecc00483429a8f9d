"""What rows of a preference file say beyond who won: ratings, strengths, weights, implicit ones.

A rating is kept as one of a few levels. How many a scale has follows from its two ends alone, so
that a file read later has the levels of the one that a model was trained on.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np

from jaxalign.data.columns import Column, Origin, as_list
from jaxalign.data.preferences import Preferences, RowDetails
from jaxalign.data.values import RowError, check_flag, check_number, check_text, short
from jaxalign.errors import InputError

RATING = "rating"
DETAILS = ("answer", "scale", "strength", "implicit", "weight")
"""Columns beside those of choices and `rating`."""
_THUMB = (-1.0, 1.0)
_MOST_STEPS = 2**31 - 1  # of a strength, as it is kept
_MOST_WHOLE, _EVEN_LEVELS = 11, 10


class Level(NamedTuple):
    """A rating: the ends of its scale, and its level from 0."""

    low: float
    high: float
    level: int


def scale_levels(low: float, high: float) -> int:
    """Return how many levels a scale of ratings has.

    A thumb, [-1, 1], has 2; a scale of up to 11 whole steps has these; any other one, 10 even ones.

    Example:
        >>> from jaxalign.data.ratings import scale_levels
        >>> scale_levels(-1, 1), scale_levels(1, 5), scale_levels(-10, 10)
        (2, 5, 10)
    """
    if (low, high) == _THUMB:
        return 2
    span = high - low
    return int(span) + 1 if span < _MOST_WHOLE and span == int(span) else _EVEN_LEVELS


def rating_level(rating: float, low: float, high: float) -> int:
    """Return the level from 0 that is nearest to a rating, the upper one of two.

    Example:
        >>> from jaxalign.data.ratings import rating_level
        >>> rating_level(1, -1, 1), rating_level(4, 1, 5), rating_level(-10, -10, 10)
        (1, 3, 0)
    """
    return int(np.floor((rating - low) / (high - low) * (scale_levels(low, high) - 1) + 0.5))


def check_rating(rating: object, scale: object, where: str, typed: bool = True) -> Level:
    """Return a rating of a row.

    Args:
        rating: a number.
        scale: the lowest and the highest rating.
        where: file and row, for messages.
        typed: whether numbers are numbers; otherwise they are text, as in CSV.

    Raises:
        RowError: either is something else, or the rating lies outside the scale.
    """
    low, high = check_rating_scale(scale, where, typed)
    value = check_number(rating, RATING, where, typed=typed)
    thumb = (low, high) == _THUMB
    if not low <= value <= high or (thumb and value not in _THUMB):
        expected = "-1 or 1" if thumb else f"{low:g} to {high:g}"
        raise RowError(
            f"{where}: the rating is {value:g}, expected {expected} as its `scale` says; correct "
            "the row.",
            "a rating lies outside its scale",
        )
    return Level(low, high, rating_level(value, low, high))


def check_rating_scale(scale: object, where: str, typed: bool = True) -> tuple[float, float]:
    """Return the lowest and the highest rating of a scale.

    Args:
        scale: both in a list; where `typed` is false also the text of one, such as "[1, 5]".
        where: file and row, for messages.
        typed: whether numbers are numbers; otherwise they are text, as in CSV.

    Raises:
        RowError: it is something else.

    Example:
        >>> from jaxalign.data.ratings import check_rating_scale
        >>> check_rating_scale([1, 5], "a.jsonl, line 1")
        (1.0, 5.0)
        >>> check_rating_scale("[-1, 1]", "a.csv, line 2", typed=False)
        (-1.0, 1.0)
    """
    if not typed and isinstance(scale, str):
        scale = _parsed(scale)
    ends = scale.tolist() if isinstance(scale, np.ndarray) else scale
    if not isinstance(ends, list | tuple) or len(ends) != 2:
        raise _no_scale(scale, where)
    low, high = (check_number(end, "scale", where) for end in ends)
    if not (low < high and math.isfinite(high - low)):
        raise _no_scale(scale, where)
    return low, high


def _parsed(text: str) -> object:
    try:
        found: object = json.loads(text)
    except ValueError:
        return text
    return found


def _no_scale(scale: object, where: str) -> RowError:
    found = "missing" if scale is None else short(scale)
    return RowError(
        f"{where}: `scale` is {found}, expected [lowest, highest] rating, such as [1, 5]; a thumb "
        "has [-1, 1]; correct the row.",
        "`scale` is no scale",
    )


def check_strength(value: object, where: str, typed: bool = True) -> int:
    """Return how many whole steps the chosen answer is ahead, 1 or more; 0 where it is not stated.

    Raises:
        RowError: it is something else.
    """
    if value in (None, ""):
        return 0
    expected = "how many steps the chosen answer is ahead, 1 or more; correct the row, or mark it "
    steps = _number_within(
        value, "strength", where, typed, lambda steps: steps > 0, f"{expected}with `tie`",
        "not above 0",
    )  # fmt: skip
    return max(round(min(steps, _MOST_STEPS)), 1)


def _number_within(
    value: object, name: str, where: str, typed: bool, within: Callable[[float], bool],
    expected: str, reason: str,
) -> float:  # fmt: skip
    """A number of a row that lies within some bounds."""
    number = check_number(value, name, where, typed=typed)
    if not within(number):
        raise RowError(
            f"{where}: `{name}` is {number:g}, expected {expected}.", f"`{name}` is {reason}"
        )
    return number


def check_weight(value: object, where: str, typed: bool = True) -> float:
    """Return how much a row counts, from 0 to 1; 1 where it is not stated.

    Raises:
        RowError: it is something else.
    """
    if value in (None, ""):
        return 1.0
    weight = _number_within(
        value, "weight", where, typed, lambda weight: 0 <= weight <= 1,
        "how much the row counts, from 0 to 1; correct it", "not from 0 to 1",
    )  # fmt: skip
    return float(np.float32(weight))  # as it is kept: what rounds to 0 counts as 0


@dataclass(frozen=True)
class Details:
    """What checked rows say beyond who won, [N].

    Attributes:
        low: lowest rating of the scale, NaN for a choice.
        high: highest rating.
        level: of the rating; of a choice, the steps that the chosen answer is ahead.
        implicit: whether the choice was seen in what the user did.
        weight: float32, how much the row counts, above 0 and up to 1.
    """

    low: np.ndarray
    high: np.ndarray
    level: np.ndarray
    implicit: np.ndarray
    weight: np.ndarray

    @classmethod
    def plain(cls, count: int) -> "Details":
        """Return those of rows that say nothing more."""
        nothing = np.full(count, np.nan)
        level, weight = np.zeros(count, np.int32), np.ones(count, np.float32)
        return cls(nothing, nothing.copy(), level, np.zeros(count, bool), weight)

    def numbered(self) -> tuple[RowDetails | None, tuple[tuple[float, float], ...]]:
        """Return the same with scales by their number, and the scales; None for plain choices."""
        rated = np.isfinite(self.low)
        plain = not (rated.any() or self.level.any() or self.implicit.any())
        if plain and (self.weight == 1).all():
            return None, ()
        ends = np.stack([self.low, self.high], axis=1)
        scales, code = np.unique(ends[rated], axis=0, return_inverse=True)
        scale = np.full(len(rated), -1, np.int32)
        scale[rated] = code.ravel()
        levels = np.array([scale_levels(*pair) for pair in scales] or [1])
        top = np.where(rated, levels[scale] - 1, 0).astype(np.int32)
        details = RowDetails(scale, self.level.astype(np.int32), top, self.weight, self.implicit)
        return details, tuple((float(low), float(high)) for low, high in scales)


def check_scales(
    ends: np.ndarray, known: Sequence[tuple[float, float]], where: Callable[[int], str]
) -> np.ndarray:
    """Return the numbers [N] of scales among those that a model knows; -1 for a choice.

    Args:
        ends: [N, 2] lowest and highest rating, NaN for a choice.
        known: scales of the model.
        where: what to call a row, for messages.

    Raises:
        InputError: a scale that the model does not know.
    """
    found = np.full(len(ends), -1, np.int32)
    # As saved, in single precision.
    single = ends.astype(np.float32)
    for number, pair in enumerate(known):
        found[(single == np.asarray(pair, np.float32)).all(axis=1)] = number
    unknown = np.flatnonzero(np.isfinite(single[:, 0]) & (found < 0))
    if unknown.size:
        low, high = ends[unknown[0]]
        have = " and ".join(f"[{a:g}, {b:g}]" for a, b in known) or "none"
        raise InputError(
            f"{where(int(unknown[0]))}: the rating is on the scale [{low:g}, {high:g}], expected "
            f"a scale that the model was trained on ({have}); train with such ratings, or remove "
            f"the {unknown.size:,} rows."
        )
    return found


def on_scales(choices: Preferences, known: Sequence[tuple[float, float]]) -> Preferences:
    """Return the same rows with the scales of ratings numbered as a model numbers them.

    Args:
        choices: with ratings.
        known: scales of the model.

    Raises:
        InputError: a scale that the model does not know.
    """
    if choices.details is None:
        return choices
    ends = np.array([*choices.scales, (np.nan, np.nan)])[choices.details.scale]
    scale = check_scales(ends, known, lambda row: f"{choices.source}, row {row + 1}")
    return replace(choices, details=choices.details._replace(scale=scale), scales=tuple(known))


def joined_details(
    blocks: Sequence[Details | None], counts: Sequence[int]
) -> tuple[RowDetails | None, tuple[tuple[float, float], ...]]:
    """Return what the rows of several blocks say, see `Details.numbered`.

    Args:
        blocks: None where the rows are plain choices.
        counts: rows of each block.
    """
    if all(block is None for block in blocks):
        return None, ()
    every = [block or Details.plain(n) for block, n in zip(blocks, counts, strict=True)]
    names = [field.name for field in fields(Details)]
    joined = (np.concatenate([getattr(block, name) for block in every]) for name in names)
    return Details(*joined).numbered()


def rated_rows(columns: Mapping[str, Column]) -> np.ndarray:
    """Return [N] bool, the rows that rate one answer in place of choosing between two."""
    ratings = as_list(columns[RATING])
    chosen = as_list(columns.get("chosen", ())) or [None] * len(ratings)
    return np.array(
        [
            rating not in (None, "") and answer in (None, "")
            for rating, answer in zip(ratings, chosen, strict=True)
        ],
        bool,
    )


def with_rated_answers(
    columns: Mapping[str, Column], origin: Origin
) -> tuple[dict[str, Column], np.ndarray | None]:
    """Return columns in which the answer of a rating is chosen and rejected, and which rows are.

    Args:
        columns: of choices and ratings.
        origin: where they came from, for messages.

    Returns:
        The columns, and [N] bool, None where no row is a rating.

    Raises:
        RowError: a rating without an answer.
    """
    found = dict(columns)
    if not len(columns.get(RATING, ())):
        return found, None
    rated = rated_rows(columns)
    if not rated.any():
        return found, None
    answers = as_list(columns.get("answer", ())) or [None] * len(rated)
    for row in np.flatnonzero(rated).tolist():
        answer = answers[row]
        if answer is None or (isinstance(answer, str) and not answer.strip()):
            check_text(answer, "answer", origin.at(row))
    for name in ("chosen", "rejected"):
        values = as_list(columns.get(name, ())) or [None] * len(rated)
        found[name] = [
            answer if one else value
            for answer, value, one in zip(answers, values, rated, strict=True)
        ]
    return found, rated


def check_details(
    columns: Mapping[str, Column], rated: np.ndarray | None, count: int, origin: Origin
) -> Details | None:
    """Return what rows say beyond who won; None where they say nothing.

    Args:
        columns: as read.
        rated: [N] bool, which rows are ratings; None for none.
        count: N.
        origin: where they came from, for messages.

    Raises:
        RowError: a rating, scale, strength, weight or mark that cannot be used.
    """
    names = ("strength", "implicit", "weight")
    there = [name for name in names if len(columns.get(name, ()))]
    if rated is None and not there:
        return None
    found = Details.plain(count)
    chosen = np.ones(count, bool) if rated is None else ~rated
    if "strength" in there:
        for row, value in _stated(columns["strength"], chosen):
            found.level[row] = check_strength(value, origin.at(row), origin.typed)
    if "implicit" in there:
        for row, value in _stated(columns["implicit"], chosen):
            found.implicit[row] = check_flag(value, "implicit", origin.at(row), typed=origin.typed)
    if "weight" in there:
        for row, value in _stated(columns["weight"], np.ones(count, bool)):
            found.weight[row] = check_weight(value, origin.at(row), origin.typed)
        for row in np.flatnonzero(found.weight == 0)[:1].tolist():
            raise RowError(
                f"{origin.at(row)}: `weight` is 0, expected a weight above 0 of rows that are not "
                "read from a file; leave out rows that do not count.",
                "`weight` is 0",
            )
    if rated is not None:
        ratings = as_list(columns[RATING])
        scales = as_list(columns.get("scale", ())) or [None] * count
        for row in np.flatnonzero(rated).tolist():
            level = check_rating(ratings[row], scales[row], origin.at(row), origin.typed)
            found.low[row], found.high[row], found.level[row] = level
    return found


def _stated(column: Column, rows: np.ndarray) -> Sequence[tuple[int, object]]:
    """Row and value of the rows [N] bool that have one."""
    values = as_list(column)
    return [(int(r), values[r]) for r in np.flatnonzero(rows) if values[r] not in (None, "")]
