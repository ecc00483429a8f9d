"""What the policies that are made of several trained adapters share."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike

from jaxalign.errors import InputError
from jaxalign.models import lora
from jaxalign.models.chat import Chat
from jaxalign.models.generate import PolicyMixture
from jaxalign.models.params import Params
from jaxalign.rollout.policies import GenerationArguments

Adapter = tuple[lora.LoraConfig, Params]


class StackedAdapters(NamedTuple):
    """W policies side by side, as generation takes them.

    Attributes:
        adapters: a stack as of `lora.stack`.
        rows: [W, C] int32, the adapters of each policy; -1 is the reference.
        weights: [W, C] float32 by which the C draw together; None for C = 1, drawn from alone.
    """

    adapters: Params
    rows: np.ndarray
    weights: np.ndarray | None = None

    @property
    def params(self) -> None:
        """The model's own parameters are used."""
        return None

    def arguments(self, policy: ArrayLike) -> GenerationArguments:
        """Return what `generate` needs for a batch whose rows are of policy [B], 0 to W - 1."""
        policy = np.asarray(policy, np.intp)
        if self.weights is None:
            return {"adapters": self.adapters, "rows": self.rows[policy, 0]}
        return {
            "adapters": self.adapters,
            "combine": PolicyMixture(self.weights[policy], self.rows[policy]),
        }


@dataclass(frozen=True, eq=False)
class AdapterPolicies:
    """A adapters of one model, and what every kind of policy over them shares."""

    adapters: tuple[Adapter, ...] = field(repr=False)
    prefix_tokens = 0
    one_at_a_time = False

    def __post_init__(self) -> None:
        _check(self.adapters)

    @property
    def size(self) -> int:
        """A, how many weights make a policy."""
        return len(self.adapters)

    def prompt(self, prompt: str | Chat, weight: np.ndarray) -> str | Chat:
        """Return the prompt as it is: adapters do not read their weights."""
        return prompt

    @cached_property
    def _experts(self) -> Params:
        return _stack(self.adapters)


def _check(adapters: tuple[Adapter, ...]) -> None:
    """Refuses what cannot stand side by side, before any work is done with it."""
    for number, (config, tree) in enumerate(adapters):
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)):
            raise InputError(
                f"adapter {number} (rank {config.rank}): found NaN or infinity, expected finite "
                "factors; train it again."
            )
    if not adapters:
        raise InputError("adapters: found none of them, expected at least one.")


def _stack(adapters: tuple[Adapter, ...]) -> Params:
    return lora.stack([lora.scaled(tree, config) for config, tree in adapters])


def check_weights(weights: ArrayLike, count: int) -> np.ndarray:
    """Return weights [W, A] as float64, or refuse another number of them and what is not finite."""
    weights = np.asarray(weights, np.float64)
    if weights.ndim != 2 or weights.shape[1] != count or not np.isfinite(weights).all():
        raise InputError(
            f"weights: found shape {weights.shape}, expected finite numbers in rows of {count}, "
            "one for each adapter."
        )
    return weights
