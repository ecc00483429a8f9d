"""State and files on disk: whole, and back bit for bit."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign.errors import InputError
from jaxalign.train.checkpoint import BestParams, Checkpoints, load_state, save_state


def test_state_comes_back_bit_for_bit(tmp_path):
    params = {"a": jnp.arange(3.0) / 7, "b": {"c": jnp.ones((2, 2), jnp.bfloat16)}}
    state = (params, optax.adam(1e-3).init(params), jax.random.split(jax.random.key(3), 2))
    save_state(tmp_path / "s", state)
    like = jax.tree.map(lambda leaf: leaf, state)
    back = load_state(tmp_path / "s", like)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    chex.assert_trees_all_equal(back[:2], state[:2])
    np.testing.assert_array_equal(jax.random.key_data(back[2]), jax.random.key_data(state[2]))


def test_the_best_step_as_of_the_last_checkpoint_stays_until_there_is_a_newer_one(tmp_path):
    checkpoints = Checkpoints(tmp_path / "state", keep=2)
    best = BestParams(tmp_path / "best", checkpoints)

    def params(step):
        return {"kernel": jnp.full(3, float(step))}

    def kept():
        return sorted(int(path.name) for path in (tmp_path / "best").iterdir())

    best.save(1, params(1))
    best.save(2, params(2))
    assert kept() == [2]  # there is no checkpoint to resume from
    checkpoints.save(3, params(3))
    for step in (4, 5):
        best.save(step, params(step))
        assert kept() == [2, step]  # killed here, the run goes on from step 3, where 2 is the best
    np.testing.assert_array_equal(best.load(2, params(0))["kernel"], params(2)["kernel"])
    checkpoints.save(6, params(6))
    best.save(7, params(7))
    assert kept() == [5, 7]
    best.save(7, params(8))  # again, after a resume from 6
    np.testing.assert_array_equal(best.load(7, params(0))["kernel"], params(8)["kernel"])
    BestParams(tmp_path / "best", checkpoints)
    assert kept() == [5]
    with pytest.raises(InputError, match="00000004"):
        best.load(4, params(0))


def test_a_checkpoint_that_fails_does_not_hide_the_error_before_it(tmp_path, monkeypatch):
    def full(self):
        raise OSError("no space left")

    monkeypatch.setattr(Checkpoints, "wait", full)
    with pytest.raises(ValueError, match="the first") as failed, Checkpoints(tmp_path):
        raise ValueError("the first")
    assert failed.value.__notes__ == [
        "the checkpoint that was being written is not whole either: no space left"
    ]
    with pytest.raises(OSError, match="no space left"), Checkpoints(tmp_path):
        pass
