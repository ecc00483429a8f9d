"""Transcripts as in Anthropic's HH-RLHF: two conversations as texts with a common beginning."""

from collections.abc import Iterator, Mapping

from jaxalign.data.chat_template import Message
from jaxalign.data.importers.registry import ImportOptions, each_row, register_format
from jaxalign.data.importers.rows import ChoiceRow, Imported, plain
from jaxalign.data.tables import Row
from jaxalign.data.values import RowError

TRANSCRIPT, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def _recognise(values: Mapping[str, object]) -> bool:
    sides = values.get("chosen"), values.get("rejected")
    return all(isinstance(side, str) and side.startswith(TRANSCRIPT) for side in sides)


@register_format("hh-rlhf", "HH-RLHF transcripts", _recognise)
@each_row
def read_hh_rlhf(row: Row, options: ImportOptions) -> Iterator[Imported]:
    """Read a row: the prompt ends at the last assistant's turn that both transcripts begin."""
    chosen, rejected = row.text("chosen"), row.text("rejected")
    same = [one == other for one, other in zip(chosen, rejected, strict=False)]
    shared = chosen[: same.index(False) if False in same else len(same)]
    cut = shared.rfind(_ASSISTANT)
    if cut < 0 or not shared.startswith(TRANSCRIPT):
        raise RowError(
            f"{row.where}: `chosen` and `rejected` share no beginning up to an assistant's turn, "
            f"expected {TRANSCRIPT!r} ... {_ASSISTANT!r} in both; correct or remove the row.",
            "the transcripts share no beginning",
        )
    cut += len(_ASSISTANT)
    turns = _turns(shared[: cut - len(_ASSISTANT)])
    yield ChoiceRow(
        user=options.user_of(row),
        prompt=plain(turns, "user"),
        chosen=chosen[cut:].strip(),
        rejected=rejected[cut:].strip(),
    )


def _turns(text: str) -> list[Message]:
    """The turns of a transcript."""
    found: list[Message] = []
    for part in text.split(TRANSCRIPT)[1:]:
        question, *answers = part.split(_ASSISTANT)
        found.append({"role": "user", "content": question.strip()})
        found += [{"role": "assistant", "content": answer.strip()} for answer in answers]
    return found
