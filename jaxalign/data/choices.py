"""Rows of choices in the conversational form of TRL and the Hub, as texts that know their turns."""

from collections.abc import Mapping
from typing import NamedTuple

from jaxalign.data.columns import Column, Origin, as_list
from jaxalign.data.messages import (
    as_text,
    check_messages,
    has_messages,
    is_messages,
    shared_turns,
)
from jaxalign.data.values import RowError


class Choice(NamedTuple):
    """The texts of one row: conversations where they have more than one turn."""

    prompt: object
    chosen: object
    rejected: object


def flatten_conversations(columns: Mapping[str, Column], origin: Origin) -> dict[str, Column]:
    """Return columns of choices whose conversations have become texts.

    Args:
        columns: `chosen` and `rejected`, and optionally `prompt`, each of texts or of
            conversations; others are returned as they are.
        origin: where they came from, for messages.

    Returns:
        The columns. A lone turn is its content, any other conversation a `Conversation`. Where
        `chosen` and `rejected` begin with turns of the prompt, these become the prompt.

    Raises:
        RowError: a conversation cannot be used.
    """
    names = ("prompt", "chosen", "rejected")
    if not any(has_messages(columns[name]) for name in names if name in columns):
        return dict(columns)
    values = {name: as_list(columns[name]) for name in names if name in columns}
    count = len(values["chosen"])
    prompts = values.get("prompt", [None] * count)
    rows = zip(prompts, values["chosen"], values["rejected"], strict=True)
    found = [flat_choice(*row, where=origin.at(number)) for number, row in enumerate(rows)]
    flat: dict[str, Column] = {
        name: [row[place] for row in found] for place, name in enumerate(names)
    }
    if "prompt" not in columns and all(value is None for value in flat["prompt"]):
        del flat["prompt"]
    return {**columns, **flat}


def flat_choice(prompt: object, chosen: object, rejected: object, where: str) -> Choice:
    """Return one row of `flatten_conversations`.

    Raises:
        RowError: a conversation cannot be used.
    """
    if is_messages(prompt):
        prompt = as_text(check_messages(prompt, "prompt", where), "user")
    # Of a rating, whose one answer stands on both sides, no turn is shared.
    if chosen is rejected or not (is_messages(chosen) and is_messages(rejected)):
        return Choice(
            prompt, _answer(chosen, "chosen", where), _answer(rejected, "rejected", where)
        )
    one, other = (
        check_messages(chosen, "chosen", where),
        check_messages(rejected, "rejected", where),
    )
    shared = shared_turns(one, other)
    if shared:
        prompt = as_text(one[:shared], "user")
    for name, turns in (("chosen", one[shared:]), ("rejected", other[shared:])):
        if turns[0]["role"] != "assistant":
            raise RowError(
                f"{where}: `{name}` goes on with a turn of the {turns[0]['role']} where the two "
                "conversations part, expected two answers of the assistant to one beginning; "
                "correct or remove the row.",
                f"`{name}` is no answer of the assistant",
            )
    return Choice(prompt, as_text(one[shared:], "assistant"), as_text(other[shared:], "assistant"))


def _answer(value: object, name: str, where: str) -> object:
    return as_text(check_messages(value, name, where), "assistant") if is_messages(value) else value
