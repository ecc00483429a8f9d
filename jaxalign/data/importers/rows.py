"""What every format of feedback is turned into: choices and ratings, as rows of one file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

from jaxalign.data.chat_template import Message
from jaxalign.data.messages import shared_turns

Text = str | tuple[Message, ...]
"""A text, or the turns of a conversation."""


@dataclass(frozen=True, kw_only=True)
class _FeedbackRow:
    user: str
    prompt: Text | None = None
    time: float | str | None = None
    group: str | None = None
    source: str | None = None
    weight: float | None = None

    def as_dict(self) -> dict[str, object]:
        """Return the row as the file has it, without what is not known."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class ChoiceRow(_FeedbackRow):
    """One user preferred one answer to another.

    Attributes:
        user: who chose.
        chosen, rejected: the two answers; either stands first where `tie` is true.
        tie: whether the user preferred neither; None for no.
        strength: how many steps the chosen answer is ahead, 1 or more; None where it is not stated.
        implicit: whether the choice was seen in what the user did, and not stated; None for no.
        prompt: what was answered.
        time: seconds since 1970, or ISO 8601.
        group: conversation.
        source: id in the product.
        weight: how much the row counts, from 0 to 1; None for 1.
    """

    chosen: Text
    rejected: Text
    tie: bool | None = None
    strength: float | None = None
    implicit: bool | None = None


@dataclass(frozen=True, kw_only=True)
class RatingRow(_FeedbackRow):
    """One user rated one answer.

    Attributes:
        user: who rated.
        answer: what was rated.
        rating: on the scale.
        scale: lowest and highest rating; a thumb is a rating of -1 or 1.
        prompt, time, group, source, weight: as in `ChoiceRow`.
    """

    answer: Text
    rating: float
    scale: tuple[float, float]


class Skipped(NamedTuple):
    """A row that says nothing about a preference.

    Attributes:
        reason: without the row, such as "the annotation was cancelled"; equal reasons are counted.
        where: file and row.
    """

    reason: str
    where: str


Imported = ChoiceRow | RatingRow | Skipped


def split_prompt(
    chosen: Sequence[Message], rejected: Sequence[Message]
) -> tuple[Text | None, Text, Text]:
    """Return the turns that two conversations share at their beginning, and the rest of each.

    A rest of one assistant's turn is returned as its text, a shared user's turn as its text.

    Args:
        chosen, rejected: conversations, each with the prompt in front.

    Returns:
        prompt (None where nothing is shared), chosen, rejected.

    Example:
        >>> from jaxalign.data.importers.rows import split_prompt
        >>> question = {"role": "user", "content": "Hi"}
        >>> split_prompt(
        ...     [question, {"role": "assistant", "content": "Hello!"}],
        ...     [question, {"role": "assistant", "content": "What?"}],
        ... )
        ('Hi', 'Hello!', 'What?')
    """
    shared = shared_turns(chosen, rejected)
    prompt = plain(chosen[:shared], "user") if shared else None
    return prompt, plain(chosen[shared:], "assistant"), plain(rejected[shared:], "assistant")


def plain(turns: Sequence[Message], role: str) -> Text:
    """Return a conversation; a single turn of a role as its text."""
    if len(turns) == 1 and turns[0].keys() == {"role", "content"} and turns[0]["role"] == role:
        return turns[0]["content"]
    return tuple(turns)


def has_fields(values: Mapping[str, object], *names: str) -> bool:
    """Return whether a row has all the columns."""
    return all(name in values for name in names)
