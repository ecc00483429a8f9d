"""A method fitted on training choices, once per seed, with the candidates that validation chose."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import jax
import numpy as np

from jaxalign.mrm.registry import Candidate, Fitted, UserRewardMethod
from jaxalign.mrm.selection import predict, select, user_nll
from jaxalign.mrm.shared_effects import WithItemEffects
from jaxalign.mrm.support_query import SupportQueryData, TrainingData


class KeepStage(Protocol):
    """Computes a part of a run once and keeps it, as `RunDir.stage` does."""

    def __call__(self, name: str, compute: Callable[[], Fitted]) -> Fitted:
        """Return the part, computed or read back."""


class FittedMethod:
    """A fitted method.

    Attributes:
        method: the method.
        judged: the method as it predicts: with the effects of known items, where there are any.
        fitted: its arrays, one fit per seed.
        features: [I, D] items as it takes them.
        candidates: what validation users chose, one per fit.
        loss: their mean loss, in nats per choice.
    """

    def __init__(
        self,
        method: UserRewardMethod,
        fitted: list[Fitted],
        features: jax.Array,
        effects: np.ndarray | None = None,
    ) -> None:
        self.method = method
        self.judged = method if effects is None else WithItemEffects(method, effects)
        self.fitted = fitted
        self.features = features
        self.candidates: list[Candidate] = []
        self.loss = float("nan")

    def choose(self, users: SupportQueryData) -> "FittedMethod":
        """Let validation users choose each fit's candidate."""
        chosen = [select(self.judged, fitted, self.features, users) for fitted in self.fitted]
        self.candidates = [candidate for candidate, _ in chosen]
        self.loss = float(np.mean([loss for _, loss in chosen]))
        return self

    def effects(self) -> np.ndarray | None:
        """Return the item effects [I] that the first fit's predictions are moved by, if any."""
        if not isinstance(self.judged, WithItemEffects):
            return None
        return self.judged.effects_of(self.fitted[0], self.candidates[0])

    def predict(self, users: SupportQueryData, adapted: bool = True) -> np.ndarray:
        """Return probabilities [S, U, Q] under the chosen candidates."""
        pairs = zip(self.fitted, self.candidates, strict=True)
        return np.stack(
            [predict(self.judged, f, c, self.features, users, adapted) for f, c in pairs]
        )


def fit_method(
    method: UserRewardMethod,
    data: TrainingData,
    seeds: int,
    stage: KeepStage,
    checkpoint: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
    effects: np.ndarray | None = None,
) -> FittedMethod:
    """Fit a method, once per seed where it depends on one.

    Args:
        method: what is fitted.
        data: what it is fitted on.
        seeds: number of fits.
        stage: keeps what is fitted for a resumed run.
        checkpoint: folder for the state of a long fit.
        say: called with one line of progress at a time.
        effects: [I] of the items, shared by all users, that predictions may be moved by.
    """
    count = range(seeds if method.seeded else 1)

    def compute() -> Fitted:
        fits = method.fit_seeds(data, count, checkpoint, say)
        return {f"{seed}": fitted for seed, fitted in zip(count, fits, strict=True)}

    kept = stage(method.name, compute)
    fits = [kept.get(f"{seed}", {}) for seed in count]
    return FittedMethod(method, fits, data.inputs(method.inputs), effects)


def shared_effects(one_model: FittedMethod, users: SupportQueryData, directions: int) -> np.ndarray:
    """Return the item effects [I] that methods on some directions share.

    They are those of the model for all users, fitted on the same directions, that validation users
    prefer; zeros where they prefer none.

    Args:
        one_model: the fit of `bt_items`.
        users: the validation users.
        directions: number of directions of the features that the methods see.
    """
    fitted, mask = one_model.fitted[0], users.query.padded.weight
    among = [
        candidate
        for candidate in one_model.method.candidates(fitted)
        if candidate["directions"] == directions
    ]
    losses = [
        np.nanmean(
            user_nll(predict(one_model.judged, fitted, c, one_model.features, users)[None], mask)
        )
        for c in among
    ]
    best = one_model.method.item_effects(fitted, among[int(np.argmin(losses))])
    return np.zeros(len(one_model.features)) if best is None else best
