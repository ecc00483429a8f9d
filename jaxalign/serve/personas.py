"""Personas of users: soft tokens made from what they chose and rejected, and whether these help."""

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from jaxalign.data import lamp
from jaxalign.data.histories import Histories, Item, Sample, in_words
from jaxalign.errors import InputError
from jaxalign.experiments.pplug.ask import RunPlug
from jaxalign.experiments.pplug.baselines import TRAININGS
from jaxalign.models.chat import Chat, tokenize_prompt
from jaxalign.pplug.model import prefixes
from jaxalign.pplug.rows import assistant_turn
from jaxalign.pplug.store import MemoryStore
from jaxalign.serve.engines.registry import SoftTokens, known_roles
from jaxalign.serve.held_out import answer_shifts, favour_probability
from jaxalign.serve.learning import current_feedback
from jaxalign.serve.store.database import Database
from jaxalign.serve.store.events import Event, choices_with_answers

MOST_HELD_OUT = 16
"""Newest choices by which a persona is judged: each takes four passes of the model, once."""
_MOST_USERS = 1_000
"""Of whom vectors of choices are kept in memory: of 512 items of width 384, 0.4 MB each."""


class ChoiceTexts(NamedTuple):
    """A choice of a user in words.

    Attributes:
        id: of the row of feedback.
        prompt: that both texts answer.
        chosen: the answer that was preferred, or that the user wrote.
        rejected: the other one.
    """

    id: str
    prompt: str | Chat
    chosen: str
    rejected: str


class Persona(NamedTuple):
    """The persona of a user for one prompt.

    Attributes:
        soft: its soft tokens.
        choices: how many choices it is made of.
        held_out: choices by which it was judged, each with the persona of those before it.
        favoured: of these, those whose chosen answer it makes more likely, over the rejected one.
    """

    soft: SoftTokens
    choices: int
    held_out: int
    favoured: int

    def words(self) -> str:
        """Return what answers, and why it may, in words."""
        made = f"made of {self.choices} choices" if self.choices else "of a user without choices"
        judged = ""
        if self.held_out:
            judged = f", which favours what the user chose in {self.favoured} of {self.held_out}"
            judged += " held-out choices"
        return f"the persona {made}{judged}"


@dataclass(eq=False)
class _UserChoices:
    """What is kept of one user.

    Attributes:
        version: of the user's rows.
        choices: oldest first.
        items: their texts in words, two of each choice.
        store: vectors of their texts.
        judged: whether a choice is favoured, by the ids of those that the persona is made of and
            its own; None for a choice that cannot be judged.
    """

    version: str
    choices: tuple[ChoiceTexts, ...]
    items: tuple[Item, ...]
    store: MemoryStore
    judged: dict[tuple[str, ...], bool | None] = field(default_factory=dict)


class Personas:
    """Makes the personas of all users by one trained plug.

    Args:
        folder: of the plug, for messages.
        opened: the plug.

    Raises:
        InputError: a plug whose histories do not hold choices, or that makes no persona of them.
    """

    def __init__(self, folder: str, opened: RunPlug) -> None:
        plug, rules = opened.plug, opened.run.rules
        in_words({"chosen": "a", "rejected": "b"}, rules, f"--plug {folder}")
        if rules.marks != ("", ""):
            raise InputError(
                f"--plug {folder}: found the task {rules.name}, whose questions have one form, "
                "expected a task that takes any question, such as `text`: train a plug of it."
            )
        if plug.persona.source != "history" or TRAININGS[opened.training].retriever is not None:
            raise InputError(
                f"--plug {folder}: found the training {opened.training}, which makes no persona of "
                "a history alone, expected one such as pplug-0: give the run, or that folder in it."
            )
        self._plug, self._rules = plug, rules
        self._turn = len(assistant_turn(plug.model, plug.text))
        self._most = -(-plug.text.max_items // 2)  # a choice is two items
        self._users: OrderedDict[str, _UserChoices] = OrderedDict()

    def make(
        self, database: Database, user: str | None, version: str, prompt: str | Chat,
        least: float | None = None,
    ) -> Persona | None:  # fmt: skip
        """Return the persona of a user for a prompt; of nobody, the one of an empty history.

        It works with what is kept of the user: calls follow each other.

        Args:
            database: where the user's choices are.
            user: whose; None for nobody.
            version: of the user's rows: what was read is kept until it changes.
            prompt: which the persona depends on.
            least: probability with which it has to favour more than half of what the user chooses,
                by held-out choices; None for any.

        Returns:
            None where the held-out choices do not say so.

        Raises:
            InputError: a prompt that cannot be read.
            StorageError: the choices cannot be read.
        """
        known = self._choices(database, user, version)
        held_out = [] if least is None else self._judged(known)
        favoured = sum(held_out)
        if least is not None and favour_probability(favoured, len(held_out)) < least:
            return None
        (soft,) = self._soft(known, [(prompt, len(known.choices))])
        count = min(len(known.choices), self._most)
        return Persona(soft, count, len(held_out), favoured)

    def drop_cached(self, user: str) -> None:
        """Drop what is kept in memory of a user."""
        self._users.pop(user, None)

    def _choices(self, database: Database, user: str | None, version: str) -> _UserChoices:
        width = self._plug.encoder.config.width
        if user is None:
            return _UserChoices("", (), (), MemoryStore(width))
        known = self._users.pop(user, None) or _UserChoices("", (), (), MemoryStore(width))
        if known.version != version:
            most = self._most + MOST_HELD_OUT
            rows = database.read_now(
                lambda connection: choices_with_answers(connection, user, most)
            )
            store = known.store if len(known.store) <= 4 * most else MemoryStore(width)
            choices = choices_in_texts(rows)
            items = self._in_words(choices)
            known = _UserChoices(version, choices, items, store, known.judged)
        self._users[user] = known
        while len(self._users) > _MOST_USERS:
            self._users.popitem(last=False)
        return known

    def _in_words(self, choices: Sequence[ChoiceTexts]) -> tuple[Item, ...]:
        """The texts of choices as items of a history."""
        entries = [
            text
            for choice in choices
            for text in in_words(
                {"chosen": choice.chosen, "rejected": choice.rejected}, self._rules, "a choice"
            )
            if isinstance(text, dict)
        ]
        return tuple(Item(str(place), entry) for place, entry in enumerate(entries))

    def _soft(
        self, known: _UserChoices, wanted: Sequence[tuple[str | Chat, int]]
    ) -> list[SoftTokens]:
        """The soft tokens for some prompts, each from the choices before a place."""
        samples = tuple(
            Sample(str(number), "", question_of(prompt), None, tuple(range(2 * before)))
            for number, (prompt, before) in enumerate(wanted)
        )
        own = None if self._rules.name in lamp.TASKS else self._rules
        histories = Histories(samples, known.items, self._rules.name, own_task=own)
        values = prefixes(self._plug, histories, known.store, batch_size=1)
        behind = [
            None if self._plug.persona.place == "before" else self._behind(p) for p, _ in wanted
        ]
        return [SoftTokens(*pair) for pair in zip(values, behind, strict=True)]

    def _behind(self, prompt: str | Chat) -> int:
        """Tokens of a prompt that stand behind its soft tokens."""
        return 0 if isinstance(prompt, str) else self._turn

    def _judged(self, known: _UserChoices) -> list[bool]:
        """Whether the persona of the choices before favours each of the newest choices."""
        ids = tuple(choice.id for choice in known.choices)
        first = max(1, len(ids) - MOST_HELD_OUT)
        keys = {
            place: ids[max(0, place - self._most) : place + 1] for place in range(first, len(ids))
        }
        new = [place for place, key in keys.items() if key not in known.judged]
        known.judged = {key: known.judged[key] for key in keys.values() if key in known.judged}
        if new:
            softs = self._soft(known, [(known.choices[place].prompt, place) for place in new])
            for place, soft in zip(new, softs, strict=True):
                known.judged[keys[place]] = self._favours(known.choices[place], soft)
        return [found for found in known.judged.values() if found is not None]

    def _favours(self, choice: ChoiceTexts, soft: SoftTokens) -> bool | None:
        """Whether soft tokens move the odds to the chosen answer; None where it is too long, or
        the model's template does not take its chat.
        """
        model, text = self._plug.model, self._plug.text
        try:
            prompt = tokenize_prompt(model, known_roles(choice.prompt))
        except InputError:
            return None
        answers = [
            list(model.tokenizer(one, add_special_tokens=False)["input_ids"])[: text.answer_tokens]
            for one in (choice.chosen, choice.rejected)
        ]
        longest = len(prompt) + max(map(len, answers)) + len(soft.values)
        if longest > model.config.positions:
            return None
        moved = answer_shifts(model, prompt, answers, soft)
        return bool(moved[0] > moved[1])


def question_of(prompt: str | Chat) -> str:
    """Return the part of a prompt that a persona depends on: a text, or the user's last message."""
    if isinstance(prompt, str):
        return prompt
    own = [turn["content"] for turn in prompt if turn["role"] == "user"]
    return str(own[-1]) if own else ""


def choices_in_texts(
    rows: Sequence[tuple[Event, str | None, str | None]],
) -> tuple[ChoiceTexts, ...]:
    """Return the choices and edits among rows of feedback whose texts are stored, oldest first.

    Args:
        rows: feedback of one user, by time, each with prompt and answers as JSON.
    """
    counted = {row.id for row in current_feedback([row for row, _, _ in rows])}
    found = []
    for row, prompt, answers in rows:
        texts = [one.get("text") for one in json.loads(answers or "[]")]
        pair = _pair(row, texts)
        if row.id in counted and prompt is not None and pair is not None:
            found.append(ChoiceTexts(row.id, json.loads(prompt), *pair))
    return tuple(found)


def _pair(row: Event, texts: Sequence[str | None]) -> tuple[str, str] | None:
    """The chosen and the rejected text of a row; None where one of them is not stored or blank."""
    if row.kind == "preferred":
        places = (int(str(row.value[name])) for name in ("preferred", "rejected"))
        chosen, rejected = (texts[place] for place in places)
    else:
        edited, place = row.value.get("edited"), int(row.subject.rpartition(".")[2])
        chosen, rejected = None if edited is None else str(edited), texts[place]
    if chosen is None or rejected is None or not chosen.strip() or not rejected.strip():
        return None
    return chosen, rejected
