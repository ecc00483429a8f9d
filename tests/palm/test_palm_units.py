"""Rewards in any unit: the same portfolio and, in units of the spread, the same certificate."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import palm
from jaxalign.errors import InputError

SCALES = (1e-8, 1e-4, 1e8)


def portfolio(scale, price, size):
    """A portfolio of rewards in units of `scale`, with a price of KL of `price` spreads."""
    rewards = np.random.default_rng(0).normal(size=(4, 6, 3)) * scale
    oracle = palm.ClosedForm(rewards, None, beta=price * scale, reward_range=None)
    tolerance = 0.02 * scale / max(price, 1)
    config = palm.PalmConfig(
        targets="corners", stop_eps=0, stop_delta=tolerance, prune_eps=0,
        prune_delta=5 * tolerance, size=size,
    )  # fmt: skip
    return palm.build(oracle, config)


@pytest.mark.parametrize("size", [2, None], ids=["budget", "cover"])
@pytest.mark.parametrize("price", [0.5, 100.0])
def test_a_portfolio_depends_on_no_unit(price, size, x64):
    expected = portfolio(1.0, price, size)
    for scale in SCALES if size else SCALES[:1]:
        found = portfolio(scale, price, size)
        assert found.calls == expected.calls
        assert found.selection.optimal == expected.selection.optimal
        chex.assert_trees_all_close(
            found.members.payload["weight"], expected.members.payload["weight"], atol=1e-9
        )
        ours, theirs = found.certificate.pool, expected.certificate.pool
        assert ours.additive.value == pytest.approx(theirs.additive.value * scale, rel=1e-6)
        for name in ("additive_sd", "share_lost"):
            gap = getattr(ours, name)
            assert gap.value == pytest.approx(getattr(theirs, name).value, rel=1e-6), (name, scale)


@pytest.mark.parametrize("scale", [1.0, *SCALES])
def test_the_worst_weight_attains_the_gap(scale, x64):
    found = portfolio(scale, 1.0, 2)
    gap = found.certificate.pool.additive_sd
    lost = (found.pool_values @ gap.weight).max() - (found.values @ gap.weight).max()
    assert lost / (np.abs(gap.weight) @ found.spread) == pytest.approx(gap.value, rel=1e-7)
    # And no weight of a fine sample is worse.
    weights = np.random.default_rng(1).dirichlet(np.ones(3), 20_000)
    lost = (weights @ found.pool_values.T).max(1) - (weights @ found.values.T).max(1)
    assert (lost / (weights @ found.spread)).max() <= gap.value * (1 + 1e-9)


@pytest.mark.parametrize("corners", [np.full((2, 2), np.nan), np.eye(3), np.ones(2)])
def test_corners_that_are_none_are_refused(corners):
    with pytest.raises(InputError, match=r"corners: found shape .*`palm.corners` gives them"):
        palm.worst_gap([[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5]], corners=corners)


@pytest.mark.parametrize("dtype", [bool, np.int32, jnp.bfloat16, np.float16, np.float32])
def test_zeros_and_ones_are_rewards_of_every_dtype(dtype):
    rewards = np.random.default_rng(2).integers(2, size=(5, 6, 2))
    expected = palm.ClosedForm(rewards.astype(np.float32), None, 0.1)
    oracle = palm.ClosedForm(rewards.astype(dtype), None, 0.1)
    assert oracle.rewards.dtype == jnp.float32
    weight = np.array([0.25, 0.75])
    np.testing.assert_allclose(oracle(weight).rewards, expected(weight).rewards, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float32])
def test_weights_of_every_float_are_routed(dtype):
    built = portfolio(1.0, 1.0, 2)
    weights = np.random.default_rng(3).dirichlet(np.ones(3), 50)
    _, expected = built.route(weights)
    _, member = built.route(jnp.asarray(weights, dtype))
    assert (np.asarray(member) == np.asarray(expected)).mean() >= 0.9
    with pytest.raises(InputError, match=r"weights, row 0: found .* sum to 1"):
        built.route(jnp.asarray([[0.5, 0.5, 0.1]], dtype))
