"""The rows of a long history by the sums over their sites, kept from row to row.

A posterior is one factor of a sum of natural parameters over all rows. Sweeps update the sites of
some blocks of rows: each site is taken out of the sum, updated and put back.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.mrm import ep
from jaxalign.mrm.feedback_margins import (
    DAMPED,
    FREE_SWEEPS,
    MOST_SWEEPS,
    SMALL_CHANGE,
    first_site,
)


class RowBlock(NamedTuple):
    """Rows of one user, B of them, in coordinates z of the weights, theta = mean + root z.

    Attributes:
        design: [B, r].
        codes: [B, 3] int32: whether a row is a rating, and its lower and upper edge.
        known: [B, 2] weight, 0 where there is no row yet, and the margin under the prior's mean.
        sites: [3, G, B] precision and shift of each site, and its term of the log evidence.
    """

    design: jax.Array
    codes: jax.Array
    known: jax.Array
    sites: jax.Array


def with_row(
    block: RowBlock, place: jax.Array, design: jax.Array, codes: jax.Array, known: jax.Array
) -> RowBlock:
    """Return a block with one more row, which has no site yet.

    Args:
        block: with room for it.
        place: of the row in the block.
        design, codes, known: of the row, as in `RowBlock`.
    """
    return RowBlock(
        block.design.at[place].set(design),
        block.codes.at[place].set(codes),
        block.known.at[place].set(known),
        block.sites,
    )


def concatenated(blocks: tuple[RowBlock, ...]) -> tuple[jax.Array, ...]:
    """Return design, codes, known and sites of the rows of all blocks."""
    *rows, sites = zip(*blocks, strict=True)
    return (*map(jnp.concatenate, rows), jnp.concatenate(sites, axis=2))


def with_sites(blocks: tuple[RowBlock, ...], sites: jax.Array) -> tuple[RowBlock, ...]:
    """Return the blocks with new sites [3, G, P] of their rows."""
    parts = jnp.split(sites, len(blocks), axis=2)
    return tuple(block._replace(sites=part) for block, part in zip(blocks, parts, strict=True))


def _rows_at(
    spread: jax.Array, design: jax.Array, codes: jax.Array, known: jax.Array
) -> ep.ChoiceRows:
    """The rows at one spread, as expectation propagation sees them."""
    by = jnp.where(codes[:, 0] > 0, spread, 1)
    return ep.ChoiceRows(by[:, None] * design, by * known[:, 1], known[:, 0])


@jax.jit
def sums_of(spreads: jax.Array, blocks: tuple[RowBlock, ...]) -> tuple:
    """Return precision, shift and evidence, summed over the sites of the rows of some blocks.

    Args:
        spreads: [G].
        blocks: of one user.
    """
    design, codes, known, sites = concatenated(blocks)

    def at(spread: jax.Array, sites: jax.Array) -> tuple:
        rows = _rows_at(spread, design, codes, known)
        return (*ep.natural(rows, ep.Sites(sites[0], sites[1])), jnp.sum(sites[2]))

    found: tuple = jax.vmap(at, (0, 1))(spreads, sites)
    return found


def sweep_blocks(
    shared: tuple, sums: tuple, blocks: tuple[RowBlock, ...], place: jax.Array
) -> tuple[tuple, tuple[RowBlock, ...]]:
    """Return the sums over all sites, and live blocks, after sweeps until these hardly change.

    Args:
        shared: mean, root, edges and spreads, as in `FeedbackBelief`.
        sums: precision, shift and evidence of all sites.
        blocks: whose sites are swept; those of all other rows stay as they are.
        place: of the row of the first block that has no site yet.
    """
    _, _, edges, spreads = shared
    design, codes, known, sites = concatenated(blocks)
    lower, upper = edges[codes[:, 1]], edges[codes[:, 2]]

    def at(spread: jax.Array, sites: jax.Array, sums: tuple) -> tuple:
        rows = _rows_at(spread, design, codes, known)
        return _swept(_Live(rows, lower, upper, place), sites, sums)

    if len(spreads) > 1:
        after, sums = jax.vmap(at, (0, 1, 0), (1, 0))(spreads, sites, sums)
    else:  # LAPACK on one matrix is faster than on a batch of one
        alone = at(spreads[0], sites[:, 0], jax.tree.map(lambda leaf: leaf[0], sums))
        after, sums = alone[0][:, None], jax.tree.map(lambda leaf: leaf[None], alone[1])
    return sums, with_sites(blocks, after)


class _Live(NamedTuple):
    """Rows [P] whose sites are swept, at one spread.

    Attributes:
        rows: as expectation propagation sees them.
        lower, upper: [P] ends of their bands.
        place: of the row that has no site yet.
    """

    rows: ep.ChoiceRows
    lower: jax.Array
    upper: jax.Array
    place: jax.Array


def _swept(live: _Live, sites: jax.Array, sums: tuple) -> tuple[jax.Array, tuple]:
    """Sites [3, P] of live rows after sweeps until they no longer change, and the new sums."""
    rows = live.rows
    start = ep.Sites(sites[0], sites[1])

    def total(current: ep.Sites) -> tuple[jax.Array, jax.Array]:
        gained = ep.natural(rows, jax.tree.map(jnp.subtract, current, start))
        return jax.tree.map(jnp.add, sums[:2], gained)

    def going(carry: tuple) -> jax.Array:
        _, _, _, change, sweeps = carry
        return (change > SMALL_CHANGE) & (sweeps < MOST_SWEEPS)

    def step(carry: tuple) -> tuple:
        old, natural, _, _, sweeps = carry
        found, half = ep.margins_of_precision(rows, *natural)
        old, found = _with_first_site(live, old, found, half, sweeps == 0)
        # Sites next to their fixed point need no damping; those that keep moving do.
        free = sweeps < FREE_SWEEPS
        new, terms, gradient, precision_gain = ep.site_step(
            rows, old, found, (live.lower, live.upper), jnp.where(free, 1, ep.DAMPING)
        )
        along = half @ gradient
        change = ep.posterior_step(along @ along, precision_gain, rows.design.shape[1])
        return new, total(new), terms, change / jnp.where(free, 1, DAMPED), sweeps + 1

    limit = jnp.full((), jnp.inf, rows.design.dtype)
    first = (start, sums[:2], sites[2], limit, jnp.zeros((), jnp.int32))
    new, natural, terms, _, _ = jax.lax.while_loop(going, step, first)
    evidence = sums[2] + jnp.sum(terms - sites[2])
    return jnp.stack([new.precision, new.shift, terms]), (*natural, evidence)


def _with_first_site(
    live: _Live, sites: ep.Sites, found: ep.Margins, half: jax.Array, first: jax.Array
) -> tuple[ep.Sites, ep.Margins]:
    """Sites and margins with the site of the new row in them, where this is the first sweep.

    One term more changes a normal by a matrix of rank one.
    """
    place, weight = live.place, live.rows.weight[live.place]
    mean, variance = found.mean[place], found.variance[place]
    site = first_site(mean, variance, live.lower[place], live.upper[place])
    precision, shift = (jnp.where(first, weight * part, 0) for part in site)
    column = half.T @ half[:, place]
    left = 1 + precision * variance
    after = ep.Margins(
        found.mean + column * ((shift - precision * mean) / left),
        jnp.maximum(found.variance - column**2 * (precision / left), 0),
    )
    sites = jax.tree.map(
        lambda old, new: old.at[place].set(jnp.where(first, new, old[place])), sites, site
    )
    return sites, after
