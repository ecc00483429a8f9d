"""Entries of public functions of numbers, each an array without axes."""

import itertools
import math

import jax
import numpy as np
from edge_table import Entry
from numbers_table import IDS, TABLE, outside, tolerance

from jaxalign import metrics, moc, mrm, palm, personalize, pplug

KEY = jax.random.key(0)
A_NUMBER = dict.fromkeys(("zero rows", "one row", "strided"), "a number")
A_COUNT = {**A_NUMBER, **dict.fromkeys(("scale 1e-8", "scale 1e8"), "a count")}
USERS = np.array([[0.5, 0.25], [-1.0, 0.25], [0.25, 2.0]])


def of_number(call, name, value, reference, bad, refused=None, **more):
    """An entry of one number; `bad` makes the sentence of NaN and infinity of a value."""
    wrong_rank = f"{name}: found shape [1], expected a number; give one number."
    refused = {
        "nan live": bad(math.nan), "infinity live": bad(math.inf), "wrong rank": wrong_rank,
        **(refused or {}),
    }  # fmt: skip
    more = {"skipped": A_NUMBER, **more}
    return Entry(call, {name: np.array(value)}, reference, name, refused=refused, **more)


def of_count(call, name, value, reference, least=1):
    """An entry of a whole number."""
    return of_number(
        call, name, value, reference,
        lambda value: outside(name, value, f" of {least} or more"), skipped=A_COUNT,
    )  # fmt: skip


def of_tolerance(call, reference, refused, **more):
    """An entry of a tolerance in (0, 1): a half, which is no whole number, and rounds to 0."""
    refused = {
        "int": tolerance("eps", 0.0), "scale 1e8": tolerance("eps", 50000000.0), **refused
    }  # fmt: skip
    return of_number(call, "eps", 0.5, reference, lambda v: tolerance("eps", v), refused, **more)


def count_of_grid(eps):
    """By its levels: (1 + eps)^-k down to delta / (R - 1), and 0; one of two entries is 1."""
    levels = math.ceil(math.log(1 / 0.25) / math.log1p(eps)) + 2
    return np.array(2 * levels - 1)


def grid(eps):
    top = math.ceil(math.log(1 / 0.25) / math.log1p(eps))
    levels = [(1 + eps) ** -k for k in range(top + 1)] + [0.0]
    pairs = [(a, b) for a, b in itertools.product(levels, repeat=2) if max(a, b) == 1]
    pairs = np.array(sorted(pairs, reverse=True))
    return pairs / pairs.sum(1, keepdims=True)


def guarantee(eps):
    return np.array([(1 - 0.25) / (1 + eps), (1 - 0.25) * 0.5 / (1 + eps) + 0.125])


def signed(num_rewards):
    identity = np.eye(int(num_rewards))
    return np.array([[*sign, 1.0] for sign in (*identity, *-identity)])


def lattice(size):
    """Evenly spaced points of a line."""
    return np.array([[k / (size - 1), 1 - k / (size - 1)] for k in range(int(size))])


def initial(feature_dim):
    params = mrm.init(KEY, mrm.MRMConfig(hidden_sizes=(2,), link="signed"), feature_dim)
    return params["base"]["layer0"]["kernel"].shape, params["weight_init"]


def token_length(embedding_norm):
    params = pplug.init_persona(KEY, pplug.PersonaConfig(), 2, 3, embedding_norm)
    return np.linalg.norm(params["null"] * params["project"]["scale"], axis=-1).mean()


def best_targets(weights):
    worth = weights @ np.array([[1.0, -1.0], [-1.0, 1.0]]).T - 0.25 * np.array([0.5, 2.0])
    return np.eye(2)[worth.argmax(1)]


_GAP = {"value": 0.5, "floor": 0.25, "ceiling": 0.75}
_LENGTH = "the model's mean embedding norm is {}; expected a positive number: its embeddings are "
_UTILITY = "utility: found NaN or infinity, expected finite mean and cov."
_TOO_FINE = (
    f"eps 5e-09, delta 0.25: found a grid of {int(count_of_grid(5e-9)):,} weights for 2 rewards, "
    "expected at most 200,000; raise the tolerances, take targets 'corners', or confirm the grid."
)

SCALARS = {
    "metrics": {
        "share_of_gap": Entry(
            lambda value: metrics.share_of_gap(**{**_GAP, "value": value}),
            {"value": np.array(0.5)}, lambda value: (value - 0.25) / 0.5, "value",
            refused={"wrong rank": "value: found shape [1], expected a number; give one number."},
            skipped=A_NUMBER,
        ),
    },
    "moc": {
        "evaluation_points": of_count(
            moc.evaluation_points, "count", 2,
            lambda count: np.array([[k / 10, 1 - k / 10] for k in range(11)]), 0,
        ),
    },
    "mrm": {
        "init": of_count(
            initial, "feature_dim", 5, lambda feature_dim: ((feature_dim, 2), np.full(2, 0.5)),
        ),
    },
    "palm": {
        "corners": of_count(
            lambda num_rewards: palm.corners("signed", num_rewards), "num_rewards", 3, signed
        ),
        "baseline_weights": of_count(
            lambda size: palm.baseline_weights("uniform", 2, size), "size", 5, lattice
        ),
        "grid_size": of_tolerance(
            lambda eps: palm.grid_size(2, eps, 0.25), count_of_grid, {}
        ),
        "weight_grid": of_tolerance(
            lambda eps: palm.weight_grid(2, eps, 0.25), grid, {"scale 1e-8": _TOO_FINE}
        ),
        "guarantee": of_number(
            lambda eps: np.array(palm.guarantee(eps, 0.5, np.float16(0.25), 0.125)), "eps", 0.5,
            guarantee, lambda value: outside("eps", value, " of 0 or more"),
        ),
    },
    "personalize": {
        "floors": of_number(
            lambda floor: personalize.floors({"brief": floor}, IDS)[1], "floor", 0.5,
            lambda floor: floor,
            lambda value: f"protected.brief: found {value}, expected 0 or more; correct it.",
            {"wrong rank": "protected.brief: found shape [1], expected a number; give one number."},
        ),
        "target_for": Entry(
            lambda weights: personalize.target_for(
                personalize.known(weights, IDS), TABLE, 0.25
            ).values,
            {"weights": USERS}, best_targets, "weights", rows=("weights",),
            refused={"nan live": _UTILITY, "infinity live": _UTILITY},
            skipped={"wrong rank": "any leading axes"},
        ),
    },
    "pplug": {
        "init_persona": of_number(
            token_length, "embedding_norm", 2.0, lambda embedding_norm: embedding_norm,
            lambda value: f"{_LENGTH.format(value)}broken.",
        ),
    },
}  # fmt: skip
