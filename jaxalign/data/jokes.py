"""Jester's jokes as a rating task: what a person would give a joke, from jokes the person rated."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxalign.data import lamp
from jaxalign.data.histories import Histories, Item, Sample, cut_into_parts
from jaxalign.data.sources import jester_jokes, jester_ratings
from jaxalign.errors import InputError

_TASK = lamp.task("jester")
_LOW, _HIGH = -10.0, 10.0  # ends of Jester's scale
_TARGETS = 2  # of each person in each part: more would repeat the person, not add one


@dataclass(frozen=True)
class RatedJokes:
    """Parts of the task; people are in one part alone, and all parts share their items.

    Attributes:
        train: People to train on; the target jokes are known ones.
        validation: Other people, with known target jokes.
        test: Other people, with known target jokes.
        test_new: The people of `test`; the target jokes are in no history and in no other part.
    """

    train: Histories
    validation: Histories
    test: Histories
    test_new: Histories


def rated_jokes(
    folder: str | Path,
    test_share: float = 0.2,
    validation_share: float = 0.1,
    history: int = 16,
    new_share: float = 0.2,
    seed: int = 0,
) -> RatedJokes:
    """Read Jester's ratings as prompts with histories (Goldberg et al., 2001).

    A rating from -10 to 10 becomes a label of 1 to 5. Each person has two target jokes, and a
    history of rated known jokes without them.

    Args:
        folder: Holds jokes.jsonl (id, text) and ratings.csv.gz (user, joke, rating).
        test_share: Share of the people in the test parts.
        validation_share: Share of the people in the validation part.
        history: Number of rated jokes in a history; people with fewer are left out.
        new_share: Share of the jokes that are targets of `test_new` and occur nowhere else.
        seed: Seed of the parts, jokes and histories.

    Raises:
        InputError: A file is missing or unreadable, a rating is outside the scale, a share leaves
            nothing, or no person has enough ratings.
    """
    jokes = jester_jokes(folder)
    users, ratings = jester_ratings(folder)
    if np.nanmin(ratings) < _LOW or np.nanmax(ratings) > _HIGH:
        raise InputError(
            f"{folder}: ratings go from {np.nanmin(ratings)} to {np.nanmax(ratings)}; expected "
            f"{_LOW:.0f} to {_HIGH:.0f}: correct the file."
        )
    rng = np.random.Generator(np.random.PCG64([seed, 0x10E]))
    new = round(new_share * len(jokes))
    if history < 1 or not 0 < new < len(jokes) - history:
        raise InputError(
            f"{folder}: found {len(jokes)} jokes, of which {new} are new, and histories of "
            f"{history}; expected at least one of each and room for both: change data.history or "
            "data.new_share."
        )
    is_new = np.isin(np.arange(len(jokes)), rng.permutation(len(jokes))[:new])
    texts = [text for _, text in jokes]
    people = _Draws(users, texts, rating_labels(ratings), is_new, history, rng)
    order = [row for row in rng.permutation(len(users)) if people.enough(row)]
    found = (
        f"{folder}: {len(order)} people have rated at least {history + _TARGETS} known and "
        f"{_TARGETS} new jokes"
    )
    rows = cut_into_parts(order, test_share, validation_share, found)
    drawn = {part: [people.samples(row) for row in own] for part, own in rows.items()}
    parts = {
        "test_new": [one for _, news in drawn["test"] for one in news],
        **{part: [one for known, _ in own for one in known] for part, own in drawn.items()},
    }
    items = people.items()
    return RatedJokes(
        **{
            part: Histories(tuple(own), items, _TASK.name, f"{folder} ({part})")
            for part, own in parts.items()
        }
    )


def rating_labels(ratings: np.ndarray) -> np.ndarray:
    """Return the label, 1 to 5, of ratings from -10 to 10: five equal parts of the scale; 0 of NaN.

    Example:
        >>> import numpy as np
        >>> from jaxalign.data.jokes import rating_labels
        >>> rating_labels(np.array([-10.0, -6.0, -5.9, 10.0, np.nan])).tolist()
        [1, 1, 2, 5, 0]
    """
    steps = np.ceil((ratings - _LOW) * (len(_TASK.labels) / (_HIGH - _LOW)))
    return np.where(np.isfinite(ratings), np.clip(steps, 1, len(_TASK.labels)), 0).astype(int)


@dataclass
class _Draws:
    """Draws the target jokes and the history of one person after the other."""

    users: tuple[str, ...]
    texts: list[str]
    labels: np.ndarray
    is_new: np.ndarray
    history: int
    rng: np.random.Generator

    def enough(self, row: int) -> bool:
        """Return whether a person has rated enough known and new jokes."""
        rated = self.labels[row] > 0
        known, news = (rated & ~self.is_new).sum(), (rated & self.is_new).sum()
        return bool(known >= self.history + _TARGETS and news >= _TARGETS)

    def samples(self, row: int) -> tuple[list[Sample], list[Sample]]:
        """Return a person's samples with known and with new target jokes, with one history."""
        rated = self.labels[row] > 0
        known = self.rng.permutation(np.flatnonzero(rated & ~self.is_new))
        news = self.rng.permutation(np.flatnonzero(rated & self.is_new))[:_TARGETS]
        profile = known[_TARGETS : _TARGETS + self.history]
        places = tuple(self._item(int(joke), self.labels[row, joke]) for joke in profile)
        return (
            [self._sample(row, int(joke), places) for joke in known[:_TARGETS]],
            [self._sample(row, int(joke), places) for joke in news],
        )

    def items(self) -> tuple[Item, ...]:
        """Return each joke with each label."""
        return tuple(
            Item(f"{joke}-{label}", {"text": text, "rating": label})
            for joke, text in enumerate(self.texts)
            for label in _TASK.labels
        )

    def _item(self, joke: int, label: int) -> int:
        return joke * len(_TASK.labels) + int(label) - 1

    def _sample(self, row: int, joke: int, places: tuple[int, ...]) -> Sample:
        user = self.users[row]
        question = lamp.format_question(_TASK, self.texts[joke])
        return Sample(f"{user}/{joke}", user, question, str(self.labels[row, joke]), places)
