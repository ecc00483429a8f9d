"""Levels of rewards: between quantiles, on host and device, there and back."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.errors import InputError
from jaxalign.rewards.reward_scale import RewardScale, fit_scale

NAMES = ("helpful", "humor")
RAW = np.random.default_rng(0).normal([2.0, -300.0], [0.5, 40.0], (500, 2))


def test_quantiles_become_0_and_1():
    scale = fit_scale(RAW, NAMES, (0.1, 0.8))
    levels = scale.levels(RAW)
    np.testing.assert_allclose(np.quantile(levels, [0.1, 0.8], axis=0), [[0, 0], [1, 1]], atol=1e-9)
    assert (scale.names, scale.digest) == (NAMES, fit_scale(RAW, NAMES, None).digest)


def test_a_known_range_goes_before_quantiles():
    scale = fit_scale(RAW, NAMES, ranges={"humor": (-400, -200)})
    free = fit_scale(RAW, NAMES)
    np.testing.assert_allclose(scale.levels(np.array([[2.0, -250.0]]))[0, 1], 0.75)
    assert scale.low[0] == free.low[0]
    assert scale.digest == free.digest  # utilities on the same rewards stay valid
    assert scale != free


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=2))
def test_levels_lead_to_standard_deviations(values):
    scale = fit_scale(RAW, NAMES)
    raw = np.array(values)
    np.testing.assert_allclose(
        scale.standardise_levels(scale.levels(raw)),
        scale.standardise(raw),
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.parametrize("shape", [(2,), (3, 2), (4, 3, 2)])
def test_device_and_host_agree(shape):
    scale = fit_scale(RAW, NAMES)
    raw = np.random.default_rng(1).normal(0, 100, shape).astype(np.float32)
    for function in (scale.levels, scale.standardise_levels):
        device = jax.jit(function)(jnp.asarray(raw))
        assert isinstance(device, jax.Array)
        assert device.dtype == jnp.float32
        assert not device.weak_type
        np.testing.assert_allclose(device, function(raw), rtol=1e-5, atol=1e-4)
    assert scale.levels(raw).dtype == np.float32
    assert scale.levels(jnp.asarray(raw, jnp.bfloat16)).dtype == jnp.float32
    exact = (raw.astype(np.float64) - scale.low) / (scale.high - scale.low)
    np.testing.assert_allclose(scale.levels(raw), exact, rtol=1e-4, atol=1e-5)


def test_float64_stays(x64):
    scale = fit_scale(RAW, NAMES)
    found = jax.jit(scale.levels)(jnp.asarray(RAW))
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, (RAW - scale.low) / (scale.high - scale.low), rtol=1e-13)


def test_there_and_back_through_json():
    scale = fit_scale(RAW, NAMES, ranges={"humor": (-400, -200)})
    again = RewardScale.from_json(json.loads(json.dumps(scale.to_json())))
    assert again == scale
    assert hash(again) == hash(scale)
    assert again.digest == scale.digest
    np.testing.assert_array_equal(again.levels(RAW), scale.levels(RAW))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"low": None}, "moc.json: expected names"),
        ({"names": 3}, "moc.json: is no scale of rewards .*; expected a list of names"),
        ({"mean": "x"}, "moc.json: is no scale of rewards .*: estimate the scale again"),
        (
            {"std": [1.0, 0.0]},
            r"moc.json: the scale's std is \[1\. 0\.\]; expected numbers above 0",
        ),
        ({"mean": [1.0]}, "mean is .* expected 2 finite"),
        ({"high": [1.0]}, "high is .* expected 2 finite"),
        ({"high": [-1e9, 1.0]}, "helpful has level 0 at"),
    ],
)
def test_damaged_json_is_refused(change, match):
    value = fit_scale(RAW, NAMES).to_json() | change
    if value["low"] is None:
        del value["low"]
    with pytest.raises(InputError, match=match):
        RewardScale.from_json(value, "moc.json")


def test_what_cannot_be_scaled_is_refused():
    rare = RAW.copy()
    rare[:, 1] = 0
    with pytest.raises(InputError, match="'humor' is constant"):
        fit_scale(rare, NAMES)
    rare[0, 1] = 1  # not constant, yet most answers are alike
    with pytest.raises(InputError, match=r"humor has level 0 at 0 and level 1 at 0.*`levels`"):
        fit_scale(rare, NAMES)
    assert fit_scale(rare, NAMES, ranges={"humor": (0, 1)}).high[1] == 1
    with pytest.raises(InputError, match="not finite"):
        fit_scale(np.where(RAW[0, 0] == RAW, np.nan, RAW), NAMES)
    with pytest.raises(InputError, match="ranges has 'wit'"):
        fit_scale(RAW, NAMES, ranges={"wit": (0, 1)})
    with pytest.raises(InputError, match=r"quantiles are 0\.9 and 0\.1"):
        fit_scale(RAW, NAMES, (0.9, 0.1))
    with pytest.raises(InputError, match=r"shape \(3,\) have no last axis of 2"):
        fit_scale(RAW, NAMES).levels(np.zeros(3))
    with pytest.raises(InputError, match="low is"):
        RewardScale(NAMES, np.zeros(2), np.ones(2), np.array([0, np.nan]), np.ones(2))
