"""One policy for every preference: the weights of a policy are the preference that it is given."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxalign.errors import InputError
from jaxalign.moc.policy import ConditionedPolicy, soft_token
from jaxalign.moc.preferences import check_simplex, insert_preference_tag
from jaxalign.models import lora
from jaxalign.models.chat import Chat
from jaxalign.personalize.policies.adapters import Adapter


class PreferenceConditionedBatch(NamedTuple):
    """W times one policy, each time told something else, as generation takes it.

    Attributes:
        policy: of MOC.
        adapters: its one adapter, as a stack of `lora.stack`.
        preferences: [W, R] float32 told; zeros where the reference answers the plain prompt.
    """

    policy: ConditionedPolicy
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
            insert_preference_tag(names, row, prompt, decimals) if row.any() else prompt
            for prompt, row in zip(prompts, own, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class Conditioned:
    """One policy for every preference: a policy's weights are the preference that it is told.

    Attributes:
        policy: of MOC.
        options: [n, R] preferences among which a user's is looked for.
    """

    policy: ConditionedPolicy = field(repr=False)
    options: np.ndarray
    kind = "conditioned"

    def __post_init__(self) -> None:
        if self.policy.conditioning == "none":
            raise InputError(
                "policy: found one that is told nothing, expected one conditioned on preferences; "
                "policies trained for one weighting each are Separate."
            )
        options = np.asarray(self.options)
        if options.ndim != 2 or not len(options):
            raise InputError(f"options: found shape {options.shape}, expected [n, R], n above 0.")
        checked = check_simplex(options, self.policy.names, "options")
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

    def stacked(self, weights: ArrayLike) -> PreferenceConditionedBatch:
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
        checked[own] = check_simplex(rows[own], self.policy.names)
        return PreferenceConditionedBatch(self.policy, self._stack, checked)
