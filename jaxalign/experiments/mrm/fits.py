"""A method fitted on training choices, once per seed, with the candidates that validation chose."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import jax
import numpy as np

from jaxalign.mrm.adaptation import Gate
from jaxalign.mrm.calibrated import Calibrated
from jaxalign.mrm.out_of_fold import CandidateLosses
from jaxalign.mrm.registry import Candidate, Fitted, UserRewardMethod
from jaxalign.mrm.selection import candidate_losses, predict
from jaxalign.mrm.support_query import SupportQueryData, TrainingData


class KeepStage(Protocol):
    """Computes a part of a run once and keeps it, as `RunDir.stage` does."""

    def __call__(self, name: str, compute: Callable[[], Fitted]) -> Fitted:
        """Return the part, computed or read back."""


class FittedMethod:
    """A fitted method.

    Attributes:
        method: the method.
        shared: the effects of known items that predictions may be moved by; None for none.
        judged: the method as it predicts: at a temperature, with these effects.
        fitted: its arrays, one fit per seed.
        features: [I, D] items as it takes them.
        candidates: what validation users chose, one per fit.
        adapts: whether it reads users' support choices at all.
        gates: whom each fit adapts to.
        harmed: share of validation users who are predicted worse with adaptation, before any gate;
            NaN for a method that does not adapt.
        gated_on: the users who chose the levels of the gates, in words; empty without levels.
        loss: mean loss of the validation users, in nats per choice.
    """

    def __init__(
        self,
        method: UserRewardMethod,
        fitted: list[Fitted],
        features: jax.Array,
        shared: "SharedEffects | None" = None,
    ) -> None:
        self.method = method
        self.shared = shared
        self.judged = Calibrated(method, None if shared is None else shared.effects)
        self.fitted = fitted
        self.features = features
        self.candidates: list[Candidate] = []
        self.adapts = True
        self.gates: list[Gate] = []
        self.harmed = float("nan")
        self.gated_on = ""
        self.loss = float("nan")

    def losses(self, users: SupportQueryData, fold: np.ndarray) -> list[CandidateLosses]:
        """Return every candidate's losses of users, for each fit.

        Args:
            users: U users.
            fold: [U] of each of them.
        """
        found = []
        for fitted in self.fitted:
            adapted, unadapted = (
                candidate_losses(self.judged, fitted, self.features, users, read)
                for read in (True, False)
            )
            found.append(CandidateLosses(adapted, unadapted, fold))
        return found

    def choose(self, losses: list[CandidateLosses], may_adapt: bool) -> None:
        """Let validation users choose each fit's candidate.

        Args:
            losses: of the validation users, for each fit.
            may_adapt: whether users' support choices may be read.
        """
        means = [_means(one, may_adapt) for one in losses]
        best = [int(np.argmin(mean)) for mean in means]
        pairs = zip(self.fitted, best, strict=True)
        self.candidates = [self.judged.candidates(fitted)[place] for fitted, place in pairs]
        self.loss = float(np.mean([mean[place] for mean, place in zip(means, best, strict=True)]))
        self.adapts = may_adapt
        self.gates = [Gate(adapts=may_adapt) for _ in self.fitted]

    def effects(self) -> np.ndarray | None:
        """Return the item effects [I] that the first fit's predictions are moved by, if any."""
        return self.judged.effects_of(self.fitted[0], self.candidates[0])

    def predict(self, users: SupportQueryData, adapted: bool = True) -> np.ndarray:
        """Return probabilities [S, U, Q] under the chosen candidates."""
        known = adapted and self.adapts
        pairs = zip(self.fitted, self.candidates, strict=True)
        return np.stack([predict(self.judged, f, c, self.features, users, known) for f, c in pairs])


def _means(losses: CandidateLosses, may_adapt: bool) -> np.ndarray:
    """Mean losses [C] to choose by; if support choices may not be read, of those that read none."""
    if may_adapt:
        return np.nanmean(losses.adapted, axis=1)
    reads = losses.reads
    means = np.nanmean(losses.unadapted, axis=1)
    return means if reads.all() else np.where(reads, np.inf, means)


def fit_method(
    method: UserRewardMethod,
    data: TrainingData,
    seeds: int,
    stage: KeepStage,
    checkpoint: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
    shared: "SharedEffects | None" = None,
) -> FittedMethod:
    """Fit a method, once per seed where it depends on one.

    Args:
        method: what is fitted.
        data: what it is fitted on.
        seeds: number of fits.
        stage: keeps what is fitted for a resumed run.
        checkpoint: folder for the state of a long fit.
        say: called with one line of progress at a time.
        shared: effects of the items that predictions may be moved by.
    """
    count = range(seeds if method.seeded else 1)

    def compute() -> Fitted:
        fits = method.fit_seeds(data, count, checkpoint, say)
        return {f"{seed}": fitted for seed, fitted in zip(count, fits, strict=True)}

    kept = stage(method.name, compute)
    fits = [kept.get(f"{seed}", {}) for seed in count]
    return FittedMethod(method, fits, data.inputs(method.inputs), shared)


@dataclass(frozen=True)
class SharedEffects:
    """Effects of known items that methods on the same directions of the features share.

    Attributes:
        one_model: the fit of `bt_items`.
        candidate: of its candidates on these directions, the one that validation users prefer.
    """

    one_model: FittedMethod
    candidate: Candidate

    @property
    def effects(self) -> np.ndarray:
        """The effects [I] of the fit to the training users."""
        return self.of(self.one_model.fitted[0])

    def of(self, fitted: Fitted) -> np.ndarray:
        """Return the effects [I] of a fit of the model, zeros where the candidate has none."""
        effects = self.one_model.method.item_effects(fitted, self.candidate)
        return np.zeros(len(self.one_model.features)) if effects is None else effects


def shared_effects(
    one_model: FittedMethod, users: SupportQueryData, directions: int
) -> SharedEffects:
    """Return the item effects that methods on some directions share.

    They are those of the model for all users, fitted on the same directions, that validation users
    prefer; zeros where they prefer none.

    Args:
        one_model: the fit of `bt_items`.
        users: the validation users.
        directions: number of directions of the features that the methods see.
    """
    fitted = one_model.fitted[0]
    candidates = one_model.judged.candidates(fitted)
    losses = candidate_losses(one_model.judged, fitted, one_model.features, users)
    same = [candidate["directions"] == directions for candidate in candidates]
    best = int(np.argmin(np.where(same, np.nanmean(losses, axis=1), np.inf)))
    return SharedEffects(one_model, candidates[best])
