"""Adapters against the library peft, both ways, and what is refused."""

import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import tiny_lms
import torch
from safetensors.torch import load_file, save_file

from jaxalign.errors import InputError
from jaxalign.models import families, language, lora
from jaxalign.models.peft import CONFIG, WEIGHTS, load_adapter, save_adapter
from jaxalign.models.weights.load import load_params

# Of the library peft, which asks its base for a name that is going away.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
forward = jax.jit(families.forward, static_argnums=0)
TOKENS = np.random.default_rng(0).integers(4, 266, (2, 9)).astype(np.int32)
EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = {
    "every": ("llama", {"target_modules": EVERY, "r": 4, "lora_alpha": 12}),
    "patterns": (
        "qwen2-tied",
        {
            "target_modules": ["q_proj", "down_proj", "v_proj"],
            "r": 4,
            "lora_alpha": 8,
            "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 6},
            "alpha_pattern": {"v_proj": 5},
        },
    ),
    "stabilised": (
        "qwen3",
        {"target_modules": ["k_proj", "up_proj"], "r": 9, "use_rslora": True, "lora_dropout": 0.1},
    ),
    "some layers": (
        "llama",
        {"target_modules": ["o_proj", "gate_proj"], "r": 3, "layers_to_transform": [0, 2]},
    ),
    "expression": ("llama", {"target_modules": r".*layers\.[01]\.self_attn\.(q|v)_proj", "r": 2}),
    "left out": (
        "llama",
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["layers.1.self_attn.q_proj"]},
    ),
    "gpt2": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "r": 4, "fan_in_fan_out": True}),
    "gpt2 one": ("gpt2", {"target_modules": ["mlp.c_proj"], "r": 4, "fan_in_fan_out": True}),
}


@cache
def ours(name):
    config = families.config_from_hf(tiny_lms.hf_config(name).to_dict())
    tensors = tiny_lms.in_memory(tiny_lms.hf_model(name))
    return config, load_params(tensors, language.layout(config))


def write(folder, name, **settings):
    """A random adapter of peft in a folder, and the model with it."""
    config = peft.LoraConfig(task_type="CAUSAL_LM", **settings)
    model = peft.get_peft_model(tiny_lms.hf_model(name), config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            if "lora_" in part:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def theirs(model):
    with torch.no_grad():
        return model(torch.tensor(TOKENS).long()).logits.numpy()


def relative(found, expected):
    return np.max(np.abs(np.asarray(found) - expected)) / np.max(np.abs(expected))


@pytest.mark.parametrize("case", CASES)
def test_logits_agree_with_peft_and_the_way_back(case, tmp_path):
    name, settings = CASES[case]
    expected = theirs(write(tmp_path / "in", name, **settings))
    config, params = ours(name)
    adapter_config, adapter = load_adapter(tmp_path / "in", config)
    assert adapter_config.dropout == settings.get("lora_dropout", 0.0)
    merged = lora.merge(params, lora.scaled(adapter, adapter_config))
    states = forward(config, merged, TOKENS)[0]
    assert relative(families.logits(params, states), expected) < 1e-4
    plain = theirs(tiny_lms.hf_model(name))
    assert relative(plain, expected) > 1e-2
    save_adapter(tmp_path / "out", adapter, adapter_config, "tiny", config)
    model = tiny_lms.hf_model(name)
    again = theirs(peft.PeftModel.from_pretrained(model, tmp_path / "out").eval())
    assert relative(again, expected) < (1e-6 if case != "patterns" else 1e-5)
    if case not in ("patterns", "some layers", "expression", "left out"):
        before, after = (load_file(tmp_path / side / WEIGHTS) for side in ("in", "out"))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[part], after[part]) for part in before)


def test_beside_the_weights_equals_merged(tmp_path):
    write(tmp_path, "gpt2", target_modules=["c_attn", "c_fc", "c_proj"], fan_in_fan_out=True)
    config, params = ours("gpt2")
    adapter_config, adapter = load_adapter(tmp_path, config)
    scaled = lora.scaled(adapter, adapter_config)
    merged, _ = forward(config, lora.merge(params, scaled), TOKENS)
    beside, _ = forward(config, params, TOKENS, adapters=scaled)
    assert relative(beside, np.asarray(merged)) < 1e-5


def test_an_adapter_made_here_loads_in_peft(tmp_path):
    config, params = ours("qwen3")
    settings = lora.LoraConfig(rank=3, alpha=7.5, targets=("value", "gate", "down"))
    adapter = lora.init(jax.random.key(0), settings, params)
    draw = np.random.default_rng(1).normal
    adapter = jax.tree.map(lambda x: x + np.float32(0.2) * draw(size=x.shape).astype("f"), adapter)
    save_adapter(tmp_path / "out", adapter, settings, "tiny", config)
    model = peft.PeftModel.from_pretrained(tiny_lms.hf_model("qwen3"), tmp_path / "out").eval()
    states, _ = forward(config, params, TOKENS, adapters=lora.scaled(adapter, settings))
    assert relative(families.logits(params, states), theirs(model)) < 1e-4
    found, again = load_adapter(tmp_path / "out", config)
    assert found == settings
    jax.tree.map(np.testing.assert_array_equal, again, adapter)
    written = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert written["base_model_name_or_path"] == "tiny"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    write(folder, "llama", target_modules=["q_proj", "up_proj"], r=4)
    return folder


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"modules_to_save": ["score"]}, r"modules_to_save is \['score'\]"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        (
            {"target_modules": ["q_proj", "embed_tokens"]},
            "'embed_tokens'.*not read.*merge_and",
        ),
        ({"target_modules": ["q_proj", "lm_head"]}, "'lm_head'.*of the head are not read"),
        ({"target_modules": ["c_attn"]}, "'c_attn'.*for another model"),
        ({"target_modules": None}, "target_modules is None"),
        ({"target_modules": "*proj"}, r"target_modules has '\*proj', which is no regular expr"),
        ({"rank_pattern": {"(up": 3}}, r"rank_pattern has '\(up', which is no regular expression"),
        ({"lora_alpha": 0}, "LoRA with alpha 0.0"),
        ({"target_modules": ["q_proj"]}, r"up_proj.*no part of this model \(6 such\)"),
        ({"target_modules": ["q_proj", "up_proj", "k_proj"]}, r"k_proj.*is missing"),
        ({"r": 5}, r"has shape \[4, 32\].*ask for \[5, 32\]"),
        ({"r": None}, "r is None"),
        ({"r": 0}, "r is 0"),
        ({"lora_alpha": "much"}, "lora_alpha"),
        ({"rank_pattern": {"up_proj": 3}}, r"up_proj.*has shape \[4, 32\]"),
        ({"layers_to_transform": [0]}, r"layers\.1.*no part of this model"),
    ],
)
def test_other_adapters_are_refused_by_name(plain, tmp_path, change, match):
    settings = json.loads((plain / CONFIG).read_text()) | change
    (tmp_path / CONFIG).write_text(json.dumps(settings))
    (tmp_path / WEIGHTS).write_bytes((plain / WEIGHTS).read_bytes())
    with pytest.raises(InputError, match=match):
        load_adapter(tmp_path, ours("llama")[0])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"num_hidden_layers": 4}, r"layers\.3.*is missing"),
        ({"num_hidden_layers": 2}, r"layers\.2.*no part of this model"),
        ({"hidden_size": 64}, r"has shape \[4, 32\].*ask for \[4, 64\]"),
        ({"intermediate_size": 50}, r"has shape \[48, 4\].*ask for \[50, 4\]"),
    ],
)
def test_an_adapter_of_another_model_is_refused(plain, change, match):
    config = families.config_from_hf(tiny_lms.hf_config("llama", **change).to_dict())
    with pytest.raises(InputError, match=match) as caught:
        load_adapter(plain, config)
    assert "for another model?" in str(caught.value)


def test_broken_folders_are_refused(plain, tmp_path):
    config = ours("llama")[0]
    with pytest.raises(InputError, match=f"{CONFIG}: no such file"):
        load_adapter(tmp_path, config)
    (tmp_path / CONFIG).write_text((plain / CONFIG).read_text())
    with pytest.raises(InputError, match=f"{WEIGHTS} is missing"):
        load_adapter(tmp_path, config)
    (tmp_path / WEIGHTS).write_bytes((plain / WEIGHTS).read_bytes()[:-9])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        load_adapter(tmp_path, config)
    tensors = load_file(plain / WEIGHTS)
    save_file(tensors | {"base_model.model.lm_head.lora_A.weight": torch.zeros(4, 32)},
              tmp_path / WEIGHTS)  # fmt: skip
    with pytest.raises(InputError, match="lm_head"):
        load_adapter(tmp_path, config)


def test_adapters_that_do_not_fit_are_not_saved(tmp_path):
    config, params = ours("llama")
    settings = lora.LoraConfig(rank=2, targets=("query",))
    adapter = lora.init(jax.random.key(0), settings, params)
    pair = adapter["attention"]["query"]
    for match, changed in {
        "mlp.query, which the model lacks": {"mlp": {"query": pair}},
        r"attention.query has shape \[2, 32, 2\]": {
            "attention": {"query": {"a": pair["a"][:2], "b": pair["b"]}}
        },
        r"attention.key has shape \[3, 2, 32\]": {"attention": {"key": pair}},
    }.items():
        with pytest.raises(InputError, match=match):
            save_adapter(tmp_path / "out", changed, settings, "tiny", config)
    assert not (tmp_path / "out").exists()
    assert jnp.all(pair["b"] == 0)
