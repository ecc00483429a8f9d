"""Argilla's records, flattened: ratings and rankings by each user."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from jaxalign.data.importers.registry import (
    ImportOptions,
    each_row,
    refuse,
    register_format,
    sequence,
)
from jaxalign.data.importers.rows import ChoiceRow, Imported, RatingRow, Skipped
from jaxalign.data.tables import Row
from jaxalign.data.values import RowError, as_number, short

_RESPONSES = ".responses"
_ANSWERS = ("answer", "response", "completion", "output", "text")
_PROMPTS = ("prompt", "instruction", "question", "input")


def _questions(values: Mapping[str, object]) -> list[str]:
    return [
        name.removesuffix(_RESPONSES)
        for name in values
        if name.endswith(_RESPONSES) and f"{name}.users" in values
    ]


def _recognise(values: Mapping[str, object]) -> bool:
    return bool(_questions(values))


@register_format("argilla", "Argilla records, flattened", _recognise)
@each_row
def read_argilla(row: Row, options: ImportOptions) -> Iterator[Imported]:
    """Read a record: a ranking gives all its pairs for each user, a rating one row.

    A ranking's options are names of fields, which hold the answers. The answer of a rating is the
    field `answer`, `response`, `completion`, `output` or `text`; its scale is not in the record.
    """
    questions = _questions(row.values)
    if options.score is not None:
        questions = [name for name in questions if name == options.score]
    if not questions:
        yield Skipped("the record has no response to the question", row.where)
    prompt = next((row.text(name) for name in _PROMPTS if row.has(name)), None)
    source = row.identifier("id") if row.has("id") else None
    for question in questions:
        values = sequence(row.values[question + _RESPONSES])
        users = sequence(row.values[f"{question}{_RESPONSES}.users"])
        states = sequence(row.values.get(f"{question}{_RESPONSES}.status"))
        if len(values) != len(users):
            raise refuse(row, f"{question}{_RESPONSES}.users", f"{len(users)} users",
                         f"one for each of {len(values)} responses")  # fmt: skip
        if not values:
            yield Skipped("the record has no response to the question", row.where)
        for place, (value, user) in enumerate(zip(values, users, strict=True)):
            if place < len(states) and states[place] in ("discarded", "draft"):
                yield Skipped(f"the response is {states[place]}", row.where)
                continue
            name = options.user_or(row, user, f"{question}{_RESPONSES}.users")
            if isinstance(value, list | tuple) and _is_ranking(row, value):
                for better, worse, tie in _ranked(row, question, value):
                    yield ChoiceRow(
                        user=name, prompt=prompt, source=source, tie=tie,
                        chosen=row.text(better), rejected=row.text(worse),
                    )  # fmt: skip
                continue
            rating = as_number(value)
            if math.isnan(rating):
                yield Skipped("the response is neither a rating nor a ranking", row.where)
                continue
            yield RatingRow(
                user=name, prompt=prompt, source=source, answer=_answer(row), rating=rating,
                scale=options.scale_of(row, rating),
            )  # fmt: skip


def _is_ranking(row: Row, value: Sequence[object]) -> bool:
    """Whether any option names a field of the record; labels and spans of a text name none."""
    names = (option.get("value") if isinstance(option, Mapping) else option for option in value)
    return any(isinstance(name, str) and row.has(name) for name in names)


def _ranked(row: Row, question: str, value: object) -> Iterator[tuple[str, str, bool | None]]:
    """Pairs of a ranking, best first: names in order, or objects with `value` and `rank`."""
    ranks: list[tuple[float, str]] = []
    for place, option in enumerate(sequence(value)):
        name, rank = option, float(place)
        if isinstance(option, Mapping):
            name, rank = option.get("value"), as_number(option.get("rank"))
        if not isinstance(name, str) or not row.has(name) or math.isnan(rank):
            found = short(option)
            raise refuse(row, question + _RESPONSES, found, "a ranking of fields of the record")
        ranks.append((rank, name))
    for (one, better), (other, worse) in combinations(sorted(ranks), 2):
        yield better, worse, True if one == other else None


def _answer(row: Row) -> str:
    for name in _ANSWERS:
        if row.has(name):
            return row.text(name)
    raise RowError(
        f"{row.where}: found no field {', '.join(f'`{name}`' for name in _ANSWERS)}, expected one "
        "with the answer that was rated; rename the field.",
        "no field holds the answer",
    )
