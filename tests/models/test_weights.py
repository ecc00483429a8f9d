"""Weights in and out: bit for bit, sharded, streamed; and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_lms
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_gguf import write_gguf

from jaxalign.errors import InputError
from jaxalign.models import families, language
from jaxalign.models import resolve as resolving
from jaxalign.models.language import load_language_model, save_language_model
from jaxalign.models.weights import save as saving
from jaxalign.models.weights.decoder import layout
from jaxalign.models.weights.load import abstract_params, load_params
from jaxalign.models.weights.safetensors import INDEX, SINGLE, Tensors, find_weights, open_tensors
from jaxalign.models.weights.save import save_params


def tensors_of(folder):
    found = {}
    for path in find_weights(folder):
        found |= load_file(path)
    return found


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name].view(torch.uint8), value.view(torch.uint8)), name


@pytest.mark.parametrize("name", tiny_lms.CONFIGS)
def test_round_trip_is_bit_identical(name, tmp_path):
    for dtype, shards, most in (
        ("float32", None, 5e9),
        ("float32", "20KB", 3e4),
        ("bfloat16", "20KB", 2e4),
    ):
        kind = getattr(torch, dtype)
        source = tiny_lms.write(tmp_path / f"{dtype}{shards}", name, dtype=kind, shards=shards)
        config = families.config_from_hf(json.loads((source / "config.json").read_text()))
        table = language.layout(config)
        with open_tensors(find_weights(source)) as tensors:
            params = load_params(tensors, table, dtype)
        target = tmp_path / f"{dtype}{shards}-again"
        save_params(target, params, table, most)
        assert (target / INDEX).is_file() == (shards is not None)
        assert_same_bits(tensors_of(target), tensors_of(source))


@pytest.mark.parametrize("name", ["llama-biased", "mistral", "qwen2-tied", "qwen3", "gpt2"])
def test_transformers_loads_what_was_saved(name, tmp_path):
    source = tiny_lms.write(tmp_path / "source", name)
    model = load_language_model(str(source))
    assert (model.name, model.config.dtype) == (str(source), "float32")
    target = tmp_path / "target"
    save_language_model(target, model, max_shard_bytes=3e4)
    again = transformers.AutoModelForCausalLM.from_pretrained(target)
    assert type(again) is type(tiny_lms.hf_model(name))
    assert_same_bits(again.state_dict(), tiny_lms.hf_model(name).state_dict())
    tokenizer = transformers.AutoTokenizer.from_pretrained(target)
    chat = [{"role": "user", "content": "the thing, née"}]
    for reader in (model.tokenizer, tokenizer):
        text = reader.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert text == "<|user|>the thing, née<|end|><|assistant|>"
        assert reader.decode(reader(text)["input_ids"]) == text
    # Over the shards of before, which go; at half the width.
    save_language_model(target, model, dtype="bfloat16")
    assert [path.name for path in target.glob("model*")] == [SINGLE]
    assert json.loads((target / "config.json").read_text())["dtype"] == "bfloat16"
    half = {name: value.bfloat16() for name, value in tensors_of(source).items()}
    assert_same_bits(tensors_of(target), half)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_gguf_becomes_a_folder_for_transformers(tmp_path):
    expected = write_gguf(tmp_path / "tiny.gguf", architecture="qwen2", tied=True)
    model = load_language_model(str(tmp_path / "tiny.gguf"))
    save_language_model(tmp_path / "folder", model)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder").state_dict()
    for name, value in expected.items():
        np.testing.assert_array_equal(again[name].numpy(), value, err_msg=name)
    found = load_language_model(str(tmp_path / "folder"))
    jax.tree.map(np.testing.assert_array_equal, found.params, model.params)
    assert found.config == model.config
    text = "hello the WORLD 123"
    assert found.tokenizer(text)["input_ids"] == model.tokenizer(text)["input_ids"]


def test_old_spellings_load_alike(tmp_path):
    config = families.config_from_hf(tiny_lms.hf_config("qwen2-tied").to_dict())
    model = tiny_lms.hf_model("qwen2-tied")
    expected = load_params(tiny_lms.in_memory(model), layout(config))
    state = {name.removeprefix("model."): value for name, value in model.state_dict().items()}
    del state["lm_head.weight"]
    state["layers.0.self_attn.rotary_emb.inv_freq"] = torch.arange(4)
    save_file({name: value.clone() for name, value in state.items()}, tmp_path / SINGLE)
    with open_tensors([tmp_path / SINGLE]) as tensors:
        jax.tree.map(np.testing.assert_array_equal, load_params(tensors, layout(config)), expected)


def test_classifiers_have_a_head_in_place_of_the_unembedding():
    config = families.config_from_hf(tiny_lms.hf_config("llama").to_dict())
    model = tiny_lms.hf_model("llama", labels=3)
    params = load_params(tiny_lms.in_memory(model), layout(config, labels=3))
    expected = model.score.weight.detach().numpy().T
    np.testing.assert_array_equal(params["head"]["kernel"], expected)
    assert "unembed" not in params


class Untouchable(dict):
    def get_tensor(self, name):
        raise AssertionError(f"{name} was read before all were checked")


def opened(state):
    """Names and shapes of tensors that must not be read."""
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    return Tensors("tiny", shapes, dict.fromkeys(state, Untouchable()))


def test_wrong_tensors_are_refused_before_any_is_read():
    config = families.config_from_hf(tiny_lms.hf_config("llama").to_dict())
    state = dict(tiny_lms.hf_model("llama").state_dict())
    name = "model.layers.1.mlp.up_proj.weight"
    cases = {
        rf"'{name}' is missing": {k: v for k, v in state.items() if k != name},
        r"'lm_head.weight' is missing": {k: v for k, v in state.items() if "lm_head" not in k},
        r"'model.layers.3.*' and 8 more are not part": state
        | {k.replace("layers.0", "layers.3"): v for k, v in state.items() if "layers.0" in k},
        rf"'{name}' has shape \[48, 31\].*asks for \[48, 32\]": state | {name: torch.zeros(48, 31)},
        r"'model.norm.weight' and 'norm.weight' are the same": state
        | {"norm.weight": state["model.norm.weight"]},
    }
    for match, changed in cases.items():
        with pytest.raises(InputError, match=match):
            load_params(opened(changed), layout(config))


def test_wrong_contents_are_refused():
    config = families.config_from_hf(tiny_lms.hf_config("qwen2-tied").to_dict())
    model = tiny_lms.hf_model("qwen2-tied")
    with pytest.raises(InputError, match="jax_enable_x64"):
        load_params(tiny_lms.in_memory(model), layout(config), "float64")
    tensors = tiny_lms.in_memory(model)
    state = next(iter(tensors._files.values())).state
    head = state["lm_head.weight"]
    state["lm_head.weight"] = head + 1
    with pytest.raises(InputError, match=r"'lm_head.weight' and 'model.embed.*differ"):
        load_params(tensors, layout(config))
    state["lm_head.weight"] = head
    state["model.norm.weight"] = torch.ones(32, dtype=torch.int8)
    with pytest.raises(InputError, match=r"'model.norm.weight' holds int8"):
        load_params(tensors, layout(config))


def test_wrong_parameters_are_not_saved(tmp_path):
    config = families.config_from_hf(tiny_lms.hf_config("llama").to_dict())
    table = layout(config)
    params = load_params(tiny_lms.in_memory(tiny_lms.hf_model("llama")), table)
    for match, changed in {
        "unembed.table is missing": {k: v for k, v in params.items() if k != "unembed"},
        "head.kernel is not part of it": params | {"head": {"kernel": jnp.zeros((32, 1))}},
        r"final_norm.scale has shape \[31\].*\[32\]": params
        | {"final_norm": {"scale": jnp.zeros(31)}},
        "final_norm.scale is int32": params | {"final_norm": {"scale": jnp.zeros(32, jnp.int32)}},
    }.items():
        with pytest.raises(InputError, match=match):
            save_params(tmp_path / "new", changed, table)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        save_params(tmp_path / "file", params, table)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_save_that_fails_leaves_the_old_model(tmp_path, monkeypatch):
    folder = tiny_lms.write(tmp_path / "model", "qwen3")
    (folder / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = load_language_model(str(folder))
    whole = saving.write_tensors
    calls = []

    def full_disk(*args):
        calls.append(args)
        if len(calls) == 3:
            raise OSError("No space left on device")
        whole(*args)

    monkeypatch.setattr(saving, "write_tensors", full_disk)
    with pytest.raises(InputError, match=r"model cannot be written \(No space left"):
        save_language_model(folder, model, max_shard_bytes=2e4)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    monkeypatch.undo()
    save_language_model(folder, model, max_shard_bytes=2e4)
    assert (folder / "notes.txt").read_text() == "mine"
    assert not (folder / SINGLE).exists()


def test_abstract_params_are_those_loaded():
    config = families.config_from_hf(tiny_lms.hf_config("qwen3").to_dict())
    params = load_params(tiny_lms.in_memory(tiny_lms.hf_model("qwen3")), layout(config), "float16")
    shapes = abstract_params(layout(config), "float16")
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), shapes
    )


def test_broken_folders_are_refused_by_name(tmp_path):
    folder = tiny_lms.write(tmp_path / "model", "llama")

    def refused(match, **options):
        with pytest.raises(InputError, match=match) as caught:
            load_language_model(str(folder), **options)
        assert len(str(caught.value).splitlines()) == 1

    refused("dtype is 'int8'", dtype="int8")
    refused("expected 0000", sha256="0" * 64)
    config = folder / "config.json"
    whole = config.read_text()
    for match, change in {
        "model_type is 'mamba'": {"model_type": "mamba"},
        "hidden_size": {"hidden_size": "32"},
        "8 more are missing": {"num_hidden_layers": 4},
        r"the tokenizer has 266 entries, the model 250": {"vocab_size": 250},
    }.items():
        config.write_text(json.dumps(json.loads(whole) | change))
        refused(match)
    config.write_text(whole[:-9])
    refused("not JSON")
    config.write_text(whole)
    weights = folder / SINGLE
    content = weights.read_bytes()
    weights.write_bytes(content[:-100])
    refused("not a whole safetensors file")
    weights.write_bytes(content)
    (folder / "tokenizer.json").write_text("{")
    refused("tokenizer cannot be read")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    refused("tokenizer cannot be read")
    config.unlink()
    refused("no such file")


def test_offline_says_where_to_put_it(own_cache, monkeypatch):
    monkeypatch.setattr(resolving, "_hub_answers", lambda: False)
    with pytest.raises(InputError, match="does not answer") as caught:
        load_language_model("owner/tiny")
    assert str(own_cache / "models" / "owner--tiny") in str(caught.value)


def test_a_config_of_few_fields_takes_transformers_defaults(tmp_path):
    folder = tiny_lms.write(tmp_path / "model", "mistral")
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    for name in ("sliding_window", "rms_norm_eps", "head_dim", "rope_parameters"):
        del settings[name]
    path.write_text(json.dumps(settings | {"rope_theta": 123.0}))
    config = load_language_model(str(folder)).config
    assert (config.window, config.norm_eps, config.head_width) == (4096, 1e-6, 8)
    assert config.rope.theta == 123.0


SHARDED = """
import sys, jax, numpy as np
sys.path.insert(0, sys.argv[2])
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxalign.models.language import load_language_model, save_language_model

mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
SPECS = {1: P("fsdp"), 2: P("tensor", "fsdp"), 3: P(None, "fsdp", "tensor")}

def places(shapes):
    def place(path, leaf):
        spec = P() if "bias" in str(path) else SPECS[len(leaf.shape)]
        spec = P("fsdp") if "norm" in str(path) and len(leaf.shape) == 2 else spec
        spec = P(None) if leaf.shape[0] % 2 else spec  # three layers
        spec = SPECS[3] if len(leaf.shape) == 3 else spec
        return NamedSharding(mesh, spec)
    return jax.tree_util.tree_map_with_path(place, shapes)

plain = load_language_model(sys.argv[1], unstack_layers=False)
model = load_language_model(sys.argv[1], shardings=places, unstack_layers=False)
jax.tree.map(np.testing.assert_array_equal, model.params, plain.params)
expected = places(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), plain.params))
jax.tree.map(lambda x, s: None if x.sharding == s else 1 / 0, model.params, expected)
gate = model.params["layers"]["mlp"]["gate"]["weight"]
assert len(gate.addressable_shards) == 8
assert {s.data.shape for s in gate.addressable_shards} == {(3, 24, 16)}, gate.sharding
save_language_model(sys.argv[3], model)
# Parameters may be given away, as a train step does, though they came from the host's memory.
step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
moved = step(model.params)
jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.asarray(b) + 1), moved, plain.params)
print("done")
"""


def run_python(code, *args, **environment):
    # Another process may be writing the compiled program that this one reads.
    warnings = ["-W", "error", "-W", "ignore:Error reading persistent compilation cache"]
    return subprocess.run(
        [sys.executable, *warnings, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_shards_go_straight_to_their_devices(tmp_path):
    source = tiny_lms.write(tmp_path / "model", "llama-biased")
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    arguments = (source, Path(__file__).parent, tmp_path / "again")
    done = run_python(SHARDED, *arguments, XLA_FLAGS=flags)
    assert done.stdout == "done\n", done.stderr[-3000:]
    assert_same_bits(tensors_of(tmp_path / "again"), tensors_of(source))


MEMORY = """
import sys, threading, time
import jax, jax.numpy as jnp
from jaxalign.models import families
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.weights.decoder import layout
from jaxalign.models.weights.load import load_params
from jaxalign.models.weights.save import save_params
from jaxalign.models.weights.safetensors import find_weights, open_tensors
from pathlib import Path

config = DecoderConfig("llama", vocab_size=16384, width=768, layers=8, heads=12, kv_heads=4,
                       head_width=64, hidden=1536, positions=64, tied=True)
table, folder, task = layout(config), Path(sys.argv[1]), sys.argv[2]

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

if task == "write":
    save_params(folder, families.init(jax.random.key(0), config), table, max_shard_bytes=6e7)
    raise SystemExit

dtype, peak, ended = sys.argv[3], [0], threading.Event()
jnp.zeros(8).astype(dtype).block_until_ready()
before = anonymous()

def watch():
    while not ended.is_set():
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.001)

watcher = threading.Thread(target=watch)
watcher.start()
with open_tensors(find_weights(folder)) as tensors:
    params = load_params(tensors, table, dtype)
size = sum(x.nbytes for x in jax.tree.leaves(params))
if task == "save":
    save_params(folder / "again", params, table, max_shard_bytes=6e7)
ended.set()
watcher.join()
print(size / 1e6, (peak[0] - before) / size)
"""


@pytest.mark.slow
def test_loading_and_saving_hold_little_beside_the_model(tmp_path):
    """RssAnon, since VmHWM counts the pages of the file that any reader maps."""
    assert run_python(MEMORY, tmp_path, "write").returncode == 0
    for task, dtype in (("load", "float32"), ("load", "bfloat16"), ("save", "float32")):
        done = run_python(MEMORY, tmp_path, task, dtype)
        size, share = map(float, done.stdout.split())
        assert size > (190 if dtype == "float32" else 95), done.stderr
        assert 0.9 < share < 1.3, (task, dtype)


def test_a_layer_may_be_loaded_into_another_dtype(tmp_path):
    source = tiny_lms.write(tmp_path / "model", "llama", dtype=torch.bfloat16)
    model = load_language_model(str(source), "float32")
    table = layout(model.config)
    save_params(tmp_path / "again", model.params, table)
    wide = {name: value.float() for name, value in tensors_of(source).items()}
    assert_same_bits(tensors_of(tmp_path / "again"), wide)
