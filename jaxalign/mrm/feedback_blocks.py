"""A user's state for a service: one program for any number of rows, and rows that can be corrected.

`observe` compiles a program for each number of live blocks, and drops spreads of ratings that have
become improbable. Here all shapes stay as they are from the first row on, and the rows of a block
are taken one by one in one call, so that a state is built anew quickly. It is a function of the
sequence of rows alone, however many of them came in one call.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import InputError
from jaxalign.mrm.feedback_belief import (
    BLOCK,
    LIVE,
    FeedbackBelief,
    awaited,
    empty_block,
    in_turn,
    summed,
)
from jaxalign.mrm.feedback_sums import RowBlock, sweep_blocks, with_row

KEPT = 64
"""Blocks whose sites are swept again in turn; older sites stay in the sums as they are. Among 2,000
choices on 128 features this moves the mean by 0.005 standard deviations or less."""


class FeedbackRows(NamedTuple):
    """Rows of one user on the host, each of which counts once; otherwise as `Feedback`.

    Attributes:
        vectors: [P, E].
        rating: [P] bool.
        lower: [P] int32.
        upper: [P] int32.
    """

    vectors: np.ndarray
    rating: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


def observe_rows(belief: FeedbackBelief, rows: FeedbackRows) -> FeedbackBelief:
    """Return what is known of one user after more rows of one block, taken one by one.

    Args:
        belief: of one user, made by this function or by `init_feedback_belief`.
        rows: of this user, as many as have room in the block that the belief ends with: 32 where it
            ends with a whole one.

    Returns:
        The new belief. Time and memory do not grow with the number of rows before: each new row
        sweeps over its own block, the one before and a few others, which change with each block.

    Raises:
        InputError: too many rows.

    Example:
        >>> import jax.numpy as jnp
        >>> import numpy as np
        >>> from jaxalign.mrm import Levels, Prior, feedback_moments, init_feedback_belief
        >>> from jaxalign.mrm.feedback_blocks import FeedbackRows, observe_rows
        >>> belief = init_feedback_belief(Prior(jnp.zeros(2), jnp.eye(2)))
        >>> ties, chosen = np.zeros(3, bool), np.array([[1.0, 0.0]] * 3, np.float32)
        >>> rows = FeedbackRows(chosen, ties, *Levels().choice(None, ties))
        >>> mean, cov = feedback_moments(observe_rows(belief, rows))
        >>> bool(mean[0] > 0.5), bool(cov[0, 0] < 1)
        (True, True)
    """
    count, place = len(rows.vectors), belief.num_rows % BLOCK
    if count > BLOCK - place:
        raise InputError(
            f"found {count} rows after {belief.num_rows}: expected {BLOCK - place} or fewer, which "
            f"have room in a block of {BLOCK}."
        )
    belief = summed(belief)
    design = belief.blocks[0].design
    empty = empty_block(len(belief.spreads), design.shape[1], design.dtype)
    whole = belief.blocks[:-1] if place else belief.blocks if belief.num_rows else ()
    newest = belief.blocks[-1] if place else empty
    chosen, turn = in_turn(len(whole), belief.turn, LIVE - 1)
    older = tuple(whole[number] for number in chosen) + (empty,) * (LIVE - 1 - len(chosen))
    shared = (belief.mean, belief.root, belief.edges, belief.spreads)
    sums = (belief.precision, belief.shift, belief.evidence)
    span = np.array([place, place + count], np.int32)
    padded = _in_place(rows, place, design.dtype)
    sums, newest, sites = awaited(_observe_rows, shared, sums, newest, older, padded, span)
    after = list(whole)
    for number, site in zip(chosen, sites, strict=False):
        after[number] = after[number]._replace(sites=site)
    after.append(newest)
    # The blocks that are swept change with each block, whatever the rows of a call.
    is_whole = place + count == BLOCK
    dropped = max(len(after) - KEPT, 0) if is_whole else 0
    return belief._replace(
        precision=sums[0], shift=sums[1], evidence=sums[2], blocks=tuple(after[dropped:]),
        turn=max(turn - dropped, 0) if is_whole else belief.turn, num_rows=belief.num_rows + count,
    )  # fmt: skip


def _in_place(rows: FeedbackRows, place: int, dtype: jnp.dtype) -> FeedbackRows:
    """Rows where they stand in their block, the others 0: arrays of one shape."""
    kinds = (dtype, np.dtype(bool), np.dtype(np.int32), np.dtype(np.int32))
    padded = []
    for leaf, kind in zip(rows, kinds, strict=True):
        block = np.zeros((BLOCK, *leaf.shape[1:]), kind)
        block[place : place + len(leaf)] = leaf
        padded.append(block)
    return FeedbackRows(*padded)


@jax.jit
def _observe_rows(
    shared: tuple, sums: tuple, newest: RowBlock, older: tuple[RowBlock, ...], rows: FeedbackRows,
    span: jax.Array,
) -> tuple[tuple, RowBlock, tuple[jax.Array, ...]]:  # fmt: skip
    """Sums, the newest block, and the sites of the older ones, after the rows of some places."""
    mean, root, _, spreads = shared
    vectors, rating = jnp.asarray(rows.vectors), jnp.asarray(rows.rating)
    if len(spreads) > 1:  # the level stands behind the weights
        level = -rating.astype(vectors.dtype)
        vectors = jnp.concatenate([vectors, level[:, None]], axis=1)
    design = vectors @ root
    codes = jnp.stack([rating, rows.lower, rows.upper], axis=1).astype(jnp.int32)
    margins = vectors @ mean
    known = jnp.stack([jnp.ones_like(margins), margins], axis=1)

    def take(place: jax.Array, carry: tuple) -> tuple:
        sums, newest, sites = carry
        newest = with_row(newest, place, design[place], codes[place], known[place])
        others = (block._replace(sites=own) for block, own in zip(older, sites, strict=True))
        sums, swept = sweep_blocks(shared, sums, (newest, *others), place)
        return sums, swept[0], tuple(block.sites for block in swept[1:])

    start = (sums, newest, tuple(block.sites for block in older))
    found: tuple[tuple, RowBlock, tuple[jax.Array, ...]] = jax.lax.fori_loop(
        span[0], span[1], take, start
    )
    return found
