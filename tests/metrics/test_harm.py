"""Harm that noise alone shows: against every possible set of labels, and against drawn ones."""

import itertools

import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.metrics import harm_floor, harmed


def test_the_floor_is_the_harm_averaged_over_all_labels_that_the_probabilities_allow():
    rng = np.random.default_rng(0)
    after, before = rng.random((2, 5, 4))
    after[0, 0], before[1, 1], before[2, 2], after[2, 2] = 0.5, 0.5, 0.5, 0.5
    mask = rng.random((5, 4)) < 0.8
    mask[4] = False  # a user without pairs does not count
    mask[:4, 0] = True
    users = np.flatnonzero(mask.any(1))
    expected = []
    for user in users:
        pairs = np.flatnonzero(mask[user])
        total = 0.0
        for labels in itertools.product((0, 1), repeat=len(pairs)):
            seen = np.array(labels, bool)
            p, q = after[user, pairs], before[user, pairs]
            chance = np.prod(np.where(seen, p, 1 - p))
            # With the other item chosen, each probability is that of the other item.
            p, q = np.where(seen, p, 1 - p), np.where(seen, q, 1 - q)
            worse = ((np.sign(p - 0.5) - np.sign(q - 0.5)).sum()) < 0
            total += chance * worse
        expected.append(total)
    assert harm_floor(after, before, mask) == pytest.approx(np.mean(expected), abs=1e-12)


def test_people_who_choose_by_the_adapted_model_look_as_harmed_as_the_floor_says():
    rng = np.random.default_rng(1)
    margin = rng.normal(size=(4000, 40))
    after = 1 / (1 + np.exp(-(margin + 0.5 * rng.normal(size=margin.shape))))
    before = 1 / (1 + np.exp(-margin))
    seen = rng.random(after.shape) < after
    after, before = (np.where(seen, p, 1 - p) for p in (after, before))
    mask = np.ones(after.shape, bool)
    floor = harm_floor(after, before, mask)
    assert 0.05 < floor < 0.4
    assert harmed(after, before, mask, draws=50).mean == pytest.approx(floor, abs=0.015)
    # Two seeds are averaged, and the labels that were made do not matter.
    assert harm_floor(np.stack([after, before]), before, mask) == pytest.approx(floor / 2)
    flipped = 1 - after, 1 - before
    assert harm_floor(*flipped, mask) == pytest.approx(floor, abs=1e-9)


def test_nothing_to_judge_is_refused():
    with pytest.raises(InputError, match="no pair to judge"):
        harm_floor(np.ones((1, 1)), np.ones((1, 1)), np.zeros((1, 1), bool))
