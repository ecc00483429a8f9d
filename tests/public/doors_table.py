"""Entries of functions that need a model, a run or parameters: what they refuse before the work.

Where they answer with a model or train, their values are tested in the file that an entry names.
"""

import hashlib
import tempfile
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from answers_table import ANSWER_AS, ANSWER_CONDITIONED, GENERATE_TEXTS, ROLLOUT_POLICIES
from belief_table import CHOSEN, EM, of_choices, reference_population
from edge_table import PROBES, Entry, empty, refusals

from jaxalign import data, moc, models, mrm
from jaxalign.models import families
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.lora import LoraConfig
from jaxalign.models.peft import load_adapter
from jaxalign.models.sampling import Sampling
from jaxalign.personalize import policies

NAMES = ("kind", "brief")
CONFIG = DecoderConfig("llama", 11, 4, 1, 2, 1, 2, 4, 32)
KEY = jax.random.key(0)
PARAMS = families.init(KEY, CONFIG)
LORA = LoraConfig(rank=2, alpha=2.0, targets=("query",))
WEIGHTS = np.array([[1.0, 0.0], [0.5, 0.5], [0.25, 0.75]])
FACTOR = np.array([[[1.0, 0.5], [0.25, -1.0], [0.0, 2.0], [-0.5, 0.75]]])  # [L, D, rank]
OTHER = np.array([[[1.0, 0.5, 0.25, -1.0], [0.0, 2.0, -0.5, 0.75]]])  # [L, rank, N H]
STACKED = {"a": np.stack([FACTOR, 2 * FACTOR], 1), "b": np.stack([OTHER, -OTHER[..., ::-1]], 1)}
PROMPTS = ["a", "b", "c"]
SAMPLING = Sampling(max_tokens=2)


def adapter_of(a, b=OTHER):
    return {"attention": {"query": {"a": jnp.asarray(a), "b": jnp.asarray(b)}}}


def read_adapter(folder):
    config, tree = load_adapter(folder, CONFIG)
    assert config.scale == LORA.scale
    pair = tree["attention"]["query"]
    return np.asarray(pair["a"]), np.asarray(pair["b"])


def saved(a):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter"
        models.save_adapter(path, adapter_of(a), LORA, "tiny", CONFIG)
        return read_adapter(path)


def mixed(preference):
    """What the adapter of a preference adds to a matrix, [L, D, N H]."""
    policy = SimpleNamespace(
        conditioning="adapters", names=NAMES, lora=LORA, trained={"adapter": adapter_of(**STACKED)},
        model=SimpleNamespace(name="tiny", config=CONFIG),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter"
        moc.save_preference(path, policy, preference)
        config, tree = load_adapter(path, CONFIG)
    pair = tree["attention"]["query"]
    return config.scale * np.asarray(pair["a"]) @ np.asarray(pair["b"])


def mixture(preference):
    shares = preference / preference.sum()
    parts = zip(shares, STACKED["a"][0], STACKED["b"][0], strict=True)
    return LORA.scale * sum(share * a @ b for share, a, b in parts)[None]


def digest(a):
    found = policies.adapter_digest((LORA, adapter_of(a)))
    return np.frombuffer(bytes.fromhex(found), np.uint8)


def digest_of(a):
    """The factors in float32 behind their names, the second one scaled."""
    found = hashlib.sha256()
    for name, array in (("a", a), ("b", OTHER * LORA.scale)):
        found.update(f"attention/query/{name} {array.shape}\n".encode())
        found.update(np.ascontiguousarray(array, "<f4").tobytes())
    return np.frombuffer(found.digest(), np.uint8)


def as_module(weight):
    layers = PARAMS["layers"]
    attention = layers["attention"] | {"key": {"weight": weight}}
    module = models.to_nnx(CONFIG, PARAMS | {"layers": layers | {"attention": attention}})
    return models.from_nnx(module)["layers"]["attention"]["key"]["weight"]


def columns(strength):
    count = np.size(strength)
    rows = {"user": ["u"] * count, "chosen": ["a", "b", "c"], "rejected": ["b", "c", "a"]}
    rows = {name: values[:count] for name, values in rows.items()}
    return data.from_columns({**rows, "strength": strength}).details.level


def steps(strength):
    return np.maximum(np.rint(strength), 1)


PREFERENCES = data.from_columns({"user": ["u", "v"], "chosen": ["a", "b"], "rejected": ["b", "c"]})


def population(vectors, weight):
    found = mrm.fit_feedback([of_choices(vectors, weight)], mrm.Levels(ratings=(2,)), EM)
    return found.weights.mean, found.weights.cov


def skip(reason, *kept):
    """All probes but those that refuse, and `kept`."""
    refusing = {"nan live", "infinity live", "wrong rank", "zero rows", *kept}
    return dict.fromkeys(PROBES.keys() - refusing, reason)


def answers(call, arrays, live, refused, where, *kept):
    """An entry of a function that answers with a model."""
    return Entry(
        call, arrays, lambda **given: None, live, rows=(live,), refused=refused,
        skipped={**skip(f"a model answers: {where}"), **dict.fromkeys(kept, "no rows of it")},
    )  # fmt: skip


_STRENGTH = (
    "memory, row 3: `strength` is {} (float), expected a finite number; correct or remove the row."
)
_POLICY = SimpleNamespace(names=NAMES)
_PREFERENCE = "preference: found {}, expected numbers of at least 0."
_ONE = {"zero rows": "one preference", "one row": "one preference"}
_TREE = {"zero rows": "a parameter", "one row": "a parameter", "lists": "a tree of arrays"}
_DIVERGED = (
    "the adapter's attention.query holds NaN or infinity, expected finite numbers: take the "
    "adapter of a training that did not diverge."
)

DOORS = {
    "data": {
        "from_columns": Entry(
            columns, {"strength": np.array([1.0, 2.0, 3.0])}, steps, "strength",
            rows=("strength",),
            refused={
                "nan live": _STRENGTH.format("nan"), "infinity live": _STRENGTH.format("inf"),
                "zero rows": "memory has no rows, expected at least one choice.",
                "wrong rank": "memory has columns of different lengths (`user` 3, `chosen` 3, "
                "`rejected` 3, `strength` 1), expected equal.",
            },
        ),
    },
    "models": {
        "generate_texts": GENERATE_TEXTS,
        "save_adapter": Entry(
            saved, {"a": FACTOR}, lambda a: (a, OTHER), "a",
            refused={
                "nan live": _DIVERGED, "infinity live": _DIVERGED,
                "wrong rank": "the adapter's attention.query has shape [1, 1, 4, 2]; the "
                "model asks for [1, 4, 2].",
            },
            skipped=_TREE,
        ),
        "to_nnx": Entry(
            as_module, {"weight": FACTOR.mT}, lambda weight: weight, "weight",
            refused={
                "wrong rank": "parameter layers.attention.key.weight has shape [1, 1, 2, 4], "
                "expected [1, 2, 4] as the config says; give both from the same model."
            },
            skipped=_TREE,
        ),
    },
    "moc": {
        "save_preference": Entry(
            mixed, {"preference": np.array([0.25, 0.75])}, mixture, "preference",
            refused={
                "nan live": _PREFERENCE.format("[0.25, nan]"),
                "infinity live": _PREFERENCE.format("[0.25, inf]"),
                "wrong rank": "preference: found shape (1, 2), expected [R], one preference.",
                "scale 1e-8": "preference: [2.5e-09, 7.500000000000001e-09] sums to 1e-08, "
                "expected 1.",
                "scale 1e8": "preference: [25000000.0, 75000000.0] sums to 1e+08, expected 1.",
            },
            skipped=_ONE,
        ),
    },
    "mrm": {
        "fit": answers(
            lambda features: mrm.fit(PREFERENCES, features), {"features": FACTOR[0, :3]},
            "features",
            {
                **refusals("features", "2, 1", "I E", "1, 3, 2"),
                **empty("features", "0, 2", "I E", "I"),
            },
            "public/test_fit_value.py",
        ),
        "fit_feedback": Entry(
            population,
            {"vectors": CHOSEN, "weight": np.array([[1.0, 0.5, 0.0], [1.0, 1.0, 1.0]])},
            lambda vectors, weight: reference_population(vectors, weight), "vectors", "weight",
            ("vectors", "weight"),
            {
                probe: f"buckets[0].{said}"
                for probe, said in refusals(
                    "vectors", "1, 2, 0", "U P E", "1, 2, 3, 2", "weight", "1, 2"
                ).items()
            } | {"zero rows": "buckets: found no weight above 0, expected a row or more; give "
                 "feedback."},
            {"scale 1e8": "the reference has no units to find its start in"}, tolerance=5e-3,
        ),
    },
    "personalize": {
        "answer_as": ANSWER_AS,
        "answer_conditioned": ANSWER_CONDITIONED,
    },
    "personalize.policies": {
        "adapter_digest": Entry(
            digest, {"a": FACTOR}, digest_of, "a",
            skipped={**_TREE, "wrong rank": "any tree"},
        ),
        "answer_as": ANSWER_AS,
    },
    "rollout": {
        "rollout_policies": ROLLOUT_POLICIES,
    },
}  # fmt: skip
