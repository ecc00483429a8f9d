"""Meta reward modelling: links, inner loop, robust objective, and the gradients through them."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_numpy as ref

from jaxalign import mrm
from jaxalign.errors import InputError
from jaxalign.mrm.base import BaseRewards, base_differences, is_linear
from jaxalign.mrm.inner import adapt_path, bradley_terry_loss, inner_rates

USERS, PAIRS, WIDTH, K = 4, 6, 5, 3
CONFIG = mrm.MRMConfig(
    hidden_sizes=(K,), input_scale=0.3, inner_steps=3, inner_lr=0.1, eval_steps=5
)
value_and_grad = jax.jit(
    jax.value_and_grad(mrm.meta_objective, has_aux=True), static_argnames="config"
)


def replace(**changes):
    return dataclasses.replace(CONFIG, **changes)


def arrays(seed=0, width=WIDTH):
    """A batch of features with ragged support and query masks."""
    rng = np.random.default_rng(seed)
    chosen, rejected = rng.standard_normal((2, USERS, PAIRS, width))
    query = rng.random((USERS, PAIRS)) < 0.5
    query[:, 0], query[:, 1] = True, False
    real = np.arange(PAIRS) < rng.integers(3, PAIRS + 1, (USERS, 1))
    masks = {"support_mask": real & ~query, "query_mask": real & query}
    return {"chosen": chosen, "rejected": rejected, **masks}


def start(config=CONFIG, seed=0, width=WIDTH):
    """Parameters as `mrm.init` shapes them, drawn without a compilation; weights all different."""
    rng = np.random.default_rng(seed)
    base = {}
    for index, size in enumerate(config.hidden_sizes):
        base[f"layer{index}"] = {"kernel": rng.standard_normal((width, size)) / width**0.5}
        if config.use_bias:
            base[f"layer{index}"]["bias"] = 0.1 * rng.standard_normal(size)
        width = size
    params = {"base": base, "weight_init": rng.standard_normal(width)}
    if config.learn_inner_lr:
        params["log_inner_lr"] = np.log(np.full(config.inner_steps, config.inner_lr))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), params)


def finite(tree):
    for leaf in jax.tree.leaves(tree):
        assert np.isfinite(leaf).all()


def layers_of(params):
    base = [params["base"][f"layer{i}"] for i in range(len(params["base"]))]
    return [
        (np.asarray(layer["kernel"]), np.asarray(layer["bias"]) if "bias" in layer else None)
        for layer in base
    ]


# Parity with the reference.


@pytest.mark.parametrize(("link", "gamma"), [("signed", 0.5), ("signed", 0.0), ("softmax", 0.5)])
def test_meta_step(link, gamma, x64):
    config = replace(link=link, rpo_gamma=gamma, rpo_tail=0.6, eval_steps=3)
    params, batch = start(config), arrays()
    hyper = {**dataclasses.asdict(config), "signed": link == "signed"}
    masks = batch["support_mask"], batch["query_mask"]
    expected = ref.mrm_meta(
        batch["chosen"],
        batch["rejected"],
        *masks,
        layers_of(params),
        np.asarray(params["weight_init"]),
        hyper,
    )
    (objective, (losses, weights)), _ = value_and_grad(params, batch, config=config)
    close = {"rtol": 1e-10, "atol": 1e-12}
    np.testing.assert_allclose(weights, expected["adapted_train"], **close)
    np.testing.assert_allclose(losses, expected["losses"], **close)
    np.testing.assert_allclose(objective, expected["objective"], **close)
    base = base_differences(params, batch["chosen"], batch["rejected"], config)
    ours = mrm.adapt(params, base, batch["support_mask"], config)
    np.testing.assert_allclose(ours, expected["adapted_eval"], **close)


def test_a_tie_is_two_half_rows(x64):
    margins = jnp.array([0.7, -0.7, 2.0, 9.0])
    weight = jnp.array([0.5, 0.5, 1.0, 0.0])
    draw = (np.logaddexp(0, -0.7) + np.logaddexp(0, 0.7)) / 2
    expected = (draw + np.logaddexp(0, -2.0)) / 2
    np.testing.assert_allclose(bradley_terry_loss(margins, weight), expected, rtol=1e-14)
    assert bradley_terry_loss(margins, jnp.zeros(4)) == 0
    # Weights are relative: their sum need not reach one.
    np.testing.assert_allclose(bradley_terry_loss(margins, weight / 8), expected, rtol=1e-14)


# Base rewards and scores.


@pytest.mark.parametrize("sizes", [(), (3,), (4, 2)])
@pytest.mark.parametrize("use_bias", [False, True])
def test_base_rewards(sizes, use_bias, x64):
    config = replace(hidden_sizes=sizes, use_bias=use_bias, input_scale=0.01)
    params = start(config)
    x = np.random.default_rng(1).standard_normal((2, 7, WIDTH))
    scale = 0.01 if sizes else 1.0  # features that are themselves rewards are not scaled
    expected = ref.base_rewards(x, layers_of(params), scale)
    np.testing.assert_allclose(mrm.base_rewards(params, x, config), expected, rtol=1e-12)
    # Without a config: linear, the published input scale, depth from the parameters.
    np.testing.assert_allclose(mrm.base_rewards(params, x), expected, rtol=1e-12)
    both = base_differences(params, x[0], x[1], config)
    np.testing.assert_allclose(both, expected[0] - expected[1], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_base_rewards_of_an_mlp(activation, x64):
    config = replace(hidden_sizes=(4, 2), activation=activation, use_bias=True)
    params = start(config)
    x = np.random.default_rng(2).standard_normal((2, 7, WIDTH))
    (first, bias), (second, last) = layers_of(params)
    hidden = {"tanh": np.tanh, "gelu": jax.nn.gelu}[activation](0.3 * x @ first + bias)
    expected = np.asarray(hidden) @ second + last
    np.testing.assert_allclose(mrm.base_rewards(params, x, config), expected, rtol=1e-10)
    both = base_differences(params, x[0], x[1], config)
    np.testing.assert_allclose(both, expected[0] - expected[1], rtol=1e-9, atol=1e-12)
    assert not is_linear(config)
    assert is_linear(replace(hidden_sizes=(4,), activation=activation))


def test_an_mlp_needs_both_answers(x64):
    config = replace(hidden_sizes=(4, 2), activation="tanh")
    params, batch = start(config), arrays()
    differences = {k: v for k, v in batch.items() if "mask" in k}
    differences["differences"] = batch["chosen"] - batch["rejected"]
    with pytest.raises(ValueError, match="linear base"):
        mrm.meta_objective(params, differences, config)
    for name in ("rejected", "query_mask"):
        rest = {k: v for k, v in batch.items() if k != name}
        with pytest.raises(InputError, match=f"batch: lacks {name}; expected support_mask"):
            mrm.meta_objective(params, rest, config)
    (objective, _), gradient = value_and_grad(params, batch, config=config)
    # The nonlinearity is not lost: the same parameters, taken as linear, judge otherwise.
    linear = mrm.meta_objective(params, batch, replace(hidden_sizes=(4, 2)))[0]
    assert abs(objective - linear) > 1e-6
    finite(gradient)


def test_pairs_of_items_are_pairs_of_their_features(x64):
    config = replace(hidden_sizes=(4, 2), activation="tanh", use_bias=True)
    rng = np.random.default_rng(3)
    items = rng.standard_normal((9, WIDTH))
    chosen, rejected = rng.integers(0, 9, (2, USERS, PAIRS))
    masks = {k: v for k, v in arrays().items() if "mask" in k}
    params = start(config)
    by_item = {"items": items, "chosen": chosen, "rejected": rejected, **masks}
    by_pair = {"chosen": items[chosen], "rejected": items[rejected], **masks}
    ours = value_and_grad(params, by_item, config=config)
    chex.assert_trees_all_close(
        ours, value_and_grad(params, by_pair, config=config), rtol=1e-9, atol=1e-12
    )


def test_score(x64):
    rng = np.random.default_rng(4)
    weights, base = rng.standard_normal((USERS, K)), rng.standard_normal((USERS, PAIRS, K))
    raw = np.einsum("uk,upk->up", weights, base)
    np.testing.assert_allclose(mrm.score(weights, base), raw, rtol=1e-12)
    np.testing.assert_allclose(mrm.score(weights, base, replace(link="signed")), raw, rtol=1e-12)
    mixed = np.einsum("uk,upk->up", np.stack([ref.mixture(w) for w in weights]), base)
    np.testing.assert_allclose(mrm.score(weights, base, CONFIG), mixed, rtol=1e-12)


def test_init_starts_where_the_authors_do():
    config = replace(hidden_sizes=(64, K), use_bias=True)
    params = mrm.init(jax.random.key(0), config, 16)
    kernel = np.asarray(params["base"]["layer0"]["kernel"])
    assert kernel.shape == (16, 64)
    assert 0.9 / 4 < np.abs(kernel).max() <= 1 / 4
    assert params["base"]["layer1"]["kernel"].shape == (64, K)
    np.testing.assert_array_equal(params["base"]["layer1"]["bias"], np.zeros(K))
    assert params.keys() == {"base", "weight_init"}
    signed = mrm.init(jax.random.key(0), replace(link="signed", learn_inner_lr=True), 16)
    np.testing.assert_allclose(signed["weight_init"], np.full(K, 1 / K), rtol=1e-6)
    np.testing.assert_allclose(np.exp(signed["log_inner_lr"]), np.full(3, 0.1), rtol=1e-6)
    named = mrm.init(jax.random.key(0), replace(hidden_sizes=()), 7)
    assert named["weight_init"].shape == (7,)
    assert not jax.tree.leaves(named["base"])


# The inner loop.


def test_learned_rates_equal_to_the_constant_change_nothing(x64):
    fixed, learned = CONFIG, replace(learn_inner_lr=True)
    batch = arrays()
    with_rates = start(learned)
    with_rates["log_inner_lr"] = jnp.full(3, jnp.log(0.1))
    without = {k: v for k, v in with_rates.items() if k != "log_inner_lr"}
    (objective, aux), gradient = value_and_grad(with_rates, batch, config=learned)
    expected, slope = value_and_grad(without, batch, config=fixed)
    chex.assert_trees_all_close((objective, aux), expected, rtol=1e-12)
    rates = gradient.pop("log_inner_lr")
    chex.assert_trees_all_close(gradient, slope, rtol=1e-10, atol=1e-13)

    # The gradient in each rate, by central differences.
    assert (np.abs(rates) > 1e-5).all()
    for step in range(3):
        shift = 1e-5 * jnp.eye(3)[step]
        up, down = (
            value_and_grad(
                {**with_rates, "log_inner_lr": with_rates["log_inner_lr"] + sign * shift},
                batch,
                config=learned,
            )[0][0]
            for sign in (1, -1)
        )
        np.testing.assert_allclose((up - down) / 2e-5, rates[step], rtol=1e-5)


def test_the_last_learned_rate_serves_further_steps(x64):
    params = {**start(), "log_inner_lr": jnp.log(jnp.array([0.1, 0.2, 0.4]))}
    np.testing.assert_allclose(inner_rates(params, CONFIG, 5), [0.1, 0.2, 0.4, 0.4, 0.4])
    np.testing.assert_allclose(inner_rates(params, CONFIG, 2), [0.1, 0.2])
    np.testing.assert_allclose(inner_rates(start(), CONFIG, 2), [0.1, 0.1])


@pytest.mark.parametrize("link", ["softmax", "signed"])
def test_gradient_of_the_second_order_is_that_of_the_objective(link, x64):
    config = replace(link=link)
    params, batch = start(config), arrays()
    objective, gradient = value_and_grad(params, batch, config=config)
    once, rough = value_and_grad(params, batch, config=replace(link=link, second_order=False))
    chex.assert_trees_all_close(objective, once, rtol=1e-12)
    exact, first = (np.concatenate([*map(np.ravel, jax.tree.leaves(g))]) for g in (gradient, rough))
    assert np.abs(exact - first).max() > 1e-3 * np.abs(exact).max()
    rng = np.random.default_rng(5)
    for _ in range(3):
        direction = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), params)
        up, down = (
            value_and_grad(
                jax.tree.map(lambda p, d, s=sign: p + s * d, params, direction),
                batch,
                config=config,
            )[0][0]
            for sign in (1e-6, -1e-6)
        )
        slope = sum(
            jnp.sum(g * d)
            for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
        )
        np.testing.assert_allclose((up - down) / 2e-6, slope, rtol=1e-5)


def test_the_path_holds_every_step(x64):
    params, batch = start(), arrays()
    base = base_differences(params, batch["chosen"], batch["rejected"], CONFIG)
    rates = inner_rates(params, CONFIG, 5)
    path = adapt_path(params, base, batch["support_mask"], CONFIG, rates, "torch")
    chex.assert_shape(path, (USERS, 6, K))
    np.testing.assert_array_equal(path[:, 0], np.tile(params["weight_init"], (USERS, 1)))
    for steps in (1, 3):
        ours = mrm.adapt(params, base, batch["support_mask"], replace(eval_steps=steps))
        np.testing.assert_allclose(ours, path[:, steps], rtol=1e-12)
    none = mrm.adapt(params, base, batch["support_mask"], replace(eval_steps=0))
    np.testing.assert_array_equal(none, path[:, 0])


def test_adapting_lowers_the_loss_and_can_dislike(x64):
    # A user who dislikes the one base reward: only a signed weight can say so.
    config = replace(hidden_sizes=(), link="signed", eval_steps=40)
    params = {"base": {}, "weight_init": jnp.ones(1)}
    differences = -jnp.abs(jnp.asarray(np.random.default_rng(6).standard_normal((1, 8, 1))))
    mask = jnp.ones((1, 8), bool)
    assert mrm.adapt(params, differences, mask, config)[0, 0] < -0.5
    soft = dataclasses.replace(config, link="softmax")
    weights = mrm.adapt(params, differences, mask, soft)
    assert (mrm.score(weights, differences, soft) < 0).all()


# The robust objective.


@pytest.mark.parametrize("gamma", [-1.0, 0.0, 0.1, 0.5])
@pytest.mark.parametrize("tail", [0.1, 0.5, 1.0])
def test_rpo(gamma, tail, x64):
    losses = np.random.default_rng(7).exponential(size=9)
    ours = mrm.rpo(jnp.asarray(losses), tail, gamma)
    np.testing.assert_allclose(ours, ref.rpo(losses, tail, gamma), rtol=1e-12)


def test_rpo_limits(x64):
    losses = jnp.asarray(np.random.default_rng(8).exponential(size=9))
    # Infinitely soft: everyone weighs one half.
    np.testing.assert_allclose(mrm.rpo(losses, 0.5, 1e9), losses.sum() / 2, rtol=1e-8)
    # Infinitely sharp: the hard tail (the user at tau itself weighs one half).
    np.testing.assert_allclose(
        mrm.rpo(losses, 0.5, 1e-6), mrm.rpo(losses, 0.5, 0.0) + jnp.median(losses) / 2, rtol=1e-8
    )
    # A tail of one: tau is the least loss, which alone is not above it.
    np.testing.assert_allclose(mrm.rpo(losses, 1.0, 0.0), losses.sum() - losses.min(), rtol=1e-12)
    # A vanishing tail: tau is the greatest loss, and nobody is above it.
    assert mrm.rpo(losses, 0.0, 0.0) == 0
    # One user, or users alike, are at tau.
    np.testing.assert_allclose(mrm.rpo(losses[:1], 0.5, 0.5), losses[0] / 2, rtol=1e-12)
    assert mrm.rpo(jnp.ones(4), 0.5, 0.0) == 0
    # The hard mask is detached: the gradient is one above tau and zero elsewhere.
    gradient = jax.grad(mrm.rpo)(losses, 0.5, 0.0)
    np.testing.assert_array_equal(gradient, (losses > jnp.median(losses)).astype(float))


def test_rpo_with_a_population(x64):
    rng = np.random.default_rng(9)
    losses, others = rng.exponential(size=3), rng.exponential(size=20)
    tau = np.quantile(np.concatenate([losses, others]), 0.3)
    expected = np.sum(ref.sigmoid((losses - tau) / 0.2) * losses)
    ours = mrm.rpo(jnp.asarray(losses), 0.7, 0.2, jnp.asarray(others))
    np.testing.assert_allclose(ours, expected, rtol=1e-12)
    hard = mrm.rpo(jnp.asarray(losses), 0.7, 0.0, jnp.asarray(others))
    np.testing.assert_allclose(hard, losses[losses > tau].sum(), rtol=1e-12)
    empty = mrm.rpo(jnp.asarray(losses), 0.7, 0.2, jnp.zeros(0))
    np.testing.assert_allclose(empty, ref.rpo(losses, 0.7, 0.2), rtol=1e-12)

    batch, params = arrays(), start()
    objective, (user_losses, _) = mrm.meta_objective(
        params, {**batch, "population": jnp.asarray(others)}, CONFIG
    )
    expected = mrm.rpo(user_losses, CONFIG.rpo_tail, CONFIG.rpo_gamma, jnp.asarray(others))
    np.testing.assert_allclose(objective, expected, rtol=1e-12)


@pytest.mark.parametrize("sizes", [(), (4, 2)])
def test_decay_of_the_kernels(sizes, x64):
    config = replace(hidden_sizes=sizes, use_bias=True)
    params, batch = start(config), arrays()
    plain = mrm.meta_objective(params, batch, config)[0]
    decayed = mrm.meta_objective(params, batch, dataclasses.replace(config, l2=0.1))[0]
    squares = sum(np.sum(kernel**2) for kernel, _ in layers_of(params))
    np.testing.assert_allclose(decayed - plain, 0.1 * squares, rtol=1e-9, atol=1e-14)


# Edges.


@pytest.mark.parametrize("link", ["softmax", "signed"])
def test_a_user_without_support_stays_at_the_start(link, x64):
    config = replace(link=link, learn_inner_lr=True)
    params, batch = start(config), arrays()
    batch["support_mask"][1] = False
    batch["query_mask"][2] = False
    (_, (losses, weights)), gradient = value_and_grad(params, batch, config=config)
    np.testing.assert_array_equal(weights[1], params["weight_init"])
    assert losses[2] == 0
    finite((losses, weights, gradient))
    base = base_differences(params, batch["chosen"], batch["rejected"], config)
    ours = mrm.adapt(params, base, batch["support_mask"], config)
    np.testing.assert_array_equal(ours[1], params["weight_init"])
    batch["support_mask"][:] = False
    batch["query_mask"][:] = False
    finite(value_and_grad(params, batch, config=config))


@pytest.mark.parametrize(
    ("link", "sizes"), [("softmax", (1,)), ("softmax", (K,)), ("signed", (K,))]
)
def test_gradient_where_the_inner_one_is_zero(link, sizes):
    # A softmax over one function never moves; equal answers give no gradient at all.
    config = replace(link=link, hidden_sizes=sizes, learn_inner_lr=True)
    params, batch = start(config), arrays()
    out, gradient = value_and_grad(params, batch, config=config)
    finite((out, gradient))
    if link == "softmax" and sizes == (1,):
        np.testing.assert_array_equal(gradient["weight_init"], np.zeros(1))
        assert np.abs(gradient["base"]["layer0"]["kernel"]).max() > 0
    batch["rejected"] = batch["chosen"]
    out, gradient = value_and_grad(params, batch, config=config)
    finite((out, gradient))
    np.testing.assert_allclose(out[1][0], np.full(USERS, np.log(2)), rtol=1e-6)
    np.testing.assert_array_equal(out[1][1], np.tile(params["weight_init"], (USERS, 1)))


def test_extreme_features_stay_finite(x64):
    params, batch = start(), arrays()
    batch["chosen"] = 1e6 * batch["chosen"]
    finite(value_and_grad(params, batch, config=CONFIG))


def test_padding_and_order_do_not_matter(x64):
    config = CONFIG
    rng = np.random.default_rng(10)
    params, batch = start(config), arrays()
    expected, slope = value_and_grad(params, batch, config=config)

    pairs, order = rng.permutation(PAIRS), rng.permutation(USERS)
    shuffled = {name: value[order][:, pairs] for name, value in batch.items()}
    (objective, (losses, weights)), gradient = value_and_grad(params, shuffled, config=config)
    close = {"rtol": 1e-9, "atol": 1e-12}
    np.testing.assert_allclose(objective, expected[0], **close)
    np.testing.assert_allclose(losses, expected[1][0][order], **close)
    np.testing.assert_allclose(weights, expected[1][1][order], **close)
    chex.assert_trees_all_close(gradient, slope, **close)

    wide = {name: 9 * rng.standard_normal((USERS, PAIRS + 3, WIDTH)) for name in batch}
    wide |= {name: np.zeros((USERS, PAIRS + 3)) for name in batch if "mask" in name}
    for name, value in wide.items():
        value[:, :PAIRS] = batch[name]
    chex.assert_trees_all_close(
        value_and_grad(params, wide, config=config), (expected, slope), **close
    )


# Transformations.


def test_seeds_and_hyper_parameters_are_vmapped(x64):
    batch = arrays()
    keys = jax.random.split(jax.random.key(0), 2)
    sweep = {
        "inner_lr": jnp.array([0.01, 0.2]),
        "rpo_tail": jnp.array([0.5, 0.9]),
        "input_scale": jnp.array([0.1, 1.0]),
        "l2": jnp.array([0.0, 0.3]),
    }

    def run(key, values):
        config = replace(**values)
        params = mrm.init(key, config, WIDTH)
        return jax.value_and_grad(mrm.meta_objective, has_aux=True)(params, batch, config)

    together = jax.jit(jax.vmap(run))(keys, sweep)
    values = {name: float(value[1]) for name, value in sweep.items()}
    params = mrm.init(keys[1], CONFIG, WIDTH)
    alone = value_and_grad(params, batch, config=replace(**values))
    chex.assert_trees_all_close(
        jax.tree.map(lambda leaf: leaf[1], together), alone, rtol=1e-5, atol=1e-7
    )


def test_the_softness_of_the_tail_is_vmapped(x64):
    losses = jnp.asarray(np.random.default_rng(11).exponential(size=9))
    gammas = jnp.array([0.1, 0.5, 0.0])
    ours = jax.vmap(lambda gamma: mrm.rpo(losses, 0.5, gamma))(gammas)
    expected = [mrm.rpo(losses, 0.5, float(gamma)) for gamma in gammas]
    np.testing.assert_allclose(ours, expected, rtol=1e-10)


def test_equal_shapes_trace_once():
    chex.clear_trace_counter()
    config = replace(hidden_sizes=(2, 2))
    traced = chex.assert_max_traces(mrm.meta_objective, 1)
    once = jax.jit(functools.partial(traced, config=config))
    for seed in range(3):
        once(start(config, seed), arrays(seed))
    adapt = jax.jit(chex.assert_max_traces(mrm.adapt, 1), static_argnums=3)
    for seed in range(3):
        batch = arrays(seed, 2)
        adapt(start(config, seed), batch["chosen"], batch["support_mask"], config)


def test_the_module_is_a_flax_module():
    config = replace(hidden_sizes=(4, 2))
    module = BaseRewards(config)
    variables = module.init(jax.random.key(1), jnp.zeros((1, WIDTH)))
    x = jnp.ones((3, WIDTH))
    np.testing.assert_array_equal(
        module.apply(variables, x), mrm.base_rewards({"base": variables["params"]}, x, config)
    )
