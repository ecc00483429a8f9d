"""When a fitted method adapts, and to which users: decided before test users are seen."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from jaxalign.data.splits import UserSplit
from jaxalign.experiments.mrm.config import MRMRunConfig
from jaxalign.experiments.mrm.data import ExperimentData
from jaxalign.experiments.mrm.fits import FittedMethod, KeepStage
from jaxalign.metrics.harm import harmed_users
from jaxalign.mrm.adaptation import Gate, PairedTest, expected_gain, gate_level
from jaxalign.mrm.config import AdaptationConfig
from jaxalign.mrm.out_of_fold import CandidateLosses, adaptation_test, out_of_fold, user_folds
from jaxalign.mrm.selection import user_nll
from jaxalign.mrm.support_query import (
    SupportQueryData,
    cut_episodes,
    support_query,
    with_common_query,
)


@dataclass(frozen=True)
class Decision:
    """Whether a method adapts, and why.

    Attributes:
        test: of its adaptation, None for a method that reads no support.
        tested_on: the users that the test saw, in words.
        adapts: whether it passed.
    """

    test: PairedTest | None
    tested_on: str
    adapts: bool


class AdaptationRule:
    """Decides for one method after the other; models for all users come first.

    A method that is fitted quickly is fitted again without each fold of training and validation
    users where validation users are few. Any other is tested on validation users, whom its fit has
    not seen either.
    """

    def __init__(
        self,
        data: ExperimentData,
        config: MRMRunConfig,
        validation: SupportQueryData,
        stage: KeepStage,
        say: Callable[[str], None],
        refit: bool = True,
    ) -> None:
        """Cut the users of the test.

        Args:
            data: of the run.
            config: of the run.
            validation: the validation users.
            stage: keeps losses of repeated fits for a resumed run.
            say: called with one line of progress at a time.
            refit: whether methods may be fitted again.
        """
        self._data, self._config, self._validation = data, config, validation
        self._stage, self._say = stage, say
        settings, seed = config.adaptation, config.split.seed
        self._fold = user_folds(validation, max(settings.folds, 2), seed)
        few = validation.query.users < settings.enough_users
        self._refit = refit and few and settings.folds > 1
        if self._refit:
            seen = (*data.split.train, *data.split.validation)
            cut = cut_episodes(data.choices, config.split, seen)
            self._seen_users = support_query(data.choices, cut)
            place = {user: number for number, user in enumerate(seen)}
            self._number = np.array([place[user] for user in cut.users])
            pooled = replace(data, split=UserSplit(seen, (), (), seed))
            self._seen = pooled.training(config.data)
            self._seen_fold = user_folds(self._seen_users, settings.folds, seed)
        self._common: list[CandidateLosses] = []
        self._common_refitted: list[CandidateLosses] = []

    def decide(self, fit: FittedMethod, common: bool) -> Decision:
        """Choose a fit's candidates, and whether it adapts.

        Args:
            fit: of a method.
            common: whether it is a model for all users, which others are compared with.
        """
        losses = fit.losses(self._validation, self._fold)
        mean = CandidateLosses(
            np.mean([one.adapted for one in losses], axis=0),
            np.mean([one.unadapted for one in losses], axis=0),
            self._fold,
        )
        if common:
            self._common.append(mean)
        refitted = self._refitted(fit) if self._refit and fit.method.refits else None
        if common and refitted is not None:
            self._common_refitted.append(refitted)
        if refitted is None:
            test, users = adaptation_test(mean, self._common), "validation users"
        else:
            test = adaptation_test(refitted, self._common_refitted)
            users = f"training and validation users, {self._config.adaptation.folds} folds"
        adapts = test is not None and test.p <= self._config.adaptation.significance
        fit.choose(losses, adapts or test is None)
        if test is not None:
            verdict = "adapts" if adapts else "does not adapt"
            self._say(
                f"{fit.method.name} {verdict}: {test.gain:+.4f} nats per choice on {test.users} "
                f"users ({users}), p {test.p:.2g}"
            )
        return Decision(test, users, adapts)

    def _refitted(self, fit: FittedMethod) -> CandidateLosses:
        """Losses of training and validation users by fits that have not seen them.

        The shared effects of items are those of the fit to all training users, with and without
        adaptation alike.
        """
        method = fit.method.settled(fit.fitted[0])

        def compute() -> dict[str, np.ndarray]:
            found = out_of_fold(
                method, self._seen, self._seen_users, self._number, self._seen_fold, fit.as_judged
            )
            return {"adapted": found.adapted, "unadapted": found.unadapted}

        kept = self._stage(f"{fit.method.name}.out_of_fold", compute)
        return CandidateLosses(kept["adapted"], kept["unadapted"], self._seen_fold)


@dataclass(frozen=True)
class ReferencePairs:
    """Pairs of items that what a user's support says is judged on: chosen and rejected [R]."""

    chosen: np.ndarray
    rejected: np.ndarray

    def expected(self, fit: FittedMethod, users: SupportQueryData) -> np.ndarray:
        """Return the gain per pair [S, U] that each fit expects of adapting to each user."""
        judged = with_common_query(users, self.chosen, self.rejected)
        adapted, unadapted = (fit.predict(judged, read) for read in (True, False))
        return expected_gain(adapted, unadapted, np.ones(len(self.chosen)))


def reference_pairs(data: ExperimentData, config: MRMRunConfig) -> ReferencePairs:
    """Return pairs drawn from the training users' choices."""
    table = data.choices
    users = np.flatnonzero(np.isin(np.asarray(table.users), data.split.train))
    usable = np.isin(table.user, users) & ~table.rating
    if table.held_out is not None:
        usable &= ~table.held_out
    rows = np.flatnonzero(usable)
    count = min(config.adaptation.reference_pairs, len(rows))
    rows = np.random.default_rng(config.split.seed).choice(rows, count, replace=False)
    return ReferencePairs(table.chosen[rows], table.rejected[rows])


def set_gates(
    fit: FittedMethod, users: SupportQueryData, reference: ReferencePairs, config: AdaptationConfig
) -> None:
    """Let validation users choose the levels of each fit's gate, if adaptation harms too many.

    Args:
        fit: of a method that adapts, whose candidates are chosen.
        users: the validation users.
        reference: pairs that the support is judged on.
        config: how much harm is tolerated without a gate, and the share of the gain that is kept.
    """
    weight = np.asarray(users.query.padded.weight)
    adapted, unadapted = fit.predict(users), fit.predict(users, adapted=False)
    fit.harmed = float(np.nanmean(harmed_users(adapted, unadapted, weight > 0)))
    if fit.harmed <= config.tolerated_harm:
        return
    gains = user_nll(unadapted, weight) - user_nll(adapted, weight)
    levels = [
        [gate_level(*one, config.kept_gain) for one in zip(expected, gains, strict=True)]
        for expected in (
            reference.expected(fit, users),
            expected_gain(adapted, unadapted, weight),
        )
    ]
    fit.gates = [Gate(True, *pair) for pair in zip(*levels, strict=True)]
