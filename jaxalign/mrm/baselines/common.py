"""What several baselines start from: one Bradley-Terry model, and all choices in one flat array."""

import jax
import jax.numpy as jnp

from jaxalign.data.batching import Pairs
from jaxalign.mrm import newton
from jaxalign.mrm.support_query import differences

Buckets = tuple[Pairs, ...]


def flat(features: jax.Array, buckets: Buckets) -> tuple[jax.Array, jax.Array]:
    """Differences [N, D] and weights [N] of all users' choices, bucket by bucket, with padding."""
    d = [differences(features, pairs).reshape(-1, features.shape[1]) for pairs in buckets]
    return jnp.concatenate(d), jnp.concatenate([pairs.weight.reshape(-1) for pairs in buckets])


def mean_square(d: jax.Array, weight: jax.Array) -> jax.Array:
    """Mean squared norm of differences [N, D]: what ridges are measured by."""
    total = jnp.sum(weight)
    mean = jnp.sum(weight * jnp.sum(d * d, axis=1)) / jnp.where(total > 0, total, 1)
    return jnp.maximum(mean, jnp.finfo(d.dtype).tiny)


@jax.jit
def one_for_all(
    features: jax.Array, buckets: Buckets, l2: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One Bradley-Terry model theta [D] of all choices, and their mean squared difference."""
    d, weight = flat(features, buckets)
    return newton.bradley_terry(d, weight, l2, steps=8), mean_square(d, weight)
