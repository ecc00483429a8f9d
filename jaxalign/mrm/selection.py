"""The candidate of a fit that validation users prefer."""

from collections.abc import Iterator

import jax
import numpy as np

from jaxalign.mrm.registry import Candidate, Fitted, UserRewardMethod
from jaxalign.mrm.support_query import SupportQueryData, SupportQueryPart, without_choices


def user_nll(probability: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the negative log-likelihood per choice of each user.

    Args:
        probability: [C, U, Q] of the choices that were made.
        weight: [U, Q] of the choices.

    Returns:
        [C, U] nats, NaN for a user without choices.

    Example:
        >>> import numpy as np
        >>> from jaxalign.mrm.selection import user_nll
        >>> user_nll(np.full((1, 2, 3), 0.5), np.array([[1, 1, 1], [0.25, 0, 0]])).round(4)
        array([[0.6931, 0.6931]])
    """
    # On the host: NumPy times a JAX array would be float32 on the device.
    weight = np.asarray(weight, np.float64)
    loss = -np.log(np.clip(probability.astype(np.float64), 1e-12, None))
    total = weight.sum(-1)
    return np.where(total > 0, np.sum(loss * weight, -1) / np.where(total > 0, total, 1), np.nan)


def select(
    method: UserRewardMethod, fitted: Fitted, features: jax.Array, users: SupportQueryData
) -> tuple[Candidate, float]:
    """Return the candidate with the least validation loss, and that loss.

    Args:
        method: what was fitted.
        fitted: its arrays.
        features: [I, D] items that the users' choices point into.
        users: the validation users.

    Example:
        >>> from jaxalign.mrm.selection import select
        >>> from jaxalign.mrm.support_query import SupportQueryData, one_bucket
        >>> import jax.numpy as jnp
        >>> from jaxalign.data.batching import Pairs
        >>> from jaxalign.mrm.registry import make_method
        >>> one = jnp.zeros((1, 1), jnp.int32)
        >>> pair = Pairs(one, one + 1, jnp.ones((1, 1)), one)
        >>> fitted = {"theta": jnp.array([[-1.0], [1.0]])}
        >>> items = jnp.array([[1.0], [0.0]])
        >>> users = SupportQueryData(one_bucket(pair), one_bucket(pair))
        >>> candidate, loss = select(make_method("bt"), fitted, items, users)
        >>> candidate, round(loss, 4)
        ({'ridge': 1}, 0.3133)
    """
    losses = candidate_losses(method, fitted, features, users)
    means = losses[:, np.isfinite(losses[0])].mean(1)
    best = int(np.argmin(means))
    return method.candidates(fitted)[best], float(means[best])


def candidate_losses(
    method: UserRewardMethod,
    fitted: Fitted,
    features: jax.Array,
    users: SupportQueryData,
    adapted: bool = True,
) -> np.ndarray:
    """Return the negative log-likelihood per choice of every user under every candidate.

    Args:
        method: what was fitted.
        fitted: its arrays.
        features: [I, D] items that the users' choices point into.
        users: U of them.
        adapted: whether the support choices are read.

    Returns:
        [C, U] nats, NaN for a user without query choices.
    """
    candidates = method.candidates(fitted)
    losses = np.empty((len(candidates), users.query.users))
    for members, support, query, details in _buckets(users, adapted):
        found = method.each_prediction(fitted, candidates, features, support, query, details)
        for number, probability in enumerate(found):
            losses[number, members] = user_nll(probability[None], query.weight)[0]
    return losses


def _buckets(users: SupportQueryData, adapted: bool) -> Iterator[SupportQueryPart]:
    """Each bucket of users, with no support to be read unless `adapted`."""
    for part in users.parts():
        if adapted:
            yield part
            continue
        details = None if part.details is None else without_choices(part.details)
        yield part._replace(support=without_choices(part.support), details=details)


def predict(
    method: UserRewardMethod,
    fitted: Fitted,
    candidate: Candidate,
    features: jax.Array,
    users: SupportQueryData,
    adapted: bool = True,
) -> np.ndarray:
    """Return probabilities [U, Q] of users' query choices under one candidate.

    Args:
        method: what was fitted.
        fitted: its arrays.
        candidate: the chosen one.
        features: [I, D].
        users: whose choices.
        adapted: whether the support choices are read; without them all users are predicted alike.
    """
    width = max((part.weight.shape[1] for part in users.query.parts), default=1)
    probability = np.full((users.query.users, width), 0.5, np.float32)
    for members, support, query, details in _buckets(users, adapted):
        (found,) = method.each_prediction(fitted, [candidate], features, support, query, details)
        probability[members, : found.shape[1]] = found
    return probability
