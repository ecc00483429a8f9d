"""OpenAI's files for preference fine-tuning."""

from collections.abc import Iterator, Mapping

from jaxalign.data.importers.registry import (
    ImportOptions,
    child,
    each_row,
    register_format,
    required,
)
from jaxalign.data.importers.rows import ChoiceRow, Imported, has_fields, plain
from jaxalign.data.messages import check_messages
from jaxalign.data.tables import Row


def _recognise(values: Mapping[str, object]) -> bool:
    return has_fields(values, "input", "preferred_output", "non_preferred_output")


@register_format("openai", "OpenAI preference fine-tuning", _recognise)
@each_row
def read_openai(row: Row, options: ImportOptions) -> Iterator[Imported]:
    """Read a row: `input.messages`, `preferred_output` and `non_preferred_output`."""
    prompt = check_messages(child(required(row, "input"), "messages"), "input.messages", row.where)
    outputs = [
        plain(check_messages(row.values.get(name), name, row.where), "assistant")
        for name in ("preferred_output", "non_preferred_output")
    ]
    yield ChoiceRow(
        user=options.user_of(row),
        prompt=plain(prompt, "user"),
        chosen=outputs[0],
        rejected=outputs[1],
    )
