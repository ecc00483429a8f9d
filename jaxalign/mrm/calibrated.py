"""Any user-reward method with the effects of known items as an offset, and at a temperature."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from scipy.special import expit, logit

from jaxalign.data.batching import Pairs
from jaxalign.data.preferences import RowDetails
from jaxalign.mrm.registry import Candidate, Fitted, UserRewardMethod
from jaxalign.mrm.support_query import TrainingData

KEY = "item_effects"
"""Entry of a candidate: the factor on the shared effects."""
TEMPERATURE = "temperature"
"""Entry of a candidate: the divisor of all margins."""
SCALES = (0.0, 0.5, 1.0)
# Steps of an eighth or so near 1: between two of them no probability is off by more than 0.015.
TEMPERATURES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.12, 1.25, 1.4, 1.6, 2.0)


def moved(
    probability: np.ndarray, offset: np.ndarray, temperature: float | np.ndarray = 1.0
) -> np.ndarray:
    """Return probabilities whose logits are moved by an offset, then divided by a temperature.

    Args:
        probability: [...] in [0, 1].
        offset: [...] in logits.
        temperature: above 0. An offset of 0 and a temperature of 1 leave a probability as it is.

    Example:
        >>> import numpy as np
        >>> from jaxalign.mrm.calibrated import moved
        >>> moved(np.array([0.5, 0.9]), np.array([np.log(3.0), 0.0])).round(3).tolist()
        [0.75, 0.9]
        >>> moved(np.array([0.5, 0.9]), np.zeros(2), 2.0).round(3).tolist()
        [0.5, 0.75]
    """
    given = np.asarray(probability)
    margin = logit(given.astype(np.float64)) + np.asarray(offset, np.float64)
    same = (np.asarray(offset) == 0) & (np.asarray(temperature) == 1)
    return np.where(same, given, expit(margin / temperature)).astype(given.dtype)


class Calibrated(UserRewardMethod):
    """A method at a temperature, moved by what all users think of the two items of a pair.

    Validation users choose both: 0, half or all of the shared effects, and what divides the
    margins, the effects among them. A method that has learned effects of its own
    (`UserRewardMethod.item_effects`) is moved by those, and one with a temperature of its own
    (`UserRewardMethod.own_temperature`) keeps that one.

    Attributes:
        inner: the method.
        effects: [I] shared effects of the items in logits, 0 for an item that is not known; None
            for no effects.
    """

    def __init__(self, inner: UserRewardMethod, effects: np.ndarray | None = None) -> None:
        super().__init__(inner.settings, inner.name)
        self.inner = inner
        self.effects = None if effects is None else np.asarray(effects)

    def fit(self, data: TrainingData, seed: int) -> Fitted:
        """Fit the method itself, which reads neither effects nor temperature."""
        return self.inner.fit(data, seed)

    def candidates(self, fitted: Fitted) -> list[Candidate]:
        """Return the method's candidates, each with every temperature and scale of the effects."""
        found = self.inner.candidates(fitted)
        shared = self.effects is not None and bool(self.effects.any())
        if not self.inner.own_temperature:
            found = [{**one, TEMPERATURE: divisor} for one in found for divisor in TEMPERATURES]
        if not shared or self.inner.item_effects(fitted, found[0]) is not None:
            return found
        # The margins of a method with a temperature of its own are divided already.
        return [
            {**one, KEY: scale / (one[TEMPERATURE] if self.inner.own_temperature else 1.0)}
            for one in found
            for scale in SCALES
        ]

    def effects_of(self, fitted: Fitted, candidate: Candidate) -> np.ndarray | None:
        """Return the effects [I] that a candidate's margins are moved by; None for none."""
        own = self.inner.item_effects(fitted, candidate)
        if own is not None or self.effects is None:
            return own
        return self.effects * candidate.get(KEY, 0.0)

    def divisor_of(self, candidate: Candidate) -> float:
        """Return what the method's own margins, moved by the effects, are divided by."""
        return 1.0 if self.inner.own_temperature else float(candidate.get(TEMPERATURE, 1.0))

    def predict(
        self, fitted: Fitted, candidates: Sequence[Candidate], features: jax.Array,
        support: Pairs, query: Pairs,
    ) -> np.ndarray:  # fmt: skip
        """Return probabilities [C, U, Q] of the method, moved and divided."""
        return np.stack([*self.each_prediction(fitted, candidates, features, support, query)])

    def each_prediction(
        self, fitted: Fitted, candidates: Sequence[Candidate], features: jax.Array,
        support: Pairs, query: Pairs, details: RowDetails | None = None,
    ) -> Iterator[np.ndarray]:  # fmt: skip
        """Yield probabilities [U, Q]; the method itself predicts once for each of its own."""
        mine = {KEY} if self.inner.own_temperature else {KEY, TEMPERATURE}
        bare = [{k: v for k, v in candidate.items() if k not in mine} for candidate in candidates]
        names = [tuple(one.items()) for one in bare]
        place = {name: number for number, name in enumerate(dict.fromkeys(names))}
        distinct = [dict(name) for name in place]
        found = [*self.inner.each_prediction(fitted, distinct, features, support, query, details)]
        chosen, rejected = np.asarray(query.chosen), np.asarray(query.rejected)
        for candidate, name in zip(candidates, names, strict=True):
            effects = self.effects_of(fitted, candidate)
            offset = np.zeros(()) if effects is None else effects[chosen] - effects[rejected]
            yield moved(found[place[name]], offset, self.divisor_of(candidate))
