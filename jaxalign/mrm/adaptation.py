"""Whom to adapt: a paired test over users for all of them, and a gate for each."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, stdtr

Floats = NDArray[np.float64]
_LEAST = 1e-12  # probability that counts as 0, as in the losses of `selection.user_nll`


class PairedTest(NamedTuple):
    """One-sided paired t-test of whether adaptation helps, over users.

    Attributes:
        gain: mean over users of the loss without adaptation minus the loss with it, in nats per
            choice.
        standard_error: of the gain; NaN for fewer than two users.
        t: gain over standard error.
        p: probability of a t this great or greater if adaptation changed nothing on average.
        users: how many users were compared.
    """

    gain: float
    standard_error: float
    t: float
    p: float
    users: int


def paired_test(gains: Floats) -> PairedTest:
    """Return the one-sided paired t-test of a mean gain above 0.

    Args:
        gains: [U] of each user; NaN for one who was not judged.

    Returns:
        The test; p is 1 where fewer than two users were judged or no gain differs from 0.

    Example:
        >>> import numpy as np
        >>> from jaxalign.mrm.adaptation import paired_test
        >>> test = paired_test(np.array([0.2, 0.1, 0.3, 0.0, np.nan]))
        >>> round(test.gain, 3), round(test.t, 2), round(test.p, 3), test.users
        (0.15, 2.32, 0.051, 4)
    """
    known = gains[np.isfinite(gains)]
    users = len(known)
    if users < 2:
        return PairedTest(float(known.sum()), float("nan"), float("nan"), 1.0, users)
    mean, error = float(known.mean()), float(known.std(ddof=1) / np.sqrt(users))
    if error == 0:
        sign = float(np.sign(mean))
        return PairedTest(mean, error, sign * np.inf if sign else 0.0, float(mean <= 0), users)
    t = mean / error
    return PairedTest(mean, error, t, float(stdtr(users - 1, -t)), users)


def losses_by_others(losses: Floats, fold: np.ndarray) -> Floats:
    """Return each user's loss under the candidate that the users of the other folds prefer.

    No user has chosen what the user is judged by, so that the best of many candidates is not
    better by choice alone.

    Args:
        losses: [C, U] of C candidates; NaN for a user who was not judged.
        fold: [U] number of each user's fold.

    Returns:
        [U].

    Example:
        >>> import numpy as np
        >>> from jaxalign.mrm.adaptation import losses_by_others
        >>> losses = np.array([[0.1, 0.9, 0.8], [0.5, 0.2, 0.3]])
        >>> losses_by_others(losses, np.array([0, 1, 2])).tolist()
        [0.5, 0.2, 0.3]
    """
    found = np.full(losses.shape[1], np.nan)
    known = np.isfinite(losses).all(0)
    for number in np.unique(fold):
        others = known & (fold != number)
        if others.any():
            mine = fold == number
            found[mine] = losses[np.argmin(losses[:, others].mean(1)), mine]
    return found


@dataclass(frozen=True)
class Gate:
    """Which users a model adapts to, by default all; the others get the population's model.

    Attributes:
        adapts: whether the model adapts to any user.
        support: least expected gain, on pairs that are the same for all users, that a user must
            have from the support choices, in nats per pair.
        pairs: least expected gain on the very pairs that are to be ranked, in nats per pair.

    Example:
        >>> from jaxalign.mrm.adaptation import Gate
        >>> Gate(adapts=True, support=0.01, pairs=0.02).pairs
        0.02
    """

    adapts: bool = True
    support: float = 0.0
    pairs: float = 0.0

    @property
    def by_support(self) -> bool:
        """Whether there are support choices that say too little to adapt to their user."""
        return not self.adapts or self.support > 0

    @property
    def by_pairs(self) -> bool:
        """Whether there are pairs to be ranked on which no user is adapted to."""
        return not self.adapts or self.pairs > 0


def expected_gain(probability: np.ndarray, unadapted: np.ndarray, weight: np.ndarray) -> Floats:
    """Return the gain in log-likelihood per pair that the adapted model expects over the other.

    It is the divergence of the adapted probabilities from the unadapted ones. No labels are needed.

    Args:
        probability: [..., P] that one item of each pair is chosen, adapted.
        unadapted: [..., P] of the same item.
        weight: [..., P], 0 for pairs that do not count.

    Returns:
        [...] nats, 0 or more; 0 where no pair counts.

    Example:
        >>> import numpy as np
        >>> from jaxalign.mrm.adaptation import expected_gain
        >>> expected_gain(np.array([0.5, 0.9]), np.array([0.5, 0.5]), np.ones(2)).round(3).item()
        0.184
    """
    both = (np.asarray(probability, np.float64), np.asarray(unadapted, np.float64))
    p, q = (np.clip(one, _LEAST, 1 - _LEAST) for one in both)
    divergence = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    counted = np.asarray(weight, np.float64)
    total = (np.where(counted > 0, divergence, 0) * counted).sum(-1)
    return np.maximum(total, 0) / np.maximum(counted.sum(-1), _LEAST)


def gate_level(expected: Floats, gains: Floats, kept: float) -> float:
    """Return the highest level of the expected gain at which a share of the gain is kept.

    Args:
        expected: [U] gain that each validation user was expected to have.
        gains: [U] gain that each really had, in nats; NaN for one who was not judged.
        kept: share of the sum of the gains, from 0 to 1, that the users at or above the level
            must have.

    Returns:
        The level; 0, at which all users are adapted to, where nothing is gained in all.

    Example:
        >>> import numpy as np
        >>> from jaxalign.mrm.adaptation import gate_level
        >>> gate_level(np.array([0.1, 0.2, 0.3, 0.4]), np.array([-0.1, 0.0, 0.3, 0.8]), 0.9)
        0.3
    """
    known = np.isfinite(gains) & np.isfinite(expected)
    order = np.argsort(expected[known], kind="stable")
    ordered, real = expected[known][order], gains[known][order]
    total = real.sum()
    if not len(ordered) or not total > 0:
        return 0.0
    from_here = total - np.concatenate([[0.0], np.cumsum(real)[:-1]])
    enough = np.flatnonzero(from_here >= kept * total)
    return float(ordered[enough[-1]]) if len(enough) and enough[-1] else 0.0


def harm_level(expected: Floats, harmed: Floats, most: float, confidence: float = 0.95) -> float:
    """Return the lowest level at which users surely are harmed no more often than a share.

    The upper limit of the share of all users who pass and are harmed is one-sided and exact
    (Clopper and Pearson 1934). The share falls as the level rises, so that the limit holds for the
    level that it chooses, too (Bates et al. 2021, "Distribution-free, risk-controlling prediction
    sets").

    Args:
        expected: [U] gain that each user was expected to have.
        harmed: [U] whether each is predicted worse with adaptation; NaN for one who was not judged.
        most: share of all users, from 0 to 1.
        confidence: of the upper limit, in (0, 1).

    Returns:
        The level; infinity where even no harmed user at all would prove too little.

    Example:
        >>> import numpy as np
        >>> from jaxalign.mrm.adaptation import harm_level
        >>> expected = np.arange(100) / 100
        >>> harm_level(expected, (expected < 0.4).astype(float), most=0.25)  # 17 of 100 may be
        0.23
    """
    known = np.isfinite(harmed) & np.isfinite(expected)
    order = np.argsort(expected[known], kind="stable")
    ordered, worse = expected[known][order], harmed[known][order]
    users = len(ordered)
    if not users:
        return float("inf")
    # Harmed among those from each user on, and among nobody.
    above = np.append(np.cumsum(worse[::-1])[::-1], 0.0)
    limit = betaincinv(above + 1, np.maximum(users - above, _LEAST), confidence)
    enough = np.flatnonzero(limit <= most)
    if not len(enough):
        return float("inf")
    first = int(enough[0])
    if first == 0:
        return 0.0
    # Users of equal gain pass together, or none of them.
    past = ordered[first:] > ordered[first - 1]
    return float(ordered[first:][past][0]) if past.any() else float("inf")


def gated(probability: np.ndarray, unadapted: np.ndarray, adapted: np.ndarray) -> np.ndarray:
    """Return probabilities [..., U, P]: adapted for users who are [..., U], else unadapted."""
    return np.where(np.asarray(adapted)[..., None], probability, unadapted)
