"""Policies made of a few trained ones: soups of adapters, mixing while decoding, one of them.

Each kind makes a policy of weights over A adapters of one model, the reference being weights of 0,
and gives many such policies to one decode call.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxalign.errors import InputError
from jaxalign.models import lora
from jaxalign.models.chat import Chat
from jaxalign.models.generate import PolicyMixture

Adapter = tuple[lora.LoraConfig, Mapping[str, Any]]

# How far mixing weights may be off a sum of 1 and still do without the reference.
_WHOLE = 1e-6


class Stacked(NamedTuple):
    """W policies side by side, as generation takes them.

    Attributes:
        adapters: a stack as of `lora.stack`.
        rows: [W, C] int32, the adapters of each policy; -1 is the reference.
        weights: [W, C] float32 by which the C draw together; None for C = 1, drawn from alone.
    """

    adapters: dict[str, Any]
    rows: np.ndarray
    weights: np.ndarray | None

    def arguments(self, policy: ArrayLike) -> dict[str, Any]:
        """Return what `generate` needs for a batch whose rows are of policy [B], 0 to W - 1."""
        policy = np.asarray(policy, np.intp)
        if self.weights is None:
            return {"adapters": self.adapters, "rows": self.rows[policy, 0]}
        return {
            "adapters": self.adapters,
            "combine": PolicyMixture(self.weights[policy], self.rows[policy]),
        }

    def prompts(self, prompts: Sequence[str | Chat], policy: ArrayLike) -> list[str | Chat]:
        """Return what each policy [B] reads for B prompts: these policies are told nothing."""
        return list(prompts)


@dataclass(frozen=True, eq=False)
class _Adapted:
    """A adapters of one model, and what every kind of policy over them shares."""

    adapters: tuple[Adapter, ...] = field(repr=False)

    def __post_init__(self) -> None:
        _check(self.adapters)

    @property
    def size(self) -> int:
        """A, how many weights make a policy."""
        return len(self.adapters)

    @cached_property
    def _experts(self) -> dict[str, Any]:
        return _stack(self.adapters)


@dataclass(frozen=True, eq=False)
class Soups(_Adapted):
    """Rewarded soups: the model with the weighted sum of its adapters' updates, sum_i w_i a_i b_i.

    The sum is exact: ranks are put side by side, and b_i is scaled. Averaging the factors a and b
    apart, as averaging all trained weights does where they are LoRA factors, gives
    (sum_i w_i a_i)(sum_j w_j b_j), whose products of one adapter's a with another's b nobody has
    trained. The price is a rank of A r, and a stack that grows with the number of policies; a
    decode costs one pass whatever A. Weights of any sign or sum will do.

    Attributes:
        adapters: A times its config and tree, not scaled, as `load_adapter` returns them; they
            adapt the same matrices, their ranks may differ.

    Source: Rame et al. 2023, https://arxiv.org/abs/2306.04488.
    """

    kind = "soups"
    options = None  # any weights

    def stacked(self, weights: ArrayLike) -> Stacked:
        """Return policies of weights [W, A] side by side.

        Raises:
            InputError: weights of another number, or not finite.
        """
        checked = _checked(weights, self.size)

        def summed(pair: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
            a, b = pair["a"], pair["b"]
            layers, count, into, rank = a.shape
            side_by_side = jnp.moveaxis(a, 1, 2).reshape(layers, 1, into, count * rank)
            scaled = jnp.einsum(
                "WA,LAro->LWAro", jnp.asarray(checked, b.dtype), b, precision="highest"
            )
            return {
                "a": jnp.repeat(side_by_side, len(checked), axis=1),
                "b": scaled.reshape(layers, len(checked), count * rank, b.shape[-1]),
            }

        adapters = jax.tree.map(summed, self._experts, is_leaf=lora.is_pair)
        own = np.arange(len(checked), dtype=np.int32)
        return Stacked(adapters, np.where(checked.any(axis=1), own, -1)[:, None], None)


@dataclass(frozen=True, eq=False)
class Mixing(_Adapted):
    """Decoding-time mixing: log pi(token) = sum_i w_i log pi_i + (1 - sum_i w_i) log pi_ref + c.

    With weights that sum to 1 the reference drops out and a token costs A passes; otherwise one
    more for all policies that are decoded together. c makes each token's probabilities sum to 1.

    Attributes:
        adapters: as in `Soups`.

    Source: Shi et al. 2024, https://arxiv.org/abs/2406.18853 (MOD, for reverse KL).
    """

    kind = "mixing"
    options = None

    def stacked(self, weights: ArrayLike) -> Stacked:
        """Return policies of weights [W, A] side by side.

        Raises:
            InputError: weights of another number, or not finite.
        """
        checked = _checked(weights, self.size)
        rows = np.tile(np.arange(checked.shape[1], dtype=np.int32), (len(checked), 1))
        reference = ~checked.any(axis=1)
        # The reference in the experts' own columns: no column more on its account.
        rows[reference] = -1
        mix = checked.copy()
        mix[reference, 0] = 1
        rest = 1 - mix.sum(axis=1, keepdims=True)
        if (np.abs(rest) > _WHOLE).any():
            mix = np.concatenate([mix, rest], axis=1)
            rows = np.concatenate([rows, np.full_like(rows[:, :1], -1)], axis=1)
        return Stacked(self._experts, rows, mix.astype(np.float32))


@dataclass(frozen=True, eq=False)
class Tuned(_Adapted):
    """Policies fine-tuned one by one, each on a weighting of its own: one adapter answers.

    A policy's weights are 1 at its adapter and 0 elsewhere: nothing lies between two of them.

    Attributes:
        adapters: as in `Soups`; as many as there are policies.
    """

    kind = "tuned"

    @property
    def options(self) -> np.ndarray:
        """The weights [A, A] that there are."""
        return np.eye(self.size)

    def stacked(self, weights: ArrayLike) -> Stacked:
        """Return policies of weights [W, A] side by side; whatever W, each adapter is held once.

        Raises:
            InputError: weights of another number, or not all of one adapter or of none.
        """
        checked = _checked(weights, self.size)
        one = (checked == 1).sum(axis=1) == checked.any(axis=1)
        whole = np.isin(checked, (0, 1)).all(axis=1) & one
        if not whole.all():
            row = int(np.argmin(whole))
            raise InputError(
                f"weights, row {row}: found {checked[row]}, expected 1 for one of the tuned "
                "policies and 0 for the others; soups and mixing go between them."
            )
        rows = np.where(checked.any(axis=1), checked.argmax(axis=1), -1)
        return Stacked(self._experts, rows.astype(np.int32)[:, None], None)


def _check(adapters: tuple[Adapter, ...]) -> None:
    """Refuses what cannot stand side by side, before any work is done with it."""
    for number, (config, tree) in enumerate(adapters):
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)):
            raise InputError(
                f"adapter {number} (rank {config.rank}): found NaN or infinity, expected finite "
                "factors; train it again."
            )
    if not adapters or len({str(jax.tree.structure(tree)) for _, tree in adapters}) > 1:
        raise InputError(
            f"adapters: found {len(adapters)} of them, expected at least one, and all for the same "
            "matrices; train them with the same targets."
        )


def _stack(adapters: tuple[Adapter, ...]) -> dict[str, Any]:
    return lora.stack([lora.scaled(tree, config) for config, tree in adapters])


def _checked(weights: ArrayLike, count: int) -> np.ndarray:
    weights = np.asarray(weights, np.float64)
    if weights.ndim != 2 or weights.shape[1] != count or not np.isfinite(weights).all():
        raise InputError(
            f"weights: found shape {weights.shape}, expected finite numbers in rows of {count}, "
            "one for each adapter."
        )
    return weights
