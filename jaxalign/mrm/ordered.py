"""An ordered logit whose margin is normal: a level's probability, and what it says of the margin.

A level is observed where the margin plus logistic noise falls between two thresholds. Its
likelihood sigmoid(x - lower) - sigmoid(x - upper) is a difference of the sigmoids of a choice, so
that the tilted moments of `logistic_normal` give its own in closed form. A choice is the level
above the threshold 0.
"""

import jax
import jax.numpy as jnp

from jaxalign.mrm.logistic_normal import TiltedNormal, tilt_by_choice


def tilt_by_band(
    mean: jax.Array, variance: jax.Array, lower: jax.Array, upper: jax.Array
) -> TiltedNormal:
    """Return the moments of sigmoid(x - lower) - sigmoid(x - upper), x ~ N(mean, variance).

    The two terms are taken on the side where both are small, so that their difference keeps its
    relative precision far from the band.

    Args:
        mean: [...].
        variance: [...], 0 or more.
        lower: [...] threshold below the level, -inf for the lowest level.
        upper: [...] threshold above the level, inf for the highest, greater than `lower`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm.ordered import tilt_by_band
        >>> lower, upper = jnp.array([-jnp.inf, -1.0, 1.0]), jnp.array([-1.0, 1.0, jnp.inf])
        >>> levels = jnp.exp(tilt_by_band(jnp.zeros(3), jnp.ones(3), lower, upper).log_mass)
        >>> [f"{p:.3f}" for p in levels]
        ['0.303', '0.393', '0.303']
    """
    middle = 0.5 * (jnp.where(jnp.isinf(lower), 0, lower) + jnp.where(jnp.isinf(upper), 0, upper))
    # A level with one threshold needs the one term alone; one with two is seen from its far side.
    both = jnp.isfinite(lower) & jnp.isfinite(upper)
    mirrored = jnp.where(both, mean > middle, jnp.isinf(lower))
    center = jnp.where(mirrored, -mean, mean)
    near = jnp.where(mirrored, -upper, lower)
    far = jnp.where(mirrored, -lower, upper)
    bounded = jnp.isfinite(far)
    one = tilt_by_choice(center - jnp.where(jnp.isinf(near), 0, near), variance)
    other = tilt_by_choice(center - jnp.where(bounded, far, 0), variance)
    log_share = jnp.where(bounded, jnp.minimum(other.log_mass - one.log_mass, 0), -jnp.inf)
    share = jnp.exp(log_share)
    # Equal thresholds, or two that rounding has made equal, are no level: kept apart by one bit.
    left = jnp.maximum(-jnp.expm1(log_share), jnp.finfo(share.dtype).eps)
    gradient = (one.gradient - share * other.gradient) / left
    second = (
        one.curvature + one.gradient**2 - share * (other.curvature + other.gradient**2)
    ) / left
    # An unbounded band (both thresholds infinite) says nothing.
    open_band = jnp.isinf(lower) & jnp.isinf(upper)
    # The likelihood is log-concave; rounding is not.
    curvature = jnp.minimum(second - gradient * gradient, 0)
    found = TiltedNormal(
        one.log_mass + jnp.log(left), jnp.where(mirrored, -gradient, gradient), curvature
    )
    return jax.tree.map(lambda value: jnp.where(open_band, 0, value), found)
