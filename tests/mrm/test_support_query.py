"""Rows that a source holds out are judged and never learned from."""

import dataclasses

import numpy as np
import pytest

from jaxalign import mrm
from jaxalign.data import Features, from_columns
from jaxalign.data.pair_file import write_pairs
from jaxalign.data.preferences import Preferences
from jaxalign.data.splits import Episodes, UserSplit
from jaxalign.experiments.mrm import MRMRunConfig
from jaxalign.experiments.mrm.data import ExperimentData
from jaxalign.experiments.mrm.folds import fold_regime
from jaxalign.mrm.config import ChoiceDataConfig, FeatureConfig, SplitConfig
from jaxalign.mrm.reduce import identity
from jaxalign.mrm.selection import predict, select
from jaxalign.mrm.support_query import (
    SupportQueryData,
    cut_episodes,
    one_bucket,
    support_query,
    training_choices,
)

USERS, ROWS, ITEMS, WIDTH = 4, 12, 10, 3


@pytest.fixture(scope="module")
def choices():
    """A third of the rows are held out; in those alone is an item above number 5."""
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(USERS), ROWS)
    held_out = np.arange(len(user)) % 3 == 0
    low = np.where(held_out, 6, 0)
    chosen = low + rng.integers(0, 4, len(user))
    rejected = low + (chosen - low + 1) % 4
    arrays = [a.astype(np.int32) for a in (user, chosen, rejected, np.arange(len(user)))]
    return Preferences(
        tuple(f"u{i}" for i in range(USERS)),
        tuple(f"i{i}" for i in range(ITEMS)),
        tuple(f"i{i}" for i in range(ITEMS)),
        *arrays,
        prompt=np.full(len(user), -1, np.int32),
        tie=np.zeros(len(user), bool),
        held_out=held_out,
    )


def real(pairs):
    """Items of the pairs that count."""
    weight = np.asarray(pairs.weight) > 0
    return np.concatenate([np.asarray(pairs.chosen)[weight], np.asarray(pairs.rejected)[weight]])


def test_the_first_choices_of_a_user_are_rows_whatever_their_ties_and_weights():
    columns = {
        "user": ["u"] * 5,
        "chosen": ["a", "c", "e", "a", "b"],
        "rejected": ["b", "d", "f", "d", "e"],
        "tie": [True, False, False, False, False],
        "weight": [1.0, 0.25, 0.25, 1.0, 1.0],
    }
    cut = Episodes(("u",), (np.array([1, 0, 2]),), (np.array([3, 4]),), 0)
    table = from_columns(columns, "memory")
    whole = support_query(table, cut)
    for shots, known in enumerate(([], ["cd"], ["cd", "ab", "ba"], ["cd", "ab", "ef", "ba"])):
        found = support_query(table, cut, shots)
        assert found.support.padded.weight.shape == whole.support.padded.weight.shape
        pairs = found.support.padded
        there = pairs.weight > 0
        sides = (np.array(table.items)[side[there]] for side in (pairs.chosen, pairs.rejected))
        assert ["".join(pair) for pair in zip(*sides, strict=True)] == known
        np.testing.assert_array_equal(found.query.padded.weight, whole.query.padded.weight)


def test_training_reads_no_row_that_is_held_out(choices):
    data = training_choices(choices, choices.users, ChoiceDataConfig(), 0)
    assert real(data.padded).max() < 6
    assert np.asarray(data.padded.weight).sum() == (~choices.held_out).sum()
    assert all(real(bucket).max() < 6 for bucket in data.parts)


def test_the_file_of_a_streamed_training_has_no_row_that_is_held_out(choices, tmp_path):
    features = np.arange(ITEMS, dtype=np.float32)[:, None]
    written = write_pairs(tmp_path / "pairs", choices, features)
    assert len(written.rows) == (~choices.held_out).sum()
    assert written.read(0, USERS).features.max() < 6


def test_users_are_judged_on_held_out_rows_alone(choices):
    users = support_query(choices, cut_episodes(choices, SplitConfig(min_query=1), choices.users))
    assert real(users.support.padded).max() < 6
    assert real(users.query.padded).min() >= 6


def test_folds_adapt_on_learned_rows_and_judge_on_held_out_ones(choices):
    features = np.eye(ITEMS, dtype=np.float32)
    fold = (np.arange(ITEMS) >= 6).astype(np.int32)
    split = UserSplit(choices.users[:2], choices.users[2:3], choices.users[3:], 0)
    data = ExperimentData(choices, choices, fold, features, features, split)
    config = dataclasses.replace(MRMRunConfig(), split=SplitConfig(min_support=1))
    for seen in (True, False):
        regime, enough = fold_regime(data, config, split.train, 1, seen=seen)
        assert enough.all()
        assert real(regime.support.padded).max() < 6
        assert real(regime.query.padded).min() >= 6
        nobody, _ = fold_regime(data, config, split.train, 0, seen=seen)
        assert not nobody.query.padded.weight.any()


def test_users_are_adapted_on_learned_rows_and_judged_on_the_others(choices):
    rng = np.random.default_rng(1)
    values = rng.standard_normal((ITEMS, WIDTH)).astype(np.float32)
    method = mrm.make_method("bayes")
    fitted = {"mean": np.zeros(WIDTH), "cov": np.eye(WIDTH)}
    candidate = {"strength": 1.0, "temperature": 1.0, "adapt": True}
    model = mrm.UserModel(
        method, method.load(fitted), candidate, np.zeros(WIDTH), identity(WIDTH),
        FeatureConfig(path="given"),
    )  # fmt: skip
    table = Features(choices.items, values)
    users = mrm.adapt_users(model, choices, table)
    assert [user.choices for user in users] == [8] * USERS
    known = choices.take(~choices.held_out)
    again = mrm.adapt_users(model, dataclasses.replace(known, held_out=None), table)
    mean, other = (np.stack([user.weights for user in some]) for some in (users, again))
    np.testing.assert_allclose(mean, other, rtol=1e-5, atol=1e-6)
    margin = np.einsum(
        "ne,ne->n", values[choices.chosen] - values[choices.rejected], mean[choices.user]
    )
    for user in range(USERS):
        mine = choices.held_out & (choices.user == user)
        assert users.get(f"u{user}").accuracy == pytest.approx((margin[mine] > 0).mean())


def heavy_choices(users=40, few=6, many=3000):
    """Users of a few choices and one of many, the 18th."""
    rng = np.random.default_rng(0)
    counts = np.full(users, few)
    counts[17] = many
    user = np.repeat(np.arange(users), counts).astype(np.int32)
    chosen = rng.integers(0, ITEMS, len(user)).astype(np.int32)
    rejected = ((chosen + rng.integers(1, ITEMS, len(user))) % ITEMS).astype(np.int32)
    items, names = (tuple(f"{a}{i}" for i in range(n)) for a, n in (("i", ITEMS), ("u", users)))
    none, no = np.full(len(user), -1, np.int32), np.zeros(len(user), bool)
    group = np.arange(len(user), dtype=np.int32)
    return Preferences(names, items, items, user, chosen, rejected, group, none, no)


def test_memory_is_in_proportion_to_the_choices_whoever_has_many():
    choices = heavy_choices(users=400)
    split = SplitConfig(min_query=1, min_support=1, support_pairs=0, query_pairs=0)
    cut = cut_episodes(choices, split, choices.users)
    users = support_query(choices, cut)
    cells = [sum(part.weight.size for part in side.parts) for side in (users.support, users.query)]
    assert max(cells) < len(choices)  # each choice is on one side
    trained = training_choices(choices, choices.users, ChoiceDataConfig(max_pairs=0), 0)
    assert sum(part.weight.size for part in trained.parts) == len(choices)
    assert trained.padded.weight.size == 400 * 3000


@pytest.mark.slow
def test_buckets_change_no_prediction_and_no_choice_of_a_candidate():
    choices = heavy_choices()
    split = SplitConfig(min_query=1, min_support=1, support_pairs=0, query_pairs=0)
    users = support_query(choices, cut_episodes(choices, split, choices.users))
    assert len(users.support.parts) == 2
    whole = SupportQueryData(one_bucket(users.support.padded), one_bucket(users.query.padded))
    features = np.random.default_rng(1).standard_normal((ITEMS, WIDTH)).astype(np.float32)
    method = mrm.make_method("bayes")
    fitted = method.load({"mean": np.zeros(WIDTH), "cov": np.eye(WIDTH)})
    candidate = {"strength": 1.0, "temperature": 1.0, "adapt": True}
    real = users.query.padded.weight > 0
    one, other = (predict(method, fitted, candidate, features, u) for u in (users, whole))
    np.testing.assert_allclose(one[real], other[real], rtol=1e-4, atol=1e-5)
    assert np.abs(one[real] - 0.5).max() > 0.1
    (_, loss), (_, expected) = (select(method, fitted, features, u) for u in (users, whole))
    assert loss == pytest.approx(expected, rel=1e-5)
