"""The baselines of a persona: other histories, other trained parts, other prompts."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from jaxalign.data.dates import date_key
from jaxalign.data.histories import Histories, Sample, leading_category
from jaxalign.errors import InputError
from jaxalign.pplug.config import PersonaConfig
from jaxalign.pplug.retrieval import Retriever

_TRIES = 64
_GROUPED_BY = {"category": "category", "level": "rating"}


@dataclass(frozen=True)
class TrainingSpec:
    """One training of an experiment; all trainings have equal passes over the samples.

    Attributes:
        source: What the persona is made of, as in `PersonaConfig`; None keeps the config's value.
        mean: Whether items have equal weights; None keeps the config's value.
        histories: The history that a sample is trained with: that of its `own` user, or of an
            `other` one.
        retriever: How the items in the prompts are found, or None for prompts without items.
    """

    source: Literal["input", "none"] | None = None
    mean: bool | None = None
    histories: Literal["own", "other"] = "own"
    retriever: Literal["bm25"] | None = None

    def persona(self, config: PersonaConfig) -> PersonaConfig:
        """Return the persona of this training, given that of the training `pplug`."""
        return replace(
            config,
            source=config.source if self.source is None else self.source,
            mean=config.mean if self.mean is None else self.mean,
        )


@dataclass(frozen=True)
class EvaluatedMethod:
    """One row of the table of results.

    Attributes:
        training: Name in `TRAININGS` of the training whose parameters are used; None for the
            language model alone.
        histories: The history of the persona: that of the `own` user, of an `other` user, of
            another user with the same leading `category` or of the same `level` (mean rating), or
            the `top` items of the own one.
        retriever: How the items in the prompt are found, or None for a prompt without items.
    """

    training: str | None
    histories: Literal["own", "other", "category", "level", "top"] = "own"
    retriever: Retriever | None = None


TRAININGS: Mapping[str, TrainingSpec] = {
    "pplug": TrainingSpec(),
    "task": TrainingSpec("none"),
    "input": TrainingSpec("input"),
    "shuffled": TrainingSpec(histories="other"),
    "mean": TrainingSpec(mean=True),
    "pplug_retrieval": TrainingSpec(retriever="bm25"),
    "task_retrieval": TrainingSpec("none", retriever="bm25"),
}
"""`task` trains the task token alone. `input` has as many parameters as `pplug` and no history."""

METHODS: Mapping[str, EvaluatedMethod] = {
    "zero-shot": EvaluatedMethod(None),
    "retrieval BM25": EvaluatedMethod(None, retriever="bm25"),
    "retrieval encoder": EvaluatedMethod(None, retriever="encoder"),
    "task token only": EvaluatedMethod("task"),
    "input only": EvaluatedMethod("input"),
    "trained on others": EvaluatedMethod("shuffled", "other"),
    "persona": EvaluatedMethod("pplug"),
    "persona, mean": EvaluatedMethod("mean"),
    "persona, top items": EvaluatedMethod("pplug", "top"),
    "persona of another": EvaluatedMethod("pplug", "other"),
    "persona of another, same category": EvaluatedMethod("pplug", "category"),
    "retrieval BM25 + task token": EvaluatedMethod("task_retrieval", retriever="bm25"),
    "retrieval BM25 + persona": EvaluatedMethod("pplug_retrieval", retriever="bm25"),
}
"""`retrieval BM25 + persona` is to be compared with `retrieval BM25 + task token`."""

RATING_METHODS: Mapping[str, EvaluatedMethod] = {
    "persona of another, same level": EvaluatedMethod("pplug", "level")
}
"""Methods of tasks whose items have ratings: a persona may be no more than a mean rating."""

BASELINES = (
    "task token only",
    "input only",
    "trained on others",
    "persona of another",
    "persona of another, same category",
    "retrieval BM25 + task token",
)
"""Methods over which gains are reported, as far as they were trained."""


def shuffle_histories(
    histories: Histories, seed: int, within: Literal["category", "level"] | None = None
) -> Histories:
    """Return the same questions, each with the history of another user.

    A donor is drawn for each sample, so that a user's samples get the histories of several users
    and no donor can stand in as a pseudonym. If questions have dates, the donor's history is what
    the donor wrote before that day, so that nothing from the future is used and lengths stay as
    they are on average. Empty histories stay empty.

    Args:
        histories: N samples.
        seed: Seed of the draws.
        within: `category` draws donors whose histories have the same leading category, `level`
            those whose mean rating rounds to the same fifth. Samples without such a donor draw from
            all, and a note counts them.

    Returns:
        The histories with notes.

    Raises:
        InputError: No other user has a history, or none before the day of a question; or no item
            has a category or a rating although one is needed.
    """
    rng = np.random.Generator(np.random.PCG64([seed, 0 if within is None else 1]))
    rows = np.flatnonzero(histories.lengths)
    group = {"category": leading_category, "level": rounded_level}.get(within or "")
    groups = [group(histories, one) if group else None for one in histories.samples]
    if within and rows.size and not any(groups):
        raise InputError(
            f"{histories.source} has no item with a {_GROUPED_BY[within]}, which shuffling within "
            "groups needs; shuffle without."
        )
    pools: dict[str | None, list[int]] = defaultdict(list)
    for row in rows:
        pools[groups[row]].append(int(row))
    donors = _Donors(histories, rng)
    profiles = [sample.profile for sample in histories.samples]
    outside = 0
    for row in rows:
        drawn = donors.draw(int(row), pools[groups[row]])
        if drawn is None and within:
            drawn = donors.draw(int(row), rows)
            outside += 1
        if drawn is None:
            sample = histories.samples[row]
            raise InputError(
                f"{histories.source}: no other user than {sample.user!r} has a history for "
                f"question {sample.id!r}, expected at least one; give samples of more users."
            )
        profiles[row] = drawn
    notes = histories.notes
    if outside:
        notes += (
            f"histories drawn from another {within}, for no other user has theirs: {outside:,} "
            f"of {len(rows):,}",
        )
    return replace(histories.with_profiles(profiles), notes=notes)


def rounded_level(histories: Histories, sample: Sample) -> str | None:
    """Return the mean rating of a history, rounded to a fifth; None without ratings.

    Args:
        histories: Which hold the items.
        sample: Whose history it is.

    Raises:
        InputError: The rating of an item is no number.
    """
    rules = histories.rules
    if rules.label is None or rules.kind != "rating" or not sample.profile:
        return None
    ratings = [_rating(histories, place, rules.label) for place in sample.profile]
    return f"{round(5 * float(np.mean(ratings))) / 5:.1f}"


def _rating(histories: Histories, place: int, label: str) -> float:
    item = histories.items[place]
    value = item.fields.get(label, "")
    try:
        found = float(value)
    except ValueError:
        found = np.nan
    if not np.isfinite(found):
        raise InputError(
            f"{histories.source}: item {item.id!r} has the {label} {value!r}, expected a number, "
            "as the answers of the task are ratings; correct it."
        )
    return found


def keep_items(histories: Histories, chosen: Sequence[Sequence[int]]) -> Histories:
    """Return the same questions with only the chosen items, in the order of the history.

    Args:
        histories: N samples.
        chosen: Places in `histories.items` for each sample, as from `retrieve_items`.
    """
    return histories.with_profiles(
        [
            [place for place in sample.profile if place in set(kept)]
            for sample, kept in zip(histories.samples, chosen, strict=True)
        ]
    )


class _Donors:
    """The histories of the users, from which those of other users are drawn."""

    def __init__(self, histories: Histories, rng: np.random.Generator):
        self.samples, self.items, self.rng = histories.samples, histories.items, rng
        self.dated: dict[str, list[tuple[tuple[int, ...], int]]] = {}
        if any(sample.date is not None for sample in self.samples):
            self.dated = self._dated()

    def draw(self, row: int, pool: Sequence[int] | np.ndarray) -> tuple[int, ...] | None:
        """Return the history of another user in the pool; None if no user has one."""
        for place in self.rng.integers(0, len(pool), _TRIES):
            if found := self._history(row, int(pool[place])):
                return found
        # Where one user has nearly all samples, random draws do not find the others.
        every = [found for donor in pool if (found := self._history(row, int(donor)))]
        return every[int(self.rng.integers(len(every)))] if every else None

    def _history(self, row: int, donor: int) -> tuple[int, ...]:
        """Return what a donor offers a sample, empty for a donor who is the same user."""
        sample, other = self.samples[row], self.samples[donor]
        if sample.user == other.user:
            return ()
        if sample.date is None or other.user not in self.dated:
            return other.profile
        day = date_key(sample.date, f"question {sample.id!r}")
        return tuple(place for key, place in self.dated[other.user] if key < day)

    def _dated(self) -> dict[str, list[tuple[tuple[int, ...], int]]]:
        """Return all dated items in any history of each user, oldest first."""
        places: dict[str, set[int]] = defaultdict(set)
        for sample in self.samples:
            places[sample.user].update(sample.profile)
        return {
            user: sorted(
                (date_key(str(self.items[place].date), f"item {self.items[place].id!r}"), place)
                for place in own
            )
            for user, own in places.items()
            if all(self.items[place].date is not None for place in own)
        }
