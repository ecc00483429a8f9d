"""What fits say of users whom they have not seen: a method fitted again without each fold."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np

from jaxalign.mrm.adaptation import PairedTest, losses_by_others, paired_test
from jaxalign.mrm.registry import Fitted, UserRewardMethod
from jaxalign.mrm.selection import candidate_losses
from jaxalign.mrm.support_query import Rows, SupportQueryData, TrainingData, UserPairs

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
    """Return the data without each fold's users, all of the same shapes.

    Args:
        data: choices of all that a method may be fitted on, the users among them.
        number: [U] which of the users of `data` each of them is.
        fold: [U] of each of them.
    """
    mine = np.full(data.choices.users, -1)
    mine[number] = fold
    others = [mine != one for one in range(int(fold.max()) + 1)]
    return [
        replace(data, choices=_some_users(data.choices, others, one), start=None)
        for one in range(len(others))
    ]


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
    folds = [fold == one for one in range(int(fold.max()) + 1)]
    order, parts = [], []
    for one, mine in enumerate(folds):
        some = SupportQueryData(
            _some_users(users.support, folds, one), _some_users(users.query, folds, one)
        )
        # The rows of a subset are its members in order, with padding behind those of each bucket.
        order += [members[mine[members]] for members in users.query.members]
        real = [
            np.arange(width) < mine[members].sum()
            for members, width in zip(users.query.members, _widths(users.query, folds), strict=True)
        ]
        parts.append(of(one, some)[np.concatenate(real)])
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


def _widths(users: UserPairs, subsets: Sequence[np.ndarray]) -> list[int]:
    """Users of each bucket that the largest of some subsets [U] bool has."""
    return [int(max(one[members].sum() for one in subsets)) for members in users.members]


def _some_users(users: UserPairs, subsets: Sequence[np.ndarray], number: int) -> UserPairs:
    """The users of one of some subsets, renumbered.

    Each bucket is padded with users without choices to what the largest subset has, so that a
    program is compiled for the shapes of all subsets once.
    """
    widths = _widths(users, subsets)
    rows, members, start = [], [], 0
    for everyone, width in zip(users.members, widths, strict=True):
        mine = np.flatnonzero(subsets[number][everyone])
        rows.append(np.pad(mine, (0, width - len(mine)), constant_values=-1))
        members.append(np.arange(start, start + width))
        start += width

    def of(parts: tuple[Rows, ...]) -> tuple[Rows, ...]:
        return tuple(_taken(part, some) for part, some in zip(parts, rows, strict=True))

    return UserPairs(tuple(members), of(users.parts), of(users.details) if users.details else ())


def _taken(part: Rows, rows: np.ndarray) -> Rows:
    """Rows of a bucket, without choices where a row is -1."""
    taken = type(part)(*(np.asarray(array)[rows] for array in part))
    weight = np.where(rows[:, None] < 0, 0, taken.weight).astype(np.asarray(taken.weight).dtype)
    return taken._replace(weight=weight)
