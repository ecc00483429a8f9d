"""The base rewards that users' weights are on, and what is known of a user without feedback."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxalign.data.messages import prompt_text
from jaxalign.demo.answers import read_answers
from jaxalign.demo.people import TYPES, WITHIN
from jaxalign.experiments.answer import load_user_model
from jaxalign.experiments.answer_sources import answer_reader
from jaxalign.models.chat import Chat
from jaxalign.mrm import FeedbackPrior, Levels, Prior, UserModel, require
from jaxalign.mrm.calibrated import moved
from jaxalign.mrm.feedback_belief import FeedbackBelief, init_feedback_belief
from jaxalign.mrm.gate import posterior_gain
from jaxalign.mrm.serving import leaves_alone, win_probability
from jaxalign.personalize.strategies.best_of import Read
from jaxalign.personalize.utility import Utility
from jaxalign.rewards import RewardIds, RewardScale, compute_rewards, rule_rewards

LEVELS = Levels(ratings=(2,))
"""Choices without ties, and thumbs."""
LEVEL_SD, LOG_SPREAD_SD = 1.0, 0.5
"""How far people differ in where a good answer begins, in logits, and by which factor in how
decisively they rate. Assumed, and not fitted: no log of thumbs comes with the package.
"""


@dataclass(frozen=True, eq=False)
class RewardSpace:
    """What answers are measured by, and the population of users on it.

    Attributes:
        ids: names of the K base rewards, and the digest that distinguishes them from others.
        named: whether the names mean something to people.
        prior: mean [K] and covariance [K, K] of the weights of a user without feedback.
        read: of N prompts and N answers to the base rewards [N, K].
        source: where it comes from, for people.
        model: the run's user model, whose gate says whom to adapt to; None for the demo's people.
    """

    ids: RewardIds
    named: bool
    prior: Prior
    read: Read
    source: str
    model: UserModel | None = None

    @property
    def reads_prompts(self) -> bool:
        """Whether the rewards of an answer may depend on its prompt, as those of no rule do."""
        return self.model is not None

    @cached_property
    def population(self) -> Utility:
        """The weights of a user without feedback."""
        return Utility(np.asarray(self.prior.mean), np.asarray(self.prior.cov), self.ids)

    @cached_property
    def start(self) -> FeedbackBelief:
        """What is known of a user without feedback; thumbs need rewards whose mean is known."""
        if not self.named:
            return init_feedback_belief(self.prior)
        spread = (jnp.float32(x) for x in (LEVEL_SD, 0.0, LOG_SPREAD_SD))
        edges = LEVELS.edges(jnp.zeros(LEVELS.thresholds))
        return init_feedback_belief(FeedbackPrior(self.prior, edges, *spread))

    def left_alone(self, utility: Utility) -> str | None:
        """Return why the user model does not adapt to a user of these weights, None where it does.

        Args:
            utility: mean [K] and covariance [K, K] of the user's weights.
        """
        if self.model is None:
            return None
        gate = self.model.gate
        if not (gate.adapts and self.model.candidate.get("adapt", True)):
            return f"on the validation users of {self.source}, adapting to users did not help"
        gain = posterior_gain(self.model, utility.mean, utility.cov)
        if gain is None or gain >= gate.support:
            return None
        return (
            f"this user's feedback says too little so far (expected gain {gain:.2g} nats per pair; "
            f"the gate of {self.source} opens at {gate.support:.2g})"
        )

    def left_alone_on(self, utility: Utility, values: np.ndarray) -> str | None:
        """Return why a user is left alone on some answers, None where the user is not.

        Args:
            utility: mean [K] and covariance [K, K] of the user's weights.
            values: [N, K] base rewards of the answers.
        """
        if self.model is None or not self.model.gate.by_pairs:
            return None
        common = self.population
        own, others = (
            moved(win_probability(one.mean, one.cov, values), np.zeros(()), self.model.temperature)
            for one in (utility, common)
        )
        if not leaves_alone(self.model, own, others):
            return None
        return "the user's taste and the population's hardly differ on the answers that were drawn"


def load_space(run: str | Path | None, reward_models: tuple[str, ...] = ()) -> RewardSpace:
    """Return the rewards of a run of `jaxalign mrm train`, or the rules of the demo.

    Args:
        run: folder of the run; None for the rewards by rule with the demo's simulated people.
        reward_models: folders of the reward models that the run's named rewards come from.

    Raises:
        InputError: no such run, a method without a posterior, or rewards that nothing computes.
    """
    return demo_space() if run is None else _run_space(run, reward_models)


def demo_space() -> RewardSpace:
    """Return the five rewards by rule, with the demo's simulated people as the population.

    Example:
        >>> from jaxalign.serve.reward_space import demo_space
        >>> space = demo_space()
        >>> space.ids.names[0], space.read(["Hi"], ["Hello!"]).shape
        ('brevity', (1, 5))
    """
    scale = read_answers().scale
    mean, cov = mixture_moments()
    prior = Prior(jnp.asarray(mean, jnp.float32), jnp.asarray(cov, jnp.float32))
    return RewardSpace(scale.ids, True, prior, _rules(scale), "the demo's simulated people")


def mixture_moments() -> tuple[np.ndarray, np.ndarray]:
    """Return the mean [K] and covariance [K, K] of the weights of the demo's simulated people.

    Example:
        >>> from jaxalign.serve.reward_space import mixture_moments
        >>> [round(float(weight), 2) for weight in mixture_moments()[0]]
        [0.08, 0.38, 0.35, 0.11, 0.2]
    """
    shares, centres = (np.asarray(part, np.float64) for part in zip(*TYPES.values(), strict=True))
    mean = shares @ centres
    beside = centres - mean[None, :]
    return mean, beside.T @ (shares[:, None] * beside) + WITHIN**2 * np.eye(len(mean))


def _rules(scale: RewardScale) -> Read:
    reward = rule_rewards(scale.names)

    def read(prompts: Sequence[str | Chat], answers: Sequence[str]) -> np.ndarray:
        texts = list(map(prompt_text, prompts))
        return scale.standardise(compute_rewards(reward, texts, list(answers)))

    return read


def _run_space(run: str | Path, reward_models: tuple[str, ...]) -> RewardSpace:
    model = load_user_model(run, command="jaxalign serve")
    require(model.method, "posterior", "jaxalign serve")
    prior = model.prior()
    named = model.reward_ids
    ids = named or RewardIds(
        tuple(f"direction {number}" for number in range(len(prior.mean))), model.digest
    )
    read = answer_reader(model, reward_models)
    return RewardSpace(ids, named is not None, prior, read, str(run), model)
