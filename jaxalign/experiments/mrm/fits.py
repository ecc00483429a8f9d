"""A method fitted on training choices, once per seed, with the candidates that validation chose."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import jax
import numpy as np

from jaxalign.mrm.registry import Candidate, Fitted, UserRewardMethod
from jaxalign.mrm.selection import predict, select
from jaxalign.mrm.support_query import SupportQueryData, TrainingData


class KeepStage(Protocol):
    """Computes a part of a run once and keeps it, as `RunDir.stage` does."""

    def __call__(self, name: str, compute: Callable[[], Fitted]) -> Fitted:
        """Return the part, computed or read back."""


class FittedMethod:
    """A fitted method.

    Attributes:
        method: the method.
        fitted: its arrays, one fit per seed.
        features: [I, D] items as it takes them.
        candidates: what validation users chose, one per fit.
        loss: their mean loss, in nats per choice.
    """

    def __init__(self, method: UserRewardMethod, fitted: list[Fitted], features: jax.Array) -> None:
        self.method = method
        self.fitted = fitted
        self.features = features
        self.candidates: list[Candidate] = []
        self.loss = float("nan")

    def choose(self, users: SupportQueryData) -> "FittedMethod":
        """Let validation users choose each fit's candidate."""
        chosen = [select(self.method, fitted, self.features, users) for fitted in self.fitted]
        self.candidates = [candidate for candidate, _ in chosen]
        self.loss = float(np.mean([loss for _, loss in chosen]))
        return self

    def predict(self, users: SupportQueryData, adapted: bool = True) -> np.ndarray:
        """Return probabilities [S, U, Q] under the chosen candidates."""
        pairs = zip(self.fitted, self.candidates, strict=True)
        return np.stack(
            [predict(self.method, f, c, self.features, users, adapted) for f, c in pairs]
        )


def fit_method(
    method: UserRewardMethod,
    data: TrainingData,
    seeds: int,
    stage: KeepStage,
    checkpoint: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> FittedMethod:
    """Fit a method, once per seed where it depends on one.

    Args:
        method: what is fitted.
        data: what it is fitted on.
        seeds: number of fits.
        stage: keeps what is fitted for a resumed run.
        checkpoint: folder for the state of a long fit.
        say: called with one line of progress at a time.
    """
    count = range(seeds if method.seeded else 1)

    def compute() -> Fitted:
        fits = method.fit_seeds(data, count, checkpoint, say)
        return {f"{seed}": fitted for seed, fitted in zip(count, fits, strict=True)}

    kept = stage(method.name, compute)
    fits = [kept.get(f"{seed}", {}) for seed in count]
    return FittedMethod(method, fits, data.inputs(method.inputs))
