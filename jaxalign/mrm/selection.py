"""The candidate of a fit that validation users prefer."""

import jax
import numpy as np

from jaxalign.mrm.registry import Candidate, Fitted, UserRewardMethod
from jaxalign.mrm.support_query import SupportQueryData, without_choices


def user_mean_nll(probability: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the negative log-likelihood per choice, averaged per user and then over users.

    Args:
        probability: [C, U, Q] of the choices that were made.
        weight: [U, Q] of the choices; users without any do not count.

    Returns:
        [C] nats.

    Example:
        >>> import numpy as np
        >>> from jaxalign.mrm.selection import user_mean_nll
        >>> user_mean_nll(np.full((1, 2, 3), 0.5), np.ones((2, 3))).round(4)
        array([0.6931])
    """
    # On the host: NumPy times a JAX array would be float32 on the device.
    weight = np.asarray(weight, np.float64)
    loss = -np.log(np.clip(probability.astype(np.float64), 1e-12, None))
    total = weight.sum(-1)
    per_user = np.sum(loss * weight, -1) / np.maximum(total, 1)
    return per_user[..., total > 0].mean(-1)


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
        >>> from jaxalign.mrm.support_query import SupportQueryData
        >>> import jax.numpy as jnp
        >>> from jaxalign.data.batching import Pairs
        >>> from jaxalign.mrm.registry import make_method
        >>> one = jnp.zeros((1, 1), jnp.int32)
        >>> pair = Pairs(one, one + 1, jnp.ones((1, 1)), one)
        >>> fitted = {"theta": jnp.array([[-1.0], [1.0]])}
        >>> items = jnp.array([[1.0], [0.0]])
        >>> candidate, loss = select(make_method("bt"), fitted, items, SupportQueryData(pair, pair))
        >>> candidate, round(loss, 4)
        ({'ridge': 1}, 0.3133)
    """
    candidates = method.candidates(fitted)
    probability = method.predict(fitted, candidates, features, users.support, users.query)
    losses = user_mean_nll(probability, users.query.weight)
    best = int(np.argmin(losses))
    return candidates[best], float(losses[best])


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
        adapted: whether the support choices are read; without them users are strangers.
    """
    support = users.support if adapted else without_choices(users.support)
    return method.predict(fitted, [candidate], features, support, users.query)[0]
