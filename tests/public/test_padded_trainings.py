"""Gradients of the trained losses with padding are finite, and those of the same rows without it.

Of personas and MOC's losses see `test_padding_gradients`; of the meta-objective tests/mrm, where
padding holds NaN; of a whole plug tests/pplug, where torch has no padding.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_cases import ITEMS, MODELS, WIDTH, some_pairs, some_params

from jaxalign.data.batching import Pairs
from jaxalign.models import families
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.lora import LoraConfig
from jaxalign.mrm.baselines import lore, pal, pttt, simplex, vpl
from jaxalign.mrm.baselines.episodes import mean_choice_loss
from jaxalign.rewards import bradley_terry
from jaxalign.train import sft
from jaxalign.train.mesh import MeshConfig, make_mesh

RNG = np.random.default_rng(0)
TABLE = jnp.asarray(RNG.normal(size=(ITEMS, WIDTH)), jnp.float32)
KEY = jax.random.key(0)
USERS, RANK = 2, 2
SUPPORT, QUERY = (some_pairs(RNG, USERS, 2) for _ in range(2))
LOGITS = jnp.asarray(RNG.normal(size=(USERS, RANK)), jnp.float32)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def by_gpo(params, support, query):
    # Its own loss draws the order in which a pair is shown, by the shape of all pairs.
    model = MODELS["gpo"][0]
    logits = jax.vmap(lambda s, q: model.apply({"params": params}, TABLE, s, q))(support, query)
    return mean_choice_loss(logits, query)


def of_simplex(rewards):
    def loss(params, support, query):
        found = simplex.population_loss(rewards(params, TABLE), (params["logits"],), (support,))
        return found + simplex.population_loss(
            rewards(params, TABLE), (params["logits"],), (query,)
        )

    return loss


TRAININGS = {
    "vpl": (
        lambda *a: vpl.negative_elbo(MODELS["vpl"][0], a[0], KEY, TABLE, *a[1:], jnp.ones(())),
        lambda: some_params(MODELS["vpl"][0], 1),
    ),
    "gpo": (by_gpo, lambda: some_params(MODELS["gpo"][0], 1)),
    "pttt": (
        lambda *a: pttt.choice_loss(MODELS["pttt"][0], a[0], KEY, TABLE, *a[1:], jnp.ones(())),
        lambda: some_params(MODELS["pttt"][0], 1),
    ),
    "lore": (
        lambda params, *pairs: lore.map_objective(params, TABLE, pairs, jnp.full((), 0.1)),
        lambda: {"basis": normal(WIDTH, RANK), "mean": normal(RANK), "users": (LOGITS, -LOGITS)},
    ),
    "lore_published": (
        of_simplex(lore.rewards), lambda: {"basis": normal(WIDTH, RANK), "logits": LOGITS},
    ),
    "pal": (
        of_simplex(pal.rewards),
        lambda: {"map": normal(WIDTH, 3), "prototypes": normal(RANK, 3), "logits": LOGITS},
    ),
}  # fmt: skip


def padded(pairs, items):
    """The pairs with others behind them that do not count."""
    behind = jnp.broadcast_to(jnp.asarray(items, jnp.int32), (USERS, 2))
    zeros = jnp.zeros((USERS, 2), pairs.weight.dtype)
    found = (behind, behind[:, ::-1], zeros, zeros.astype(jnp.int32))
    return Pairs(*(jnp.concatenate(both, axis=1) for both in zip(pairs, found, strict=True)))


def same(found, expected, largest):
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(
            one, other, rtol=1e-5, atol=1e-6 * max(largest, 1)
        ),
        found, expected,
    )  # fmt: skip


def size_of(tree):
    """The largest of all numbers, which are finite."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    return max(np.abs(leaf).max() for leaf in leaves)


@pytest.mark.parametrize("name", TRAININGS)
def test_choices(name):
    loss, start = TRAININGS[name]
    gradient, params = jax.jit(jax.grad(loss)), start()
    expected = gradient(params, SUPPORT, QUERY)
    largest = size_of(expected)
    assert largest > 1e-3
    for items in ((0, 3), (5, 8)):
        same(gradient(params, padded(SUPPORT, items), padded(QUERY, items)), expected, largest)


CONFIG = DecoderConfig(
    "llama", 12, width=8, layers=1, heads=2, kv_heads=1, head_width=4, hidden=8, positions=16,
)  # fmt: skip
WIDE, LONG = 9, 6  # tokens with and without padding
TOKENS = RNG.integers(1, 12, (2, 2, LONG)).astype(np.int32)


def of_tokens(trained, batch):
    mesh = make_mesh(MeshConfig())
    sums = sft.loss(CONFIG, LoraConfig(), mesh, trained, {}, batch, None)
    return sums["loss"]


def of_choices(trained, batch):
    mesh, config = make_mesh(MeshConfig()), replace(CONFIG, tied=True)
    sums = bradley_terry.loss(config, LoraConfig(), mesh, trained, {}, batch, None)
    return sums["loss"]


def token_batch(fill):
    """Two rows of six tokens; padded by a number, with a third row of nothing else."""
    tokens = TOKENS[0]
    arrays = {
        "tokens": tokens, "lengths": np.full(2, LONG, np.int32), "learned": tokens > 4,
    }  # fmt: skip
    if fill is None:
        return arrays
    wide = np.full((3, WIDE), fill, np.int32)
    wide[:2, :LONG] = tokens
    learned = np.zeros((3, WIDE), bool)
    learned[:2, :LONG] = tokens > 4
    return {"tokens": wide, "lengths": np.array([LONG, LONG, 0], np.int32), "learned": learned}


def choice_batch(fill):
    """Two choices of answers of six tokens; padded, with a third choice that is not there."""
    arrays = {
        "tokens": TOKENS, "lengths": np.full((2, 2), LONG, np.int32),
        "objective": np.array([0, 1], np.int32), "win": np.array([1.0, 0.5], np.float32),
        "weight": np.ones(2, np.float32),
    }  # fmt: skip
    if fill is None:
        return arrays
    wide = np.full((3, 2, WIDE), fill, np.int32)
    wide[:2, :, :LONG] = TOKENS
    lengths = np.concatenate([arrays["lengths"], np.zeros((1, 2), np.int32)])
    rest = {name: np.append(arrays[name], arrays[name][:1]) for name in ("objective", "win")}
    return {"tokens": wide, "lengths": lengths, **rest, "weight": np.array([1, 1, 0], np.float32)}


@pytest.mark.parametrize(("loss", "batch"), [(of_tokens, token_batch), (of_choices, choice_batch)])
def test_tokens(loss, batch):
    shapes = jax.eval_shape(lambda key: families.init(key, CONFIG), KEY)
    params = jax.tree.map(lambda leaf: 0.6 * normal(*leaf.shape), shapes)  # nothing to compile
    trained = {"model": params, "head": {"kernel": normal(8, 2)}}
    gradient = jax.jit(jax.grad(loss))
    expected = gradient(trained, batch(None))
    largest = size_of(expected)
    assert largest > 1e-3
    for fill in (0, 11):
        same(gradient(trained, batch(fill)), expected, largest)
