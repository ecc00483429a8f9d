"""VPL, GPO and P-TTT against references in float64, and their symmetries."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from network_cases import (
    ITEMS,
    MODELS,
    SMALL_GPO,
    SMALL_PTTT,
    SMALL_VPL,
    WIDTH,
    some_pairs,
    some_params,
)
from reference_networks import TorchGPO, log_sigmoid, pttt_logits, vpl_posterior, vpl_reward

from jaxalign.data.batching import Pairs
from jaxalign.mrm.baselines import gpo, pttt, vpl
from jaxalign.mrm.baselines.episodes import mean_choice_loss
from jaxalign.mrm.baselines.gpo import GPONetwork
from jaxalign.mrm.baselines.vpl import VPLNetwork


@pytest.mark.parametrize("light", [1.0, 0.01])
@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.5, 0.0), (0.0,)])
def test_vpl_is_the_paper_in_numpy(x64, weights, light):
    rng = np.random.default_rng(0)
    model, params = VPLNetwork(SMALL_VPL), some_params(VPLNetwork(SMALL_VPL), 1)
    items = rng.normal(size=(ITEMS, WIDTH))
    support, query = some_pairs(rng, 3, 4, weights=weights), some_pairs(rng, 3, 6)
    query = query._replace(weight=light * query.weight.at[0, 2:].set(0.0))
    table, key = jnp.asarray(items), jax.random.key(3)
    loss = jax.jit(vpl.negative_elbo, static_argnums=0)
    found = loss(model, params, key, table, support, query, jnp.asarray(0.25))

    # Half of the annealing is done at a quarter of training.
    weight = 0.5 * SMALL_VPL.kl_weight
    bound, keys = 0.0, jax.random.split(key, 3)
    for user in range(3):
        given_pairs = [np.asarray(a[user]) for a in support[:3]]
        mean, log_var = vpl_posterior(params, items, *given_pairs)
        z = mean + np.exp(log_var / 2) * np.asarray(jax.random.normal(keys[user], (3,)))
        for one, two, count in zip(*(np.asarray(a[user]) for a in query[:3]), strict=True):
            margin = vpl_reward(params, items[one], z) - vpl_reward(params, items[two], z)
            bound += count * log_sigmoid(margin)
        normal = torch.distributions.Normal
        posterior = normal(torch.tensor(mean), torch.tensor(np.exp(log_var / 2)))
        prior = normal(torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
        bound -= weight * torch.distributions.kl_divergence(posterior, prior).sum().item()
    np.testing.assert_allclose(found, -bound / float(query.weight.sum()), rtol=1e-12)


def test_vpl_predicts_with_draws_from_its_posterior(x64):
    rng = np.random.default_rng(4)
    model, params = VPLNetwork(SMALL_VPL), some_params(VPLNetwork(SMALL_VPL), 2)
    items = rng.normal(size=(ITEMS, WIDTH))
    support, query = some_pairs(rng, 4), some_pairs(rng, 6)
    predict = jax.jit(vpl.probability, static_argnums=0)
    found = predict(model, params, jnp.asarray(items), support, query)
    mean, log_var = vpl_posterior(params, items, *map(np.asarray, support[:3]))
    noise = np.asarray(jax.random.normal(jax.random.key(0), (4, 3)))
    expected = np.zeros(6)
    for z in mean + np.exp(log_var / 2) * noise:
        rewards = np.array([vpl_reward(params, item, z) for item in items])
        margin = rewards[np.asarray(query.chosen)] - rewards[np.asarray(query.rejected)]
        expected += np.exp(log_sigmoid(margin)) / 4
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    mean_only = VPLNetwork(dataclasses.replace(SMALL_VPL, draws=0))
    at_mean = predict(mean_only, params, jnp.asarray(items), support, query)
    logits = model.apply({"params": params}, jnp.asarray(items), support, query)
    np.testing.assert_allclose(at_mean, jax.nn.sigmoid(logits), rtol=1e-12)


def test_the_loss_per_choice_does_not_depend_on_the_size_of_the_weights(x64):
    rng = np.random.default_rng(0)
    query, logits = some_pairs(rng, 3, 6), jnp.asarray(rng.normal(size=(3, 6)))
    losses = [
        mean_choice_loss(logits, query._replace(weight=query.weight * scale))
        for scale in (1.0, 1e-3, 0.0)
    ]
    np.testing.assert_allclose(losses, [losses[0], losses[0], 0.0], rtol=1e-12)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.5, 0.0), (0.0,)])
def test_gpo_is_the_authors_transformer_in_torch(x64, weights):
    rng = np.random.default_rng(0)
    model, params = GPONetwork(SMALL_GPO), some_params(GPONetwork(SMALL_GPO), 1)
    items = rng.normal(size=(ITEMS, WIDTH))
    support, query = some_pairs(rng, 2, 4, weights=weights), some_pairs(rng, 2, 6)
    reference = TorchGPO(params, SMALL_GPO)
    predict = jax.jit(gpo.probability, static_argnums=0)
    table, key, losses = jnp.asarray(items), jax.random.key(5), []
    turned = np.asarray(jax.random.bernoulli(key, 0.5, (2, 6)))
    for user in range(2):
        mine, wanted = (Pairs(*(a[user] for a in p)) for p in (support, query))
        other = wanted._replace(chosen=wanted.rejected, rejected=wanted.chosen)
        forward, backward = (reference(torch.tensor(items), mine, q) for q in (wanted, other))
        found = predict(model, params, table, mine, wanted)
        np.testing.assert_allclose(found, np.exp(log_sigmoid((forward - backward) / 2)), rtol=1e-11)
        losses.append(-log_sigmoid(np.where(turned[user], -backward, forward)))
    loss = gpo.choice_loss(model, params, key, table, support, query, jnp.asarray(0.0))
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-11)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.5, 0.0), (0.0,)])
def test_pttt_and_its_gradient_are_the_rank_1_updates_in_torch(x64, weights):
    rng = np.random.default_rng(0)
    model, params = MODELS["pttt"][0], some_params(MODELS["pttt"][0], 1)
    items = rng.normal(size=(ITEMS, WIDTH))
    support, query = some_pairs(rng, 3, 4, weights=weights), some_pairs(rng, 3, 6)
    query = query._replace(weight=query.weight.at[0, 2:].set(0.0))
    given = (jax.random.key(3), jnp.asarray(items), support, query, jnp.asarray(0.0))
    found, gradient = jax.jit(jax.value_and_grad(pttt.choice_loss, 1), static_argnums=0)(
        model, params, *given
    )
    theirs = {k: torch.tensor(np.asarray(v), requires_grad=True) for k, v in params.items()}
    loss = torch.zeros((), dtype=torch.float64)
    for user in range(3):
        mine, wanted = (Pairs(*(array[user] for array in part)) for part in (support, query))
        logits = pttt_logits(theirs, torch.tensor(items), mine, wanted, SMALL_PTTT.rate)
        weight = torch.tensor(np.asarray(wanted.weight))
        loss = loss + (weight * torch.nn.functional.softplus(-logits)).sum()
        predicted = MODELS["pttt"][1](model, params, jnp.asarray(items), mine, wanted)
        expected = torch.sigmoid(logits).detach().numpy()
        np.testing.assert_allclose(predicted, expected, rtol=1e-11)
    loss = loss / float(query.weight.sum())
    loss.backward()
    np.testing.assert_allclose(found, loss.item(), rtol=1e-12)
    for name, leaf in gradient.items():
        np.testing.assert_allclose(leaf, theirs[name].grad, rtol=1e-9, atol=1e-13, err_msg=name)
    updated = np.abs(gradient["value"]).max() > 1e-3
    assert updated == (max(weights) > 0)  # without choices nothing is updated


# Symmetries -----------------------------------------------------------------------------------


@functools.cache
def parts(name):
    model, probability = MODELS[name]
    with jax.enable_x64(True):
        params = some_params(model, 7)
        table = jnp.asarray(np.random.default_rng(8).normal(size=(ITEMS, WIDTH)))
    return jax.jit(lambda support, query: probability(model, params, table, support, query))


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(0, 6))
def test_order_padding_and_swaps(name, seed, count):
    with jax.enable_x64(True):
        predict, rng = parts(name), np.random.default_rng(seed)
        support, query = some_pairs(rng, 8, weights=(1.0, 0.5)), some_pairs(rng, 5)
        support = support._replace(weight=jnp.where(jnp.arange(8) < count, support.weight, 0))
        expected = predict(support, query)
        assert bool(((expected > 0) & (expected < 1)).all())
        # Another order, other numbers where the padding is.
        order, junk = rng.permutation(8), some_pairs(rng, 8)
        mixed = Pairs(*(array[order] for array in support))
        empty = mixed.weight == 0
        mixed = mixed._replace(
            chosen=jnp.where(empty, junk.chosen, mixed.chosen),
            rejected=jnp.where(empty, junk.rejected, mixed.rejected),
        )
        np.testing.assert_allclose(predict(mixed, query), expected, rtol=1e-9)
        other = query._replace(chosen=query.rejected, rejected=query.chosen)
        np.testing.assert_allclose(predict(support, other), 1 - expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_padding_costs_nothing_and_half_choices_count_half(x64, name):
    predict, rng = parts(name), np.random.default_rng(1)
    support, query = some_pairs(rng, 4), some_pairs(rng, 5)
    longer = Pairs(*(jnp.concatenate([a, jnp.zeros((3,), a.dtype)]) for a in support))
    np.testing.assert_allclose(predict(longer, query), predict(support, query), rtol=1e-9)
    twice = Pairs(*(jnp.concatenate([a, a]) for a in support))
    halves = twice._replace(weight=twice.weight / 2)
    np.testing.assert_allclose(predict(halves, query), predict(support, query), rtol=1e-9)
    assert np.abs(predict(twice, query) - predict(support, query)).max() > (
        1e-4 if name == "vpl" else 1e-6
    )
