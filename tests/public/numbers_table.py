"""What public functions do for numbers that are none, infinite or out of range, word for word."""

import jax
import numpy as np

from jaxalign import metrics, moc, mrm, palm, personalize, pplug
from jaxalign.moc.value_table import ValueTable
from jaxalign.rewards import RewardIds

NAN, INF = float("nan"), float("inf")
IDS = RewardIds(("kind", "brief"), "0" * 64)
GAINS = mrm.Gains(np.array([0.0, 1.0]), np.ones(2), np.array([0.5, 0.75]))
PRIOR = mrm.Prior(np.zeros(2), np.eye(2))
TABLE = ValueTable(np.eye(2), [[1.0, -1.0], [-1.0, 1.0]], [0.5, 2.0], *IDS.__dict__.values())
USER = personalize.known([0.5, 0.25], IDS)
DIRECTIONS = np.eye(2)
LOSSES = np.eye(2)


def outside(name, value, wanted):
    """The sentence of `check_number`."""
    return f"{name}: found {value:g}, expected a finite number{wanted}; correct it."


def _all(name, wanted, *values):
    return {value: outside(name, value, wanted) for value in values}


def tolerance(name, value):
    return f"{name}: found {value}, expected between 0 and 1; correct it."


# Function -> argument -> (call of one number, number -> the sentence that refuses it).
NUMBERS = {
    "palm.corners": {
        "num_rewards": (
            lambda n: palm.corners("simplex", n), _all("num_rewards", " of 1 or more", 0, -1, NAN)
        ),
    },
    "palm.baseline_weights": {
        "size": (
            lambda n: palm.baseline_weights("random", 2, n), _all("size", " of 1 or more", 0, NAN)
        ),
        "num_rewards": (
            lambda n: palm.baseline_weights("random", n, 2),
            _all("num_rewards", " of 1 or more", 0, NAN),
        ),
    },
    "palm.grid_size": {
        name: (
            lambda value, name=name: palm.grid_size(2, **{"eps": 0.5, "delta": 0.5, name: value}),
            {value: tolerance(name, value) for value in (0.0, 1.0, NAN, INF)},
        )
        for name in ("eps", "delta")
    },
    "palm.weight_grid": {
        "eps": (
            lambda eps: palm.weight_grid(2, eps, 0.5),
            {value: tolerance("eps", value) for value in (0.0, 1.0, NAN, INF)},
        ),
    },
    "palm.guarantee": {
        name: (
            lambda value, name=name: palm.guarantee(**{"eps": 0.5, "delta": 0.5, name: value}),
            _all(name, " of 0 or more", -1.0, NAN, INF),
        )
        for name in ("eps", "delta", "eta", "tau")
    },
    "palm.best_of_size": {
        "size": (lambda size: palm.best_of_size(LOSSES, size), _all("size", " of 1 or more", 0)),
    },
    "palm.report": {
        "floor": (
            lambda floor: palm.report(LOSSES, LOSSES, np.zeros(2), np.ones(2), LOSSES, floor),
            _all("floor", " of 0 or more", -1.0, NAN, INF),
        ),
    },
    "palm.held_out": {
        "level": (
            lambda level: palm.held_out(
                LOSSES[None], LOSSES[None], np.ones(2), LOSSES, level=level
            ),
            _all("level", " of 0 or more and at most 1", -1.0, 2.0, NAN),
        ),
    },
    "metrics.share_of_gap": {
        # A gap that is not known, or not above 0, has no share.
        name: (
            lambda value, name=name: metrics.share_of_gap(
                **{"value": 0.5, "floor": 0.25, "ceiling": 0.75, name: value}
            ),
            {NAN: None},
        )
        for name in ("value", "floor", "ceiling")
    },
    "mrm.best_option": {
        "k": (lambda k: mrm.best_option(GAINS, k), _all("k", " of 0 or more", -1.0, NAN, INF)),
        "least_probability": (
            lambda p: mrm.best_option(GAINS, 0.0, p),
            _all("least_probability", " of 0 or more and at most 1", -1.0, 2.0, NAN),
        ),
    },
    "mrm.rescaled": {
        name: (
            lambda value, name=name: mrm.rescaled(
                PRIOR, **{"strength": 1.0, "temperature": 1.0, name: value}
            ),
            _all(name, " above 0", 0.0, -1.0, NAN, INF),
        )
        for name in ("strength", "temperature")
    },
    "mrm.init": {
        "feature_dim": (
            lambda dim: mrm.init(jax.random.key(0), mrm.MRMConfig(), dim),
            _all("feature_dim", " of 1 or more", 0, -1, NAN),
        ),
    },
    "mrm.rpo": {
        "tail": (
            lambda tail: mrm.rpo(np.ones(3), tail, 0.5),
            _all("tail", " of 0 or more and at most 1", -1.0, 2.0, NAN),
        ),
    },
    "moc.combine": {
        "progress": (
            lambda progress: moc.combine(
                DIRECTIONS, np.ones(2), moc.CombineConfig(), progress=progress
            ),
            _all("progress", "", NAN, INF),
        ),
        "error": (
            lambda error: moc.combine(
                DIRECTIONS, np.ones(2), moc.CombineConfig("gate"), error=np.asarray(error)
            ),
            _all("error", " of 0 or more", -1.0, NAN, INF),
        ),
    },
    "moc.evaluation_points": {
        "count": (
            moc.evaluation_points,
            {
                count: f"found {count} rewards; expected at least 2 to choose between."
                for count in (0, 1)
            },
        ),
    },
    "personalize.floors": {
        "floor": (
            lambda floor: personalize.floors({"brief": floor}, IDS),
            {
                value: f"protected.brief: found {value}, expected 0 or more; correct it."
                for value in (-1.0, NAN, INF)
            },
        ),
    },
    "personalize.target_for": {
        "beta": (
            lambda beta: personalize.target_for(USER, TABLE, beta),
            _all("beta", " of 0 or more", -1.0, NAN, INF),
        ),
    },
    "pplug.init_persona": {
        "embedding_norm": (
            lambda norm: pplug.init_persona(
                jax.random.key(0), pplug.PersonaConfig(), 2, 3, norm
            ),
            {
                value: f"the model's mean embedding norm is {value}; expected a positive number: "
                "its embeddings are broken."
                for value in (0.0, -1.0, NAN, INF)
            },
        ),
    },
    "pplug.rescale_persona": {
        "embedding_norm": (
            lambda norm: pplug.rescale_persona({}, np.ones((1, 1, 2)), norm),
            _all("embedding_norm", " above 0", 0.0, NAN, INF),
        ),
    },
}  # fmt: skip
