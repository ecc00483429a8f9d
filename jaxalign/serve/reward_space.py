"""The base rewards that users' weights are on, and what is known of a user without feedback."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxalign.data.messages import prompt_text
from jaxalign.demo.answers import read_answers
from jaxalign.demo.people import TYPES, WITHIN
from jaxalign.experiments.answer import load_user_model
from jaxalign.experiments.answer_sources import answer_reader
from jaxalign.models.chat import Chat
from jaxalign.mrm import Prior, require
from jaxalign.personalize.strategies.best_of import Read
from jaxalign.rewards import RewardIds, RewardScale, compute_rewards, rule_rewards


@dataclass(frozen=True, eq=False)
class RewardSpace:
    """What answers are measured by, and the population of users on it.

    Attributes:
        ids: names of the K base rewards, and the digest that tells them from others.
        named: whether the names mean something to people.
        prior: mean [K] and covariance [K, K] of the weights of a user without feedback.
        read: of N prompts and N answers to the base rewards [N, K].
        source: where it comes from, for people.
    """

    ids: RewardIds
    named: bool
    prior: Prior
    read: Read
    source: str


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
    return RewardSpace(ids, named is not None, prior, answer_reader(model, reward_models), str(run))
