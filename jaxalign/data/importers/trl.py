"""Preference and unpaired rows as TRL trains on; UltraFeedback binarized is of this form."""

from collections.abc import Iterator, Mapping

from jaxalign.data.importers.hh_rlhf import TRANSCRIPT
from jaxalign.data.importers.registry import ImportOptions, each_row, register_format
from jaxalign.data.importers.rows import (
    ChoiceRow,
    Imported,
    RatingRow,
    Skipped,
    Text,
    has_fields,
    plain,
    split_prompt,
)
from jaxalign.data.messages import check_messages, is_messages
from jaxalign.data.tables import Row


def _recognise(values: Mapping[str, object]) -> bool:
    if isinstance(chosen := values.get("chosen"), str) and chosen.startswith(TRANSCRIPT):
        return False
    return has_fields(values, "chosen", "rejected") or has_fields(
        values, "prompt", "completion", "label"
    )


@register_format("trl", "TRL: prompt, chosen, rejected; or prompt, completion, label", _recognise)
@each_row
def read_trl(row: Row, options: ImportOptions) -> Iterator[Imported]:
    """Read a row of texts or messages; chosen and rejected may hold the prompt in front."""
    user = options.user_of(row, "user")
    if not row.has("chosen"):
        rating = 1.0 if row.flag("label") else -1.0
        yield RatingRow(
            user=user, prompt=_text(row, "prompt", "user"), scale=(-1, 1), rating=rating,
            answer=_text(row, "completion", "assistant"),
        )  # fmt: skip
        return
    if is_messages(row.values["chosen"]):
        turns = [check_messages(row.values[name], name, row.where) for name in _SIDES]
        prompt, chosen, rejected = split_prompt(*turns)
    else:
        prompt, chosen, rejected = None, row.text("chosen"), row.text("rejected")
    if row.has("prompt"):
        own = _text(row, "prompt", "user")
        if prompt is None or not isinstance(own, str):
            prompt = own
    if chosen == rejected:
        yield Skipped("both answers are the same", row.where)
        return
    yield ChoiceRow(user=user, prompt=prompt, chosen=chosen, rejected=rejected)


_SIDES = ("chosen", "rejected")


def _text(row: Row, name: str, role: str) -> Text:
    if is_messages(row.values.get(name)):
        return plain(check_messages(row.values[name], name, row.where), role)
    return row.text(name)
