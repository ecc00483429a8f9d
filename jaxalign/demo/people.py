"""Simulated people: what they like, and how they choose. No real person's choice is in the demo."""

from dataclasses import dataclass

import numpy as np

from jaxalign.rewards.rules import TRAITS

# Share of the people, then weights on brevity, positivity, simplicity, warmth, structure.
TYPES: dict[str, tuple[float, tuple[float, ...]]] = {
    "brisk": (0.28, (1.3, 0.3, 0.8, -0.9, 0.5)),
    "warm-hearted": (0.26, (-0.4, 1.3, 0.3, 1.5, -0.4)),
    "thorough": (0.20, (-1.4, 0.2, -0.5, 0.3, 1.3)),
    "sober": (0.14, (0.4, -1.2, -0.4, -1.0, 0.2)),
    "plain": (0.12, (0.4, 0.7, 1.7, 0.4, -1.0)),
}
WITHIN = 0.5
"""Standard deviation of a person's weights about those of the type."""
SATURATION = 1.5
"""A saturating taste values a trait z at SATURATION * tanh(z): about as decisive as a linear."""
LAPSES = 0.05
POSITION_BIAS = 0.5


@dataclass(frozen=True)
class Population:
    """Simulated users.

    Attributes:
        name: "friendly" or "misspecified".
        weights: [U, 5] on the standardised traits; a negative one is a dislike.
        types: [U] int into TYPES.
        saturating: whether more of a trait is worth less and less.
        lapses: share of choices made by the toss of a coin.
        bias: logit by which the answer shown first is favoured.
    """

    name: str
    weights: np.ndarray
    types: np.ndarray
    saturating: bool = False
    lapses: float = 0.0
    bias: float = 0.0

    def utility(self, traits: np.ndarray) -> np.ndarray:
        """What each user thinks of each answer [U, N], from standardised traits [N, 5]."""
        valued = SATURATION * np.tanh(traits) if self.saturating else traits
        return self.weights @ np.asarray(valued, np.float64).T

    def choice(self, margin: np.ndarray) -> np.ndarray:
        """Probability of choosing the answer shown first, if it is better by `margin`."""
        return self.lapses / 2 + (1 - self.lapses) * _sigmoid(margin + self.bias)

    def preference(self, margin: np.ndarray) -> np.ndarray:
        """Probability of choosing an answer better by `margin`, over both orders of showing."""
        return (self.choice(margin) + 1 - self.choice(-margin)) / 2


@dataclass(frozen=True)
class SimulatedChoices:
    """Choices of U simulated users, P per user.

    Attributes:
        chosen: [U, P] int, answers.
        rejected: [U, P] int, answers to the same prompt.
        probability: [U, P], with which the user chooses so, over both orders of showing.
        first: [U, P] bool, whether the chosen answer was shown first.
    """

    chosen: np.ndarray
    rejected: np.ndarray
    probability: np.ndarray
    first: np.ndarray


def draw_people(name: str, users: int, seed: int) -> Population:
    """A population of simulated users; both populations of a seed have the same weights.

    Args:
        name: "friendly" (Bradley-Terry on linear taste, the model's own class) or "misspecified"
            (saturating taste, 5 % lapses, favours what is shown first: another class).
        users: U.
        seed: of the weights.
    """
    rng = np.random.default_rng([seed, 1])
    shares, centres = zip(*TYPES.values(), strict=True)
    types = rng.choice(len(TYPES), size=users, p=np.asarray(shares))
    weights = np.asarray(centres)[types] + WITHIN * rng.normal(size=(users, len(TRAITS)))
    if name == "friendly":
        return Population(name, weights, types)
    return Population(name, weights, types, True, LAPSES, POSITION_BIAS)


def choose(
    population: Population,
    users: np.ndarray,
    traits: np.ndarray,
    pairs: np.ndarray,
    count: int,
    rng: np.random.Generator,
) -> SimulatedChoices:
    """Let users choose between answers, each user on `count` different pairs drawn from a pool.

    Args:
        population: the people.
        users: [U] which of them.
        traits: [N, 5] standardised.
        pairs: [M, 2] the pool of pairs.
        count: choices a user, at most M are made.
        rng: of the draws.
    """
    count = min(count, len(pairs))
    drawn = np.stack([rng.choice(len(pairs), size=count, replace=False) for _ in users])
    shown = rng.permuted(pairs[drawn], axis=-1)
    worth = population.utility(traits)[users]
    rows = np.arange(len(users))[:, None]
    margin = worth[rows, shown[..., 0]] - worth[rows, shown[..., 1]]
    takes_first = rng.random(margin.shape) < population.choice(margin)
    preferred = population.preference(margin)
    return SimulatedChoices(
        np.where(takes_first, shown[..., 0], shown[..., 1]),
        np.where(takes_first, shown[..., 1], shown[..., 0]),
        np.where(takes_first, preferred, 1 - preferred),
        takes_first,
    )


def _sigmoid(margin: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -margin))
