"""The population that all kinds of feedback come from: EM around EP posteriors.

An EM step takes each user's posterior over weights, level and spread. Their moments give the
population's, and the thresholds take a Newton step on the log evidence with the cavities as they
are: its gradient is that of the evidence at the fixed point of EP (Seeger 2005), and the problem is
concave (Pratt 1981).
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.arrays import Sizes
from jaxalign.errors import InputError
from jaxalign.mrm import ep
from jaxalign.mrm.bayes import Prior, truncate
from jaxalign.mrm.chunks import in_chunks
from jaxalign.mrm.config import BayesConfig
from jaxalign.mrm.em import accelerated, fit_pseudo_users, squarem, step_settings
from jaxalign.mrm.feedback import (
    SPREAD_NODES,
    Feedback,
    FeedbackPrior,
    Levels,
    augmented,
    check_feedback,
    mixture,
    rows_at,
    spread_grid,
    tilt_of,
)
from jaxalign.mrm.ordered import tilt_by_band
from jaxalign.mrm.population import (
    anisotropy,
    at_coordinates,
    choices_of,
    coordinates,
    shrunk,
    start_of,
    unit_of,
)
from jaxalign.train.blas import one_blas_thread

_FIRST_LEVEL_SD, _FIRST_SPREAD_SD, _WIDER = 0.7, 0.4, 1.2
_LEAST_SD = 1e-3
"""Least standard deviation of levels and log spreads: EM cannot leave 0."""


class FeedbackPopulation(NamedTuple):
    """What is fitted: the free thresholds [T], and the rest as in `FeedbackPrior`."""

    weights: Prior
    thresholds: jax.Array
    level_sd: jax.Array
    log_spread: jax.Array
    log_spread_sd: jax.Array

    def prior(self, levels: Levels) -> FeedbackPrior:
        """Return the population as users' posteriors start from it."""
        return FeedbackPrior(
            self.weights,
            levels.edges(self.thresholds),
            self.level_sd,
            self.log_spread,
            self.log_spread_sd,
        )


class _Sums(NamedTuple):
    """Of one user or many: moments of weights and level, of the node of the spread, evidence."""

    first: jax.Array
    second: jax.Array
    node: jax.Array
    node_square: jax.Array
    raters: jax.Array
    evidence: jax.Array
    slope: jax.Array
    bend: jax.Array


Sites = tuple[ep.Sites, ...]


def _one_user(
    prior: FeedbackPrior, around: tuple, rows: Feedback, old: ep.Sites, sweeps: int
) -> tuple[ep.Sites, _Sums]:
    """Sites [G, P] after warm sweeps at every spread of the grid, and the user's sums.

    G is 1 for a user without ratings, see `_no_sites`.
    """
    mean, root = around
    tilt = tilt_of(prior.edges, rows)

    def at(spread: jax.Array, sites: ep.Sites) -> tuple:
        scaled = rows_at(mean, root, rows, spread)
        gram = ep.gram_of(scaled)

        def one_sweep(carry: ep.Sites, _: None) -> tuple[ep.Sites, jax.Array]:
            after, evidence, _margins = ep.sweep(scaled, gram, carry, tilt)
            return after, evidence

        new, evidence = jax.lax.scan(one_sweep, sites, None, length=sweeps)
        z, half = ep.weights(scaled, new)
        found, _ = ep.margins(scaled, gram, ep.after_others(new, z[0]))
        cavity = ep.cavity(found, new, scaled.weight)
        return new, evidence[-1], z, ep.inverse(half), cavity

    spreads, log_mass = spread_grid(prior, len(old.precision) > 1)
    new, evidence, z, inverse, cavity = jax.vmap(at)(spreads, old)
    share, center, cov = mixture(log_mass + evidence, z, inverse)
    slope, bend = _edge_terms(prior.edges, rows, cavity, share)
    nodes = jnp.asarray(SPREAD_NODES[: len(share)], share.dtype)
    active = jnp.any(rows.weight > 0).astype(share.dtype)
    rater = jnp.any((rows.weight > 0) & rows.rating).astype(share.dtype)
    return new, _Sums(
        active * center,
        active * (cov + jnp.outer(center, center)),
        rater * (share @ nodes),
        rater * (share @ nodes**2),
        rater,
        active * jax.nn.logsumexp(log_mass + evidence),
        slope,
        bend,
    )


def _edge_terms(
    edges: jax.Array, rows: Feedback, cavity: ep.Cavity, share: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Gradient [K] and Hessian [K, K] of one user's log evidence in the edges."""

    def log_mass(pair: jax.Array, mean: jax.Array, variance: jax.Array) -> jax.Array:
        return tilt_by_band(mean, variance, pair[0], pair[1]).log_mass

    ends = jnp.stack([edges[rows.lower], edges[rows.upper]], axis=-1)
    finite = jnp.isfinite(ends)

    def of_row(pair: jax.Array, known: jax.Array, mean: jax.Array, variance: jax.Array) -> tuple:
        # An infinite edge is no variable.
        def inside(moved: jax.Array) -> jax.Array:
            return log_mass(jnp.where(known, moved, pair), mean, variance)

        point = jnp.where(known, pair, 0)
        return jax.grad(inside)(point), jax.hessian(inside)(point)

    over_rows = jax.vmap(of_row)
    slope, bend = jax.vmap(over_rows, (None, None, 0, 0))(
        ends, finite, cavity.mean, cavity.variance
    )
    by = share[:, None] * jnp.where(cavity.proper, rows.weight[None, :], 0)
    slope = jnp.sum(by[..., None] * slope, axis=0)
    bend = jnp.sum(by[..., None, None] * bend, axis=0)
    which = jnp.stack([rows.lower, rows.upper], axis=-1)
    total = jnp.zeros_like(edges).at[which].add(jnp.where(finite, slope, 0))
    both = jnp.where(finite[:, :, None] & finite[:, None, :], bend, 0)
    matrix = jnp.zeros((len(edges), len(edges)), edges.dtype)
    return total, matrix.at[which[:, :, None], which[:, None, :]].add(both)


def _expect(
    prior: FeedbackPrior, buckets: Sequence[Feedback], sites: Sites, config: BayesConfig
) -> tuple[_Sums, Sites]:
    """Return the summed moments of all users, and the sites to go on from."""
    around = augmented(prior)
    sums, after = None, []
    for bucket, old in zip(buckets, sites, strict=True):
        users = len(bucket.weight)
        old = old if sums is None else ep.after_others(old, sums.evidence)

        def one_chunk(_: None, inputs: tuple) -> tuple:
            each = functools.partial(_one_user, prior, around, sweeps=config.sweeps)
            new, found = jax.vmap(each)(*inputs)
            return None, (new, _summed(found))

        inputs = in_chunks((bucket, old), min(config.user_chunk, users))
        new: ep.Sites
        found: _Sums
        _, (new, found) = jax.lax.scan(one_chunk, None, inputs)
        found = _summed(found)
        sums = found if sums is None else jax.tree.map(jnp.add, sums, found)
        after.append(ep.Sites(*(leaf.reshape(-1, *leaf.shape[2:])[:users] for leaf in new)))
    if sums is None:  # which `fit_feedback` has refused
        raise ValueError("no bucket of users")
    return sums, tuple(after)


def _summed(sums: _Sums) -> _Sums:
    """Sums over the leading axis."""
    return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), sums)


def _newton(levels: Levels, thresholds: jax.Array, slope: jax.Array, bend: jax.Array) -> jax.Array:
    """Thresholds [T] after a Newton step that keeps at least half of every gap between them."""
    if not levels.thresholds:
        return thresholds
    matrix = jnp.asarray(levels.matrix, thresholds.dtype)
    gaps = jnp.asarray(levels.gaps, thresholds.dtype)
    gradient, hessian = matrix.T @ slope[2:], matrix.T @ bend[2:, 2:] @ matrix
    # A threshold that no row tells of stays where it is.
    ridge = jnp.eye(len(thresholds), dtype=thresholds.dtype)
    step = jnp.linalg.solve(ridge - hessian, gradient)
    shrink, gap = -(gaps @ step), gaps @ thresholds
    share = jnp.where(shrink > 0.5 * gap, 0.5 * gap / jnp.where(shrink > 0, shrink, 1), 1)
    return thresholds + jnp.min(share, initial=1.0) * step


@functools.partial(jax.jit, static_argnames=("levels", "config", "free_spread"))
def _em_step(
    population: FeedbackPopulation, buckets: tuple[Feedback, ...], sites: Sites,
    pseudo_users: float | jax.Array, levels: Levels, config: BayesConfig, free_spread: bool,
) -> tuple[FeedbackPopulation, Sites, jax.Array]:  # fmt: skip
    """Return the next population, the sites, and the objective of the one given, per user."""
    prior = population.prior(levels)
    active = sum(jnp.sum(jnp.any(b.weight > 0, axis=1)) for b in buckets)
    users = jnp.maximum(active, 1).astype(prior.edges.dtype)
    sums, sites = _expect(prior, buckets, sites, config)
    penalty = pseudo_users * anisotropy(prior.weights.cov)
    objective = (sums.evidence - penalty) / users
    after = _maximise(population, prior, sums, users, pseudo_users, levels, free_spread)
    return after, sites, objective


def _maximise(
    population: FeedbackPopulation, prior: FeedbackPrior, sums: _Sums, users: jax.Array,
    pseudo_users: float | jax.Array, levels: Levels, free_spread: bool,
) -> FeedbackPopulation:  # fmt: skip
    """Return the population that explains the users' posteriors best."""
    mean, root = augmented(prior)
    size = len(prior.weights.mean)
    first, second = root @ (sums.first / users), root @ (sums.second / users) @ root.T
    center = first[:size]
    cov = second[:size, :size] - jnp.outer(center, center)
    weights = Prior(
        mean[:size] + center, shrunk(0.5 * (cov + cov.T), users, jnp.asarray(pseudo_users))
    )
    raters = jnp.maximum(sums.raters, 1)
    # Users without ratings have the prior's level.
    prior_part = (users - sums.raters) * prior.level_sd**2
    level_sd = jnp.sqrt(jnp.maximum((users * second[size, size] - prior_part) / raters, 0))
    node = sums.node / raters
    about = node if free_spread else jnp.zeros_like(node)
    variance = sums.node_square / raters - 2 * about * node + about**2
    spread_sd = prior.log_spread_sd * jnp.sqrt(jnp.maximum(variance, 0))
    any_rater = sums.raters > 0
    return FeedbackPopulation(
        weights,
        _newton(levels, population.thresholds, sums.slope, sums.bend),
        jnp.where(any_rater, jnp.maximum(level_sd, _LEAST_SD), prior.level_sd),
        prior.log_spread + prior.log_spread_sd * about,
        jnp.where(any_rater, jnp.maximum(spread_sd, _LEAST_SD), prior.log_spread_sd),
    )


@functools.partial(jax.jit, static_argnames="levels")
def _ahead(
    start: FeedbackPopulation, once: FeedbackPopulation, twice: FeedbackPopulation, levels: Levels
) -> FeedbackPopulation:
    """Return where a SQUAREM step from three successive estimates leads."""
    unit = unit_of(twice.weights)

    def place(found: FeedbackPopulation) -> tuple:
        logs = jnp.log(jnp.stack([found.level_sd, found.log_spread_sd]))
        return coordinates(found.weights, unit), found.thresholds, logs, found.log_spread

    weights, thresholds, logs, log_spread = squarem([place(p) for p in (start, once, twice)])
    sound = jnp.all(jnp.asarray(levels.gaps, thresholds.dtype) @ thresholds > 0)
    sds = jnp.clip(jnp.exp(logs), _LEAST_SD, 1 / _LEAST_SD)
    return FeedbackPopulation(
        at_coordinates(weights, unit),
        jnp.where(sound, thresholds, twice.thresholds),
        sds[0],
        log_spread,
        sds[1],
    )


def _no_sites(buckets: Sequence[Feedback]) -> Sites:
    """Sites [U, G, P] of which nothing is known yet, at one spread in a bucket without ratings."""
    found = []
    for bucket in buckets:
        nodes = len(SPREAD_NODES) if bool(jnp.any(bucket.rating)) else 1
        users, rows = bucket.weight.shape
        zero = jnp.zeros((users, nodes, rows), bucket.weight.dtype)
        found.append(ep.Sites(zero, zero))
    return tuple(found)


def _by_raters(bucket: Feedback) -> Iterator[Feedback]:
    """Yield the users with ratings and those without: only the former need the grid of spreads."""
    rater = np.asarray(jnp.any(bucket.rating, axis=1))
    for some in (rater, ~rater):
        if some.any():
            yield bucket if some.all() else Feedback(*(leaf[some] for leaf in bucket))


def _em(
    start: FeedbackPopulation, buckets: tuple[Feedback, ...], pseudo_users: float,
    config: BayesConfig, levels: Levels,
) -> FeedbackPopulation:  # fmt: skip
    """Run EM, accelerated as that of `population.em`."""
    # Without a choice the scale of the weights is that of the ratings alone.
    free = any(bool(jnp.any((b.weight > 0) & ~b.rating)) for b in buckets)
    settings = step_settings(config)

    def step(
        found: FeedbackPopulation, sites: Sites
    ) -> tuple[FeedbackPopulation, Sites, jax.Array]:
        return _em_step(found, buckets, sites, pseudo_users, levels, settings, free)

    ahead = functools.partial(_ahead, levels=levels)
    return accelerated(step, ahead, start, _no_sites(buckets), config)[0]


def _start(buckets: tuple[Feedback, ...], levels: Levels, l2: float) -> FeedbackPopulation:
    """Return a Bradley-Terry model of the choices, and thresholds by how often levels are used."""
    choices = tuple(choices_of(b.vectors, jnp.where(b.rating, 0, b.weight)) for b in buckets)
    everything = tuple(choices_of(b.vectors, b.weight) for b in buckets)
    mean, cov = start_of(choices, l2).mean, start_of(everything, l2).cov
    thresholds = jnp.asarray(_first_thresholds(buckets, levels), mean.dtype)
    one = jnp.ones((), mean.dtype)
    return FeedbackPopulation(
        Prior(mean, cov), thresholds, _FIRST_LEVEL_SD * one, 0 * one, _FIRST_SPREAD_SD * one
    )


def _first_thresholds(buckets: tuple[Feedback, ...], levels: Levels) -> np.ndarray:
    """Thresholds [T] under which levels are as frequent as they are, margins a little spread."""
    lower, upper, weight, rating = (
        np.concatenate([np.asarray(getattr(b, name)).ravel() for b in buckets])
        for name in ("lower", "upper", "weight", "rating")
    )
    found = []
    chosen = (weight > 0) & ~rating
    total = max(weight[chosen].sum(), 1.0)
    edge = 2 + np.arange(levels.strengths)
    for number in edge[1 - int(levels.ties) :]:
        # Rows inside of this edge: ties, and strengths below it.
        inside = chosen & (upper <= number) & (upper >= 2)
        share = (weight[inside].sum() + 0.5) / (total + 1)
        found.append(2 * np.arctanh(share))
    first = 3 + levels.strengths
    for count in levels.ratings:
        mine = (weight > 0) & rating & _of_scale(lower, upper, first, count)
        below = np.array([
            weight[mine & (upper >= 2) & (upper <= first + k)].sum() for k in range(count - 1)
        ])  # fmt: skip
        share = (below + 0.5 * np.arange(1, count)) / (weight[mine].sum() + 0.5 * count)
        found += list(np.log(share) - np.log1p(-share))
        first += count - 1
    return _WIDER * np.array(found)


def _of_scale(lower: np.ndarray, upper: np.ndarray, first: int, count: int) -> np.ndarray:
    last = first + count - 2
    return ((lower >= first) & (lower <= last)) | ((upper >= first) & (upper <= last))


def fit_feedback(
    buckets: Sequence[Feedback],
    levels: Levels,
    config: BayesConfig | None = None,
) -> FeedbackPopulation:
    """Return the population of users, of their levels and spreads, and the common thresholds.

    The number of pseudo-users is the one that every fifth user, held out, prefers.

    Args:
        buckets: feedback of users, those with about equally many rows together.
        levels: of choices and ratings.
        config: see `BayesConfig`.

    Returns:
        The population; see `FeedbackPopulation.prior`.

    Raises:
        InputError: no feedback at all, or as `feedback_posterior`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm import BayesConfig, Feedback, Levels, fit_feedback
        >>> levels = Levels(ratings=(2,))
        >>> rated = jnp.array([[[2.0, 0.0], [-2.0, 0.0]] * 3] * 2)
        >>> thumbs = jnp.array([[1, 0] * 3, [0, 1] * 3])  # two users of opposite taste
        >>> ends, once = levels.rating(0, thumbs), jnp.ones((2, 6))
        >>> rows = Feedback(rated, once > 0, *ends, once)
        >>> found = fit_feedback([rows], levels, BayesConfig(em_steps=3, pseudo_users=(0.0,)))
        >>> bool(found.weights.cov[0, 0] > found.weights.cov[1, 1])
        True
    """
    return fit_all_kinds(buckets, levels, config or BayesConfig())[0]


@one_blas_thread
def fit_all_kinds(
    buckets: Sequence[Feedback],
    levels: Levels,
    config: BayesConfig,
    start: FeedbackPopulation | Prior | None = None,
) -> tuple[FeedbackPopulation, float]:
    """Return the population of `fit_feedback`, and the number of pseudo-users that it has.

    Args:
        buckets, levels: as of `fit_feedback`.
        config: see `BayesConfig`.
        start: where EM starts, such as the population of an earlier run of the same levels, or of
            its weights alone; None for a broad one.

    Raises:
        InputError: as `fit_feedback`.
    """
    parts = tuple(
        part
        for number, bucket in enumerate(buckets)
        for part in _by_raters(
            check_feedback(bucket, levels.num_edges, Sizes(), f"buckets[{number}]")
        )
    )
    if not any(bool(jnp.any(part.weight > 0)) for part in parts):
        raise InputError("buckets: found no weight above 0, expected a row or more; give feedback.")
    judge = functools.partial(
        _em_step, pseudo_users=0.0, levels=levels, config=step_settings(config), free_spread=True
    )
    if not isinstance(start, FeedbackPopulation):
        first = _start(parts, levels, config.l2)
        start = first if start is None else first._replace(weights=start)
    found, number = fit_pseudo_users(
        functools.partial(_em, levels=levels), judge, start, parts, _no_sites(parts), config
    )
    found = found._replace(weights=truncate(found.weights, config.rank))
    return jax.block_until_ready(found), number
