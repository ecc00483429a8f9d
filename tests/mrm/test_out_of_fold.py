"""Fits without each fold of users, by hand; the test on people who do and do not differ."""

import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import own_process
import pytest

from benchmarks import mrm_adaptation
from jaxalign.data.batching import Pairs
from jaxalign.mrm import item_ids
from jaxalign.mrm.adaptation import PairedTest
from jaxalign.mrm.out_of_fold import FoldFit, fold_data, out_of_fold, user_folds
from jaxalign.mrm.registry import UserRewardMethod, make_method
from jaxalign.mrm.selection import candidate_losses
from jaxalign.mrm.support_query import SupportQueryData, TrainingData, UserPairs, one_bucket

ROOT = Path(__file__).resolve().parents[2]
ITEMS, SIZE = 30, 3
RNG = np.random.default_rng(0)
FEATURES = jnp.asarray(RNG.standard_normal((ITEMS, SIZE)), jnp.float32)
# Two buckets, of few choices and of many; members are not in order.
MEMBERS = (np.array([0, 3, 5, 7, 8]), np.array([1, 2, 4, 6, 9, 10, 11]))


def pairs(users, width):
    chosen = RNG.integers(0, ITEMS, (users, width))
    rejected = (chosen + RNG.integers(1, ITEMS, (users, width))) % ITEMS
    weight = (RNG.random((users, width)) < 0.9).astype(np.float32)
    return Pairs(chosen, rejected, weight, np.zeros((users, width), np.int32))


def losses_of(method, data, users, fold):
    parts = fold_data(data, np.arange(12), fold)
    fits = [FoldFit(method, method.fit(part, 0), part.inputs(method.inputs)) for part in parts]
    return out_of_fold(fits, users, fold)


def test_every_user_is_judged_by_a_fit_to_the_other_folds_users():
    parts = [pairs(len(members), width) for members, width in zip(MEMBERS, (6, 12), strict=True)]
    everybody = UserPairs(MEMBERS, tuple(parts))

    def side(first):
        cut = (
            Pairs(*(a[:, : a.shape[1] // 2] if first else a[:, a.shape[1] // 2 :] for a in part))
            for part in parts
        )
        return UserPairs(MEMBERS, tuple(cut))

    users, data = (
        SupportQueryData(side(True), side(False)),
        TrainingData(FEATURES, FEATURES, everybody),
    )
    fold = user_folds(users, 3, seed=0)
    assert [np.bincount(fold[members]).tolist() for members in MEMBERS] == [[2, 2, 1], [3, 2, 2]]
    for one in (make_method("bt_per_user"), make_method("bt")):
        found = losses_of(one, data, users, fold)
        for number in range(3):
            weights = everybody.reweighted(
                lambda members, weight, n=number: weight * (fold[members] != n)[:, None]
            )
            fitted = one.fit(TrainingData(FEATURES, FEATURES, weights), 0)
            mine = fold == number
            for array, adapted in ((found.adapted, True), (found.unadapted, False)):
                full = candidate_losses(one, fitted, FEATURES, users, adapted)
                np.testing.assert_allclose(array[:, mine], full[:, mine], rtol=2e-5)
    assert not found.reads.any()


class SeenItems(UserRewardMethod):
    """Keeps the items, by number, that its fit and its predictions are given."""

    inputs = "ids"

    def fit(self, data, seed):
        return {"items": np.asarray(data.inputs("ids"))}

    def candidates(self, fitted):
        return [{}]

    def predict(self, fitted, candidates, features, support, query):
        np.testing.assert_array_equal(features, fitted["items"])
        return np.full((1, *query.weight.shape), 0.5)


def test_items_by_number_are_those_of_the_other_folds(monkeypatch):
    """Many items are factors of choices, from which those of the held-out users are left out."""
    monkeypatch.setattr(item_ids, "MOST_ONE_HOT", 1)
    part = pairs(12, 8)
    halves = (one_bucket(Pairs(*(a[:, side] for a in part))) for side in (slice(4), slice(4, 8)))
    users, data = SupportQueryData(*halves), TrainingData(FEATURES, FEATURES, one_bucket(part))
    fold = user_folds(users, 3, seed=0)
    found = losses_of(SeenItems(None), data, users, fold)
    np.testing.assert_allclose(found.adapted, np.log(2), rtol=1e-6)


@pytest.mark.slow
def test_a_population_of_each_kind():
    """Two draws of what the benchmark counts: nobody differs, and everybody does by far."""
    assert mrm_adaptation.decided(4, 0.0, 0).p > mrm_adaptation.LEVEL
    assert mrm_adaptation.decided(4, 1.0, 0).p < 1e-3


@pytest.mark.slow
def test_twelve_populations_of_each_kind(tmp_path):
    """The first of the hundred that `python -m benchmarks mrm_adaptation` draws."""
    words = ["mrm_adaptation", "--draws", "12", "--directions", "16", "--out", str(tmp_path)]
    subprocess.run(
        [sys.executable, "-m", "benchmarks", *words],
        cwd=ROOT, env=own_process.optimised(), check=True,
    )  # fmt: skip
    same, differing = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert (same["nats"], differing["nats"]) == (0.0, 0.015)
    assert same["adapts"] <= 2
    assert differing["adapts"] >= 11


def test_draws_of_other_settings_are_made_again(tmp_path, monkeypatch):
    calls = []

    def drawn(size, spread, seed):
        calls.append(seed)
        return PairedTest(0.01, 0.001, 10.0, 0.001, 130)

    monkeypatch.setattr(mrm_adaptation, "decided", drawn)
    kept = tmp_path / "draws.jsonl"
    first = mrm_adaptation.judged(4, 0.0, range(3), kept)
    assert first["adapts"] == 3
    assert mrm_adaptation.judged(4, 0.0, range(4), kept)["draws"] == 4
    assert calls == [0, 1, 2, 3]
    monkeypatch.setattr(mrm_adaptation, "FOLDS", 7)
    mrm_adaptation.judged(4, 0.0, range(2), kept)
    assert calls[4:] == [0, 1]
