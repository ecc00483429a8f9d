"""Features as the models see them: principal directions, or standardised named rewards."""

from dataclasses import dataclass

import numpy as np

from jaxalign.errors import InputError
from jaxalign.rewards.reward_scale import RewardScale


@dataclass(frozen=True)
class Projection:
    """A linear map from features [E] to what the models work on [D].

    Attributes:
        matrix: [E, D].
        mean: [E] subtracted first; it cancels in differences and centres scores.
        scale: of the D columns where they are named base rewards; None for learned features.

    Example:
        >>> import numpy as np
        >>> from jaxalign.mrm.reduce import identity
        >>> identity(2).apply(np.array([[1.0, 2.0]])).tolist()
        [[1.0, 2.0]]
    """

    matrix: np.ndarray
    mean: np.ndarray
    scale: RewardScale | None = None

    def apply(self, features: np.ndarray) -> np.ndarray:
        """Return features [..., E] projected to [..., D], float32.

        Raises:
            InputError: the features are of another width.
        """
        width = self.matrix.shape[0]
        if features.shape[-1] != width:
            raise InputError(
                f"the features are {features.shape[-1]} wide but the model was trained on {width}: "
                "use the features of the encoder that the model was trained with."
            )
        centred = features.astype(np.float64) - self.mean
        return (centred @ self.matrix).astype(np.float32)


def fit_projection(features: np.ndarray, max_dims: int, whiten: float) -> Projection:
    """Return the principal directions of item features, partly whitened.

    Direction j with standard deviation s_j over items is divided by s_j^whiten, then all by one
    number, so that the projected items have unit mean squared norm. Half whitening serves known
    items and new ones: with 0 the prior starts from the encoder's geometry alone, with 1 from ids.

    Args:
        features: [I, E].
        max_dims: most directions that are kept.
        whiten: from 0 to 1.

    Raises:
        InputError: all items have the same features.

    Example:
        >>> import numpy as np
        >>> from jaxalign.mrm.reduce import fit_projection
        >>> points = np.array([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0]])
        >>> fit_projection(points, max_dims=2, whiten=0.0).apply(points)[:, 0].round(2)
        array([-1.22,  0.  ,  1.22], dtype=float32)
    """
    values = features.astype(np.float64)
    mean = values.mean(0)
    _, lengths, directions = np.linalg.svd(values - mean, full_matrices=False)
    usable = int(np.sum(lengths > lengths[0] * 1e-5)) if len(lengths) and lengths[0] > 0 else 0
    if not usable:
        raise InputError("all items have the same features: nothing can be learned from them.")
    keep = min(max_dims, usable)
    spread = lengths[:keep] / np.sqrt(len(values))
    matrix = directions[:keep].T / spread**whiten
    projected = (values - mean) @ matrix
    matrix /= np.sqrt(np.mean(np.sum(projected**2, axis=1)))
    # A sign that does not depend on the LAPACK at hand.
    matrix *= np.sign(matrix[np.argmax(np.abs(matrix), axis=0), np.arange(keep)])
    return Projection(matrix, mean)


def identity(width: int) -> Projection:
    """Return the map that leaves features [E] as they are."""
    return Projection(np.eye(width), np.zeros(width))


def standardise(scale: RewardScale) -> Projection:
    """Return the map from raw named rewards [R] to standard deviations of their scale."""
    return Projection(np.diag(1 / scale.std), scale.mean, scale)
