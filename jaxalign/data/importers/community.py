"""Community Alignment: up to four turns, each with the best of four responses named."""

from collections.abc import Iterator, Mapping

from jaxalign.data.chat_template import Message
from jaxalign.data.importers.registry import ImportOptions, each_row, refuse, register_format
from jaxalign.data.importers.rows import ChoiceRow, Imported, Skipped, has_fields, plain
from jaxalign.data.tables import Row
from jaxalign.data.values import short

_TURNS = ("first", "second", "third", "fourth")
_RESPONSES = tuple(f"response_{letter}" for letter in "abcd")


def _recognise(values: Mapping[str, object]) -> bool:
    return has_fields(values, "annotator_id", "first_turn_prompt", "first_turn_preferred_response")


@register_format(
    "community-alignment", "facebook/community-alignment-dataset, by turns", _recognise
)
@each_row
def read_community(row: Row, options: ImportOptions) -> Iterator[Imported]:
    """Read a conversation: in each turn the preferred response is chosen over each of the others.

    The preferred response is what the conversation goes on from.
    """
    user, group = options.user_of(row, "annotator_id"), row.identifier("conversation_id")
    turns: list[Message] = []
    for turn in _TURNS:
        if not row.has(f"{turn}_turn_prompt"):
            break
        turns.append({"role": "user", "content": row.text(f"{turn}_turn_prompt")})
        name = f"{turn}_turn_preferred_response"
        best = row.values.get(name)
        if best is None:
            yield Skipped("no response of a turn is preferred", row.where)
            return
        if best not in _RESPONSES:
            raise refuse(row, name, short(best), "one of response_a to response_d")
        answers = {one: row.values.get(f"{turn}_turn_{one}") for one in _RESPONSES}
        chosen = row.text(f"{turn}_turn_{best}")
        for other, answer in answers.items():
            if other == best or answer is None or answer == chosen:
                continue
            rejected = row.text(f"{turn}_turn_{other}")
            yield ChoiceRow(
                user=user, group=group, prompt=plain(turns, "user"), chosen=chosen,
                rejected=rejected,
            )  # fmt: skip
        turns.append({"role": "assistant", "content": chosen})
