"""The persona of a history: against NumPy in float64, and what must not matter to it."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf, softmax

from jaxalign.errors import InputError
from jaxalign.pplug.config import PersonaConfig
from jaxalign.pplug.persona import (
    aggregate,
    aggregate_flat,
    init_persona,
    rescale_persona,
    task_token,
)

E, D, NORM = 6, 10, 3.5
CONFIGS = {
    "published": PersonaConfig(),
    "mean": PersonaConfig(mean=True),
    "several": PersonaConfig(tokens=3),
    "learned": PersonaConfig(temperature="learned", sharpness=4.0),
    "sharp": PersonaConfig(sharpness=7.0),
    "recency": PersonaConfig(recency=True),
    "all": PersonaConfig(tokens=2, temperature="learned", recency=True),
}
every = pytest.mark.parametrize("name", CONFIGS)
some = pytest.mark.parametrize("name", ["published", "mean", "all"])


@functools.cache
def parameters(config, width=D, encoder=E):
    """As `init_persona` gives them, but in float64, and such that each of them counts."""
    shapes = jax.eval_shape(lambda: init_persona(jax.random.key(0), config, encoder, width, NORM))
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape) / max(leaf.shape[:-1], default=1) ** 0.5, shapes
    )


def narrow(params):
    return jax.tree.map(np.float32, params)


def unit(rng, *shape):
    drawn = rng.normal(size=shape)
    return drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)


def projected(part, vector):
    """Scale * (W2 gelu(W1 h + b1) + b2) of one vector, as the published code does: [S, D]."""
    raised = vector @ np.asarray(part["inner"]["kernel"]) + np.asarray(part["inner"]["bias"])
    hidden = raised * 0.5 * (1 + erf(raised / math.sqrt(2)))
    kernel, bias = (np.asarray(part["head"][name]) for name in ("kernel", "bias"))
    return float(part["scale"]) * np.stack(
        [hidden @ kernel[s] + bias[s] for s in range(len(kernel))]
    )


def reference(params, query, items, config):
    """The persona of items [n, E], all of them real, the oldest first; projected one by one."""
    scale = float(params["project"]["scale"])
    if not len(items):
        return scale * np.asarray(params["null"])
    tokens = []
    for s in range(config.tokens):
        own = query + (np.asarray(params["queries"])[s] if config.tokens > 1 else 0)
        sharp = config.sharpness
        if config.temperature == "learned":
            sharp = math.exp(float(params["sharpness"][s]))
        logits = np.array([0.0 if config.mean else sharp * (own @ item) for item in items])
        if config.recency:
            rate = float(params["recency"][s])
            logits -= rate * np.log([len(items) - place for place in range(len(items))])
        shares = softmax(logits)
        tokens.append(
            sum(
                w * projected(params["project"], item)[s]
                for w, item in zip(shares, items, strict=True)
            )
        )
    return np.stack(tokens)


def aggregate_direct(params, query, history, mask, config):
    """The published order: both products for every item, then the sum."""
    part = params["project"]
    raised = jnp.matmul(history, part["inner"]["kernel"]) + part["inner"]["bias"][None]
    hidden = jax.nn.gelu(raised, approximate=False)
    tokens = jnp.matmul(hidden, part["head"]["kernel"][0]) + part["head"]["bias"]
    logits = jnp.where(mask, history @ query, -jnp.inf)
    return (jax.nn.softmax(logits)[None] @ tokens) * part["scale"]


@functools.cache
def compiled(name):
    config = CONFIGS[name]
    return (
        jax.jit(functools.partial(aggregate, config=config)),
        jax.jit(functools.partial(aggregate_flat, config=config)),
    )


@every
@pytest.mark.parametrize("count", [0, 1, 9])
def test_numpy_reference(x64, name, count):
    config, rng = CONFIGS[name], np.random.default_rng(count)
    params = parameters(config)
    query, items = unit(rng, E), unit(rng, count, E)
    history = np.concatenate([items, np.full((16 - count, E), np.nan)])
    one, _ = compiled(name)
    found = one(params, query, history, np.arange(16) < count)
    chex.assert_shape(found, (config.tokens, D))
    np.testing.assert_allclose(found, reference(params, query, items, config), rtol=0, atol=1e-12)


def test_task_token_reference(x64):
    params = parameters(CONFIGS["published"])
    expected = projected(params["task"], np.asarray(params["task"]["vector"]))
    np.testing.assert_allclose(task_token(params), expected, rtol=0, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["published", "several", "learned"]), st.integers(0, 16), st.randoms())
def test_order_bucket_and_padding_do_not_matter(name, count, draw):
    with jax.enable_x64(True):
        rng = np.random.default_rng(draw.randrange(2**32))
        one, _ = compiled(name)
        params, query, items = parameters(CONFIGS[name]), unit(rng, E), unit(rng, count, E)
        plain = np.zeros((16, E))
        plain[:count] = items
        expected = one(params, query, plain, np.arange(16) < count)
        # Shuffled into any places of a wider bucket, among rubbish.
        wide = rng.choice([np.nan, np.inf, 1e300], (32, E))
        places = rng.permutation(32)[:count]
        wide[places] = items[rng.permutation(count)]
        mask = np.isin(np.arange(32), places)
        np.testing.assert_allclose(one(params, query, wide, mask), expected, rtol=0, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(CONFIGS)), st.lists(st.integers(0, 8), min_size=4, max_size=4))
def test_flat_is_bucketed(name, counts):
    with jax.enable_x64(True):
        rng = np.random.default_rng([sum(counts), *counts])
        config, params = CONFIGS[name], parameters(CONFIGS[name])
        one, flat = compiled(name)
        queries = unit(rng, 4, E)
        items, segments = np.full((40, E), np.nan), rng.choice([-3, 4, 9], 40)
        filled = 0
        expected = []
        for user, count in enumerate(counts):
            own = unit(rng, count, E)
            items[filled : filled + count] = own
            segments[filled : filled + count] = user
            filled += count
            history = np.zeros((16, E))
            history[:count] = own
            expected.append(one(params, queries[user], history, np.arange(16) < count))
        found = flat(params, queries, items, segments)
        chex.assert_shape(found, (4, config.tokens, D))
        np.testing.assert_allclose(found, np.stack(expected), rtol=0, atol=1e-12)


@some
def test_float32_forms_agree(name):
    config, rng = CONFIGS[name], np.random.default_rng(3)
    params = narrow(parameters(config, 48, 32))
    one, flat = compiled(name)
    queries, items = unit(rng, 2, 32), unit(rng, 24, 32).astype(np.float16)
    segments = np.repeat(np.arange(3), [15, 8, 1])  # the last is padding
    queries = queries.astype(np.float32)
    found = flat(params, queries, items, segments)
    for user in range(2):
        mask = segments == user
        alone = one(params, queries[user], items, mask)
        assert alone.dtype == jnp.float32
        np.testing.assert_allclose(found[user], alone, rtol=1e-5, atol=1e-6)


@some
@pytest.mark.parametrize("form", ["bucket", "flat"])
def test_empty_histories_have_finite_gradients(name, form):
    config = CONFIGS[name]
    params = narrow(parameters(config))
    rng = np.random.default_rng(0)
    queries = jnp.asarray(unit(rng, 2, E), jnp.float32)
    target = jnp.asarray(rng.normal(size=(2, config.tokens, D)), jnp.float32)

    def loss(params, queries, items):
        if form == "flat":
            segments = jnp.where(jnp.arange(16) < 5, 0, 2)
            tokens = aggregate_flat(params, queries, items[0], segments, config)
        else:
            mask = jnp.array([[True] * 5 + [False] * 11, [False] * 16])
            one = functools.partial(aggregate, config=config)
            tokens = jax.vmap(one, (None, 0, 0, 0))(params, queries, items, mask)
        return jnp.sum(tokens * target), tokens

    items = jnp.full((2, 16, E), jnp.nan).at[0, :5].set(jnp.asarray(unit(rng, 5, E), jnp.float32))
    slopes, tokens = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(
        params, queries, items
    )
    chex.assert_tree_all_finite((slopes, tokens))
    # The empty one is the null persona, which it alone teaches; and it teaches nothing else.
    scale = float(params["project"]["scale"])
    np.testing.assert_allclose(tokens[1], scale * params["null"], rtol=1e-6)
    np.testing.assert_allclose(slopes[0]["null"], scale * target[1], rtol=1e-5)
    assert not np.any(slopes[1][1])
    assert not np.any(slopes[2][1])
    assert np.any(slopes[2][0])
    assert not float(slopes[0]["project"]["scale"])
    assert np.any(slopes[1][0]) != config.mean


def test_exact_saving_is_the_direct_form(x64):
    config, rng = CONFIGS["published"], np.random.default_rng(1)
    params = parameters(config, width=64, encoder=24)
    query, history = unit(rng, 24), unit(rng, 128, 24)
    mask = rng.random(128) < 0.7
    arguments = (query, history, mask, config)
    forms = (jax.jit(form, static_argnums=4) for form in (aggregate, aggregate_direct))
    exact, direct = (form(params, *arguments) for form in forms)
    np.testing.assert_allclose(exact, direct, rtol=0, atol=1e-10)


def test_exact_saving_costs_less_than_a_quarter():
    config, items, encoder, width = PersonaConfig(), 512, 768, 4096
    shapes = jax.eval_shape(lambda: init_persona(jax.random.key(0), config, encoder, width, NORM))
    arguments = (
        jax.ShapeDtypeStruct((encoder,), jnp.float32),
        jax.ShapeDtypeStruct((items, encoder), jnp.float32),
        jax.ShapeDtypeStruct((items,), bool),
    )

    def count(form):
        program = jax.jit(functools.partial(form, config=config)).lower(shapes, *arguments)
        return program.compile().cost_analysis()["flops"]

    direct, exact = count(aggregate_direct), count(aggregate)
    assert direct > 2 * items * width * (encoder + width)  # both products are counted
    assert exact < 0.25 * direct
    assert exact > 2 * items * width * encoder


@pytest.mark.parametrize("name", ["all"])
def test_tokens_start_as_long_as_embeddings(name):
    config, rng = CONFIGS[name], np.random.default_rng(2)
    started = jax.jit(init_persona, static_argnums=(1, 2, 3, 4))
    params = started(jax.random.key(4), config, 48, 64, NORM)
    length = functools.partial(np.linalg.norm, axis=-1)
    np.testing.assert_allclose(length(task_token(params)), NORM, rtol=1e-5)
    # Real encoders' items point one way: their personas have another length at first.
    items = unit(rng, 8, 30, 48) + 2 * unit(rng, 48)
    items = (items / length(items)[..., None]).astype(np.float32)
    one = jax.jit(jax.vmap(functools.partial(aggregate, config=config), (None, 0, 0, None)))
    before = one(params, items[:, 0], items, np.ones(30, bool))
    params = rescale_persona(params, before, NORM)
    after = one(params, items[:, 0], items, np.ones(30, bool))
    np.testing.assert_allclose(length(after).mean(), NORM, rtol=1e-5)
    assert (abs(length(after) / NORM - 1) < 0.3).all()
    empty = one(params, items[:, 0], items, np.zeros(30, bool))
    np.testing.assert_allclose(length(empty).mean(), NORM, rtol=1e-5)


def test_recency_prefers_the_newest():
    one, _ = compiled("recency")
    params, items = parameters(CONFIGS["recency"]), unit(np.random.default_rng(0), 5, E)
    params = narrow({**params, "recency": np.zeros(1)})
    items = items.astype(np.float32)
    mask = np.array([True, True, True, True, False])  # padding is no newer item
    even, _ = compiled("published")
    expected = even(params, items[0], items, mask)
    np.testing.assert_allclose(one(params, items[0], items, mask), expected, rtol=1e-5)
    late = {**params, "recency": np.full(1, 60, np.float32)}
    newest = one(params, items[0], items, np.arange(5) == 3)
    np.testing.assert_allclose(one(late, items[0], items, mask), newest, rtol=1e-5)


@pytest.mark.parametrize("norm", [0.0, float("nan"), float("inf")])
def test_broken_embeddings_are_refused(norm):
    with pytest.raises(InputError, match="embedding norm"):
        init_persona(jax.random.key(0), PersonaConfig(), E, D, norm)


def test_bad_settings_are_refused():
    for changes, word in [
        ({"tokens": 0}, "tokens"),
        ({"sharpness": 0.0}, "sharpness"),
        ({"source": "none", "task": False}, "source"),
    ]:
        with pytest.raises(InputError, match=word):
            PersonaConfig(**changes)


def test_personas_without_length_have_no_scale():
    params = parameters(PersonaConfig())
    with pytest.raises(InputError, match="found personas of length 0"):
        rescale_persona(params, np.zeros((3, 1, D)), NORM)
