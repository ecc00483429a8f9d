"""The numbers of a build's report: worst gaps, members, and portfolios of every size compared."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NotRequired, TypedDict, cast, get_args

import numpy as np

from jaxalign.palm._search import SearchState, known_values
from jaxalign.palm.baselines import Baseline, baseline_weights
from jaxalign.palm.candidates import Candidates
from jaxalign.palm.certificate import HeldOut, held_out
from jaxalign.palm.config import Criterion, PalmConfig
from jaxalign.palm.domain import Floats, coordinates, corners, extend
from jaxalign.palm.gaps import share_of, worst_ratio
from jaxalign.palm.oracle import BatchOracle, Evaluator, Oracle, Policies, stack
from jaxalign.palm.portfolio import Portfolio
from jaxalign.palm.select import choose
from jaxalign.rewards.reward_scale import RewardScale

Measure = Literal["additive_sd", "share_lost", "mean_lost"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
"""Worst gap in standard deviations; share of the improvement that the worst user loses, and that
all users together lose."""


LOST = 0.05
"""Share of the improvement whose loss names the smallest sufficient size."""
_USERS = 2000


class SizeRow(TypedDict):
    """One method with portfolios of one size, on prompts that nothing was chosen on."""

    method: str
    size: int
    additive_sd: float
    share_lost: float
    mean_lost: float
    optimal: NotRequired[bool]
    additive_sd_low: NotRequired[float]
    additive_sd_high: NotRequired[float]
    share_lost_low: NotRequired[float]
    share_lost_high: NotRequired[float]


@dataclass(frozen=True)
class BuiltPortfolio:
    """What a build came to.

    Attributes:
        portfolio: the portfolio.
        held_out: its worst gaps on prompts that nothing was chosen on.
        sizes: the comparison with other weights, by size; empty for none.
        source: name of the data.
        chosen_on: number of prompts that the members were chosen on.
        weight_names: what each weight of a trained policy is of; None where a member's weights are
            those of the rewards that it is the optimum for.
    """

    portfolio: Portfolio
    held_out: HeldOut
    sizes: list[SizeRow]
    source: str
    chosen_on: int
    weight_names: tuple[str, ...] | None = None


def compare_sizes(
    oracle: Oracle,
    evaluator: Evaluator,
    config: PalmConfig,
    found: SearchState,
    sizes: int = 10,
    draws: int = 20,
    band_draws: int = 1000,
    level: float = 0.95,
    say: Callable[[str], None] = lambda _: None,
) -> list[SizeRow]:
    """Return how far portfolios of sizes 1 to `sizes` are from the pool, on other prompts.

    A portfolio is chosen twice: for the least additive gap and for the least share lost. For the
    rules that draw weights, values are means over `draws`. Besides the worst user, 2,000 users
    drawn evenly from the domain are judged by what they lose of their improvement together.

    Args:
        oracle: oracle on the prompts to choose on.
        evaluator: evaluator on the other prompts.
        config: tolerances, floor and the seconds of a selection.
        found: the search, whose pool all are judged against.
        sizes: largest size, the free reference not counted.
        draws: draws of the random and the k-center weights.
        band_draws: bootstrap draws of the band; 0 for none.
        level: level of the band.
        say: called with one line on what is being done.

    Returns:
        One row per method and size.
    """
    judge = _Judge(oracle, evaluator, config, found, band_draws, level)
    known = known_values(oracle, config, found.policies)
    rows: list[SizeRow] = []
    for size in range(1, sizes + 1):
        say(f"size {size} of {sizes}: chosen, and beside uniform, random and k-center weights")
        for criterion in get_args(Criterion):
            wanted = replace(config, size=size, criterion=criterion)
            chosen = choose(known[1:], known[0], oracle.spread, wanted)
            row = judge.with_band(found.policies.take(chosen.members))
            proof = {"method": f"palm, {criterion}", "optimal": chosen.summary.optimal}
            rows.append(cast(SizeRow, {**proof, "size": size, **row}))
        for kind in get_args(Baseline):
            seeds = 1 if kind == "uniform" else draws
            weights = np.concatenate(
                [
                    baseline_weights(kind, oracle.num_rewards, size, config.weights, seed)
                    for seed in range(seeds)
                ]
            )
            members = _solve(oracle, weights)
            parts = [
                judge(members.take(np.arange(seed * size, seed * size + size)))
                for seed in range(seeds)
            ]
            mean = {name: float(np.mean([part[name] for part in parts])) for name in MEASURES}
            rows.append(cast(SizeRow, {"method": kind, "size": size, **mean}))
    return rows


def smallest(rows: Sequence[SizeRow], measure: Measure = "share_lost") -> int | None:
    """Return the least size from which on PALM loses less than 5 %, None if there is none.

    Args:
        rows: rows of `compare_sizes`.
        measure: "share_lost" of the worst user, or "mean_lost" of all.

    Example:
        >>> from jaxalign.experiments.palm.statistics import smallest
        >>> common = {"method": "palm, share", "additive_sd": 0.1, "mean_lost": 0.01}
        >>> smallest([{**common, "size": s, "share_lost": 0.1 / s} for s in (1, 2, 3)])
        3
    """
    found = {row["size"]: row[measure] for row in rows if row["method"] == "palm, share"}
    good = [size for size in sorted(found) if all(found[s] < LOST for s in found if s >= size)]
    return good[0] if good else None


def described_members(built: BuiltPortfolio) -> list[dict[str, object]]:
    """Return every member with its weight, expected rewards and KL, the reference first.

    Weights are those of the rewards that a member is the optimum for; of a trained policy, those of
    the adapters or the preference that make it.
    """
    members, names = built.portfolio.members, built.weight_names
    described: list[dict[str, object]] = []
    for place in range(len(members)):
        weight = members.payload["weight"][place].tolist() if place else None
        one: dict[str, object] = {"weight": weight}
        if names is not None and weight is not None:
            one["made_of"] = dict(zip(names, weight, strict=True))
        one |= {"rewards": members.rewards[place].tolist(), "kl": float(members.kl[place])}
        described.append(one)
    return described


def clipped_share(candidates: Candidates, scale: RewardScale) -> dict[str, float]:
    """Return the share of the candidates whose reward lies outside the levels, by reward."""
    levels = scale.levels(candidates.rewards[candidates.log_ref > -np.inf])
    off = ((levels < 0) | (levels > 1)).mean(axis=0)
    return dict(zip(scale.names, off.tolist(), strict=True))


def _solve(oracle: Oracle, weights: Floats) -> Policies:
    if isinstance(oracle, BatchOracle):
        return stack(oracle.many(weights))
    return stack([oracle(weight) for weight in weights])


class _Judge:
    """What members are worth on the evaluator's prompts."""

    def __init__(
        self,
        oracle: Oracle,
        evaluator: Evaluator,
        config: PalmConfig,
        found: SearchState,
        draws: int,
        level: float,
    ) -> None:
        self.evaluator, self.config, self.spread = evaluator, config, oracle.spread
        self.draws, self.level = draws, level
        self.corners = corners(config.weights, oracle.num_rewards)
        reference = {name: np.asarray(a)[None] for name, a in oracle.reference.payload.items()}
        free = Policies(oracle.reference.rewards[None], np.array([oracle.reference.kl]), reference)
        self.reference = self._values(free)
        self.pool = self._values(found.policies)
        users = np.random.default_rng(0).dirichlet(np.ones(oracle.num_rewards), _USERS)
        if config.weights == "signed":
            users *= np.random.default_rng(1).choice([-1.0, 1.0], users.shape)
        self.users = extend(config.weights, users)
        self.best = np.max(self.users @ self._means(self.pool).T, axis=1)
        self.free = self.users @ self._means(self.reference)[0]

    def _values(self, policies: Policies) -> Floats:
        """[n, X, D] on single prompts."""
        outcomes = self.evaluator.outcomes(policies)
        return coordinates(self.config.weights, *outcomes, self.evaluator.beta)

    @staticmethod
    def _means(values: Floats) -> Floats:
        return values.mean(axis=1)

    def __call__(self, members: Policies) -> dict[Measure, float]:
        values = self._means(np.concatenate([self.reference, self._values(members)]))
        at_pool, at_members = (x @ self.corners.T for x in (self._means(self.pool), values))
        units = np.abs(self.corners[:, : len(self.spread)]) @ self.spread
        every, gained = np.broadcast_to(units, at_pool.shape), at_pool - at_members[:1]
        cap = self.config.floor * units
        share = share_of(worst_ratio(at_pool, at_members, gained, self.corners, cap))
        return {
            "additive_sd": worst_ratio(at_pool, at_members, every, self.corners).value,
            "share_lost": max(share.value, 0.0),
            "mean_lost": self._mean_lost(values),
        }

    def with_band(self, members: Policies) -> Mapping[str, float]:
        if not self.draws:
            return {name: value for name, value in self(members).items()}
        values = np.concatenate([self.reference, self._values(members)])
        found = held_out(
            self.pool, values, self.spread, self.corners, self.draws, self.level,
            floor=self.config.floor,
        )  # fmt: skip
        return {
            "additive_sd": found.report.additive_sd.value,
            "share_lost": found.report.share_lost.value,
            "mean_lost": self._mean_lost(self._means(values)),
            "additive_sd_low": found.additive_sd_low,
            "additive_sd_high": found.additive_sd_high,
            "share_lost_low": found.share_low,
            "share_lost_high": found.share_high,
        }

    def _mean_lost(self, values: Floats) -> float:
        """Share that all users lose of their improvement, summed over them."""
        served = np.max(self.users @ values.T, axis=1)
        best = np.maximum(self.best, served)
        return float(np.sum(best - served) / max(np.sum(best - self.free), 1e-12))
