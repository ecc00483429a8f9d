"""How other products learn from thumbs today: success rates of arms, without features.

An arm is the manner in which an answer was written, which these heuristics know and the service
does not. They serve the draw whose arm they like best.
"""

import numpy as np

from benchmarks.loop_people import LoopData

ARMS = 16
OWN_SHARE, LEAST_INTERACTIONS = 0.3, 3
"""Of the fixed blend: weight of the user's own rates, and from how many interactions on."""
HEURISTICS = ("blend", "shared_bandit", "own_bandit")


class Counts:
    """Successes and failures of every arm, for each person and together."""

    def __init__(self, users: int) -> None:
        self.own = np.zeros((users, ARMS, 2))
        self.turns = np.zeros(users, int)

    def add(self, person: int, arm: int, success: bool) -> None:
        """Count one outcome."""
        self.own[person, arm, 0 if success else 1] += 1


def scores(name: str, counts: Counts, person: int, rng: np.random.Generator) -> np.ndarray:
    """Return how much a heuristic likes each arm [16] for a person, now."""
    everyone = counts.own.sum(axis=0)
    if name == "blend":
        rates = _rates(everyone)
        if counts.turns[person] >= LEAST_INTERACTIONS:
            rates = (1 - OWN_SHARE) * rates + OWN_SHARE * _rates(counts.own[person])
        return rates
    seen = everyone if name == "shared_bandit" else counts.own[person]
    return rng.beta(1 + seen[:, 0], 1 + seen[:, 1])


def _rates(seen: np.ndarray) -> np.ndarray:
    return (1 + seen[:, 0]) / (2 + seen.sum(axis=1))


def served_positions(
    data: LoopData, name: str, feedback: str, checkpoints: tuple[int, ...], seed: int
) -> np.ndarray:
    """Return which draw a heuristic serves after each number of feedbacks, [C, U, H].

    Args:
        data: people and prompts.
        name: of the heuristic.
        feedback: "thumbs", "pairs" or "both" in turn; a pair is a success of one arm and a failure
            of the other.
        checkpoints: numbers of feedbacks of each person, ascending.
        seed: of its random numbers.
    """
    rng = np.random.default_rng([seed, 8])
    users = len(data.utility)
    counts, found = Counts(users), []
    for turn in range(checkpoints[-1] + 1):
        if turn in checkpoints:
            found.append([
                [_best(data, scores(name, counts, person, rng), prompt) for prompt in data.judged]
                for person in range(users)
            ])  # fmt: skip
        if turn == checkpoints[-1]:
            break
        for person in range(users):
            _one_turn(data, name, feedback, counts, person, turn, rng)
    return np.array(found)


def _one_turn(
    data: LoopData, name: str, feedback: str, counts: Counts, person: int, turn: int,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    prompt = data.feedback_prompts[person, turn]
    draws = data.draws[prompt]
    first = _best(data, scores(name, counts, person, rng), prompt)
    if way(feedback, turn) == "thumbs":
        up = data.thumb(person, turn, draws[first])
        counts.add(person, data.arm[draws[first]], up)
    else:
        second = rng.choice([place for place in range(len(draws)) if place != first])
        wins = data.takes_first(person, turn, draws[first], draws[second])
        counts.add(person, data.arm[draws[first]], wins)
        counts.add(person, data.arm[draws[second]], not wins)
    counts.turns[person] += 1


def way(feedback: str, turn: int) -> str:
    """Return whether a turn is one of "thumbs" or "pairs"; both take turns, a pair first."""
    if feedback != "both":
        return feedback
    return "pairs" if turn % 2 == 0 else "thumbs"


def _best(data: LoopData, liking: np.ndarray, prompt: int) -> int:
    return int(np.argmax(liking[data.arm[data.draws[prompt]]]))
