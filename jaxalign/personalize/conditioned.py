"""A policy that is told a preference: as a kind of a portfolio's policies, and at work for users.

What it is told is a target, levels of named rewards. A user's utility, weights on them, is never
told: its target is looked up in the policy's value table.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxalign.errors import InputError
from jaxalign.moc.policy import Policy, soft_token
from jaxalign.moc.preferences import simplex, told
from jaxalign.moc.table import ValueTable
from jaxalign.models import lora
from jaxalign.models.chat import Chat, Completion, generate_texts
from jaxalign.models.sampling import Sampling
from jaxalign.models.soups import Adapter
from jaxalign.personalize.utility import Target, Utility, expect_utility
from jaxalign.rewards.reward_scale import RewardIds


class Told(NamedTuple):
    """W times one policy, each time told something else, as generation takes it.

    Attributes:
        policy: of MOC.
        adapters: its one adapter, as a stack of `lora.stack`.
        preferences: [W, R] float32 told; zeros where the reference answers the plain prompt.
    """

    policy: Policy
    adapters: dict[str, Any]
    preferences: np.ndarray

    def arguments(self, policy: ArrayLike) -> dict[str, Any]:
        """Return what `generate` needs for a batch whose rows are of policy [B], 0 to W - 1."""
        own = self.preferences[np.asarray(policy, np.intp)]
        answers = own.any(axis=1)
        found = {"adapters": self.adapters, "rows": np.where(answers, 0, -1).astype(np.int32)}
        if self.policy.conditioning == "token":
            table = self.policy.model.params["embed"]["table"]
            prefix = soft_token(self.policy.trained["token"], table, jnp.asarray(own))
            found |= {"prefix": prefix, "prefix_lengths": answers.astype(np.int32)}
        return found

    def prompts(self, prompts: Sequence[str | Chat], policy: ArrayLike) -> list[str | Chat]:
        """Return what each policy [B] reads for B prompts: the preference, if text tells it."""
        if self.policy.conditioning != "tags":
            return list(prompts)
        own = self.preferences[np.asarray(policy, np.intp)]
        names, decimals = self.policy.names, self.policy.decimals
        return [
            told(names, row, prompt, decimals) if row.any() else prompt
            for prompt, row in zip(prompts, own, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class Conditioned:
    """One policy for every preference: a policy's weights are the preference that it is told.

    Attributes:
        policy: of MOC.
        options: [n, R] preferences among which a user's is looked for.
    """

    policy: Policy = field(repr=False)
    options: np.ndarray
    kind = "conditioned"

    def __post_init__(self) -> None:
        if self.policy.conditioning == "none":
            raise InputError(
                "policy: found one that is told nothing, expected one conditioned on preferences; "
                "policies trained for one weighting each are Tuned."
            )
        options = np.asarray(self.options)
        if options.ndim != 2 or not len(options):
            raise InputError(f"options: found shape {options.shape}, expected [n, R], n above 0.")
        checked = simplex(options, self.policy.names, "options")
        object.__setattr__(self, "options", checked.astype(np.float64))

    @property
    def size(self) -> int:
        """R, how many numbers make a policy."""
        return len(self.policy.names)

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """The one that answers, whatever it is told."""
        return ((self.policy.lora, self.policy.trained["adapter"]),)

    @cached_property
    def _stack(self) -> dict[str, Any]:
        return lora.stack([lora.scaled(tree, config) for config, tree in self.adapters])

    def stacked(self, weights: ArrayLike) -> Told:
        """Return the policy told each of [W, R] preferences; zeros are the reference.

        Raises:
            InputError: what is no preference over the policy's rewards.
        """
        rows = np.asarray(weights, np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.size or not np.isfinite(rows).all():
            raise InputError(
                f"preferences: found shape {rows.shape}, expected finite numbers in rows of "
                f"{self.size}, one for each of {', '.join(self.policy.names)}."
            )
        checked = np.zeros(rows.shape, np.float32)
        own = rows.any(axis=1)
        checked[own] = simplex(rows[own], self.policy.names)
        return Told(self.policy, self._stack, checked)


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

    Source: ours; see `jaxalign.personalize.utility.target_of`.
    """
    known = RewardIds(table.names, table.digest)
    return Target(table.best(expect_utility(utility, known).mean, beta), known)


def answer_told(
    policy: Policy,
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
    stacked = Conditioned(policy, np.eye(len(policy.names))).stacked(rows)
    own = np.arange(len(prompts))
    return generate_texts(
        policy.model,
        stacked.prompts(prompts, own),
        settings,
        key,
        **stacked.arguments(own),
        batch_size=batch_size,
        progress=progress,
    )


def _preferences(
    policy: Policy, wanted: ArrayLike | Target | Utility, table: ValueTable | None, beta: float
) -> np.ndarray:
    """What each row is told [B, R]; zeros for the reference."""
    if not isinstance(wanted, Target | Utility):
        return simplex(wanted, policy.names, "wanted") if np.size(wanted) else np.asarray(wanted)
    if isinstance(wanted, Target):
        ids(policy).expect(wanted.reward_ids, "target")
        return simplex(wanted.values, policy.names, "target")
    if table is None:
        raise InputError(
            "table: found none for a utility, expected the policy's value table: weights are not "
            "what a policy is told; `jaxalign moc evaluate` writes it."
        )
    ids(policy).expect(RewardIds(table.names, table.digest), "table")
    return target_for(wanted, _with_reference(table), beta).values


def ids(policy: Policy) -> RewardIds:
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
        told=np.concatenate([none, table.told]),
        reached=np.concatenate([none, table.reached]),
        kl=np.concatenate([none[:, 0], table.kl]),
    )
