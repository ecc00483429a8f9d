"""Covers and budgets against brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import cover_interval

from jaxalign import palm
from jaxalign.errors import InputError
from jaxalign.palm._cover import reduce
from jaxalign.palm.select import choose

few = settings(max_examples=40, deadline=None)


def brute_cover(covers):
    for size in range(1, len(covers) + 1):
        for members in itertools.combinations(range(len(covers)), size):
            if covers[list(members)].any(axis=0).all():
                return size
    return None


@few
@given(st.integers(0, 10**6), st.floats(0.1, 0.6))
def test_exact_cover_is_brute_force_and_not_larger_than_greedy(seed, density):
    rng = np.random.default_rng(seed)
    covers = rng.random((9, 14)) < density
    covers[rng.integers(9, size=14), np.arange(14)] = True
    exact, greedy = palm.cover(covers), palm.cover(covers, "greedy")
    assert len(exact.members) == brute_cover(covers)
    assert exact.optimal
    for found in (exact, greedy):
        assert covers[found.members].any(axis=0).all()
        assert found.lower_bound <= len(exact.members) <= len(found.members)
    rows, small = reduce(covers)
    assert brute_cover(small) == len(exact.members)
    assert small.shape[0] == len(rows)


@few
@given(st.integers(0, 10**6))
def test_intervals(seed):
    rng = np.random.default_rng(seed)
    ends = np.sort(rng.integers(0, 20, (12, 2)), axis=1)
    place = np.arange(20)
    covers = (ends[:, :1] <= place) & (place <= ends[:, 1:])
    covers = np.concatenate([covers, (place < 10)[None], (place >= 10)[None]])
    found = cover_interval(covers)
    assert covers[found].any(axis=0).all()
    assert len(found) == len(palm.cover(covers).members)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.booleans())
def test_budget_is_brute_force(seed, size, with_free):
    rng = np.random.default_rng(seed)
    losses = rng.random((9, 90))
    free = rng.random(90) if with_free else None
    capped = losses if free is None else np.minimum(losses, free)
    worst = min(
        capped[list(members)].min(0).max() for members in itertools.combinations(range(9), size)
    )
    found = palm.best_of_size(losses, size, free)
    assert found.worst == worst == found.lower_bound
    assert found.optimal
    assert capped[found.members].min(0).max() == worst
    greedy = palm.best_of_size(losses, size, free, "greedy")
    assert greedy.lower_bound <= worst <= greedy.worst


@few
@given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from(["simplex", "signed"]))
def test_no_member_comes_twice(seed, size, weights):
    """A pool of few policies, each found for many weights, and the reference among them."""
    rng = np.random.default_rng(seed)
    kind = rng.random((3, 2)) - (0.5 if weights == "signed" else 0.0)
    values = np.concatenate([kind, kind[rng.integers(3, size=6)], np.zeros((1, 2))])
    pool, reference = values, np.zeros(2)
    if weights == "signed":
        pool, reference = np.pad(values, [(0, 0), (0, 1)]), np.zeros(3)
    config = palm.PalmConfig(
        weights=weights, size=size, targets="corners", criterion=rng.choice(["additive", "share"])
    )
    chosen = choose(pool, reference, np.ones(2), config)
    rows = np.concatenate([reference[None], pool[chosen.members]])
    assert len(np.unique(rows, axis=0)) == len(rows) <= 1 + min(size, 3)
    assert (chosen.summary.asked, chosen.summary.distinct) == (size, 3)
    alone = choose(np.zeros((4, len(reference))), reference, np.ones(2), config)
    assert len(alone.members) == alone.summary.distinct == 0


def test_refusals():
    with pytest.raises(InputError, match="1 weights that no policy"):
        palm.cover(np.array([[True, False]]))


def test_counts_are_whole_numbers():
    prompts = np.arange(8.0)[None, :, None] * np.ones(2)
    with pytest.raises(InputError, match=r"size: found 2\.5"):
        palm.best_of_size(np.eye(3), 2.5)
    with pytest.raises(InputError, match=r"draws: found 2\.5"):
        palm.held_out(prompts, prompts, np.ones(2), np.eye(2), draws=2.5)
    assert palm.best_of_size(np.eye(3), np.int64(2), time_limit=np.inf).seconds >= 0
