"""Intervals: coverage on simulated worlds, and the item term against a loop over couples."""

import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.metrics import users
from jaxalign.metrics.bootstrap import _influence, _item_effects, mean_interval

TRUTH = 0.02


def world(rng, num_users, pairs, num_items, user_sd, item_sd):
    """Two models that differ on some pairs; the expected difference in accuracy is TRUTH."""
    shape = (num_users, pairs)
    chosen = rng.integers(0, num_items, shape)
    rejected = (chosen + rng.integers(1, num_items, shape)) % num_items
    item = rng.normal(0, item_sd, num_items)
    gain = TRUTH + rng.normal(0, user_sd, (num_users, 1)) + item[chosen] + item[rejected]
    lot = rng.random(shape)
    up = np.clip((0.2 + gain) / 2, 0, 1)
    won, lost = lot < up, lot > 1 - np.clip((0.2 - gain) / 2, 0, 1)
    return np.where(lost, 0.2, 0.8), np.where(won, 0.2, 0.8), chosen, rejected


def coverage(worlds, with_items, **kind):
    rng, held = np.random.default_rng(0), []
    for seed in range(worlds):
        p, base, *items = world(rng, **kind)
        mask = np.ones(p.shape, bool)
        extra = items if with_items else [None, None]
        found = users.paired_bootstrap(seed, p, base, mask, *extra, draws=400)
        held.append(found.low <= TRUTH <= found.high)
    return np.mean(held)


def test_covers_new_users():
    kind = {"num_users": 100, "pairs": 10, "num_items": 40, "user_sd": 0.05, "item_sd": 0.0}
    assert 0.90 <= coverage(200, False, **kind) <= 0.99
    assert 0.90 <= coverage(200, True, **kind) <= 0.99


def test_covers_new_items_which_users_alone_do_not():
    kind = {"num_users": 100, "pairs": 20, "num_items": 40, "user_sd": 0.03, "item_sd": 0.04}
    assert 0.90 <= coverage(200, True, **kind) <= 0.99
    assert coverage(200, False, **kind) < 0.80


def test_harmed_covers():
    rng, held = np.random.default_rng(0), []
    mask = np.ones((80, 1), bool)
    for seed in range(200):
        p = np.where(rng.random((80, 1)) < 0.3, 0.2, 0.8)
        found = users.harmed(p, np.full((80, 1), 0.8), mask, seed=seed, draws=400)
        held.append(found.low <= 0.3 <= found.high)
    assert 0.90 <= np.mean(held) <= 0.99


def test_standard_error_is_that_of_a_mean():
    values = np.random.default_rng(0).normal(size=200)
    found = mean_interval(0, values, draws=4000)
    assert found.mean == pytest.approx(values.mean())
    assert found.standard_error == pytest.approx(values.std() / np.sqrt(200), rel=0.05)


def test_item_variance_matches_a_loop_over_couples():
    rng = np.random.default_rng(3)
    p, base, chosen, rejected = world(rng, 12, 6, 8, 0.0, 0.2)
    mask = rng.random(p.shape) < 0.8
    gain = (p > 0.5).astype(float) - (base > 0.5)
    share, user = _influence(gain, mask, 0.1)
    ends = list(zip(chosen[mask].tolist(), rejected[mask].tolist(), strict=True))
    excess = 0.0
    for i, one in enumerate(ends):
        for j, other in enumerate(ends):
            if user[i] != user[j] and set(one) & set(other):
                excess += share[i] * share[j]
    assert excess > 0
    effects = _item_effects(share, user, chosen[mask], rejected[mask])
    assert (effects**2).sum() == pytest.approx(excess * 8 / 7)
    assert effects.sum() == pytest.approx(0, abs=1e-12)


def test_items_never_narrow_and_their_names_mean_nothing():
    rng = np.random.default_rng(4)
    p, base, chosen, rejected = world(rng, 60, 10, 20, 0.05, 0.1)
    mask = np.ones(p.shape, bool)
    narrow = users.paired_bootstrap(0, p, base, mask)
    wide = users.paired_bootstrap(0, p, base, mask, chosen, rejected)
    named = users.paired_bootstrap(0, p, base, mask, 10**6 - 7 * chosen, 10**6 - 7 * rejected)
    assert wide.mean == narrow.mean
    assert wide.standard_error > narrow.standard_error
    assert named == pytest.approx(wide)


def test_same_seed_same_interval():
    p, base, *_ = world(np.random.default_rng(5), 30, 5, 10, 0.1, 0.0)
    mask = np.ones(p.shape, bool)
    first = users.paired_bootstrap(7, p, base, mask, draws=50)
    assert first == users.paired_bootstrap(7, p, base, mask, draws=50)
    assert first != users.paired_bootstrap(8, p, base, mask, draws=50)


def test_refuses():
    p, mask = np.full((2, 2), 0.7), np.ones((2, 2), bool)
    item = np.asarray([[0, 1], [2, 3]])
    with pytest.raises(InputError, match="both or neither"):
        users.paired_bootstrap(0, p, p, mask, item)
    with pytest.raises(InputError, match="one item twice"):
        users.paired_bootstrap(0, p, p, mask, item, item)
    with pytest.raises(InputError, match="integer items"):
        users.paired_bootstrap(0, p, p, mask, item, item + 0.5)
    with pytest.raises(InputError, match="draws"):
        users.paired_bootstrap(0, p, p, mask, draws=1)
    with pytest.raises(InputError, match="none with a pair"):
        mean_interval(0, np.full(3, np.nan))
