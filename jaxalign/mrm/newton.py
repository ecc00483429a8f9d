"""Ridge logistic regression by damped Newton: one model for all, and the modes of single users."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.arrays import Sizes
from jaxalign.mrm.bayes import Prior, check_padded_choices, factor
from jaxalign.mrm.ep import apply_inverse, inverse_factor, rows_of
from jaxalign.padding import over_kept

_HALVINGS = (1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.0)


def _penalised_loss(z: jax.Array, margins: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.sum(weight * jax.nn.softplus(-margins)) + 0.5 * jnp.sum(z * z)


def _newton(
    z: jax.Array, offset: jax.Array, design: jax.Array, weight: jax.Array, steps: int
) -> tuple[jax.Array, jax.Array]:
    """Damped Newton for one user: the mode [r], and the factor of the last inverse Hessian.

    Each step takes the best of six halvings or none, so the loss never rises. The Hessian is the
    one at the start of the last step: at convergence, and along warm-started EM, that is the
    mode's, and it spares one factorisation in two.
    """
    sizes = jnp.asarray(_HALVINGS, z.dtype)
    rows = min(design.shape)

    def step(carry: tuple, _: None) -> tuple:
        z, _ = carry
        margins = offset + design @ z
        gradient = z - design.T @ (weight * jax.nn.sigmoid(-margins))
        curvature = weight * jax.nn.sigmoid(margins) * jax.nn.sigmoid(-margins)
        half = inverse_factor(design, curvature)
        direction = apply_inverse(half, gradient)
        along = design @ direction
        losses = jax.vmap(
            lambda t: _penalised_loss(z - t * direction, margins - t * along, weight)
        )(sizes)
        # Near the mode rounding cannot tell a step from none: the largest that ties with the best.
        least = jnp.min(losses)
        tied = losses <= least + 4 * jnp.finfo(z.dtype).eps * jnp.abs(least)
        return (z - sizes[jnp.argmax(tied)] * direction, half), None

    start = (z, jnp.zeros((rows, design.shape[1]), z.dtype))
    return jax.lax.scan(step, start, None, length=steps)[0]


def modes(prior: Prior, differences: jax.Array, mask: jax.Array, steps: int = 8) -> jax.Array:
    """Return every user's most probable weights [U, E], for methods that are defined by them.

    Args:
        prior: mean [E], cov [E, E] of any rank.
        differences: [U, P, E] chosen minus rejected.
        mask: [U, P] bool or weights.
        steps: damped Newton steps.
    """
    root = factor(prior.cov)

    def one_user(d: jax.Array, m: jax.Array) -> jax.Array:
        rows = rows_of(prior.mean, root, d, m)
        start = jnp.zeros(root.shape[1], root.dtype)
        z, _ = _newton(start, rows.prior_margin, rows.design, rows.weight, steps)
        return prior.mean + root @ z

    return jax.vmap(one_user)(differences, mask)


def bradley_terry(
    differences: jax.Array, mask: jax.Array, l2: float | jax.Array = 1e-4, steps: int = 12
) -> jax.Array:
    """One Bradley-Terry weight vector for all users: ridge logistic regression by damped Newton.

    Minimises mean softplus(-<theta, d>) + l2/2 * s * |theta|^2, s the mean squared norm of the
    differences, so that the ridge means the same at any feature scale. Bradley and Terry 1952.

    Args:
        differences: [..., E] chosen minus rejected.
        mask: [...] bool, or weights of 0 or more; where it is 0, differences may hold any value.
        l2: ridge.
        steps: Newton steps.

    Returns:
        theta [E].

    Raises:
        InputError: shapes that disagree, a negative weight, or a concrete value that is not finite
            where the mask is above 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm import bradley_terry
        >>> chosen_minus_rejected = jnp.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
        >>> theta = bradley_terry(chosen_minus_rejected, jnp.ones(4), l2=0.1)
        >>> bool(theta[1] > theta[0] > 0)
        True
    """
    axes = " ".join(f"N{axis}" for axis in range(max(np.ndim(mask), 1)))
    d, weight = check_padded_choices(differences, mask, axes, Sizes(), ("differences", "mask"))
    function = functools.partial(_bradley_terry, steps=steps)
    return over_kept(function, weight.reshape(-1), d.reshape(-1, d.shape[-1]), l2)


@functools.partial(jax.jit, static_argnames="steps")
def _bradley_terry(d: jax.Array, weight: jax.Array, l2: float | jax.Array, steps: int) -> jax.Array:
    dtype = d.dtype
    weight = weight.astype(dtype)
    # In units of the largest that counts, a power of two, so that squares neither overflow nor
    # vanish. Everywhere else padding is multiplied by its weight.
    largest = jnp.max(jnp.where(weight > 0, jnp.max(jnp.abs(d), axis=-1), 0), initial=0.0)
    unit = jnp.ldexp(jnp.ones((), dtype), jnp.frexp(largest)[1])
    d = d / unit
    total = jnp.sum(weight)
    weight = weight / jnp.where(total > 0, total, 1)
    ridge = l2 * jnp.sum(weight * jnp.sum(d * d, axis=-1))
    # The penalty 1/2 |z|^2 of the user's problem, in units where the ridge is one.
    scale = jnp.sqrt(jnp.maximum(ridge, jnp.finfo(dtype).tiny))
    start = jnp.zeros(d.shape[1], dtype)
    z, _ = _newton(start, jnp.zeros(d.shape[0], dtype), d / scale, weight, steps)
    return z / scale / unit
