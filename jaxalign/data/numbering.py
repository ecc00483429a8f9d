"""Checked choices as texts become numbered tables, a block of rows at a time."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa

from jaxalign.data.columns import Origin
from jaxalign.data.messages import Conversation, as_messages
from jaxalign.data.preferences import Preferences
from jaxalign.data.ratings import Details, joined_details


@dataclass(frozen=True)
class ChoiceColumns:
    """Choices whose values are checked, as texts.

    Attributes:
        user: [N].
        chosen: [N].
        rejected: [N].
        prompt: [N], null where a row has none; None where there is no such column.
        group: [N], as `prompt`.
        tie: [N] bool.
        details: what the rows say beyond that; None where they are plain choices.
        talks: those of the texts that know their turns, by their text.
        origin: where the rows came from.
    """

    user: pa.LargeStringArray
    chosen: pa.LargeStringArray
    rejected: pa.LargeStringArray
    prompt: pa.LargeStringArray | None
    group: pa.LargeStringArray | None
    tie: np.ndarray
    details: Details | None
    talks: Mapping[str, Conversation]
    origin: Origin

    def __len__(self) -> int:
        return len(self.user)


def number_choices(columns: ChoiceColumns) -> Preferences:
    """Return the table of checked choices, without notes; see `from_columns`."""
    numbers = ChoiceNumbers()
    numbers.add(columns)
    return numbers.table()


class ChoiceNumbers:
    """Blocks of checked choices, numbered as one table; the blocks themselves are not kept.

    Example:
        >>> from jaxalign.data.columns import Origin
        >>> from jaxalign.data.files import check_columns
        >>> from jaxalign.data.numbering import ChoiceNumbers
        >>> numbers = ChoiceNumbers()
        >>> for chosen, rejected in (("a", "b"), ("c", "a")):
        ...     columns = {"user": ["ann"], "chosen": [chosen], "rejected": [rejected]}
        ...     numbers.add(check_columns(columns, Origin("memory")))
        >>> table = numbers.table()
        >>> table.items, table.chosen.tolist(), table.rejected.tolist()
        (('a', 'b', 'c'), [0, 2], [1, 0])
    """

    def __init__(self) -> None:
        self._users, self._prompts, self._answers, self._groups = (_Texts() for _ in range(4))
        self._codes: list[np.ndarray] = []
        self._ties: list[np.ndarray] = []
        self._details: list[Details | None] = []
        self._origins: list[tuple[Origin, int]] = []
        self._talks: dict[str, Conversation] = {}

    def add(self, block: ChoiceColumns) -> None:
        """Number the rows of a block behind those before."""
        columns = (
            (self._users, block.user), (self._prompts, block.prompt), (self._groups, block.group),
            (self._answers, block.chosen), (self._answers, block.rejected),
        )  # fmt: skip
        count = len(block)
        self._codes.append(np.stack([texts.codes(column, count) for texts, column in columns]))
        self._ties.append(block.tie)
        self._details.append(block.details)
        self._origins.append((block.origin, count))
        self._talks |= block.talks

    def table(self) -> Preferences:
        """Return the table of all blocks, without notes."""
        user, prompt, group, *answer = np.concatenate(self._codes, axis=1)
        sides, items, texts = self._items(prompt, np.stack(answer))
        lone, groups = -1 - np.arange(len(user)), np.int64(len(self._groups.number))
        whole, _ = encode_numbers(np.where(group < 0, lone, user * groups + group))
        details, scales = joined_details(self._details, [count for _, count in self._origins])
        return Preferences(
            tuple(self._users.number), items, texts, user, sides[0], sides[1], whole, prompt,
            np.concatenate(self._ties), source=self._origins[0][0].source, details=details,
            scales=scales,
        )  # fmt: skip

    @property
    def rows(self) -> int:
        """Number of rows so far."""
        return sum(count for _, count in self._origins)

    @property
    def origin(self) -> Origin:
        """Where the rows of all blocks came from."""
        first = self._origins[0][0]
        if len(self._origins) == 1 or all(origin.lines is None for origin, _ in self._origins):
            return first
        lines = [
            np.arange(origin.start + 1, origin.start + 1 + count)
            if origin.lines is None
            else np.asarray(origin.lines)
            for origin, count in self._origins
        ]
        units = {origin.unit for origin, _ in self._origins if origin.lines is not None}
        return replace(first, lines=np.concatenate(lines), start=0, unit=min(units))

    def _items(
        self, prompt: np.ndarray, answer: np.ndarray
    ) -> tuple[list[np.ndarray], tuple[str, ...], tuple[str, ...]]:
        """Items of both sides [N] by number, the key of each item, and its text."""
        prompts, answers = tuple(self._prompts.number), tuple(self._answers.number)
        # Row by row, so that items are numbered in the order in which a reader meets them.
        key = ((prompt.astype(np.int64) + 1) * len(answers) + answer).T.ravel()
        item, keys = encode_numbers(key)
        under, text = np.divmod(keys, len(answers))
        items, talks = tuple(answers[i] for i in text), self._talks
        join = partial(_joined, talks) if talks else Conversation
        texts = tuple(
            join((prompts[p - 1], key)) if p else talks.get(key, key)
            for p, key in zip(under, items, strict=True)
        )
        return [np.ascontiguousarray(item[side::2]) for side in (0, 1)], items, texts


class _Texts:
    """Distinct texts, numbered in the order in which they first appear."""

    def __init__(self) -> None:
        self.number: dict[str, int] = {}

    def codes(self, column: pa.LargeStringArray | None, count: int) -> np.ndarray:
        """Numbers [count] int32 of a column of texts, -1 for null or where there is no column."""
        if column is None:
            return np.full(count, -1, np.int32)
        coded = column.dictionary_encode()
        number, texts = self.number, coded.dictionary.to_pylist()
        known = [number.setdefault(text, len(number)) for text in texts]
        # The last one is that of null.
        table = np.array([*known, -1], np.int32)
        return np.asarray(table[coded.indices.fill_null(-1).to_numpy()])


def encode_numbers(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return whole numbers [N] by the order in which they first appear, and the distinct ones."""
    coded = pa.array(values).dictionary_encode()
    return coded.indices.to_numpy().astype(np.int32), coded.dictionary.to_numpy()


def _joined(talks: Mapping[str, Conversation], texts: tuple[str, str]) -> Conversation:
    """A prompt and an answer to it."""
    prompt, answer = texts
    if prompt not in talks and answer not in talks:
        return Conversation((prompt, answer))
    turns = (
        *as_messages(talks.get(prompt, prompt), "user"),
        *as_messages(talks.get(answer, answer), "assistant"),
    )
    roles, contents = zip(*((turn["role"], turn["content"]) for turn in turns), strict=True)
    return Conversation(contents, roles)
