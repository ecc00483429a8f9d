"""Sets of reward vectors: how much they dominate, how evenly they lie, how many they really are.

Rewards are maximised throughout. All is NumPy in float64.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxalign.errors import InputError
from jaxalign.metrics.scores import floats

Floats = NDArray[np.float64]


def nondominated(points: ArrayLike) -> NDArray[np.bool_]:
    """Return which points no other point dominates.

    One dominates another if it is at least as good in every objective and better in one; of equal
    points none dominates the others.

    Args:
      points: [W, R].

    Returns:
      [W].

    Raises:
      InputError: not [W, R], or not finite.

    Example:
        >>> from jaxalign.metrics import nondominated
        >>> nondominated([[1.0, 0.0], [0.0, 1.0], [0.0, 0.5]]).tolist()
        [True, True, False]
    """
    values = check_points(points)
    other, own = values[:, None], values[None]
    dominated = (other >= own).all(-1) & (other > own).any(-1)
    return np.logical_not(dominated.any(0))


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """Return the volume that points dominate, down to a reference point.

    A point that is not above the reference in every objective adds nothing; so a far reference
    rewards the corners of a front, and a near one forgives missing them: always state it.

    Args:
      points: [W, R].
      reference: [R].

    Returns:
      In the product of the objectives' units.

    Raises:
      InputError: shapes that do not fit, or values that are not finite.

    Source: Zitzler, Thiele, PPSN 1998; computed by moocore.

    Example:
        >>> from jaxalign.metrics import hypervolume
        >>> hypervolume([[1.0, 0.5], [0.5, 1.0]], [0.0, 0.0])
        0.75
    """
    import moocore

    values, floor = check_points(points), floats("reference", reference)
    if floor.shape != values.shape[1:] or not np.isfinite(floor).all():
        raise InputError(
            f"reference point: found {floor.tolist()}, expected {values.shape[1]} finite numbers, "
            "one an objective."
        )
    return float(moocore.hypervolume(values, ref=floor, maximise=True))


def sparsity(points: ArrayLike) -> float:
    """Return how far neighbours on the front lie apart: small is dense.

    Over the n non-dominated points, equal ones counted once: each objective's values are sorted on
    their own, the squared gaps between neighbours summed over all objectives, and divided by n - 1.

    Args:
      points: [W, R]; dominated ones are left out.

    Returns:
      In squared units of the objectives; 0 for fewer than 2 points, as in the literature, where it
      says nothing about density.

    Raises:
      InputError: not [W, R], or not finite.

    Source: Xu et al., Prediction-Guided Multi-Objective Reinforcement Learning, ICML 2020; the
      form that the literature on several rewards for language models has taken over.

    Example:
        >>> from jaxalign.metrics import sparsity
        >>> sparsity([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
        0.5
    """
    values = check_points(points)
    front = np.unique(values[nondominated(values)], axis=0)
    if len(front) < 2:
        return 0.0
    gaps = np.diff(np.sort(front, axis=0), axis=0)
    return float((gaps**2).sum() / (len(front) - 1))


def entropy(points: ArrayLike, width: float = 0.05) -> float:
    """Return the entropy of a set of points, near ones counted as partly the same.

    -mean_i log mean_j exp(-|x_i - x_j|^2 / (2 width^2)): 0 where all points coincide, log W where
    all lie many widths apart. Its exponential is a number of distinct points. It has no grid, whose
    edges would decide whether two neighbours are one.

    Args:
      points: [W, R], dominated ones included: it asks how differently a policy acts, not how well.
      width: distance at which points begin to differ, in units of the objectives.

    Returns:
      In nats.

    Raises:
      InputError: not [W, R], not finite, or a width that is not above 0.

    Source: Leinster, Cobbold, Ecology 2012, equation 1 for q = 1; Farhang-Mehr, Azarm, Journal of
      Mechanical Design 2003, for entropy as a figure of solution sets.

    Example:
        >>> from jaxalign.metrics import entropy
        >>> round(entropy([[0.0, 1.0], [1.0, 0.0]]), 4)  # log 2
        0.6931
    """
    values = check_points(points)
    if not width > 0:
        raise InputError(f"width: found {width}, expected a number above 0.")
    squares = ((values[:, None] - values[None]) ** 2).sum(-1)
    # Rounding may carry what is one point a little below 0.
    return max(0.0, float(-np.log(np.exp(-squares / (2 * width**2)).mean(1)).mean()))


def check_points(points: ArrayLike) -> Floats:
    """Return points as float64 [W, R], W and R at least 1.

    Raises:
      InputError: they are not, or not finite.
    """
    values = floats("points", points)
    if values.ndim != 2 or 0 in values.shape:
        raise InputError(
            f"points: found shape {values.shape}, expected [W, R], a row a point and a column an "
            "objective."
        )
    bad = ~np.isfinite(values).all(1)
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(
            f"point {row}: found {values[row].tolist()}, expected finite numbers; leave it out or "
            "mend what measured it."
        )
    return values
