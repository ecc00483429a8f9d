"""Base rewards on one scale: standardised once on reference samples, and hashed.

Weights over rewards mean something only next to the scale they were learned on, so whoever stores
weights stores the digest of their `Standardiser` as well.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxalign.errors import InputError


@dataclass(frozen=True)
class Standardiser:
    """The scale of K named rewards: each minus its mean, over its standard deviation.

    Attributes:
      names: the K rewards, in order.
      mean: [K] float64, over the reference samples.
      std: [K] float64, positive.
    """

    names: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Standardise raw rewards.

        Args:
          values: [..., K], columns in the order of `names`.

        Returns:
          [..., K], float32, or float64 if the values are.
        """
        values = np.asarray(values)
        if values.ndim == 0 or values.shape[-1] != len(self.names):
            raise InputError(
                f"values of shape {values.shape} have no last axis of {len(self.names)}, one for "
                f"each of the rewards {', '.join(self.names)}."
            )
        dtype = np.promote_types(values.dtype, np.float32)
        return ((values - self.mean) / self.std).astype(dtype)

    @property
    def digest(self) -> str:
        """The sha256 over names, mean and std, in hexadecimal: the identity of the scale."""
        names = json.dumps(list(self.names)).encode()
        # Little-endian float64 whatever the machine: one scale, one digest.
        numbers = np.stack([self.mean, self.std]).astype("<f8").tobytes()
        return hashlib.sha256(names + b"\0" + numbers).hexdigest()

    def __eq__(self, other: object) -> bool:
        """Compare by content; the generated comparison of arrays would raise."""
        return isinstance(other, Standardiser) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


def fit(values: np.ndarray, names: Sequence[str]) -> Standardiser:
    """Learn the scale of named rewards from reference samples.

    Args:
      values: [N, K] raw rewards of N >= 2 samples.
      names: the K rewards, each name once.

    Returns:
      The `Standardiser`, with means and population standard deviations in float64.

    Raises:
      InputError: a reward is constant or not finite, or shapes and names do not fit.
    """
    values = np.asarray(values, np.float64)
    names = tuple(names)
    if values.ndim != 2 or values.shape[1] != len(names) or len(values) < 2:
        raise InputError(
            f"rewards of shape {values.shape} were given for {len(names)} names; expected "
            f"[N, {len(names)}] with N at least 2."
        )
    if len(set(names)) < len(names):
        raise InputError(f"reward names must differ, got {', '.join(names)}.")
    for name, column in zip(names, values.T, strict=True):
        bad = int(np.sum(~np.isfinite(column)))
        if bad:
            raise InputError(
                f"reward {name!r} is not finite on {bad} of {len(column)} reference samples; "
                "remove those samples or mend the reward."
            )
        # Rounding leaves a constant column a standard deviation of about 1e-16 of its size.
        if np.std(column) <= 1e-12 * max(1.0, float(np.max(np.abs(column)))):
            raise InputError(
                f"reward {name!r} is constant ({column[0]:g}) on all {len(column)} reference "
                "samples and cannot be standardised; leave it out or use more varied samples."
            )
    return Standardiser(names, values.mean(axis=0), values.std(axis=0))
