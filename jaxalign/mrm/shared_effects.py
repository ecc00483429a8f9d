"""Any user-reward method with the effects of known items, which all users share, as an offset."""

from collections.abc import Sequence

import jax
import numpy as np

from jaxalign.data.batching import Pairs
from jaxalign.mrm.registry import Candidate, Fitted, UserRewardMethod
from jaxalign.mrm.support_query import TrainingData

KEY = "item_effects"
"""Entry of a candidate: the factor on the shared effects."""


def shifted(probability: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Return probabilities whose logits are moved by an offset.

    Args:
        probability: [...] in [0, 1].
        offset: [...] in logits; 0 leaves a probability as it is.

    Example:
        >>> import numpy as np
        >>> from jaxalign.mrm.shared_effects import shifted
        >>> shifted(np.array([0.5, 0.9]), np.array([np.log(3.0), 0.0])).round(3).tolist()
        [0.75, 0.9]
    """
    wide = np.asarray(probability, np.float64)
    odds = np.exp(np.asarray(offset, np.float64))
    moved = wide * odds / (wide * odds + (1 - wide))
    return np.where(offset == 0, probability, moved).astype(np.asarray(probability).dtype)


class WithItemEffects(UserRewardMethod):
    """A method whose predictions are moved by what all users think of the two items.

    Validation users choose how far: 0, half or all of the shared effects. A method that has learned
    effects of its own (`UserRewardMethod.item_effects`) is moved by those.

    Attributes:
        inner: the method.
        effects: [I] shared effects of the items in logits; 0 for an item that is not known.
        scales: factors on the effects, which validation users choose from.
    """

    def __init__(
        self,
        inner: UserRewardMethod,
        effects: np.ndarray,
        scales: tuple[float, ...] = (0.0, 0.5, 1.0),
    ) -> None:
        super().__init__(inner.settings, inner.name)
        self.inner, self.effects, self.scales = inner, np.asarray(effects), scales

    def fit(self, data: TrainingData, seed: int) -> Fitted:
        """Fit the method itself, which does not read the effects."""
        return self.inner.fit(data, seed)

    def candidates(self, fitted: Fitted) -> list[Candidate]:
        """Return the method's candidates, each with every scale of the effects."""
        inner = self.inner.candidates(fitted)
        if self.inner.item_effects(fitted, inner[0]) is not None or not self.effects.any():
            return inner
        return [{**candidate, KEY: scale} for scale in self.scales for candidate in inner]

    def effects_of(self, fitted: Fitted, candidate: Candidate) -> np.ndarray:
        """Return the effects [I] that a candidate's predictions are moved by."""
        own = self.inner.item_effects(fitted, candidate)
        return self.effects * candidate.get(KEY, 0.0) if own is None else own

    def predict(
        self, fitted: Fitted, candidates: Sequence[Candidate], features: jax.Array,
        support: Pairs, query: Pairs,
    ) -> np.ndarray:  # fmt: skip
        """Return probabilities [C, U, Q] of the method, moved by the effects of the query items."""
        bare = [{k: v for k, v in candidate.items() if k != KEY} for candidate in candidates]
        distinct = [one for place, one in enumerate(bare) if one not in bare[:place]]
        found = self.inner.predict(fitted, distinct, features, support, query)
        chosen, rejected = np.asarray(query.chosen), np.asarray(query.rejected)
        rows = []
        for candidate, one in zip(candidates, bare, strict=True):
            effects = self.effects_of(fitted, candidate)
            rows.append(shifted(found[distinct.index(one)], effects[chosen] - effects[rejected]))
        return np.stack(rows)
