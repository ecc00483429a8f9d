"""Policies that were trained separately, each for a weighting of its own."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from jaxalign.errors import InputError
from jaxalign.personalize.policies.adapters import AdapterPolicies, StackedAdapters, check_weights


@dataclass(frozen=True, eq=False)
class Separate(AdapterPolicies):
    """Separately fine-tuned policies, each for one weighting of the rewards: one adapter answers.

    A policy's weights are 1 at its adapter and 0 elsewhere: nothing lies between two of them.

    Attributes:
        adapters: as in `Soups`; as many as there are policies.
    """

    kind = "separate"

    @property
    def options(self) -> np.ndarray:
        """The weights [A, A] that there are."""
        return np.eye(self.size)

    def stacked(self, weights: ArrayLike) -> StackedAdapters:
        """Return policies of weights [W, A] side by side; whatever W, each adapter is held once.

        Raises:
            InputError: weights of another number, or not all of one adapter or of none.
        """
        checked = check_weights(weights, self.size)
        one = (checked == 1).sum(axis=1) == checked.any(axis=1)
        whole = np.isin(checked, (0, 1)).all(axis=1) & one
        if not whole.all():
            row = int(np.argmin(whole))
            raise InputError(
                f"weights, row {row}: found {checked[row]}, expected 1 for one of the tuned "
                "policies and 0 for the others; soups and mixing go between them."
            )
        rows = np.where(checked.any(axis=1), checked.argmax(axis=1), -1)
        return StackedAdapters(self._experts, rows.astype(np.int32)[:, None], None)
