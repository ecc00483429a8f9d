"""Fit on the training users, let validation users choose, judge unseen users on unseen prompts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data.batching import Pairs
from jaxalign.demo.answers import DemoAnswers
from jaxalign.demo.people import Population, SimulatedChoices, choose
from jaxalign.errors import InputError
from jaxalign.metrics.bootstrap import mean_interval
from jaxalign.metrics.scores import share_of_gap
from jaxalign.mrm.bayes import posterior
from jaxalign.mrm.config import BayesConfig
from jaxalign.mrm.hierarchical import HierarchicalBayes
from jaxalign.mrm.reduce import fit_projection
from jaxalign.mrm.registry import Fitted, UserRewardMethod, make_method
from jaxalign.mrm.selection import select
from jaxalign.mrm.support_query import (
    SupportQueryData,
    TrainingData,
    differences,
    one_bucket,
)
from jaxalign.personalize._project import regress, within
from jaxalign.train.blas import one_blas_thread

HELD_OUT = 0.25
"""Share of the prompts that no choice is learned from, and on which alone users are judged."""
TRAIN_CHOICES, SUPPORT, SHOTS, QUERY = 40, 20, 10, 60
CURVE = (0, 1, 2, 5, 10, 20)
DIMS = 128
VERSIONS = (("all", 0.0), ("within prompts", 0.0), ("within prompts", 0.5))
"""Of learned features: whose principal directions, and how far whitened."""
CONFIG = BayesConfig()
DRAWS = 2000


@dataclass(frozen=True)
class Design:
    """Who and what is held out.

    Attributes:
        train, validation, test: [.] int, users.
        known, held_out: [.] int, prompts.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    known: np.ndarray
    held_out: np.ndarray


@dataclass(frozen=True)
class DemoData:
    """One population's choices.

    Attributes:
        people: the users.
        fitted: choices of the training users, on known prompts.
        support: {"validation", "test"} -> choices to adapt on, on known prompts.
        query: {"validation", "test"} -> choices to judge on, on held-out prompts.
    """

    people: Population
    fitted: SimulatedChoices
    support: dict[str, SimulatedChoices]
    query: dict[str, SimulatedChoices]


@dataclass(frozen=True)
class Study:
    """What one kind of rewards made of one population's test users, U of them.

    Attributes:
        setting: what validation users chose.
        one_model: [U, Q] probability of the choices by one Bradley-Terry model for all.
        curve: choices seen -> [U, Q], adapted.
        mean: [U, 5] inferred weights on the standardised traits (projected, if learned).
        cov: [U, 5, 5].
        explained: [U] R^2 of that projection over the held-out answers; 1 for named rewards.
        scores: [U, N] every answer's score.
    """

    setting: dict[str, Any]
    one_model: np.ndarray
    curve: dict[int, np.ndarray]
    mean: np.ndarray
    cov: np.ndarray
    explained: np.ndarray
    scores: np.ndarray

    @property
    def adapted(self) -> np.ndarray:
        """[U, Q] after SHOTS choices."""
        return self.curve[SHOTS]


def design(users: int, prompts: int, seed: int) -> Design:
    """Hold out users and prompts: two thirds of the users train, a tenth validates."""
    rng = np.random.default_rng([seed, 0])
    order, prompt_order = rng.permutation(users), rng.permutation(prompts)
    first, second = round(users * 2 / 3), round(users * 2 / 3) + round(users / 10)
    held = max(1, round(HELD_OUT * prompts))
    return Design(
        train=np.sort(order[:first]),
        validation=np.sort(order[first:second]),
        test=np.sort(order[second:]),
        known=np.sort(prompt_order[held:]),
        held_out=np.sort(prompt_order[:held]),
    )


def simulate(people: Population, answers: DemoAnswers, plan: Design, seed: int) -> DemoData:
    """All choices of one population."""
    rng = np.random.default_rng([seed, 2, *people.name.encode()])
    known, held_out = answers.pairs(plan.known), answers.pairs(plan.held_out)
    if not len(known) or not len(held_out):
        raise InputError(
            f"{len(answers.prompts)} prompts are too few to hold some out: install jaxalign again"
        )

    def ask(users: np.ndarray, pool: np.ndarray, count: int) -> SimulatedChoices:
        return choose(people, users, answers.traits, pool, count, rng)

    roles = {"validation": plan.validation, "test": plan.test}
    return DemoData(
        people,
        ask(plan.train, known, TRAIN_CHOICES),
        {role: ask(users, known, SUPPORT) for role, users in roles.items()},
        {role: ask(users, held_out, QUERY) for role, users in roles.items()},
    )


def learned_features(
    encoded: np.ndarray, answers: DemoAnswers, plan: Design
) -> dict[str, tuple[dict[str, Any], np.ndarray]]:
    """Principal directions of the encoder's features, in the versions validation chooses from.

    Args:
        encoded: [N, E]. The traits are not read.
        answers: for the prompt of each.
        plan: the directions are those of the answers to known prompts.

    Returns:
        name -> (settings in words, features [N, D]).
    """
    fitted = np.isin(answers.prompt, plan.known)
    bases = {"all": encoded, "within prompts": within(encoded, answers.prompt)}
    versions = {}
    for directions, whiten in VERSIONS:
        projection = fit_projection(bases[directions][fitted], DIMS, whiten)
        features = projection.apply(encoded)
        words = {"directions_of": directions, "whiten": whiten, "dims": features.shape[1]}
        versions[f"{directions}, {whiten:g}"] = (words, features)
    return versions


def _pairs(choices: SimulatedChoices, shots: int | None = None) -> Pairs:
    weight = np.zeros(choices.chosen.shape, np.float32)
    weight[:, :shots] = 1
    chosen, rejected = choices.chosen.astype(np.int32), choices.rejected.astype(np.int32)
    return Pairs(chosen, rejected, weight, np.zeros_like(chosen))


_posterior = jax.jit(posterior)


@one_blas_thread
def run_study(
    versions: Mapping[str, tuple[dict[str, Any], np.ndarray]],
    world: DemoData,
    answers: DemoAnswers,
    plan: Design,
) -> Study:
    """Fit every version on training users, choose on validation users, predict for test users.

    The model is chosen by validation users' log-likelihood after SHOTS choices, among the versions
    of the features, the strengths, the temperatures and no adaptation; so is the one model for all.
    """
    choices = one_bucket(_pairs(world.fitted))
    validation = SupportQueryData(
        one_bucket(_pairs(world.support["validation"], SHOTS)),
        one_bucket(_pairs(world.query["validation"])),
    )
    one_model, hierarchical = make_method("bt"), HierarchicalBayes(CONFIG, "bayes")
    best: dict[str, tuple] = {}
    for name, (_, values) in versions.items():
        features = jnp.asarray(values)
        data = TrainingData(features, features, choices)
        fits: dict[str, tuple[UserRewardMethod, Fitted]] = {
            "one_model": (one_model, one_model.fit(data, 0)),
            "bayes": (hierarchical, hierarchical.fit(data, 0)),
        }
        for role, (method, fitted) in fits.items():
            setting, loss = select(method, fitted, features, validation)
            if role not in best or loss < best[role][0]:
                best[role] = (loss, name, method, fitted, setting)
    query = _pairs(world.query["test"])

    def predict(role: str, shots: int) -> np.ndarray:
        _, name, method, fitted, setting = best[role]
        support = _pairs(world.support["test"], shots)
        features = jnp.asarray(versions[name][1])
        return method.predict(fitted, [setting], features, support, query)[0]

    loss, name, _, fitted, setting = best["bayes"]
    words, values = versions[name]
    support = _pairs(world.support["test"], SHOTS if setting["adapt"] else 0)
    known = differences(jnp.asarray(values), support)
    prior = hierarchical.prior(fitted, setting)
    mean, cov = map(np.asarray, _posterior(prior, known, support.weight))
    onto, explained = project(values, mean, answers, plan)
    chosen = {**hierarchical.describe(fitted, setting), "validation_nll": loss}
    return Study(
        {**words, **chosen},
        predict("one_model", 0),
        {shots: predict("bayes", shots) for shots in CURVE},
        mean @ onto.T,
        onto @ cov @ onto.T,
        explained,
        mean @ values.T,
    )


def project(
    values: np.ndarray, mean: np.ndarray, answers: DemoAnswers, plan: Design
) -> tuple[np.ndarray, np.ndarray]:
    """Carry weights on features over to weights on the named traits.

    A user's reward function is regressed on the traits over the answers to held-out prompts, both
    within prompts: only differences between answers to one prompt mean anything.

    Args:
        values: [N, D] features.
        mean: [U, D] weights of users on them.
        answers: the pool, and its traits.
        plan: which prompts are held out.

    Returns:
        The map [5, D], and R^2 [U] of each user's regression.
    """
    pool = np.isin(answers.prompt, plan.held_out)
    return regress(mean, values[pool], answers.traits[pool], answers.prompt[pool])


# Judging --------------------------------------------------------------------------------------


def expected_accuracy(predicted: np.ndarray, choices: SimulatedChoices) -> np.ndarray:
    """How often a prediction's favourite is what the user chooses in a new comparison [U].

    Args:
        predicted: [U, Q] probability of the chosen answer; one half is half right.
        choices: with the true probabilities: no luck of the draw is left in the figure.
    """
    true = choices.probability
    right = np.where(predicted > 0.5, true, np.where(predicted < 0.5, 1 - true, 0.5))
    return right.mean(axis=1)


def gap_interval(
    value: np.ndarray, floor: np.ndarray, ceiling: np.ndarray, seed: int
) -> tuple[float, float]:
    """95 % interval of the share of the gap, users drawn anew; value, floor, ceiling [U]."""
    users = len(value)
    drawn = np.random.default_rng([seed, 3]).integers(0, users, (DRAWS, users))
    shares = [
        share_of_gap(*(float(figure[row].mean()) for figure in (value, floor, ceiling)))
        for row in drawn
    ]
    low, high = np.nanquantile(shares, [0.025, 0.975])
    return float(low), float(high)


def correlations(inferred: np.ndarray, true: np.ndarray) -> list[float | None]:
    """Correlation over users of each trait's weight, then pooled; None where one side is constant.

    Args:
        inferred: [U, K].
        true: [U, K].
    """
    columns = [*zip(inferred.T, true.T, strict=True), (inferred.ravel(), true.ravel())]
    return [
        float(np.corrcoef(one, other)[0, 1]) if np.std(one) > 0 and np.std(other) > 0 else None
        for one, other in columns
    ]


def coverage(study: Study, true: np.ndarray) -> float:
    """Share of true weights [U, K] inside their 95 % intervals."""
    spread = np.sqrt(np.diagonal(study.cov, axis1=1, axis2=2))
    return float(np.mean(np.abs(study.mean - true) <= 1.96 * spread))


def shot_curve(
    predicted: Mapping[int, np.ndarray], choices: SimulatedChoices, seed: int
) -> list[list[float]]:
    """[choices seen, expected accuracy, low, high] for every number of choices."""
    points = []
    for shots, probability in predicted.items():
        interval = mean_interval(seed, expected_accuracy(probability, choices), DRAWS)
        points.append([shots, interval.mean, interval.low, interval.high])
    return points


class MeanInterval(TypedDict):
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


def resampled_mean(seed: int, values: np.ndarray) -> MeanInterval:
    """Return the mean of values [n] of users or prompts, which are drawn anew for its interval."""
    found = mean_interval(seed, values, DRAWS)
    return {"mean": found.mean, "low": found.low, "high": found.high}
