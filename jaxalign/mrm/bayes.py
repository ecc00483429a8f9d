"""Hierarchical Bradley-Terry: theta_u ~ N(mean, cov), choices logistic in <theta_u, d>.

A user's posterior is a normal found by expectation propagation (`ep`). Everything works in z with
theta = mean + L z, L L^T = cov, so that a covariance of any rank is handled without an inverse.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.arrays import Sizes, Value, check_array, check_mask, check_number
from jaxalign.mrm import ep
from jaxalign.mrm.chunks import map_users
from jaxalign.mrm.logistic_normal import choice_mass
from jaxalign.padding import kept
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


def check_prior(prior: Prior, sizes: Sizes | None = None) -> Prior:
    """Return a prior as arrays of at least float32.

    Args:
        prior: mean [E], cov [E, E].
        sizes: of the call's dimensions so far, see `jaxalign.arrays`.

    Raises:
        InputError: another shape, NaN or infinity.
    """
    sizes = Sizes() if sizes is None else sizes
    mean = check_array("prior.mean", prior.mean, "E", sizes)
    return Prior(mean, check_array("prior.cov", prior.cov, "E E", sizes))


def check_choices(
    differences: Value,
    mask: Value,
    axes: str,
    sizes: Sizes,
    names: tuple[str, str],
) -> tuple[jax.Array, jax.Array]:
    """Return choices and their weights as arrays, with 0 where the weight is 0.

    Args:
        differences: as in `check_padded_choices`.
        mask: as in `check_padded_choices`.
        axes: as in `check_padded_choices`.
        sizes: as in `check_padded_choices`.
        names: as in `check_padded_choices`.

    Raises:
        InputError: as `check_padded_choices`.
    """
    found, weight = check_padded_choices(differences, mask, axes, sizes, names)
    return kept(weight, found), weight


def check_padded_choices(
    differences: Value,
    mask: Value,
    axes: str,
    sizes: Sizes,
    names: tuple[str, str],
    feature: str = "E",
) -> tuple[jax.Array, jax.Array]:
    """Return choices and their weights as arrays; where the weight is 0, any value may remain.

    Args:
        differences: [*axes, E] chosen minus rejected; any value where the mask is 0.
        mask: [*axes] bool, or weights of 0 or more.
        axes: letters of the leading dimensions, each of which may be 0.
        sizes: of the call's dimensions so far.
        names: of the two arguments.
        feature: letter of the last dimension of the differences.

    Raises:
        InputError: shapes that disagree, a negative weight, or NaN where the mask is above 0.
    """
    own = Sizes(sizes)
    both = f"{axes} {feature}"
    values = check_array(names[0], differences, both, own, empty=axes, finite=False)
    weight = check_mask(names[1], mask, axes, own, empty=axes)
    found = check_array(names[0], values, both, sizes, mask=weight, empty=axes)
    return found, weight


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

    Raises:
        InputError: a concrete factor that is not above 0, or a prior that is not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm import Prior, rescaled
        >>> cooler = rescaled(Prior(jnp.ones(1), jnp.eye(1)), strength=8.0, temperature=2.0)
        >>> cooler.mean.tolist(), cooler.cov.tolist()
        ([0.5], [[2.0]])
    """
    for name, value in (("strength", strength), ("temperature", temperature)):
        check_number(name, value, 0, above=True)
    mean, cov = check_prior(prior)
    return Prior(mean / temperature, strength / temperature**2 * cov)


@one_blas_thread
def posterior(prior: Prior, differences: Value, mask: Value) -> tuple[jax.Array, jax.Array]:
    """Posterior mean and covariance of every user, by expectation propagation to convergence.

    Args:
        prior: mean [E], cov [E, E] of any rank; nothing moves outside its range.
        differences: [U, P, E] the users' choices, chosen minus rejected.
        mask: [U, P] bool, or weights of 0 or more; a user without choices gets the prior. Where it
            is 0, differences may hold any value.

    Returns:
        mean [U, E], cov [U, E, E].

    Raises:
        InputError: shapes that disagree, a negative weight, NaN or infinity; values are looked at
            only where they are concrete, so not under `jit`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm import Prior, posterior
        >>> prior = Prior(jnp.zeros(2), jnp.eye(2))
        >>> choices = jnp.array([[[1.0, 0.0], [1.0, 0.0]]])  # one user, two choices
        >>> mean, cov = posterior(prior, choices, jnp.ones((1, 2)))
        >>> bool(mean[0, 0] > 0), bool(cov[0, 0, 0] < 1), cov[0, 1, 1].item()
        (True, True, 1.0)
    """
    sizes = Sizes()
    prior = check_prior(prior, sizes)
    names = ("differences", "mask")
    pairs, weight = check_choices(differences, mask, "U P", sizes, names)
    return jax.block_until_ready(_posteriors(prior, pairs, weight))


@jax.jit
def _posteriors(
    prior: Prior, differences: jax.Array, weight: jax.Array
) -> tuple[jax.Array, jax.Array]:
    root = factor(prior.cov)

    def one_user(d: jax.Array, m: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows = ep.rows_of(prior.mean, root, d, m)
        return moments(prior.mean, root, rows, ep.converge(rows, ep.no_sites(rows)))

    return jax.vmap(one_user)(differences, weight)


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
        [P] in (0, 1), at least float32.

    Raises:
        InputError: shapes that disagree, or a concrete value that is not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm import choice_probability
        >>> mean, pairs = jnp.array([2.0, 0.0]), jnp.array([[1.0, 0.0], [-1.0, 0.0]])
        >>> [f"{p:.2f}" for p in choice_probability(mean, jnp.zeros((2, 2)), pairs)]
        ['0.88', '0.12']
        >>> [f"{p:.2f}" for p in choice_probability(mean, jnp.eye(2) * 9.0, pairs)]
        ['0.72', '0.28']
    """
    mean, cov, differences = check_user_pairs(mean, cov, differences, "differences")
    return _choice_probability(mean, cov, differences)


def check_user_pairs(
    mean: Value, cov: Value, pairs: Value, name: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return one user's mean [E], cov [E, E] and pairs [P, E] as arrays of one type.

    Args:
        mean: [E].
        cov: [E, E].
        pairs: [P, E].
        name: of the pairs' argument.

    Raises:
        InputError: shapes that disagree, or a concrete value that is not finite.
    """
    sizes = Sizes()
    found = (
        check_array("mean", mean, "E", sizes),
        check_array("cov", cov, "E E", sizes),
        check_array(name, pairs, "P E", sizes, empty="P"),
    )
    dtype = jnp.result_type(*found)
    return found[0].astype(dtype), found[1].astype(dtype), found[2].astype(dtype)


@jax.jit
def _choice_probability(mean: jax.Array, cov: jax.Array, differences: jax.Array) -> jax.Array:
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

    Args:
        prior: mean [E], cov [E, E].
        support: [U, P, E] the users' choices, chosen minus rejected.
        support_mask: [U, P] bool, or weights of 0 or more; where it is 0, the support may hold any
            value.
        query: [U, Q, E] pairs to predict.
        chunk: users at a time.

    Returns:
        [U, Q] in (0, 1), at least float32.

    Raises:
        InputError: shapes that disagree, a negative weight, or a concrete value that is not finite.

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
    sizes = Sizes()
    prior = check_prior(prior, sizes)
    names = ("support", "support_mask")
    pairs, weight = check_choices(support, support_mask, "U P", sizes, names)
    queries = check_array("query", query, "U Q E", sizes, empty="U Q")
    return _predictions(prior, pairs, weight, queries, chunk)


@functools.partial(jax.jit, static_argnames="chunk")
def _predictions(
    prior: Prior, support: jax.Array, weight: jax.Array, query: jax.Array, chunk: int
) -> jax.Array:
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

    return map_users(one_user, (support, weight, query), chunk)
