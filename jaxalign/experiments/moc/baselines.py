"""What MOC is judged against, with the same trainer: other configs of it, and other speakers."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxalign.errors import InputError
from jaxalign.experiments.moc.judge import EvaluatedPolicy
from jaxalign.moc.config import MocConfig
from jaxalign.moc.policy import ConditionedPolicy, generation_arguments, prepare_prompts
from jaxalign.moc.preferences import check_simplex
from jaxalign.personalize.policies import Mixing, Separate, Soups, StackedAdapters


def morlhf(config: MocConfig, weight: ArrayLike) -> MocConfig:
    """Return the config of a policy for one weighting: told nothing, trained on sum_i w_i R_i.

    All weight on one reward is plain PPO on it, what soups and mixing are made of.

    Args:
        config: of the run that it is compared with.
        weight: [R] on the simplex.
    """
    only = tuple(float(share) for share in check_simplex(weight, None, "weight"))
    return replace(
        config,
        conditioning="none",
        reward="weighted",
        preferences=replace(
            config.preferences, kind="list", listed=(only,), held_out=(), decimals=6
        ),
    )


def closeness(config: MocConfig) -> MocConfig:
    """Return the config of the ablation: the preference told, the reward -mean_j (r_j - p_j)^2."""
    return replace(config, reward="closeness")


def conditioned(policy: ConditionedPolicy, name: str) -> EvaluatedPolicy:
    """A policy that is told the preference.

    Raises:
        InputError: it is told nothing.
    """
    if policy.conditioning == "none":
        raise InputError(
            f"{name} is told nothing; expected a policy that is conditioned on preferences."
        )

    def told(preferences: NDArray[np.float32]) -> dict[str, Any]:
        return generation_arguments(policy, preferences)

    return EvaluatedPolicy(
        name, policy.model, lambda prompts, rows: prepare_prompts(policy, prompts, rows), told
    )


def tuned(
    policies: Sequence[ConditionedPolicy], weights: ArrayLike, name: str = "MORLHF"
) -> EvaluatedPolicy:
    """A policy for each of some weightings, each answering under its own only.

    Args:
        policies: n of them, told nothing.
        weights: [n, R] that they were trained on.
        name: in tables.

    Raises:
        InputError: policies that cannot answer beside each other; later, a preference that none
            was trained on.
    """
    known = check_simplex(weights, policies[0].names, "weights")

    def own(preferences: NDArray[np.float32]) -> NDArray[np.float64]:
        gaps = np.abs(preferences[:, None] - known[None]).max(axis=2)
        if gaps.min(axis=1).max() > 1e-4:
            row = int(np.argmax(gaps.min(axis=1)))
            raise InputError(
                f"{name}: found the preference {preferences[row].tolist()}, expected one that a "
                f"policy was trained on: {known.tolist()}."
            )
        return np.eye(len(known))[gaps.argmin(axis=1)]

    return _blended(policies, Separate(_adapters(policies)), own, name)


def soups(policies: Sequence[ConditionedPolicy], name: str = "soups") -> EvaluatedPolicy:
    """Rewarded soups of R policies, the i-th trained on reward i alone.

    Source: Rame et al. 2023, https://arxiv.org/abs/2306.04488.
    """
    return _blended(policies, Soups(_adapters(policies)), np.asarray, name)


def mixing(policies: Sequence[ConditionedPolicy], name: str = "MOD") -> EvaluatedPolicy:
    """R policies that draw each token together, the i-th trained on reward i alone.

    Source: Shi et al. 2024, https://arxiv.org/abs/2406.18853 (MOD).
    """
    return _blended(policies, Mixing(_adapters(policies)), np.asarray, name)


@dataclass
class _Batches:
    """Policies of the preferences of a batch, padded so that all batches have one shape."""

    kind: Soups | Mixing | Separate
    widest: int = field(default=0, init=False)
    last: tuple[bytes, StackedAdapters] | None = field(default=None, init=False)

    def arguments(self, weights: NDArray[np.float64]) -> dict[str, Any]:
        once, place = np.unique(weights, axis=0, return_inverse=True)
        self.widest = max(self.widest, len(once))
        padded = np.concatenate([once, np.repeat(once[-1:], self.widest - len(once), axis=0)])
        if self.last is None or self.last[0] != padded.tobytes():
            self.last = padded.tobytes(), self.kind.stacked(padded)
        return self.last[1].arguments(place.reshape(-1))


def _blended(
    policies: Sequence[ConditionedPolicy],
    kind: Soups | Mixing | Separate,
    weights_of: Any,
    name: str,
) -> EvaluatedPolicy:
    batches, first = _Batches(kind), policies[0]
    for policy in policies:
        if policy.conditioning != "none" or policy.model.sha256 != first.model.sha256:
            raise InputError(
                f"{name}: found a policy on {policy.model.name} conditioned by "
                f"{policy.conditioning!r}; expected policies that are told nothing, all of one "
                "model."
            )

    def told(preferences: NDArray[np.float32]) -> dict[str, Any]:
        return batches.arguments(np.asarray(weights_of(preferences), np.float64))

    return EvaluatedPolicy(
        name, first.model, lambda prompts, rows: prepare_prompts(first, prompts, rows), told
    )


def _adapters(policies: Sequence[ConditionedPolicy]) -> tuple[Any, ...]:
    return tuple((policy.lora, policy.trained["adapter"]) for policy in policies)
