"""Gradients through padding are finite and those without it; of MRM in tests/mrm/test_padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pplug_table import CONFIG, ITEMS, MASK, PARAMS, QUERY

from jaxalign import pplug
from jaxalign.moc.ppo import policy_loss, value_loss

TOKENS = jnp.array([True, True, False])
POISONS = (np.nan, np.inf)
NUMBERS = np.array([[0.5, -0.25, 0.0], [1.0, 0.75, 0.0], [0.25, 1.5, 0.0]], np.float32)


def padded(values, value):
    """The values with another one in the last place, which does not count."""
    return jnp.asarray(values).at[..., -1].set(value)


def of_persona(params, query, history):
    return jnp.sum(pplug.aggregate(params, query, history, MASK, CONFIG) ** 2)


def of_flat_personas(params, query, history):
    segments = jnp.array([0, 0, 7])  # the last item belongs to no user
    return jnp.sum(pplug.aggregate_flat(params, query[None], history, segments, CONFIG) ** 2)


@pytest.mark.parametrize("total", [of_persona, of_flat_personas])
def test_personas(total):
    gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
    query, history = jnp.asarray(QUERY, jnp.float32), jnp.asarray(ITEMS, jnp.float32)
    expected = gradient(PARAMS, query, history.at[2].set(0))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected))
    for poison in POISONS:
        found = gradient(PARAMS, query, history.at[2].set(poison))
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def of_policy(new, old, advantages):
    return policy_loss(new, old, advantages, TOKENS, 0.2)[0]


def of_values(new, old, returns):
    return value_loss(new, old, returns, TOKENS, 0.2)[0]


@pytest.mark.parametrize("loss", [of_policy, of_values])
def test_losses_of_moc(loss):
    gradient = jax.jit(jax.grad(loss))
    expected = gradient(*NUMBERS)
    assert np.isfinite(expected).all()
    assert np.abs(expected[:2]).max() > 0
    for poison in POISONS:
        for place in range(3):
            given = [padded(row, poison) if i == place else row for i, row in enumerate(NUMBERS)]
            np.testing.assert_array_equal(gradient(*given), expected)
