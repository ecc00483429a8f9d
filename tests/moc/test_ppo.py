"""Advantages, whitening, clipped losses and the adaptive coefficient against loops in NumPy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ppo_loop import loop_gae

from jaxalign.moc.ppo import adapt_kl_coef, gae, policy_loss, value_loss, whiten

few = settings(max_examples=25, deadline=None)
by_row = jax.jit(jax.vmap(gae, (0, 0, 0, None, None)))
M = 7


def rows(seed, count=4):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, M + 1, count)
    lengths[0] = M
    mask = np.arange(M)[None] < lengths[:, None]
    return rng, mask


@few
@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1))
def test_gae_matches_a_loop(seed, gamma, lam):
    rng, mask = rows(seed)
    rewards, values = rng.normal(size=(2, 4, M))
    junk = np.where(mask, 0, np.nan)  # what stands behind the end must not matter
    with jax.enable_x64(True):
        arrays = [jnp.asarray(given) for given in (rewards + junk, values + junk, mask)]
        found = by_row(*arrays, gamma, lam)
    for row in range(4):
        expected = loop_gae(rewards[row], values[row], mask[row].sum(), gamma, lam)
        np.testing.assert_allclose(found[row], expected, atol=1e-12)


def test_gae_of_one_is_the_return_less_the_value():
    rng, mask = rows(1)
    rewards, values = (rng.normal(size=M).astype(np.float32) for _ in range(2))
    found = gae(jnp.asarray(rewards), jnp.asarray(values), jnp.asarray(mask[0]), 1.0, 1.0)
    np.testing.assert_allclose(found, rewards[::-1].cumsum()[::-1] - values, rtol=1e-4, atol=1e-5)
    chex.assert_type(found, jnp.float32)


@few
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_whiten_matches_numpy(seed, divide):
    rng, mask = rows(seed)
    values = rng.normal(2, 3, size=mask.shape)
    kept = values[mask]
    expected = kept - kept.mean()
    if divide:
        expected = expected / np.sqrt(kept.var(ddof=1) + 1e-8)
    with jax.enable_x64(True):
        junk = jnp.asarray(np.where(mask, values, np.inf))
        found = np.asarray(whiten(junk, jnp.asarray(mask), divide))
    np.testing.assert_allclose(found[mask], expected, atol=1e-9)
    assert not found[~mask].any()


def test_whiten_of_little_is_finite():
    for values in (jnp.zeros(4), jnp.full(4, 3.0)):
        for mask in (jnp.zeros(4, bool), jnp.array([1, 0, 0, 0]), jnp.ones(4)):
            found = whiten(values, mask)
            chex.assert_trees_all_close(found, jnp.zeros(4), atol=1e-5)
    assert whiten(jnp.ones(3, jnp.bfloat16), jnp.ones(3)).dtype == jnp.float32


def clipped_policy(logp, old, advantages, clip):
    losses, larger = 0.0, 0
    for new, before, gain in zip(logp, old, advantages, strict=True):
        ratio = np.exp(new - before)
        free, held = -gain * ratio, -gain * np.clip(ratio, 1 - clip, 1 + clip)
        losses, larger = losses + max(free, held), larger + (held > free)
    return losses, larger / max(len(logp), 1)


def clipped_value(values, old, returns, clip):
    near = np.clip(values, old - clip, old + clip)
    free, held = (values - returns) ** 2, (near - returns) ** 2
    return 0.5 * np.maximum(free, held).sum(), (held > free).mean()


@few
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.2, 0.5]))
def test_losses_match_loops(seed, clip):
    rng, mask = rows(seed)
    new, advantages = rng.normal(size=(2, *mask.shape))
    old = new + rng.normal(0, 0.3, mask.shape)
    with jax.enable_x64(True):
        arrays = [jnp.asarray(given) for given in (new, old, advantages, mask)]
        policy, value = policy_loss(*arrays, clip), value_loss(*arrays, clip)
    kept = [given[mask] for given in (new, old, advantages)]
    np.testing.assert_allclose(policy, clipped_policy(*kept, clip), rtol=1e-9)
    np.testing.assert_allclose(value, clipped_value(*kept, clip), rtol=1e-9)


def test_policy_gradient_stops_where_the_clip_gains_nothing():
    old = jnp.zeros(5)
    logp = jnp.log(jnp.array([1.0, 1.5, 1.5, 0.5, 0.5]))
    advantages = jnp.array([1.0, 1.0, -1.0, 1.0, -1.0])
    slope = jax.grad(lambda x: policy_loss(x, old, advantages, jnp.ones(5), 0.2)[0])(logp)
    np.testing.assert_allclose(slope, [-1, 0, 1.5, -0.5, 0], rtol=1e-6)


def test_nothing_behind_the_end_reaches_a_loss():
    mask = jnp.array([True, False])
    ends = jnp.array([0.1, jnp.inf]), jnp.array([0.0, -jnp.inf]), jnp.array([1.0, jnp.nan])
    for loss in (policy_loss, value_loss):
        (total, share), slope = jax.value_and_grad(loss, has_aux=True)(*ends, mask, 0.2)
        assert np.isfinite([total, share]).all()
        assert np.isfinite(slope).all()
        assert slope[1] == 0
        total, share = loss(*ends, jnp.zeros(2, bool), 0.2)
        assert float(total) == float(share) == 0


@pytest.mark.parametrize(
    ("kl", "factor"), [(3.0, 1.0), (3.3, 1.00064), (30.0, 1.00128), (0.0, 0.99872)]
)
def test_adapted_kl(kl, factor):
    found = adapt_kl_coef(0.2, kl, target=3.0, horizon=10_000, samples=64)
    assert float(found) == pytest.approx(0.2 * factor, rel=1e-6)
    traced = jax.jit(adapt_kl_coef, static_argnums=(2, 3, 4))(jnp.float32(0.2), kl, 3.0, 10_000, 64)
    chex.assert_trees_all_close(found, traced, rtol=1e-6)
