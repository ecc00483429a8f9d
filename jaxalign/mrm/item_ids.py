"""What items are to a control that reads no text: their numbers, or factors of who chose them.

Up to a few hundred items are one-hot columns. Beyond, the covariance of users' weights over all
items would be too large, and a few factors stand for it: the effect that each item has on all
users, and the leading directions in which users depart from those effects. Both come from choices
alone, by sparse products, so that any number of items will do.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from jaxalign.data.batching import Pairs
from jaxalign.mrm.item_effects import count_pairs, fit_one_model

MOST_ONE_HOT = 256
_FACTORS = 32
_TAUS = (0.4, 0.8, 1.6, 3.2)
_FOLDS = 5
_NO_RIDGE = 1.0  # of features that are all zero

Host = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""User, chosen item, rejected item and weight of every choice [N]."""


def id_features(parts: Sequence[Pairs], items: int, factors: int = _FACTORS) -> np.ndarray:
    """Return features [I, D] of items by their numbers; zeros for an item without choices.

    Args:
        parts: choices [U, P] of the training users, in buckets.
        items: number of items I.
        factors: directions of users' departures that are kept where items are many.

    Example:
        >>> import numpy as np
        >>> from jaxalign.data.batching import Pairs
        >>> from jaxalign.mrm.item_ids import id_features
        >>> one = np.ones((1, 1), np.int32)
        >>> id_features([Pairs(one, 0 * one, one, one)], items=3).tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    choices = _flat(parts)
    if items <= MOST_ONE_HOT:
        known = np.zeros(items, np.float32)
        known[choices[1]] = known[choices[2]] = 1
        return np.diag(known)
    effects = _effects(choices, items)
    parts_of = (effects[:, None], _departures(choices, effects, factors))
    scaled = [columns / max(_size(columns), np.finfo(float).tiny) for columns in parts_of]
    return np.concatenate(scaled, axis=1).astype(np.float32)


def _size(columns: np.ndarray) -> float:
    """Root of the mean squared length of the rows."""
    return float(np.sqrt(np.mean(np.sum(columns**2, axis=1))))


def _flat(parts: Sequence[Pairs]) -> Host:
    first, arrays = 0, []
    for part in parts:
        weight = np.asarray(part.weight)
        user = np.broadcast_to(first + np.arange(len(weight))[:, None], weight.shape)
        real = weight > 0
        whole = (user, part.chosen, part.rejected, weight)
        arrays.append([np.asarray(array)[real] for array in whole])
        first += len(weight)
    user, chosen, rejected, weight = (np.concatenate(a) for a in zip(*arrays, strict=True))
    return user, chosen, rejected, weight.astype(np.float64)


def _effects(choices: Host, items: int) -> np.ndarray:
    """Effects [I] of the items on all users, their spread chosen by every fifth user."""
    held = choices[0] % _FOLDS == _FOLDS - 1
    tau = _TAUS[-1]
    if held.any() and not held.all():
        fitted = [_fit([array[~held] for array in choices], items, tau) for tau in _TAUS]
        _, chosen, rejected, weight = (array[held] for array in choices)
        losses = [weight @ np.logaddexp(0, b[rejected] - b[chosen]) for b in fitted]
        tau = _TAUS[int(np.argmin(losses))]
    return _fit(list(choices), items, tau)


_fit_effects = jax.jit(fit_one_model)


def _fit(choices: list[np.ndarray], items: int, tau: float) -> np.ndarray:
    _, chosen, rejected, weight = (array[None, :] for array in choices)
    pairs = count_pairs([Pairs(chosen, rejected, weight, 0 * chosen)], items)
    found = _fit_effects(jnp.zeros((items, 1), jnp.float32), pairs, _NO_RIDGE, tau)
    return np.asarray(found.effects, np.float64)


def _departures(choices: Host, effects: np.ndarray, factors: int) -> np.ndarray:
    """Leading directions [I, R] in which users depart from the effects, as long as they are strong.

    The right singular vectors of the users' residuals [U, I], times their singular values.
    """
    user, chosen, rejected, weight = choices
    shape = (int(user.max(initial=-1)) + 1, len(effects))
    rank = min(factors, min(shape) - 1)
    if rank < 1:  # a user or none has nobody to depart from
        return np.zeros((len(effects), 0))
    surprise = weight / (1 + np.exp(effects[chosen] - effects[rejected]))
    rows, columns = np.tile(user, 2), np.concatenate([chosen, rejected])
    residual = scipy.sparse.csr_matrix((np.r_[surprise, -surprise], (rows, columns)), shape)
    start = np.random.default_rng(0).normal(size=min(shape))
    _, lengths, directions = scipy.sparse.linalg.svds(residual, k=rank, v0=start)
    order = np.argsort(-lengths)
    found: np.ndarray = directions[order].T * lengths[order]
    return found
