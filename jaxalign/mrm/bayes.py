"""Hierarchical Bradley-Terry: theta_u ~ N(mean, cov), choices logistic in <theta_u, d>.

Fitted by EM with a Laplace E-step. Everything works in z with theta = mean + L z, L L^T = cov: the
Hessian is then at least the identity, so a covariance of any rank is handled without an inverse.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.mrm.config import BayesConfig
from jaxalign.train.blas import one_blas_thread

_HALVINGS = 0.5 ** jnp.arange(6.0)


Ragged = Any  # an array, or a tuple of arrays: a bucket each


class Prior(NamedTuple):
    """What is known of a user before any choice: theta ~ N(mean [E], cov [E, E]).

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm import Prior
        >>> Prior(jnp.zeros(2), jnp.eye(2)).cov.shape
        (2, 2)
    """

    mean: jax.Array
    cov: jax.Array


def _accumulation(*arrays: jax.Array) -> jnp.dtype:
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def factor(cov: jax.Array, rank: int | None = None) -> jax.Array:
    """L [E, r] with L L^T the best rank-r approximation of cov [E, E] (all of it by default)."""
    values, vectors = jnp.linalg.eigh(cov)
    keep = cov.shape[0] if rank is None else min(rank, cov.shape[0])
    values, vectors = values[-keep:], vectors[:, -keep:]
    return vectors * jnp.sqrt(jnp.maximum(values, 0.0))[None, :]


def _penalised_loss(z: jax.Array, margins: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.sum(weight * jax.nn.softplus(-margins)) + 0.5 * jnp.sum(z * z)


def _inverse_factor(design: jax.Array, curvature: jax.Array) -> jax.Array:
    """Factor F of the inverse of H = I + design^T diag(curvature) design, design [P, r].

    With fewer pairs than directions (P < r) the small side is inverted (Woodbury):
    H^-1 = I - F^T F with F [P, r]. Otherwise H^-1 = F^T F with F [r, r].
    """
    pairs, size = design.shape
    scaled = design * jnp.sqrt(curvature)[:, None]
    small = scaled @ scaled.T if pairs < size else scaled.T @ scaled
    identity = jnp.eye(small.shape[0], dtype=design.dtype)
    # What rounding may have taken away, so that the factor exists at any scale of the features.
    floor = jnp.finfo(design.dtype).eps * jnp.trace(small)
    lower = jnp.linalg.cholesky(small + (1 + floor) * identity)
    right = scaled if pairs < size else identity
    return jax.scipy.linalg.solve_triangular(lower, right, lower=True)


def _apply_inverse(half: jax.Array, vector: jax.Array) -> jax.Array:
    product = half.T @ (half @ vector)
    return vector - product if half.shape[0] < half.shape[1] else product


def _inverse(half: jax.Array) -> jax.Array:
    product = half.T @ half
    if half.shape[0] < half.shape[1]:
        return jnp.eye(half.shape[1], dtype=half.dtype) - product
    return product


def _newton(
    z: jax.Array, offset: jax.Array, design: jax.Array, weight: jax.Array, steps: int
) -> tuple[jax.Array, jax.Array]:
    """Damped Newton for one user: the mode [r], and the factor of the last inverse Hessian.

    Each step takes the best of six halvings or none, so the loss never rises. The Hessian is the
    one at the start of the last step: at convergence, and along warm-started EM, that is the
    mode's, and it spares one factorisation in two.
    """
    sizes = jnp.append(_HALVINGS, 0.0).astype(z.dtype)
    rows = min(design.shape)

    def step(carry: tuple, _: None) -> tuple:
        z, _ = carry
        margins = offset + design @ z
        gradient = z - design.T @ (weight * jax.nn.sigmoid(-margins))
        curvature = weight * jax.nn.sigmoid(margins) * jax.nn.sigmoid(-margins)
        half = _inverse_factor(design, curvature)
        direction = _apply_inverse(half, gradient)
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


def _mode(
    z: jax.Array,
    differences: jax.Array,
    weight: jax.Array,
    mean: jax.Array,
    root: jax.Array,
    steps: int,
) -> tuple[jax.Array, jax.Array]:
    """Mode z [r] and inverse Hessian factor of one user, from pairs [P, E] of weight [P]."""
    dtype = _accumulation(differences, mean)
    differences, weight = differences.astype(dtype), weight.astype(dtype)
    return _newton(z, differences @ mean, differences @ root, weight, steps)


def bradley_terry(
    differences: jax.Array, mask: jax.Array, l2: float | jax.Array = 1e-4, steps: int = 12
) -> jax.Array:
    """One Bradley-Terry weight vector for all users: ridge logistic regression by damped Newton.

    Minimises mean softplus(-<theta, d>) + l2/2 * s * |theta|^2, s the mean squared norm of the
    differences, so that the ridge means the same at any feature scale. Bradley and Terry 1952.

    Args:
        differences: [..., E] chosen minus rejected.
        mask: [...] bool or weights.
        l2: ridge.
        steps: Newton steps.

    Returns:
        theta [E].

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm import bradley_terry
        >>> chosen_minus_rejected = jnp.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
        >>> theta = bradley_terry(chosen_minus_rejected, jnp.ones(4), l2=0.1)
        >>> bool(theta[1] > theta[0] > 0)
        True
    """
    dtype = _accumulation(differences)
    d = differences.reshape(-1, differences.shape[-1]).astype(dtype)
    weight = mask.reshape(-1).astype(dtype)
    total = jnp.sum(weight)
    weight = weight / jnp.where(total > 0, total, 1)
    ridge = l2 * jnp.sum(weight * jnp.sum(d * d, axis=-1))
    # The penalty 1/2 |z|^2 of the user's problem, in units where the ridge is one.
    scale = jnp.sqrt(jnp.maximum(ridge, jnp.finfo(dtype).tiny))
    start = jnp.zeros(d.shape[1], dtype)
    z, _ = _newton(start, jnp.zeros(d.shape[0], dtype), d / scale, weight, steps)
    return z / scale


def _modes(
    z: jax.Array,
    differences: jax.Array,
    mask: jax.Array,
    mean: jax.Array,
    root: jax.Array,
    steps: int,
    chunk: int,
    total: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Modes [U, r], and `total` [r, r] plus the inverse Hessians, a chunk of users at a time."""
    users, size = z.shape
    width = min(chunk, users)
    padding = -users % width

    def pad(array: jax.Array) -> jax.Array:
        array = jnp.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1))
        return array.reshape(-1, width, *array.shape[1:])

    real = pad(jnp.ones(users, z.dtype))

    def one_chunk(total: jax.Array, inputs: tuple) -> tuple[jax.Array, jax.Array]:
        z_chunk, d_chunk, m_chunk, real_chunk = inputs
        modes, halves = jax.vmap(lambda z, d, m: _mode(z, d, m, mean, root, steps))(
            z_chunk, d_chunk, m_chunk
        )
        # One matrix product for the whole chunk, in place of an inverse a user.
        tall = (halves * real_chunk[:, None, None]).reshape(-1, root.shape[1])
        product = tall.T @ tall
        if halves.shape[1] < halves.shape[2]:
            product = jnp.sum(real_chunk) * jnp.eye(root.shape[1], dtype=z.dtype) - product
        return total + product, modes

    total, modes = jax.lax.scan(one_chunk, total, (pad(z), pad(differences), pad(mask), real))
    return modes.reshape(-1, size)[:users], total


def em_path(differences: Ragged, mask: Ragged, config: BayesConfig) -> Prior:
    """Every prior along the EM iterations, so that validation can stop where it likes.

    Args:
        differences: [U, P, E] chosen minus rejected; or a tuple of such arrays, for ragged users
            in buckets of about equal length (same E).
        mask: [U, P] bool or weights, or a tuple alike; a user without pairs does not count.
        config: steps, ridge of the start, chunk. `rank` is not applied here.

    Returns:
        Prior with a leading axis: mean [em_steps + 1, E], cov [em_steps + 1, E, E]. Row 0 is the
        start: one Bradley-Terry model and a broad isotropic covariance (a typical pair's reward
        difference has unit variance over users).
    """
    if not isinstance(differences, tuple):
        return em_path((differences,), (jnp.asarray(mask),), config)
    buckets = list(zip(differences, mask, strict=True))
    size, dtype = buckets[0][0].shape[-1], _accumulation(buckets[0][0])
    active = jnp.concatenate([jnp.sum(m, axis=1) > 0 for _, m in buckets]).astype(dtype)
    ends = [sum(len(d) for d, _ in buckets[:count]) for count in range(1, len(buckets))]
    users = jnp.maximum(jnp.sum(active), 1)
    flat = jnp.concatenate([d.reshape(-1, size) for d, _ in buckets]).astype(dtype)
    weight = jnp.concatenate([m.reshape(-1) for _, m in buckets]).astype(dtype)
    mean_norm = jnp.sum(weight * jnp.sum(flat * flat, axis=1)) / jnp.maximum(jnp.sum(weight), 1)
    start = Prior(
        bradley_terry(flat, weight, config.l2),
        jnp.eye(size, dtype=dtype) / jnp.maximum(mean_norm, jnp.finfo(dtype).tiny),
    )

    def step(carry: tuple, _: None) -> tuple:
        prior, theta = carry
        root = factor(prior.cov)
        # Warm start: the last MAP in the new coordinates (singular directions start at 0).
        z = _whiten(root, theta - prior.mean[None])
        # Each bucket waits for the one before: on a CPU of two cores, two batched LAPACK calls at
        # once hold both of XLA's threads and wait for ever. XLA keeps 0 * x, which may be NaN, and
        # so the dependence; it drops an optimization_barrier before it schedules.
        inverses, parts = jnp.zeros((size, size), dtype), []
        for part, (d, m) in zip(jnp.split(z, ends), buckets, strict=True):
            steps, chunk = config.newton_steps, config.user_chunk
            part = part + 0 * inverses[0, 0]
            modes, inverses = _modes(part, d, m, prior.mean, root, steps, chunk, inverses)
            parts.append(modes)
        z = jnp.concatenate(parts)
        # Users without pairs return the prior exactly: taken out, they cannot slow it down.
        idle = jnp.eye(size, dtype=dtype) * (z.shape[0] - users)
        z_mean = jnp.einsum("U,Ui->i", active, z) / users
        second = (inverses - idle + jnp.einsum("U,Ui,Uj->ij", active, z, z)) / users
        spread = second - jnp.outer(z_mean, z_mean)
        new = Prior(prior.mean + root @ z_mean, root @ spread @ root.T)
        new = new._replace(cov=0.5 * (new.cov + new.cov.T))
        return (new, prior.mean[None] + z @ root.T), new

    theta = jnp.broadcast_to(start.mean, (len(active), size))
    path: Prior
    _, path = jax.lax.scan(step, (start, theta), None, length=config.em_steps)
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), start, path)


def _whiten(root: jax.Array, delta: jax.Array) -> jax.Array:
    """z [U, r] of delta [U, E] = L z, for L with orthogonal columns (as `factor` returns)."""
    lengths = jnp.sum(root * root, axis=0)
    floor = jnp.finfo(root.dtype).eps * jnp.maximum(jnp.max(lengths), jnp.finfo(root.dtype).tiny)
    usable = lengths > floor
    inverse = jnp.where(usable, 1.0 / jnp.where(usable, lengths, 1.0), 0.0)
    return (delta @ root) * inverse[None, :]


@one_blas_thread
def fit_prior(differences: jax.Array, mask: jax.Array, config: BayesConfig | None = None) -> Prior:
    """Mean and covariance of user weights over a population, by EM with a Laplace E-step.

    Args:
        differences: [U, P, E] chosen minus rejected, of E features or of K named rewards.
        mask: [U, P] bool or weights of the pairs.
        config: steps and `rank` (the covariance returned is the best approximation of that rank).

    Returns:
        Prior(mean [E], cov [E, E]).

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm import BayesConfig, fit_prior
        >>> likes = jnp.array([[[2.0, 0.0]] * 6, [[-2.0, 0.0]] * 6])  # two users of opposite taste
        >>> prior = fit_prior(likes, jnp.ones((2, 6)), BayesConfig(em_steps=3))
        >>> bool(abs(prior.mean[0]) < 1e-4), bool(prior.cov[0, 0] > prior.cov[1, 1])
        (True, True)
    """
    config = config or BayesConfig()
    path = em_path(jnp.asarray(differences), jnp.asarray(mask), config)
    last = Prior(path.mean[-1], path.cov[-1])
    return jax.block_until_ready(truncate(last, config.rank))


def truncate(prior: Prior, rank: int | None) -> Prior:
    """The prior with the best rank-r approximation of its covariance."""
    if rank is None or rank >= prior.cov.shape[0]:
        return prior
    root = factor(prior.cov, rank)
    return prior._replace(cov=root @ root.T)


@one_blas_thread
def posterior(
    prior: Prior, differences: jax.Array, mask: jax.Array, steps: int = 8
) -> tuple[jax.Array, jax.Array]:
    """Posterior mean (the MAP) and covariance (inverse Hessian) of every user.

    Args:
        prior: mean [E], cov [E, E] of any rank; nothing moves outside its range.
        differences: [U, P, E] the users' choices, chosen minus rejected.
        mask: [U, P] bool or weights; a user without choices gets the prior.
        steps: damped Newton steps.

    Returns:
        mean [U, E], cov [U, E, E].

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm import Prior, posterior
        >>> prior = Prior(jnp.zeros(2), jnp.eye(2))
        >>> choices = jnp.array([[[1.0, 0.0], [1.0, 0.0]]])  # one user, two choices
        >>> mean, cov = posterior(prior, choices, jnp.ones((1, 2)))
        >>> bool(mean[0, 0] > 0), bool(cov[0, 0, 0] < 1), cov[0, 1, 1].item()
        (True, True, 1.0)
    """
    root = factor(prior.cov)

    def one_user(d: jax.Array, m: jax.Array) -> tuple[jax.Array, jax.Array]:
        start = jnp.zeros(root.shape[1], root.dtype)
        z, half = _mode(start, d, m, prior.mean, root, steps)
        return prior.mean + root @ z, root @ _inverse(half) @ root.T

    return jax.block_until_ready(jax.vmap(one_user)(jnp.asarray(differences), jnp.asarray(mask)))


def choice_probability(mean: jax.Array, cov: jax.Array, differences: jax.Array) -> jax.Array:
    """Probability that the first answer of each pair is chosen, the weights integrated out.

    sigmoid(m / sqrt(1 + pi s^2 / 8)) with m, s^2 the mean and variance of <theta, d> (MacKay 1992).

    Args:
        mean: [E] of one user's weights.
        cov: [E, E].
        differences: [P, E].

    Returns:
        [P] in (0, 1).

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm import choice_probability
        >>> mean, pairs = jnp.array([2.0, 0.0]), jnp.array([[1.0, 0.0], [-1.0, 0.0]])
        >>> [f"{p:.2f}" for p in choice_probability(mean, jnp.zeros((2, 2)), pairs)]
        ['0.88', '0.12']
        >>> [f"{p:.2f}" for p in choice_probability(mean, jnp.eye(2) * 9.0, pairs)]
        ['0.72', '0.28']
    """
    variance = jnp.einsum("Pi,ij,Pj->P", differences, cov, differences)
    return _integrated(differences @ mean, variance)


def _integrated(margin: jax.Array, variance: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(margin / jnp.sqrt(1 + jnp.pi * jnp.maximum(variance, 0) / 8))


def predict(
    prior: Prior,
    support: jax.Array,
    support_mask: jax.Array,
    query: jax.Array,
    steps: int = 6,
    chunk: int = 128,
) -> jax.Array:
    """Choice probabilities [U, Q] of query pairs [U, Q, E] after support pairs [U, P, E].

    Users are handled a chunk at a time, so that no [U, E, E] is held.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm import Prior, predict
        >>> prior, pair = Prior(jnp.zeros(1), jnp.eye(1)), jnp.ones((1, 1, 1))
        >>> after = jax.jit(predict)
        >>> before = after(prior, pair, jnp.zeros((1, 1)), pair).item()
        >>> before, after(prior, pair, jnp.ones((1, 1)), pair).item() > before
        (0.5, True)
    """
    root = factor(prior.cov)

    def one_user(inputs: tuple) -> jax.Array:
        d, m, q = inputs
        start = jnp.zeros(root.shape[1], root.dtype)
        z, half = _mode(start, d, m, prior.mean, root, steps)
        design = q @ root
        variance = jnp.sum((design @ half.T) ** 2, axis=-1)
        if half.shape[0] < half.shape[1]:
            variance = jnp.sum(design * design, axis=-1) - variance
        return _integrated(q @ prior.mean + design @ z, variance)

    return jax.lax.map(one_user, (support, support_mask, query), batch_size=chunk)
