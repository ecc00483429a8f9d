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
from jaxalign.models.chat import Chat, Completion
from jaxalign.models.sampling import Sampling
from jaxalign.personalize.policies.answering import answer_as
from jaxalign.personalize.policies.conditioned import Conditioned
from jaxalign.personalize.utility import Target, Utility, expect_utility
from jaxalign.rewards.reward_scale import RewardIds


def target_for(utility: Utility, table: ValueTable, beta: float = 0.0) -> Target:
    """Return the target that serves a user best: p* = argmax over p of <w, F(p)> - beta KL(p).

    Args:
        utility: of one user, or of users side by side; on the rewards and the scale of the table.
        table: rewards that the policy achieves under each preference.
        beta: price of one nat of KL, in units of utility.

    Returns:
        Target, values [..., R]; the first row among equals.

    Raises:
        InputError: something else than a utility, other rewards, another scale, or a negative
            price.

    Source: ours (weights given as a target lose more than twice the utility that the right target
        does on a bandit of two rewards).

    Example:
        >>> import numpy as np
        >>> from jaxalign.moc.value_table import ValueTable
        >>> from jaxalign.personalize import known, target_for
        >>> from jaxalign.rewards import RewardIds
        >>> table = ValueTable(np.eye(2), [[1.0, -1.0], [-1.0, 1.0]], [0.5, 2.0], ("a", "b"), "0")
        >>> user = known(np.array([0.2, 0.6]), RewardIds(("a", "b"), "0"))
        >>> target_for(user, table).values
        array([0., 1.])
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
    """Answer each prompt under its own preference, all preferences of a batch in one decode call.

    Args:
        policy: conditioned on preferences.
        wanted: one row for each prompt: preferences [B, R]; a `Target` with such rows; or a
            `Utility` of B users, each answered under the best target of the table, or by the
            reference where that is worth more to the user.
        prompts: B prompts, without preferences.
        settings: how tokens are sampled.
        key: random key; a completion depends on its row, prompt and place, not on the batch.
        table: value table of the policy; needed for a utility.
        beta: price of one nat of KL, in units of utility.
        batch_size: the most prompts at once.
        progress: show a bar on standard error when it takes more than a few seconds.

    Returns:
        B completions, in order.

    Raises:
        InputError: rows that do not match the prompts, rewards or a scale that are not the
            policy's, a utility without a table, preferences off the simplex, or as
            `generate_texts`.
    """
    rows = _preferences(policy, wanted, table, beta)
    if rows.shape != (len(prompts), len(policy.names)):
        raise InputError(
            f"wanted: found shape {rows.shape}, expected {(len(prompts), len(policy.names))}, "
            f"a row for each prompt, of {', '.join(policy.names)}."
        )
    policies = Conditioned(policy, np.eye(len(policy.names)))
    return answer_as(
        policy.model, policies, rows, np.arange(len(prompts)), prompts, settings, key,
        batch_size=batch_size, progress=progress,
    )  # fmt: skip


def _preferences(
    policy: ConditionedPolicy,
    wanted: ArrayLike | Target | Utility,
    table: ValueTable | None,
    beta: float,
) -> np.ndarray:
    """Return the preference of each row [B, R]; zeros for the reference."""
    if not isinstance(wanted, Target | Utility):
        return check_simplex(wanted, policy.names, "wanted")
    if isinstance(wanted, Target):
        ids(policy).expect(wanted.reward_ids, "target")
        return check_simplex(wanted.values, policy.names, "target")
    if table is None:
        raise InputError(
            "table: found none for a utility, expected the policy's value table: weights are no "
            "preference; `jaxalign moc evaluate` writes the table."
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
    """Return the table with the reference as its first row, a preference of zeros.

    Its rewards are 0, since the scale was fitted on its completions.
    """
    none = np.zeros((1, len(table.names)))
    return replace(
        table,
        preferences=np.concatenate([none, table.preferences]),
        achieved_rewards=np.concatenate([none, table.achieved_rewards]),
        kl=np.concatenate([none[:, 0], table.kl]),
    )
