"""Choices streamed from disk: training as in memory, each byte once, resumed to the bit."""

import dataclasses
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import data
from jaxalign.data.batching import Pairs
from jaxalign.data.pair_file import PairWriter, block_pairs, open_pairs, write_pairs
from jaxalign.errors import InputError
from jaxalign.mrm import stream, train
from jaxalign.mrm.config import REGULARISED

USERS, WIDTH, BLOCK = 37, 6, 8
CONFIG = dataclasses.replace(
    REGULARISED, users_per_batch=4, epochs=3, hidden_sizes=(3,), outer_lr=0.05
)


@pytest.fixture(scope="module")
def choices(tmp_path_factory):
    """Users of 3 to 9 choices who all like the first feature, in groups of two choices."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("pairs") / "pairs"
    with PairWriter(path, WIDTH) as writer:
        for user in range(USERS):
            count = int(rng.integers(3, 10))
            features = rng.normal(size=(count, 2, WIDTH))
            features[:, 0, 0] += 1.5
            writer.add([f"u{user}"], [count], features, np.arange(count) // 2)
    return open_pairs(path)


def one_array(choices):
    """The whole file as one block."""
    whole = choices.read(0, len(choices.users))
    return jnp.asarray(whole.features).astype(jnp.float32), Pairs(
        *map(jnp.asarray, block_pairs(whole))
    )


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"hidden_sizes": (4, 3), "activation": "tanh"},
        pytest.param({"rpo_scope": "population"}, marks=pytest.mark.slow),
    ],
)
def test_equals_training_in_memory_in_the_same_order(choices, change):
    config = dataclasses.replace(CONFIG, **change)
    streamed = stream.fit_stream(choices, config, seed=3, block_users=BLOCK)
    features, pairs = one_array(choices)
    state = train.init_state(jax.random.key(3), config, WIDTH, USERS)
    groups = int(choices.group.max()) + 1
    table = features.reshape(-1, WIDTH)
    if not change:
        table = features[:, :, 0] - features[:, :, 1]
    losses = []
    for epoch in range(config.epochs):
        order, support, query = [], np.zeros(pairs.weight.shape), np.zeros(pairs.weight.shape)
        for start, stop in stream.StreamPlan(USERS, BLOCK, 3).epoch(epoch):
            part = Pairs(*(leaf[start:stop] for leaf in pairs))
            place = jnp.array([epoch, start])
            _, masks, members = stream.draw_block(state.key, place, part, config, groups)
            support[start:stop], query[start:stop] = masks
            order.append(start + members)
        masks = (jnp.asarray(support, jnp.float32), jnp.asarray(query, jnp.float32))
        state, steps = jax.jit(train.take_steps, static_argnums=5)(
            state, table, pairs, masks, jnp.concatenate(order), config
        )
        losses.append(float(steps.mean()))
    chex.assert_trees_all_close(streamed.params, state.params, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(streamed.losses, losses, rtol=1e-5)
    assert losses[-1] < losses[0] - 0.01


def test_every_byte_is_read_once_an_epoch(choices, monkeypatch):
    reads = []
    original = type(choices).read

    def counted(self, start, stop):
        reads.append((start, stop))
        return original(self, start, stop)

    monkeypatch.setattr(type(choices), "read", counted)
    result = stream.fit_stream(choices, CONFIG, block_users=BLOCK)
    assert result.bytes_read == CONFIG.epochs * (choices.path / "features.bf16").stat().st_size
    blocks = len(reads) // CONFIG.epochs
    epochs = [reads[i * blocks : (i + 1) * blocks] for i in range(CONFIG.epochs)]
    for epoch in epochs:
        assert sorted(u for span in epoch for u in range(*span)) == list(range(USERS))
    assert epochs[0] != epochs[1]


def test_resumed_training_is_bit_identical(choices, tmp_path, monkeypatch):
    whole = stream.fit_stream(choices, CONFIG, block_users=BLOCK)
    original, left = type(choices).read, [7]

    def failing(self, start, stop):
        left[0] -= 1
        if left[0] < 0:
            raise OSError("the disk is gone")
        return original(self, start, stop)

    monkeypatch.setattr(type(choices), "read", failing)
    with pytest.raises(OSError, match="the disk is gone"):
        stream.fit_stream(choices, CONFIG, block_users=BLOCK, folder=tmp_path / "run")
    monkeypatch.setattr(type(choices), "read", original)
    again = stream.fit_stream(choices, CONFIG, block_users=BLOCK, folder=tmp_path / "run")
    assert 0 < again.bytes_read < whole.bytes_read
    chex.assert_trees_all_equal(again.params, whole.params)
    np.testing.assert_array_equal(again.losses, whole.losses)
    other = dataclasses.replace(CONFIG, inner_lr=0.2)
    with pytest.raises(InputError, match="holds another run"):
        stream.fit_stream(choices, other, block_users=BLOCK, folder=tmp_path / "run")
    longer = dataclasses.replace(CONFIG, epochs=CONFIG.epochs + 1)
    more = stream.fit_stream(choices, longer, block_users=BLOCK, folder=tmp_path / "run")
    np.testing.assert_array_equal(more.losses[:-1], whole.losses)
    assert more.losses[-1] > 0
    with PairWriter(tmp_path / "changed", WIDTH) as writer:
        counts = np.diff(choices.first).tolist()
        changed = -np.asarray(choices.rows).astype(np.float32)
        writer.add(list(choices.users), counts, changed, choices.group, choices.weight)
    with pytest.raises(InputError, match="not the same choices as before"):
        stream.fit_stream(
            open_pairs(tmp_path / "changed"), longer, block_users=BLOCK, folder=tmp_path / "run"
        )


def test_divergence_is_refused_before_its_state_is_kept(choices, tmp_path):
    wild = dataclasses.replace(CONFIG, outer_lr=1e38)
    with pytest.raises(InputError) as refused:
        stream.fit_stream(choices, wild, block_users=BLOCK, folder=tmp_path / "run")
    found = re.fullmatch(
        r"mrm stream: training diverged at epoch 1 of 3, users \d+ to \d+ of the file, where the "
        r"loss or the parameters are not finite \((no state is kept|the state of block (\d+) is "
        rf"kept)\): lower outer_lr \(1e\+38\) or inner_lr \({CONFIG.inner_lr:g}\)\.",
        str(refused.value),
    )
    kept = [int(path.name) for path in (tmp_path / "run").rglob("*") if path.name.isdigit()]
    assert max(kept, default=0) == int(found[2] or 0) < len(stream.StreamPlan(USERS, BLOCK, 0))


def test_a_table_of_choices_goes_to_disk_and_back(tmp_path):
    rng = np.random.default_rng(1)
    columns = {
        "user": ["a", "b", "a", "b", "b"],
        "chosen": ["i0", "i1", "i2", "i0", "i3"],
        "rejected": ["i1", "i2", "i3", "i2", "i1"],
    }
    preferences = data.from_columns(columns)
    features = rng.integers(-4, 5, (len(preferences.items), WIDTH)).astype(np.float32)
    found = write_pairs(tmp_path / "pairs", preferences, features)
    assert found.users == ("a", "b")
    item = {name: features[i] for i, name in enumerate(preferences.items)}
    for user, number in (("a", 0), ("b", 1)):
        mine = [i for i, name in enumerate(columns["user"]) if name == user]
        expected = [[item[columns[side][i]] for side in ("chosen", "rejected")] for i in mine]
        block = found.read(number, number + 1)
        np.testing.assert_array_equal(block.features[0, : len(mine)].astype(float), expected)
        np.testing.assert_array_equal(block.weight[0] > 0, np.arange(3) < len(mine))
    with pytest.raises(InputError, match="is there already"):
        write_pairs(tmp_path / "pairs", preferences, features)


def test_damage_is_refused(choices, tmp_path):
    with pytest.raises(InputError, match="no such file; expected a folder of choices"):
        open_pairs(tmp_path / "nothing")
    bad = np.full((1, 2, WIDTH), np.nan)
    with (
        pytest.raises(InputError, match="NaN or infinity"),
        PairWriter(tmp_path / "bad", WIDTH) as writer,
    ):
        writer.add(["a"], [1], bad, np.zeros(1))
    assert list(tmp_path.iterdir()) == []
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("about.json", "index.npz"):
        (copy / name).write_bytes((choices.path / name).read_bytes())
    (copy / "features.bf16").write_bytes((choices.path / "features.bf16").read_bytes()[:-2])
    with pytest.raises(InputError, match="not whole"):
        open_pairs(copy)
