"""Losses of users by fits that have not seen them: a method fitted again without each fold."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from jaxalign.data.batching import Pairs
from jaxalign.mrm.adaptation import PairedTest, losses_by_others, paired_test
from jaxalign.mrm.registry import UserRewardMethod
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


def out_of_fold(
    method: UserRewardMethod,
    data: TrainingData,
    users: SupportQueryData,
    number: np.ndarray,
    fold: np.ndarray,
    judged: Callable[[UserRewardMethod], UserRewardMethod] = lambda method: method,
) -> CandidateLosses:
    """Return every candidate's losses of users by fits to the others.

    Args:
        method: what is fitted, with its first seed.
        data: choices of all that it may be fitted on, the users among them.
        users: U users, their choices cut into support and query.
        number: [U] which of the users of `data` each of them is.
        fold: [U] of each of them.
        judged: the method as it predicts, from the method as it is fitted.
    """
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for one in range(int(fold.max()) + 1):
        mine = np.flatnonzero(fold == one)
        others = _without(data, number[mine])
        fitted = method.fit(others, 0)
        # What items are to a control that reads no text is learned from choices, too.
        features, some = others.inputs(method.inputs), _subset(users, fold, one)
        predicted = judged(method)
        losses = (candidate_losses(predicted, fitted, features, some, how) for how in (True, False))
        # The rows of a subset are its members in order, padded to the size of the largest fold.
        order = np.concatenate([m[fold[m] == one] for m in users.query.members])
        real = np.concatenate(
            [np.arange(w) < (fold[m] == one).sum() for m, w in _widths(users, fold)]
        )
        with_it, without = (array[:, real] for array in losses)
        parts.append((order, with_it, without))
    order = np.concatenate([part[0] for part in parts])
    back = np.argsort(order)
    adapted, unadapted = (np.concatenate([p[i] for p in parts], axis=1)[:, back] for i in (1, 2))
    return CandidateLosses(adapted, unadapted, fold)


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
