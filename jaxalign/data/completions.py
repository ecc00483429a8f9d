"""Texts to imitate: prompts with completions, or conversations, as tokens of which some count."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from jaxalign.config_fields import checks_fields
from jaxalign.data.bad_rows import BadRows, OnBadRow, checked_table
from jaxalign.data.chat_template import (
    ChatTokenizer,
    Message,
    answer_turn,
    choose_template,
)
from jaxalign.data.columns import Origin, as_list
from jaxalign.data.messages import as_messages, check_messages, has_messages, is_messages
from jaxalign.data.sequences import Sequences
from jaxalign.data.tables import read_table
from jaxalign.data.values import RowError, check_text
from jaxalign.errors import InputError

_COLUMNS = ("prompt", "completion", "messages")
Segments = list[tuple[str, bool]]  # pieces of one text, and whether they are learned


@dataclass(frozen=True)
@checks_fields
class CompletionConfig:
    """How texts become tokens.

    Attributes:
        max_tokens: most tokens of a row, prompt included, at least 2. Memory grows with it.
        overlong: what happens to longer rows: `truncate` cuts off their end, and leaves out those
            whose prompt alone is longer; `refuse` stops with an error.
        turns: the turns of a conversation that are learned: the assistant's `last` turn, or `all`
            its turns, which make one row, or a row each where the chat template writes a turn
            differently once the conversation goes on.
        template: `chat` renders prompt and completion as turns of the user and the assistant;
            `plain` joins them as they are and appends the end-of-text token; `auto` chooses `chat`
            if the tokenizer has a chat template; the name of one of the tokenizer's several chat
            templates renders with that one.
        on_bad_row: `refuse` a file with a row that cannot be used, or `drop` such rows, say how
            many and why, and go on; a file most of whose rows are bad is refused all the same.

    Example:
        >>> from jaxalign.data.completions import CompletionConfig
        >>> CompletionConfig(max_tokens=512).overlong
        'truncate'
    """

    max_tokens: int = 1024
    overlong: Literal["truncate", "refuse"] = "truncate"
    turns: Literal["last", "all"] = "last"
    template: str = "auto"
    on_bad_row: OnBadRow = "refuse"

    def __post_init__(self) -> None:
        if self.max_tokens < 2:
            raise InputError(f"max_tokens is {self.max_tokens}; expected at least 2.")


@dataclass(frozen=True)
class Completions:
    """Rows to learn from.

    Attributes:
        sequences: tokens of each row.
        learned: [sum of lengths] bool beside `sequences.tokens`: which tokens the loss is on.
        truncated: rows whose end was cut off.
        dropped: rows left out, as unusable or since nothing to learn was left of them.
        source: what they were read from.
        notes: what was left out as unusable, and why.
    """

    sequences: Sequences
    learned: np.ndarray
    truncated: int = 0
    dropped: int = 0
    source: str = "memory"
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.sequences)

    def take(self, rows: np.ndarray) -> "Completions":
        """Some of the rows ([M] int), in that order."""
        whole = self.sequences
        parts = [np.arange(whole.starts[row], whole.starts[row + 1]) for row in rows]
        place = np.concatenate([np.zeros(0, np.int64), *parts])
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(whole.lengths[rows])])
        return Completions(
            Sequences(whole.tokens[place], starts), self.learned[place], source=self.source
        )


def load_completions(
    source: str | Path, tokenizer: ChatTokenizer, config: CompletionConfig | None = None
) -> Completions:
    """Read completions from a file or a Hugging Face data set.

    Args:
        source: a file or data set as `jaxalign.data.tables.read_rows` takes it. Columns: `prompt`
            and `completion`, texts or lists of messages; or `messages`, a list of {"role",
            "content"} that ends with the assistant.
        tokenizer: of `transformers`, with a chat template where turns are to be rendered.
        config: limits and choices.

    Returns:
        The rows, in the order of the source.

    Raises:
        InputError: the source cannot be read, a row cannot be used, is over-long where that is
            refused, or nothing is left.
    """
    config = config or CompletionConfig()
    bad = BadRows(config.on_bad_row, source)
    if config.on_bad_row == "drop":
        table = checked_table(source, _COLUMNS, lambda row: row, bad)
    else:
        table = read_table(source, _COLUMNS)
    columns = {name: as_list(values) for name, values in table.columns.items() if name in _COLUMNS}
    return completions_from_columns(columns, tokenizer, config, table.origin, bad)


def completions_from_columns(
    columns: Mapping[str, Sequence[object]],
    tokenizer: ChatTokenizer,
    config: CompletionConfig,
    origin: Origin | None = None,
    bad: BadRows | None = None,
) -> Completions:
    """`load_completions`, from columns of equal length that are already in memory."""
    origin = origin or Origin("memory")
    bad = bad or BadRows("refuse", origin.source)
    chat = choose_template(tokenizer, config.template)
    plain = not (chat or any(map(has_messages, columns.values())) or "messages" in columns)
    segment = _segmenter(columns, tokenizer, config, origin, plain)
    texts: list[Segments] = []
    origins: list[int] = []
    for row in range(len(next(iter(columns.values())))):
        try:
            texts += (found := segment(row))
        except RowError as error:
            bad.add(error)
        else:
            origins += [row] * len(found)
    notes = bad.notes(len(origins))
    tokens, learned = _tokenise(texts, tokenizer, plain)
    lengths = np.array([len(row) for row in tokens])
    limit = config.max_tokens
    overlong = np.flatnonzero(lengths > limit)
    if overlong.size and config.overlong == "refuse":
        raise InputError(
            f"{origin.at(origins[overlong[0]])}: the row has {lengths[overlong[0]]} tokens (and "
            f"{overlong.size - 1} more rows are as long), expected at most {limit}; raise "
            "data.max_tokens, shorten the rows or set data.overlong to truncate."
        )
    # The first token has nothing before it to be predicted from.
    keep = [row for row in range(len(texts)) if any(learned[row][1:limit])]
    if not keep:
        raise InputError(
            f"{origin.source}: no row has a completion within {limit} tokens; raise "
            "data.max_tokens."
        )
    kept = set(keep)
    return Completions(
        Sequences.of([tokens[row][:limit] for row in keep]),
        np.concatenate([np.asarray(learned[row][:limit], bool) for row in keep]),
        truncated=sum(int(row) in kept for row in overlong),
        dropped=len(texts) - len(keep) + bad.count,
        source=origin.source,
        notes=notes,
    )


def _segmenter(
    columns: Mapping[str, Sequence[object]],
    tokenizer: ChatTokenizer,
    config: CompletionConfig,
    origin: Origin,
    plain: bool,
) -> Callable[[int], list[Segments]]:
    """What cuts one row of the source into rows of learned and other pieces of text."""
    if "messages" in columns:
        if "completion" in columns:
            raise InputError(
                f"{origin.source} has `messages` and `completion`, expected one of the two: remove "
                "a column."
            )
        names = ["messages"]
    else:
        names = ["prompt", "completion"]
    if missing := [name for name in names if name not in columns]:
        raise InputError(
            f"{origin.source} has no column `{missing[0]}`, expected `prompt` and `completion`, or "
            "`messages`; rename or add."
        )

    def segment(row: int) -> list[Segments]:
        where, values = origin.at(row), [columns[name][row] for name in names]
        if not plain:
            return _conversation(_talk(values, names, where), tokenizer, config, where)
        prompt = check_text(values[0], "prompt", where, blank=True)
        return [[(prompt, False), (check_text(values[1], "completion", where), True)]]

    return segment


def _conversation(
    messages: Sequence[Message],
    tokenizer: ChatTokenizer,
    config: CompletionConfig,
    where: str,
) -> list[Segments]:
    """Pieces of a conversation, cut where a generated turn begins and ends.

    All learned turns make one row where each prompt goes on from the turn before it, as it has been
    written. A template that writes earlier turns otherwise, such as without their thoughts, makes
    a row of each.
    """
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    rows: list[Segments] = []
    for turn in turns if config.turns == "all" else turns[-1:]:
        prompt, answer = answer_turn(tokenizer, messages[: turn + 1], where)
        before = "".join(piece for piece, _ in rows[-1]) if rows else None
        if before is not None and prompt.startswith(before):
            rows[-1] += [(prompt[len(before) :], False), (answer, True)]
        else:
            rows.append([(prompt, False), (answer, True)])
    return rows


def _talk(values: Sequence[object], names: Sequence[str], where: str) -> tuple[Message, ...]:
    """The conversation of a row, of `messages` or of `prompt` and `completion`."""
    turns: tuple[Message, ...] = ()
    for name, value in zip(names, values, strict=True):
        if is_messages(value) or name == "messages":
            turns += check_messages(value, name, where)
        else:
            role = "user" if name == "prompt" else "assistant"
            turns += as_messages(check_text(value, name, where), role)
    if turns[-1]["role"] != "assistant":
        raise RowError(
            f"{where}: the last of `{names[-1]}` is of the {turns[-1]['role']}, expected the "
            "assistant; remove what follows its last turn.",
            f"the last of `{names[-1]}` is not of the assistant",
        )
    return turns


def _tokenise(
    texts: list[Segments], tokenizer: ChatTokenizer, plain: bool
) -> tuple[list[list[int]], list[list[bool]]]:
    """Tokens of each row and which are learned.

    A prompt has the tokens it has in generation, where nothing follows it yet, and each piece those
    of `_joined_ids` behind the piece before it. A chat holds its special tokens as text; a plain
    prompt begins as the tokenizer begins a text, and a plain completion ends with the end of text.
    A plain prompt without tokens becomes the token that generation begins it with.
    """
    ids = iter(_joined_ids(texts, tokenizer))
    firsts = iter(_ids([row[0][0] for row in texts], tokenizer, special=True) if plain else [])
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    begin = end if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    tokens: list[list[int]] = []
    learned: list[list[bool]] = []
    for row in texts:
        pieces = [next(ids) for _ in row]
        if plain:
            pieces = [next(firsts) or begin, [*pieces[1], *end]]
        tokens.append([token for piece in pieces for token in piece])
        learned.append([flag for piece, (_, flag) in zip(pieces, row, strict=True) for _ in piece])
    return tokens, learned


def _joined_ids(texts: list[Segments], tokenizer: ChatTokenizer) -> list[list[int]]:
    """Tokens of every piece of every row, without those that a tokenizer adds around a text.

    A piece is read together with the piece before it, and has the tokens that come behind those of
    the piece before it: a tokenizer that writes a space before every text, as those of Llama 2 and
    Mistral do, writes none in the middle of one. Where the two texts together do not begin with
    the tokens of the first, because the tokenizer merges over the border, a piece has the tokens
    it has alone.
    """
    alone = iter(_ids([piece for row in texts for piece, _ in row], tokenizer, special=False))
    pairs = [first + second for row in texts for (first, _), (second, _) in pairwise(row)]
    joined = iter(_ids(pairs, tokenizer, special=False))
    found: list[list[int]] = []
    for row in texts:
        own = [next(alone) for _ in row]
        found.append(own[0])
        for before, piece in pairwise(own):
            both = next(joined)
            fits = both[: len(before)] == before
            found.append(both[len(before) :] if fits else piece)
    return found


def _ids(texts: list[str], tokenizer: ChatTokenizer, special: bool) -> list[list[int]]:
    found: list[list[int]] = tokenizer(texts, add_special_tokens=special)["input_ids"]
    return found
