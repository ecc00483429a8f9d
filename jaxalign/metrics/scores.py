"""Accuracy and likelihood of a reward model's choices, one user at a time.

Everywhere `probability [..., U, P]` is the predicted probability that the chosen item of a pair
wins, and `mask [U, P]` marks the pairs that are real and strict (no padding, no ties). Leading axes
are seeds. Whatever stands where the mask is false is never read. A prediction of exactly one half
counts as half right: a model that says nothing scores .5, not 0 or 1.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxalign.errors import InputError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# The least normal float32: no probability that a float32 model can state is altered by it, and a
# sigmoid that underflowed to 0 costs 87 nats instead of making every mean infinite.
_LEAST = float(np.finfo(np.float32).tiny)


def floats(name: str, values: ArrayLike) -> Floats:
    """Return an argument as float64, whatever its shape; NaN and infinity are left to the caller.

    Raises:
      InputError: it holds what is no number, or rows of different lengths.

    Example:
        >>> from jaxalign.metrics.scores import floats
        >>> floats("values", [[1, 0]])
        array([[1., 0.]])
    """
    try:
        found = np.asarray(values)
        if found.dtype.kind in "OUS":  # text would be read as numbers, and None as NaN
            raise TypeError
        return found.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        raise InputError(
            f"{name}: found values that are no numbers, or rows of different lengths; expected "
            "numbers: correct it."
        ) from None


def check_probabilities(
    probability: ArrayLike, mask: ArrayLike, name: str = "probability"
) -> tuple[Floats, Bools]:
    """Return float64 probabilities, .5 at padding, and the mask, or refuse what cannot be judged.

    Args:
      probability: [..., U, P].
      mask: [U, P] bool.
      name: what to call the probabilities in an error.

    Returns:
      probability [..., U, P] float64, mask [U, P] bool.

    Raises:
      InputError: shapes differ, the mask is not boolean or empty, or a probability is outside 0..1.
    """
    keep = np.asarray(mask)
    values = floats(name, probability)
    if keep.ndim != 2 or keep.dtype != np.bool_:
        raise InputError(f"mask: expected [users, pairs] bool, found {keep.shape} {keep.dtype}.")
    if values.ndim < 2 or values.shape[-2:] != keep.shape:
        raise InputError(
            f"{name}: expected [..., users, pairs] like mask {keep.shape}, found {values.shape}."
        )
    if values.size == 0 or not keep.any():
        raise InputError("mask: no pair to judge; expected at least one user with one strict pair.")
    values = np.where(keep, values, 0.5)
    if not ((values >= 0) & (values <= 1)).all():
        raise InputError(
            f"{name}: expected probabilities from 0 to 1; found values outside or NaN."
        )
    return values, keep


def correct(probability: ArrayLike, mask: ArrayLike, name: str = "probability") -> Floats:
    """Return 1 for a pair ranked right, 0 for one ranked wrong, .5 for no opinion and at padding.

    Args:
      probability: [..., U, P].
      mask: [U, P] bool.
      name: what to call the probabilities in an error.

    Returns:
      [..., U, P] float64.

    Raises:
      InputError: as `check_probabilities`.

    Example:
        >>> import numpy as np
        >>> from jaxalign.metrics.scores import correct
        >>> correct([[0.9, 0.5, 0.2]], np.ones((1, 3), bool)).tolist()
        [[1.0, 0.5, 0.0]]
    """
    values, _ = check_probabilities(probability, mask, name)
    return (np.sign(values - 0.5) + 1) / 2


def correct_both(
    probability: ArrayLike, other: ArrayLike, mask: ArrayLike, name: str
) -> tuple[Floats, Floats]:
    """Return `correct` of two models on the same pairs, seeds lined up on one axis.

    Args:
      probability: [..., U, P].
      other: [..., U, P], as many seeds as probability, or one for all of them.
      mask: [U, P] bool.
      name: what to call the other in an error.

    Returns:
      Two of [S, U, P].

    Raises:
      InputError: as `check_probabilities`, or the seeds do not match.
    """
    first, second = correct(probability, mask), correct(other, mask, name)
    try:
        first, second = np.broadcast_arrays(first, second)
    except ValueError:
        raise InputError(
            f"{name}: expected the seeds of probability {first.shape}, found {second.shape}."
        ) from None
    return first.reshape(-1, *first.shape[-2:]), second.reshape(-1, *first.shape[-2:])


def over_pairs(values: Floats, mask: Bools) -> Floats:
    """Return each user's mean over real pairs, NaN for users without any.

    Args:
      values: [..., U, P].
      mask: [U, P] bool.

    Returns:
      [..., U].

    Example:
        >>> import numpy as np
        >>> from jaxalign.metrics.scores import over_pairs
        >>> over_pairs(np.array([[1.0, 3.0]]), np.array([[True, True]])).tolist()
        [2.0]
    """
    count = mask.sum(-1)
    total = np.where(mask, values, 0.0).sum(-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def user_accuracy(probability: ArrayLike, mask: ArrayLike) -> Floats:
    """Return the share of each user's pairs that the model ranks as the user did.

    Args:
      probability: [..., U, P], of the chosen item.
      mask: [U, P] bool, real strict pairs.

    Returns:
      [..., U], NaN for a user without pairs; every mean over users leaves such users out.

    Raises:
      InputError: shapes differ, nothing to judge, or a probability is outside 0..1.

    Example:
        >>> import numpy as np
        >>> from jaxalign.metrics import user_accuracy
        >>> mask = np.array([[True, True], [True, False]])
        >>> probability = np.array([[0.9, 0.4], [0.7, 0.0]])
        >>> user_accuracy(probability, mask).tolist()
        [0.5, 1.0]
    """
    return over_pairs(correct(probability, mask), np.asarray(mask))


def user_nll(probability: ArrayLike, mask: ArrayLike) -> Floats:
    """Return each user's mean negative log-likelihood of their choices, in nats.

    A probability below float32's least normal number is charged as that number (87 nats).

    Args:
      probability: [..., U, P], of the chosen item.
      mask: [U, P] bool, real strict pairs.

    Returns:
      [..., U], NaN for a user without pairs; every mean over users leaves such users out.

    Raises:
      InputError: as `user_accuracy`.

    Example:
        >>> import numpy as np
        >>> from jaxalign.metrics import user_nll
        >>> mask = np.array([[True, True], [True, False]])
        >>> probability = np.array([[0.9, 0.4], [0.7, 0.0]])
        >>> user_nll(probability, mask).round(3).tolist()
        [0.511, 0.357]
    """
    values, keep = check_probabilities(probability, mask)
    # 0 - log instead of -log: a certain right answer costs 0, not -0.
    return over_pairs(0.0 - np.log(np.maximum(values, _LEAST)), keep)


def accuracy(probability: ArrayLike, mask: ArrayLike) -> float:
    """Return the mean over users of user accuracy, the field's convention: each user counts once.

    Args:
      probability: [..., U, P], of the chosen item; leading axes (seeds) are averaged.
      mask: [U, P] bool, real strict pairs.

    Returns:
      A fraction; users without pairs are left out.

    Raises:
      InputError: as `user_accuracy`.

    Example:
        >>> import numpy as np
        >>> from jaxalign.metrics import accuracy
        >>> mask = np.array([[True, True], [True, False]])
        >>> probability = np.array([[0.9, 0.4], [0.7, 0.0]])
        >>> accuracy(probability, mask)
        0.75
    """
    return float(np.nanmean(user_accuracy(probability, mask)))


def nll(probability: ArrayLike, mask: ArrayLike) -> float:
    """Return the mean over users of user negative log-likelihood, in nats a choice.

    Args:
      probability: [..., U, P], of the chosen item; leading axes (seeds) are averaged.
      mask: [U, P] bool, real strict pairs.

    Returns:
      Nats; users without pairs are left out.

    Raises:
      InputError: as `user_accuracy`.

    Example:
        >>> import numpy as np
        >>> from jaxalign.metrics import nll
        >>> mask = np.array([[True, True], [True, False]])
        >>> probability = np.array([[0.9, 0.4], [0.7, 0.0]])
        >>> round(nll(probability, mask), 3)
        0.434
    """
    return float(np.nanmean(user_nll(probability, mask)))


def user_gain(probability: ArrayLike, baseline: ArrayLike, mask: ArrayLike) -> Floats:
    """Return what each user gains in accuracy over a baseline, averaged over seeds.

    Args:
      probability: [..., U, P], of the chosen item.
      baseline: [..., U, P], the same pairs; seeds as in probability, or one for all.
      mask: [U, P] bool, real strict pairs.

    Returns:
      [U] fractions, exactly 0 where wins and losses balance, NaN for a user without pairs.

    Raises:
      InputError: as `user_accuracy`, or the seeds do not match.
    """
    after, before = correct_both(probability, baseline, mask, "baseline")
    # Summed before any division: sums of halves are exact, so that no user loses by rounding.
    return over_pairs((after - before).sum(0), np.asarray(mask)) / len(after)


def flipped(probability: ArrayLike, unadapted: ArrayLike, mask: ArrayLike) -> float:
    """Return the share of predictions that fall on another side of one half after adaptation.

    A published method at its shipped settings flips almost none: then it does not personalise,
    whatever its accuracy.

    Args:
      probability: [..., U, P], with adaptation.
      unadapted: [..., U, P], the same model before it saw the user.
      mask: [U, P] bool, real strict pairs.

    Returns:
      A fraction of all predictions (pairs and seeds pooled); no opinion is a side of its own.

    Raises:
      InputError: as `user_accuracy`.
    """
    after, before = correct_both(probability, unadapted, mask, "unadapted")
    return float((after != before)[:, np.asarray(mask)].mean())


def _number(name: str, value: ArrayLike) -> float:
    found = floats(name, value)
    if found.ndim:
        raise InputError(
            f"{name}: found shape {list(found.shape)}, expected a number; give one number."
        )
    return float(found)


def share_of_gap(value: float, floor: float, ceiling: float) -> float:
    """Return how much of the way from floor to ceiling a value stands, as a fraction.

    The ceiling is what a reference reaches that sees far more of the same users (all ratings of the
    support half, or, for simulated people, their true weights). Raw points mean little beside it.

    Args:
      value: accuracy of the method.
      floor: accuracy with no adaptation.
      ceiling: accuracy of the reference.

    Returns:
      (value - floor) / (ceiling - floor); below 0 or above 1 where the value lies outside. NaN
      where the ceiling is not above the floor: there is no gap to close.

    Raises:
      InputError: something else than a number.
    """
    given = {"value": value, "floor": floor, "ceiling": ceiling}
    value, floor, ceiling = (_number(name, number) for name, number in given.items())
    return (value - floor) / (ceiling - floor) if ceiling > floor else float("nan")
