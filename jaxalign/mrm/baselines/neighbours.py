"""Nearest neighbours: a new user is served by the training users most like them.

Source: user-based collaborative filtering (Resnick et al. 1994, GroupLens; Herlocker et al. 1999:
neighbours by correlation of ratings about their mean, the nearest k), carried over from ratings to
rewards theta of features, so that new items can be ranked. A neighbour's theta is the MAP under an
isotropic Gaussian around one Bradley-Terry model; the neighbours' mean is drawn back to that model.
Who is near is told in two ways: *agreement*, how well their theta explains the user's choices; and
*theta*, the correlation of what the two would give the items, about the population.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data.batching import Pairs
from jaxalign.mrm import bayes
from jaxalign.mrm.baselines.common import Buckets, one_for_all
from jaxalign.mrm.baselines.config import NeighboursConfig
from jaxalign.mrm.methods import Fitted, Method, Setting, as_buckets, differences
from jaxalign.train.blas import one_blas_thread

_USERS_AT_ONCE = 64
_STEPS = 6


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
        return bayes.posterior(prior, d, weight, _STEPS)[0] - theta[None, :]

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
def fit_neighbours(features: jax.Array, pairs: Pairs | Buckets, config: NeighboursConfig) -> Fitted:
    """The training users' own weights, to look neighbours up in.

    Args:
        features: [I, D].
        pairs: choices of the training users, [U, P] or in buckets.
        config: how far users are taken to differ.

    Returns:
        "theta" [D] of one Bradley-Terry model, "deviations" [V, D] of the training users from it,
        "metric" [D, D] and "variance", of the Gaussian that users are fitted under.
    """
    buckets = as_buckets(pairs)
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
    """Each user's nearest training users [U, most], the nearest first."""
    given, theta, others = differences(features, support), fitted["theta"], fitted["deviations"]

    def one(inputs: tuple) -> jax.Array:
        if by == "agreement":
            near = agreement(theta[None, :] + others, *inputs)
        else:
            near = correlation(others, inputs[0], fitted["metric"])
        return jax.lax.top_k(near, min(most, len(others)))[1]

    if by == "theta":
        own = _deviations(theta, given, support.weight, fitted["variance"])
        return jax.lax.map(one, (own,), batch_size=_USERS_AT_ONCE)
    return jax.lax.map(one, (given, support.weight), batch_size=_USERS_AT_ONCE)


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


@one_blas_thread
def _predict(
    fitted: Fitted, settings: list[Setting], features: jax.Array, support: Pairs, query: Pairs
) -> np.ndarray:
    cached: dict[str, jax.Array] = {}
    most = max(setting["count"] for setting in settings)
    rows = []
    for setting in settings:
        by, count = setting["by"], setting["count"]
        if by not in cached:
            cached[by] = _nearest(fitted, features, support, by, most)
        share = jnp.asarray(setting["share"], features.dtype)
        known = (support, query)
        row = _probability(fitted, cached[by], share, features, known, count)
        rows.append(np.asarray(row))
    return np.stack(rows)


def neighbours_method(config: NeighboursConfig) -> Method:
    """Neighbours, with their number, how they are found, and how far to follow them chosen."""

    def settings(fitted: Fitted) -> list[Setting]:
        grid = [
            {"by": by, "count": count, "share": share}
            for by in ("agreement", "theta")
            for count in config.counts
            for share in config.shares
        ]
        return [{**grid[0], "share": 0.0}, *grid]

    return Method(_predict, settings, lambda setting: {**setting, "share": 0.0})
