"""Heads: widths, dtypes, and which token is read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.models.heads import PooledHead, ValueHead, last_token

B, T, D = 3, 5, 8
HIDDEN = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)


def test_a_value_for_each_objective():
    head = ValueHead(4)
    params = head.init(jax.random.key(0), HIDDEN)["params"]
    params = {**params, "bias": jnp.arange(4.0)}
    expected = HIDDEN.astype(float) @ np.asarray(params["kernel"], float) + np.arange(4)
    np.testing.assert_allclose(head.apply({"params": params}, HIDDEN), expected, rtol=1e-5)


def test_a_bfloat16_trunk_gets_float32_values():
    head = ValueHead(2, bias=False)
    params = head.init(jax.random.key(0), HIDDEN)["params"]
    assert params.keys() == {"kernel"}
    half = jnp.asarray(HIDDEN, jnp.bfloat16)
    found = head.apply({"params": params}, half)
    assert found.dtype == jnp.float32
    # Only the states are rounded, not the products.
    expected = np.asarray(half, float) @ np.asarray(params["kernel"], float)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_a_half_precision_head_computes_wide(x64):
    for head in (ValueHead(2), PooledHead(2, "tanh")):
        params = head.init(jax.random.key(0), HIDDEN)["params"]
        half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
        found = head.apply({"params": half}, jnp.asarray(HIDDEN, jnp.bfloat16))
        assert found.dtype == jnp.float32
        assert head.apply({"params": params}, HIDDEN.astype(np.float64)).dtype == jnp.float64


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_the_start_is_as_large_as_asked(scale):
    values = ValueHead(2000, scale=scale).init_with_output(jax.random.key(0), HIDDEN)[0]
    expected = scale * np.linalg.norm(HIDDEN, axis=-1)
    np.testing.assert_allclose(np.std(values, axis=-1), expected, rtol=0.1)


@pytest.mark.parametrize(
    ("activation", "act"), [("tanh", np.tanh), ("relu", lambda x: np.maximum(x, 0))]
)
def test_the_pooled_head_is_two_layers(activation, act):
    head = PooledHead(3, activation)
    params = head.init(jax.random.key(0), HIDDEN[:, 0])["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    inner, score = ({k: np.asarray(v, float) for k, v in params[n].items()} for n in params)
    hidden = act(HIDDEN[:, 0].astype(float) @ inner["kernel"] + inner["bias"][None])
    expected = hidden @ score["kernel"] + score["bias"][None]
    np.testing.assert_allclose(head.apply({"params": params}, HIDDEN[:, 0]), expected, rtol=1e-5)


def test_the_last_token_is_read_and_nothing_after_it():
    hidden = jnp.asarray(HIDDEN).at[1, 2:].set(jnp.nan)
    lengths = jnp.array([5, 2, 0], jnp.int32)
    found = last_token(hidden, lengths)
    np.testing.assert_array_equal(found, HIDDEN[np.arange(3), [4, 1, 0]])
    gradient = jax.grad(lambda h: jnp.sum(last_token(h, lengths) ** 2))(hidden)
    expected = np.zeros_like(HIDDEN)
    expected[np.arange(3), [4, 1, 0]] = 2 * np.asarray(found)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)
