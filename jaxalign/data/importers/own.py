"""The files of `jaxalign import` and `jaxalign mrm train`, so that several become one."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from jaxalign.data.importers.hh_rlhf import TRANSCRIPT
from jaxalign.data.importers.registry import (
    ImportOptions,
    each_row,
    register_format,
    seconds,
)
from jaxalign.data.importers.rows import (
    ChoiceRow,
    Imported,
    RatingRow,
    Text,
    has_fields,
    plain,
    split_prompt,
)
from jaxalign.data.messages import check_messages, is_messages
from jaxalign.data.ratings import check_rating_scale, check_weight
from jaxalign.data.tables import Row


def _recognise(values: Mapping[str, object]) -> bool:
    if isinstance(chosen := values.get("chosen"), str) and chosen.startswith(TRANSCRIPT):
        return False
    return has_fields(values, "user", "chosen", "rejected") or has_fields(
        values, "user", "answer", "rating"
    )


@register_format(
    "jaxalign", "files of jaxalign: user, chosen, rejected; or user, answer, rating", _recognise
)
@each_row
def read_own(row: Row, options: ImportOptions) -> Iterator[Imported]:
    """Read a choice or a rating, with all that the file states beside it."""
    weight = check_weight(row.values.get("weight"), row.where, row.typed)
    for found in _read(row, options):
        yield replace(found, weight=weight) if row.has("weight") else found


def _read(row: Row, options: ImportOptions) -> Iterator[ChoiceRow | RatingRow]:
    """Read a choice or a rating without its weight."""
    user = options.user_of(row, "user")
    group = row.identifier("group") if row.has("group") else None
    source = row.identifier("source") if row.has("source") else None
    time = seconds(row.values.get("time"))
    if row.has("chosen") or not row.has("rating"):
        strength = row.number("strength") if row.has("strength") else None
        implicit = row.flag("implicit") if row.has("implicit") else None
        yield read_choice(
            row, user, group=group, source=source, time=time, strength=strength, implicit=implicit
        )
        return
    rating = row.number("rating")
    own = (
        check_rating_scale(row.values["scale"], row.where, row.typed) if row.has("scale") else None
    )
    yield RatingRow(
        user=user, prompt=read_side(row, "prompt", "user") if row.has("prompt") else None,
        group=group, source=source, time=time, answer=read_side(row, "answer", "assistant"),
        rating=rating, scale=options.scale_of(row, rating, own),
    )  # fmt: skip


def read_choice(
    row: Row,
    user: str,
    *,
    group: str | None = None,
    source: str | None = None,
    time: float | str | None = None,
    strength: float | None = None,
    implicit: bool | None = None,
) -> ChoiceRow:
    """Read `prompt`, `chosen`, `rejected` and `tie` of a row, as texts or messages.

    Args:
        row: chosen and rejected may hold the prompt in front.
        user, group, source, time, strength, implicit: of the choice, as in `ChoiceRow`.

    Raises:
        RowError: a field is missing or something else.
    """
    if is_messages(row.values.get("chosen")):
        turns = [check_messages(row.values.get(name), name, row.where) for name in _SIDES]
        prompt, chosen, rejected = split_prompt(*turns)
    else:
        prompt, chosen, rejected = None, row.text("chosen"), row.text("rejected")
    if row.has("prompt"):
        own = read_side(row, "prompt", "user")
        if prompt is None or not isinstance(own, str):
            prompt = own
    # A file for TRL has no ties. A log that states them would otherwise become choices.
    tie = row.has("tie") and row.flag("tie")
    return ChoiceRow(
        user=user, prompt=prompt, chosen=chosen, rejected=rejected, tie=tie or None, group=group,
        source=source, time=time, strength=strength, implicit=implicit,
    )  # fmt: skip


_SIDES = ("chosen", "rejected")


def read_side(row: Row, name: str, role: str) -> Text:
    """Read a text, or messages, of which a lone turn of `role` is its text.

    Raises:
        RowError: the field is missing or something else.
    """
    if is_messages(row.values.get(name)):
        return plain(check_messages(row.values[name], name, row.where), role)
    return row.text(name)
