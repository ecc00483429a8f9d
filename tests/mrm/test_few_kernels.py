"""What takes MRM's steps in few kernels of a GPU computes what a CPU's steps compute."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign.backend import programs_for
from jaxalign.data.batching import Pairs
from jaxalign.mrm import MRMConfig, flat_adam, init, rpo, train
from jaxalign.mrm.few_kernels import rpo_slopes, staged_gradient
from jaxalign.mrm.objective import meta_objective_unchecked

PAIRS, WIDTH = 5, 6
CONFIGS = {
    "published": MRMConfig(hidden_sizes=(2,)),
    "biases": MRMConfig(hidden_sizes=(2,), use_bias=True, inner_steps=3, link="signed"),
    "wide": MRMConfig(hidden_sizes=(7,), l2=0.1, rpo_gamma=0.0),
    "network": MRMConfig(hidden_sizes=(4, 3), activation="tanh", second_order=False),
    "rates": MRMConfig(hidden_sizes=(), learn_inner_lr=True, inner_steps=2, rpo_scope="population"),
}


def batch_of(config, users):
    rng = np.random.default_rng(users)
    batch = {name: rng.normal(size=(users, PAIRS, WIDTH)) for name in ("chosen", "rejected")}
    split = rng.integers(0, 2, (users, PAIRS))
    batch |= {"support_mask": split, "query_mask": 1 - split}
    if config.rpo_scope == "population":
        batch["population"] = rng.uniform(size=11)
    return jax.tree.map(jnp.asarray, batch)


@pytest.mark.parametrize("users", [2, 20])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_gradient_in_parts_is_the_gradient(name, users, x64):
    config = CONFIGS[name]
    batch = batch_of(config, users)
    params = jax.tree.map(lambda leaf: leaf.astype(float), init(jax.random.key(0), config, WIDTH))
    objective = jax.grad(meta_objective_unchecked, has_aux=True)
    expected, (losses, _) = objective(params, batch, config)
    with programs_for("gpu"):
        found = jax.jit(staged_gradient, static_argnums=2)(params, batch, config)
    chex.assert_trees_all_close(found, (expected, losses), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("gamma", [0.0, 0.5])
@pytest.mark.parametrize("tail", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("losses", [[0.4], [0.7, 0.2], [0.3, 0.9, 0.3, 0.1], [0.5] * 8])
def test_slopes_of_few_losses_are_those_of_the_sorted_quantile(losses, tail, gamma, x64):
    config = MRMConfig(rpo_tail=max(tail, 1e-9), rpo_gamma=gamma)
    losses = jnp.asarray(losses)
    expected = jax.grad(rpo)(losses, config.rpo_tail, gamma)
    np.testing.assert_allclose(rpo_slopes(losses, config), expected, rtol=1e-12, atol=1e-14)


def test_adam_over_one_vector_is_that_of_optax(x64):
    config = CONFIGS["biases"]
    params = jax.tree.map(lambda leaf: leaf.astype(float), init(jax.random.key(0), config, WIDTH))
    optimiser = train.make_optimiser(config, 20)
    schedule = train.make_schedule(config, 20)
    state = optimiser.init(params)
    flat, start, rates = flat_adam.start_flat(params, state), params, None
    rates = flat_adam.step_rates(schedule, state, 6)
    first = state
    for step in range(6):
        # Short gradients and ones that are clipped.
        keys = iter(jax.random.split(jax.random.key(step), 9))
        gradient = jax.tree.map(
            lambda leaf, keys=keys, step=step: (
                10.0 ** (step - 3) * jax.random.normal(next(keys), leaf.shape)
            ),
            params,
        )
        updates, state = optimiser.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        mine = jax.tree.map(lambda rate, step=step: rate[step], rates)
        flat = flat_adam.take_flat_step(flat, flat_adam.flatten(gradient), mine, config.clip_norm)
    found = flat_adam.finish_flat(flat, start, first, 6)
    chex.assert_trees_all_close(found, (params, state), rtol=1e-7)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, (params, state))


def world(users):
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 9, (users, PAIRS)) for _ in range(2))
    group = np.broadcast_to(np.arange(PAIRS), (users, PAIRS))
    pairs = Pairs(first, (second + first + 1) % 9, np.ones((users, PAIRS), np.float32), group)
    return jnp.asarray(rng.normal(size=(9, WIDTH)), jnp.float32), jax.tree.map(jnp.asarray, pairs)


@pytest.mark.parametrize("name", CONFIGS)
def test_epochs_of_a_gpu_end_where_those_of_a_cpu_do(name):
    users = 17  # a last step of one
    config = dataclasses.replace(CONFIGS[name], users_per_batch=4, epochs=6)
    features, pairs = world(users)
    table = train.item_table(features, pairs, config)
    states = train.init_states(jax.random.split(jax.random.key(0), 1), config, WIDTH, users)
    run = jax.jit(train.epochs, static_argnums=(3, 4))
    expected = run(states, table, pairs, config, 2)
    with programs_for("gpu"):
        found = run(states, table, pairs, config, 2)
    (state, losses), (own, own_losses) = expected, found
    chex.assert_trees_all_close(own_losses, losses, rtol=1e-4)
    chex.assert_trees_all_close(own._replace(key=0), state._replace(key=0), rtol=1e-3, atol=2e-5)
    assert jnp.array_equal(*map(jax.random.key_data, (own.key, state.key)))


def test_seeds_and_swept_settings_are_batched():
    config = dataclasses.replace(CONFIGS["published"], users_per_batch=4, epochs=6)
    features, pairs = world(9)
    table = train.item_table(features, pairs, config)
    sweep = {"outer_lr": jnp.array([1e-3, 1e-2]), "l2": jnp.array([0.0, 0.1])}
    sweep |= {"rpo_gamma": jnp.array([0.5, 0.0]), "clip_norm": jnp.array([1.0, 0.01])}
    keys = jax.random.split(jax.random.key(0), 2)
    states = train.init_states(keys, config, WIDTH, 9, sweep)
    expected = train.epochs(states, table, pairs, config, 2, None, sweep)[1]
    with programs_for("gpu"):
        found = train.epochs(states, table, pairs, config, 2, None, sweep)[1]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
