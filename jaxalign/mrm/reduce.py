"""Features as the models see them: principal directions, or standardised named rewards."""

from dataclasses import dataclass

import numpy as np

from jaxalign.errors import InputError


@dataclass(frozen=True)
class Projection:
    """A linear map from features [E] to what the models work on [D].

    Attributes:
        matrix: [E, D].
        names: names of the D columns when they are named base rewards.
        mean: [E] subtracted first; it cancels in differences and centres scores.
    """

    matrix: np.ndarray
    mean: np.ndarray
    names: tuple[str, ...] | None = None

    def apply(self, features: np.ndarray) -> np.ndarray:
        """Project features [..., E] to [..., D], float32."""
        width = self.matrix.shape[0]
        if features.shape[-1] != width:
            raise InputError(
                f"the features are {features.shape[-1]} wide but the checkpoint was trained on "
                f"{width}: encode the texts with the model named in model.json"
            )
        centred = features.astype(np.float64) - self.mean
        return (centred @ self.matrix).astype(np.float32)


def fit_projection(features: np.ndarray, max_dims: int, whiten: float) -> Projection:
    """Principal directions of item features [I, E], at most `max_dims`, partly whitened.

    Direction j with standard deviation s_j over items is divided by s_j^whiten, then all by one
    number, so that the projected items have unit mean squared norm. Half whitening serves known
    items and new ones: with 0 the prior starts from the encoder's geometry alone, with 1 from ids.
    """
    values = features.astype(np.float64)
    mean = values.mean(0)
    _, lengths, directions = np.linalg.svd(values - mean, full_matrices=False)
    usable = int(np.sum(lengths > lengths[0] * 1e-5)) if len(lengths) and lengths[0] > 0 else 0
    if not usable:
        raise InputError("all items have the same features: nothing can be learned from them")
    keep = min(max_dims, usable)
    spread = lengths[:keep] / np.sqrt(len(values))
    matrix = directions[:keep].T / spread**whiten
    projected = (values - mean) @ matrix
    matrix /= np.sqrt(np.mean(np.sum(projected**2, axis=1)))
    # A sign that does not depend on the LAPACK at hand.
    matrix *= np.sign(matrix[np.argmax(np.abs(matrix), axis=0), np.arange(keep)])
    return Projection(matrix, mean)


def identity(width: int) -> Projection:
    """Features [E] as they are."""
    return Projection(np.eye(width), np.zeros(width))


def standardise(features: np.ndarray, names: tuple[str, ...]) -> Projection:
    """Named base rewards [I, K] to mean 0 and standard deviation 1 over the items."""
    values = features.astype(np.float64)
    spread = values.std(0)
    if np.any(spread < 1e-12):
        constant = names[int(np.argmin(spread))]
        raise InputError(f"reward {constant!r} is the same for every item: leave it out")
    return Projection(np.diag(1 / spread), values.mean(0), names)
