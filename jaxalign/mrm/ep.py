"""Expectation propagation for one user: theta = mean + L z, z ~ N(0, I), rows of choices.

Each row p stands for a likelihood term of the margin f_p = <theta, d_p>. Its site, a normal in that
margin, is what the term says when all the others are known; the sites are updated all at once,
damped. Minka 2001; Rasmussen and Williams 2006, section 3.6. A term enters through its
`TiltedNormal` alone, so that another kind of row needs another function of that type only.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.mrm.logistic_normal import TiltedNormal, tilt_by_choice
from jaxalign.mrm.ordered import tilt_by_band
from jaxalign.mrm.sites import Sites as Sites

DAMPING = 0.7
_MOST_SWEEPS = 200

Tilt = Callable[[jax.Array, jax.Array], TiltedNormal]
"""Moments of the rows' likelihood terms [P] under normal margins of a mean [P] and variance [P]."""


class ChoiceRows(NamedTuple):
    """A user's choices as expectation propagation sees them.

    Attributes:
        design: [P, r] each row's difference times L.
        prior_margin: [P] its margin under the prior's mean.
        weight: [P] how often it counts, 0 for padding.
    """

    design: jax.Array
    prior_margin: jax.Array
    weight: jax.Array


def rows_of(
    mean: jax.Array, root: jax.Array, differences: jax.Array, weight: jax.Array
) -> ChoiceRows:
    """Return the rows of differences [P, E], finite in padding too, under theta = mean + root z.

    Every step of EM makes them anew: what padding holds is cleaned once, where choices come in.
    """
    dtype = jnp.promote_types(jnp.result_type(differences, mean), jnp.float32)
    wide = differences.astype(dtype)
    return ChoiceRows(wide @ root, wide @ mean, weight.astype(dtype))


def no_sites(rows: ChoiceRows) -> Sites:
    """Return the sites of rows of which nothing is known yet."""
    return Sites(jnp.zeros_like(rows.weight), jnp.zeros_like(rows.weight))


def inverse_factor(design: jax.Array, precision: jax.Array) -> jax.Array:
    """Factor F of the inverse of H = I + design^T diag(precision) design, design [P, r].

    With fewer rows than directions (P < r) the small side is inverted (Woodbury):
    H^-1 = I - F^T F with F [P, r]. Otherwise H^-1 = F^T F with F [r, r].
    """
    pairs, size = design.shape
    scaled = design * jnp.sqrt(precision)[:, None]
    lower = _cholesky(scaled @ scaled.T if pairs < size else scaled.T @ scaled)
    right = scaled if pairs < size else jnp.eye(size, dtype=design.dtype)
    return jax.scipy.linalg.solve_triangular(lower, right, lower=True)


def apply_inverse(half: jax.Array, vector: jax.Array) -> jax.Array:
    """Return H^-1 times a vector [r], for the factor that `inverse_factor` returns."""
    product = half.T @ (half @ vector)
    return vector - product if half.shape[0] < half.shape[1] else product


def inverse(half: jax.Array) -> jax.Array:
    """Return H^-1 [r, r], for the factor that `inverse_factor` returns."""
    product = half.T @ half
    if half.shape[0] < half.shape[1]:
        return jnp.eye(half.shape[1], dtype=half.dtype) - product
    return product


def _cholesky(gram: jax.Array) -> jax.Array:
    """Cholesky factor of I + gram, gram positive semidefinite."""
    # What rounding may have taken away, so that the factor exists at any scale of the features.
    floor = jnp.finfo(gram.dtype).eps * jnp.trace(gram)
    return jnp.linalg.cholesky(gram + (1 + floor) * jnp.eye(gram.shape[0], dtype=gram.dtype))


def gram_of(rows: ChoiceRows) -> jax.Array | None:
    """Return the prior covariance [P, P] of the margins, None where the rows are many (P >= r)."""
    pairs, size = rows.design.shape
    return rows.design @ rows.design.T if pairs < size else None


class Margins(NamedTuple):
    """Normal posterior of the rows' margins under the sites: mean [P], variance [P]."""

    mean: jax.Array
    variance: jax.Array


def margins_of_precision(
    rows: ChoiceRows, precision: jax.Array, shift: jax.Array
) -> tuple[Margins, jax.Array]:
    """Return the margins' posterior where sites of any rows add up to precision [r, r], shift [r].

    Both are of z; the prior's own precision, the identity, is not part of the sum. The second array
    is a factor [r, P] of the margins' covariance.
    """
    lower = _cholesky(precision)
    both = jnp.concatenate([rows.design.T, shift[:, None]], axis=1)
    solved = jax.scipy.linalg.solve_triangular(lower, both, lower=True)
    half = solved[:, :-1]
    mean = rows.prior_margin + half.T @ solved[:, -1]
    return Margins(mean, jnp.sum(half * half, axis=0)), half


def target_of(rows: ChoiceRows, sites: Sites) -> jax.Array:
    """Return what sites say of the margins [P] beside the prior's mean: precision times mean."""
    return rows.weight * (sites.shift - sites.precision * rows.prior_margin)


def margins_of_gram(
    rows: ChoiceRows, gram: jax.Array, sites: Sites
) -> tuple[Margins, jax.Array, jax.Array]:
    """Return the margins' posterior under the rows' own sites, by the prior covariance [P, P].

    Behind it, a matrix [P, P] whose square is what the sites take from the prior covariance, and
    log det H.
    """
    precision, target = rows.weight * sites.precision, target_of(rows, sites)
    root = jnp.sqrt(precision)[:, None]
    lower = _cholesky(root * gram * root.T)
    half = jax.scipy.linalg.solve_triangular(lower, root * gram, lower=True)
    mean = rows.prior_margin + gram @ target - half.T @ (half @ target)
    variance = jnp.maximum(jnp.diagonal(gram) - jnp.sum(half * half, axis=0), 0)
    return Margins(mean, variance), half, _log_det(lower)


def _log_det(lower: jax.Array) -> jax.Array:
    return 2 * jnp.sum(jnp.log(jnp.diagonal(lower)))


def natural(rows: ChoiceRows, sites: Sites) -> tuple[jax.Array, jax.Array]:
    """Return what the sites of rows add to the precision [r, r] of z and to its shift [r]."""
    precision, target = rows.weight * sites.precision, target_of(rows, sites)
    return rows.design.T @ (precision[:, None] * rows.design), rows.design.T @ target


def margins(rows: ChoiceRows, gram: jax.Array | None, sites: Sites) -> tuple[Margins, jax.Array]:
    """Return the margins' posterior under the sites, and log det H."""
    if gram is not None:
        found, _, log_det = margins_of_gram(rows, gram, sites)
        return found, log_det
    scaled = rows.design * jnp.sqrt(rows.weight * sites.precision)[:, None]
    lower = _cholesky(scaled.T @ scaled)
    half = jax.scipy.linalg.solve_triangular(lower, rows.design.T, lower=True)
    target = target_of(rows, sites)
    mean = rows.prior_margin + half.T @ (half @ target)
    return Margins(mean, jnp.sum(half * half, axis=0)), _log_det(lower)


class Cavity(NamedTuple):
    """The margins [P] with each row's own site taken out; `proper` where that is a normal."""

    mean: jax.Array
    variance: jax.Array
    proper: jax.Array


def cavity(found: Margins, sites: Sites, weight: jax.Array) -> Cavity:
    """Return the margins' posterior without each row's own site.

    A row of weight w is in the posterior with w times its site, and its likelihood is sigmoid^w.
    With one whole site taken out and sigmoid put in, this is power EP of order 1 / w (Minka 2004):
    plain EP for a row that counts w = 1, 2, ... times, and as close for half a tie. Below 1/2 that
    order is unstable, so only 2 w of the site is taken out.
    """
    part = jnp.minimum(2 * weight, 1)
    left = 1 - part * sites.precision * found.variance
    proper = left > 16 * jnp.finfo(left.dtype).eps
    left = jnp.where(proper, left, 1)
    mean = (found.mean - part * sites.shift * found.variance) / left
    return Cavity(mean, found.variance / left, proper)


def updated(
    sites: Sites, around: Cavity, tilted: TiltedNormal, damping: float | jax.Array
) -> Sites:
    """Return the sites after one damped step; a row without a proper cavity keeps its own."""
    left = 1 + around.variance * tilted.curvature
    sound = around.proper & (left > 0) & (tilted.curvature <= 0)
    left = jnp.where(sound, left, 1)
    target = Sites(
        -tilted.curvature / left, (tilted.gradient - tilted.curvature * around.mean) / left
    )
    return jax.tree.map(
        lambda old, new: jnp.where(sound, old + damping * (new - old), old), sites, target
    )


def after_others(sites: Sites, done: jax.Array) -> Sites:
    """Return the same sites, which cannot be read before a number, such as an evidence, is known.

    On a CPU of two cores, two batched LAPACK calls at once hold both of XLA's threads and wait for
    ever. XLA keeps 0 * x, which may be NaN, and so the dependence; it drops an optimization_barrier
    before it schedules. Both parts have to wait: what LAPACK factors is a matter of precisions.
    """
    return Sites(sites.precision + 0 * done, sites.shift + 0 * done)


def sweep(
    rows: ChoiceRows, gram: jax.Array | None, sites: Sites, tilt: Tilt = tilt_by_choice
) -> tuple[Sites, jax.Array, Margins]:
    """Return the sites after one damped sweep, the log evidence before it, and those margins."""
    found, log_det = margins(rows, gram, sites)
    around = cavity(found, sites, rows.weight)
    tilted = tilt(around.mean, around.variance)
    target = target_of(rows, sites)
    quadratic = 0.5 * jnp.sum(target * (found.mean - rows.prior_margin))
    terms = evidence_terms(rows, sites, around, tilted)
    evidence = quadratic - 0.5 * log_det + jnp.sum(terms)
    return updated(sites, around, tilted, DAMPING), evidence, found


def evidence_terms(
    rows: ChoiceRows, sites: Sites, around: Cavity, tilted: TiltedNormal
) -> jax.Array:
    """Return what each row [P] adds to the log evidence beside the posterior's own mass."""
    prior = sites.shift * rows.prior_margin - 0.5 * sites.precision * rows.prior_margin**2
    gained = jnp.where(around.proper, tilted.log_mass - _log_site_mass(around, sites), 0)
    return rows.weight * (prior + gained)


def site_step(
    rows: ChoiceRows,
    sites: Sites,
    found: Margins,
    ends: tuple[jax.Array, jax.Array],
    damping: jax.Array,
) -> tuple[Sites, jax.Array, jax.Array, jax.Array]:
    """Return the sites after one step, and what it does.

    Args:
        rows: of one user.
        sites: before.
        found: margins under these sites.
        ends: of the rows' bands, each [P].
        damping: of the step.

    Returns:
        Sites, the terms [P] of the log evidence, the gradient [P] along which the posterior's mean
        moves, and what the precisions gain [P] in units of the margins' variances.
    """
    around = cavity(found, sites, rows.weight)
    tilted = tilt_by_band(around.mean, around.variance, *ends)
    new = updated(sites, around, tilted, damping)
    moved = jax.tree.map(jnp.subtract, new, sites)
    # The evidence is stationary in the sites: what the posterior's own mass gains by a step
    # towards their fixed point, the terms of the rows lose.
    gained = target_of(rows, moved) * (found.mean - rows.prior_margin)
    square = (found.mean - rows.prior_margin) ** 2 + found.variance
    gained = gained - 0.5 * rows.weight * moved.precision * square
    terms = evidence_terms(rows, sites, around, tilted) - gained
    gradient = rows.weight * (moved.shift - moved.precision * found.mean)
    return new, terms, gradient, rows.weight * moved.precision * found.variance


def posterior_step(mean_step: jax.Array, precision_gain: jax.Array, size: int) -> jax.Array:
    """Return how far a change of sites moves the posterior of z, in its own standard deviations.

    A root mean square over directions. The covariance changes by that of each row, which add up
    where rows are alike and not where these are at right angles.

    Args:
        mean_step: squared step of the mean, in units of the covariance.
        precision_gain: [P] change of each site's precision times the variance of its margin.
        size: r, number of directions.
    """
    spread = jnp.maximum(jnp.abs(jnp.sum(precision_gain)), jnp.sqrt(jnp.sum(precision_gain**2)))
    moved = jnp.maximum(jnp.sqrt(jnp.maximum(mean_step, 0)), 0.5 * spread)
    return moved / float(np.sqrt(size))


def _log_site_mass(around: Cavity, sites: Sites) -> jax.Array:
    """Log of the cavity's mean [P] of exp(shift f - precision f^2 / 2)."""
    ratio = 1 + sites.precision * around.variance
    inner = sites.shift * around.mean + 0.5 * (
        sites.shift**2 * around.variance - sites.precision * around.mean**2
    )
    return inner / ratio - 0.5 * jnp.log(ratio)


def converge(rows: ChoiceRows, sites: Sites, tilt: Tilt = tilt_by_choice) -> Sites:
    """Return the sites that no longer change, from given ones."""
    gram = gram_of(rows)
    enough = jnp.finfo(rows.design.dtype).eps ** 0.7

    def going(carry: tuple) -> jax.Array:
        _, change, sweeps = carry
        return (change > enough) & (sweeps < _MOST_SWEEPS)

    def step(carry: tuple) -> tuple:
        old, _, sweeps = carry
        new, _, found = sweep(rows, gram, old, tilt)
        # In units of the margin's own standard deviation.
        surer = jnp.abs(new.precision - old.precision) * found.variance
        moved = jnp.abs(new.shift - old.shift) * jnp.sqrt(found.variance)
        change = jnp.where(rows.weight > 0, jnp.maximum(surer, moved), 0)
        return new, jnp.max(change, initial=0.0), sweeps + 1

    start = (sites, jnp.full((), jnp.inf, rows.design.dtype), jnp.zeros((), jnp.int32))
    found: Sites = jax.lax.while_loop(going, step, start)[0]
    return found


def weights(rows: ChoiceRows, sites: Sites) -> tuple[jax.Array, jax.Array]:
    """Return the posterior mean z [r] under the sites, and the factor of H^-1."""
    half = inverse_factor(rows.design, rows.weight * sites.precision)
    target = target_of(rows, sites)
    return apply_inverse(half, rows.design.T @ target), half
