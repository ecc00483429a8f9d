"""UKPConvArg1 as a choice: which argument convinces a person, from reasons the person wrote."""

from collections import defaultdict
from pathlib import Path

import numpy as np

from jaxalign.data import lamp
from jaxalign.data.histories import Histories, Item, Sample, cut_into_parts
from jaxalign.data.sources import argument_votes
from jaxalign.data.tables import Row
from jaxalign.errors import InputError

_TASK = lamp.task("ukpconvarg1")
_TARGETS = 2  # of each person: more would repeat the person, not add one
_WORDS = 40  # of an argument in a question, so that two of them fit; the median has 43


def argued_choices(
    folder: str | Path,
    test_share: float = 0.2,
    validation_share: float = 0.1,
    history: int = 8,
    seed: int = 0,
) -> dict[str, Histories]:
    """Read UKPConvArg1's votes as questions with histories (Habernal and Gurevych, ACL 2016).

    Each person has two target pairs, and a history of the reasons that the person wrote for votes
    on other pairs. Ties and votes without a reason are left out. Which argument of a target is
    called A is drawn.

    Args:
        folder: Holds arguments.jsonl.gz and judgments.jsonl.gz, as `jaxalign.data.ukpconvarg1`.
        test_share: Share of the people in the test part.
        validation_share: Share of the people in the validation part.
        history: Number of reasons in a history; people with fewer are left out.
        seed: Seed of the parts, targets and histories.

    Returns:
        The parts `train`, `validation` and `test`; each person is in one of them.

    Raises:
        InputError: A file is missing or unreadable, a share leaves nothing, or no person has
            enough reasons.
    """
    if history < 1:
        raise InputError(f"data.history is {history}; expected at least 1.")
    arguments, votes, pairs = argument_votes(folder, ties=False)
    known = list(arguments.values())
    reasons = {row: reason for row, vote in enumerate(votes) if (reason := _reason(vote))}
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row in reasons:
        rows_of[votes[row].text("user")].append(row)
    rng = np.random.Generator(np.random.PCG64([seed, 0xA26]))
    people = sorted(user for user, own in rows_of.items() if len(own) >= history + _TARGETS)
    order = [people[place] for place in rng.permutation(len(people))]
    found = f"{folder}: {len(order)} people wrote at least {history + _TARGETS} reasons"
    users = cut_into_parts(order, test_share, validation_share, found)
    numbers = {row: place for place, row in enumerate(reasons)}
    items = tuple(Item(str(row), {"text": reason}) for row, reason in reasons.items())
    parts: dict[str, Histories] = {}
    for part, own in users.items():
        samples: list[Sample] = []
        for user in own:
            drawn = [rows_of[user][place] for place in rng.permutation(len(rows_of[user]))]
            target_pairs = {frozenset(pairs[:, row].tolist()) for row in drawn[:_TARGETS]}
            others = [
                row for row in drawn[_TARGETS:]
                if frozenset(pairs[:, row].tolist()) not in target_pairs
            ]  # fmt: skip
            profile = tuple(numbers[row] for row in others[:history])
            for row in drawn[:_TARGETS]:
                sides = [known[place] for place in pairs[:, row]]
                swap = bool(rng.integers(2))
                samples.append(_sample(votes[row], row, sides, profile, swap))
        parts[part] = Histories(tuple(samples), items, _TASK.name, f"{folder} ({part})")
    return parts


def _reason(vote: Row) -> str:
    reason = vote.values.get("reason")
    return reason.strip() if isinstance(reason, str) else ""


def _sample(
    vote: Row, row: int, sides: list[tuple[str, ...]], profile: tuple[int, ...], swap: bool
) -> Sample:
    """Return a question about two arguments (title, text), the second called A if `swap`."""
    texts = [_shortened(text) for _, text in sides]
    right = int(vote.text("label") == "a2") ^ int(swap)
    first, second = texts[::-1] if swap else texts
    question = lamp.format_question(_TASK, f"{sides[0][0]}. A: {first} B: {second}")
    user = vote.text("user")
    return Sample(f"{user}/{row}", user, question, _TASK.labels[right], profile)


def _shortened(text: str) -> str:
    words = text.split()
    return " ".join(words) if len(words) <= _WORDS else " ".join([*words[:_WORDS], "..."])
