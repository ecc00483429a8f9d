"""Rewards in standard deviations: the scale's mean and standard deviation, and its digest."""

import dataclasses

import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.rewards.reward_scale import RewardScale, fit_scale

NAMES = ("brevity", "warmth")
ENDS = np.zeros(2), np.ones(2)


@pytest.fixture
def values():
    return np.random.default_rng(0).normal([5.0, -2.0], [3.0, 0.1], (200, 2))


def test_reference_samples_come_out_standard(values):
    scale = fit_scale(values, NAMES)
    out = scale.standardise(values)
    np.testing.assert_allclose(out.mean(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(out.std(axis=0), 1.0, rtol=1e-12)


def test_apply_takes_any_leading_axes_and_keeps_the_precision(values):
    scale = fit_scale(values, list(NAMES))
    block = values[:24].reshape(2, 3, 4, 2)
    np.testing.assert_array_equal(
        scale.standardise(block), scale.standardise(values[:24]).reshape(2, 3, 4, 2)
    )
    assert scale.standardise(values).dtype == np.float64
    assert scale.standardise(values.astype(np.float32)).dtype == np.float32
    assert scale.standardise(np.array([1, 2])).shape == (2,)


def test_digest_is_stable_and_sees_every_part(values):
    scale = fit_scale(values, NAMES)
    fixed = RewardScale(NAMES, np.array([0.0, 1.0]), np.array([1.0, 2.0]), *ENDS)
    again = RewardScale(NAMES, np.array([0, 1]), np.array([1, 2], ">f4"), *ENDS)
    assert fixed.digest == again.digest
    assert fixed == again
    assert hash(fixed) == hash(again)
    digests = {
        scale.digest,
        dataclasses.replace(scale, names=("brevity", "warmer")).digest,
        dataclasses.replace(scale, mean=scale.mean + 1e-9).digest,
        dataclasses.replace(scale, std=scale.std * 2).digest,
    }
    assert len(digests) == 4
    assert all(len(digest) == 64 for digest in digests)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_fit_names_the_reward_that_is_not_finite(values, bad):
    values[3, 1] = bad
    with pytest.raises(InputError, match="'warmth' is not finite on 1 of 200"):
        fit_scale(values, NAMES)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_fit_names_the_reward_that_is_constant(values, constant):
    values[:, 0] = constant
    with pytest.raises(InputError, match="'brevity' is constant"):
        fit_scale(values, NAMES)


def test_fit_refuses_shapes_and_names_that_do_not_fit(values):
    with pytest.raises(InputError, match=r"\(200, 2\) were given for 3 names"):
        fit_scale(values, ("a", "b", "c"))
    with pytest.raises(InputError, match="at least 2"):
        fit_scale(values[:1], NAMES)
    with pytest.raises(InputError, match="must differ"):
        fit_scale(values, ("a", "a"))


def test_apply_refuses_other_rewards(values):
    scale = fit_scale(values, NAMES)
    with pytest.raises(InputError, match="brevity, warmth"):
        scale.standardise(values[:, :1])
