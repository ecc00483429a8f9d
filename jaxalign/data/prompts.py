"""Prompts to answer: from files and data sets, each text once, split into two parts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from jaxalign.config_fields import checks_fields
from jaxalign.data.bad_rows import BadRows, OnBadRow, checked_rows
from jaxalign.data.chat_template import Message
from jaxalign.data.messages import check_messages, is_messages
from jaxalign.data.splits import hold_out_rows
from jaxalign.data.tables import Row
from jaxalign.data.values import RowError, short
from jaxalign.errors import InputError
from jaxalign.progress import counted

Prompt = str | Sequence[Message]

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
SUMMARISE = (
    "### Instruction: Generate a one-sentence summary of this post. ### Input: {} ### Response: "
)
_POST = (100, 1200)  # characters of a post, exclusive, as the literature has it


@dataclass(frozen=True)
@checks_fields
class PromptConfig:
    """Which prompts of a source are used, and how they are put to a model.

    Attributes:
        template: `chat` renders each prompt as turns of a conversation; `plain` takes it as text;
            `auto` chooses `chat` if the tokenizer has a chat template; the name of one of the
            tokenizer's several chat templates renders with that one.
        min_tokens: fewest tokens of a prompt, at least 1; shorter ones are left out.
        limit: most prompts, at least 1, drawn at random; null takes all.
        hold_out_share: share of the prompts, in [0, 1), that is held out for evaluation.
        on_bad_row: `refuse` a file with a row that cannot be used, or `drop` such rows, say how
            many and why, and go on; a file most of whose rows are bad is refused all the same.

    Example:
        >>> from jaxalign.data.prompts import PromptConfig
        >>> PromptConfig(limit=1000).hold_out_share
        0.1
    """

    template: str = "auto"
    min_tokens: int = 1
    limit: int | None = None
    hold_out_share: float = 0.1
    on_bad_row: OnBadRow = "refuse"

    def __post_init__(self) -> None:
        if self.min_tokens < 1 or not 0 <= self.hold_out_share < 1:
            raise InputError(
                f"min_tokens is {self.min_tokens} and hold_out_share {self.hold_out_share}; "
                "expected at least 1 and a share in [0, 1)."
            )
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit is {self.limit}; expected at least 1, or null for all.")


@dataclass(frozen=True)
class Prompts:
    """Distinct prompts.

    Attributes:
        prompts: X of them: texts, or chats of {"role", "content"} that end with the user.
        repeated: rows of the source that held a prompt once more.
        dropped: rows of the source that hold no usable prompt, of its own rules or by length.
        source: what they were read from.
        places: [X] where each stands in the source, for messages; empty where that is not known.
        off_length: what was left out by length, a sentence each with its place.
        notes: what was left out as unusable, and why.
    """

    prompts: tuple[Prompt, ...]
    repeated: int = 0
    dropped: int = 0
    source: str = "memory"
    places: tuple[str, ...] = ()
    off_length: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, rows: Sequence[int] | np.ndarray) -> "Prompts":
        """Some of them ([M] int), in that order."""
        places = tuple(self.places[int(row)] for row in rows) if self.places else ()
        return replace(self, prompts=tuple(self.prompts[int(row)] for row in rows), places=places)


def load_prompts(source: str | Path, on_bad_row: OnBadRow = "refuse") -> Prompts:
    """Read prompts from a file or a Hugging Face data set.

    Args:
        source: a file or data set as `jaxalign.data.tables.read_rows` takes it; a .txt file has a
            prompt per line. The columns of the first row decide: `prompt`, a text; or `messages`, a
            conversation, of which turns of the assistant at the end are left off; or `chosen`, a
            dialogue "Human: .. Assistant: .." such as Anthropic/hh-rlhf holds, of which the last
            answer is left off; or `info` with a `post` to summarise, as
            openai/summarize_from_feedback/comparisons has it.
        on_bad_row: `refuse` a file with a row that cannot be used, or `drop` such rows and count
            them in `notes`; a file most of whose rows are bad is refused all the same.

    Returns:
        The distinct prompts, in the order of the source.

    Raises:
        InputError: the source cannot be read, has none of these columns, a row cannot be used, or
            nothing is left.

    Source: the two data sets become prompts as in the code of Yang et al. 2024
        (Rewards-in-Context), https://arxiv.org/abs/2402.10207.
    """
    bad = BadRows(on_bad_row, source)
    found = _read(source, bad)
    notes = bad.notes(len(found))
    kept: dict[str | _Turns, str] = {}
    for where, prompt in found:
        if prompt is not None:
            kept.setdefault(prompt, where)
    if not kept:
        raise InputError(f"{source}: no row holds a usable prompt, expected at least one.")
    dropped = sum(prompt is None for _, prompt in found)
    prompts = tuple(_thawed(prompt) for prompt in kept)
    repeated = len(found) - dropped - len(kept)
    dropped += bad.count
    return Prompts(prompts, repeated, dropped, str(source), tuple(kept.values()), notes=notes)


def as_chats(prompts: Prompts) -> Prompts:
    """Texts made conversations: dialogues turn by turn, others as one turn of the user."""
    return replace(prompts, prompts=tuple(as_chat(prompt) for prompt in prompts.prompts))


def as_chat(prompt: Prompt) -> Prompt:
    """Return the turns of a prompt; a dialogue as text is cut at its marks."""
    if not isinstance(prompt, str):
        return prompt
    if not prompt.startswith(HUMAN):
        return ({"role": "user", "content": prompt},)
    turns: list[tuple[str, str]] = []
    for piece in prompt.split(HUMAN)[1:]:
        question, *answers = piece.split(ASSISTANT)
        turns += [("user", question.strip()), *(("assistant", text.strip()) for text in answers)]
    while turns[-1][0] == "assistant":
        turns.pop()
    return _thawed(tuple(turns))


def filter_prompts(
    prompts: Prompts,
    count: Callable[[Prompt], int],
    most: int,
    config: PromptConfig | None = None,
    seed: int = 0,
    *,
    remedy: str = "give shorter prompts",
) -> Prompts:
    """Those whose length is allowed, at most `limit` of them.

    Args:
        prompts: X of them.
        count: tokens of a prompt as the model sees it, however long it is.
        most: tokens of a prompt.
        config: the other limits.
        seed: of the order in which they are drawn where there is a limit.
        remedy: what to do where prompts are too long, for messages.

    Returns:
        The prompts, in their own order; the others are counted and named in `off_length`.

    Raises:
        InputError: none is left.
    """
    config = config or PromptConfig()
    order = np.arange(len(prompts))
    if config.limit is not None:
        order = _shuffled(len(prompts), seed, 1)
    kept: list[int] = []
    off: list[int] = []
    off_length: list[str] = []
    for row in order:
        if config.limit is not None and len(kept) == config.limit:
            break
        length = count(prompts.prompts[row])
        if config.min_tokens <= length <= most:
            kept.append(int(row))
        else:
            place = prompts.places[row] if prompts.places else f"prompt {row + 1}"
            off.append(length)
            off_length.append(f"{place}: {length:,} tokens")
    if not kept:
        todo = [remedy] if max(off) > most else []
        todo += ["lower prompts.min_tokens"] if min(off) < config.min_tokens else []
        raise InputError(
            f"{prompts.source}: found {counted(len(prompts), 'prompt')} of {min(off):,} to "
            f"{max(off):,} tokens as the model reads them, expected {config.min_tokens:,} to "
            f"{most:,}; {', or '.join(todo)}."
        )
    return replace(
        prompts.take(sorted(kept)),
        dropped=prompts.dropped + len(off_length),
        off_length=tuple(off_length),
    )


def split_prompts(prompts: Prompts, share: float, seed: int = 0) -> tuple[Prompts, Prompts]:
    """Prompts to train on and prompts to judge on.

    Args:
        prompts: X of them.
        share: of the second part, at least one prompt unless it is 0.
        seed: of the draw.

    Returns:
        The two parts, each in its own order.

    Raises:
        InputError: there are too few for two parts.

    Example:
        >>> from jaxalign.data.prompts import Prompts, split_prompts
        >>> train, held_out = split_prompts(Prompts(("a", "b", "c", "d")), share=0.25)
        >>> len(train), len(held_out)
        (3, 1)
    """
    if not share:
        return prompts, prompts.take([])
    if len(prompts) < 2:
        raise InputError(
            f"{prompts.source} has one prompt, of which none can be held out; give more, or set "
            "hold_out_share to 0."
        )
    rows, held = hold_out_rows(len(prompts), share, seed, stream=2)
    return prompts.take(rows), prompts.take(held)


def _shuffled(count: int, seed: int, stream: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64([seed, stream])).permutation(count)


# Rows. A conversation is a tuple of pairs until repetitions are left out.

_Turns = tuple[tuple[str, str], ...]


def _read(source: str | Path, bad: BadRows) -> list[tuple[str, str | _Turns | None]]:
    """Where each row stands, and its prompt or None; the columns of the first row decide."""
    readers: dict[str, Callable[[Row], str | _Turns | None]] = {
        "prompt": _prompt,
        "messages": lambda row: _turns(row, "messages"),
        "chosen": _dialogue,
        "info": _post,
    }
    reader: list[Callable[[Row], str | _Turns | None]] = []

    def read(row: Row) -> str | _Turns | None:
        reader.extend(readers[name] for name in readers if name in row.values and not reader)
        if not reader:
            raise InputError(
                f"{row.where}: found no column of prompts, expected `prompt` or `messages` (or "
                "`chosen` dialogues, or `info` with posts to summarise); rename or add."
            )
        return reader[0](row)

    return [(row.where, found) for row, found in checked_rows(source, read, bad, "prompt")]


def _turns(row: Row, name: str) -> _Turns:
    """A conversation up to its last turn of the user."""
    turns = list(check_messages(row.values.get(name), name, row.where))
    while turns and turns[-1]["role"] == "assistant":
        turns.pop()
    if not turns or turns[-1]["role"] != "user" or not turns[-1]["content"].strip():
        raise RowError(
            f"{row.where}: `{name}` holds no turn of the user to answer; add one, or remove the "
            "row.",
            f"`{name}` holds no turn of the user to answer",
        )
    return tuple((turn["role"], turn["content"]) for turn in turns)


def _prompt(row: Row) -> str | _Turns:
    if isinstance(row.values.get("prompt"), list | tuple):
        return _turns(row, "prompt")
    return row.text("prompt")


def _dialogue(row: Row) -> str | _Turns | None:
    """All before the last answer; None where nobody says anything before it."""
    if is_messages(row.values.get("chosen")):
        return _turns(row, "chosen")
    dialogue, answered, _ = row.text("chosen").rpartition(ASSISTANT)
    if not answered:
        raise RowError(
            f"{row.where}: `chosen` has no `Assistant:` after a blank line, expected a dialogue; "
            "give `prompt` instead.",
            "`chosen` is no dialogue",
        )
    said = dialogue.partition(HUMAN)[2].strip()
    return f"{dialogue} {ASSISTANT}" if said else None


def _post(row: Row) -> str | None:
    """An instruction to summarise; None for rows without a post, or one of unusual length."""
    value = row.values.get("info")
    if not isinstance(value, Mapping):
        raise RowError(
            f"{row.where}: `info` is {short(value)}, expected an object with `post`; correct the "
            "row.",
            "`info` is no object",
        )
    post = value.get("post")
    usable = isinstance(post, str) and _POST[0] < len(post) < _POST[1]
    return SUMMARISE.format(post.replace("\n", " ")) if usable and post is not None else None


def _thawed(prompt: str | _Turns) -> Prompt:
    if isinstance(prompt, str):
        return prompt
    return tuple({"role": role, "content": content} for role, content in prompt)
