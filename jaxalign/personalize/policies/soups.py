"""Rewarded soups: one policy with the weighted sum of the adapters' updates."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxalign.models import lora
from jaxalign.personalize.policies.adapters import AdapterPolicies, StackedAdapters, check_weights


@dataclass(frozen=True, eq=False)
class Soups(AdapterPolicies):
    """Rewarded soups: the model with the weighted sum of its adapters' updates, sum_i w_i a_i b_i.

    The sum is exact: ranks are put side by side, and b_i is scaled. Averaging the factors a and b
    apart, as averaging all trained weights does where they are LoRA factors, gives
    (sum_i w_i a_i)(sum_j w_j b_j), whose products of one adapter's a with another's b are not
    trained. The price is a rank of A r, and a stack that grows with the number of policies; a
    decode costs one pass whatever A. Weights of any sign or sum will do.

    Attributes:
        adapters: A times its config and tree, not scaled, as `load_adapter` returns them; their
            matrices and ranks may differ.

    Source: Rame et al. 2023, https://arxiv.org/abs/2306.04488.
    """

    kind = "soups"
    options = None  # any weights

    def stacked(self, weights: ArrayLike) -> StackedAdapters:
        """Return policies of weights [W, A] side by side.

        Raises:
            InputError: weights of another number, or not finite.
        """
        checked = check_weights(weights, self.size)

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
        return StackedAdapters(adapters, np.where(checked.any(axis=1), own, -1)[:, None], None)
