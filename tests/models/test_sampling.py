"""Drawing a token, against exact distributions worked out in NumPy."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxalign.errors import InputError
from jaxalign.models.sampling import (
    Sampling,
    StaticSampling,
    sample_token,
    split_sampling,
    truncated_logprobs,
)


def exact(logits, temperature=1.0, top_k=None, top_p=None):
    """The distribution by its definition: sort, cut, renormalise; float64."""
    logits = np.asarray(logits, np.float64) / temperature
    order = np.argsort(-logits, kind="stable")  # of equal ones, lower ids first
    shares = np.exp(logits - logits.max())
    if top_k is not None:
        shares[order[top_k:]] = 0
    shares /= shares.sum()
    if top_p is not None:
        sums = np.cumsum(shares[order])
        last = order[min(np.searchsorted(sums, top_p), len(order) - 1)]
        shares[shares < shares[last] * (1 - 1e-12)] = 0
    return shares / shares.sum()


jitted = jax.jit(truncated_logprobs, static_argnums=3)


def ours(logits, temperature=1.0, top_k=None, top_p=None):
    static = StaticSampling("none", top_k, top_p is not None)
    params = jnp.float32(temperature), jnp.float32(1.0 if top_p is None else top_p)
    logprobs, ids = jitted(jnp.asarray(logits, jnp.float32), *params, static)
    shares = np.zeros(len(logits))
    shares[np.arange(len(logits)) if ids is None else np.asarray(ids)] = np.exp(logprobs)
    return shares


# Whole numbers tie often, and their sums stay away from the shares below.
values = st.lists(st.integers(-3, 3), min_size=6, max_size=6)


@settings(deadline=None, max_examples=60)
@given(
    logits=values,
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([None, 1, 3]),
    top_p=st.sampled_from([None, 0.0437, 0.3331, 0.5713, 0.8999, 0.9871]),
)
@example(logits=[0] * 6, temperature=1.0, top_k=2, top_p=None)
@example(logits=[0] * 6, temperature=1.0, top_k=None, top_p=0.3331)
@example(logits=[2, 0, 0, -3, -3, -3], temperature=1.0, top_k=3, top_p=0.8999)
def test_filters_agree_with_their_definition(logits, temperature, top_k, top_p):
    expected = exact(logits, temperature, top_k, top_p)
    np.testing.assert_allclose(ours(logits, temperature, top_k, top_p), expected, atol=2e-6)


def test_the_nucleus_of_a_large_vocabulary_is_exact():
    logits = np.random.default_rng(0).normal(size=50_000).astype(np.float32) * 4
    expected, found = exact(logits, 0.9, None, 0.9), ours(logits, 0.9, None, 0.9)
    # Rounding of the sum may move the edge by a token of share 1e-6.
    assert abs((found > 0).sum() - (expected > 0).sum()) <= 2
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_float64_keeps_its_digits(x64):
    logits = np.random.default_rng(0).normal(size=300) * 3
    static, params = StaticSampling("none", None, True), (jnp.float64(0.7), jnp.float64(0.8))
    found, _ = truncated_logprobs(jnp.asarray(logits), *params, static)
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(np.exp(found), exact(logits, 0.7, None, 0.8), atol=1e-14)


def draws(logits, count, static, temperature=1.0, top_p=1.0):
    keys = jax.random.split(jax.random.key(5), count)
    params = jnp.float32(temperature), jnp.float32(top_p)
    tokens, logprobs = jax.jit(
        jax.vmap(lambda key: sample_token(key, jnp.asarray(logits, jnp.float32), *params, static))
    )(keys)
    return np.asarray(tokens), np.asarray(logprobs)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, None, None), (0.6, None, None), (1.4, 7, None), (1.0, None, 0.83), (0.8, 9, 0.77)],
)
def test_frequencies_follow_the_distribution(temperature, top_k, top_p):
    # More values than one block, with some barred.
    logits = np.random.default_rng(1).normal(size=700).astype(np.float32) * 2
    logits[300:310] = -np.inf
    shares = exact(logits, temperature, top_k, top_p)
    static = StaticSampling("none", top_k, top_p is not None)
    tokens, logprobs = draws(logits, 20_000, static, temperature, top_p or 1.0)
    counts = np.bincount(tokens, minlength=700)
    assert not counts[shares == 0].any()
    np.testing.assert_allclose(logprobs, np.log(shares[tokens]), atol=2e-5)
    # Rare tokens together, so that every cell expects enough.
    often = shares * len(tokens) >= 5
    cells = np.append(counts[often], counts[~often].sum())
    expected = np.append(shares[often], shares[~often].sum()) * len(tokens)
    kept = expected > 1e-3
    assert stats.chisquare(cells[kept], expected[kept]).pvalue > 1e-3


def test_temperature_zero_takes_the_first_of_the_likeliest():
    logits = [0.0, 2.0, -1.0, 2.0]
    tokens, logprobs = draws(logits, 3, StaticSampling("all", None, False), temperature=0.0)
    assert tokens.tolist() == [1, 1, 1]
    np.testing.assert_allclose(logprobs, np.log(exact(logits)[1]), rtol=1e-6)


def test_rows_of_temperature_zero_stand_beside_others():
    static, logits = StaticSampling("some", 2, False), jnp.asarray([0.0, 2.0, -1.0, 1.5])
    keys = jax.random.split(jax.random.key(0), 64)
    params = jnp.asarray([0.0, 1.0] * 32), jnp.ones(64)
    tokens, logprobs = jax.vmap(lambda k, t, p: sample_token(k, logits, t, p, static))(
        keys, *params
    )
    assert set(tokens[::2].tolist()) == {1}
    assert set(tokens[1::2].tolist()) == {1, 3}
    np.testing.assert_allclose(logprobs[::2], np.log(exact(logits)[1]), rtol=1e-6)
    shares = exact(logits, top_k=2)
    np.testing.assert_allclose(logprobs[1::2], np.log(shares[tokens[1::2]]), rtol=1e-5)


@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 1e30])
def test_extreme_temperatures_stay_finite(temperature):
    _, logprobs = draws(
        [-3e4, 5.0, 3e4, 5.0], 50, StaticSampling("none", None, True), temperature, 0.9
    )
    assert np.isfinite(logprobs).all()


def test_numbers_below_the_normal_ones_are_those_that_xla_has():
    """It takes subnormal numbers for 0: a temperature of 0 would be sampled as 1."""
    settings = Sampling(temperature=[1e-40, 1.0], top_p=[1.0, 1e-46])
    static, params = split_sampling(settings, 2, 2, 4)
    assert static == StaticSampling("some", None, True)
    tokens, logprobs = jax.vmap(
        lambda k, t, p: sample_token(k, jnp.asarray([0.0, 1.0, 2.0, 1.0]), t, p, static)
    )(jax.random.split(jax.random.key(0)), params.temperature, params.top_p)
    assert tokens.tolist() == [2, 2]
    assert np.isfinite(logprobs).all()


def test_only_what_changes_the_program_is_static():
    plain = Sampling(temperature=0.7, top_p=0.9, stop_ids=(1,), min_tokens=2)
    other = replace(
        plain, temperature=[0.1, 2.0, 1.0], top_p=0.2, stop_ids=(3, 4), max_tokens=5, min_tokens=0
    )
    (static, params), (again, others) = (split_sampling(each, 3, 4, 10) for each in (plain, other))
    assert static == again == StaticSampling("none", None, True)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), others
    )
    assert split_sampling(replace(plain, top_k=10), 3, 4, 10)[0].top_k is None
    assert split_sampling(replace(plain, temperature=0.0, top_k=3), 3, 4, 10)[0] == StaticSampling(
        "all", None, False
    )
    assert split_sampling(replace(plain, temperature=[0.0, 1, 1]), 3, 4, 10)[0].greedy == "some"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": [0.5, 1.5]}, "top_p is"),
        ({"top_k": 0}, "top_k is 0"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": 3, "min_tokens": 4}, "min_tokens is 4, above max_tokens, 3"),
        ({"stop_ids": (-1,)}, "stop_ids is -1"),
        ({"suppressed_ids": (1.5,)}, "suppressed_ids is 1.5"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Sampling(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stop_ids": (10,)}, "token id 10 is outside the vocabulary of 10"),
        ({"suppressed_ids": tuple(range(10))}, "all token ids are suppressed"),
        ({"suppressed_ids": tuple(range(9)), "stop_ids": (9,), "min_tokens": 1}, "all token ids"),
        ({"temperature": [1.0, 2.0]}, r"temperature has shape \(2,\)"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        split_sampling(Sampling(**fields), 3, 4, 10)


@pytest.mark.parametrize(
    ("logits", "token"), [([1.0, 3.0, 3.0], 1), ([1.0, np.nan, 3.0], 1), ([-np.inf, 0.0, -1.0], 1)]
)
def test_the_most_likely_token_is_that_of_argmax(logits, token):
    one = jnp.float32(1)
    greedy = StaticSampling("all", None, False)
    found, logprob = sample_token(jax.random.key(0), jnp.asarray(logits), 0 * one, one, greedy)
    assert int(found) == token == int(np.argmax(logits))
    expected = jax.nn.log_softmax(jnp.asarray(logits))[token]
    np.testing.assert_allclose(logprob, expected, rtol=1e-6)
