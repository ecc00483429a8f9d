"""Layers apart: the same model as their stack, in values, gradients, files and adapters."""

from dataclasses import replace
from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_lms

from jaxalign.errors import InputError
from jaxalign.models import decoder, families, gpt2, lora, to_nnx
from jaxalign.models.classifier import Classifier
from jaxalign.models.decoder import recomputed
from jaxalign.models.language import LanguageModel, layout, load_language_model, save_language_model
from jaxalign.models.layers import layer_count, unstack_params, unstack_tree
from jaxalign.models.weights.load import abstract_params
from jaxalign.train.mesh import MeshConfig, make_mesh, param_shardings
from jaxalign.train.trunk import TrunkConfig

TOKENS = np.random.default_rng(0).integers(4, 200, (2, 5)).astype(np.int32)
LENGTHS = np.array([5, 3], np.int32)
SETTINGS = lora.LoraConfig(rank=2, alpha=4.0)


@cache
def model(name):
    config = families.config_from_hf(tiny_lms.hf_config(name).to_dict())
    params = jax.jit(families.init, static_argnums=1)(jax.random.key(0), config)
    return config, jax.tree.map(lambda leaf: np.asarray(4 * leaf, np.float32), params)


def adapter_of(params):
    tree = lora.init(jax.random.key(1), replace(SETTINGS, targets=targets(params)), params)
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.05) + leaf, tree)


def targets(params):
    return ("qkv", "up") if "qkv" in params["layers"]["attention"] else ("query", "up")


def loss(config, params, adapter, dropout=0.0):
    hidden, _ = families.forward(
        config, params, TOKENS, LENGTHS,
        adapters=adapter, adapter_dropout=dropout, dropout_key=jax.random.key(2),
    )  # fmt: skip
    logits = families.logits(params, hidden[:, :3])
    return jnp.sum(jax.nn.log_softmax(logits)[..., 5])


@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
@pytest.mark.parametrize(
    ("remat", "dropout"), [(None, 0.0), (None, 0.5), ("nothing_saveable", 0.5)]
)
def test_values_and_gradients_are_those_of_the_stack(name, remat, dropout, x64):
    config, params = model(name)
    config = replace(config, remat=remat, dtype="float64")
    params = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
    adapter = adapter_of(params)
    forms = (config, params), families.unstack_layers(config, params)
    found = [
        jax.jit(jax.value_and_grad(partial(loss, config, dropout=dropout), argnums=(0, 1)))(
            params, adapter
        )
        for config, params in forms
    ]
    (value, (slope, of_adapter)), (own, (own_slope, of_own)) = found
    chex.assert_trees_all_close(own, value, rtol=5e-15)
    chex.assert_trees_all_close(of_own, of_adapter, rtol=1e-11, atol=1e-12)
    chex.assert_trees_all_close(own_slope, unstack_params(slope), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_adapters_in_one_stack_and_apart_drop_the_same(name):
    config, params = model(name)
    adapter = adapter_of(params)
    apart = families.unstack_layers(config, params)
    run = jax.jit(loss, static_argnums=(0, 3))
    found = [run(*apart, own, 0.5) for own in (adapter, unstack_tree(config.layers, adapter))]
    chex.assert_trees_all_close(*found, rtol=1e-6)
    assert abs(found[0] - run(*apart, adapter, 0.0)) > 1e-3


def test_remat_recomputes_unstacked_layers_too():
    """XLA joins what is computed twice where nothing keeps the two apart."""
    config, params = model("llama")
    config, params = families.unstack_layers(config, params)

    def products(remat):
        gradient = jax.jit(jax.grad(partial(loss, replace(config, remat=remat))))
        text = gradient.lower(params, None).compile().as_text()
        return text.count(" dot(") + text.count("matmul")

    assert products("nothing_saveable") > products(None)


@pytest.mark.parametrize("unstacked", [False, True])
def test_a_backward_pass_keeps_the_inputs_of_an_activation_alone(unstacked):
    config = replace(model("gpt2")[0], unstacked=unstacked)
    inputs = jnp.linspace(-2, 2, 6).reshape(2, 3), jnp.ones((2, 3))

    def swiglu(gate, up):
        return jax.nn.silu(gate) * up

    value, pull = jax.vjp(recomputed(swiglu, config), *inputs)
    expected, pull_all = jax.vjp(swiglu, *inputs)
    assert len(jax.tree.leaves(pull)) == len(inputs) < len(jax.tree.leaves(pull_all))
    chex.assert_trees_all_close((value, pull(value)), (expected, pull_all(value)), rtol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_adapters_do_not_depend_on_the_form(name):
    _, params = model(name)
    apart, adapter = unstack_params(params), adapter_of(params)
    settings = replace(SETTINGS, targets=targets(params))
    found = [lora.init(jax.random.key(1), settings, form) for form in (params, apart)]
    chex.assert_trees_all_equal(*found)
    merged = unstack_params(lora.merge(params, adapter))
    chex.assert_trees_all_close(lora.merge(apart, adapter), merged, rtol=1e-6)
    assert layer_count(apart) == layer_count(params)


@pytest.mark.parametrize("name", ["qwen2", "gpt2"])
def test_files_are_read_and_written_in_either_form(name, tmp_path):
    folder = tmp_path / "model"
    tiny_lms.write(folder, name)
    stacked = load_language_model(str(folder), unstack_layers=False)
    apart = load_language_model(str(folder), unstack_layers=True)
    assert apart.config == replace(stacked.config, unstacked=True)
    chex.assert_trees_all_equal(apart.params, unstack_params(stacked.params))
    for name, held in (("stacked", stacked), ("apart", apart)):
        save_language_model(tmp_path / name, held)
    files = [tmp_path / name / "model.safetensors" for name in ("stacked", "apart")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_layers_of_another_form_than_the_config_says_are_refused():
    config, params = model("qwen3")
    other, layers = families.unstack_layers(config, params)
    assert families.unstack_layers(other, layers)[1] is layers
    for made, found in (
        (lambda: LanguageModel(config, layers, None, {}, "tiny", ""), "one tree per layer"),
        (lambda: LanguageModel(other, params, None, {}, "tiny", ""), "one stack of layers"),
        (lambda: families.unstack_layers(config, layers), "one tree per layer"),
    ):
        with pytest.raises(InputError, match=f"^params: found {found}, expected one .* as the"):
            made()


@pytest.mark.parametrize("unstacked", [False, True])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layers": 4}, (r"layers.* shape \[3, .*\], expected \[4, ", "layers_3.*is missing")),
        ({"layers": 2}, (r"layers.* shape \[3, .*\], expected \[2, ", "layers_2.* is not part")),
        ({"width": 16}, (r"embed.table has shape \[272, 32\], expected \[272, 16\] as the conf",)),
        ({"hidden": 24}, (r"layers.*mlp.* shape \[.*48.*\], expected \[.*24.*\] as the",)),
        ({"kv_heads": 4}, (r"layers.*key.weight has shape \[.*\], expected \[.*32, 32\]",)),
        ({"vocab_size": 9}, (r"embed.table has shape \[272, 32\], expected \[9, 32\] as",)),
        ({"qkv_bias": True}, ("layers.*attention.key.bias is missing, expected the parameters",)),
    ],
)  # fmt: skip
def test_parameters_of_another_model_are_refused_by_name(change, said, unstacked):
    config, params = model("llama")
    if unstacked:
        config, params = families.unstack_layers(config, params)
    other = replace(config, **change)
    head = {"head": {"kernel": jnp.zeros((config.width, 1))}}
    scored = {name: value for name, value in params.items() if name != "unembed"} | head
    tied = replace(other, tied=True)
    for made in (
        lambda: LanguageModel(other, params, None, {}, "tiny", ""),
        lambda: to_nnx(other, params),
        lambda: Classifier(tied, scored, None, ("r",), None, 8, None, "tiny", ""),
    ):
        with pytest.raises(InputError, match=f"^parameter {said[unstacked * (len(said) - 1)]}"):
            made()


def test_a_layer_lies_as_its_stack_does():
    config = families.config_from_hf(tiny_lms.hf_config("qwen2").to_dict())
    table, mesh = layout(config), make_mesh(MeshConfig(), jax.devices()[:1])
    of_stack = param_shardings(abstract_params(table), mesh)
    of_layers = param_shardings(abstract_params(table.unstacked()), mesh)
    for path, found in jax.tree.leaves_with_path(of_layers["layers_1"]):
        stack = of_stack["layers"]
        for key in path:
            stack = stack[key.key]
        assert found.spec == jax.sharding.PartitionSpec(*stack.spec[1:])


def test_a_split_is_differentiated_into_one_concatenation():
    text = jax.jit(
        jax.grad(lambda stack: sum(jnp.sum(part**2) for part in unstack_tree(4, stack)))
    ).lower(jnp.ones((4, 3))).as_text()  # fmt: skip
    assert text.count("stablehlo.concatenate") == 1
    assert "stablehlo.pad" not in text


def test_training_all_parameters_keeps_the_stack():
    assert TrunkConfig(method="full").unstacks is False
    assert TrunkConfig(unstack_layers=True).unstacks is True
    assert TrunkConfig().unstacks is None
    with pytest.raises(InputError, match="unstack_layers"):
        TrunkConfig(method="full", unstack_layers=True)


@pytest.mark.parametrize(("name", "module"), [("qwen3", decoder), ("gpt2", gpt2)])
def test_unstacked_layers_are_traced_once(name, module, monkeypatch):
    config, params = families.unstack_layers(*model(name))
    assert config.layers > 1
    chex.clear_trace_counter()  # of the same function in the other case
    monkeypatch.setattr(module, "attend", chex.assert_max_traces(module.attend, n=1))
    jax.jit(lambda params: loss(config, params, None)).trace(params)
