"""`jaxalign merge`: a folder of transformers, equal to peft's own merge, and what it refuses."""

import json

import jax
import numpy as np
import peft
import pytest
import tiny_lms
import torch
import transformers
from safetensors.numpy import load_file
from tiny_gguf import write_gguf

from jaxalign.cli import main
from jaxalign.models import LoraConfig, load_language_model, lora, save_adapter
from jaxalign.models.weights.adapter import CONFIG
from jaxalign.models.weights.save import INDEX

# Of the library peft, which asks its base for a name that is going away.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
TOKENS = np.random.default_rng(0).integers(4, 266, (2, 9))
TARGETS = {"one": ["q_proj", "down_proj"], "two": ["v_proj", "down_proj"], "head": ["k_proj"]}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A base and adapters of different matrices and ranks, one with a head of its own."""
    root = tmp_path_factory.mktemp("merge")
    base = tiny_lms.write(root / "base", "qwen2-tied", dtype=torch.bfloat16)
    for number, (name, targets) in enumerate(TARGETS.items()):
        model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        whole = ["input_layernorm"] if name == "head" else None
        settings = peft.LoraConfig(r=2 + number, target_modules=targets, modules_to_save=whole)
        model = peft.get_peft_model(model, settings)
        torch.manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        model.save_pretrained(root / name)
    return root


@pytest.fixture
def merge(world, capsys):
    def call(*arguments):
        capsys.readouterr()  # of transformers
        code = main(["merge", *map(str, arguments)])
        found = capsys.readouterr()
        return code, found.out, found.err

    return call


def theirs(world, weights):
    """Of peft: the base plus the weighted sum of updates, float32."""
    base = transformers.AutoModelForCausalLM.from_pretrained(world / "base", dtype=torch.float32)
    start = {name: value.clone() for name, value in base.state_dict().items()}
    total = dict(start)
    for name, weight in weights.items():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            world / "base", dtype=torch.float32
        )
        merged = peft.PeftModel.from_pretrained(model, world / name).merge_and_unload()
        for part, value in merged.state_dict().items():
            total[part] = total[part] + weight * (value - start[part])
    base.load_state_dict(total)
    return base.eval()


def logits(model):
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.float().numpy()


@pytest.mark.parametrize(
    "weights", [{"one": 1.0}, {"head": 1.0}, {"one": 0.3, "two": 0.7}, {"two": -0.5, "one": 2.0}]
)
def test_transformers_loads_what_peft_merges(weights, world, merge, tmp_path):
    adapters = [world / name for name in weights]
    shares = ["--weights", *weights.values()] if len(weights) > 1 else []
    more = ["--dtype", "float32", "--shard-gb", 4e-5, "--out", tmp_path / "out"]
    code, said, shown = merge("--adapter", *adapters, *shares, *more)
    assert code == 0, shown
    assert "parameters in float32; wrote" in said
    assert f"{adapters[0]} is merged" in shown
    assert (tmp_path / "out" / INDEX).is_file()
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.dtype == torch.float32
    expected = logits(theirs(world, weights))
    assert np.abs(logits(model) - expected).max() < 1e-5 * np.abs(expected).max()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("the thing").input_ids == tiny_lms.tokenizer()("the thing").input_ids
    again = load_language_model(str(tmp_path / "out"))
    if len(weights) == 1:
        alone = load_language_model(str(world / next(iter(weights))))
        jax.tree.map(np.testing.assert_array_equal, again.params, alone.params)


def test_the_dtype_is_that_of_the_base(world, merge, tmp_path):
    code, said, _ = merge("--adapter", world / "one", "--out", tmp_path / "out")
    assert code == 0
    assert "in bfloat16" in said
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert {value.dtype.name for value in found.values()} == {"bfloat16"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    base = load_file(world / "base" / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    np.testing.assert_array_equal(found[name], base[name])


def test_an_adapter_of_a_gguf_file(merge, tmp_path):
    write_gguf(tmp_path / "m.gguf")
    model = load_language_model(str(tmp_path / "m.gguf"))

    settings = LoraConfig(rank=2, targets=("query",))
    tree = lora.init(jax.random.key(0), settings, model.params)
    tree = jax.tree.map(lambda x: x + 0.1, tree)
    save_adapter(tmp_path / "adapter", tree, settings, str(tmp_path / "m.gguf"), model.config)
    code, said, shown = merge("--adapter", tmp_path / "adapter", "--out", tmp_path / "out")
    assert code == 0, shown
    assert "in float32" in said
    merged = lora.merge(model.params, lora.scaled(tree, settings))
    found = load_language_model(str(tmp_path / "out")).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, merged)


def test_what_cannot_be_merged_is_one_sentence(world, merge, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    other = tmp_path / "other"
    other.mkdir()
    for path in (world / "one").iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    tiny_lms.write(tmp_path / "base", "qwen2-tied")
    settings = json.loads((other / CONFIG).read_text())
    settings["base_model_name_or_path"] = str(tmp_path / "base")
    (other / CONFIG).write_text(json.dumps(settings))
    one, two, head = (world / name for name in TARGETS)
    new = tmp_path / "new"
    cases = {
        (one, two, "--out", new): "2 adapters and no weights; expected a weight for each",
        (one, two, "--weights", 1, "--out", new): "for 2 adapters",
        (one, "--weights", "nan", "--out", new): "expected a finite number",
        (one, other, "--weights", 1, 1, "--out", new): "expected adapters of one model",
        (head, "--weights", 0.5, "--out", new): "whole matrices",
        (world / "base", "--out", new): "holds a whole language model (qwen2)",
        (one, "--out", full): "is not empty",
        (one, "--model", one, "--out", new): "is in the model already",
        (one, "--shard-gb", 0, "--out", new): "--shard-gb",
        (one, "--model", tmp_path / "none", "--out", new): "no such file or folder",
    }
    for arguments, words in cases.items():
        code, _, said = merge("--adapter", *arguments)
        assert code == 2, arguments
        assert said.startswith("jaxalign: ")
        assert said.count("\n") == 1
        assert words in said, said
    for model, words in {
        (): "found no adapter to merge",
        ("--model", world / "base"): "expected a LoRA adapter: give its folder",
    }.items():
        code, _, said = merge(*model, "--out", new)
        assert (code, words in said) == (2, True), said
    assert not new.exists()
    assert [path.name for path in full.iterdir()] == ["notes.txt"]


def test_artefacts_state_their_models_in_full(world, tmp_path, monkeypatch):
    """A folder below the working directory is found from elsewhere too."""
    monkeypatch.chdir(world)
    model = load_language_model("base")
    settings = LoraConfig(rank=2, targets=("query",))
    save_adapter(tmp_path / "made", lora.init(jax.random.key(0), settings, model.params), settings,
         "base", model.config)  # fmt: skip
    monkeypatch.chdir("/")
    written = json.loads((tmp_path / "made" / CONFIG).read_text())
    assert written["base_model_name_or_path"] == str(world / "base")
    assert load_language_model(str(tmp_path / "made")).config == model.config
