"""A user's state at any number of rows: natural parameters of all sites, and the rows in blocks.

The sites of all rows are summed, so that a posterior costs one factor of an E x E matrix. A new row
sweeps over the newest rows and, beyond those, over a few older blocks in turn: each site is taken
out of the sum, updated and put back. Time does not grow with the number of rows. Nor does memory:
the oldest rows are let go once there are many more rows than features, and their sites, which
hardly move any more, stay in the sum.

While a user has fewer rows than features, nothing is summed: the state holds the joint posterior of
the rows' margins instead, see `feedback_margins`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.arrays import check_numpy
from jaxalign.errors import InputError
from jaxalign.mrm import ep
from jaxalign.mrm.bayes import Prior, check_prior, factor
from jaxalign.mrm.feedback import (
    FeedbackPrior,
    Levels,
    augmented,
    check_feedback_prior,
    mixture,
    spread_grid,
)
from jaxalign.mrm.feedback_margins import (
    MarginRows,
    MarginSites,
    insert_row,
    no_margins,
    sweep_margins,
    with_more_room,
)
from jaxalign.mrm.feedback_sums import (
    RowBlock,
    concatenated,
    sums_of,
    sweep_blocks,
    with_row,
    with_sites,
)
from jaxalign.train.blas import one_blas_thread

Found = TypeVar("Found")

BLOCK = 32
"""Rows of a block."""
LIVE = 8
"""Most blocks that a new row sweeps over: up to so many rows nothing is approximated."""
_WIDE, _WIDE_LIVE = 64, 4
"""Directions beyond which there are fewer: rows move each other's sites the less, the more there
are, and a sweep takes longer."""
KEPT_PER_FEATURE = 128
"""Rows that are kept for each feature, and at least `LEAST_KEPT`; those before are let go."""
# What a row says no longer changes once it is let go. After 3,000 choices on 5 features, of which
# 2,048 were kept, the mean was 0.0015 posterior standard deviations off.
LEAST_KEPT = 2**14
_FEWER_SPREADS, _NEGLIGIBLE = (2, 3, 5), 1e-6
"""How many neighbouring spreads of the grid are kept, the fewest that hold all others' probability.

Two at least, between which the user's own lies. A spread that is left out does not come back. Under
the model its probability is a martingale: one that has fallen to p ever reaches q again with a
probability of p / q at most (Doob), one in a thousand for q = 0.001."""


class FeedbackBelief(NamedTuple):
    """What is known of one user after any number of choices and ratings.

    Attributes:
        mean: [D] of the weights, and of the level where there are ratings.
        root: [D, r] factor of their prior covariance.
        edges: of all levels, see `Levels`.
        spreads: [G] of the grid; 1 alone where there are no ratings.
        log_mass: [G] logarithms of their prior probabilities.
        precision: [G, r, r] sum over all rows of what their sites say; of none while the margins
            of all are in `joint`.
        shift: [G, r].
        evidence: [G] sum over the same rows of their terms of the log evidence.
        blocks: the rows, the newest block last.
        joint: the margins of all rows while these are few, see `fits_margins`.
        turn: number of the block that is swept next.
        num_rows: so far.
    """

    mean: jax.Array
    root: jax.Array
    edges: jax.Array
    spreads: jax.Array
    log_mass: jax.Array
    precision: jax.Array
    shift: jax.Array
    evidence: jax.Array
    blocks: tuple[RowBlock, ...]
    joint: MarginSites | None
    turn: int
    num_rows: int


def init_feedback_belief(prior: Prior | FeedbackPrior) -> FeedbackBelief:
    """Return the state of a user of whom nothing is known.

    Args:
        prior: of the weights alone for users who only choose, or of all kinds of feedback.

    Raises:
        InputError: shapes that disagree, NaN or infinity, or a negative standard deviation.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm import Prior, feedback_moments, init_feedback_belief, observe
        >>> belief = init_feedback_belief(Prior(jnp.zeros(2), jnp.eye(2)))
        >>> for _ in range(3):
        ...     belief = observe(belief, jnp.array([1.0, 0.0]))
        >>> mean, cov = feedback_moments(belief)
        >>> belief.num_rows, bool(mean[0] > 0.5), bool(cov[0, 0] < 1)
        (3, True, True)
    """
    if isinstance(prior, FeedbackPrior):
        prior = check_feedback_prior(prior)
        mean, root = augmented(prior)
        spreads, log_mass = spread_grid(prior)
        edges = prior.edges
    else:
        prior = check_prior(prior)
        dtype = jnp.result_type(*prior)
        mean, root = prior.mean.astype(dtype), factor(prior.cov.astype(dtype))
        spreads, log_mass = jnp.ones(1, dtype), jnp.zeros(1, dtype)
        edges = Levels().edges(jnp.zeros(0, dtype))
    grid, size, dtype = len(spreads), root.shape[1], root.dtype
    return FeedbackBelief(
        mean, root, edges, spreads, log_mass,
        jnp.zeros((grid, size, size), dtype), jnp.zeros((grid, size), dtype),
        jnp.zeros(grid, dtype), (empty_block(grid, size, dtype),),
        no_margins(grid, BLOCK, dtype) if fits_margins(1, size) else None, 0, 0,
    )  # fmt: skip


def fits_margins(blocks: int, size: int) -> bool:
    """Return whether the margins of the rows of some blocks are fewer than the directions."""
    return blocks <= most_live(size) and _width(blocks) * BLOCK < size


def most_live(size: int) -> int:
    """Return how many blocks a new row sweeps over at most, by the number of directions."""
    return LIVE if size <= _WIDE else _WIDE_LIVE


def _width(blocks: int) -> int:
    """Blocks of a program: few programs are compiled, so that others are empty."""
    return 2 ** int(np.ceil(np.log2(blocks)))


@functools.lru_cache(maxsize=8)
def empty_block(grid: int, size: int, dtype: jnp.dtype) -> RowBlock:
    """Return a block without rows, of a grid of spreads and a number of directions."""
    codes = jnp.zeros((BLOCK, 3), jnp.int32)
    known = jnp.zeros((BLOCK, 2), dtype)
    return RowBlock(
        jnp.zeros((BLOCK, size), dtype), codes, known, jnp.zeros((3, grid, BLOCK), dtype)
    )


def observe(
    belief: FeedbackBelief,
    vector: jax.Array,
    lower: int = 2,
    upper: int = 1,
    rating: bool = False,
    weight: float = 1.0,
) -> FeedbackBelief:
    """Return what is known after one more row of any kind, as if all rows had been fitted anew.

    Args:
        belief: of one user.
        vector: [E] as in `Feedback.vectors`: chosen minus rejected, or a rated answer's features.
        lower: edge below the stated level, see `Levels`; a plain choice unless given.
        upper: edge above it.
        rating: whether the row is a rating.
        weight: how often the row counts, above 0.

    Returns:
        The new belief. Up to 256 rows every site is swept; beyond, the newest 32 rows and seven
        older blocks of 32 in turn. With more than 64 features it is 128 rows, and three blocks.

    Raises:
        InputError: sizes that disagree, NaN or infinity, or a rating without a prior for ratings.
    """
    rated = len(belief.spreads) > 1
    found = check_numpy("vector", vector, "...", finite=False).astype(belief.mean.dtype)
    if found.shape != (len(belief.mean) - rated,):
        raise InputError(
            f"a row has shape {found.shape}, expected ({len(belief.mean) - rated},), as the prior."
        )
    if not (np.isfinite(found).all() and np.isfinite(weight) and weight > 0):
        raise InputError(
            "a row holds NaN, infinity or a weight that is not above 0: compute its features again."
        )
    if rating and not rated:
        raise InputError("the prior is of choices alone: give one of mrm.fit_feedback for ratings.")
    if not all(0 <= edge < len(belief.edges) for edge in (lower, upper)):
        raise InputError(
            f"edges {lower} and {upper}: expected numbers below {len(belief.edges)}, of `Levels`."
        )
    place = belief.num_rows % BLOCK
    if place == 0 and belief.num_rows:
        belief = _with_room(belief)
    values = np.append(found, np.float32(-float(rating))) if rated else found
    codes = np.array([rating, lower, upper, place], np.int32)
    row = (values, codes, np.float32(weight))
    if belief.joint is None:
        return _after_sums(belief, row)
    return _after_margins(belief, belief.joint, row)


def _after_margins(belief: FeedbackBelief, joint: MarginSites, row: tuple) -> FeedbackBelief:
    """The belief after one more row, by the margins of all."""
    count = len(belief.blocks)
    joint, newest, blocks = awaited(
        _observe_margins, _shared(belief), joint, _padded(belief, belief.blocks),
        np.int32(count - 1), belief.blocks[-1], *row,
    )  # fmt: skip
    newest = newest._replace(sites=blocks[count - 1].sites)
    return belief._replace(
        blocks=(*blocks[: count - 1], newest), joint=joint, num_rows=belief.num_rows + 1
    )


def _after_sums(belief: FeedbackBelief, row: tuple) -> FeedbackBelief:
    """The belief after one more row, by the sums over the sites of all."""
    blocks = belief.blocks
    chosen, turn = in_turn(len(blocks) - 1, belief.turn, most_live(len(belief.mean)) - 1)
    live = _padded(belief, (blocks[-1], *(blocks[number] for number in chosen)))
    sums = (belief.precision, belief.shift, belief.evidence)
    sums, updated = awaited(_observe_sums, _shared(belief), sums, live, *row)
    after = list(blocks)
    for number, block in zip((len(blocks) - 1, *chosen), updated, strict=False):
        after[number] = block
    room = max(KEPT_PER_FEATURE * len(belief.mean), LEAST_KEPT) // BLOCK
    dropped = max(len(after) - room, 0)
    return belief._replace(
        precision=sums[0], shift=sums[1], evidence=sums[2], blocks=tuple(after[dropped:]),
        turn=max(turn - dropped, 0), num_rows=belief.num_rows + 1,
    )  # fmt: skip


def _shared(belief: FeedbackBelief) -> tuple:
    return belief.mean, belief.root, belief.edges, belief.spreads


def _padded(belief: FeedbackBelief, blocks: tuple[RowBlock, ...]) -> tuple[RowBlock, ...]:
    """The blocks, and empty ones behind them."""
    empty = _width(len(blocks)) - len(blocks)
    return blocks + (empty_block(len(belief.spreads), *_of(blocks[0])),) * empty


def summed(belief: FeedbackBelief) -> FeedbackBelief:
    """Return the same belief with the sums over the sites of all rows, in place of margins.

    Args:
        belief: of one user.
    """
    if belief.joint is None:
        return belief
    if not belief.num_rows:
        return belief._replace(joint=None)
    precision, shift, evidence = sums_of(belief.spreads, _padded(belief, belief.blocks))
    return belief._replace(precision=precision, shift=shift, evidence=evidence, joint=None)


def _with_room(belief: FeedbackBelief) -> FeedbackBelief:
    """The belief with an empty block, and without spreads that its rows have made improbable."""
    blocks, joint = belief.blocks, belief.joint
    if joint is not None and not fits_margins(len(blocks) + 1, len(belief.mean)):
        belief, joint = summed(belief), None
    some = _probable_spreads(belief)
    if some is not None:
        names = ("spreads", "log_mass", "precision", "shift", "evidence")
        belief = belief._replace(**{name: getattr(belief, name)[some] for name in names})
        blocks = tuple(block._replace(sites=block.sites[:, some]) for block in blocks)
        joint = None if joint is None else MarginSites(*(leaf[some] for leaf in joint))
    blocks = (*blocks, empty_block(len(belief.spreads), *_of(blocks[0])))
    if joint is not None:
        joint = with_more_room(joint, _width(len(blocks)) * BLOCK)
    return belief._replace(blocks=blocks, joint=joint)


def _probable_spreads(belief: FeedbackBelief) -> slice | None:
    """Which spreads of the grid are kept; None where all are."""
    grid = len(belief.spreads)
    if grid <= _FEWER_SPREADS[0]:
        return None
    share = np.asarray(_waited_moments(belief)[0])
    there = np.flatnonzero(share > _NEGLIGIBLE)
    size = next(n for n in (*_FEWER_SPREADS, grid) if n >= there[-1] - there[0] + 1)
    start = min(int(there[0]), grid - size)
    return slice(start, start + size) if size < grid else None


def _of(block: RowBlock) -> tuple[int, jnp.dtype]:
    return block.design.shape[1], block.design.dtype


def in_turn(older: int, turn: int, most: int) -> tuple[list[int], int]:
    """Return numbers of the older blocks that are swept now, and where the next sweep goes on.

    Args:
        older: how many there are.
        turn: number of the block that is swept next.
        most: of them that are swept at once.
    """
    count = min(older, most)
    # The last full block always: its rows are the newest ones.
    chosen = [older - 1] * (count > 0)
    rest = older - 1
    chosen += [(turn + step) % rest for step in range(count - 1)]
    return chosen, (turn + count - 1) % rest if rest > 0 else 0


@one_blas_thread
def awaited(program: Callable[..., Found], *inputs: object) -> Found:
    """Return what a compiled program gives, once it is there, with one BLAS thread.

    Args:
        program: that factors matrices.
        *inputs: its arguments.
    """
    found: Found = jax.block_until_ready(program(*inputs))
    return found


def _with_row(
    shared: tuple, block: RowBlock, values: jax.Array, codes: jax.Array, weight: jax.Array
) -> RowBlock:
    """The newest block with one more row, whose place is the last of the codes."""
    mean, root, *_ = shared
    known = jnp.stack([weight, values @ mean])
    return with_row(block, codes[3], values @ root, codes[:3], known)


@jax.jit
def _observe_sums(
    shared: tuple, sums: tuple, live: tuple[RowBlock, ...], *row: jax.Array
) -> tuple[tuple, tuple[RowBlock, ...]]:
    first = _with_row(shared, live[0], *row)
    return sweep_blocks(shared, sums, (first, *live[1:]), row[1][3])


@jax.jit
def _observe_margins(
    shared: tuple, joint: MarginSites, blocks: tuple[RowBlock, ...], number: np.integer,
    newest: RowBlock, *row: jax.Array,
) -> tuple[MarginSites, RowBlock, tuple[RowBlock, ...]]:  # fmt: skip
    _, _, edges, spreads = shared
    newest, start = _with_row(shared, newest, *row), number * BLOCK
    *arrays, sites = concatenated(blocks)
    design, codes, known = (
        jax.lax.dynamic_update_slice_in_dim(whole, part, start, 0)
        for whole, part in zip(arrays, newest[:3], strict=True)
    )
    by = jnp.where(codes[None, :, 0] > 0, spreads[:, None], 1)
    rows = MarginRows(design, by, known[:, 1], known[:, 0], edges[codes[:, 1]], edges[codes[:, 2]])
    joint, first = insert_row(rows, joint, ep.Sites(sites[0], sites[1]), start + row[1][3])
    joint, found, terms = sweep_margins(rows, joint, first, sites[2])
    return joint, newest, with_sites(blocks, jnp.stack([*found, terms]))


def feedback_moments(belief: FeedbackBelief) -> tuple[jax.Array, jax.Array]:
    """Return mean [E] and covariance [E, E] of one user's weights, level and spread left out.

    Args:
        belief: of one user.
    """
    _, mean, cov = _waited_moments(belief)
    return mean, cov


@one_blas_thread
def _waited_moments(belief: FeedbackBelief) -> tuple[jax.Array, jax.Array, jax.Array]:
    # One program serves states of any length.
    found = _moments(summed(belief)._replace(blocks=(), turn=0, num_rows=0))
    waited: tuple[jax.Array, jax.Array, jax.Array] = jax.block_until_ready(found)
    return waited


@jax.jit
def _moments(belief: FeedbackBelief) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Probabilities of the spreads [G], and moments [E] and [E, E] of the weights."""
    eye = jnp.eye(belief.root.shape[1], dtype=belief.root.dtype)

    def at(precision: jax.Array, shift: jax.Array, terms: jax.Array) -> tuple:
        lower = jnp.linalg.cholesky(eye + precision)
        both = jnp.concatenate([eye, shift[:, None]], axis=1)
        half = jax.scipy.linalg.solve_triangular(lower, both, lower=True)
        z = half[:, :-1].T @ half[:, -1]
        log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(lower)))
        evidence = terms + 0.5 * jnp.sum(half[:, -1] ** 2) - 0.5 * log_det
        return evidence, z, half[:, :-1].T @ half[:, :-1]

    evidence, z, cov = jax.vmap(at)(belief.precision, belief.shift, belief.evidence)
    share, center, spread = mixture(belief.log_mass + evidence, z, cov)
    size = len(belief.mean) - (len(belief.spreads) > 1)  # the level stands behind the weights
    root = belief.root[:size]
    return share, belief.mean[:size] + root @ center, root @ spread @ root.T
