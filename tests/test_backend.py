"""Programs are made for the backend that is asked for, whatever this process has."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import mrm
from jaxalign.backend import program_backend, programs_for
from jaxalign.kernels import scalarize
from jaxalign.models import attention, families
from jaxalign.models.buckets import default_tokens
from jaxalign.models.device_defaults import DEFAULTS, device_defaults, training_options

CONFIG = mrm.MRMConfig(hidden_sizes=(2,))


def test_the_backend_is_this_process_s_before_and_after_an_error():
    assert program_backend() == "cpu"
    with programs_for("gpu"):
        with programs_for("tpu"):
            assert program_backend() == "tpu"
        assert program_backend() == "gpu"
    with pytest.raises(KeyError), programs_for("gpu"):
        raise KeyError
    assert program_backend() == "cpu"


def test_programs_of_another_backend_are_not_kept():
    @jax.jit
    def on_gpu(x):
        return x + float(program_backend() == "gpu")

    assert on_gpu(0.0) == 0
    with programs_for("gpu"):
        assert on_gpu(0.0) == 1
    assert on_gpu(0.0) == 0


def test_every_choice_by_device_follows():
    half = jnp.ones((1, 1), jnp.bfloat16)
    with programs_for("gpu"):
        assert device_defaults() == DEFAULTS["gpu"]
        assert training_options() == dict(DEFAULTS["gpu"].training_options)
        assert default_tokens(7) == 7
        assert attention._best(half.dtype, 128) == "cudnn"
        assert attention._best(jnp.dtype("float32"), 128) == "xla"
        assert scalarize.chunked._sizes(np.zeros((9, 4, 3)), np.zeros((500, 3)), None) == (256, 9)
        logits = jax.make_jaxpr(families.logits)({"embed": {"table": half}}, half)
        assert "optimization_barrier" not in str(logits)
        members = jax.make_jaxpr(scalarize.best_member)(np.ones((9, 2)), np.ones((4, 2)))
        assert "while" not in str(members)
    assert attention._best(half.dtype, 128) == "xla"
    assert scalarize.chunked._sizes(np.zeros((9, 4, 3)), np.zeros((500, 3)), None) == (64, 9)


def test_a_thin_base_has_a_gpu_s_form_with_the_same_rewards_and_gradients():
    features = jax.random.normal(jax.random.key(0), (3, 5, 32))
    params = mrm.init(jax.random.key(1), CONFIG, 32)

    def loss(params):
        rewards = mrm.base_rewards(params, features, CONFIG)
        return jnp.sum(jnp.sin(rewards)), rewards

    both = jax.value_and_grad(loss, has_aux=True)
    expected = both(params)
    columns = str(jax.make_jaxpr(both)(params)).count("dot_general")
    with programs_for("gpu"):
        chex.assert_trees_all_close(both(params), expected, rtol=1e-5, atol=1e-6)
        assert str(jax.make_jaxpr(both)(params)).count("dot_general") < columns
