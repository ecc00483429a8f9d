"""Arrays of users, a bounded number of users at a time."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")


def in_chunks(arrays: Tree, width: int) -> Tree:
    """Return arrays [U, ...] of users as [N, width, ...], filled up with zeros."""

    def split(array: jax.Array) -> jax.Array:
        array = jnp.pad(array, [(0, -len(array) % width)] + [(0, 0)] * (array.ndim - 1))
        return array.reshape(-1, width, *array.shape[1:])

    found: Tree = jax.tree.map(split, arrays)
    return found


def map_users(function: Callable[[Any], jax.Array], arrays: Any, width: int) -> jax.Array:
    """Return `function` of each user [U, ...], `width` users at a time.

    `jax.lax.map` with a `batch_size` computes the users of the last, smaller batch beside the
    others. On a CPU of two cores, batched LAPACK calls of both then hold XLA's two threads, and
    wait for each other for ever. Here the last chunk is filled up with zeros.

    Args:
        function: of the arrays of one user; it takes zeros, too.
        arrays: tree of arrays [U, ...].
        width: users at a time.
    """
    users = len(jax.tree.leaves(arrays)[0])
    if not users:
        return jax.vmap(function)(arrays)
    found = jax.lax.map(jax.vmap(function), in_chunks(arrays, min(width, users)))
    return found.reshape(-1, *found.shape[2:])[:users]
