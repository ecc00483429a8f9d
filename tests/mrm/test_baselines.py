"""The classical baselines against the NumPy reference, and learning users of their own kind."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_baselines as ref
import torch

from jaxalign.data.batching import Pairs
from jaxalign.errors import InputError
from jaxalign.mrm.baselines import lore, mixture, neighbours, pal, simplex
from jaxalign.mrm.baselines.lore import LoReConfig
from jaxalign.mrm.baselines.mixture import MixtureConfig
from jaxalign.mrm.baselines.neighbours import NeighboursConfig
from jaxalign.mrm.baselines.pal import PALConfig
from jaxalign.mrm.registry import make_method
from jaxalign.mrm.selection import select
from jaxalign.mrm.support_query import (
    SupportQueryData,
    TrainingData,
    UserPairs,
    differences,
    one_bucket,
    without_choices,
)

ITEMS, WIDTH, USERS, PAIRS = 12, 4, 6, 9


# Small worlds for the reference.


def some_pairs(rng, users=USERS, pairs=PAIRS, items=ITEMS):
    """Random choices [U, P], ragged, the last of each user a tie; garbage in the padding."""
    chosen = rng.integers(0, items, (users, pairs))
    rejected = (chosen + rng.integers(1, items, (users, pairs))) % items
    weight = (np.arange(pairs) < rng.integers(3, pairs + 1, users)[:, None]).astype(float)
    weight[:, 1] = 0.5
    group = np.zeros((users, pairs), np.int32)
    return Pairs(chosen.astype(np.int32), rejected.astype(np.int32), weight, group)


def listed(pairs):
    """For the reference: each user's real choices."""
    rows = zip(pairs.chosen, pairs.rejected, pairs.weight, strict=True)
    return [
        [(int(x), int(y), float(w)) for x, y, w in zip(*row, strict=True) if w > 0] for row in rows
    ]


def asked(pairs):
    rows = zip(pairs.chosen, pairs.rejected, strict=True)
    return [[(int(x), int(y)) for x, y in zip(*row, strict=True)] for row in rows]


def world(seed):
    """Items, choices with one user who has none, and queries."""
    rng = np.random.default_rng(seed)
    pairs, query = some_pairs(rng), some_pairs(rng)
    pairs.weight[2] = 0
    return rng, rng.standard_normal((ITEMS, WIDTH)), pairs, query


def halves(pairs):
    """The same users in two buckets, the second cut to what it needs."""
    return Pairs(*(a[:2] for a in pairs)), Pairs(*(a[2:] for a in pairs))


# Mixture.


@pytest.mark.parametrize("seed", range(3))
def test_mixture_predicts_by_its_posterior(seed, x64):
    rng, items, pairs, query = world(seed)
    share, theta = rng.dirichlet(np.ones(3)), 2 * rng.standard_normal((3, WIDTH))
    fitted = {"3": {"log_share": np.log(share), "theta": theta}}
    setting = {"components": 3, "adapt": True}
    ours = make_method("mixture").predict(fitted, [setting], jnp.asarray(items), pairs, query)[0]
    expected = [
        ref.mixture_probability(share, theta, items, choices, rows)
        for choices, rows in zip(listed(pairs), asked(query), strict=True)
    ]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)


def test_mixture_em_ends_at_a_fixed_point_of_em(x64):
    rng, items, pairs, _ = world(3)
    pairs = some_pairs(rng, users=20)
    belief = rng.dirichlet(np.ones(2), 20)
    theta = rng.standard_normal((2, WIDTH))
    buckets = tuple(Pairs(*map(jnp.asarray, part)) for part in halves(pairs))
    parts = (jnp.asarray(belief[:2]), jnp.asarray(belief[2:]))
    fit = jax.jit(mixture.em, static_argnames="steps")
    found = fit(jnp.asarray(theta), parts, jnp.asarray(items), buckets, 0.05, steps=600)
    share = np.exp(found.log_share)
    expected_share, expected = ref.em_step(
        share, np.asarray(found.theta), items, listed(pairs), 0.05
    )
    np.testing.assert_allclose(found.theta, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(share, expected_share, rtol=0, atol=1e-6)
    assert np.abs(found.theta[0] - found.theta[1]).max() > 0.1


# LoRe.


def test_lore_objectives(x64):
    rng, items, pairs, _ = world(4)
    basis, mean = rng.standard_normal((WIDTH, 3)), rng.standard_normal(3)
    z = rng.standard_normal((USERS, 3))
    buckets = halves(pairs)
    params = {"basis": jnp.asarray(basis), "mean": jnp.asarray(mean)}
    params["users"] = (jnp.asarray(z[:2]), jnp.asarray(z[2:]))
    ours = jax.jit(lore.map_objective)(params, jnp.asarray(items), buckets, 0.3)
    expected = ref.lore_log_posterior(basis, mean, z, items, listed(pairs), 0.3)
    np.testing.assert_allclose(ours, expected, rtol=1e-12)
    loss = jax.jit(simplex.population_loss)
    published = loss(jnp.asarray(items @ basis), params["users"], buckets)
    expected = ref.lore_loss(basis, z, items, listed(pairs))
    np.testing.assert_allclose(published, expected, rtol=1e-12)


@pytest.mark.parametrize("spread", [0.5, 2.0])
def test_lore_fits_a_new_user_by_map(spread, x64):
    rng, items, pairs, query = world(5)
    basis, mean = rng.standard_normal((WIDTH, 3)), rng.standard_normal(3)
    config = LoReConfig(ranks=(3,), decays=(1e-3,))
    fitted = {"3": {"0": {"basis": jnp.asarray(basis), "mean": jnp.asarray(mean)}}}
    setting = {"rank": 3, "decay": 1e-3, "spread": spread}
    method = make_method("lore", config)
    ours = method.predict(fitted, [setting], jnp.asarray(items), pairs, query)[0]
    for row, choices, rows in zip(ours, listed(pairs), asked(query), strict=True):
        weights = ref.lore_weights(basis, mean, spread, items, choices)
        rewards = items @ basis @ weights
        expected = [ref.expit(rewards[x] - rewards[y]) for x, y in rows]
        np.testing.assert_allclose(row, expected, rtol=0, atol=1e-6)


def test_another_optimiser_finds_nothing_better_than_lore(x64):
    rng, items, pairs, _ = world(6)
    theta = jnp.asarray(rng.standard_normal(WIDTH))
    start = lore.start_signed(jax.random.key(0), theta, 2, [USERS])
    ridge, rate = jnp.asarray(0.05), jnp.asarray(0.1)
    fitted = lore.fit_signed(start, jnp.asarray(items), (pairs,), ridge, rate, 2000)
    basis, mean = np.asarray(fitted["basis"]), np.asarray(fitted["mean"])
    users = listed(pairs)
    # The users' own weights are not kept: they are what MAP gives under the fitted basis.
    z = [ref.lore_weights(basis, mean, 1.0, items, choices) - mean for choices in users]

    def objective(flat):
        basis, mean, z = np.split(flat, [2 * WIDTH, 2 * WIDTH + 2])
        shaped = basis.reshape(WIDTH, 2), mean, z.reshape(USERS, 2)
        return ref.lore_log_posterior(*shaped, items, users, 0.05)

    ours = np.concatenate([basis.ravel(), mean, np.ravel(z)])
    first = np.concatenate([np.ravel(start[name]) for name in ("basis", "mean")])
    assert objective(ours) < objective(np.append(first, np.zeros(2 * USERS))) - 0.01
    assert objective(ref.minimum(objective, ours)) > objective(ours) - 1e-10


def test_lore_as_published_and_pal_fit_new_users_on_the_simplex(x64):
    rng, items, pairs, _ = world(7)
    basis = rng.standard_normal((WIDTH, 3))
    into, prototypes = rng.standard_normal((WIDTH, 2)), rng.standard_normal((3, 2))
    params = {"map": jnp.asarray(into), "prototypes": jnp.asarray(prototypes)}
    kinds = {
        "lore": (jnp.asarray(items @ basis), lambda w: items @ basis @ w),
        "pal": (
            pal.rewards(params, jnp.asarray(items)),
            lambda w: ref.pal_rewards(into, prototypes, w, items),
        ),
    }
    for rewards, rewards_of in kinds.values():
        start = jnp.log(jnp.full(3, 1 / 3))
        steps = (0, 3000)
        ours = simplex.user_probabilities(rewards, start, pairs, pairs, jnp.asarray(0.05), steps)
        for user, choices in enumerate(listed(pairs)):
            best = ref.log_likelihood(
                rewards_of(ref.simplex_weights(rewards_of, 3, choices)), choices
            )
            found = np.sum(pairs.weight[user] * np.log(ours[1, user]))
            assert best - 1e-2 <= found <= best + 1e-6
        uniform = rewards_of(np.full(3, 1 / 3))
        expected = [[ref.expit(uniform[x] - uniform[y]) for x, y in row] for row in asked(pairs)]
        np.testing.assert_allclose(ours[0], expected, rtol=0, atol=1e-12)


def torch_population(name, start, centre, logits, items, users, decay, rate, steps):
    """Parameters and the users' logits after `steps` of torch's Adam on LoRe's or PAL's loss."""

    def rewards(params):
        if name == "lore":
            return items @ params["basis"]
        return -(torch.cdist(items @ params["map"], params["prototypes"]) ** 2)

    items = torch.tensor(items)
    params = {key: torch.tensor(value, requires_grad=True) for key, value in start.items()}
    raw = torch.tensor(logits, requires_grad=True)
    optimiser = torch.optim.Adam([*params.values(), raw], lr=rate)
    for _ in range(steps):
        losses = []
        for user, choices in enumerate(users):
            own = rewards(params) @ torch.softmax(raw[user], 0)
            each = [w * torch.nn.functional.softplus(own[y] - own[x]) for x, y, w in choices]
            if choices:
                losses.append(sum(each) / sum(w for _, _, w in choices))
        away = sum(((params[key] - torch.tensor(centre[key])) ** 2).sum() for key in params)
        optimiser.zero_grad()
        (sum(losses) / len(losses) + decay * away).backward()
        optimiser.step()
    return {key: value.detach().numpy() for key, value in params.items()}, raw.detach()


@pytest.mark.parametrize("name", ["lore", "pal"])
def test_simplex_baselines_train_as_in_torch(name, x64):
    torch.set_num_threads(1)
    rng, items, pairs, _ = world(12)
    shapes = {"basis": (WIDTH, 3)} if name == "lore" else {"map": (WIDTH, 2), "prototypes": (3, 2)}
    start, centre = (
        {key: rng.standard_normal(shape) for key, shape in shapes.items()} for _ in range(2)
    )
    logits, users = rng.standard_normal((USERS, 3)), listed(pairs)
    kept = simplex.fit_population(
        *({key: jnp.asarray(value) for key, value in part.items()} for part in (start, centre)),
        (jnp.asarray(logits[:2]), jnp.asarray(logits[2:])), jnp.asarray(items), halves(pairs),
        jnp.asarray(0.3), jnp.asarray(0.1), {"lore": lore.rewards, "pal": pal.rewards}[name], 20, 3,
    )  # fmt: skip
    for place, steps in enumerate((7, 13, 20)):
        expected, raw = torch_population(name, start, centre, logits, items, users, 0.3, 0.1, steps)
        for key, value in expected.items():
            np.testing.assert_allclose(kept["params"][key][place], value, rtol=0, atol=1e-9)
        served = [user for user, choices in enumerate(users) if choices]
        mean = torch.softmax(raw, 1)[served].mean(0).numpy()
        np.testing.assert_allclose(np.exp(kept["log_weights"][place]), mean, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["lore", "pal"])
def test_a_diverged_training_is_refused(name):
    _, items, pairs, _ = world(7)
    features, buckets = jnp.asarray(items, jnp.float32), (pairs._replace(weight=pairs.weight > 0),)
    short = {"steps": 3, "learning_rate": 1e38}
    if name == "lore":
        config = LoReConfig(ranks=(2,), decays=(1e-3,), **short)
        fit, where = lore.fit_lore, "rank 2, decay 0.001"
    else:
        config = PALConfig(prototypes=(3,), snapshots=1, **short)
        fit, where = pal.fit_pal, "3 prototypes"
    with pytest.raises(InputError) as refused:
        fit(features, buckets, config, 0)
    assert str(refused.value) == (
        f"{name}: training diverged at one of 3 steps ({where}), where the loss or the parameters "
        "are not finite: lower learning_rate (1e+38)."
    )


def test_fewer_steps_than_snapshots_are_taken_and_chosen_from():
    _, items, pairs, _ = world(7)
    features, buckets = jnp.asarray(items, jnp.float32), (pairs._replace(weight=pairs.weight > 0),)
    config = PALConfig(prototypes=(3,), steps=3, snapshots=5, few_shot_steps=(1,))
    fitted = pal.fit_pal(features, buckets, config, 0)
    maps = fitted["3"]["map"]
    assert len(maps) == 3
    assert not np.array_equal(maps[0], maps[-1])
    found = make_method("pal", config).candidates(fitted)
    assert {candidate["snapshot"] for candidate in found} == {0, 1, 2}


@pytest.mark.parametrize("seed", range(3))
def test_pal_is_a_convex_combination_of_prototype_rewards(seed, x64):
    rng, items, pairs, _ = world(seed)
    into, prototypes = rng.standard_normal((WIDTH, 3)), rng.standard_normal((4, 3))
    params = {"map": jnp.asarray(into), "prototypes": jnp.asarray(prototypes)}
    rewards = pal.rewards(params, jnp.asarray(items))
    given = differences(rewards, pairs)
    for user in range(USERS):
        weights = rng.dirichlet(np.ones(4))
        own = ref.pal_rewards(into, prototypes, weights, items)
        expected = own[pairs.chosen[user]] - own[pairs.rejected[user]]
        np.testing.assert_allclose(given[user] @ weights, expected, rtol=0, atol=1e-12)


# Neighbours.


@pytest.mark.parametrize("by", ["agreement", "theta"])
def test_neighbours(by, x64):
    rng, items, pairs, query = world(8)
    items -= items.mean(0)
    theta, others = rng.standard_normal(WIDTH), rng.standard_normal((15, WIDTH))
    fitted = {
        "theta": jnp.asarray(theta),
        "deviations": jnp.asarray(others),
        "metric": jnp.asarray(items.T @ items / ITEMS),
        "variance": jnp.asarray(0.7),
    }
    method = make_method("neighbours")
    setting = {"by": by, "count": 4, "share": 0.8}
    ours = method.predict(fitted, [setting], jnp.asarray(items), pairs, query)[0]
    for user, (choices, rows) in enumerate(zip(listed(pairs), asked(query), strict=True)):
        share = 0.8 if choices else 0.0
        expected = ref.neighbours_probability(
            theta, theta + others, items, choices or [(0, 1, 1.0)], rows, by, 4, share, 0.7
        )
        np.testing.assert_allclose(ours[user], expected, rtol=0, atol=1e-6)


def test_neighbours_own_weights(x64):
    _, items, pairs, _ = world(9)
    config = NeighboursConfig(spread=0.8)
    fitted = neighbours.fit_neighbours(jnp.asarray(items), halves(pairs), config)
    expected = [
        ref.own_theta(fitted["theta"], fitted["variance"], items, choices) - fitted["theta"]
        for choices in listed(pairs)
    ]
    np.testing.assert_allclose(fitted["deviations"], expected, rtol=0, atol=1e-6)


# What holds of all.


# One size of everything: a compilation costs more than all the rest of a test.
CONFIGS = {
    "mixture": MixtureConfig(components=(3,), em_steps=20),
    "lore": LoReConfig(ranks=(2,), steps=150, decays=(1e-3,)),
    "lore_published": LoReConfig(
        link="softmax", ranks=(4,), steps=200, learning_rate=0.1, decays=(1e-4,), few_shot_steps=200
    ),
    "pal": PALConfig(prototypes=(4,), width=4, steps=240, snapshots=3, decay=1e-5),
    "neighbours": NeighboursConfig(counts=(20,)),
}


def data_of(items, *buckets):
    """What methods are fitted on, of choices that come in buckets already."""
    items = jnp.asarray(items)
    ends = np.cumsum([len(bucket.weight) for bucket in buckets])
    members = np.split(np.arange(ends[-1]), ends[:-1])
    return TrainingData(items, items, UserPairs(tuple(members), tuple(buckets)))


def fit(name, items, buckets, seed):
    method = make_method(name, CONFIGS.get(name))
    return method, method.fit(data_of(items, *buckets), seed)


def tastes(name, rng, users):
    """Rewards [U, I] of users of a method's own kind, and the items [I, D]."""
    items = rng.standard_normal((40, 6))
    match name:
        case "mixture" | "neighbours":
            kinds = 2.5 * rng.standard_normal((3, 6))
            return kinds[rng.integers(0, 3, users)] @ items.T, items
        case "lore":
            weights = rng.normal([1.0, 0.0], 1.0, (users, 2))
            return 2 * weights @ rng.standard_normal((2, 6)) @ items.T, items
        case "lore_published":
            weights = rng.dirichlet(np.full(3, 0.3), users)
            return 3 * weights @ rng.standard_normal((3, 6)) @ items.T, items
    weights = rng.dirichlet(np.full(3, 0.3), users)
    into, prototypes = rng.standard_normal((6, 4)) / 2, 2 * rng.standard_normal((3, 4))
    rewards = [ref.pal_rewards(into, prototypes, w, items) for w in weights]
    return np.array(rewards), items


def drawn(rng, rewards, pairs):
    users, items = rewards.shape
    first = rng.integers(0, items, (users, pairs))
    second = (first + rng.integers(1, items, (users, pairs))) % items
    margin = np.take_along_axis(rewards, first, 1) - np.take_along_axis(rewards, second, 1)
    wins = rng.random((users, pairs)) < ref.expit(margin)
    chosen, rejected = np.where(wins, first, second), np.where(wins, second, first)
    weight = np.ones((users, pairs), np.float32)
    arrays = (chosen.astype(np.int32), rejected.astype(np.int32), weight, np.zeros_like(chosen))
    return Pairs(*map(jnp.asarray, arrays))


@functools.cache
def learned(name, seed):
    """Items, choices of users (200 to train on, 40 to choose settings, 60 to judge), the fit."""
    rng = np.random.default_rng(seed)
    rewards, items = tastes(name, rng, 300)
    items = jnp.asarray(items, jnp.float32)
    parts = drawn(rng, rewards, 20), drawn(rng, rewards, 40)
    train, validation, test = (
        [Pairs(*(array[users] for array in part)) for part in parts]
        for users in (slice(0, 200), slice(200, 240), slice(240, 300))
    )
    method, fitted = fit(name, items, train[:1], seed)
    return items, train[0], validation, test, method, fitted


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", CONFIGS)
def test_learns_its_own_kind_of_user(name, seed):
    items, train, validation, test, method, fitted = learned(name, seed)
    accuracies = []
    for way, arrays in (fit("bt", items, [train], 0), (method, fitted)):
        candidate, _ = select(way, arrays, items, SupportQueryData(*map(one_bucket, validation)))
        predicted = way.predict(arrays, [candidate], items, *test)[0]
        accuracies.append(np.mean(predicted > 0.5))
    assert accuracies[1] > accuracies[0] + 0.05, accuracies


@pytest.mark.parametrize("name", CONFIGS)
def test_no_adaptation_is_a_candidate_and_ignores_the_user(name):
    items, _, _, (support, query), method, fitted = learned(name, 0)
    candidates = method.candidates(fitted)
    rows = method.predict(fitted, candidates, items, support, query)
    assert np.isfinite(rows).all()
    # A user without choices is served like one who is not adapted to.
    strangers = method.predict(fitted, candidates, items, without_choices(support), query)
    change = np.abs(rows - strangers).max((1, 2))
    assert change.max() > 1e-3
    # The published form has its own strength, as MRM's has.
    assert bool((change < 1e-6).any()) == (name != "lore_published")
    still = candidates[int(change.argmin())]
    if name != "lore_published":
        reversed_ = support._replace(chosen=support.rejected, rejected=support.chosen)
        again = method.predict(fitted, [still], items, reversed_, query)[0]
        np.testing.assert_allclose(again, rows[change.argmin()], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["mixture", "lore", "neighbours"])
def test_buckets_and_padding_do_not_matter(name):
    rng = np.random.default_rng(11)
    rewards, items = tastes(name, rng, 12)
    items = jnp.asarray(items, jnp.float32)
    pairs = jax.tree.map(np.asarray, drawn(rng, rewards, 6))
    short = Pairs(*(array[:5] for array in pairs))
    wide = Pairs(*(np.pad(array[5:], [(0, 0), (0, 3)], constant_values=0) for array in pairs))
    wide.chosen[:, -3:] = 5
    given = Pairs(*map(jnp.asarray, pairs))
    rows = []
    for buckets in ((pairs,), (short, wide)):
        method, fitted = fit(name, items, buckets, 0)
        candidates = method.candidates(fitted)[:1]
        rows.append(method.predict(fitted, candidates, items, given, given))
    np.testing.assert_allclose(rows[0], rows[1], rtol=0, atol=1e-4)
