"""The KL-regularised optimum of every weight vector over sampled candidates, in closed form."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.kernels import scalarize


class Sweep(NamedTuple):
    """The optimum of each weight: values [W], expected rewards [W, R], kl [W] in nats."""

    values: jax.Array
    expected: jax.Array
    kl: jax.Array


@jax.jit(static_argnames="chunk")
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

    Source: Rafailov et al. (arXiv 2305.18290), equation 4; V is the log-partition.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.palm import sweep
        >>> rewards = jnp.array([[[0.0], [1.0]]])  # one prompt, two candidates, one reward
        >>> found = sweep(rewards, jnp.log(jnp.full((1, 2), 0.5)), jnp.array([[1.0]]), beta=1.0)
        >>> [round(float(x.squeeze()), 4) for x in found]  # log((1 + e) / 2), e / (1 + e), KL
        [0.6201, 0.7311, 0.1109]
    """
    log_partition, expected, kl = scalarize.tilt_means(rewards, log_ref, weights, beta, chunk)
    return Sweep(jnp.asarray(beta, log_partition.dtype) * log_partition, expected, kl)


@jax.jit(static_argnames="chunk")
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
    """
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

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.palm import tilted_log_probs
        >>> rewards = jnp.array([[[0.0], [1.0]]])
        >>> log_ref = jnp.log(jnp.full((1, 2), 0.5))
        >>> jnp.exp(tilted_log_probs(rewards, log_ref, jnp.ones(1), beta=1.0))
        Array([[0.268..., 0.731...]], dtype=float32)
    """
    dtype = jnp.promote_types(jnp.result_type(rewards, log_ref, weight), jnp.float32)
    scaled = weight.astype(dtype) / jnp.asarray(beta, dtype)
    gain = jnp.einsum(
        "XCR,R->XC", rewards.astype(dtype), scaled, precision=jax.lax.Precision.HIGHEST
    )
    return jax.nn.log_softmax(log_ref.astype(dtype) + gain, axis=-1)


best_member = jax.jit(scalarize.best_member, static_argnames=("chunk", "backend"))
