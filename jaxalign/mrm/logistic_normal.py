"""A logistic choice whose margin is normal: its probability, and what it says of the margin."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# sigmoid(x) = sum_k SHARES[k] Phi(SCALES[k] x), to 2.2e-9 for every x (Monahan and Stefanski 1992).
SHARES = np.array([
    0.003246343272134, 0.051517477033972, 0.195077912673858, 0.315569823632818,
    0.274149576158423, 0.131076880695470, 0.027912418727972, 0.001449567805354,
])  # fmt: skip
SCALES = np.array([
    1.365340806296348, 1.059523971016916, 0.830791313765644, 0.650732166639391,
    0.508135425366489, 0.396313345166341, 0.308904252267995, 0.238212616409306,
])  # fmt: skip


class TiltedNormal(NamedTuple):
    """A normal margin x times a likelihood term: the mass, and how it depends on the mean m.

    Attributes:
        log_mass: log of Z = E[likelihood(x)].
        gradient: d log Z / dm.
        curvature: d^2 log Z / dm^2, not positive where the likelihood is log-concave.
    """

    log_mass: jax.Array
    gradient: jax.Array
    curvature: jax.Array


def tilt_by_choice(mean: jax.Array, variance: jax.Array) -> TiltedNormal:
    """Return the moments of sigmoid(x) under x ~ N(mean, variance), in closed form.

    The mixture of probits has an absolute error. So that the relative one stays small where a
    choice is improbable, E[sigmoid(x)] = exp(m + v / 2) E[sigmoid(y)], y ~ N(-m - v, v), moves a
    mean below -v / 2 to the other side of it.

    Args:
        mean: [...].
        variance: [...], 0 or more.
    """
    reflected = mean < -0.5 * variance
    center = jnp.where(reflected, -mean - variance, mean)
    dtype = jnp.result_type(center)
    shares, scales = (jnp.asarray(k, dtype) for k in (SHARES, SCALES))
    axes = (1,) * center.ndim
    shares, scales = shares.reshape(-1, *axes), scales.reshape(-1, *axes)
    slope = scales * jax.lax.rsqrt(1 + scales * scales * variance[None])
    # A normal's density further out is no number of this precision.
    lowest = -12.0 if jnp.finfo(dtype).bits == 32 else -35.0
    at = jnp.maximum(slope * center[None], lowest)
    density = shares * slope * jnp.exp(-0.5 * at * at) * np.float32(1 / np.sqrt(2 * np.pi))
    mass = jnp.sum(shares * jax.scipy.special.ndtr(at), axis=0)
    gradient = jnp.sum(density, axis=0) / mass
    curvature = -jnp.sum(density * slope * at, axis=0) / mass - gradient * gradient
    log_mass = jnp.log(mass)
    return TiltedNormal(
        jnp.where(reflected, mean + 0.5 * variance + log_mass, log_mass),
        jnp.where(reflected, 1 - gradient, gradient),
        curvature,
    )


def choice_mass(mean: jax.Array, variance: jax.Array) -> jax.Array:
    """Return the probability E[sigmoid(x)], x ~ N(mean, variance), to 1e-8.

    Args:
        mean: [...].
        variance: [...]; what rounding has made negative counts as 0.
    """
    size, variance = jnp.abs(mean), jnp.maximum(variance, 0)
    # Of the improbable answer, so that two answers have probabilities that sum to 1.
    rare = jnp.exp(tilt_by_choice(-size, variance).log_mass)
    return jnp.where(mean > 0, 1 - rare, rare)
