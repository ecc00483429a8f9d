"""Label Studio's JSON export of pairwise comparisons."""

from collections.abc import Iterator, Mapping

from jaxalign.data.importers.registry import (
    ImportOptions,
    child,
    each_row,
    refuse,
    register_format,
    required,
    seconds,
    sequence,
)
from jaxalign.data.importers.rows import ChoiceRow, Imported, Skipped
from jaxalign.data.tables import Row
from jaxalign.data.values import check_text, short


def _recognise(values: Mapping[str, object]) -> bool:
    return isinstance(values.get("data"), Mapping) and isinstance(values.get("annotations"), list)


@register_format("label-studio", "Label Studio JSON export, pairwise comparisons", _recognise)
@each_row
def read_label_studio(row: Row, options: ImportOptions) -> Iterator[Imported]:
    """Read a task: each annotation that was not cancelled is one user's choice.

    The answers are `data.answer1` (left) and `data.answer2` (right), the prompt `data.prompt`.
    """
    for place, annotation in enumerate(sequence(required(row, "annotations"))):
        where = f"{row.where}, annotation {place + 1}"
        if child(annotation, "was_cancelled"):
            yield Skipped("the annotation was cancelled", where)
            continue
        pairwise = [
            one for one in sequence(child(annotation, "result")) if child(one, "type") == "pairwise"
        ]
        if not pairwise:
            yield Skipped("the annotation compares no pair", where)
            continue
        selected = child(pairwise[0], "value", "selected")
        if selected not in ("left", "right"):
            found = short(selected)
            raise refuse(row, f"annotations[{place}] value.selected", found, "left or right")
        answers = [_answer(row, number) for number in (1, 2)]
        if selected == "right":
            answers.reverse()
        prompt = child(required(row, "data"), "prompt")
        yield ChoiceRow(
            user=_user(row, annotation, place, options),
            prompt=None if prompt is None else check_text(prompt, "data.prompt", row.where),
            chosen=answers[0],
            rejected=answers[1],
            time=seconds(child(annotation, "created_at")),
            source=None if not row.has("id") else row.identifier("id"),
        )


def _answer(row: Row, number: int) -> str:
    name = f"answer{number}"
    return check_text(child(required(row, "data"), name), f"data.{name}", row.where)


def _user(row: Row, annotation: object, place: int, options: ImportOptions) -> str:
    by = child(annotation, "completed_by")
    if isinstance(by, Mapping):
        by = by.get("email") or by.get("id")
    return options.user_or(row, by, f"annotations[{place}].completed_by")
