"""The Llama family against transformers on torch: every switch, cache, adapters, gradients."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_lms
import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from jaxalign.errors import InputError
from jaxalign.models import families, lora
from jaxalign.models.rope import rotation
from jaxalign.models.weights.decoder import layout
from jaxalign.models.weights.load import load_params

B, T = 4, 12
LENGTHS = np.array([12, 1, 7, 3], np.int32)
TOKENS = np.random.default_rng(0).integers(4, 266, (B, T)).astype(np.int32)
VALID = np.arange(T)[None, :] < LENGTHS[:, None]

forward = jax.jit(families.forward, static_argnums=0, static_argnames="adapter_dropout")
merge = jax.jit(lora.merge, static_argnames="sign")


@cache
def torch_model(name):
    return tiny_lms.hf_model(name)


@cache
def ours(name, dtype="float32"):
    config = families.config_from_hf(tiny_lms.hf_config(name).to_dict(), dtype)
    model = torch_model(name)
    return config, load_params(tiny_lms.in_memory(model), layout(config), dtype)


def logits(config, params, *args, **kwargs):
    return families.logits(params, forward(config, params, *args, **kwargs)[0])


def theirs(model, tokens=None, mask=VALID, **inputs):
    tokens = None if tokens is None else torch.tensor(tokens).long()
    with torch.no_grad():
        return model(tokens, torch.tensor(mask).long(), **inputs).logits.numpy()


def relative(found, expected, mask=VALID):
    found, expected = np.asarray(found, np.float64)[mask], np.asarray(expected)[mask]
    return np.max(np.abs(found - expected)) / np.max(np.abs(expected))


@pytest.mark.parametrize("name", tiny_lms.DECODERS)
def test_float32_agrees_with_transformers(name):
    config, params = ours(name)
    found = logits(config, params, TOKENS, LENGTHS)
    assert found.dtype == jnp.float32
    assert relative(found, theirs(torch_model(name), TOKENS)) < 1e-4


@pytest.mark.parametrize("name", tiny_lms.DECODERS)
def test_float64_agrees_with_transformers(name, x64):
    model = tiny_lms.double(tiny_lms.hf_model(name))
    with tiny_lms.in_double():
        expected = theirs(model, TOKENS)
    config = families.config_from_hf(tiny_lms.hf_config(name).to_dict(), "float64")
    params = load_params(tiny_lms.in_memory(model), layout(config), "float64")
    found = logits(config, params, TOKENS, LENGTHS)
    assert (found.dtype, expected.dtype) == (jnp.float64, np.float64)
    assert relative(found, expected) < 1e-10


def test_every_parameter_counts():
    """Else a switch that both sides ignore, or a tensor never used, would pass unseen."""
    for name in ("llama-biased", "qwen3"):
        config, params = ours(name)
        gradients = jax.jit(jax.grad(lambda p, config=config: jnp.sum(
            logits(config, p, TOKENS, LENGTHS)[VALID] ** 2)))(params)  # fmt: skip
        for path, value in jax.tree_util.tree_leaves_with_path(gradients):
            # Attention does not see what all keys share.
            if jax.tree_util.keystr(path) != "['layers']['attention']['key']['bias']":
                assert np.abs(value).max() > 1e-3, path


def test_windows_matter():
    config, params = ours("mistral")
    assert config.window == 5
    wide = logits(replace(config, window=None), params, TOKENS, LENGTHS)
    assert relative(wide, logits(config, params, TOKENS, LENGTHS)) > 1e-2


@pytest.mark.parametrize("name", ["llama", "llama-llama3", "llama-linear"])
def test_rotation_tables(name, x64):
    config = tiny_lms.hf_config(name)
    with tiny_lms.in_double():
        cos, sin = LlamaRotaryEmbedding(config)(
            torch.zeros(1, dtype=torch.float64), torch.arange(100)[None]
        )
    rope, width = families.config_from_hf(config.to_dict()).rope, config.head_dim
    found = rotation(rope, width, jnp.arange(100)[None], "float64")
    for ours_, theirs_ in zip(found, (cos, sin), strict=True):
        np.testing.assert_allclose(ours_, theirs_[..., : width // 2], rtol=0, atol=1e-12)


def test_embeddings_take_the_place_of_tokens():
    config, params = ours("qwen2-tied")
    embeddings = jax.random.normal(jax.random.key(0), (B, T, config.width))
    found = logits(config, params, None, LENGTHS, embeddings=embeddings)
    inputs = {"inputs_embeds": torch.tensor(np.asarray(embeddings))}
    assert relative(found, theirs(torch_model("qwen2-tied"), **inputs)) < 1e-4
    words = families.embed(config, params, TOKENS)
    found = logits(config, params, None, LENGTHS, embeddings=words)
    np.testing.assert_array_equal(found, logits(config, params, TOKENS, LENGTHS))


def test_padding_and_order_change_nothing():
    config, params = ours("mistral")
    expected = logits(config, params, TOKENS, LENGTHS)
    order = np.array([3, 0, 2, 1])
    tokens = np.pad(TOKENS, ((0, 0), (0, 5)), constant_values=9)
    tokens[:, :T][~VALID] = 77
    found = logits(config, params, tokens[order], LENGTHS[order])[:, :T]
    assert relative(found, expected[order], VALID[order]) < 1e-5


def test_a_token_outside_the_table_shows():
    config, params = ours("llama")
    tokens = np.full((1, 2), config.vocab_size, np.int32)
    assert np.isnan(families.embed(config, params, tokens)).all()


@partial(jax.jit, static_argnums=0)
def loss_and_gradient(config, params):
    def loss(params):
        values = logits(config, params, TOKENS, LENGTHS)[VALID]
        return jnp.sum(jax.nn.log_softmax(values)[:, 5])

    return jax.value_and_grad(loss)(params)


@pytest.mark.parametrize(
    "switches", [{"unroll": True}, {"remat": "nothing_saveable"}, {"remat": "dots_saveable"}]
)
def test_switches_change_no_value_and_no_gradient(switches):
    config, params = ours("qwen3")
    plain = loss_and_gradient(config, params)
    again = loss_and_gradient(replace(config, **switches), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), plain, again)


def test_bfloat16_stays_near():
    config, params = ours("llama", "bfloat16")
    assert params["embed"]["table"].dtype == jnp.bfloat16
    found = logits(config, params, TOKENS, LENGTHS)
    assert found.dtype == jnp.float32
    assert 1e-4 < relative(found, theirs(torch_model("llama"), TOKENS)) < 0.1


@pytest.mark.parametrize("name", ["mistral", "qwen3"])
def test_cached_decoding_equals_full_passes(name):
    config, params = ours(name)
    steps, prefix = 4, 2
    starts = LENGTHS + prefix
    soft = jax.random.normal(jax.random.key(1), (B, prefix, config.width))
    new = np.random.default_rng(1).integers(4, 266, (B, steps)).astype(np.int32)
    prompt = jnp.concatenate([soft, families.embed(config, params, TOKENS)], axis=1)
    empty = families.new_cache(config, B, prefix + T + steps)
    hidden, cache = forward(config, params, None, starts, embeddings=prompt, cache=empty)
    found = [families.logits(params, hidden[np.arange(B), starts - 1])]
    for step in range(steps):
        hidden, cache = forward(
            config, params, new[:, step : step + 1], cache=cache, starts=jnp.asarray(starts + step)
        )
        found.append(families.logits(params, hidden[:, 0]))
    whole = np.zeros((B, prefix + T + steps, config.width), np.float32)
    for row, length in enumerate(starts):
        whole[row, :length] = prompt[row, :length]
        whole[row, length : length + steps] = families.embed(config, params, new)[row]
    full = logits(config, params, None, jnp.asarray(starts + steps), embeddings=whole)
    at = (starts - 1)[:, None] + np.arange(steps + 1)[None, :]
    expected = full[np.arange(B)[:, None], at]
    assert relative(jnp.stack(found, axis=1), expected, np.ones((B, steps + 1), bool)) < 1e-5
    # Several tokens at once, each row from its own slot.
    _, cache = forward(config, params, None, starts, embeddings=prompt, cache=empty)
    hidden, _ = forward(config, params, new, cache=cache, starts=jnp.asarray(starts))
    found = families.logits(params, hidden)
    assert relative(found, expected[:, 1:], np.ones((B, steps), bool)) < 1e-5


@cache
def adapters(name, count):
    """Each of a rank and of matrices of its own."""
    _, params = ours(name)
    targets = (lora.LoraConfig.targets, ("query", "down"), ("up",))
    draw, made = np.random.default_rng(0).normal, []
    for number in range(count):
        settings = lora.LoraConfig(2 + number, alpha=8.0, targets=targets[number])
        shapes = jax.eval_shape(lambda s=settings: lora.init(jax.random.key(0), s, params))
        tree = jax.tree.map(lambda x: (0.2 * draw(size=x.shape)).astype(np.float32), shapes)
        made.append(jax.jit(lambda tree, s=settings: lora.scaled(tree, s))(tree))
    return made


def test_adapters_equal_merged_weights():
    name = "qwen2-tied"
    config, params = ours(name)
    made = adapters(name, 3)
    merged = [logits(config, merge(params, own), TOKENS, LENGTHS) for own in made]
    plain = logits(config, params, TOKENS, LENGTHS)
    assert relative(merged[0], plain) > 1e-2
    found = logits(config, params, TOKENS, LENGTHS, adapters=made[0])
    assert relative(found, merged[0]) < 1e-5
    rows = np.array([2, -1, 0, 1], np.int32)
    found = logits(config, params, TOKENS, LENGTHS, adapters=jax.jit(lora.stack)(made), rows=rows)
    for row, own in enumerate(rows):
        expected = plain if own < 0 else merged[own]
        assert relative(found[row], expected[row], VALID[row]) < 1e-5


def test_a_fresh_adapter_changes_nothing_and_merging_can_be_undone():
    config, params = ours("qwen2-tied")
    settings = lora.LoraConfig(rank=2, targets=("query", "down"))
    fresh = lora.scaled(lora.init(jax.random.key(0), settings, params), settings)
    found = logits(config, params, TOKENS, LENGTHS, adapters=fresh)
    np.testing.assert_array_equal(found, logits(config, params, TOKENS, LENGTHS))
    own = adapters("qwen2-tied", 3)[0]
    back = merge(merge(params, own), own, sign=-1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), back, params)


@pytest.mark.parametrize("rows", [3, 65])
def test_logits_are_products_of_states_and_table_in_either_order(rows, x64):
    table, hidden = (
        np.random.default_rng(seed).normal(size=shape)
        for seed, shape in enumerate([(7, 4), (rows, 1, 4)])
    )
    params = {"unembed": {"table": jnp.asarray(table)}}
    found, pull = jax.vjp(partial(families.logits, params), jnp.asarray(hidden))
    np.testing.assert_allclose(found, hidden @ table.T, rtol=1e-12, atol=1e-12)
    (slope,) = pull(found)
    np.testing.assert_allclose(slope, hidden @ table.T @ table, rtol=1e-12, atol=1e-12)


def test_gradients_of_matrices_add_over_one_axis():
    config, params = ours("qwen2-tied")
    settings = lora.LoraConfig(rank=2)

    def loss(adapter, params):
        hidden = families.forward(config, params, TOKENS, LENGTHS, adapters=adapter)[0]
        return jnp.sum(hidden)

    fresh = lora.init(jax.random.key(0), settings, params)
    text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(fresh, params).as_text()
    # Over rows and tokens, XLA on a CPU would copy the factors of each product transposed.
    assert "contracting_dims = [0, 1] x [0, 1]" not in text
    assert text.count("contracting_dims = [0] x [0]") == 7 * 3


def test_adapter_dropout_acts_only_with_a_key():
    config, params = ours("qwen2-tied")
    run = partial(logits, config, params, TOKENS, LENGTHS, adapters=adapters("qwen2-tied", 3)[0])
    plain = run()
    np.testing.assert_array_equal(run(adapter_dropout=0.5), plain)
    first, again, other = (
        run(adapter_dropout=0.5, dropout_key=jax.random.key(number)) for number in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert relative(first, plain) > 1e-2
    assert relative(first, other) > 1e-2


def test_fresh_parameters_have_the_layout_of_loaded_ones():
    for name in ("llama-biased", "qwen3"):
        config, params = ours(name)
        fresh = jax.eval_shape(lambda config=config: families.init(jax.random.key(0), config))
        assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, params)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model_type": "mamba"}, r"model_type is 'mamba'.*llama, mistral"),
        ({"model_type": None}, "model_type is None"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"hidden_size": "32"}, "hidden_size is '32'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"num_key_value_heads": 3}, "4 heads of width 8 on 3 key heads"),
        ({"head_dim": 7}, "even width"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "'yarn'"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor is None"),
        ({"partial_rotary_factor": 0.5}, "share 0.5"),
        ({"use_sliding_window": True}, "use_sliding_window"),
    ],
)
def test_other_architectures_are_refused_by_name(change, match):
    config = tiny_lms.hf_config("llama").to_dict() | change
    with pytest.raises(InputError, match=match):
        families.config_from_hf(config)
