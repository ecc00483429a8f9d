"""Entries of `jaxalign.palm` and of the kernels behind it."""

import numpy as np
from edge_table import Entry, empty, refusals
from scipy.special import log_softmax, logsumexp, softmax

from jaxalign import palm

REWARDS = np.array([
    [[0.5, 1.0], [0.25, 0.0], [1.0, 0.75]],
    [[0.0, 0.25], [1.5, 0.5], [0.25, 0.25]],
])  # fmt: skip
LOG_REF = np.array([[-0.5, -1.5, -1.0], [-1.25, -1.0, -0.75]])
WEIGHTS = np.array([[1.0, 0.0], [0.5, 0.5], [0.25, 0.75]])
VALUES = np.array([[0.5, 0.25], [0.25, 1.0]])
BETA = 0.5


def outcomes(rewards, log_ref, weights):
    expected, kl = [], []
    for w in weights:
        logits = log_ref + rewards @ w / BETA
        p = softmax(logits, axis=1)
        log_ratio = rewards @ w / BETA - logsumexp(logits, axis=1, keepdims=True)
        expected.append((p[..., None] * rewards).sum(1))
        kl.append((p * log_ratio).sum(1))
    return np.stack(expected), np.stack(kl)


def sweep(rewards, log_ref, weights):
    expected, kl = outcomes(rewards, log_ref, weights)
    z = [BETA * logsumexp(log_ref + rewards @ w / BETA, axis=1).mean() for w in weights]
    return np.array(z), expected.mean(1), kl.mean(1)


def tilted(rewards, log_ref, weight):
    return log_softmax(log_ref + rewards @ weight / BETA, axis=1)


def solved(rewards):
    found = palm.ClosedForm(rewards, None, BETA, reward_range=None)([0.25, 0.75])
    return found.rewards, found.kl


def reference_solved(rewards):
    uniform = np.full(rewards.shape[:2], -np.log(rewards.shape[1]))
    return tuple(x.mean(1)[0] for x in outcomes(rewards, uniform, [np.array([0.25, 0.75])]))


def best(weights, values):
    found = weights @ values.T
    return found.max(1), found.argmax(1)


def gap(pool, members):
    """The largest gap over a fine grid of the simplex in two dimensions."""
    grid = np.linspace(0, 1, 4001)
    w = np.stack([grid, 1 - grid], axis=1)
    return ((w @ pool.T).max(1) - (w @ members.T).max(1)).max()


_ARRAYS = {"rewards": REWARDS, "log_ref": LOG_REF, "weights": WEIGHTS}
_REFUSED = refusals("rewards", "1, 2, 1", "X C R", "1, 2, 3, 2")
_OF = {
    **_REFUSED,
    **empty("rewards", "0, 3, 2", "X C R", "X"),
}
_LARGE = {"scale 1e8": "the KL is a difference of numbers of 1e8"}
_CANDIDATES = (
    "rewards: found shape {}, expected [prompts, candidates, rewards] with at least 2 candidates "
    "per prompt."
)
_FINITE = "pool: found NaN or infinity, expected finite values."

PALM = {
    "sweep": Entry(
        lambda **a: palm.sweep(**a, beta=BETA), _ARRAYS, sweep, "rewards",
        rows=("rewards", "log_ref"), refused=_OF, typed=("rewards",), skipped=_LARGE, least=1e-6,
    ),
    "prompt_outcomes": Entry(
        lambda **a: palm.prompt_outcomes(**a, beta=BETA), _ARRAYS, outcomes, "rewards",
        rows=("rewards", "log_ref"), refused=_OF, typed=("rewards",), skipped=_LARGE, least=1e-6,
    ),
    "tilted_log_probs": Entry(
        lambda **a: palm.tilted_log_probs(**a, beta=BETA),
        {"rewards": REWARDS, "log_ref": LOG_REF, "weight": np.array([0.25, 0.75])}, tilted,
        "rewards", rows=("rewards", "log_ref"), refused=_OF, typed=("rewards",),
    ),
    "ClosedForm": Entry(
        solved, {"rewards": REWARDS}, reference_solved, "rewards", rows=("rewards",),
        refused={
            **dict.fromkeys(
                ("nan live", "infinity live"),
                "rewards, log_ref: found NaN or infinity, expected finite values.",
            ),
            "zero rows": _CANDIDATES.format((0, 3, 2)),
            "wrong rank": _CANDIDATES.format((1, 2, 3, 2)),
        },
        skipped=_LARGE, least=1e-6,
    ),
    "best_member": Entry(
        palm.best_member, {"weights": WEIGHTS, "values": VALUES}, best, "weights",
        rows=("weights",), typed=("weights",),
        refused={
            **refusals("weights", "2, 1", "U R", "1, 3, 2"), **empty("weights", "0, 2", "U R", "U"),
        },
    ),
    "worst_gap": Entry(
        lambda pool, members: palm.worst_gap(pool, members).value,
        {"pool": np.array([[1.0, 0.0], [0.5, 0.75], [0.0, 1.0]]), "members": VALUES}, gap, "pool",
        rows=("pool",), scaled=("pool", "members"), tolerance=1e-3, typed=("pool", "members"),
        refused={
            "nan live": _FINITE, "infinity live": _FINITE,
            "zero rows": "pool: found shape (0, 2), expected one row per policy, as wide as the "
            "pool.",
            "wrong rank": "pool: found shape (1, 3, 2), expected one row per policy, as wide as "
            "the pool.",
        },
    ),
    "check_weights": Entry(
        lambda weights: palm.check_weights("simplex", weights, 2), {"weights": WEIGHTS},
        lambda weights: weights, "weights", rows=("weights",),
        refused={
            **{
                probe: f"weights, row {row}: found {found}, expected entries of 0 or more that sum "
                "to 1; divide by the sum, or build with signed weights."
                for probe, row, found in (
                    ("nan live", 2, "[0.25  nan]"), ("infinity live", 2, "[0.25  inf]"),
                    ("int", 1, "[0. 0.]"), ("scale 1e-8", 0, "[1.e-08 0.e+00]"),
                    ("scale 1e8", 0, "[1.e+08 0.e+00]"),
                )
            },
            "wrong rank": "weights: found shape (1, 3, 2), expected one row of 2 per user.",
        },
    ),
    "coordinates": Entry(
        lambda rewards: palm.coordinates("simplex", rewards, np.ones(2), BETA),
        {"rewards": VALUES}, lambda rewards: rewards - BETA, "rewards",
        refused=refusals("rewards", "1, 1", "", ""),
        skipped={"zero rows": "any leading axes", "one row": "any", "wrong rank": "any"},
    ),
}  # fmt: skip
