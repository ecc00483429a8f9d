"""One Bradley-Terry model for all users, and one per user (Bradley and Terry 1952)."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.config_fields import checks_fields
from jaxalign.data.batching import Pairs
from jaxalign.mrm import newton
from jaxalign.mrm.chunks import map_users
from jaxalign.mrm.config import check_range
from jaxalign.mrm.registry import Candidate, Fitted, Settings, WeightsMethod, register
from jaxalign.mrm.support_query import TrainingData, differences
from jaxalign.train.blas import one_blas_thread


@dataclass(frozen=True)
@checks_fields
class OneModelConfig:
    """One Bradley-Terry model for all users.

    Attributes:
        ridges: ridges that validation chooses from, relative to the mean squared difference, each
            above 0.
    """

    ridges: tuple[float, ...] = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)

    def __post_init__(self) -> None:
        check_range(self, "ridges", 0, above=True)


@dataclass(frozen=True)
@checks_fields
class ModelPerUserConfig:
    """One Bradley-Terry model per user.

    Attributes:
        ridges: as for one model for all users; a user's few choices need larger ones.
    """

    ridges: tuple[float, ...] = (1.0, 0.3, 0.1, 0.03)

    def __post_init__(self) -> None:
        check_range(self, "ridges", 0, above=True)


@functools.partial(jax.jit, static_argnames="ridges")
def _fit_ridges(
    features: jax.Array, buckets: tuple[Pairs, ...], ridges: tuple[float, ...]
) -> jax.Array:
    size = features.shape[1]
    d = jnp.concatenate([differences(features, p).reshape(-1, size) for p in buckets])
    weight = jnp.concatenate([p.weight.reshape(-1) for p in buckets])
    return jax.lax.map(lambda l2: newton.bradley_terry(d, weight, l2, 8), jnp.asarray(ridges))


@jax.jit
def _probability(theta: jax.Array, features: jax.Array, query: Pairs) -> jax.Array:
    return jax.nn.sigmoid(jnp.einsum("UPD,D->UP", differences(features, query), theta))


@jax.jit
def _probability_per_user(
    l2: jax.Array, features: jax.Array, support: Pairs, query: Pairs
) -> jax.Array:
    def one_user(inputs: tuple) -> jax.Array:
        d, weight, q = inputs
        return jax.nn.sigmoid(q @ newton.bradley_terry(d, weight, l2, steps=8))

    arrays = (differences(features, support), support.weight, differences(features, query))
    return map_users(one_user, arrays, 128)


class GlobalModel(WeightsMethod[Settings]):
    """A method with the same weights for all users: a row of "theta" [C, D] for each candidate.

    Attributes:
        row: entry of a candidate that is the number of its row.
    """

    seeded = False
    refits = True
    row: ClassVar[str]

    def predict(
        self, fitted: Fitted, candidates: Sequence[Candidate], features: jax.Array,
        support: Pairs, query: Pairs,
    ) -> np.ndarray:  # fmt: skip
        """Return probabilities [C, U, Q] from the features alone; the support is not read."""
        thetas = [fitted["theta"][candidate[self.row]] for candidate in candidates]
        return np.stack([np.asarray(_probability(t, features, query)) for t in thetas])

    def save(self, fitted: Fitted, candidate: Candidate) -> tuple[Fitted, Candidate]:
        """Return the chosen weights alone."""
        return {"theta": fitted["theta"][[candidate[self.row]]]}, {**candidate, self.row: 0}

    def infer(
        self, fitted: Fitted, candidate: Candidate, differences: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, None]:
        """Return the common weights for every user."""
        theta = jnp.asarray(fitted["theta"][candidate[self.row]])
        return jnp.broadcast_to(theta, (differences.shape[0], theta.shape[0])), None


@register("bt", OneModelConfig())
class OneModelForAll(GlobalModel[OneModelConfig]):
    """One Bradley-Terry model for all users: the baseline that every gain is measured against."""

    row = "ridge"

    @one_blas_thread
    def fit(self, data: TrainingData, seed: int = 0) -> Fitted:
        """Return `theta` [ridges, D], the weights for every ridge that validation may choose."""
        ridges = self.settings.ridges
        return {"theta": np.asarray(_fit_ridges(data.inputs(self.inputs), data.buckets, ridges))}

    def candidates(self, fitted: Fitted) -> list[Candidate]:
        """Return the ridges by number."""
        return [{"ridge": i} for i in range(len(fitted["theta"]))]

    def describe(self, fitted: Fitted, candidate: Candidate) -> Candidate:
        """Return the candidate with the ridge itself."""
        return {**candidate, "ridge": self.settings.ridges[candidate["ridge"]]}


@register("bt_per_user", ModelPerUserConfig())
class OneModelPerUser(WeightsMethod[ModelPerUserConfig]):
    """One Bradley-Terry model per user, which learns nothing from other users."""

    seeded = False
    refits = True

    def fit(self, data: TrainingData, seed: int = 0) -> Fitted:
        """Return nothing: a user's model is fitted when the user's choices are there."""
        return {}

    def candidates(self, fitted: Fitted) -> list[Candidate]:
        """Return the ridges."""
        return [{"l2": l2} for l2 in self.settings.ridges]

    @one_blas_thread
    def predict(
        self, fitted: Fitted, candidates: Sequence[Candidate], features: jax.Array,
        support: Pairs, query: Pairs,
    ) -> np.ndarray:  # fmt: skip
        """Return probabilities [C, U, Q]; one half for a user without choices."""
        return np.stack(
            [
                # One after the other: see `map_users`, of two programs that run at once.
                np.asarray(_probability_per_user(c["l2"], features, support, query))
                for c in candidates
            ]
        )

    @one_blas_thread
    def infer(
        self, fitted: Fitted, candidate: Candidate, differences: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, None]:
        """Return each user's own weights; zeros for a user without choices."""
        return _weights_per_user(candidate["l2"], differences, mask), None


@jax.jit
def _weights_per_user(l2: jax.Array, differences: jax.Array, mask: jax.Array) -> jax.Array:
    def one_user(inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
        return newton.bradley_terry(inputs[0], inputs[1], l2, steps=8)

    return map_users(one_user, (differences, mask), 128)
