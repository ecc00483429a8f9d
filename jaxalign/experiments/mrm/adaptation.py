"""When a fitted method adapts, and to which users: decided before test users are seen."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from jaxalign.experiments.mrm.config import MRMRunConfig
from jaxalign.experiments.mrm.data import ExperimentData
from jaxalign.experiments.mrm.fits import FittedMethod, KeepStage
from jaxalign.experiments.mrm.refits import Refits
from jaxalign.metrics.harm import harmed_users
from jaxalign.mrm.adaptation import Gate, PairedTest, expected_gain, gate_level, harm_level
from jaxalign.mrm.config import AdaptationConfig
from jaxalign.mrm.out_of_fold import CandidateLosses, adaptation_test, user_folds
from jaxalign.mrm.selection import user_nll
from jaxalign.mrm.support_query import SupportQueryData, with_common_query


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


class Predicts(Protocol):
    """What predicts users' query choices under chosen candidates."""

    def predict(self, users: SupportQueryData, adapted: bool = True) -> np.ndarray:
        """Return probabilities [S, U, Q]."""


class AdaptationRule:
    """Decides for one method after the other; models for all users come first.

    Where validation users are few, a method that is fitted quickly is fitted again without each
    fold of training and validation users, and judged on all of them. Any other is judged on
    validation users, whom its fit has not seen either.
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
            stage: keeps what repeated fits give for a resumed run.
            say: called with one line of progress at a time.
            refit: whether methods may be fitted again.
        """
        self._data, self._config, self._validation = data, config, validation
        self._stage, self._say = stage, say
        settings = config.adaptation
        self._fold = user_folds(validation, max(settings.folds, 2), config.split.seed)
        self._may_refit = refit and settings.folds > 1
        self._common: list[CandidateLosses] = []
        self._common_refitted: list[CandidateLosses] = []

    @cached_property
    def _refits(self) -> Refits:
        return Refits(self._data, self._config, self._stage)

    def _refit(self, fit: FittedMethod, enough: int) -> bool:
        """Whether a method is fitted again, as it is where there are not `enough` users."""
        few = self._validation.query.users < enough
        return self._may_refit and fit.method.refits and few

    def decide(self, fit: FittedMethod, common: bool) -> Decision:
        """Choose a fit's candidates, and whether it adapts.

        Args:
            fit: of a method.
            common: whether it is a model for all users, which others are compared with.
        """
        settings = self._config.adaptation
        losses = fit.losses(self._validation, self._fold)
        mean = CandidateLosses(
            np.mean([one.adapted for one in losses], axis=0),
            np.mean([one.unadapted for one in losses], axis=0),
            self._fold,
        )
        if common:
            self._common.append(mean)
        refit = self._refit(fit, settings.enough_users)
        refitted = self._refits.losses(fit) if refit else None
        if common and refitted is not None:
            self._common_refitted.append(refitted)
        if refitted is None:
            test, users = adaptation_test(mean, self._common), _TESTED_ON[False]
        else:
            test = adaptation_test(refitted, self._common_refitted)
            users = _TESTED_ON[True].format(settings.folds)
        adapts = test is not None and test.p <= settings.significance
        fit.choose(losses, adapts or test is None)
        if test is not None:
            verdict = "adapts" if adapts else "does not adapt"
            self._say(
                f"{fit.method.name} {verdict}: {test.gain:+.4f} nats per choice on {test.users} "
                f"users ({users}), p {test.p:.2g}"
            )
        return Decision(test, users, adapts)

    def set_gates(self, fit: FittedMethod, reference: "ReferencePairs") -> None:
        """Choose the levels of each fit's gate, if adaptation harms too many validation users.

        Args:
            fit: of a method that adapts, whose candidates are chosen.
            reference: pairs that the support is judged on.
        """
        settings = self._config.adaptation
        fit.harmed = harmed_share(fit, self._validation)
        if fit.harmed <= settings.tolerated_harm:
            return
        # The gate of a control, which is never saved, needs no such certainty.
        saved = "new_items" in fit.method.capabilities
        if saved and self._refit(fit, settings.enough_for_gate):
            fit.gates = gates(self._refits.unseen(fit), self._refits.users, reference, settings)
            fit.gated_on = _TESTED_ON[True].format(settings.folds)
        else:
            fit.gates = gates(fit, self._validation, reference, settings)
            fit.gated_on = _TESTED_ON[False]


_TESTED_ON = {False: "validation users", True: "training and validation users, {} folds"}


@dataclass(frozen=True)
class ReferencePairs:
    """Pairs of items that what a user's support says is judged on: chosen and rejected [R]."""

    chosen: np.ndarray
    rejected: np.ndarray

    def expected(self, fit: Predicts, users: SupportQueryData) -> np.ndarray:
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


def harmed_share(fit: Predicts, users: SupportQueryData) -> float:
    """Return the share of users who are predicted worse with adaptation than without."""
    mask = np.asarray(users.query.padded.weight) > 0
    adapted, unadapted = fit.predict(users), fit.predict(users, adapted=False)
    return float(np.nanmean(harmed_users(adapted, unadapted, mask)))


def gates(
    fit: Predicts, users: SupportQueryData, reference: ReferencePairs, config: AdaptationConfig
) -> list[Gate]:
    """Return the gate of each of S fits, with the levels that some users choose.

    A level keeps `config.kept_gain` of the gain in log-likelihood. Where it may leave more than
    `config.most_harmed` of all users worse off, it is raised until it does not, at the cost of
    gain down to `config.least_kept_gain`.

    Args:
        fit: predicts the users, whom it has not seen.
        users: U users.
        reference: pairs that the support is judged on.
        config: shares of the gain and of the users.
    """
    weight = np.asarray(users.query.padded.weight)
    adapted, unadapted = fit.predict(users), fit.predict(users, adapted=False)
    gains = user_nll(unadapted, weight) - user_nll(adapted, weight)
    harmed = [harmed_users(*one, weight > 0) for one in zip(adapted, unadapted, strict=True)]

    def level(expected: np.ndarray, gain: np.ndarray, worse: np.ndarray) -> float:
        usual, highest = (
            gate_level(expected, gain, kept) for kept in (config.kept_gain, config.least_kept_gain)
        )
        return max(usual, min(highest, harm_level(expected, worse, config.most_harmed)))

    forms = (reference.expected(fit, users), expected_gain(adapted, unadapted, weight))
    levels = [list(map(level, form, gains, harmed)) for form in forms]
    return [Gate(True, *pair) for pair in zip(*levels, strict=True)]
