"""Hierarchical Bradley-Terry: theta_u ~ N(mean, cov), choices logistic in <theta_u, d>.

A user's posterior is a normal found by expectation propagation (`ep`). Everything works in z with
theta = mean + L z, L L^T = cov, so that a covariance of any rank is handled without an inverse.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.mrm import ep
from jaxalign.mrm.logistic_normal import choice_mass
from jaxalign.train.blas import one_blas_thread


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


def factor(cov: jax.Array, rank: int | None = None) -> jax.Array:
    """L [E, r] with L L^T the best rank-r approximation of cov [E, E] (all of it by default)."""
    values, vectors = jnp.linalg.eigh(cov)
    keep = cov.shape[0] if rank is None else min(rank, cov.shape[0])
    values, vectors = values[-keep:], vectors[:, -keep:]
    return vectors * jnp.sqrt(jnp.maximum(values, 0.0))[None, :]


def truncate(prior: Prior, rank: int | None) -> Prior:
    """The prior with the best rank-r approximation of its covariance."""
    if rank is None or rank >= prior.cov.shape[0]:
        return prior
    root = factor(prior.cov, rank)
    return prior._replace(cov=root @ root.T)


def rescaled(prior: Prior, strength: float | jax.Array, temperature: float | jax.Array) -> Prior:
    """The prior of users who differ more or less, and whose choices are noisier or surer.

    Margins are divided by the temperature, and the covariance is multiplied by the strength, so
    that posteriors, predictions and questions from the result all have both.

    Args:
        prior: mean [E], cov [E, E].
        strength: factor on the covariance, above 0; 1 leaves it.
        temperature: above 0; 1 leaves the prior, 2 halves every weight.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm import Prior, rescaled
        >>> cooler = rescaled(Prior(jnp.ones(1), jnp.eye(1)), strength=8.0, temperature=2.0)
        >>> cooler.mean.tolist(), cooler.cov.tolist()
        ([0.5], [[2.0]])
    """
    return Prior(prior.mean / temperature, strength / temperature**2 * prior.cov)


@one_blas_thread
def posterior(prior: Prior, differences: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Posterior mean and covariance of every user, by expectation propagation to convergence.

    Args:
        prior: mean [E], cov [E, E] of any rank; nothing moves outside its range.
        differences: [U, P, E] the users' choices, chosen minus rejected.
        mask: [U, P] bool or weights; a user without choices gets the prior.

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
        rows = ep.rows_of(prior.mean, root, d, m)
        return moments(prior.mean, root, rows, ep.converge(rows, ep.no_sites(rows)))

    return jax.block_until_ready(jax.vmap(one_user)(jnp.asarray(differences), jnp.asarray(mask)))


def moments(
    mean: jax.Array, root: jax.Array, rows: ep.ChoiceRows, sites: ep.Sites
) -> tuple[jax.Array, jax.Array]:
    """Mean [E] and covariance [E, E] of one user's weights mean + root z under the sites."""
    z, half = ep.weights(rows, sites)
    return mean + root @ z, root @ ep.inverse(half) @ root.T


def choice_probability(mean: jax.Array, cov: jax.Array, differences: jax.Array) -> jax.Array:
    """Probability that the first answer of each pair is chosen, the weights integrated out.

    E[sigmoid(x)] with x = <theta, d> normal, to 1e-8.

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
    return choice_mass(differences @ mean, variance)


def predict(
    prior: Prior,
    support: jax.Array,
    support_mask: jax.Array,
    query: jax.Array,
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
        rows = ep.rows_of(prior.mean, root, d, m)
        z, half = ep.weights(rows, ep.converge(rows, ep.no_sites(rows)))
        design = q @ root
        variance = jnp.sum((design @ half.T) ** 2, axis=-1)
        if half.shape[0] < half.shape[1]:
            variance = jnp.sum(design * design, axis=-1) - variance
        return choice_mass(q @ prior.mean + design @ z, variance)

    return jax.lax.map(one_user, (support, support_mask, query), batch_size=chunk)
