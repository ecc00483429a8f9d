"""Scalarised rewards by backend name: "chunked" (bounded memory) or "reference" (plain XLA)."""

from types import ModuleType

import jax
import jax.numpy as jnp

import jaxalign.kernels.scalarize.chunked as chunked
import jaxalign.kernels.scalarize.reference as reference
from jaxalign.errors import InputError

BACKENDS: dict[str, ModuleType] = {"chunked": chunked, "reference": reference}


def tilt(
    rewards: jax.Array,
    log_ref: jax.Array,
    weights: jax.Array,
    beta: float | jax.Array,
    chunk: int | None = None,
    backend: str = "chunked",
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return each prompt's log-partition, expected rewards and KL under every weight's optimum.

    With pi_w proportional to pi_ref exp(<w, r> / beta): log Z = log sum pi_ref exp(<w, r> / beta),
    E_{pi_w} r, and KL(pi_w || pi_ref) = <w, E_{pi_w} r> / beta - log Z. Not cut off at 0 in
    rounding.

    Args:
        rewards: [X, C, R], finite also where a candidate is absent.
        log_ref: [X, C] in nats; -inf for an absent candidate, at least one of each prompt present.
        weights: [W, R], of any sign and size.
        beta: price of one nat of KL, in units of reward; positive.
        chunk: weights handled at once, None for a tile that fits the cache.
        backend: a name in `BACKENDS`.

    Returns:
        log-partition [W, X], expected rewards [W, X, R], KL [W, X] in nats, at least float32.

    Raises:
        InputError: an array of another rank or without entries, a chunk below 1, or another
            backend.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from jaxalign.kernels.scalarize import tilt
        >>> rewards, log_ref = jnp.asarray([[[0.0], [1.0]]]), jnp.log(jnp.asarray([[0.5, 0.5]]))
        >>> _, expected, kl = tilt(rewards, log_ref, jnp.asarray([[0.0], [2.0]]), beta=1.0)
        >>> np.float64([expected[:, 0, 0], kl[:, 0]]).round(3).tolist()
        [[0.5, 0.881], [0.0, 0.328]]
    """
    _check_shapes({"rewards": (rewards, 3), "log_ref": (log_ref, 2), "weights": (weights, 2)})
    return _backend(backend, chunk).tilt(rewards, log_ref, weights, beta, chunk)


def tilt_means(
    rewards: jax.Array,
    log_ref: jax.Array,
    weights: jax.Array,
    beta: float | jax.Array,
    chunk: int | None = None,
    backend: str = "chunked",
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the means of `tilt` over prompts, without holding [W, X] of anything.

    Args:
        rewards: as in `tilt`.
        log_ref: as in `tilt`.
        weights: as in `tilt`.
        beta: as in `tilt`.
        chunk: as in `tilt`.
        backend: as in `tilt`.

    Returns:
        mean log-partition [W], mean expected rewards [W, R], mean KL [W].

    Raises:
        InputError: an array of another rank or without entries, a chunk below 1, or another
            backend.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.kernels.scalarize import tilt_means
        >>> rewards, log_ref = jnp.ones((3, 2, 1)), jnp.log(jnp.full((3, 2), 0.5))
        >>> _, expected, _ = tilt_means(rewards, log_ref, jnp.ones((4, 1)), beta=1.0)
        >>> expected[:, 0].tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    _check_shapes({"rewards": (rewards, 3), "log_ref": (log_ref, 2), "weights": (weights, 2)})
    return _backend(backend, chunk).tilt_means(rewards, log_ref, weights, beta, chunk)


def best_member(
    weights: jax.Array,
    values: jax.Array,
    chunk: int | None = None,
    backend: str = "chunked",
) -> tuple[jax.Array, jax.Array]:
    """Return the largest <w, value> over the members and where it occurs, the first among equals.

    Args:
        weights: [U, R].
        values: [M, R] of the members, in units of reward.
        chunk: users handled at once, None for a tile that fits the cache.
        backend: a name in `BACKENDS`.

    Returns:
        value [U], at least float32, and index [U] int32; [U, M] is never held when chunked.

    Raises:
        InputError: an array of another rank or without entries, a chunk below 1, or another
            backend.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.kernels.scalarize import best_member
        >>> weights, values = jnp.asarray([[1.0, 0.0], [0.0, 2.0]]), jnp.asarray([[1.0, 0], [0, 1]])
        >>> best, member = best_member(weights, values)
        >>> best.tolist(), member.tolist()
        ([1.0, 2.0], [0, 1])
    """
    _check_shapes({"weights": (weights, 2), "values": (values, 2)})
    return _backend(backend, chunk).best_member(weights, values, chunk)


def _check_shapes(arrays: dict[str, tuple[jax.Array, int]]) -> None:
    for name, (array, axes) in arrays.items():
        shape = jnp.shape(array)
        if len(shape) != axes or 0 in shape:
            raise InputError(
                f"{name}: found shape {list(shape)}, expected {axes} axes of 1 or more; correct it."
            )


def _backend(name: str, chunk: int | None) -> ModuleType:
    if name not in BACKENDS:
        raise InputError(f"backend: found {name!r}, expected one of {', '.join(BACKENDS)}.")
    if chunk is not None and chunk < 1:
        raise InputError(f"chunk: found {chunk}, expected at least 1, or None; correct it.")
    return BACKENDS[name]
