"""GPT-2 against transformers on torch, its cache, its adapters and its refusals."""

from dataclasses import replace
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tiny_lms import double, hf_config, hf_model, in_double

from jaxalign.errors import InputError
from jaxalign.models import families, lora
from jaxalign.models.gpt2 import GPT2Config
from jaxalign.models.weights.gpt2 import layout
from jaxalign.models.weights.load import load_params
from jaxalign.models.weights.safetensors import find_weights, open_tensors
from jaxalign.models.weights.save import save_params

B, T = 4, 9
LENGTHS = np.array([9, 1, 6, 3], np.int32)
TOKENS = np.random.default_rng(0).integers(2, hf_config("gpt2").vocab_size, (B, T), np.int32)
REAL = np.arange(T)[None, :] < LENGTHS[:, None]
SWITCHES = {"plain": {}, "untied": {"tie_word_embeddings": False}, "hidden": {"n_inner": 40}}

forward = jax.jit(families.forward, static_argnums=0)


def load(folder, model, dtype="float32"):
    """A model of transformers, by way of its files."""
    model.save_pretrained(folder)
    config = GPT2Config.from_hf(model.config.to_dict(), dtype)
    with open_tensors(find_weights(folder)) as tensors:
        return config, load_params(tensors, layout(config), dtype)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    model = hf_model("gpt2")
    return model, *load(tmp_path_factory.mktemp("gpt2"), model)


def theirs(model, **inputs):
    with torch.no_grad(), in_double():
        mask = torch.tensor(REAL).long()
        return model(attention_mask=mask, **inputs).logits.numpy()[REAL]


def relative(found, expected):
    found = np.asarray(found)
    assert found.shape == expected.shape
    return np.max(np.abs(found - expected)) / np.max(np.abs(expected))


@pytest.mark.parametrize("name", SWITCHES)
def test_float32_logits_agree_with_transformers(tmp_path, name):
    model = hf_model("gpt2", **SWITCHES[name])
    config, params = load(tmp_path, model)
    assert config.tied == (name != "untied")
    hidden, cache = forward(config, params, TOKENS, LENGTHS)
    assert cache is None
    found = families.logits(params, hidden)[REAL]
    assert relative(found, theirs(model, input_ids=torch.tensor(TOKENS))) < 1e-4


def test_float64_logits_agree_with_transformers(tmp_path, x64):
    model = double(hf_model("gpt2", tie_word_embeddings=False))
    config, params = load(tmp_path, model, "float64")
    hidden, _ = forward(config, params, TOKENS, LENGTHS)
    found = families.logits(params, hidden)[REAL]
    assert found.dtype == jnp.float64
    assert relative(found, theirs(model, input_ids=torch.tensor(TOKENS))) < 1e-10


def test_embeddings_path_agrees_with_transformers(tiny):
    model, config, params = tiny
    soft = np.random.default_rng(1).normal(size=(B, T, config.width)).astype(np.float32)
    hidden, _ = forward(config, params, None, LENGTHS, embeddings=soft)
    found = families.logits(params, hidden)[REAL]
    assert relative(found, theirs(model, inputs_embeds=torch.tensor(soft))) < 1e-4
    rows = families.embed(config, params, TOKENS)
    alike, _ = forward(config, params, None, LENGTHS, embeddings=rows)
    np.testing.assert_array_equal(alike, forward(config, params, TOKENS, LENGTHS)[0])


def test_padding_changes_nothing(tiny):
    _, config, params = tiny
    wide = np.pad(TOKENS, ((0, 0), (0, 4)), constant_values=7)
    found, _ = forward(config, params, wide, LENGTHS)
    expected, _ = forward(config, params, TOKENS, LENGTHS)
    assert relative(found[:, :T][REAL], np.asarray(expected[REAL])) < 1e-5


def test_cached_decoding_equals_the_full_pass(tiny):
    """Ragged prompts, then one token a row at a time, and then several at once."""
    _, config, params = tiny
    rng = np.random.default_rng(2)
    more = rng.integers(2, config.vocab_size, (B, 5), np.int32)
    whole = np.zeros((B, T + 5), np.int32)
    for row, length in enumerate(LENGTHS):
        whole[row, : length + 5] = [*TOKENS[row, :length], *more[row]]
    expected, _ = forward(config, params, whole, LENGTHS + 5)
    cache = families.new_cache(config, B, T + 5)
    prompt, cache = forward(config, params, TOKENS, LENGTHS, cache=cache)
    assert relative(prompt[REAL], np.asarray(expected[:, :T][REAL])) < 1e-5
    rows, starts = np.arange(B), LENGTHS
    for step in range(2):
        new = more[:, step : step + 1]
        hidden, cache = forward(config, params, new, cache=cache, starts=starts)
        assert relative(hidden[:, 0], np.asarray(expected[rows, starts])) < 1e-5
        starts = starts + 1
    hidden, _ = forward(config, params, more[:, 2:], cache=cache, starts=starts)
    places = starts[:, None] + np.arange(3)[None, :]
    assert relative(hidden, np.asarray(expected[rows[:, None], places])) < 1e-5


def test_switches_change_neither_values_nor_gradients(tiny):
    _, config, params = tiny

    @partial(jax.jit, static_argnums=1)
    def run(params, config):
        def loss(params):
            hidden, _ = families.forward(config, params, TOKENS)
            return jnp.sum(jnp.where(REAL[:, :, None], hidden, 0) ** 3)

        return jax.value_and_grad(loss)(params)

    value, gradient = run(params, config)
    scale = max(float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(gradient))
    for switches in ({"unroll": True}, {"remat": "nothing_saveable"}):
        again, found = run(params, replace(config, **switches))
        np.testing.assert_allclose(again, value, rtol=1e-5)
        chex.assert_trees_all_close(found, gradient, rtol=1e-3, atol=1e-5 * scale)


def test_bfloat16_stays_near(tiny):
    _, config, params = tiny
    expected, _ = forward(config, params, TOKENS, LENGTHS)
    found, _ = forward(replace(config, dtype="bfloat16"), params, TOKENS, LENGTHS)
    assert found.dtype == jnp.bfloat16
    assert relative(found.astype(jnp.float32)[REAL], np.asarray(expected[REAL])) < 0.1


def test_adapters_equal_merged_matrices_row_by_row(tiny):
    _, config, params = tiny
    size = lora.LoraConfig(rank=3, targets=("qkv", "out", "up", "down"))
    adapters = []
    shapes = jax.eval_shape(lambda key: lora.init(key, size, params), jax.random.key(0))
    rng = np.random.default_rng(3)
    for _ in range(2):
        drawn = jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype("f"), shapes)
        adapters.append(lora.scaled(drawn, size))
    assert adapters[0].keys() == {"attention", "mlp"}
    rows = np.array([1, -1, 0, 1], np.int32)
    found, _ = forward(config, params, TOKENS, LENGTHS, adapters=lora.stack(adapters), rows=rows)
    for row, own in enumerate(rows):
        merged = params if own < 0 else lora.merge(params, adapters[own])
        expected, _ = forward(config, merged, TOKENS, LENGTHS)
        real = REAL[row]
        assert relative(found[row][real], np.asarray(expected[row][real])) < 1e-4
    assert relative(found[0], np.asarray(forward(config, params, TOKENS)[0][0])) > 1e-2


def test_fresh_parameters_have_the_layout_of_loaded_ones(tiny, tmp_path):
    untied = load(tmp_path, hf_model("gpt2", tie_word_embeddings=False))
    for config, loaded in (tiny[1:], untied):
        fresh = jax.eval_shape(
            lambda key, config=config: families.init(key, config), jax.random.key(0)
        )
        assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, loaded)


def test_texts_past_the_positions_are_refused_or_nan(tiny):
    _, config, params = tiny
    with pytest.raises(InputError, match=r"129 tokens.*128 positions"):
        families.forward(config, params, np.ones((1, 129), np.int32))
    cache = families.new_cache(config, 2, 130)
    starts = np.array([127, 128], np.int32)
    hidden, _ = forward(config, params, np.ones((2, 1), np.int32), cache=cache, starts=starts)
    assert np.isfinite(hidden[0]).all()
    assert np.isnan(hidden[1]).all()


@pytest.mark.parametrize("changes", SWITCHES.values(), ids=SWITCHES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_way_back_to_transformers_is_bit_identical(tmp_path, changes, dtype):
    model = hf_model("gpt2", **changes).to(getattr(torch, dtype))
    config, params = load(tmp_path / "theirs", model, dtype)
    save_params(tmp_path / "ours", params, layout(config))
    expected, found = (
        load_file(tmp_path / who / "model.safetensors") for who in ("theirs", "ours")
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == value.dtype


def test_old_files_load_alike(tiny, tmp_path):
    """Without the prefix, and with the buffers and the copy of the head that old versions kept."""
    from safetensors.numpy import save_file

    model, config, expected = tiny
    tensors = {name: value.numpy() for name, value in model.transformer.state_dict().items()}
    tensors["h.0.attn.bias"] = np.ones((1, 1, 8, 8), np.float32)
    tensors["h.0.attn.masked_bias"] = np.array(-1e4, np.float32)
    tensors["lm_head.weight"] = tensors["wte.weight"].copy()
    save_file(tensors, tmp_path / "model.safetensors")
    with open_tensors(find_weights(tmp_path)) as opened:
        found = load_params(opened, layout(config))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"scale_attn_weights": False}, "scale_attn_weights"),
        ({"scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx"),
        ({"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"n_head": 5}, "multiple"),
        ({"n_embd": "32"}, "n_embd"),
        ({"n_positions": 0}, "n_positions"),
    ],
)
def test_other_switches_are_refused_by_name(change, match):
    settings = hf_config("gpt2").to_dict()
    assert isinstance(families.config_from_hf(settings), GPT2Config)
    with pytest.raises(InputError, match=match):
        families.config_from_hf(settings | change)
