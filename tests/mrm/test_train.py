"""Meta-training: it learns, it compiles once, it goes on from a checkpoint as if never stopped."""

import dataclasses
import re
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import data, mrm
from jaxalign.data.batching import Pairs
from jaxalign.errors import InputError
from jaxalign.mrm import train
from jaxalign.mrm.config import REGULARISED, SplitConfig
from jaxalign.mrm.meta import MetaRewardModel
from jaxalign.mrm.support_query import TrainingData, one_bucket

USERS, PAIRS, ITEMS, WIDTH = 60, 16, 40, 6
CONFIG = dataclasses.replace(REGULARISED, users_per_batch=16, epochs=12, hidden_sizes=(4,))


def people(seed):
    """Two kinds of user with opposite tastes on the first feature; a common one on the second."""
    rng = np.random.default_rng(seed)
    items = rng.normal(size=(ITEMS, WIDTH)).astype(np.float32)
    taste = np.zeros((USERS, WIDTH))
    taste[:, 0] = 4 * rng.choice([-1, 1], USERS)
    taste[:, 1] = 1.5
    first = rng.integers(0, ITEMS, (USERS, PAIRS))
    second = (first + rng.integers(1, ITEMS, (USERS, PAIRS))) % ITEMS
    margin = np.einsum("UPE,UE->UP", items[first] - items[second], taste)
    wins = rng.uniform(size=margin.shape) < 1 / (1 + np.exp(-margin))
    return items, np.where(wins, first, second), np.where(wins, second, first)


def table(seed):
    items, chosen, rejected = people(seed)
    columns = {
        "user": [f"u{u:02d}" for u in range(USERS) for _ in range(PAIRS)],
        "chosen": [f"i{i}" for i in chosen.ravel()],
        "rejected": [f"i{i}" for i in rejected.ravel()],
    }
    seen, keep = set(), []
    for row, key in enumerate(zip(*columns.values(), strict=True)):
        if (key[0], key[2], key[1]) not in seen:
            seen.add(key)
            keep.append(row)
    columns = {name: [values[row] for row in keep] for name, values in columns.items()}
    features = data.Features(tuple(f"i{i}" for i in range(ITEMS)), items)
    return data.from_columns(columns), features


def on_device(seed):
    items, chosen, rejected = people(seed)
    group = np.broadcast_to(np.arange(PAIRS), chosen.shape)
    weight = np.ones(chosen.shape, np.float32)
    return jnp.asarray(items), Pairs(*map(jnp.asarray, (chosen, rejected, weight, group)))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_learns_to_tell_users_apart(seed):
    preferences, features = table(seed)
    result = mrm.fit(preferences, features, CONFIG, SplitConfig(support_pairs=8), seed=seed)
    # Without adaptation the opposite tastes cancel; measured gains over it: .12 to .24.
    assert result.report["steps"] > 0
    assert result.report["accuracy"] > result.report["accuracy_unadapted"] + 0.08
    assert result.losses[-1] < result.losses[0] - 0.03
    chex.assert_tree_all_finite(result.params)


def test_an_epoch_compiles_once_and_seeds_are_independent():
    features, pairs = on_device(0)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def two(states):
        return train.epochs(states, features, pairs, CONFIG, 2)

    chex.clear_trace_counter()
    keys = jax.random.split(jax.random.key(0), 3)
    states, losses = two(train.init_states(keys, CONFIG, WIDTH, USERS))
    states, _ = two(states)
    chex.assert_shape(losses, (3, 2))
    alone, _ = train.epochs(
        train.init_states(keys[1:2], CONFIG, WIDTH, USERS), features, pairs, CONFIG, 2
    )
    alone, _ = train.epochs(alone, features, pairs, CONFIG, 2)
    mine = jax.tree.map(lambda leaf: leaf[1:2], states.params)
    chex.assert_trees_all_close(alone.params, mine, rtol=1e-3, atol=1e-5)


def test_sweep_is_the_same_as_one_by_one():
    features, pairs = on_device(0)
    keys = jnp.stack([jax.random.key(5)] * 2)
    sweep = {"inner_lr": jnp.array([0.05, 0.2]), "outer_lr": jnp.array([5e-3, 1e-3])}
    states = train.init_states(keys, CONFIG, WIDTH, USERS, sweep)
    _, losses = train.epochs(states, features, pairs, CONFIG, 2, sweep=sweep)
    for index in range(2):
        mine = dataclasses.replace(
            CONFIG,
            inner_lr=float(sweep["inner_lr"][index]),
            outer_lr=float(sweep["outer_lr"][index]),
        )
        start = train.init_states(keys[:1], mine, WIDTH, USERS)
        _, alone = train.epochs(start, features, pairs, mine, 2)
        np.testing.assert_allclose(losses[index], alone[0], rtol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"rpo_scope": "population"},
        {"learn_inner_lr": True},
        pytest.param({"second_order": False}, marks=pytest.mark.slow),
        pytest.param({"hidden_sizes": (8, 4), "activation": "tanh"}, marks=pytest.mark.slow),
        pytest.param({"hidden_sizes": ()}, marks=pytest.mark.slow),
        {"link": "softmax", "rpo_gamma": 0.0},
    ],
)
def test_every_switch_trains(change):
    features, pairs = on_device(0)
    config = dataclasses.replace(CONFIG, **change)
    states = train.init_states(jax.random.split(jax.random.key(0), 1), config, WIDTH, USERS)
    states, losses = train.epochs(states, features, pairs, config, 6)
    chex.assert_tree_all_finite(states.params)
    assert losses[0, -1] < losses[0, 0]


def test_resumed_training_is_bit_identical(tmp_path):
    features, pairs = on_device(0)
    config = dataclasses.replace(CONFIG, snapshots=4)
    whole = train.fit_mrm(features, pairs, config, (0, 1))
    train.fit_mrm(features, pairs, config, (0, 1), tmp_path)
    for folder in sorted(path for path in tmp_path.iterdir() if path.is_dir())[2:]:
        folder.rename(tmp_path.parent / f"gone-{folder.name}")
    again = train.fit_mrm(features, pairs, config, (0, 1), tmp_path)
    chex.assert_trees_all_equal(again, whole)


def test_a_diverged_training_is_refused_with_step_and_users_and_keeps_the_state_before(tmp_path):
    features, pairs = on_device(0)
    short = dataclasses.replace(CONFIG, epochs=2, snapshots=2)
    train.fit_mrm(features, pairs, short, (0,), tmp_path)
    wild = dataclasses.replace(short, epochs=4, outer_lr=1e38)
    with pytest.raises(InputError) as refused:
        train.fit_mrm(features, pairs, wild, (0,), tmp_path)
    steps = train.steps_per_epoch(USERS, CONFIG)
    users = r"\d+(, \d+)*( and \d+ more)?"
    assert re.fullmatch(
        rf"mrm: training diverged at epoch 3 of 4, step \d+ of {steps}, where the loss or the "
        rf"parameters are not finite \(training users {users}, counted from 0; the state of epoch "
        r"2 is kept\): lower outer_lr \(1e\+38\) or inner_lr \(\d\S*\)\.",
        str(refused.value),
    )
    states = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert states == ["000001", "000002"]


def test_a_longer_run_goes_on_from_the_last_epoch(tmp_path):
    """Two epochs, then four more, also when those are interrupted: the first two stay."""
    features, pairs = on_device(0)
    short = dataclasses.replace(CONFIG, epochs=2, snapshots=2)
    longer = dataclasses.replace(short, epochs=6)
    train.fit_mrm(features, pairs, short, (0,), tmp_path)
    said = []
    found = train.fit_mrm(features, pairs, longer, (0,), tmp_path, said.append)
    assert [line.split(",")[0].strip() for line in said] == ["epoch 4 of 6", "epoch 6 of 6"]
    first = train.fit_mrm(features, pairs, short, (0,))
    chex.assert_trees_all_equal(found["losses"][:, :2], first["losses"])
    kept = jax.tree.map(lambda leaf: leaf[:2], found["params"])
    chex.assert_trees_all_equal(kept, first["params"])
    assert len(found["params"]["weight_init"]) == 4
    assert found["moments"].tolist() == [1, 2, 4, 6]
    # A fit on other choices, such as those of a fold, keeps its parameters at the same moments.
    settled = MetaRewardModel(longer, "mrm").settled(train.one_seed(found, 0))
    data = TrainingData(features, features, one_bucket(pairs))
    assert settled.fit(data, 0)["moments"].tolist() == [1, 2, 4, 6]
    shutil.rmtree(tmp_path / "000006")
    again = train.fit_mrm(features, pairs, longer, (0,), tmp_path)
    chex.assert_trees_all_equal(again, found)
