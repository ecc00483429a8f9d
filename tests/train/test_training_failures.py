"""Trainings that fail: one sentence with step and rows, the last good state on disk, gone on."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.runs.log import MetricsLog
from jaxalign.train import failures, loop, optimiser
from jaxalign.train.checkpoint import Checkpoints
from jaxalign.train.loop import LoopConfig, Rows
from jaxalign.train.optimiser import OptimiserConfig

COUNT = 12
FEATURES = np.random.default_rng(0).normal(size=(COUNT, 2)).astype(np.float32)
CONFIG = LoopConfig(epochs=2, batch_size=4, evaluate_every=3, checkpoint_every=2)
STEPS = 6


def squared(params, frozen, batch, key):
    error = batch["features"] @ params["kernel"] - 1
    return {"loss": jnp.sum(batch["weight"] * error**2), "weight": jnp.sum(batch["weight"])}


def rows(poison=None, fails=None):
    """Rows of which one holds NaN, or fails to be read."""
    features = FEATURES.copy()
    if poison is not None:
        features[poison] = np.nan

    def assemble(own, width):
        if fails is not None and fails in own:
            raise OSError("the disk is gone")
        return {"features": features[own], "weight": (own >= 0).astype(np.float32)}

    return Rows(np.full(COUNT, 4), assemble)


def fit(folder, train, validation=None, changes=None, say=lambda text: None):
    config = OptimiserConfig(rate=0.1, **(changes or {}))
    kernel = jnp.array([0.5, -0.25])
    state = optimiser.start(jax.random.key(0), {"kernel": kernel}, config)
    return loop.fit(state, {}, squared, train, validation, CONFIG, config, folder, say)


def first_step_with(row):
    """The first step whose batch holds a row, and the rows of that batch."""
    batches = loop.Batches(np.full(COUNT, 4), CONFIG.batch_size, CONFIG.seed)
    for number, (_, own) in enumerate(batches.epoch(0), 1):
        if row in own:
            return number, own
    raise AssertionError


LATE = next(row for row in range(COUNT) if first_step_with(row)[0] == 3)


def test_a_row_that_holds_nan_is_named_and_the_run_goes_on_when_it_is_mended(tmp_path):
    with pytest.raises(InputError) as refused:
        fit(tmp_path / "run", rows(poison=LATE))
    shown = ", ".join(map(str, first_step_with(LATE)[1]))
    assert str(refused.value) == (
        "step 3: loss is nan; expected a finite number: lower optimiser.rate, or raise "
        f"optimiser.warmup, and start again in a new folder (training rows {shown}, counted from "
        "0; the state of step 2 is kept)."
    )
    assert Checkpoints(tmp_path / "run" / "state").steps() == [2]
    said = []
    found = fit(tmp_path / "run", rows(), say=said.append)
    assert "resumed at step 2 of 6" in said
    whole = fit(tmp_path / "whole", rows())
    chex.assert_trees_all_equal(found.params, whole.params)


def test_a_gradient_that_is_not_finite_stops_a_run_whose_loss_is(tmp_path):
    def rooted(params, frozen, batch, key):
        # The loss is 0 at the start, and its slope has no end there.
        gap = jnp.sqrt(jnp.abs(params["kernel"][0]))
        return {"loss": gap * jnp.sum(batch["weight"]), "weight": jnp.sum(batch["weight"])}

    config = OptimiserConfig()
    state = optimiser.start(jax.random.key(0), {"kernel": jnp.zeros(1)}, config)
    with pytest.raises(InputError, match=r"^step 1: gradient_norm is (nan|inf); .*no state is kep"):
        loop.fit(state, {}, rooted, rows(), None, CONFIG, config, tmp_path, lambda text: None)


@pytest.mark.parametrize(("params", "step"), [("start", 0), ("trained", 3)])
def test_validation_rows_that_are_not_finite_are_named(params, step, tmp_path):
    good, bad, calls = rows(), rows(poison=9), []

    def assemble(own, width):
        calls.append(own)
        before = params == "trained" and len(calls) <= 3  # batches of the first validation
        return (good if before else bad).assemble(own, width)

    with pytest.raises(InputError) as refused:
        fit(tmp_path, rows(), Rows(good.lengths, assemble))
    kept = "the state of step 2 is kept" if step else "no state is kept"
    assert str(refused.value) == (
        f"step {step}: validation_loss is nan; expected a finite number: lower optimiser.rate, or "
        "raise optimiser.warmup, and start again in a new folder (validation rows 8, 9, 10, 11, "
        f"counted from 0; {kept})."
    )


def test_a_step_that_fails_leaves_the_state_before_it(tmp_path):
    step, _ = first_step_with(LATE)
    with pytest.raises(OSError, match="the disk is gone"):
        fit(tmp_path / "run", rows(fails=LATE))
    assert Checkpoints(tmp_path / "run" / "state").latest_step() == step - 1
    found = fit(tmp_path / "run", rows())
    chex.assert_trees_all_equal(found.params, fit(tmp_path / "whole", rows()).params)


def test_a_state_of_another_optimiser_is_refused(tmp_path):
    fit(tmp_path, rows())
    with pytest.raises(InputError) as refused:
        fit(tmp_path, rows(), changes={"clip_norm": None})
    assert re.fullmatch(
        r".*/state/00000006: 'moments/\S+' holds .*; expected .*: this is the checkpoint of "
        r"another model, optimiser or setting\.",
        str(refused.value),
    )


def out_of_memory(*arguments):
    raise jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.\nMore of it."
    )


SAID = "the device has too little memory (Out of memory allocating 99 bytes): "


def test_too_little_memory_is_one_sentence_with_step_and_state(tmp_path, monkeypatch):
    calls = []

    def announced(name, program, say):
        def called(*arguments):
            calls.append(name)
            return program(*arguments) if len(calls) < 4 else out_of_memory()

        return called

    monkeypatch.setattr(loop, "announce", announced)
    with pytest.raises(InputError) as refused:
        fit(tmp_path, rows())
    tail = f", counted from 0; the state of step 2 is kept): {SAID}{failures.MEMORY_REMEDY}."
    assert re.fullmatch(r"step 4 \(training rows [\d, ]+" + re.escape(tail), str(refused.value))
    # The step changed nothing, so that the state before it is kept as well.
    assert Checkpoints(tmp_path / "state").latest_step() == 3


def test_moments_that_do_not_fit_are_one_sentence(monkeypatch):
    monkeypatch.setattr(optimiser, "_wide", out_of_memory)
    with pytest.raises(InputError) as refused:
        optimiser.start(jax.random.key(0), {"kernel": jnp.ones(1)}, OptimiserConfig())
    assert str(refused.value) == f"the optimiser's state: {SAID}{failures.MEMORY_REMEDY}."


def test_an_allocation_that_the_device_refuses_is_recognised():
    said = r"^step 1: the device has too little memory \("
    with pytest.raises(InputError, match=said), failures.memory_refusal(lambda: "step 1"):
        jnp.ones((1 << 24, 1 << 24)).block_until_ready()


def test_other_errors_of_the_device_pass():
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"),
        failures.memory_refusal(lambda: "step 1"),
    ):
        raise jax.errors.JaxRuntimeError("INTERNAL: a fault")


def test_metrics_that_are_not_finite_come_before_the_fault_of_the_next_step(tmp_path):
    """A state whose metrics are not finite is no good state."""
    log = MetricsLog(tmp_path, 0, 2, lambda text: None, lambda entry: "")
    log.add(1, {"loss": jnp.nan})
    state = {"kernel": jnp.ones(1)}
    with Checkpoints(tmp_path / "state") as kept:
        step = failures.guarded_step(state, 1, log, kept, lambda: "")
        with pytest.raises(InputError, match="step 1: loss is nan"), step:
            raise OSError
        assert kept.steps() == []
