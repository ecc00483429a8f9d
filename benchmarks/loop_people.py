"""People with hidden tastes who rate and choose, and the prompts that they ask."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from jaxalign.demo.answers import DemoAnswers, read_answers
from jaxalign.demo.people import LAPSES, Population, draw_people
from jaxalign.demo.study import design
from jaxalign.serve.reward_space import LEVEL_SD, LOG_SPREAD_SD

GENEROSITY = 1.0
"""Logits by which misspecified people like every answer better than the service assumes."""


class Rates(NamedTuple):
    """How U people use their thumbs: up with probability sigmoid(spread (utility - level)).

    Attributes:
        level: [U] utility from which a thumb up is likelier than one down.
        spread: [U] how decisively it depends on the utility.
        lapses: share of thumbs given by the toss of a coin.
    """

    level: np.ndarray
    spread: np.ndarray
    lapses: float

    def up(self, person: int, utility: float) -> float:
        """Return the probability of a thumb up."""
        sure = float(expit(self.spread[person] * (utility - self.level[person])))
        return self.lapses / 2 + (1 - self.lapses) * sure


@dataclass(frozen=True, eq=False)
class LoopData:
    """People, prompts and draws of one population.

    Attributes:
        answers: the pool.
        people: U persons.
        rates: how they use their thumbs.
        utility: [U, N] of every answer.
        draws: [X, n] the answers that are drawn for each prompt, in order; the first is the plain
            one.
        arm: [N] the manner in which an answer was written, 0 to 15.
        feedback_prompts: [U, T] prompts that each person gives feedback on.
        judged: [H] held-out prompts, on which no feedback is given.
        uniforms: [U, T] uniform numbers that decide thumbs and choices.
    """

    answers: DemoAnswers
    people: Population
    rates: Rates
    utility: np.ndarray
    draws: np.ndarray
    arm: np.ndarray
    feedback_prompts: np.ndarray
    judged: np.ndarray
    uniforms: np.ndarray

    def thumb(self, person: int, turn: int, answer: int) -> bool:
        """Return whether a person's thumb is up."""
        utility = float(self.utility[person, answer])
        return bool(self.uniforms[person, turn] < self.rates.up(person, utility))

    def takes_first(self, person: int, turn: int, first: int, second: int) -> bool:
        """Return whether a person prefers the answer shown first to the second."""
        margin = self.utility[person, first] - self.utility[person, second]
        return bool(self.uniforms[person, turn] < self.people.choice(margin))

    def judged_utility(self) -> np.ndarray:
        """Return the utility [U, H, n] of the draws of judged prompts."""
        return self.utility[:, self.draws[self.judged]]


def draw_loop_data(
    population: str, users: int, turns: int, judged: int, samples: int, seed: int
) -> LoopData:
    """Return people, prompts and draws.

    Args:
        population: "friendly" (choices and thumbs as the service assumes) or "misspecified"
            (saturating taste, lapses, a bias to what is shown first, generous thumbs).
        users: U.
        turns: T, feedbacks of a person.
        judged: H, of the prompts that are held out.
        samples: n, answers drawn for a request.
        seed: of all of it.
    """
    answers = read_answers()
    people = draw_people(population, users, seed)
    rng = np.random.default_rng([seed, 7])
    # The demo's share of prompts is held out; its split of users is not used here.
    plan = design(users, len(answers.prompts), seed)
    rows = [np.flatnonzero(answers.prompt == prompt) for prompt in range(len(answers.prompts))]
    place = np.concatenate([np.arange(len(row)) for row in rows])
    friendly = population == "friendly"
    rates = Rates(
        LEVEL_SD * rng.standard_normal(users) - (0.0 if friendly else GENEROSITY),
        np.exp(LOG_SPREAD_SD * rng.standard_normal(users)),
        0.0 if friendly else LAPSES,
    )
    return LoopData(
        answers=answers,
        people=people,
        rates=rates,
        utility=people.utility(answers.traits),
        draws=np.stack([rng.permutation(row)[:samples] for row in rows]),
        arm=place,
        feedback_prompts=np.stack([rng.permutation(plan.known)[:turns] for _ in range(users)]),
        judged=plan.held_out[:judged],
        uniforms=rng.random((users, turns)),
    )
