"""What MOC is judged against, with the same trainer: other configs of it, and other policies."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxalign.errors import InputError
from jaxalign.experiments.moc.judge import EvaluatedPolicy
from jaxalign.moc.config import MocConfig
from jaxalign.moc.policy import ConditionedPolicy
from jaxalign.moc.preferences import check_simplex
from jaxalign.personalize.policies import Adapter, Conditioned, Mixing, Separate, Soups


def morlhf(config: MocConfig, weight: ArrayLike) -> MocConfig:
    """Return the config of a policy for one weighting: unconditioned, trained on sum_i w_i R_i.

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
    """Return the config of the ablation: conditioned, with the reward -mean_j (r_j - p_j)^2."""
    return replace(config, reward="closeness")


def conditioned(
    policy: ConditionedPolicy,
    name: str,
    preferences: NDArray[np.float32],
    seen: NDArray[np.bool_],
) -> EvaluatedPolicy:
    """Return one policy to be judged under preferences [W, R], of which `seen` were trained on.

    Raises:
        InputError: the policy is conditioned on nothing.
    """
    policies = Conditioned(policy, preferences)
    return EvaluatedPolicy(name, policy.model, policies, preferences, preferences, seen)


def separate(
    policies: Sequence[ConditionedPolicy], weights: NDArray[np.float32], name: str = "MORLHF"
) -> EvaluatedPolicy:
    """Return n policies to be judged under the weightings [n, R] that each was trained on.

    Raises:
        InputError: policies that cannot be decoded together.
    """
    kind = Separate(_adapters(policies, name))
    seen = np.ones(len(weights), bool)
    return EvaluatedPolicy(name, policies[0].model, kind, weights, np.eye(len(weights)), seen)


def soups(
    policies: Sequence[ConditionedPolicy],
    preferences: NDArray[np.float32],
    seen: NDArray[np.bool_],
    name: str = "soups",
) -> EvaluatedPolicy:
    """Return rewarded soups of R policies, the i-th trained on reward i alone.

    Source: Rame et al. 2023, https://arxiv.org/abs/2306.04488.
    """
    kind = Soups(_adapters(policies, name))
    return EvaluatedPolicy(name, policies[0].model, kind, preferences, preferences, seen)


def mixing(
    policies: Sequence[ConditionedPolicy],
    preferences: NDArray[np.float32],
    seen: NDArray[np.bool_],
    name: str = "MOD",
) -> EvaluatedPolicy:
    """Return R policies that draw each token together, the i-th trained on reward i alone.

    Source: Shi et al. 2024, https://arxiv.org/abs/2406.18853 (MOD).
    """
    kind = Mixing(_adapters(policies, name))
    return EvaluatedPolicy(name, policies[0].model, kind, preferences, preferences, seen)


def _adapters(policies: Sequence[ConditionedPolicy], name: str) -> tuple[Adapter, ...]:
    """The adapters of unconditioned policies of one model."""
    first = policies[0]
    for policy in policies:
        if policy.conditioning != "none" or policy.model.sha256 != first.model.sha256:
            raise InputError(
                f"{name}: found a policy on {policy.model.name} conditioned by "
                f"{policy.conditioning!r}; expected unconditioned policies, all of one model."
            )
    return tuple((policy.lora, policy.trained["adapter"]) for policy in policies)
