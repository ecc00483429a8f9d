"""Users a chunk at a time: each as alone, and no batch of LAPACK calls beside another."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.mrm import gate
from jaxalign.mrm.baselines import bradley_terry
from jaxalign.mrm.bayes import Prior, predict
from jaxalign.mrm.chunks import map_users


@pytest.mark.parametrize("users", [0, 1, 3, 4, 7])
def test_each_user_is_as_alone(users):
    arrays = np.random.default_rng(0).integers(0, 9, (users, 2, 3)), np.arange(users)

    def one(inputs):
        return jnp.sum(inputs[0], axis=0) * inputs[1]

    found = map_users(one, arrays, 3)
    chex.assert_trees_all_equal(found, arrays[0].sum(1) * arrays[1][:, None])


FUNCTIONS = {
    "predict": lambda pairs: predict(
        Prior(jnp.zeros(4), jnp.eye(4)), pairs, jnp.ones(pairs.shape[:2]), pairs
    ),
    "gate": lambda pairs: gate._all_variances(jnp.eye(4), pairs, pairs[..., 0] ** 2, jnp.eye(4)),
    "one model per user": lambda pairs: bradley_terry._weights_per_user(
        0.1, pairs, jnp.ones(pairs.shape[:2])
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_last_smaller_batch_is_no_program_of_its_own(name):
    # Two batches of LAPACK calls at once wait for each other for ever on two cores.
    def programs(users):
        pairs = jnp.ones((users, 3, 4))
        return str(jax.make_jaxpr(FUNCTIONS[name])(pairs)).count("= cholesky")

    assert programs(128) >= 1
    assert programs(131) == programs(128)
