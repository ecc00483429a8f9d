"""The rows of a short history by the joint posterior of their margins, kept from row to row.

With fewer rows than directions, what a user's rows say of each other is in the covariance [P, P] of
their margins. It is kept under the sites as they were when it was factored. A new row enters it
exactly, by a matrix of rank one, and the small changes of all sites since then by a series of
products with vectors. It is factored anew once these changes are no longer small.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.mrm import ep
from jaxalign.mrm.ordered import tilt_by_band

SMALL_CHANGE, MOST_SWEEPS = 3e-3, 12
"""Sweeps end where the posterior moves by less, in its standard deviations, or after so many."""
FREE_SWEEPS, DAMPED = 4, 0.25
"""Sweeps without damping; later ones count a quarter of the change."""
_FAR = 0.3
"""Change of the sites beyond which margins are factored anew, as a Frobenius norm.

The variances leave out the square of the change, and each product the mean's square of it."""


class MarginSites(NamedTuple):
    """The margins of P rows under their sites, at each of G spreads.

    Attributes:
        cov: [G, P, P] covariance of the margins where the sites have `precision`; 0 for padding.
        precision: [G, P] of the sites that `cov` holds, weights multiplied.
        mean: [G, P] of the margins under the sites as they are, without the prior's.
    """

    cov: jax.Array
    precision: jax.Array
    mean: jax.Array


class MarginRows(NamedTuple):
    """Rows [P] whose margins are kept.

    Attributes:
        design: [P, r] in coordinates z of the weights.
        by: [G, P] factor on each row, the spread for a rating and 1 for a choice.
        prior_margin: [P] at a spread of 1.
        weight: [P], 0 where there is no row.
        lower, upper: [P] ends of their bands.
    """

    design: jax.Array
    by: jax.Array
    prior_margin: jax.Array
    weight: jax.Array
    lower: jax.Array
    upper: jax.Array


def no_margins(grid: int, room: int, dtype: jnp.dtype) -> MarginSites:
    """Return the margins of no rows, with room for some, at a number of spreads."""
    none = jnp.zeros((grid, room), dtype)
    return MarginSites(jnp.zeros((grid, room, room), dtype), none, none)


def with_more_room(joint: MarginSites, room: int) -> MarginSites:
    """Return the same margins with room for more rows."""
    more = [(0, room - joint.mean.shape[1])]
    same = [(0, 0)]
    return MarginSites(
        jnp.pad(joint.cov, same + more + more),
        jnp.pad(joint.precision, same + more),
        jnp.pad(joint.mean, same + more),
    )


def _site_rows(rows: MarginRows, by: jax.Array) -> ep.ChoiceRows:
    """The rows at one spread, as expectation propagation sees them."""
    return ep.ChoiceRows(by[:, None] * rows.design, by * rows.prior_margin, rows.weight)


def first_site(
    mean: jax.Array, variance: jax.Array, lower: jax.Array, upper: jax.Array
) -> ep.Sites:
    """Return the site of one row that has none yet; under the other sites as they are it is exact.

    Args:
        mean: of its margin.
        variance: of its margin.
        lower, upper: ends of its band.
    """
    none = jnp.zeros_like(variance)
    around = ep.Cavity(mean, variance, jnp.ones((), bool))
    return ep.updated(ep.Sites(none, none), around, tilt_by_band(mean, variance, lower, upper), 1.0)


def insert_row(
    rows: MarginRows, joint: MarginSites, sites: ep.Sites, place: jax.Array
) -> tuple[MarginSites, ep.Sites]:
    """Return the margins and sites [G, P] with those of a row that has no site yet.

    Args:
        rows: the new one among them.
        joint: of the rows before.
        sites: 0 for the new row.
        place: of the new row.
    """
    with_all = rows.design @ rows.design[place]

    def at(by: jax.Array, joint: MarginSites, own: ep.Sites) -> tuple[MarginSites, ep.Sites]:
        here = _site_rows(rows, by)
        prior_cov = by * with_all * by[place]
        held = joint.precision * prior_cov
        column = prior_cov - joint.cov @ held
        variance = jnp.maximum(prior_cov[place] - held @ column, 0)
        column = column.at[place].set(0)
        change = rows.weight * own.precision - joint.precision
        deviation = column @ (ep.target_of(here, own) - change * joint.mean)
        now = jnp.maximum(variance - column**2 @ change, 0)
        margin = here.prior_margin[place] + deviation
        site = first_site(margin, now, rows.lower[place], rows.upper[place])
        precision, shift = (rows.weight[place] * part for part in site)
        column = column.at[place].set(variance)
        mine = jnp.arange(len(column)) == place
        cov = jnp.where(
            mine[:, None], column[None], jnp.where(mine[None], column[:, None], joint.cov)
        )
        shrunk = precision / (1 + precision * variance)
        cov = cov - shrunk * column[:, None] * column[None]
        gain = (shift - precision * margin) / (1 + precision * now)
        return (
            MarginSites(
                cov,
                joint.precision.at[place].set(precision),
                joint.mean.at[place].set(deviation) + gain * column,
            ),
            jax.tree.map(lambda old, new: old.at[place].set(new), own, site),
        )

    return jax.vmap(at)(rows.by, joint, sites)


def _factored(rows: MarginRows, sites: ep.Sites) -> MarginSites:
    """The margins by factors of their covariances under the sites [G, P]."""
    gram = rows.design @ rows.design.T

    def at(by: jax.Array, own: ep.Sites) -> MarginSites:
        here = _site_rows(rows, by)
        scaled = by[:, None] * gram * by[None]
        found, half, _ = ep.margins_of_gram(here, scaled, own)
        cov = scaled - half.T @ half
        return MarginSites(cov, rows.weight * own.precision, found.mean - here.prior_margin)

    return jax.vmap(at)(rows.by, sites)


class _Sweeps(NamedTuple):
    """Sweeps so far: sites [G, P] and their terms, the margins, and when to end or to factor."""

    sites: ep.Sites
    terms: jax.Array
    mean: jax.Array
    change: jax.Array
    far: jax.Array
    done: jax.Array


def sweep_margins(
    rows: MarginRows, joint: MarginSites, sites: ep.Sites, terms: jax.Array
) -> tuple[MarginSites, ep.Sites, jax.Array]:
    """Return margins, sites and terms of the log evidence [G, P] that hardly change any more.

    Args:
        rows: all of a user's.
        joint: of the rows.
        sites: [G, P] of the rows.
        terms: [G, P] as of the last sweep.
    """
    limit = jnp.full(len(rows.by), jnp.inf, joint.mean.dtype)
    near = jnp.zeros_like(limit)
    start = _Sweeps(sites, terms, joint.mean, limit, near, jnp.zeros((), jnp.int32))

    def unfinished(sweeps: _Sweeps) -> jax.Array:
        return jnp.any(sweeps.change > SMALL_CHANGE) & (sweeps.done < MOST_SWEEPS)

    def far(sweeps: _Sweeps) -> jax.Array:
        return jnp.any(sweeps.far > _FAR)

    def run(joint: MarginSites, sweeps: _Sweeps) -> _Sweeps:
        squares = joint.cov * joint.cov

        def step(sweeps: _Sweeps) -> _Sweeps:
            free = sweeps.done < FREE_SWEEPS
            at = jax.vmap(_swept, (None, 0, 0, 0, 0, 0, None))
            own = (sweeps.sites, sweeps.mean)
            found = at(rows, rows.by, joint, squares, *own, free)
            return _Sweeps(*found, sweeps.done + 1)

        def going(sweeps: _Sweeps) -> jax.Array:
            return unfinished(sweeps) & ~far(sweeps)

        return jax.lax.while_loop(going, step, sweeps)

    def again(carry: tuple[MarginSites, _Sweeps]) -> tuple[MarginSites, _Sweeps]:
        joint = _factored(rows, carry[1].sites)
        return joint, run(joint, carry[1]._replace(mean=joint.mean, far=near))

    # Out of a loop alone, XLA would take what does not change in it and compute it in every call.
    first = run(joint, start)
    joint, found = jax.lax.cond(
        far(first),
        lambda carry: jax.lax.while_loop(lambda some: far(some[1]), again, carry),
        lambda carry: carry,
        (joint, first),
    )
    return joint._replace(mean=found.mean), found.sites, found.terms


def _swept(
    rows: MarginRows, by: jax.Array, joint: MarginSites, squares: jax.Array, sites: ep.Sites,
    mean: jax.Array, free: jax.Array,
) -> tuple[ep.Sites, jax.Array, jax.Array, jax.Array, jax.Array]:  # fmt: skip
    """Sites after one sweep at one spread; terms, mean, how far the posterior moves, and `far`."""
    here = _site_rows(rows, by)
    target = ep.target_of(here, sites)
    change = rows.weight * sites.precision - joint.precision
    for _ in range(2):
        mean = joint.cov @ (target - change * mean)
    less = squares @ change
    variance = jnp.maximum(jnp.diagonal(joint.cov) - less, 0)
    margin = ep.Margins(here.prior_margin + mean, variance)
    new, terms, gradient, precision_gain = ep.site_step(
        here, sites, margin, (rows.lower, rows.upper), jnp.where(free, 1, ep.DAMPING)
    )
    moved = ep.posterior_step(
        gradient @ (joint.cov @ gradient), precision_gain, rows.design.shape[1]
    )
    far = jnp.sqrt(jnp.maximum(change @ less, 0))
    return new, terms, mean, moved / jnp.where(free, 1, DAMPED), far
