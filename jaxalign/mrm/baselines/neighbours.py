"""Nearest neighbours: a new user is served by the training users most like them.

Source: user-based collaborative filtering (Resnick et al. 1994, GroupLens; Herlocker et al. 1999:
neighbours by correlation of ratings about their mean, the nearest k), carried over from ratings to
rewards theta of features, so that new items can be ranked. A neighbour's theta is the MAP under an
isotropic Gaussian around one Bradley-Terry model; the neighbours' mean is drawn back to that model.
Nearness is measured in two ways: *agreement*, how well their theta explains the user's choices;
and *theta*, the correlation of the rewards that the two give the items, about the population.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.config_fields import checks_fields
from jaxalign.data.batching import Pairs
from jaxalign.mrm import bayes, newton
from jaxalign.mrm.baselines.common import Buckets, one_for_all
from jaxalign.mrm.config import check_range
from jaxalign.mrm.registry import Candidate, Fitted, WeightsMethod, register
from jaxalign.mrm.support_query import TrainingData, differences
from jaxalign.train.blas import one_blas_thread

_USERS_AT_ONCE = 64
_STEPS = 6


@dataclass(frozen=True)
@checks_fields
class NeighboursConfig:
    """Nearest training users.

    Attributes:
        counts: numbers of neighbours that validation chooses from, each at least 1.
        shares: how far a user's weights move from the population's mean to the neighbours' mean,
            that validation chooses from; 1 is all the way, more goes beyond it.
        spread: assumed standard deviation over users of the reward difference of a typical pair,
            above 0; it regularises the weights that are fitted to each training user.
    """

    counts: tuple[int, ...] = (10, 40, 160)
    shares: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0)
    spread: float = 1.0

    def __post_init__(self) -> None:
        check_range(self, "counts", 1)
        check_range(self, "shares", 0)
        check_range(self, "spread", 0, above=True)


def agreement(thetas: jax.Array, d: jax.Array, weight: jax.Array) -> jax.Array:
    """Log-likelihood [V] of one user's choices under each training user's theta.

    Args:
        thetas: [V, D].
        d: [P, D] chosen minus rejected.
        weight: [P].
    """
    margins = jnp.einsum("VD,PD->VP", thetas, d)
    return -jnp.einsum("P,VP->V", weight, jax.nn.softplus(-margins))


def correlation(thetas: jax.Array, theta: jax.Array, metric: jax.Array) -> jax.Array:
    """Cosine [V] of deviations from the population in a metric; 0 for who does not deviate.

    Args:
        thetas: [V, D] deviations of the training users.
        theta: [D] deviation of the user.
        metric: [D, D] second moment of the centred item features: the correlation is then that of
            the rewards given to all items.
    """
    seen = metric @ theta
    lengths = jnp.einsum("VD,DE,VE->V", thetas, metric, thetas) * (theta @ seen)
    usable = lengths > 0
    return jnp.where(usable, thetas @ seen, 0) / jnp.sqrt(jnp.where(usable, lengths, 1))


def _deviations(
    theta: jax.Array, d: jax.Array, weight: jax.Array, variance: jax.Array
) -> jax.Array:
    """MAP deviations [U, D] of users from theta [D], from their choices [U, P, D]."""
    prior = bayes.Prior(theta, variance * jnp.eye(len(theta), dtype=theta.dtype))

    def chunk(inputs: tuple) -> jax.Array:
        d, weight = inputs
        return newton.modes(prior, d, weight, _STEPS) - theta[None, :]

    users, width = weight.shape
    count = -(-users // _USERS_AT_ONCE)
    padding = count * _USERS_AT_ONCE - users
    d = jnp.pad(d, [(0, padding), (0, 0), (0, 0)])
    weight = jnp.pad(weight, [(0, padding), (0, 0)])
    chunks = (d.reshape(count, -1, width, d.shape[-1]), weight.reshape(count, -1, width))
    return jax.lax.map(chunk, chunks).reshape(-1, len(theta))[:users]


@jax.jit
def _own(theta: jax.Array, features: jax.Array, pairs: Pairs, variance: jax.Array) -> jax.Array:
    return _deviations(theta, differences(features, pairs), pairs.weight, variance)


@one_blas_thread
def fit_neighbours(features: jax.Array, buckets: Buckets, config: NeighboursConfig) -> Fitted:
    """The training users' own weights, to look neighbours up in.

    Args:
        features: [I, D].
        buckets: choices of the training users.
        config: how far users are taken to differ.

    Returns:
        "theta" [D] of one Bradley-Terry model, "deviations" [V, D] of the training users from it,
        "metric" [D, D] and "variance", of the Gaussian that users are fitted under.
    """
    theta, square = one_for_all(features, buckets, jnp.asarray(1e-4, features.dtype))
    variance = jnp.asarray(config.spread**2, features.dtype) / square
    # A call for each bucket: within one, batched LAPACK of several at once may wait for ever.
    own = [np.asarray(_own(theta, features, part, variance)) for part in buckets]
    centred = np.asarray(features) - np.asarray(features).mean(0)
    return {
        "theta": np.asarray(theta),
        "deviations": np.concatenate(own),
        "metric": centred.T @ centred / len(centred),
        "variance": np.asarray(variance),
    }


@functools.partial(jax.jit, static_argnames=("by", "most"))
def _nearest(fitted: Fitted, features: jax.Array, support: Pairs, by: str, most: int) -> jax.Array:
    return _nearest_of(fitted, differences(features, support), support.weight, by, most)


def _nearest_of(
    fitted: Fitted, known: jax.Array, weight: jax.Array, by: str, most: int
) -> jax.Array:
    """Each user's nearest training users [U, most], the nearest first, by choices [U, P, D]."""
    theta, others = fitted["theta"], fitted["deviations"]

    def one(inputs: tuple) -> jax.Array:
        if by == "agreement":
            near = agreement(theta[None, :] + others, *inputs)
        else:
            near = correlation(others, inputs[0], fitted["metric"])
        return jax.lax.top_k(near, min(most, len(others)))[1]

    if by == "theta":
        own = _deviations(theta, known, weight, fitted["variance"])
        return jax.lax.map(one, (own,), batch_size=_USERS_AT_ONCE)
    return jax.lax.map(one, (known, weight), batch_size=_USERS_AT_ONCE)


@functools.partial(jax.jit, static_argnames="count")
def _probability(
    fitted: Fitted, nearest: jax.Array, share: jax.Array, features: jax.Array,
    pairs: tuple[Pairs, Pairs], count: int,
) -> jax.Array:  # fmt: skip
    """Probabilities [U, Q] under the mean of the first `count` of `nearest` [U, most]."""
    support, query = pairs
    some = jnp.any(support.weight > 0, axis=1).astype(features.dtype)

    def one(inputs: tuple) -> jax.Array:
        near, known, chosen, rejected = inputs
        mean = jnp.mean(fitted["deviations"][near[:count]], axis=0)
        rewards = features @ (fitted["theta"] + share * known * mean)
        return jax.nn.sigmoid(rewards[chosen] - rewards[rejected])

    arrays = (nearest, some, query.chosen, query.rejected)
    return jax.lax.map(one, arrays, batch_size=_USERS_AT_ONCE)


@functools.partial(jax.jit, static_argnames=("by", "count"))
def _weights(
    fitted: Fitted, known: jax.Array, weight: jax.Array, share: jax.Array, by: str, count: int
) -> jax.Array:
    """Weights [U, D] under the mean of the `count` nearest training users."""
    nearest = _nearest_of(fitted, known, weight, by, count)
    some = jnp.any(weight > 0, axis=1).astype(known.dtype)
    mean = jnp.mean(fitted["deviations"][nearest], axis=1)
    return fitted["theta"][None, :] + share * some[:, None] * mean


@register("neighbours", NeighboursConfig())
class NearestNeighbours(WeightsMethod[NeighboursConfig]):
    """Nearest training users; validation chooses how many, how they are found and their share."""

    seeded = False

    def fit(self, data: TrainingData, seed: int = 0) -> Fitted:
        """Return the training users' own weights, see `fit_neighbours`."""
        return fit_neighbours(data.inputs(self.inputs), data.buckets, self.settings)

    def candidates(self, fitted: Fitted) -> list[Candidate]:
        """Return every way, number and share, and no adaptation (a share of 0)."""
        grid: list[Candidate] = [
            {"by": by, "count": count, "share": share}
            for by in ("agreement", "theta")
            for count in self.settings.counts
            for share in self.settings.shares
        ]
        return [{**grid[0], "share": 0.0}, *grid]

    @one_blas_thread
    def predict(
        self, fitted: Fitted, candidates: Sequence[Candidate], features: jax.Array,
        support: Pairs, query: Pairs,
    ) -> np.ndarray:  # fmt: skip
        """Return probabilities [C, U, Q] under the neighbours' mean weights."""
        nearest: dict[str, jax.Array] = {}
        most = max(candidate["count"] for candidate in candidates)
        rows = []
        for candidate in candidates:
            by, count = candidate["by"], candidate["count"]
            if by not in nearest:
                nearest[by] = _nearest(fitted, features, support, by, most)
            share = jnp.asarray(candidate["share"], features.dtype)
            both = (support, query)
            row = _probability(fitted, nearest[by], share, features, both, count)
            rows.append(np.asarray(row))
        return np.stack(rows)

    @one_blas_thread
    def infer(
        self, fitted: Fitted, candidate: Candidate, differences: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, None]:
        """Return the population's weights plus the share of the neighbours' mean deviation."""
        share = jnp.asarray(candidate["share"], differences.dtype)
        by, count = candidate["by"], candidate["count"]
        return _weights(fitted, differences, mask, share, by, count), None
