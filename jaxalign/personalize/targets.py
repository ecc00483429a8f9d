"""From a user's utility to a target, and answers of a policy that is conditioned on targets.

A target gives the levels of named rewards that a conditioned policy aims at. A user's utility holds
weights on those rewards; the policy's value table turns it into a target.
"""

from collections.abc import Sequence
from dataclasses import replace

import jax
import numpy as np
from numpy.typing import ArrayLike

from jaxalign.errors import InputError
from jaxalign.moc.policy import ConditionedPolicy
from jaxalign.moc.preferences import check_simplex
from jaxalign.moc.value_table import ValueTable
from jaxalign.models.chat import Chat, Completion, generate_texts
from jaxalign.models.sampling import Sampling
from jaxalign.personalize.policies.conditioned import Conditioned
from jaxalign.personalize.utility import Target, Utility, expect_utility
from jaxalign.rewards.reward_scale import RewardIds


def target_for(utility: Utility, table: ValueTable, beta: float = 0.0) -> Target:
    """Return what to tell a policy for a user: p* = argmax over p of <w, F(p)> - beta KL(p).

    Args:
        utility: of one user, or of users side by side; on the rewards and the scale of the table.
        table: what the policy reaches when told each preference.
        beta: price of one nat of KL, in units of utility.

    Returns:
        Target, values [..., R]; the first row among equals.

    Raises:
        InputError: what is no utility, or other rewards or another scale.

    Source: ours (weights given as a target lose more than twice the utility that the right target
        does on a bandit of two rewards).
    """
    known = RewardIds(table.names, table.digest)
    return Target(table.best(expect_utility(utility, known).mean, beta), known)


def answer_conditioned(
    policy: ConditionedPolicy,
    wanted: ArrayLike | Target | Utility,
    prompts: Sequence[str | Chat],
    settings: Sampling,
    key: jax.Array,
    *,
    table: ValueTable | None = None,
    beta: float = 0.0,
    batch_size: int = 64,
    progress: bool = True,
) -> list[Completion]:
    """Answer each prompt as its own preference asks, all preferences in one decode call a batch.

    Args:
        policy: of MOC, conditioned on preferences.
        wanted: one row a prompt: preferences [B, R]; a `Target` of such; or a `Utility` of B
            users, each told the best target of the table, or answered by the reference where no
            target is worth more to the user than that is.
        prompts: B, without preference.
        settings: how tokens are drawn.
        key: random key; an answer depends on its row, prompt and place, not on the batch.
        table: of the policy; needed by a utility.
        beta: price of one nat of KL, in units of utility.
        batch_size: most prompts at once.
        progress: show a bar on stderr when it takes more than a few seconds.

    Returns:
        B answers, in order.

    Raises:
        InputError: rows that do not match the prompts, rewards or a scale that are not the
            policy's, a utility without a table, what is no preference, or as `generate_texts`.
    """
    rows = _preferences(policy, wanted, table, beta)
    if rows.shape != (len(prompts), len(policy.names)):
        raise InputError(
            f"wanted: found shape {rows.shape}, expected {(len(prompts), len(policy.names))}, "
            f"a row for each prompt, of {', '.join(policy.names)}."
        )
    if not len(prompts):
        return []
    policies = Conditioned(policy, np.eye(len(policy.names)))
    return generate_texts(
        policy.model,
        [policies.prompt(*pair) for pair in zip(prompts, rows, strict=True)],
        settings,
        key,
        **policies.stacked(rows).arguments(np.arange(len(prompts))),
        batch_size=batch_size,
        progress=progress,
    )


def _preferences(
    policy: ConditionedPolicy,
    wanted: ArrayLike | Target | Utility,
    table: ValueTable | None,
    beta: float,
) -> np.ndarray:
    """What each row is told [B, R]; zeros for the reference."""
    if not isinstance(wanted, Target | Utility):
        return (
            check_simplex(wanted, policy.names, "wanted") if np.size(wanted) else np.asarray(wanted)
        )
    if isinstance(wanted, Target):
        ids(policy).expect(wanted.reward_ids, "target")
        return check_simplex(wanted.values, policy.names, "target")
    if table is None:
        raise InputError(
            "table: found none for a utility, expected the policy's value table: weights are not "
            "what a policy is told; `jaxalign moc evaluate` writes it."
        )
    ids(policy).expect(RewardIds(table.names, table.digest), "table")
    return target_for(wanted, _with_reference(table), beta).values


def ids(policy: ConditionedPolicy) -> RewardIds:
    """Return which rewards a policy's targets are about.

    Raises:
        InputError: a policy without a scale.
    """
    if policy.scale is None:
        raise InputError(
            "policy: found no scale of its rewards, expected the one that it was trained with; "
            "without it targets and utilities mean nothing: train it by `jaxalign moc train`."
        )
    return RewardIds(tuple(policy.names), policy.scale.digest)


def _with_reference(table: ValueTable) -> ValueTable:
    """The table with the reference first, told nothing.

    Its rewards are 0: the units are those of a scale that was fitted on its answers.
    """
    none = np.zeros((1, len(table.names)))
    return replace(
        table,
        preferences=np.concatenate([none, table.preferences]),
        achieved_rewards=np.concatenate([none, table.achieved_rewards]),
        kl=np.concatenate([none[:, 0], table.kl]),
    )
