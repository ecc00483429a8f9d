"""Rate, clip, decay and rounding of the optimiser; micro-batches, batches and their order."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.errors import InputError
from jaxalign.train import optimiser
from jaxalign.train.batches import Batches
from jaxalign.train.optimiser import OptimiserConfig, rate_at
from jaxalign.train.step import gradient, make_step


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_rate_rises_then_follows_the_schedule(schedule):
    config = OptimiserConfig(rate=2.0, schedule=schedule, warmup=0.25, last=0.1)
    rates = [float(rate_at(config, 40, jnp.int32(step))) for step in range(41)]
    np.testing.assert_allclose(rates[:10], 2.0 * np.arange(1, 11) / 10, rtol=1e-6)
    middle = {"cosine": 1.1, "linear": 1.1, "constant": 2.0}[schedule]
    np.testing.assert_allclose(rates[25], middle, rtol=1e-6)
    np.testing.assert_allclose(rates[40], 2.0 if schedule == "constant" else 0.2, rtol=1e-6)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_without_warmup_the_first_step_has_the_highest_rate():
    config = OptimiserConfig(rate=3.0, warmup=0.0)
    np.testing.assert_allclose(rate_at(config, 5, jnp.int32(0)), 3.0)


def quadratic(params, frozen, batch, key):
    """Weighted squares, pulled towards the batch's targets."""
    errors = params["layer"]["kernel"][None] * batch["x"] - batch["y"] + params["bias"][None]
    per_row = jnp.sum(errors**2, axis=1)
    return {"loss": jnp.sum(per_row * batch["weight"]), "weight": jnp.sum(batch["weight"])}


def problem(rows, seed=0):
    rng = np.random.default_rng(seed)
    params = {"layer": {"kernel": jnp.asarray(rng.normal(size=4))}, "bias": jnp.zeros(4)}
    batch = {name: rng.normal(size=(rows, 4)) for name in ("x", "y")}
    return params, batch | {"weight": rng.integers(0, 9, rows).astype(np.float64)}


def micros(batch, count):
    return {name: jnp.asarray(a.reshape(count, -1, *a.shape[1:])) for name, a in batch.items()}


@pytest.mark.parametrize("count", [1, 2, 3, 12])
@pytest.mark.usefixtures("x64")
def test_micro_batches_add_up_to_one_batch(count):
    params, batch = problem(12)
    key = jax.random.key(0)
    slope, means = gradient(quadratic, params, {}, micros(batch, count), key)
    expected, value = jax.grad(
        lambda p: (lambda s: (s["loss"] / s["weight"],) * 2)(quadratic(p, {}, batch, key)),
        has_aux=True,
    )(params)
    chex.assert_trees_all_close(slope, expected, rtol=1e-12)
    np.testing.assert_allclose(means["loss"], value, rtol=1e-12)
    assert float(means["weight"]) == batch["weight"].sum()


@pytest.mark.usefixtures("x64")
def test_updates_are_those_of_torch():
    params, batch = problem(6)
    config = OptimiserConfig(0.05, "linear", 0.2, 0.1, clip_norm=1.5, weight_decay=0.3, b2=0.95)
    state = optimiser.start(jax.random.key(0), params, config)
    step = jax.jit(make_step(quadratic, config, 10))
    kernel = torch.tensor(np.array(params["layer"]["kernel"]), requires_grad=True)
    bias = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    groups = [{"params": [kernel]}, {"params": [bias], "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, 0.05, (0.9, 0.95), 1e-8, 0.3)
    x, y, weight = (torch.tensor(batch[name]) for name in ("x", "y", "weight"))
    for number in range(10):
        state, metrics = step(state, {}, micros(batch, 2))
        loss = (((kernel * x - y + bias) ** 2).sum(1) * weight).sum() / weight.sum()
        theirs.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([kernel, bias], 1.5)
        for group in theirs.param_groups:
            group["lr"] = float(rate_at(config, 10, jnp.int32(number)))
        theirs.step()
        np.testing.assert_allclose(metrics["loss"], loss.item(), rtol=1e-6)
        np.testing.assert_allclose(metrics["gradient_norm"], norm.item(), rtol=1e-6)
    assert norm > 1e-3  # not at rest yet
    # torch adds 1e-6 to the norm that it clips by.
    np.testing.assert_allclose(state.params["layer"]["kernel"], kernel.detach(), rtol=1e-5)
    np.testing.assert_allclose(state.params["bias"], bias.detach(), rtol=1e-5, atol=1e-7)


def test_bfloat16_parameters_have_float32_moments_and_lose_no_updates():
    params = {"kernel": jnp.ones(4000, jnp.bfloat16)}
    config = OptimiserConfig(1e-4, "constant", 0.0, clip_norm=None)
    state = optimiser.start(jax.random.key(0), params, config)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.moments)} == {
        jnp.dtype("float32"),
        jnp.dtype("int32"),
    }
    slope = {"kernel": jnp.ones(4000, jnp.float32)}
    step = jax.jit(lambda state: optimiser.apply(state, slope, config, 100)[0])
    for _ in range(20):
        state = step(state)
    assert state.params["kernel"].dtype == jnp.bfloat16
    # Rounded to the nearest, 1 - 1e-4 is 1 in bfloat16, for ever.
    moved = 1 - np.mean(np.asarray(state.params["kernel"], np.float64))
    np.testing.assert_allclose(moved, 20 * 1e-4, rtol=0.15)


def test_rounding_leaves_what_bfloat16_holds():
    exact = jnp.asarray([0.0, -1.5, 3.0, jnp.inf], jnp.float32)
    rounded = optimiser._at_random(jax.random.key(1), exact)
    np.testing.assert_array_equal(np.asarray(rounded, np.float32), exact)


@pytest.mark.parametrize(
    "wrong", [{"rate": 0.0}, {"warmup": 1.5}, {"clip_norm": -1.0}, {"b2": 1.0}, {"last": 2.0}]
)
def test_settings_out_of_range(wrong):
    (name,) = wrong
    with pytest.raises(InputError, match=f"the optimiser's {name} is {wrong[name]}"):
        OptimiserConfig(**wrong)


LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 9), st.integers(0, 3))
def test_an_epoch_has_every_row_once_in_a_batch_that_holds_it(lengths, size, epoch):
    lengths = np.array(lengths)
    batches = Batches(lengths, size, seed=5)
    for planned in (batches.epoch(epoch), batches.in_order()):
        assert len(planned) == len(batches)
        rows = np.concatenate([rows for _, rows in planned])
        assert sorted(rows[rows >= 0]) == list(range(len(lengths)))
        assert sum((part < 0).any() for _, part in planned) <= 1
        for width, part in planned:
            assert part.shape == (size,)
            assert lengths[part[part >= 0]].max() <= width
            assert width in set(batches.widths.tolist())


def test_order_depends_on_seed_and_epoch_alone():
    lengths = np.random.default_rng(0).integers(1, 200, 50)

    def flat(seed, epoch):
        return np.concatenate([rows for _, rows in Batches(lengths, 4, seed).epoch(epoch)])

    np.testing.assert_array_equal(flat(1, 2), flat(1, 2))
    assert (flat(1, 2) != flat(1, 3)).any()
    assert (flat(1, 2) != flat(2, 2)).any()


def test_widths_are_few_and_bounded():
    lengths = np.array([1, 32, 33, 64, 65, 100])
    assert Batches(lengths, 1).widths.tolist() == [32, 32, 64, 64, 128, 128]
    assert Batches(lengths, 1, widest=100).widths.tolist() == [32, 32, 64, 64, 100, 100]
    with pytest.raises(InputError, match="0 rows in batches of 4"):
        Batches(lengths[:0], 4)
