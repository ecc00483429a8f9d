"""The same loss, gradients and training on any mesh; shardings by the table of rules."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from jaxalign.errors import InputError
from jaxalign.models import families, lora
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.encoder import EncoderConfig, EncoderModule
from jaxalign.runs.artifact import unflatten
from jaxalign.train.checkpoint import Checkpoints
from jaxalign.train.distributed import VARIABLES, DistributedConfig, start
from jaxalign.train.mesh import (
    RULES,
    MeshConfig,
    batch_sharding,
    make_mesh,
    param_shardings,
    shard_batch,
    state_shardings,
)

WORKER = Path(__file__).with_name("mesh_worker.py")
CONFIG = DecoderConfig("llama", 96, 32, 2, heads=4, kv_heads=2, head_width=8, hidden=64,
                       positions=32, qkv_bias=True, qk_norm=True)  # fmt: skip


def specs(tree, rules=param_shardings, config=None, **sizes):
    """Path -> PartitionSpec, for a mesh that need not exist."""
    mesh = jax.sharding.AbstractMesh(
        (sizes.get("data", 1), sizes.get("fsdp", 1), sizes.get("tensor", 1)),
        ("data", "fsdp", "tensor"),
    )
    flat = jax.tree_util.tree_flatten_with_path(rules(tree, mesh, config))[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): sharding.spec
        for path, sharding in flat
    }


def shapes(config):
    return jax.eval_shape(lambda: families.init(jax.random.key(0), config))


def run(*arguments):
    return subprocess.Popen(
        [sys.executable, str(WORKER), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, seconds=240):
    said, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, said[-3000:]


def worst(arrays, name, reference="1x1x1"):
    """Largest difference of any leaf from one device's, over that leaf's largest value."""
    paths = [path for path in arrays.files if path.startswith(f"{name}/")]
    assert len(paths) > 10
    wanted = [arrays[reference + path[len(name) :]] for path in paths]
    return max(
        float(np.abs(arrays[path] - want).max() / np.abs(want).max())
        for path, want in zip(paths, wanted, strict=True)
    )


@pytest.fixture(scope="module")
def virtual(tmp_path_factory):
    out = tmp_path_factory.mktemp("virtual")
    finish(run("virtual", out))
    return np.load(out / "virtual.npz"), json.loads((out / "virtual.json").read_text())


@pytest.mark.parametrize("name", ["2x1x1", "1x4x1", "1x1x4", "2x2x2"])
def test_loss_and_gradients_agree(virtual, name):
    assert worst(virtual[0], name) < 1e-5


def test_adapters_agree_and_are_cut(virtual):
    arrays, facts = virtual
    assert worst(arrays, "adapter1x2x2", "adapter1x1x1") < 1e-5
    assert facts["adapter1x2x2"]["attention/query/a"] == [2, 16, 4]
    assert facts["adapter1x2x2"]["attention/query/b"] == [2, 4, 16]


def test_each_device_holds_its_part(virtual):
    shards = {name: virtual[1][name]["shards"] for name in ("2x1x1", "1x4x1", "1x1x4", "2x2x2")}
    query = "layers/attention/query/weight"
    assert shards["2x1x1"][query] == [2, 32, 32]
    assert shards["1x4x1"][query] == [2, 32, 8]
    assert shards["1x1x4"][query] == [2, 8, 32]
    assert shards["2x2x2"][query] == [2, 16, 16]
    assert shards["1x1x4"]["layers/attention/key/weight"] == [2, 16, 32]  # two heads, four devices
    assert shards["1x1x4"]["layers/mlp/down/weight"] == [2, 32, 16]
    assert shards["2x2x2"]["embed/table"] == [48, 16]


def test_no_device_gathers_the_batch(virtual):
    # 8 rows of 12 tokens: states cut by rows stay so, parameters alone are gathered.
    for name in ("1x4x1", "2x2x2"):
        gathered = virtual[1][name]["gathers"]
        assert gathered
        assert not [shape for shape in gathered if "12" in shape.split(",")]
    assert not virtual[1]["2x1x1"]["gathers"]


def test_a_step_keeps_the_shardings(virtual):
    facts = virtual[1]
    assert facts["donated"]
    assert facts["kept"]
    assert facts["mu_shard"] == [2, 32, 16]


@pytest.mark.parametrize("name", ["1x2x2", "1x2x1", "1x1x1"])
def test_four_devices_resume_on(virtual, name):
    facts = virtual[1]
    assert facts["steps"] == [1]
    assert facts[f"restored_{name}"]
    assert facts[f"placed_{name}"]
    # On the same mesh bit for bit; on others the sums run in another order, at a rate of 1e-3.
    assert facts[f"next_{name}"] <= (0 if name == "1x2x2" else 1e-5)


@pytest.mark.slow
def test_more_meshes(tmp_path):
    finish(run("more", tmp_path), 900)
    arrays = np.load(tmp_path / "more.npz")
    for name in ("1x2x1", "1x1x2", "4x1x1", "2x2x1", "8x1x1", "1x8x1", "1x2x4"):
        assert worst(arrays, name) < 1e-5, name


@pytest.mark.slow
def test_two_processes_agree(virtual, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [run("joined", tmp_path, port, own) for own in (0, 1)]
    for process in processes:
        finish(process)
    arrays, one = np.load(tmp_path / "joined.npz"), virtual[0]
    for name in ("2x2x1", "1x2x2"):
        for path in [path for path in arrays.files if path.startswith(name)]:
            want = one["1x1x1" + path[len(name) :]]
            assert np.abs(arrays[path] - want).max() <= 1e-5 * np.abs(want).max(), path
    # What two processes wrote, one reads.
    kept = Checkpoints(tmp_path / "joined")
    assert kept.steps() == [2]
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
        unflatten(
            {
                path[6:]: one[path]
                for path in one.files
                if path.startswith("1x1x1/") and path[6:] != "loss"
            }
        ),
    )
    rng = np.random.default_rng(1)
    for leaf in jax.tree.leaves(kept.restore(like)):
        np.testing.assert_array_equal(leaf, rng.normal(0, 0.2, leaf.shape).astype(np.float32))


def test_sizes_fit_the_devices():
    devices = jax.devices()[:1]
    mesh = make_mesh(MeshConfig(), devices)
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
    with pytest.raises(InputError, match="tensor 3 on 1 devices"):
        make_mesh(MeshConfig(tensor=3), devices)
    with pytest.raises(InputError, match="data 2, fsdp 1, tensor 1 on 1 devices"):
        make_mesh(MeshConfig(data=2), devices)
    for sizes in ((0, 1, 1), (-1, -1, 1), (1, -2, 1)):
        with pytest.raises(InputError, match="at most one of them -1"):
            MeshConfig(*sizes)


def test_rules_of_a_decoder():
    found = specs(shapes(CONFIG), config=CONFIG, fsdp=2, tensor=2)
    assert found["embed/table"] == PartitionSpec("tensor", "fsdp")
    assert found["layers/attention/query/weight"] == PartitionSpec(None, "tensor", "fsdp")
    assert found["layers/attention/value/bias"] == PartitionSpec(None, "tensor")
    assert found["layers/attention/out/weight"] == PartitionSpec(None, "fsdp", "tensor")
    assert found["layers/mlp/down/weight"] == PartitionSpec(None, "fsdp", "tensor")
    for name in ("layers/attention/query_norm/scale", "layers/mlp_norm/scale", "final_norm/scale"):
        assert not any(found[name])


def test_what_does_not_divide_stays_whole():
    found = specs(shapes(CONFIG), config=CONFIG, fsdp=3, tensor=4)
    assert found["layers/attention/query/weight"] == PartitionSpec(None, "tensor", None)
    assert found["layers/attention/key/weight"] == PartitionSpec(None, None, None)
    assert found["layers/attention/key/bias"] == PartitionSpec(None, None)
    # Without the config, two key heads of width 8 are 16 columns like any other.
    found = specs(shapes(CONFIG), tensor=4)
    assert found["layers/attention/key/weight"] == PartitionSpec(None, "tensor", "fsdp")


def test_every_family_has_its_rules():
    encoder = EncoderConfig(96, 32, 2, 4, 64, 32)
    tokens = jnp.zeros((1, 4), jnp.int32)
    params = jax.eval_shape(lambda: EncoderModule(encoder).init(jax.random.key(0), tokens, tokens))
    found = specs(params["params"], config=encoder, fsdp=2, tensor=2)
    assert found["embeddings/word"] == PartitionSpec("tensor", "fsdp")
    assert found["embeddings/position"] == PartitionSpec(None, "fsdp")
    assert found["layers/up/kernel"] == PartitionSpec(None, "fsdp", "tensor")
    gpt2 = families.config_from_hf({"model_type": "gpt2", "vocab_size": 96, "n_embd": 32,
                                    "n_head": 4, "n_layer": 2, "n_positions": 32})  # fmt: skip
    found = specs(shapes(gpt2), config=gpt2, fsdp=2, tensor=2)
    assert found["layers/attention/qkv/weight"] == PartitionSpec(None, None, "fsdp")
    assert found["layers/attention/out/weight"] == PartitionSpec(None, "fsdp", "tensor")
    assert found["positions/table"] == PartitionSpec(None, "fsdp")


def test_an_adapter_follows_its_matrix():
    params = shapes(CONFIG)
    pair = jax.eval_shape(lambda: lora.init(jax.random.key(0), lora.LoraConfig(rank=4), params))
    found = specs(pair, config=CONFIG, fsdp=2, tensor=2)
    assert found["attention/out/a"] == PartitionSpec(None, "tensor", None)
    assert found["attention/out/b"] == PartitionSpec(None, None, "fsdp")
    many = jax.eval_shape(lambda pair: lora.stack([pair, pair]), pair)
    found = specs(many, config=CONFIG, fsdp=2, tensor=2)
    assert found["mlp/gate/a"] == PartitionSpec(None, None, "fsdp", None)
    assert found["mlp/gate/b"] == PartitionSpec(None, None, None, "tensor")


@pytest.mark.parametrize("optimiser", [optax.adamw(1e-3), optax.adafactor(1e-3)])
def test_a_state_mirrors_its_parameters(optimiser):
    params = shapes(CONFIG)
    state = jax.eval_shape(
        lambda: {"opt": optimiser.init(families.init(jax.random.key(0), CONFIG)),
                 "keys": jax.random.split(jax.random.key(0), 3)}
    )  # fmt: skip
    found = specs(state, state_shardings, CONFIG, fsdp=2, tensor=2)
    leaves = dict(zip(found, jax.tree.leaves(state), strict=True))
    mirrored = specs(params, config=CONFIG, fsdp=2, tensor=2)
    for name, spec in found.items():
        own = [path for path in mirrored if name.endswith(f"/{path}")]
        same = own and leaves[name].ndim == len(mirrored[own[0]])
        assert tuple(spec) == tuple(mirrored[own[0]]) if same else not any(spec), name


def test_an_unknown_parameter_is_named():
    tree = {"layers": {"gate_of_none": {"w": jnp.zeros((2, 4))}}}
    with pytest.raises(InputError, match="'layers/gate_of_none/w' with 2 axes has no rule"):
        specs(tree)
    with pytest.raises(InputError, match="'layers/gate_of_none/w' with 2 axes has no rule"):
        specs(tree, state_shardings)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    own = param_shardings(tree, mesh, rules=((r"gate_of_none/w", ("embed", None)), *RULES))
    assert own["layers"]["gate_of_none"]["w"].spec == PartitionSpec("fsdp", None)


def test_batch_on_one_device():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    rows = np.arange(6, dtype=np.int32).reshape(3, 2)
    placed = shard_batch({"tokens": rows}, mesh)["tokens"]
    np.testing.assert_array_equal(placed, rows)
    assert placed.sharding == batch_sharding(mesh)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("127.0.0.1", 2, 0), "expected host:port"),
        (("127.0.0.1:\u00b2", 2, 0), "expected host:port"),
        (("127.0.0.1:1234", "\u00b2", 0), "processes: found '\u00b2', expected a whole number"),
        (("127.0.0.1:1234", 0, 0), "expected a whole number of at least 1"),
        ((None, 2, 0), "coordinator .*is missing; expected"),
        (("127.0.0.1:1234", None, 0), "distributed.processes .JAX_NUM_PROCESSES. is missing"),
        (("127.0.0.1:1234", 2, None), "JAX_PROCESS_ID. is missing"),
        (("127.0.0.1:1234", 2, 2), "process 2 of 2"),
        (("127.0.0.1:1", 2, 1), "no coordinator answers at 127.0.0.1:1 after 0 s"),
        (("127.0.0.1:1234", 2, 0), "could not join .*before any"),
    ],
)
def test_processes_that_cannot_join(given, said, monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert jax.device_count()  # too late to join
    assert start(DistributedConfig()) is None
    with pytest.raises(InputError, match=said):
        start(DistributedConfig(*given), timeout=0)


def test_a_variable_that_is_no_number_is_refused(monkeypatch):
    for name, value in zip(VARIABLES, ("127.0.0.1:1234", "\u00b2", "0"), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="is '\u00b2'; expected a whole number of at least 1"):
        start(DistributedConfig(), timeout=0)
