"""Entries of `jaxalign.pplug`."""

import jax
import jax.numpy as jnp
import numpy as np
from edge_table import Entry, empty, refusals
from scipy.special import erf, softmax

from jaxalign import pplug

CONFIG = pplug.PersonaConfig()
PARAMS = jax.jit(pplug.init_persona, static_argnums=(1, 2, 3, 4))(
    jax.random.key(0), CONFIG, 2, 3, 2.0
)
QUERY = np.array([0.5, -0.25])
ITEMS = np.array([[1.0, 0.5], [-0.5, 0.25], [0.75, -1.0]])
MASK = np.array([1.0, 1.0, 0.0])


def persona(query, history):
    """The persona of one user's items [n, E], item by item."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), PARAMS)
    project = p["project"]
    if not len(history):
        return p["null"] * project["scale"]
    w = softmax(CONFIG.sharpness * (history @ query))
    raised = history @ project["inner"]["kernel"] + project["inner"]["bias"]
    hidden = raised * 0.5 * (1 + erf(raised / np.sqrt(2)))
    each = np.einsum("nI,SID->nSD", hidden, project["head"]["kernel"]) + project["head"]["bias"]
    return np.einsum("n,nSD->SD", w, each) * project["scale"]


def aggregate(query, history, mask):
    return persona(query, history[mask > 0])


def aggregate_flat(queries, items):
    return np.stack([persona(q, items[i : i + 1]) for i, q in enumerate(queries)])


def rescaled(personas):
    found = pplug.rescale_persona(PARAMS, personas, 4.0)
    return found["project"]["scale"], found["null"]


def reference_rescaled(personas):
    scale, null = (np.asarray(x, np.float64) for x in (PARAMS["project"]["scale"], PARAMS["null"]))
    length = np.mean(np.linalg.norm(personas, axis=-1))
    wide = scale * 4.0 / length
    return wide, null * 4.0 / (wide * np.mean(np.linalg.norm(null, axis=-1)))


def task(vector):
    return pplug.task_token({**PARAMS, "task": {**PARAMS["task"], "vector": vector}})


def reference_task(vector):
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), PARAMS["task"])
    raised = vector @ p["inner"]["kernel"] + p["inner"]["bias"]
    hidden = raised * 0.5 * (1 + erf(raised / np.sqrt(2)))
    return (np.einsum("I,SID->SD", hidden, p["head"]["kernel"]) + p["head"]["bias"]) * p["scale"]


_MODEL = "a parameter: a training whose loss is not finite stops"

PPLUG = {
    "aggregate": Entry(
        lambda query, history, mask: pplug.aggregate(PARAMS, query, history, mask, CONFIG),
        {"query": QUERY, "history": ITEMS, "mask": MASK}, aggregate, "history", "mask",
        ("history", "mask"), refusals("history", "1, 0", "n E", "1, 3, 2", "mask", "2"),
        typed=("history",), tolerance=1e-4,
    ),
    "rescale_persona": Entry(
        rescaled, {"personas": ITEMS[:, None, :]},
        reference_rescaled, "personas", rows=("personas",), tolerance=1e-5,
        refused={
            **refusals("personas", "2, 0, 1", "... S D", ""),
            "zero rows": "personas: found no persona, expected one or more; correct it.",
        },
        skipped={"wrong rank": "any leading axes"},
    ),
    "task_token": Entry(
        task, {"vector": QUERY}, reference_task, "vector", tolerance=1e-5,
        skipped={
            "nan live": _MODEL, "infinity live": _MODEL, "int": "a parameter", "lists": "a tree",
            "wrong rank": "a parameter", "zero rows": "one vector", "one row": "one vector",
        },
    ),
    "aggregate_flat": Entry(
        lambda queries, items: pplug.aggregate_flat(
            PARAMS, queries, items, jnp.arange(len(items)), CONFIG
        ),
        {"queries": np.stack([QUERY, -QUERY, QUERY]), "items": ITEMS}, aggregate_flat, "items",
        rows=("queries", "items"), tolerance=1e-4, typed=("items",),
        refused={
            **refusals("items", "2, 1", "N E", "1, 3, 2"), **empty("queries", "0, 2", "B E", "B"),
        },
    ),
}  # fmt: skip
