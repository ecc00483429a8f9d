"""What runs on a mesh, in a process of its own: the number of devices is fixed when jax starts.

`python mesh_worker.py virtual OUT` on eight virtual devices (`more` for other meshes); `joined OUT
PORT ID` as one of two processes with two devices each; `killed OUT` dies while it writes. Results
go to OUT as .npz and .json, for the tests to judge.
"""

# ruff: noqa: E402
import functools
import json
import os
import re
import signal
import sys
from pathlib import Path

mode, out = sys.argv[1], Path(sys.argv[2])
count = {"virtual": 8, "more": 8, "joined": 2, "killed": 1}[mode]
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

from jaxalign.models import families, lora
from jaxalign.models.decoder import unembedding
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.runs.artifact import flatten
from jaxalign.train.checkpoint import Checkpoints
from jaxalign.train.distributed import DistributedConfig, start
from jaxalign.train.mesh import (
    MeshConfig,
    batch_sharding,
    gathered,
    make_mesh,
    param_shardings,
    shard_batch,
    state_shardings,
)

jax.config.update("jax_numpy_rank_promotion", "raise")
CONFIG = DecoderConfig(
    "llama", 96, width=32, layers=2, heads=4, kv_heads=2, head_width=8, hidden=64, positions=32
)
MESHES = {
    "virtual": [(1, 1, 1), (2, 1, 1), (1, 4, 1), (1, 1, 4), (2, 2, 2)],
    "more": [
        (1, 1, 1),
        (1, 2, 1),
        (1, 1, 2),
        (4, 1, 1),
        (2, 2, 1),
        (8, 1, 1),
        (1, 8, 1),
        (1, 2, 4),
    ],
}
OPTIMISER = optax.adamw(1e-3)


def batch():
    rng = np.random.default_rng(0)
    return {
        "tokens": rng.integers(0, CONFIG.vocab_size, (8, 12), np.int32),
        "lengths": rng.integers(3, 13, 8).astype(np.int32),
    }


def loss(params, batch, mesh, adapter=None):
    """Mean negative log-probability of the next token."""
    tokens, lengths = batch["tokens"], batch["lengths"]
    rows = batch_sharding(mesh)
    table = {"table": gathered(params["embed"]["table"], mesh)}
    embeddings = families.embed(CONFIG, {**params, "embed": table}, tokens)
    embeddings = jax.lax.with_sharding_constraint(embeddings, rows)
    states, _ = families.forward(
        CONFIG, params, lengths=lengths, embeddings=embeddings, adapters=adapter
    )
    logits = jnp.einsum("BTD,VD->BTV", states, unembedding(params))
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits)[:, :-1], tokens[:, 1:, None], 2)[..., 0]
    kept = jnp.arange(1, tokens.shape[1], dtype=jnp.int32)[None] < lengths[:, None]
    return -jnp.sum(picked * kept) / jnp.sum(kept)


@functools.cache
def initial():
    """Parameters on the host, far from a uniform distribution; drawn without a compilation."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: families.init(jax.random.key(0), CONFIG))
    return jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), shapes)


def placed(mesh):
    return jax.device_put(initial(), param_shardings(initial(), mesh, CONFIG))


def mesh_of(sizes):
    devices = jax.devices()[: int(np.prod(sizes))]
    return make_mesh(MeshConfig(*sizes), devices)


def gradients(sizes):
    mesh = mesh_of(sizes)
    params = placed(mesh)
    shardings = param_shardings(params, mesh, CONFIG)
    both = jax.jit(
        lambda p, b: jax.value_and_grad(loss)(p, b, mesh), out_shardings=(None, shardings)
    )
    compiled = both.lower(params, shard_batch(batch(), mesh)).compile()
    value, grads = compiled(params, shard_batch(batch(), mesh))
    return value, grads, params, compiled.as_text()


def adapter_gradients(sizes):
    mesh = mesh_of(sizes)
    params = placed(mesh)
    config = lora.LoraConfig(rank=4)
    adapter = lora.init(jax.random.key(1), config, params)
    adapter = jax.tree.map(lambda leaf: leaf + 0.01, adapter)
    adapter = jax.device_put(adapter, param_shardings(adapter, mesh, CONFIG))

    def of_adapter(adapter, params, batch):
        return loss(params, batch, mesh, lora.scaled(adapter, config))

    return jax.jit(jax.grad(of_adapter))(adapter, params, shard_batch(batch(), mesh)), adapter


def make_state():
    params = jax.tree.map(jnp.asarray, initial())
    return {
        "params": params,
        "opt": OPTIMISER.init(params),
        "step": jnp.int32(0),
        "key": jax.random.key(7),
    }


def abstract():
    return jax.eval_shape(make_state)


def stepper(mesh):
    """Where a training state lies, and the function of one step."""
    shardings = state_shardings(abstract(), mesh, CONFIG)

    def step(state, batch):
        grads = jax.grad(loss)(state["params"], batch, mesh)
        updates, opt = OPTIMISER.update(grads, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        key = jax.random.split(state["key"])[0]
        return {"params": params, "opt": opt, "step": state["step"] + 1, "key": key}

    return shardings, jax.jit(step, donate_argnums=0, out_shardings=shardings)


def plain(tree):
    """Host arrays, keys as their data, names joined."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(
            jax.random.key_data(leaf)
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else leaf
        )
        for path, leaf in flat
    }


def shaped(tree, shardings):
    """What to restore: no values, only where they go."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
    )


def lies(tree, shardings):
    return all(
        leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
        for leaf, sharding in zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
    )


def training(facts):
    """Two steps on four devices, the first one saved; then the second from it, on fewer."""
    mesh = mesh_of((1, 2, 2))
    shardings, step = stepper(mesh)
    state = jax.device_put(make_state(), shardings)
    rows = shard_batch(batch(), mesh)
    before = state
    state = step(state, rows)
    facts["donated"] = all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    facts["kept"] = lies(state, shardings)
    mu = state["opt"][0].mu["layers"]["mlp"]["up"]["weight"]
    facts["mu_shard"] = mu.addressable_shards[0].data.shape
    saved = plain(state)
    with Checkpoints(out / "steps", keep=2) as kept:
        kept.save(1, state)
        state = step(state, rows)  # donates what is being written
        straight = plain(state)
    facts["steps"] = kept.steps()
    for sizes in ((1, 2, 2), (1, 2, 1), (1, 1, 1)):
        mesh = mesh_of(sizes)
        if sizes != (1, 2, 2):
            shardings, step = stepper(mesh)
        restored = kept.restore(shaped(abstract(), shardings))
        name = "x".join(map(str, sizes))
        facts[f"restored_{name}"] = all(
            np.array_equal(saved[key], value) for key, value in plain(restored).items()
        )
        facts[f"placed_{name}"] = lies(restored, shardings)
        after = plain(step(restored, shard_batch(batch(), mesh)))
        facts[f"next_{name}"] = max(
            float(np.max(np.abs(straight[key].astype(np.float64) - value)))
            for key, value in after.items()
        )


def virtual():
    facts, arrays = {}, {}
    for sizes in MESHES[mode]:
        name = "x".join(map(str, sizes))
        value, grads, params, program = gradients(sizes)
        arrays |= {f"{name}/{path}": leaf for path, leaf in flatten(grads).items()}
        arrays[f"{name}/loss"] = np.asarray(value)
        facts[name] = {
            "shards": {
                path: leaf.addressable_shards[0].data.shape for path, leaf in _paths(params).items()
            },
            "gathers": re.findall(r"= \w+\[([\d,]*)\]\S* all-gather", program),
        }
    for sizes in ((1, 1, 1), (1, 2, 2)) if mode == "virtual" else ():
        grads, adapter = adapter_gradients(sizes)
        name = "adapter" + "x".join(map(str, sizes))
        arrays |= {f"{name}/{path}": leaf for path, leaf in flatten(grads).items()}
        facts[name] = {
            path: leaf.addressable_shards[0].data.shape for path, leaf in _paths(adapter).items()
        }
    if mode == "virtual":
        training(facts)
    np.savez(out / f"{mode}.npz", **arrays)
    (out / f"{mode}.json").write_text(json.dumps(facts))


def _paths(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def joined(port, own):
    peers = start(DistributedConfig(f"127.0.0.1:{port}", 2, own), timeout=60)
    assert len(jax.devices()) == 4
    arrays = {}
    for sizes in ((2, 2, 1), (1, 2, 2)):
        mesh = make_mesh(MeshConfig(*sizes))
        rows = jax.tree.map(lambda leaf: leaf[own * 4 : own * 4 + 4], batch())
        params = placed(mesh)
        step = jax.jit(jax.value_and_grad(lambda p, b, mesh=mesh: loss(p, b, mesh)))
        value, grads = step(params, shard_batch(rows, mesh))
        name = "x".join(map(str, sizes))
        whole = multihost_utils.process_allgather(grads, tiled=True)
        arrays |= {f"{name}/{path}": leaf for path, leaf in flatten(whole).items()}
        arrays[f"{name}/loss"] = np.asarray(value)
    with Checkpoints(out / "joined", keep=1) as kept:
        for number in (1, 2):
            kept.save(number, params)
    if own == 0:
        np.savez(out / "joined.npz", **arrays)
    peers.leave()


def killed():
    """Dies while the second checkpoint is being written."""
    # Random bits do not compress: the writing takes its time.
    state = {
        "a": jnp.asarray(np.random.default_rng(0).random((16, 1024, 1024), np.float32)),
        "b": jnp.zeros(3),
    }
    kept = Checkpoints(out)
    kept.save(1, state)
    kept.wait()
    kept.save(2, jax.tree.map(lambda leaf: leaf + 1, state))
    while not list(out.glob("*tmp*")):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    {"virtual": virtual, "more": virtual, "joined": joined, "killed": killed}[mode](
        *map(int, sys.argv[3:])
    )
