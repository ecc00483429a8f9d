"""One policy for every preference: the weights of a policy are the preference that it is given."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxalign.errors import InputError
from jaxalign.moc.policy import ConditionedPolicy, soft_token
from jaxalign.moc.preferences import check_simplex, insert_preference_tag
from jaxalign.models import lora
from jaxalign.models.chat import Chat
from jaxalign.models.params import Params, leaf
from jaxalign.personalize.policies.adapters import Adapter
from jaxalign.rollout.policies import GenerationArguments


class PreferenceConditionedBatch(NamedTuple):
    """W times one policy, each time given another preference, as generation takes it.

    Attributes:
        policy: conditioned on preferences.
        adapter: its scaled adapter; where the reference is among the policies, as a stack of one.
            Of the conditioning "adapters", the stack that preferences mix.
        preferences: [W, R] float32; zeros where the reference answers the plain prompt.
    """

    policy: ConditionedPolicy
    adapter: Params
    preferences: np.ndarray

    @property
    def params(self) -> None:
        """The model's own parameters are used."""
        return None

    def arguments(self, policy: ArrayLike) -> GenerationArguments:
        """Return what `generate` needs for a batch whose rows are of policy [B], 0 to W - 1."""
        rows = self.preferences[np.asarray(policy, np.intp)]
        adapted = np.asarray(rows.any(axis=1))
        found: GenerationArguments = {"adapters": self.adapter}
        if self.policy.conditioning == "adapters":
            found["rows"] = rows  # zeros are the reference
            return found
        if not self.preferences.any(axis=1).all():
            found["rows"] = np.where(adapted, 0, -1).astype(np.int32)
        if self.policy.conditioning == "token":
            table = leaf(self.policy.model.params, "embed", "table")
            found["prefix"] = soft_token(self.policy.trained["token"], table, jnp.asarray(rows))
            found["prefix_lengths"] = adapted.astype(np.int32)
        return found


@dataclass(frozen=True, eq=False)
class Conditioned:
    """One policy for every preference: the weights of a policy are the preference it is given.

    Attributes:
        policy: conditioned on preferences by tags, by a soft token or by adapters.
        options: [n, R] preferences among which the best for a user is chosen.
    """

    policy: ConditionedPolicy = field(repr=False)
    options: np.ndarray
    kind = "conditioned"
    one_at_a_time = False

    def __post_init__(self) -> None:
        if self.policy.conditioning == "none":
            raise InputError(
                "policy: found one that is conditioned on nothing, expected tags, a soft token or "
                "adapters; policies that were trained for one weighting each are Separate."
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
        """The adapter, or stack of adapters, that answers under every preference."""
        return ((self.policy.lora, self.policy.trained["adapter"]),)

    @property
    def prefix_tokens(self) -> int:
        """One soft token where the preference is given by it, else none."""
        return 1 if self.policy.conditioning == "token" else 0

    def prompt(self, prompt: str | Chat, weight: np.ndarray) -> str | Chat:
        """Return the prompt with the preference's tag, where the preference is given by tags."""
        if self.policy.conditioning != "tags" or not np.any(weight):
            return prompt
        return insert_preference_tag(self.policy.names, weight, prompt, self.policy.decimals)

    @cached_property
    def _adapter(self) -> Params:
        return lora.scaled(self.policy.trained["adapter"], self.policy.lora)

    def stacked(self, weights: ArrayLike) -> PreferenceConditionedBatch:
        """Return the policy under each of [W, R] preferences; zeros are the reference.

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
        alone = own.all() or self.policy.conditioning == "adapters"
        adapter = self._adapter if alone else lora.stack([self._adapter])
        return PreferenceConditionedBatch(self.policy, adapter, checked)
