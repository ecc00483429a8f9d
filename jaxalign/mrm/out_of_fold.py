"""What fits say of users whom they have not seen: a method fitted again without each fold."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np

from jaxalign.data.batching import Pairs
from jaxalign.mrm.adaptation import PairedTest, losses_by_others, paired_test
from jaxalign.mrm.registry import Fitted, UserRewardMethod
from jaxalign.mrm.selection import candidate_losses
from jaxalign.mrm.support_query import SupportQueryData, TrainingData, UserPairs

_SAME = 1e-9  # nats by which a candidate's losses may differ that reads no support


class CandidateLosses(NamedTuple):
    """What each of C candidates loses on each of U users, in nats per choice.

    Attributes:
        adapted: [C, U], the support choices read.
        unadapted: [C, U], without them.
        fold: [U] of each user.
    """

    adapted: np.ndarray
    unadapted: np.ndarray
    fold: np.ndarray

    @property
    def reads(self) -> np.ndarray:
        """Whether each candidate [C] reads the support choices of any user."""
        return np.nanmax(np.abs(self.adapted - self.unadapted), axis=1) > _SAME


def adaptation_test(
    losses: CandidateLosses, common: Sequence[CandidateLosses] = ()
) -> PairedTest | None:
    """Return the test of whether a method's adaptation helps, over no adaptation at all.

    Both sides choose a candidate on the users of the other folds. No adaptation is the method
    itself without the support choices, or one model for all users where that is better.

    Args:
        losses: of the method.
        common: of models for all users on the same users, unadapted.

    Returns:
        The test; None for a method that reads no support.

    Example:
        >>> import numpy as np
        >>> from jaxalign.mrm.out_of_fold import CandidateLosses, adaptation_test
        >>> fold = np.arange(6)
        >>> without, noise = np.full((1, 6), 0.7), np.array([[0.01, -0.01, 0.02, 0, 0.01, -0.01]])
        >>> round(adaptation_test(CandidateLosses(without - 0.1 + noise, without, fold)).gain, 3)
        0.097
    """
    reads = losses.reads
    if not reads.any():
        return None
    unadapted = np.concatenate([losses.unadapted, *(one.unadapted for one in common)])
    adapted = losses_by_others(losses.adapted[reads], losses.fold)
    return paired_test(losses_by_others(unadapted, losses.fold) - adapted)


def user_folds(users: SupportQueryData, folds: int, seed: int) -> np.ndarray:
    """Return the fold [U] of each user; folds have equally many users of each bucket, up to one."""
    rng = np.random.default_rng(seed)
    fold = np.zeros(users.query.users, int)
    for members in users.query.members:
        fold[members] = rng.permutation(np.arange(len(members)) % folds)
    return fold


def fold_data(data: TrainingData, number: np.ndarray, fold: np.ndarray) -> list[TrainingData]:
    """Return the data without each fold's users, shapes unchanged.

    Args:
        data: choices of all that a method may be fitted on, the users among them.
        number: [U] which of the users of `data` each of them is.
        fold: [U] of each of them.
    """
    return [_without(data, number[fold == one]) for one in range(int(fold.max()) + 1)]


def by_fold(
    users: SupportQueryData,
    fold: np.ndarray,
    of: Callable[[int, SupportQueryData], np.ndarray],
) -> np.ndarray:
    """Return arrays [U, ...] of users, computed fold by fold.

    Args:
        users: U users.
        fold: [U] of each of them.
        of: returns [V, ...] of the V users of one fold, from its number and the users, who are
            padded so that each fold has the same shapes.

    Returns:
        [U, ...].
    """
    order, parts = [], []
    for one in range(int(fold.max()) + 1):
        # The rows of a subset are its members in order, padded to the size of the largest fold.
        order += [members[fold[members] == one] for members in users.query.members]
        real = [np.arange(width) < (fold[m] == one).sum() for m, width in _widths(users, fold)]
        parts.append(of(one, _subset(users, fold, one))[np.concatenate(real)])
    return np.concatenate(parts)[np.argsort(np.concatenate(order))]


class FoldFit(NamedTuple):
    """What predicts the users of one fold: a fit to the users of the others.

    Attributes:
        method: the method as it predicts.
        fitted: its arrays.
        features: [I, D] items as it takes them.
    """

    method: UserRewardMethod
    fitted: Fitted
    features: jax.Array


def out_of_fold(
    fits: Sequence[FoldFit], users: SupportQueryData, fold: np.ndarray
) -> CandidateLosses:
    """Return every candidate's losses of users by fits to the others.

    Args:
        fits: for each fold.
        users: U users, their choices cut into support and query.
        fold: [U] of each of them.
    """

    def losses(adapted: bool) -> np.ndarray:
        def of(one: int, some: SupportQueryData) -> np.ndarray:
            return candidate_losses(*fits[one], some, adapted).T

        return by_fold(users, fold, of).T

    return CandidateLosses(losses(True), losses(False), fold)


def _without(data: TrainingData, held_out: np.ndarray) -> TrainingData:
    """The same data, shapes unchanged, in which the choices of some users do not count."""

    def weight(users: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return np.where(np.isin(users, held_out)[:, None], 0, weights).astype(weights.dtype)

    return replace(data, choices=data.choices.reweighted(weight), start=None)


def _widths(users: SupportQueryData, fold: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """Members of each bucket, and how many of them the largest fold has."""
    return [(m, int(np.bincount(fold[m]).max())) for m in users.query.members]


def _subset(users: SupportQueryData, fold: np.ndarray, one: int) -> SupportQueryData:
    """The users of one fold, renumbered; padded so that each fold has the same shapes."""

    def side(pairs: UserPairs) -> UserPairs:
        members, parts, details, start = [], [], [], 0
        for place, (all_members, width) in enumerate(_widths(users, fold)):
            mine = np.flatnonzero(fold[all_members] == one)
            rows = np.concatenate([mine, np.zeros(width - len(mine), int)])
            parts.append(Pairs(*(np.asarray(array)[rows] for array in pairs.parts[place])))
            details += [part.take(rows) for part in pairs.details[place : place + 1]]
            members.append(np.arange(start, start + width))
            start += width
        return UserPairs(tuple(members), tuple(parts), tuple(details))

    return SupportQueryData(side(users.support), side(users.query))
