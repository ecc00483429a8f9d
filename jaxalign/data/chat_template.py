"""Conversations as text: the one place where a tokenizer's chat template is rendered."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from jaxalign.errors import InputError

Message = Mapping[str, str]
_LAST_TAG = re.compile(r"<(/?)([^<>/\s]+)>[^<>]*\Z")


class TokenIds(Protocol):
    """Token ids of texts, such as a `transformers.BatchEncoding`."""

    def __getitem__(self, key: str, /) -> list:
        """`input_ids`: a list of ids for each text."""


class ChatTokenizer(Protocol):
    """The part of a tokenizer of transformers that writes conversations and reads texts."""

    bos_token_id: int | None
    eos_token_id: int | None
    chat_template: str | dict[str, str] | None

    def __call__(self, text: list[str], *, add_special_tokens: bool = True) -> TokenIds:
        """Return the token ids of texts."""

    def apply_chat_template(
        self,
        conversation: list[dict[str, str]],
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
    ) -> str:
        """Return a conversation as one text."""


def choose_template(tokenizer: ChatTokenizer, template: str) -> bool:
    """Return whether prompts and answers become turns of a conversation.

    Args:
        tokenizer: of the model. Where `template` is the name of one of its chat templates, that
            one becomes its default: all conversations are written with it from then on.
        template: `chat`, `plain`, `auto` for a chat where the tokenizer has a template, or the name
            of one of several templates.

    Raises:
        InputError: it is none of these.

    Example:
        >>> from types import SimpleNamespace
        >>> from jaxalign.data.chat_template import choose_template
        >>> tokenizer = SimpleNamespace(chat_template={"rag": "...", "tool_use": "..."})
        >>> choose_template(tokenizer, "rag"), sorted(tokenizer.chat_template)
        (True, ['default', 'rag', 'tool_use'])
    """
    if template in ("chat", "plain"):
        return template == "chat"
    found = tokenizer.chat_template
    if template == "auto":
        return bool(found)
    named = found if isinstance(found, dict) else {}
    if template not in named:
        raise InputError(
            f"template: found {template!r}, expected auto, chat or plain, or the name of one of "
            f"the tokenizer's chat templates ({', '.join(named) or 'they have no names'})."
        )
    tokenizer.chat_template = {**named, "default": named[template]}
    return True


def chosen_template(tokenizer: ChatTokenizer, template: str) -> str:
    """Return the chat template that texts are written with, empty where they are written plainly.

    Args:
        tokenizer: as in `choose_template`.
        template: as there.

    Raises:
        InputError: as `choose_template`.

    Example:
        >>> from types import SimpleNamespace
        >>> from jaxalign.data.chat_template import chosen_template
        >>> tokenizer = SimpleNamespace(chat_template="{{ messages }}")
        >>> chosen_template(tokenizer, "auto"), chosen_template(tokenizer, "plain")
        ('"{{ messages }}"', '')
    """
    return json.dumps(tokenizer.chat_template) if choose_template(tokenizer, template) else ""


def render_chat(
    tokenizer: ChatTokenizer, messages: Sequence[Message], where: str, answer_next: bool = False
) -> str:
    """Return a conversation as the tokenizer's chat template writes it.

    Args:
        tokenizer: of transformers.
        messages: the turns, with `role`, `content` and perhaps `reasoning_content`.
        where: what to call the conversation in messages, such as "chats.jsonl, line 3".
        answer_next: end where the assistant's next turn begins.

    Raises:
        InputError: there is no template, or several and none is chosen, or it refuses the turns.
    """
    template = tokenizer.chat_template
    if not template:
        raise InputError(
            f"{where}: the tokenizer has no chat template to write turns with; give plain text (a "
            "`prompt`, or `prompt` and `completion`), or a model with a template."
        )
    if isinstance(template, dict) and "default" not in template:
        raise InputError(
            f"{where}: the tokenizer has the chat templates {', '.join(template)} and none called "
            "default; name one with --chat-template (generate) or as `template` (configs of sft, "
            "moc and pplug), or copy it to chat_template.jinja in the model's folder."
        )
    try:
        return str(
            tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=answer_next,
            )
        )
    # A template is a program that came with the model: whatever it raises, it refuses these turns.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{where}: the chat template refuses these turns ({reason}); reorder or remove them."
        ) from error


def answer_turn(
    tokenizer: ChatTokenizer, messages: Sequence[Message], where: str
) -> tuple[str, str]:
    r"""Return the last turn as it is learned: the prompt for it, and what is to follow the prompt.

    The prompt is the one that generation gives. Templates of models that think may open a thought
    in it that the finished turn does not show; then the row's own thought is learned, or an empty
    one, up to the tag that closes it, and the answer behind it.

    Args:
        tokenizer: of transformers, with a chat template.
        messages: the turns, of which the last is the assistant's. Its thought is what stands
            before the closing tag in `content`, or else `reasoning_content`.
        where: what to call the conversation in messages.

    Raises:
        InputError: as `render_chat`, or the template writes the conversation otherwise before an
            answer than with it.

    Example:
        >>> from types import SimpleNamespace
        >>> from jaxalign.data.chat_template import answer_turn
        >>> def write(turns, tokenize, add_generation_prompt):
        ...     said = "".join(f"[{turn['role']}]{turn['content']}|" for turn in turns)
        ...     return said + "[assistant]<think>\n" * add_generation_prompt
        >>> tokenizer = SimpleNamespace(chat_template="...", apply_chat_template=write)
        >>> turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
        >>> answer_turn(tokenizer, turns, "a.jsonl, line 1")
        ('[user]Hi|[assistant]<think>\n', '\n</think>\n\nHello|')
    """
    prompt = render_chat(tokenizer, messages[:-1], where, answer_next=True)
    whole = render_chat(tokenizer, messages, where)
    if whole.startswith(prompt):
        return prompt, whole[len(prompt) :]
    start = _content_start(tokenizer, messages, where)
    if not prompt.startswith(whole[:start]):
        raise InputError(
            f"{where}: the chat template writes these turns otherwise once they are answered, so "
            "that the answer cannot be learned as it will be generated; set `template` to plain, "
            "or use another template."
        )
    tag, shown = _LAST_TAG.search(prompt[start:]), whole[start:].lstrip("\n")
    if tag is None or tag[1]:
        return prompt, shown
    opening, closing = f"<{tag[2]}>", f"</{tag[2]}>"
    said, closed, _ = messages[-1]["content"].rpartition(closing)
    thought = said if closed else messages[-1].get("reasoning_content", "")
    thought = thought.strip().removeprefix(opening).strip()
    answer = shown.rpartition(closing)[2].lstrip("\n")
    begun = "" if prompt.endswith("\n") else "\n"
    return prompt, f"{begun}{thought}\n{closing}\n\n{answer}"


def _content_start(tokenizer: ChatTokenizer, messages: Sequence[Message], where: str) -> int:
    """Return where the text of the last turn begins, in the conversation as it is written."""
    one, other = (
        render_chat(tokenizer, [*messages[:-1], {**messages[-1], "content": text}], where)
        for text in ("a", "b")
    )
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (left, right) in pairs if left != right), len(one))
