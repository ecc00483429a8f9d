"""The KL-regularised optimum of every weight vector over sampled candidates, in closed form."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.arrays import Sizes, Value, check_array, check_number
from jaxalign.kernels import scalarize


class Sweep(NamedTuple):
    """The optimum of each weight: values [W], expected rewards [W, R], kl [W] in nats."""

    values: jax.Array
    expected: jax.Array
    kl: jax.Array


def sweep(
    rewards: jax.Array,
    log_ref: jax.Array,
    weights: jax.Array,
    beta: float | jax.Array,
    chunk: int | None = None,
) -> Sweep:
    """Return the exact optimum of <w, r> - beta KL for every weight, averaged over prompts.

    pi_w(c | x) is proportional to pi_ref(c | x) exp(<w, r(x, c)> / beta), and the value is
    V(w) = beta E_x log sum_c pi_ref exp(<w, r> / beta) = <w, expected> - beta kl. Memory holds a
    tile of weights and prompts at a time, never [W, X, C].

    Args:
        rewards: [X, C, R]; finite also where a candidate is absent.
        log_ref: [X, C] in nats, -inf for an absent candidate. n candidates drawn from the reference
            weigh 1 / n each: their own log-probabilities would count twice.
        weights: [W, R], on the simplex or signed.
        beta: price of one nat of KL, in units of reward; positive.
        chunk: weights handled at once, None for what suits the machine.

    Returns:
        Sweep(values [W], expected [W, R], kl [W]), at least float32.

    Raises:
        InputError: shapes that disagree, or a concrete value that is not finite; a log_ref of -inf
            is an absent candidate.

    Source: Rafailov et al. (arXiv 2305.18290), equation 4; V is the log-partition.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.palm import sweep
        >>> rewards = jnp.array([[[0.0], [1.0]]])  # one prompt, two candidates, one reward
        >>> found = sweep(rewards, jnp.log(jnp.full((1, 2), 0.5)), jnp.array([[1.0]]), beta=1.0)
        >>> [round(float(x.squeeze()), 4) for x in found]  # log((1 + e) / 2), e / (1 + e), KL
        [0.6201, 0.7311, 0.1109]
    """
    checked = _checked(rewards, log_ref, weights, beta, "weights", "W R")
    return sweep_unchecked(*checked, beta, chunk)


@jax.jit(static_argnames="chunk")
def sweep_unchecked(
    rewards: jax.Array,
    log_ref: jax.Array,
    weights: jax.Array,
    beta: float | jax.Array,
    chunk: int | None = None,
) -> Sweep:
    """Return `sweep` of arrays that are checked already, at least float32."""
    log_partition, expected, kl = scalarize.tilt_means(rewards, log_ref, weights, beta, chunk)
    return Sweep(jnp.asarray(beta, log_partition.dtype) * log_partition, expected, kl)


def prompt_outcomes(
    rewards: jax.Array,
    log_ref: jax.Array,
    weights: jax.Array,
    beta: float | jax.Array,
    chunk: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Return what each weight's optimum gets on every single prompt, for a bootstrap over prompts.

    Args:
        rewards: [X, C, R], as in `sweep`.
        log_ref: [X, C], as in `sweep`.
        weights: [M, R].
        beta: as in `sweep`.
        chunk: as in `sweep`.

    Returns:
        expected rewards [M, X, R] and KL [M, X] in nats.

    Raises:
        InputError: as `sweep`.
    """
    checked = _checked(rewards, log_ref, weights, beta, "weights", "M R")
    return outcomes_unchecked(*checked, beta, chunk)


@jax.jit(static_argnames="chunk")
def outcomes_unchecked(
    rewards: jax.Array,
    log_ref: jax.Array,
    weights: jax.Array,
    beta: float | jax.Array,
    chunk: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Return `prompt_outcomes` of arrays that are checked already, at least float32."""
    return scalarize.tilt(rewards, log_ref, weights, beta, chunk)[1:]


def tilted_log_probs(
    rewards: jax.Array, log_ref: jax.Array, weight: jax.Array, beta: float | jax.Array
) -> jax.Array:
    """Return log pi_w of every candidate for one weight; `vmap` for more.

    Args:
        rewards: [X, C, R], as in `sweep`.
        log_ref: [X, C], as in `sweep`.
        weight: [R].
        beta: as in `sweep`.

    Returns:
        [X, C] in nats, -inf where a candidate is absent.

    Raises:
        InputError: as `sweep`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.palm import tilted_log_probs
        >>> rewards = jnp.array([[[0.0], [1.0]]])
        >>> log_ref = jnp.log(jnp.full((1, 2), 0.5))
        >>> jnp.exp(tilted_log_probs(rewards, log_ref, jnp.ones(1), beta=1.0))
        Array([[0.268..., 0.731...]], dtype=float32)
    """
    rewards, log_ref, weight = _checked(rewards, log_ref, weight, beta, "weight", "R")
    dtype = jnp.result_type(rewards, log_ref, weight)
    scaled = weight.astype(dtype) / jnp.asarray(beta, dtype)
    gain = jnp.einsum(
        "XCR,R->XC", rewards.astype(dtype), scaled, precision=jax.lax.Precision.HIGHEST
    )
    return jax.nn.log_softmax(log_ref.astype(dtype) + gain, axis=-1)


def best_member(
    weights: jax.Array, values: jax.Array, chunk: int | None = None, backend: str = "chunked"
) -> tuple[jax.Array, jax.Array]:
    """Return the largest <w, value> over the members and where it occurs, the first among equals.

    Args:
        weights: [U, R].
        values: [M, R] of the members, in units of reward.
        chunk: users handled at once, None for a tile that fits the cache.
        backend: a name in `jaxalign.kernels.scalarize.BACKENDS`.

    Returns:
        value [U], at least float32, and index [U] int32.

    Raises:
        InputError: shapes that disagree, no member, or a concrete value that is not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.palm import best_member
        >>> best, member = best_member(jnp.eye(2), jnp.array([[1.0, 0.0], [0.0, 2.0]]))
        >>> best.tolist(), member.tolist()
        ([1.0, 2.0], [0, 1])
    """
    sizes = Sizes()
    users = check_array("weights", weights, "U R", sizes)
    return _best_member(users, check_array("values", values, "M R", sizes), chunk, backend)


_best_member = jax.jit(scalarize.best_member, static_argnames=("chunk", "backend"))


def _checked(
    rewards: Value, log_ref: Value, weights: Value, beta: float | jax.Array, name: str, axes: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rewards [X, C, R], log_ref [X, C] and weights as arrays; see `sweep`."""
    sizes = Sizes()
    check_number("beta", beta, 0, above=True)
    return (
        check_array("rewards", rewards, "X C R", sizes),
        check_array("log_ref", log_ref, "X C", sizes, absent=True),
        check_array(name, weights, axes, sizes),
    )
