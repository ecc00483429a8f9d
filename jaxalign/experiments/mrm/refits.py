"""Quick methods fitted again without each fold of users, so that many users are judged unseen."""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from jaxalign.data.splits import UserSplit
from jaxalign.experiments.mrm.config import MRMRunConfig
from jaxalign.experiments.mrm.data import ExperimentData
from jaxalign.experiments.mrm.fits import FittedMethod, KeepStage
from jaxalign.mrm.calibrated import Calibrated
from jaxalign.mrm.out_of_fold import (
    CandidateLosses,
    FoldFit,
    by_fold,
    fold_data,
    out_of_fold,
    user_folds,
)
from jaxalign.mrm.registry import Candidate, Fitted
from jaxalign.mrm.selection import predict
from jaxalign.mrm.support_query import SupportQueryData, cut_episodes, support_query


@dataclass(frozen=True)
class UnseenPredictions:
    """A method whose predictions of each user are of a fit that has not seen the user.

    Attributes:
        fits: for each fold.
        fold: [U] of each user.
        candidate: what validation users chose.
    """

    fits: list[FoldFit]
    fold: np.ndarray
    candidate: Candidate

    def predict(self, users: SupportQueryData, adapted: bool = True) -> np.ndarray:
        """Return probabilities [1, U, Q], as `FittedMethod.predict` does.

        Args:
            users: the U users of the folds, with any query pairs.
            adapted: whether their support choices are read.
        """

        def of(one: int, some: SupportQueryData) -> np.ndarray:
            method, fitted, features = self.fits[one]
            return predict(method, fitted, self.candidate, features, some, adapted)

        return by_fold(users, self.fold, of)[None]


class Refits:
    """Fits without each fold of training and validation users, made where they are needed.

    Attributes:
        users: the users, their choices cut into support and query.
        fold: [U] of each user.
    """

    def __init__(self, data: ExperimentData, config: MRMRunConfig, stage: KeepStage) -> None:
        """Cut the users.

        Args:
            data: of the run.
            config: of the run.
            stage: keeps fits and losses for a resumed run.
        """
        seen = (*data.split.train, *data.split.validation)
        cut = cut_episodes(data.choices, config.split, seen)
        self.users = support_query(data.choices, cut)
        self.fold = user_folds(self.users, config.adaptation.folds, config.split.seed)
        place = {user: number for number, user in enumerate(seen)}
        pooled = replace(data, split=UserSplit(seen, (), (), config.split.seed))
        number = np.array([place[user] for user in cut.users])
        self._parts = fold_data(pooled.training(config.data), number, self.fold)
        self._stage = stage
        self._kept: dict[str, list[Fitted]] = {}

    def losses(self, fit: FittedMethod) -> CandidateLosses:
        """Return the losses of all candidates of a method."""

        def compute() -> Fitted:
            found = out_of_fold(self._fits(fit), self.users, self.fold)
            return {"adapted": found.adapted, "unadapted": found.unadapted}

        kept = self._stage(f"{fit.method.name}.out_of_fold", compute)
        return CandidateLosses(kept["adapted"], kept["unadapted"], self.fold)

    def unseen(self, fit: FittedMethod) -> UnseenPredictions:
        """Return predictions of a method under the candidate of its first fit."""
        return UnseenPredictions(self._fits(fit), self.fold, fit.candidates[0])

    def _fits(self, fit: FittedMethod) -> list[FoldFit]:
        """The method as it predicts each fold, with item effects that were learned without it."""
        shared, parts = fit.shared, self._parts
        effects: list[np.ndarray | None] = [None] * len(parts)
        if shared is not None and shared.effects.any():
            effects = [shared.of(fitted) for fitted in self._fitted(shared.one_model)]
        whole = zip(effects, self._fitted(fit), parts, strict=True)
        return [
            FoldFit(Calibrated(fit.method, moves), fitted, part.inputs(fit.method.inputs))
            for moves, fitted, part in whole
        ]

    def _fitted(self, fit: FittedMethod) -> list[Fitted]:
        name, method = fit.method.name, fit.method.settled(fit.fitted[0])
        if name not in self._kept:
            self._kept[name] = [
                self._stage(f"{name}.without{number}", partial(method.fit, part, 0))
                for number, part in enumerate(self._parts)
            ]
        return self._kept[name]
