"""Decoders as NNX modules: the same bits, the same logits, the same gradients."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxalign.models import families, from_nnx, to_nnx
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.gpt2 import GPT2Config

LLAMA = DecoderConfig("llama", 11, 8, 2, 2, 1, 4, 16, 32)
CONFIGS = {
    "llama": LLAMA,
    "qwen3-tied": replace(LLAMA, family="qwen3", qkv_bias=True, qk_norm=True, tied=True),
    "gpt2": GPT2Config(11, 8, 2, 2, 16, 32),
}
TOKENS, LENGTHS = jnp.arange(8, dtype=jnp.int32).reshape(2, 4), jnp.asarray([4, 2], jnp.int32)


def logits_of(config, params):
    hidden, _ = families.forward(config, params, TOKENS, LENGTHS)
    return families.logits(params, hidden)


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_return_bit_identical_and_logits_are_equal(name):
    config = CONFIGS[name]
    params = families.init(jax.random.key(0), config)
    params["embed"]["table"] = params["embed"]["table"].astype(jnp.bfloat16)
    model = to_nnx(config, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(from_nnx(model), params)
    chex.assert_trees_all_equal(from_nnx(model), params)
    logits = nnx.jit(lambda model: model(TOKENS, LENGTHS))(model)
    np.testing.assert_array_equal(logits, jax.jit(logits_of, static_argnums=0)(config, params))


def test_a_training_step_in_nnx_is_the_same_step_on_the_parameters():
    params = families.init(jax.random.key(0), LLAMA)
    model = to_nnx(LLAMA, params)

    def loss(logits):
        return jnp.sum(jax.nn.log_softmax(logits)[..., 3])

    @nnx.jit
    def step(model):
        gradient = nnx.grad(lambda model: loss(model(TOKENS, LENGTHS)))(model)
        state = jax.tree.map(lambda value, slope: value - 0.1 * slope, nnx.state(model), gradient)
        nnx.update(model, state)

    step(model)
    gradient = jax.jit(jax.grad(lambda params: loss(logits_of(LLAMA, params))))(params)
    expected = jax.tree.map(lambda value, slope: value - 0.1 * slope, params, gradient)
    chex.assert_trees_all_close(from_nnx(model), expected, rtol=1e-6, atol=1e-6)
    assert not np.allclose(from_nnx(model)["embed"]["table"], params["embed"]["table"])
