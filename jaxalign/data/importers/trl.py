"""Preference and unpaired rows as TRL trains on; UltraFeedback binarized is of this form."""

from collections.abc import Iterator, Mapping

from jaxalign.data.importers.hh_rlhf import TRANSCRIPT
from jaxalign.data.importers.own import read_choice, read_side
from jaxalign.data.importers.registry import ImportOptions, each_row, register_format
from jaxalign.data.importers.rows import Imported, RatingRow, has_fields
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
    if row.has("chosen") or ("chosen" in row.values and not row.has("label")):
        yield read_choice(row, user)
        return
    rating = 1.0 if row.flag("label") else -1.0
    yield RatingRow(
        user=user, prompt=read_side(row, "prompt", "user"), scale=(-1, 1), rating=rating,
        answer=read_side(row, "completion", "assistant"),
    )  # fmt: skip
