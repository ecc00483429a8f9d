"""Prompts to complete, row by row, with all that a file says about each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jaxalign.data.chat_template import Message
from jaxalign.data.messages import check_messages, is_messages
from jaxalign.data.tables import Row, read_rows
from jaxalign.errors import InputError


@dataclass(frozen=True)
class PromptRow:
    """One prompt.

    Attributes:
        prompt: a text, or a chat of {"role", "content"}.
        where: what messages call it, such as "prompts.jsonl, line 3".
        columns: what else its row holds, such as `preference`; `adapter` and `user` are texts.
    """

    prompt: str | Sequence[Message]
    where: str = "the prompt"
    columns: Mapping[str, object] = field(default_factory=dict)

    def user(self, default: str | None = None) -> str | None:
        """Return who asks, or the default where the row does not say."""
        found = self.columns.get("user", default)
        return found if found is None else str(found)


def read_prompt_rows(path: Path) -> list[PromptRow]:
    """Read a prompt file.

    Args:
        path: of a file as `jaxalign.data.tables.read_rows` takes it. A row has `prompt`, a text or
            a conversation, or `messages`, and perhaps more; a .txt file has a prompt per line.

    Raises:
        InputError: there is no such file, it has no rows, or a row is something else; the message
            names the line.

    Example:
        >>> from pathlib import Path
        >>> from jaxalign.data.prompt_rows import read_prompt_rows
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "prompts.jsonl"
        >>> _ = path.write_text('{"prompt": "Hello.", "user": "ann"}')
        >>> row = read_prompt_rows(path)[0]
        >>> row.prompt, dict(row.columns)
        ('Hello.', {'user': 'ann'})
    """
    return [_prompt_row(row) for row in read_rows(path, "prompt")]


def _prompt_row(row: Row) -> PromptRow:
    if row.has("prompt") == row.has("messages"):
        names = ", ".join(f"`{name}`" for name in row.values) or "nothing"
        raise InputError(
            f"{row.where}: found {names}, expected either prompt or messages; correct the row."
        )
    name = "messages" if row.has("messages") else "prompt"
    rest = {key: value for key, value in row.values.items() if key not in ("prompt", "messages")}
    for key in ("adapter", "user"):
        if row.has(key):
            rest[key] = row.identifier(key)
    if name == "prompt" and not is_messages(row.values[name]):
        return PromptRow(row.text("prompt", blank=True), row.where, rest)
    return PromptRow(check_messages(row.values[name], name, row.where), row.where, rest)


def as_prompt(
    row: PromptRow, chat: bool = False, system: str | None = None
) -> str | Sequence[Message]:
    """Return the prompt of a row as a model is asked.

    Args:
        row: of `read_prompt_rows`; a chat in it stays as it is.
        chat: make a chat of a plain prompt, for the model's chat template.
        system: system message before a plain prompt; implies `chat`.

    Example:
        >>> from jaxalign.data.prompt_rows import PromptRow, as_prompt
        >>> as_prompt(PromptRow("Hello."), system="Be brief.")
        [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Hello.'}]
    """
    if not isinstance(row.prompt, str) or not (chat or system is not None):
        return row.prompt
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": row.prompt}]
