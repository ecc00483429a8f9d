"""Which users' choices say too little to adapt to them: the gate on the support alone."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data.preferences import RowDetails
from jaxalign.mrm.adaptation import expected_gain
from jaxalign.mrm.adapted_users import is_alike
from jaxalign.mrm.calibrated import moved
from jaxalign.mrm.chunks import map_users
from jaxalign.mrm.logistic_normal import choice_mass
from jaxalign.mrm.model import UserModel, infer_feedback
from jaxalign.mrm.sites import Sites
from jaxalign.runs.user_store import UserStore
from jaxalign.train.blas import one_blas_thread

_AT_ONCE, _COVARIANCES = 4096, 256


def left_alone(
    model: UserModel,
    mean: np.ndarray,
    rows: np.ndarray,
    sites: Sites | None,
    details: RowDetails | None = None,
) -> np.ndarray:
    """Return which users the gate leaves alone, from what their support choices say.

    Args:
        model: whose method represents users by weights.
        mean: [U, K] of the users' own weights.
        rows: [U, P, K] differences of base rewards of their choices.
        sites: of the choices [U, P]; None where the method has no posterior.
        details: [U, P] of a model that reads ratings, in place of the sites.

    Returns:
        [U] bool.
    """
    gate = model.gate
    if not gate.adapts:
        return np.ones(len(mean), bool)
    if gate.support <= 0 or model.reference is None:
        return np.zeros(len(mean), bool)
    pairs = np.asarray(model.reference, np.float32)
    cov = model.population()[1]
    variance = None
    if details is not None:
        variance = np.concatenate([
            np.einsum("RK,UKJ,RJ->UR", pairs, found.cov, pairs, optimize=True)
            for found in (infer_feedback(model, *part) for part in _in_parts(rows, details))
        ])  # fmt: skip
    elif cov is not None and sites is not None:
        variance = np.asarray(_variances(jnp.asarray(cov), rows, sites.precision, pairs))
    return _reference_gain(model, pairs, mean @ pairs.T, variance) < gate.support


def posterior_gain(model: UserModel, mean: np.ndarray, cov: np.ndarray) -> float | None:
    """Return the gain that a user is expected to have on the pairs of the gate, in nats per pair.

    Args:
        model: whose method represents users by weights.
        mean: [K] posterior mean of the user's weights.
        cov: [K, K] posterior covariance.

    Returns:
        None where the gate does not look at the support.
    """
    if model.gate.support <= 0 or model.reference is None:
        return None
    pairs = np.asarray(model.reference, np.float32)
    variance = np.einsum("RK,KJ,RJ->R", pairs, cov, pairs)
    return float(_reference_gain(model, pairs, (pairs @ mean)[None], variance[None])[0])


def _reference_gain(
    model: UserModel, pairs: np.ndarray, margin: np.ndarray, variance: np.ndarray | None
) -> np.ndarray:
    """Expected gains [U] of users over the population, from their margins [U, R] of pairs [R, K].

    Without variances [U, R] of the margins, weights are taken to be certain.
    """
    common, cov = model.population()
    before, after = np.zeros(len(pairs), np.float32), np.zeros_like(margin)
    if cov is not None and variance is not None:
        before, after = np.einsum("RK,KJ,RJ->R", pairs, cov, pairs), variance
    effects = np.zeros(()) if model.reference_effects is None else model.reference_effects
    adapted, unadapted = (
        moved(np.asarray(choice_mass(jnp.asarray(m), jnp.asarray(v))), effects, model.temperature)
        for m, v in ((margin, after), (common @ pairs.T, before))
    )
    return expected_gain(adapted, unadapted, np.ones(len(pairs)))


def _in_parts(rows: np.ndarray, details: RowDetails) -> Iterator[tuple[np.ndarray, RowDetails]]:
    """Rows of some users at a time, whose covariances are not held for all."""
    for start in range(0, len(rows), _COVARIANCES):
        some = slice(start, start + _COVARIANCES)
        yield rows[some], RowDetails(*(array[some] for array in details))


@one_blas_thread
def _variances(
    cov: jax.Array, rows: np.ndarray, precision: np.ndarray, pairs: np.ndarray
) -> jax.Array:
    return jax.block_until_ready(_all_variances(cov, rows, precision, pairs))


@jax.jit
def _all_variances(
    cov: jax.Array, rows: jax.Array, precision: jax.Array, pairs: jax.Array
) -> jax.Array:
    """Posterior variances [U, R] of the margins of pairs [R, K], by Woodbury."""
    spread = pairs @ cov
    prior = jnp.sum(spread * pairs, axis=1)

    def one_user(inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
        design, sites = inputs
        scaled = design * jnp.sqrt(sites)[:, None]
        gram = jnp.eye(len(scaled), dtype=scaled.dtype) + scaled @ cov @ scaled.T
        half = jax.scipy.linalg.solve_triangular(
            jnp.linalg.cholesky(gram), scaled @ spread.T, lower=True
        )
        return prior - jnp.sum(half * half, axis=0)

    return map_users(one_user, (rows, precision), 128)


def served_weights(
    model: UserModel,
    mean: np.ndarray,
    rows: np.ndarray,
    sites: Sites | None,
    details: RowDetails | None = None,
) -> np.ndarray:
    """Return the weights [U, K] that users are served: the population's where they are left alone.

    Args:
        model: whose method may represent users by weights.
        mean: [U, K] of the users' own weights; [U, 0] for a method without weights.
        rows: [U, P, K] of their choices.
        sites: of the choices; None where the method has no posterior.
        details: as of `left_alone`.
    """
    if not (model.gate.by_support and mean.shape[1]):
        return mean
    common = model.population()[0].astype(mean.dtype)
    return np.where(left_alone(model, mean, rows, sites, details)[:, None], common, mean)


def count_left_alone(model: UserModel, users: UserStore) -> int:
    """Return how many adapted users have the population's weights because the gate says so."""
    if not (model.gate.by_support and users.about.weights):
        return 0
    common = model.population()[0]
    return sum(int(is_alike(weights, common).sum()) for _, weights in users.weights(_AT_ONCE))
