"""Portfolios chosen without looking at values: uniform, random and k-center weights."""

from typing import Literal

import numpy as np

from jaxalign.arrays import check_count
from jaxalign.errors import InputError
from jaxalign.palm._search import SearchState
from jaxalign.palm.config import PalmConfig, WeightKind
from jaxalign.palm.domain import Floats, corners
from jaxalign.palm.oracle import Oracle, stack
from jaxalign.palm.portfolio import Portfolio, assemble

Baseline = Literal["uniform", "random", "k_center"]

# Points of the domain that k-center weights are chosen from.
_CANDIDATES = 4096


def baseline(
    oracle: Oracle,
    config: PalmConfig,
    found: SearchState,
    kind: Baseline,
    size: int,
    seed: int = 0,
) -> Portfolio:
    """Return a portfolio of the same budget, its policies solved at weights that a rule gives.

    Args:
        oracle: solves one weight per call, `size` in all.
        config: settings of the portfolio to compare with.
        found: the search that both are certified against.
        kind: "uniform" (Das-Dennis), "random" (Dirichlet(1)) or "k_center".
        size: number of policies, the free reference not counted.
        seed: seed of random weights and of the start of k-center.

    Returns:
        Portfolio, with the same report.

    Raises:
        InputError: an unknown rule, or a size below 1.
    """
    weights = baseline_weights(kind, oracle.num_rewards, size, config.weights, seed)
    members = stack([oracle(weight) for weight in weights])
    return assemble(oracle, config, found, members)


def baseline_weights(
    kind: Baseline,
    num_rewards: int,
    size: int,
    weights: WeightKind = "simplex",
    seed: int = 0,
) -> Floats:
    """Return the weights at which a baseline solves its policies.

    Args:
        kind: "uniform", "random" or "k_center".
        num_rewards: R.
        size: number of weights.
        weights: "simplex", or "signed": on the surface of the L1 ball, where the users with most at
            stake are.
        seed: seed of the draws.

    Returns:
        [size, R].

    Raises:
        InputError: an unknown rule, or a size or number of rewards below 1.

    Source: Das and Dennis (1998); Gonzalez (1985), farthest first.

    Example:
        >>> from jaxalign.palm import baseline_weights
        >>> baseline_weights("uniform", num_rewards=2, size=3).tolist()
        [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]
    """
    size, num_rewards = check_count("size", size), check_count("num_rewards", num_rewards)
    rng = np.random.default_rng(seed)
    if kind == "random":
        return _signs(rng, rng.dirichlet(np.ones(num_rewards), size), weights)
    if kind == "uniform":
        lattice = das_dennis(num_rewards, size)
        if weights == "signed":
            lattice = _mirrored(lattice)
        return _spread(lattice, size, lattice.mean(axis=0))
    if kind == "k_center":
        cloud = _signs(rng, rng.dirichlet(np.ones(num_rewards), _CANDIDATES), weights)
        cloud = np.concatenate([corners(weights, num_rewards)[:, :num_rewards], cloud])
        return _spread(cloud, size, cloud[rng.integers(len(cloud))])
    raise InputError(f"kind: found {kind!r}, expected uniform, random or k_center.")


def das_dennis(num_rewards: int, least: int) -> Floats:
    """Return the coarsest simplex lattice of at least so many points, [n, R].

    Example:
        >>> from jaxalign.palm.baselines import das_dennis
        >>> das_dennis(2, 3).tolist()
        [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]
    """
    if num_rewards == 1:
        return np.ones((1, 1))
    if least == 1:
        return np.full((1, num_rewards), 1 / num_rewards)
    steps = 1
    while True:
        rows = [[left] for left in range(steps + 1)]
        for _ in range(num_rewards - 2):
            rows = [[*row, left] for row in rows for left in range(steps + 1 - sum(row))]
        if len(rows) >= least:
            lattice = np.array([[*row, steps - sum(row)] for row in rows], np.float64)
            return lattice / steps
        steps += 1


def _signs(rng: np.random.Generator, rows: Floats, weights: WeightKind) -> Floats:
    return rows if weights == "simplex" else rows * rng.choice([-1.0, 1.0], rows.shape)


def _mirrored(rows: Floats) -> Floats:
    signs = np.stack(np.meshgrid(*[[1.0, -1.0]] * rows.shape[1]), axis=-1).reshape(
        -1, 1, len(rows[0])
    )
    return np.unique((rows[None] * signs).reshape(-1, rows.shape[1]) + 0.0, axis=0)


def _spread(points: Floats, size: int, start: Floats) -> Floats:
    """Points chosen farthest first in L1, which bounds the loss; all of them if there are fewer."""
    if size >= len(points):
        return np.resize(points, (size, points.shape[1]))
    distance = np.abs(points - start).sum(axis=1)
    if size == 1:
        return points[[int(np.argmin(distance))]]
    chosen: list[int] = []
    for _ in range(size):
        chosen.append(int(np.argmax(distance)))
        near = np.abs(points - points[chosen[-1]]).sum(axis=1)
        distance = near if len(chosen) == 1 else np.minimum(distance, near)
    return points[chosen]
