"""A user's state in steps of whole blocks of rows, so that it is quick to build and to correct.

`observe` takes rows one by one. A service also has to build the state of a user anew, with all
rows, and to put another row in place of one of the newest. Here the state holds whole blocks, and
the newest rows stay beside it: what is known of the user is the state after one sweep over these
rows together. It is a function of the sequence of rows alone, however often it was looked at.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import InputError
from jaxalign.mrm.feedback import Feedback
from jaxalign.mrm.feedback_belief import (
    BLOCK,
    LIVE,
    FeedbackBelief,
    RowBlock,
    empty_block,
    in_turn,
    sweep_blocks,
)
from jaxalign.train.blas import one_blas_thread

NEWEST = 2
"""Blocks of rows that stay beside the state: rows of the last one at least can be replaced."""
KEPT = 64
"""Blocks whose sites are swept again in turn; older sites stay in the sums as they are. Among 2,000
choices on 128 features this moves the mean by 0.03 standard deviations or less."""


def observe_rows(belief: FeedbackBelief, rows: Feedback) -> FeedbackBelief:
    """Return what is known of one user after up to 64 more rows, swept together.

    Args:
        belief: of one user, after a whole number of blocks of 32 rows.
        rows: of this user [P], not more than 64; P is any number. Those of weight 0 do not count
            and stand last.

    Returns:
        The new belief. Time and memory do not grow with the number of rows before: the new rows and
        six older blocks are swept, all older ones where these are six or fewer.

    Raises:
        InputError: too many rows, or a belief in the middle of a block.

    Example:
        >>> import jax.numpy as jnp
        >>> import numpy as np
        >>> from jaxalign.mrm import Feedback, Levels, Prior, feedback_moments, init_feedback_belief
        >>> from jaxalign.mrm.feedback_blocks import observe_rows
        >>> belief = init_feedback_belief(Prior(jnp.zeros(2), jnp.eye(2)))
        >>> ties, ones = np.zeros(3, bool), np.ones(3, np.float32)
        >>> chosen = np.array([[1.0, 0.0]] * 3, np.float32)
        >>> rows = Feedback(chosen, ties, *Levels().choice(None, ties), ones)
        >>> mean, cov = feedback_moments(observe_rows(belief, rows))
        >>> bool(mean[0] > 0.5), bool(cov[0, 0] < 1)
        (True, True)
    """
    count = int(np.count_nonzero(rows.weight))
    if belief.num_rows % BLOCK or count > NEWEST * BLOCK:
        raise InputError(
            f"a belief of {belief.num_rows} rows and {count} new ones: expected a whole number of "
            f"blocks of {BLOCK} rows, and {NEWEST * BLOCK} new ones or fewer."
        )
    before = belief.blocks if belief.num_rows else ()
    chosen, turn = in_turn(len(before), belief.turn, LIVE - NEWEST)
    like = belief.blocks[0].design
    empty = empty_block(len(belief.spreads), like.shape[1], like.dtype)
    older = tuple(before[number] for number in chosen)
    older += (empty,) * (LIVE - NEWEST - len(older))
    shared = (belief.mean, belief.root, belief.edges, belief.spreads)
    sums = (belief.precision, belief.shift, belief.evidence)
    sums, new, updated = _observed(shared, sums, older, _padded(rows, like.dtype))
    after = list(before)
    for number, block in zip(chosen, updated, strict=False):
        after[number] = block
    after += new[: -(-count // BLOCK)]
    dropped = max(len(after) - KEPT, 0)
    return belief._replace(
        precision=sums[0], shift=sums[1], evidence=sums[2],
        blocks=tuple(after[dropped:]) or belief.blocks, turn=max(turn - dropped, 0),
        num_rows=belief.num_rows + count,
    )  # fmt: skip


def _padded(rows: Feedback, dtype: jnp.dtype) -> Feedback:
    """The rows on the host, padded to the blocks of the program."""
    room = NEWEST * BLOCK - len(rows.weight)
    kinds = (dtype, jnp.dtype(bool), jnp.dtype(jnp.int32), jnp.dtype(jnp.int32), dtype)
    padded = []
    for leaf, kind in zip(rows, kinds, strict=True):
        found = np.asarray(leaf).astype(kind)
        padded.append(np.pad(found, [(0, room)] + [(0, 0)] * (found.ndim - 1)))
    return Feedback(*map(jnp.asarray, padded))


@one_blas_thread
def _observed(
    shared: tuple, sums: tuple, older: tuple[RowBlock, ...], rows: Feedback
) -> tuple[tuple, tuple[RowBlock, ...], tuple[RowBlock, ...]]:
    found: tuple[tuple, tuple[RowBlock, ...], tuple[RowBlock, ...]] = jax.block_until_ready(
        _observe_rows(shared, sums, older, rows)
    )
    return found


@jax.jit
def _observe_rows(
    shared: tuple, sums: tuple, older: tuple[RowBlock, ...], rows: Feedback
) -> tuple[tuple, tuple[RowBlock, ...], tuple[RowBlock, ...]]:
    mean, root, _, spreads = shared
    vectors = rows.vectors
    if len(spreads) > 1:  # the level stands behind the weights
        level = -rows.rating.astype(vectors.dtype)
        vectors = jnp.concatenate([vectors, level[:, None]], axis=1)
    codes = jnp.stack([rows.rating, rows.lower, rows.upper], axis=1).astype(jnp.int32)
    known = jnp.stack([rows.weight, vectors @ mean], axis=1)
    sites = jnp.zeros((3, len(spreads), len(vectors)), vectors.dtype)
    parts = ((*map(functools.partial(jnp.split, indices_or_sections=NEWEST),
                   (vectors @ root, codes, known)), jnp.split(sites, NEWEST, axis=2)))  # fmt: skip
    new = tuple(RowBlock(*leaves) for leaves in zip(*parts, strict=True))
    sums, blocks = sweep_blocks(shared, sums, (*new, *older), every=False)
    return sums, blocks[:NEWEST], blocks[NEWEST:]
