"""Simulated users whose tastes are Gaussian and whose choices are Bradley-Terry (NumPy float64)."""

import numpy as np


def tastes(rng, users, mean, cov):
    """Draws theta ~ N(mean [E], cov [E, E]), singular cov allowed: [U, E]."""
    values, vectors = np.linalg.eigh(np.asarray(cov, np.float64))
    root = vectors * np.sqrt(np.clip(values, 0.0, None))
    return np.asarray(mean, np.float64) + rng.standard_normal((users, len(values))) @ root.T


def choices(rng, theta, pairs):
    """Draws 1..pairs choices of each user theta [U, E]: differences [U, P, E], masks [U, P] bool.

    A difference is chosen - rejected of two standard normal items; padding is zero, at the end.
    """
    users, dim = theta.shape
    differences = rng.standard_normal((users, pairs, dim)) - rng.standard_normal(
        (users, pairs, dim)
    )
    margin = np.einsum("upe,ue->up", differences, theta)
    first_wins = rng.random((users, pairs)) * (1.0 + np.exp(-np.clip(margin, -500, 500))) < 1.0
    differences = np.where(first_wins[..., None], differences, -differences)
    counts = rng.integers(1, pairs + 1, size=users)
    masks = np.arange(pairs) < counts[:, None]
    return np.where(masks[..., None], differences, 0.0), masks


def bayes_users(rng, users, pairs, dim, mean, cov):
    """Users from N(mean [E], cov [E, E]) and choices: differences [U, P, E], masks [U, P] bool.

    `tastes` from a generator of the same seed gives the users' true theta.
    """
    if np.shape(mean) != (dim,) or np.shape(cov) != (dim, dim):
        raise ValueError(f"mean {np.shape(mean)} and cov {np.shape(cov)} do not have dim {dim}")
    return choices(rng, tastes(rng, users, mean, cov), pairs)
