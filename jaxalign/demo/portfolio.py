"""The demo's second stage: few policies for all the users, and what each of them loses by it."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign import palm
from jaxalign.demo.answers import DemoAnswers
from jaxalign.demo.study import SHOTS, DemoData, Design, Study
from jaxalign.personalize import Router, Routes, Utility, build_signed, guarantees, known
from jaxalign.rewards.rules import TRAITS

BETA = 0.5
"""Price of a nat of KL, in logits of a choice."""
RADIUS = 7.0
"""Sizes of weights that the portfolio is built for, summed over the traits, in logits."""
SIZE = 10
CONFIG = palm.PalmConfig(
    weights="signed", stop_eps=0.0, stop_delta=0.02, max_calls=40, size=SIZE, time_limit=60.0,
    refine=2,
)  # fmt: skip
DRAWS = 1024
# Rounding of float32, in logits: less is no loss.
_ROUNDING = 1e-4


@dataclass(frozen=True)
class PortfolioStage:
    """What the second stage found.

    Attributes:
        report: its part of report.json.
        router: the portfolio at work.
        weights: [U, 5] true weights of all users.
        member: [U] int, where true weights send them.
        inferred: [T] int, where what was inferred from few choices sends the test users.
    """

    report: dict[str, Any]
    router: Router
    weights: np.ndarray
    member: np.ndarray
    inferred: np.ndarray


def candidates(answers: DemoAnswers, prompts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Traits [X, C, 5] of the answers to some prompts, and log 1 / n [X, C], -inf where absent."""
    rows = [np.flatnonzero(answers.prompt == prompt) for prompt in prompts]
    rewards = np.zeros((len(rows), max(map(len, rows)), answers.traits.shape[1]), np.float32)
    log_ref = np.full(rewards.shape[:2], -np.inf, np.float32)
    for index, row in enumerate(rows):
        rewards[index, : len(row)] = answers.traits[row]
        log_ref[index, : len(row)] = -np.log(len(row))
    return rewards, log_ref


def run_stage(
    answers: DemoAnswers, plan: Design, world: DemoData, study: Study, seed: int
) -> PortfolioStage:
    """Build a portfolio on the known prompts, route everyone to it, and compare with their best.

    Args:
        answers: the candidates, and the scale of their traits.
        plan: which prompts the portfolio may see, and who is a test user.
        world: users with linear taste, their true weights known.
        study: what was inferred of the test users on named rewards.
        seed: of the draws of inferred weights.
    """
    rewards, log_ref = candidates(answers, plan.known)
    oracle = palm.ClosedForm(
        rewards, log_ref, BETA / RADIUS, reward_range=None, names=tuple(TRAITS)
    )
    ids = answers.scale.ids
    # Their mean and spread over users are those of the population.
    crowd = np.cov(study.mean.T) + study.cov.mean(axis=0)
    population = Utility(study.mean.mean(axis=0), crowd, ids)
    router = Router(build_signed(oracle, CONFIG, answers.scale), ids, BETA, population)
    true = known(world.people.weights, ids)
    inferred = Utility(study.mean, study.cov, ids)
    routes, guessed = router.route(true), router.route(inferred)
    sure = router.confidence(inferred, guessed.member, jax.random.key(seed), DRAWS)
    on = {
        name: _Prompts(answers, getattr(plan, name), router, true.mean)
        for name in ("known", "held_out")
    }
    report = {
        "members": len(router.values),
        "solved": len(router.portfolio.pool),
        "search_done": router.portfolio.search_done,
        "beta": BETA,
        "radius": RADIUS,
        "guarantees": [found.as_dict() for found in guarantees(router)],
        "true_weights": _served(np.arange(len(true.mean)), routes, on),
        "inferred": {
            "choices": SHOTS,
            **_served(plan.test, guessed, on),
            "same_member_as_true": float((guessed.member == routes.member[plan.test]).mean()),
            "probability_best": float(sure.probability.mean()),
            "probability_best_error": float(sure.error.max()),
        },
        "population_member": router.population_member,
        "disliking_share": float((world.people.weights < 0).any(axis=1).mean()),
    }
    return PortfolioStage(report, router, world.people.weights, routes.member, guessed.member)


def _served(users: np.ndarray, routes: Routes, on: dict[str, "_Prompts"]) -> dict[str, Any]:
    share = np.bincount(routes.member, minlength=len(on["known"].values)) / len(users)
    used = share[share > 0]
    return {
        "users": len(users),
        **{name: prompts.regret(users, routes.member) for name, prompts in on.items()},
        "usage": share.tolist(),
        "perplexity": float(np.exp(-np.sum(used * np.log(used)))),
        "near_zero": int(routes.near_zero.sum()),
        "beyond": int(routes.beyond.sum()),
    }


class _Prompts:
    """Members and users' optima on some prompts; weights and values in logits."""

    def __init__(
        self, answers: DemoAnswers, prompts: np.ndarray, router: Router, weights: np.ndarray
    ) -> None:
        rewards, log_ref = map(jnp.asarray, candidates(answers, prompts))
        solved = router.portfolio.members.payload["weight"] * router.radius
        count = len(solved)
        everything = jnp.asarray(np.concatenate([solved, weights]), jnp.float32)
        found = palm.sweep(rewards, log_ref, everything, BETA)
        kl = np.maximum(np.asarray(found.kl[:count], np.float64), 0.0)
        self.values = palm.coordinates("signed", found.expected[:count], kl, BETA)
        self.best = np.asarray(found.values[count:], np.float64)
        self.at = weights @ self.values[:, :-1].T + self.values[:, -1]

    def regret(self, users: np.ndarray, member: np.ndarray) -> dict[str, float]:
        """What users [T] lose by a member [T] against their own optimum on these prompts."""
        served, reference = self.at[users, member], self.at[users, 0]
        lost, gain = self.best[users] - served, self.best[users] - reference
        return {
            "mean_regret": float(lost.mean()),
            "worst_regret": float(lost.max()),
            "mean_improvement": float(gain.mean()),
            "share_lost": float(lost.mean() / gain.mean()),
            "below_reference": float((served < reference - _ROUNDING).mean()),
        }
