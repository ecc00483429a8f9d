"""Questions of users with what the users wrote before: items once, histories by index."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from jaxalign.data import lamp
from jaxalign.data.choices import flat_choice
from jaxalign.data.dates import date_key
from jaxalign.data.tables import read_rows
from jaxalign.data.values import check_text, field_identifier, field_text, short
from jaxalign.errors import InputError


@dataclass(frozen=True)
class Item:
    """One thing that somebody wrote.

    Attributes:
        id: of the file, or a digest of the content.
        fields: the texts of the task, such as title and abstract.
        date: as the file has it, or None.
    """

    id: str
    fields: Mapping[str, str]
    date: str | None = None


@dataclass(frozen=True)
class Sample:
    """One question of one user.

    Attributes:
        id: of the question, unique.
        user: whose question it is.
        input: the question.
        output: the right answer, or None where it is not known.
        profile: places in `Histories.items` of what the user wrote before, oldest first.
        category: of the question, such as a section of a newspaper, or None.
        date: of the question, or None.
    """

    id: str
    user: str
    input: str
    output: str | None
    profile: tuple[int, ...]
    category: str | None = None
    date: str | None = None


@dataclass(frozen=True)
class Histories:
    """Questions of one task.

    Attributes:
        samples: N of them.
        items: each once, however many histories hold it.
        task: a name in `jaxalign.data.lamp.TASKS`.
        source: what they were read from.
        notes: what reading changed, a sentence each.
        own_task: the task, where it is none of `jaxalign.data.lamp.TASKS`.
    """

    samples: tuple[Sample, ...]
    items: tuple[Item, ...]
    task: str
    source: str = "memory"
    notes: tuple[str, ...] = ()
    own_task: lamp.Task | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def take(self, rows: Iterable[int] | np.ndarray) -> "Histories":
        """Some of the samples ([M] int), in that order; items stay where they are."""
        return replace(self, samples=tuple(self.samples[int(row)] for row in rows))

    def with_profiles(self, profiles: Sequence[Sequence[int]]) -> "Histories":
        """The same questions with other histories, one a sample."""
        pairs = zip(self.samples, profiles, strict=True)
        return replace(
            self, samples=tuple(replace(one, profile=tuple(profile)) for one, profile in pairs)
        )

    @property
    def rules(self) -> lamp.Task:
        """The task."""
        return self.own_task or lamp.task(self.task)

    @property
    def lengths(self) -> np.ndarray:
        """Items in the history of each sample, [N] int64."""
        return np.array([len(sample.profile) for sample in self.samples], np.int64)

    @property
    def users(self) -> tuple[str, ...]:
        """User of each sample, N of them."""
        return tuple(sample.user for sample in self.samples)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Right answer of each sample, N of them.

        Raises:
            InputError: one is not known.
        """
        known = tuple(sample.output for sample in self.samples if sample.output is not None)
        if len(known) < len(self):
            lacking = next(sample.id for sample in self.samples if sample.output is None)
            raise InputError(
                f"{self.source}: question {lacking!r} has no answer, and neither have "
                f"{len(self) - len(known) - 1} others; give the file of outputs."
            )
        return known

    @property
    def label_numbers(self) -> np.ndarray:
        """Number of each right answer among the labels of the task, [N] int32.

        Raises:
            InputError: an answer is not known, or is none of the labels.
        """
        rules = self.rules
        place = {label: number for number, label in enumerate(rules.labels)}
        for sample, output in zip(self.samples, self.outputs, strict=True):
            if output.strip() not in place:
                raise InputError(
                    f"{self.source}: question {sample.id!r} has the answer {output!r}, which is "
                    f"none of the labels of the task {rules.name}, {', '.join(rules.labels)}: "
                    "correct the answer or the task."
                )
        return np.array([place[output.strip()] for output in self.outputs], np.int32)

    def item_texts(self, labels: bool = False, template: str = "") -> list[str]:
        """What the history encoder reads of each item; see `lamp.item_text`.

        Raises:
            InputError: the template names a field that the task's items lack.
        """
        rules = self.rules
        own = (*rules.fields, *(() if rules.label is None else (rules.label,)), "verdict")
        lamp.check_template(template, own, "text.item")
        return [lamp.item_text(rules, item.fields, labels, template) for item in self.items]

    def query_texts(self, prefix: str = lamp.QUERY_PREFIX) -> list[str]:
        """What the input encoder reads of each question; see `lamp.query_text`."""
        return [lamp.query_text(self.rules, sample.input, prefix) for sample in self.samples]


def load_lamp(
    questions: str | Path, outputs: str | Path | None = None, task: str | None = None
) -> Histories:
    """Read one of LaMP's pairs of files, of the user split or the time split.

    Histories with dates are put in order, oldest first, ties as in the file; the official files
    have them in random order. The files name no users: every question is a user of its own unless
    it has a field `user`.

    Args:
        questions: JSON (.gz too), `[{"id", "input", "profile": [item]}]`; items have an `id`, the
            task's fields and, in the time split, a `date`.
        outputs: JSON, `{"task": "LaMP_4", "golds": [{"id", "output"}]}`, joined by id; None for
            questions alone.
        task: `LaMP_1` to `LaMP_7`; None takes it from the outputs.

    Returns:
        The questions in the order of their file.

    Raises:
        InputError: a file cannot be read, ids repeat or do not join, the task does not fit, an
            item lacks a field or a date that others have, or a date cannot be read.
    """
    answers: dict[str, str] | None = None
    if outputs is not None:
        found, answers = lamp.read_answers(outputs)
        if task is not None and lamp.task(task).name != found:
            raise InputError(f"{outputs} answers {found}, expected {task}; check files and task.")
        task = found
    if task is None:
        raise InputError(
            f"{questions} names no task; give the file of outputs too, or the task, such as LaMP_4."
        )
    table = _Table(lamp.task(task), str(questions))
    for row in read_rows(Path(questions)):
        where, name = row.where, row.identifier("id")
        if answers is not None and name not in answers:
            raise InputError(
                f"{where}: id {name!r} has no answer in {outputs}, expected one for every "
                "question; check that the two files belong together."
            )
        table.add(row.values, name, where, None if answers is None else answers[name], "profile")
    if spare := [name for name in answers or () if name not in table.ids]:
        raise InputError(
            f"{outputs} answers id {spare[0]!r}, which is no question in {questions} ({len(spare)} "
            f"such ids), expected the same ids in both; check that the two files belong together."
        )
    return table.histories()


def load_histories(path: str | Path, task: str | lamp.Task = "text") -> Histories:
    """Read a history file: JSON lines, one question a line.

    Args:
        path: ending in .jsonl or .json (.gz too). A line has `user`, `input`, `history` and
            optionally `output`, `id`, `category` and `date`. An item of `history` is a text, or an
            object with the task's fields and optionally `id`, `date` and `category`; items with
            dates are put in order, oldest first. A row of a preference file, with `chosen` and
            `rejected`, becomes two items, see `in_words`.
        task: what the questions are; `text` asks for items with a `text` and takes any input.

    Returns:
        The questions in the order of the file; without an `id` one is named by its line.

    Raises:
        InputError: the file cannot be read, a line or item lacks a field, ids repeat, dates cannot
            be read, are there for some items of a history only, or lie after the question's.
    """
    table = _Table(lamp.task(task), str(path))
    for row in read_rows(Path(path)):
        name = row.identifier("id") if row.has("id") else str(row.place)
        output = None
        if row.has("output"):
            output = field_text(row.values, "output", row.where, numbers=True)
        row.identifier("user")
        table.add(row.values, name, row.where, output, "history")
    return table.histories()


def leading_category(histories: Histories, sample: Sample) -> str | None:
    """The commonest category of a history, the latest of those that tie; None where none has one.

    Args:
        histories: which hold the items.
        sample: whose history it is.
    """
    categories = [
        histories.items[place].fields.get("category") for place in reversed(sample.profile)
    ]
    counts = Counter(category for category in categories if category)
    return counts.most_common(1)[0][0] if counts else None


_User = TypeVar("_User")


def cut_into_parts(
    order: Sequence[_User], test_share: float, validation_share: float, found: str
) -> dict[str, Sequence[_User]]:
    """Return the users of each part: the first are for testing, and the next for validation.

    Args:
        order: users in a random order.
        test_share: share of the users in the part `test`.
        validation_share: likewise, of the part `validation`; the others are in `train`.
        found: who the users are, for the message.

    Raises:
        InputError: a part is empty.

    Example:
        >>> from jaxalign.data.histories import cut_into_parts
        >>> cut_into_parts("abcde", 0.4, 0.2, "letters")
        {'test': 'ab', 'validation': 'c', 'train': 'de'}
    """
    test = round(test_share * len(order))
    held_out = test + round(validation_share * len(order))
    if not 0 < test < held_out < len(order):
        raise InputError(
            f"{found}; expected some for each part: change the shares or data.history."
        )
    return {"test": order[:test], "validation": order[test:held_out], "train": order[held_out:]}


CHOSEN, REJECTED = "I chose this answer: {}", "I rejected this answer: {}"
"""A choice of a preference file in words, as two items of a history."""


def in_words(entry: object, task: lamp.Task, where: str) -> list[object]:
    """Return an item of a history as it is, or a choice of a preference file as two items.

    Args:
        entry: an item, or a row with `chosen` and `rejected`, texts or conversations. A choice
            marked as a `tie` gives no item.
        task: whose items are texts, for choices.
        where: what to call the entry in messages.

    Raises:
        InputError: a choice cannot be used, or the task's items have other fields.

    Example:
        >>> from jaxalign.data import lamp
        >>> from jaxalign.data.histories import in_words
        >>> choice = {"prompt": "Hi", "chosen": "Hello.", "rejected": "What?"}
        >>> [item["text"] for item in in_words(choice, lamp.task("text"), "row 1")]
        ['I chose this answer: Hello.', 'I rejected this answer: What?']
    """
    if not isinstance(entry, Mapping) or not {"chosen", "rejected"} <= entry.keys():
        return [entry]
    if (*task.fields, task.label) != ("text", None):
        raise InputError(
            f"{where}: found a choice, with `chosen` and `rejected`, and the task {task.name}, "
            "whose items have other fields; expected a task of texts alone, such as `text`."
        )
    if entry.get("tie"):
        return []
    _, chosen, rejected = flat_choice(
        entry.get("prompt"), entry["chosen"], entry["rejected"], where
    )
    found: list[object] = []
    for words, name, answer in ((CHOSEN, "chosen", chosen), (REJECTED, "rejected", rejected)):
        text = words.format(check_text(str(answer) if answer else answer, name, where))
        rest = {key: entry[key] for key in ("date", "category") if key in entry}
        found.append({"text": text, **rest})
    return found


class _Table:
    """Questions as they are read: items numbered, each once."""

    def __init__(self, task: lamp.Task, source: str):
        self.task, self.source = task, source
        self.samples: list[Sample] = []
        self.items: list[Item] = []
        self.places: dict[tuple[object, ...], int] = {}
        self.ids: set[str] = set()
        self.sorted = self.repeated = self.blank = 0

    def add(self, row: object, name: str, where: str, output: str | None, field: str) -> None:
        """Take one question."""
        if name in self.ids:
            raise InputError(
                f"{where}: id {name!r} comes twice, expected unique ids; remove one of the two."
            )
        self.ids.add(name)
        question = field_text(row, "input", where, blank=False)
        try:
            lamp.query_text(self.task, question)
            lamp.retrieval_query(self.task, question)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        history = _optional(row, field)
        if not isinstance(history, list):
            raise InputError(
                f"{where}: `{field}` is {'missing' if history is None else short(history)}, "
                "expected a list of items, empty for a new user; correct it."
            )
        user = name if _optional(row, "user") is None else field_identifier(row, "user", where)
        date = _date(row, where)
        profile = self._profile(history, f"{where}, {field}", date)
        category = (
            None if _optional(row, "category") is None else field_text(row, "category", where)
        )
        self.samples.append(Sample(name, user, question, output, profile, category, date))

    def histories(self) -> Histories:
        """What was read, with notes on what was changed."""
        if not self.samples:
            raise InputError(f"{self.source} holds no question, expected at least one.")
        notes = (
            (self.sorted, "histories out of date order, which were sorted"),
            (self.repeated, "items repeated within a history, which were kept once"),
            (self.blank, "items without any text, which were left out"),
        )
        remarks = tuple(f"{text}: {count:,}" for count, text in notes if count)
        samples, items = tuple(self.samples), tuple(self.items)
        own = None if self.task.name in lamp.TASKS else self.task
        return Histories(samples, items, self.task.name, self.source, remarks, own)

    def _profile(self, history: list[object], where: str, limit: str | None) -> tuple[int, ...]:
        """Places of a history's items, oldest first."""
        rows = [
            self._item(item, f"{where}[{place}]")
            for place, entry in enumerate(history)
            for item in in_words(entry, self.task, f"{where}[{place}]")
        ]
        kept = self._distinct(rows, where)
        keys = self._dates([self.items[place] for place in kept], where, limit)
        order = sorted(range(len(kept)), key=keys.__getitem__) if keys else range(len(kept))
        self.sorted += any(one != two for one, two in enumerate(order))
        return tuple(kept[place] for place in order)

    def _distinct(self, places: list[int | None], where: str) -> list[int]:
        kept: dict[str, int] = {}
        for place in places:
            if place is None:
                self.blank += 1
                continue
            name = self.items[place].id
            if kept.setdefault(name, place) != place:
                raise InputError(
                    f"{where}: item id {name!r} stands for two different items, expected unique "
                    "ids within a history; correct one of the two."
                )
        self.repeated += sum(place is not None for place in places) - len(kept)
        return list(kept.values())

    def _dates(self, items: list[Item], where: str, limit: str | None) -> list[tuple[int, ...]]:
        """What items are ordered by; empty where none has a date."""
        dated = sum(item.date is not None for item in items)
        if not dated:
            return []
        if dated < len(items):
            lacking = next(item.id for item in items if item.date is None)
            raise InputError(
                f"{where}: item {lacking!r} has no `date` and {dated} of {len(items)} have one, "
                "expected all or none; fill them in or leave them out."
            )
        keys = [date_key(str(item.date), f"{where}, item {item.id!r}") for item in items]
        if limit is not None and max(keys) > (last := date_key(limit, where)):
            late = items[keys.index(max(keys))]
            # A month is not after a day in it, nor a day after a moment in it.
            if max(keys)[: len(last)] > last:
                raise InputError(
                    f"{where}: item {late.id!r} is of {late.date}, after its question of {limit}; "
                    "remove it, or correct one of the dates."
                )
        return keys

    def _item(self, entry: object, where: str) -> int | None:
        """The place of an item, a new one where it is met for the first time; None without text."""
        if isinstance(entry, str) and self.task.fields == ("text",):
            entry = {"text": entry}
        wanted = dict.fromkeys((*self.task.fields, self.task.label or self.task.fields[0]))
        fields = {
            name: field_text(entry, name, where, numbers=name == self.task.label) for name in wanted
        }
        if _optional(entry, "category") is not None:
            fields["category"] = field_text(entry, "category", where)
        if not lamp.item_text(self.task, fields):
            return None
        date = _date(entry, where)
        content = (date, *fields.items())
        name = (
            _digest(content)
            if _optional(entry, "id") is None
            else field_identifier(entry, "id", where)
        )
        place = self.places.setdefault((name, content), len(self.items))
        if place == len(self.items):
            self.items.append(Item(name, fields, date))
        return place


def _optional(row: object, field: str) -> object:
    return row.get(field) if isinstance(row, dict) else None


def _date(row: object, where: str) -> str | None:
    return None if _optional(row, "date") is None else field_text(row, "date", where, numbers=True)


def _digest(content: tuple[object, ...]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
