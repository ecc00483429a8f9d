"""Conversations as data: lists of messages, checked turn by turn."""

from collections.abc import Mapping, Sequence

import pyarrow as pa

from jaxalign.data.chat_template import Message
from jaxalign.data.columns import Column, as_list
from jaxalign.data.values import RowError, check_text, short

_TEXT = "text"  # the type of a content part, and the key of what it says


class Conversation(str):
    """A text that knows its turns; as text, what was said, in order, with blank lines between.

    That text is what encoders read, what items are known by and what features are looked up by.
    Language models read the turns, in their own chat template.

    Attributes:
        turns: what was said.
        roles: who said it; empty where the user and the assistant speak by turns.

    Example:
        >>> from jaxalign.data import Conversation
        >>> text = Conversation(("Hi", "Hello"))
        >>> text == "Hi\\n\\nHello", text.turns
        (True, ('Hi', 'Hello'))
        >>> text.messages[1]
        {'role': 'assistant', 'content': 'Hello'}
    """

    # A file has one per answer; without a dict of its own, each is made in half the time.
    __slots__ = ("roles", "turns")

    turns: tuple[str, ...]
    roles: tuple[str, ...]

    def __new__(cls, turns: tuple[str, ...], roles: tuple[str, ...] = ()) -> "Conversation":
        """The turns as one text."""
        text = super().__new__(cls, "\n\n".join(turns))
        text.turns, text.roles = turns, roles
        return text

    @property
    def messages(self) -> tuple[Message, ...]:
        """The turns as messages with `role` and `content`."""
        roles = self.roles or ("user", "assistant") * len(self.turns)
        pairs = zip(roles, self.turns, strict=False)
        return tuple({"role": role, "content": said} for role, said in pairs)


def as_messages(text: str, role: str) -> tuple[Message, ...]:
    """Return the turns of a conversation, or another text as one turn of that role."""
    if isinstance(text, Conversation):
        return text.messages
    return ({"role": role, "content": text},)


def as_text(messages: Sequence[Message], role: str) -> str:
    """Return messages as one value: the content of a lone one of that role, else a conversation."""
    if len(messages) == 1 and messages[0]["role"] == role:
        return messages[0]["content"]
    roles, turns = zip(*((turn["role"], turn["content"]) for turn in messages), strict=True)
    return Conversation(turns, roles)


def prompt_text(prompt: str | Sequence[Message]) -> str:
    """Return a prompt as rewards and encoders read it, and as its answers are looked up.

    Every command uses this one form. Classifiers with a chat template read the turns.

    Args:
        prompt: a text, which stays; or messages, those of the system included.

    Returns:
        The content of a lone turn of the user, or else a `Conversation`.

    Example:
        >>> from jaxalign.data.messages import prompt_text
        >>> system = {"role": "system", "content": "Be kind."}
        >>> prompt_text((system, {"role": "user", "content": "Hi"}))
        'Be kind.\\n\\nHi'
    """
    return prompt if isinstance(prompt, str) else as_text(prompt, "user")


def check_messages(value: object, name: str, where: str) -> tuple[Message, ...]:
    """Return a conversation.

    Args:
        value: of a row: a list of objects with `role` and `content`, which is a text or a list of
            parts {"type": "text", "text": ...}, joined without anything between them.
            `reasoning_content`, the thought before an answer, is kept; other fields are not.
        name: of its column, for messages.
        where: file and row, for messages.

    Returns:
        At least one turn. Contents are text; only those of the assistant may not be blank.

    Raises:
        RowError: it is something else, or a part holds an image or another thing that is no text.

    Example:
        >>> from jaxalign.data.messages import check_messages
        >>> parts = [{"type": "text", "text": "Hi"}, {"type": "text", "text": "!"}]
        >>> check_messages([{"role": "user", "content": parts}], "messages", "a.jsonl, line 1")
        ({'role': 'user', 'content': 'Hi!'},)
    """
    if not isinstance(value, list | tuple) or not value:
        found = "missing" if value is None else short(value)
        raise RowError(
            f"{where}: `{name}` is {found}, expected a list of turns with `role` and `content`; "
            "correct or remove the row.",
            f"`{name}` is no list of turns",
        )
    return tuple(_turn(turn, f"{name}[{place}]", where) for place, turn in enumerate(value))


def shared_turns(one: Sequence[Message], other: Sequence[Message]) -> int:
    """Return how many turns two conversations have in common; at least one is left of each."""
    most = min(len(one), len(other)) - 1
    parted = (place for place in range(most) if one[place] != other[place])
    return next(parted, most)


def is_messages(value: object) -> bool:
    """Return whether a value has the form of a conversation: a list that begins with an object."""
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], Mapping)


def has_messages(column: Column) -> bool:
    """Return whether a column holds a conversation."""
    if isinstance(column, pa.Array | pa.ChunkedArray) and not pa.types.is_nested(column.type):
        return False
    values = as_list(column)
    kinds = set(map(type, values))  # far fewer than values
    return bool(kinds & {list, tuple}) and any(map(is_messages, values))


def _turn(turn: object, name: str, where: str) -> Message:
    if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str):
        raise RowError(
            f"{where}: `{name}` is {short(turn)}, expected an object with the texts `role` and "
            "`content`; correct the row.",
            "a turn is no object with `role` and `content`",
        )
    content = turn.get("content")
    if isinstance(content, list | tuple):
        content = "".join(_part(part, name, where) for part in content)
    blank = turn["role"] != "assistant"
    found = {"role": turn["role"]}
    found["content"] = check_text(content, f"{name}.content", where, blank=blank)
    if isinstance(thought := turn.get("reasoning_content"), str):
        found["reasoning_content"] = thought
    return found


def _part(part: object, name: str, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(part, Mapping) and kind in (_TEXT, None) and isinstance(part.get(_TEXT), str):
        return str(part[_TEXT])
    found = f"a part of type {kind!r}" if kind != _TEXT and kind is not None else short(part)
    raise RowError(
        f"{where}: `{name}.content` has {found}, expected parts of text only; remove the row.",
        "a content part is no text",
    )
