"""The population of users, theta_u ~ N(mean, cov), from their choices: EM around EP posteriors."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.arrays import Sizes, check_scale
from jaxalign.errors import InputError
from jaxalign.mrm import ep
from jaxalign.mrm.bayes import Prior, check_choices, factor, truncate
from jaxalign.mrm.chunks import in_chunks
from jaxalign.mrm.config import BayesConfig
from jaxalign.mrm.em import accelerated, fit_pseudo_users, squarem, step_settings
from jaxalign.mrm.newton import bradley_terry
from jaxalign.train.blas import one_blas_thread

_SIZE_STEPS = 50


class Choices(NamedTuple):
    """Choices of users with about equally many.

    Attributes:
        differences: [U, P, E] chosen minus rejected; finite in padding too.
        weight: [U, P] how often each counts, 0 for padding.
    """

    differences: jax.Array
    weight: jax.Array


Buckets = tuple[Choices, ...]
BucketSites = tuple[ep.Sites, ...]


class Moments(NamedTuple):
    """Sums over users of their posteriors in z, theta = mean + L z.

    Attributes:
        first: [r] of the means.
        second: [r, r] of the covariances and the outer products of the means.
        evidence: of the log probabilities of their choices.
    """

    first: jax.Array
    second: jax.Array
    evidence: jax.Array


def expect(
    prior: Prior, buckets: Buckets, sites: BucketSites, config: BayesConfig
) -> tuple[Moments, BucketSites]:
    """Return the users' summed moments after a few warm sweeps, and the sites to go on from.

    Args:
        prior: mean [E], cov [E, E].
        buckets: choices of U users in all.
        sites: of their choices, from the step before.
        config: number of sweeps, and users at once.
    """
    root, dtype = factor(prior.cov), prior.mean.dtype
    size = root.shape[1]
    total = Moments(jnp.zeros(size, dtype), jnp.zeros((size, size), dtype), jnp.zeros((), dtype))
    after = []
    for bucket, old in zip(buckets, sites, strict=True):
        old = ep.after_others(old, total.second[0, 0])
        total, new = _expect_bucket(prior.mean, root, total, bucket, old, config)
        after.append(new)
    return total, tuple(after)


def _expect_bucket(
    mean: jax.Array,
    root: jax.Array,
    total: Moments,
    bucket: Choices,
    sites: ep.Sites,
    config: BayesConfig,
) -> tuple[Moments, ep.Sites]:
    """Add the moments of a bucket's users to `total`, a chunk of users at a time."""
    users = len(bucket.weight)

    def one_user(d: jax.Array, m: jax.Array, old: ep.Sites) -> tuple:
        rows = ep.rows_of(mean, root, d, m)
        gram = ep.gram_of(rows)

        def one_sweep(carry: ep.Sites, _: None) -> tuple[ep.Sites, jax.Array]:
            after, evidence, _margins = ep.sweep(rows, gram, carry)
            return after, evidence

        new, evidence = jax.lax.scan(one_sweep, old, None, length=config.sweeps)
        z, half = ep.weights(rows, new)
        active = jnp.any(rows.weight > 0)
        # What a user without choices has would be the prior again: left out.
        return new, active * z, active * half, active * evidence[-1], active.astype(z.dtype)

    def one_chunk(total: Moments, inputs: tuple) -> tuple[Moments, ep.Sites]:
        new, z, half, evidence, active = jax.vmap(one_user)(*inputs)
        # One matrix product for the whole chunk, in place of an inverse a user.
        tall = half.reshape(-1, half.shape[2])
        inverses = tall.T @ tall
        if half.shape[1] < half.shape[2]:
            inverses = jnp.sum(active) * jnp.eye(half.shape[2], dtype=z.dtype) - inverses
        return Moments(
            total.first + jnp.sum(z, axis=0),
            total.second + inverses + z.T @ z,
            total.evidence + jnp.sum(evidence),
        ), new

    inputs = in_chunks((*bucket, sites), min(config.user_chunk, users))
    total, new = jax.lax.scan(one_chunk, total, inputs)
    return total, jax.tree.map(lambda site: site.reshape(-1, site.shape[2])[:users], new)


def maximise(prior: Prior, moments: Moments, users: jax.Array, pseudo_users: jax.Array) -> Prior:
    """Return the prior that explains the users' posteriors best, its covariance shrunk.

    Args:
        prior: that the moments were taken under.
        moments: summed over the users.
        users: how many.
        pseudo_users: how many users an isotropic covariance counts for.
    """
    root = factor(prior.cov)
    first = moments.first / users
    spread = moments.second / users - jnp.outer(first, first)
    cov = root @ spread @ root.T
    cov = 0.5 * (cov + cov.T)
    return Prior(prior.mean + root @ first, shrunk(cov, users, pseudo_users))


def shrunk(cov: jax.Array, users: jax.Array, pseudo_users: jax.Array) -> jax.Array:
    """Return the most probable covariance [E, E] of users whose second moment is cov.

    The pseudo-users are an inverse Wishart prior around s I; s, too, is the most probable one: the
    harmonic mean of the variances that come out.
    """
    values, vectors = jnp.linalg.eigh(cov)
    values = jnp.maximum(values, jnp.finfo(cov.dtype).tiny)
    share = pseudo_users / (users + pseudo_users)

    def again(size: jax.Array, _: None) -> tuple[jax.Array, None]:
        return 1 / jnp.mean(1 / ((1 - share) * values + share * size)), None

    size, _ = jax.lax.scan(again, jnp.mean(values), None, length=_SIZE_STEPS)
    return (vectors * ((1 - share) * values + share * size)[None, :]) @ vectors.T


def no_sites(buckets: Buckets) -> BucketSites:
    """Return the sites of choices of which nothing is known yet."""
    return tuple(ep.Sites(jnp.zeros_like(b.weight), jnp.zeros_like(b.weight)) for b in buckets)


@functools.partial(jax.jit, static_argnames="l2")
def start_of(buckets: Buckets, l2: float) -> Prior:
    """Return one Bradley-Terry model and a broad isotropic covariance.

    Under the covariance a typical pair's reward difference has unit variance over users.
    """
    size = buckets[0].differences.shape[-1]
    dtype = jnp.promote_types(buckets[0].differences.dtype, jnp.float32)
    flat = jnp.concatenate([b.differences.reshape(-1, size) for b in buckets]).astype(dtype)
    weight = jnp.concatenate([b.weight.reshape(-1) for b in buckets]).astype(dtype)
    norms = jnp.sum(flat**2, axis=1)
    total = jnp.sum(weight)
    mean_norm = jnp.sum(weight * norms) / jnp.where(total > 0, total, 1)
    variance = 1 / jnp.maximum(mean_norm, jnp.finfo(dtype).tiny)
    return Prior(bradley_terry(flat, weight, l2), jnp.eye(size, dtype=dtype) * variance)


def em_step(
    prior: Prior,
    buckets: Buckets,
    sites: BucketSites,
    pseudo_users: float | jax.Array,
    config: BayesConfig,
) -> tuple[Prior, BucketSites, jax.Array]:
    """Return the next prior, the sites, and the objective of the prior that was given.

    The objective is the users' log evidence less the penalty of the pseudo-users, per user.

    Args:
        prior: the last estimate.
        buckets: choices of the users.
        sites: of their choices, from the step before.
        pseudo_users: see `maximise`.
        config: number of sweeps, and users at once.
    """
    return _em_step(prior, buckets, sites, pseudo_users, step_settings(config))


@functools.partial(jax.jit, static_argnames="config")
def _em_step(
    prior: Prior,
    buckets: Buckets,
    sites: BucketSites,
    pseudo_users: float | jax.Array,
    config: BayesConfig,
) -> tuple[Prior, BucketSites, jax.Array]:
    active = sum(jnp.sum(jnp.any(b.weight > 0, axis=1)) for b in buckets)
    users = jnp.maximum(active, 1).astype(prior.mean.dtype)
    moments, sites = expect(prior, buckets, sites, config)
    objective = (moments.evidence - pseudo_users * anisotropy(prior.cov)) / users
    return maximise(prior, moments, users, jnp.asarray(pseudo_users)), sites, objective


class EMResult(NamedTuple):
    """Where EM ended, and after how many steps."""

    prior: Prior
    steps: int


def em(start: Prior, buckets: Buckets, pseudo_users: float, config: BayesConfig) -> EMResult:
    """Run EM, accelerated, until a cycle of three steps gains `config.least_gain` or less.

    The acceleration is in the mean and the logarithm of the covariance, so that it stays one.

    Args:
        start: the first estimate.
        buckets: choices of the users.
        pseudo_users: see `maximise`.
        config: limits and sweeps.
    """

    def step(prior: Prior, sites: BucketSites) -> tuple[Prior, BucketSites, jax.Array]:
        return em_step(prior, buckets, sites, pseudo_users, config)

    return EMResult(*accelerated(step, _extrapolated, start, no_sites(buckets), config))


def anisotropy(cov: jax.Array) -> jax.Array:
    """What one pseudo-user takes from the objective: 0 for equal variances, else more."""
    values = jnp.linalg.eigvalsh(cov)
    floor = jnp.finfo(cov.dtype).eps * values[-1] + jnp.finfo(cov.dtype).tiny
    values = jnp.maximum(values, floor)
    relative = values / jnp.mean(values)
    return 0.5 * (len(values) * jnp.log(jnp.mean(1 / relative)) + jnp.sum(jnp.log(relative)))


def _log_cov(cov: jax.Array) -> jax.Array:
    """Return the matrix logarithm of a covariance [E, E]."""
    values, vectors = jnp.linalg.eigh(cov)
    dtype = cov.dtype
    floor = jnp.finfo(dtype).eps * jnp.maximum(values[-1], 0) + jnp.finfo(dtype).tiny
    return (vectors * jnp.log(jnp.maximum(values, floor))[None, :]) @ vectors.T


def _exp_cov(log: jax.Array) -> jax.Array:
    """Return the covariance whose matrix logarithm is a symmetric matrix [E, E]."""
    values, vectors = jnp.linalg.eigh(log)
    cov = (vectors * jnp.exp(values)[None, :]) @ vectors.T
    return 0.5 * (cov + cov.T)


@jax.jit
def _extrapolated(start: Prior, once: Prior, twice: Prior) -> Prior:
    """Return where a SQUAREM step from three successive estimates leads."""
    unit = unit_of(twice)
    return at_coordinates(squarem([coordinates(p, unit) for p in (start, once, twice)]), unit)


def unit_of(prior: Prior) -> jax.Array:
    """Return the root mean square standard deviation of the weights, above 0."""
    unit = jnp.sqrt(jnp.mean(jnp.diagonal(prior.cov)))
    return jnp.maximum(unit, jnp.finfo(unit.dtype).tiny)


def coordinates(prior: Prior, unit: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the coordinates that EM is accelerated in: mean in units, log of the covariance."""
    return prior.mean / unit, _log_cov(prior.cov)


def at_coordinates(place: tuple[jax.Array, jax.Array], unit: jax.Array) -> Prior:
    """Return the prior of some coordinates."""
    return Prior(place[0] * unit, _exp_cov(place[1]))


class FittedPopulation(NamedTuple):
    """A prior, and the number of pseudo-users that it was fitted with."""

    prior: Prior
    pseudo_users: float


@one_blas_thread
def fit_population(
    buckets: Buckets, config: BayesConfig, start: Prior | None = None
) -> FittedPopulation:
    """Fit the population, with the number of pseudo-users that held-out users prefer.

    Args:
        buckets: choices of the users, those with about equally many together.
        config: see `BayesConfig`.
        start: where EM starts, such as the population of an earlier run; None for a broad one.
    """

    def fit(prior: Prior, some: Buckets, pseudo_users: float, limits: BayesConfig) -> Prior:
        return em(prior, some, pseudo_users, limits).prior

    judge = functools.partial(em_step, pseudo_users=0.0, config=config)
    first = start_of(buckets, config.l2) if start is None else start
    found, number = fit_pseudo_users(fit, judge, first, buckets, no_sites(buckets), config)
    return FittedPopulation(jax.block_until_ready(truncate(found, config.rank)), number)


def fit_prior(differences: jax.Array, mask: jax.Array, config: BayesConfig | None = None) -> Prior:
    """Mean and covariance of user weights over a population, by EM around users' EP posteriors.

    Args:
        differences: [U, P, E] chosen minus rejected, of E features or of K named rewards.
        mask: [U, P] bool, or weights of the pairs of 0 or more; a user without pairs does not
            count. Where it is 0, differences may hold any value.
        config: limits, pseudo-users and `rank` (the covariance returned is the best approximation
            of that rank).

    Returns:
        Prior(mean [E], cov [E, E]).

    Raises:
        InputError: shapes that disagree, no choice at all, a negative weight, NaN or infinity where
            the mask is above 0, or differences whose squares are no numbers of this precision.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm import BayesConfig, fit_prior
        >>> likes = jnp.array([[[2.0, 0.0]] * 6, [[-2.0, 0.0]] * 6])  # two users of opposite taste
        >>> prior = fit_prior(likes, jnp.ones((2, 6)), BayesConfig(em_steps=3, pseudo_users=(0.0,)))
        >>> bool(abs(prior.mean[0]) < 1e-4), bool(prior.cov[0, 0] > prior.cov[1, 1])
        (True, True)
    """
    names = ("differences", "mask")
    pairs, weight = check_choices(differences, mask, "U P", Sizes(), names)
    if not bool(jnp.any(weight > 0)):
        raise InputError("mask: found no weight above 0, expected a choice or more; give choices.")
    check_scale("differences", pairs)
    return fit_population((choices_of(pairs, weight),), config or BayesConfig()).prior


def choices_of(differences: jax.Array, mask: jax.Array) -> Choices:
    """Return choices [U, P, E] and their weights [U, P] as EM takes them."""
    found = jnp.asarray(differences)
    dtype = jnp.promote_types(found.dtype, jnp.float32)
    return Choices(found, jnp.asarray(mask).astype(dtype))
