"""Where users' weights lie: the simplex, or the signed L1 ball, by their corners.

A policy is a point in the domain's coordinates and a user's value of it is linear in them:
on the simplex the coordinates are R_i - beta KL (sum w = 1 lets the price of KL be folded in); on
the L1 ball they are (R, -beta KL), the last weight fixed at 1. Whatever the domain, a policy's
values at its corners [N] turn every question over the domain into one over a simplex.
"""

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxalign.arrays import check_count, check_numpy
from jaxalign.errors import InputError
from jaxalign.palm.config import WeightKind

Floats = NDArray[np.float64]

# How far a weight vector may be off its domain, float32 rounding included.
_SLACK = 1e-4


def corners(kind: WeightKind, num_rewards: int) -> Floats:
    """Return the corners of the domain in its coordinates.

    Args:
        kind: "simplex" or "signed".
        num_rewards: R.

    Returns:
        [N, D]: the identity [R, R]; or +e_i and -e_i, each with a last 1, [2 R, R + 1].

    Raises:
        InputError: no reward.

    Example:
        >>> from jaxalign.palm import corners
        >>> corners("signed", 1)
        array([[ 1.,  1.],
               [-1.,  1.]])
    """
    identity = np.eye(check_count("num_rewards", num_rewards))
    if kind == "simplex":
        return identity
    signed = np.concatenate([identity, -identity])
    return np.concatenate([signed, np.ones((len(signed), 1))], axis=1)


def coordinates(kind: WeightKind, rewards: ArrayLike, kl: ArrayLike, beta: float) -> Floats:
    """Return policies in the domain's coordinates.

    Args:
        kind: "simplex" or "signed".
        rewards: [..., R] expected rewards.
        kl: [...] in nats.
        beta: price of one nat of KL, in units of reward.

    Returns:
        [..., D]: R - beta kl, or (R, -beta kl).

    Raises:
        InputError: NaN or infinity.

    Example:
        >>> from jaxalign.palm import coordinates
        >>> coordinates("simplex", [0.5, 0.25], 1.0, beta=0.1)
        array([0.4 , 0.15])
        >>> coordinates("signed", [0.5, 0.25], 1.0, beta=0.1)
        array([ 0.5 ,  0.25, -0.1 ])
    """
    rewards = check_numpy("rewards", rewards, "... R")
    price = beta * check_numpy("kl", kl, "...")[..., None]
    if kind == "simplex":
        return rewards - price
    return np.concatenate([rewards, -price], axis=-1)


def extend(kind: WeightKind, weights: ArrayLike) -> Floats:
    """Weights [..., R] as [..., D]: a last 1 for signed ones.

    Example:
        >>> from jaxalign.palm.domain import extend
        >>> extend("signed", [[0.5, -0.5]])
        array([[ 0.5, -0.5,  1. ]])
    """
    weights = np.asarray(weights, np.float64)
    if kind == "simplex":
        return weights
    return np.concatenate([weights, np.ones((*weights.shape[:-1], 1))], axis=-1)


def check_weights(kind: WeightKind, weights: ArrayLike, num_rewards: int) -> Floats:
    """Return the weights as float64 after a look at every row.

    The sums may be off by 1e-4, or by the rounding of the weights' own dtype.

    Args:
        kind: "simplex" or "signed".
        weights: [U, R].
        num_rewards: R.

    Returns:
        [U, R].

    Raises:
        InputError: another shape, NaN, or a row off the simplex or outside the L1 ball.

    Example:
        >>> from jaxalign.palm import check_weights
        >>> check_weights("simplex", [[1, 0], [0.5, 0.5]], num_rewards=2)
        array([[1. , 0. ],
               [0.5, 0.5]])
    """
    check_numpy("weights", weights, "...", finite=False)
    given = np.asarray(weights)
    slack = _SLACK
    if jnp.issubdtype(given.dtype, jnp.floating):
        slack = max(slack, num_rewards * float(jnp.finfo(given.dtype).eps) / 2)
    weights = given.astype(np.float64)
    if weights.ndim != 2 or weights.shape[1] != num_rewards:
        raise InputError(
            f"weights: found shape {weights.shape}, expected one row of {num_rewards} per user."
        )
    if kind == "simplex":
        wrong = (weights < -slack).any(axis=1) | (np.abs(weights.sum(axis=1) - 1) > slack)
        expected = "entries of 0 or more that sum to 1; divide by the sum, or build with signed"
    else:
        wrong = np.abs(weights).sum(axis=1) > 1 + slack
        expected = "absolute values that sum to at most 1; divide by their sum, which sets the KL"
    wrong |= ~np.isfinite(weights).all(axis=1)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(
            f"weights, row {row}: found {np.array2string(weights[row], precision=4)}, expected "
            f"{expected}{' weights' if kind == 'simplex' else ' price'}."
        )
    return weights
