"""What a strategy of personal answers is: users and prompts in, answers with their reasons out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax
import numpy as np
from numpy.typing import NDArray

from jaxalign.arrays import check_number
from jaxalign.config_fields import checks_fields
from jaxalign.models.chat import Chat
from jaxalign.mrm.gains import Gains, best_option

Floats = NDArray[np.float64]
ASKED_FOR = "asked for"
"""`PersonalAnswer.choice` of a plain answer that was not chosen among several."""


class UserRequest(NamedTuple):
    """One prompt and the user who asks.

    Attributes:
        prompt: a text or a chat.
        mean: [K] posterior mean of the user's weights, or the population's.
        cov: [K, K] posterior covariance; None where the method has none.
    """

    prompt: str | Chat
    mean: np.ndarray
    cov: np.ndarray | None


@dataclass(frozen=True)
@checks_fields
class ServingRule:
    """When an answer other than the plain one is served.

    Attributes:
        caution: standard deviations of the gain that are taken off its mean, 0 or more.
        least_probability: the plain answer is served where the best one is better for the user
            with a lower probability, from 0 to 1.

    Example:
        >>> from jaxalign.mrm import expected_gains
        >>> from jaxalign.personalize import ServingRule
        >>> gains = expected_gains([1.0], [[1.0]], [[0.0], [1.0]])  # 1 +- 1 logits
        >>> ServingRule().choose(gains), ServingRule(least_probability=0.9).choose(gains)
        (1, 0)
    """

    caution: float = 0.0
    least_probability: float = 0.5

    def __post_init__(self) -> None:
        check_number("caution", self.caution, 0)
        check_number("least_probability", self.least_probability, 0, 1)

    def choose(self, gains: Gains) -> int:
        """Return the option to serve; 0 is the plain one."""
        return best_option(gains, self.caution, self.least_probability)

    def cautious_gain(self, answer: "PersonalAnswer") -> float:
        """Return the gain of an answer less `caution` standard deviations, in logits."""
        return answer.gain - self.caution * (answer.sd or 0.0)


@dataclass(frozen=True)
class PersonalAnswer:
    """An answer, and why it was chosen.

    Attributes:
        text: the answer.
        strategy: name of the strategy that gave it, "plain" for a plain answer.
        choice: what was chosen among what, in words.
        gain: expected gain over the plain answer, in logits of a choice; 0 for the plain one.
        sd: posterior standard deviation of the gain; None where the user model has no posterior.
        probability: posterior probability that the answer is better for the user than the plain
            one; None without a posterior, and for a plain answer.
        held_back: whether the plain answer was given although another one has a larger expected
            gain, which was not likely enough to be better.
    """

    text: str
    strategy: str
    choice: str
    gain: float
    sd: float | None
    probability: float | None
    held_back: bool = False


class Strategy(Protocol):
    """One way to a personal answer."""

    @property
    def name(self) -> str:
        """Its name in reports."""
        ...

    def check(self, prompts: Sequence[str | Chat], names: Sequence[str]) -> None:
        """Refuse prompts that cannot be answered, before any work; names are for messages."""
        ...

    def answer(
        self, requests: Sequence[UserRequest], rule: ServingRule, key: jax.Array
    ) -> list[PersonalAnswer]:
        """Return an answer to each request, the plain one where the rule says so."""
        ...


def chosen_answer(
    text: str, strategy: str, choices: Sequence[str], option: int, gains: Gains
) -> PersonalAnswer:
    """Return the answer of an option with its reasons."""
    if not option:
        held_back = bool(gains.mean.max() > 0)
        return PersonalAnswer(text, "plain", choices[0], 0.0, None, None, held_back)
    sd = None if gains.sd is None else float(gains.sd[option])
    probability = None if gains.probability is None else float(gains.probability[option])
    return PersonalAnswer(
        text, strategy, choices[option], float(gains.mean[option]), sd, probability
    )
