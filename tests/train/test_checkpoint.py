"""State and files on disk: whole, and back bit for bit."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxalign.train.checkpoint import load_state, save_state


def test_state_comes_back_bit_for_bit(tmp_path):
    params = {"a": jnp.arange(3.0) / 7, "b": {"c": jnp.ones((2, 2), jnp.bfloat16)}}
    state = (params, optax.adam(1e-3).init(params), jax.random.split(jax.random.key(3), 2))
    save_state(tmp_path / "s", state)
    like = jax.tree.map(lambda leaf: leaf, state)
    back = load_state(tmp_path / "s", like)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    chex.assert_trees_all_equal(back[:2], state[:2])
    np.testing.assert_array_equal(jax.random.key_data(back[2]), jax.random.key_data(state[2]))
