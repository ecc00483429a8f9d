"""Decoding-time mixing: the policies of several adapters draw each token together."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from jaxalign.personalize.policies.adapters import AdapterPolicies, StackedAdapters, check_weights

# How far mixing weights may be off a sum of 1 and still do without the reference.
_SUM_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Mixing(AdapterPolicies):
    """Decoding-time mixing: log pi(token) = sum_i w_i log pi_i + (1 - sum_i w_i) log pi_ref + c.

    With weights that sum to 1 the reference drops out and a token costs A passes; otherwise one
    more for all policies that are decoded together. c makes each token's probabilities sum to 1.

    Attributes:
        adapters: as in `Soups`.

    Source: Shi et al. 2024, https://arxiv.org/abs/2406.18853 (MOD, for reverse KL).
    """

    kind = "mixing"
    options = None

    def stacked(self, weights: ArrayLike) -> StackedAdapters:
        """Return policies of weights [W, A] side by side.

        Raises:
            InputError: weights of another number, or not finite.
        """
        checked = check_weights(weights, self.size)
        rows = np.tile(np.arange(checked.shape[1], dtype=np.int32), (len(checked), 1))
        reference = ~checked.any(axis=1)
        # The reference in the experts' own columns: no column more on its account.
        rows[reference] = -1
        mix = checked.copy()
        mix[reference, 0] = 1
        rest = 1 - mix.sum(axis=1, keepdims=True)
        if (np.abs(rest) > _SUM_TOLERANCE).any():
            mix = np.concatenate([mix, rest], axis=1)
            rows = np.concatenate([rows, np.full_like(rows[:, :1], -1)], axis=1)
        return StackedAdapters(self._experts, rows, mix.astype(np.float32))
