"""Agreement of what was told with what was reached: scipy, and figures worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from jaxalign.errors import InputError
from jaxalign.metrics import agreement

LINE = np.stack([np.linspace(1, 0, 11), np.linspace(0, 1, 11)], 1)
# The three corners, six points on the edges, four inside: 13 as in the literature.
THIRDS = np.array(
    [[1, 0, 0], [0, 1, 0], [0, 0, 1], [.5, .5, 0], [.5, 0, .5], [0, .5, .5], [.8, .1, .1],
     [.1, .8, .1], [.1, .1, .8], [.2, .4, .4], [.4, .2, .4], [.4, .4, .2], [1/3, 1/3, 1/3]]
)  # fmt: skip


def columns(values):
    return np.asarray(values, float)[:, None]


@pytest.mark.parametrize(
    ("told", "reached", "wanted"),
    [
        ([0, 1, 2, 3], [0, 10, 20, 30], 1.0),
        ([0, 1, 2, 3], [3, 2, 1, 0], -1.0),
        # One swap of neighbours: (5 - 1) / 6.
        ([0, 1, 2, 3], [0, 2, 1, 3], 4 / 6),
        # Two preferences tie, rewards do not: 5 / sqrt(5 * 6).
        ([0, 1, 1, 3], [0, 1, 2, 3], 5 / np.sqrt(30)),
        # The rewards tie there too: perfect.
        ([0, 1, 1, 3], [0, 1, 1, 3], 1.0),
        # A collapsed policy that moves at one end alone: 3 pairs agree.
        ([0, 1, 2, 3], [0, 1, 1, 1], 3 / np.sqrt(6 * 3)),
        ([0, 1], [1, 0], -1.0),
    ],
)
def test_tau_b_by_hand_and_by_scipy(told, reached, wanted):
    found = agreement.tau_b(columns(told), columns(reached))
    assert found == (pytest.approx(wanted, abs=1e-12),)
    assert found[0] == pytest.approx(kendalltau(told, reached, variant="b").statistic, abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(2, 14).flatmap(
        lambda size: st.tuples(
            *[st.lists(st.integers(0, 4), min_size=size, max_size=size) for _ in range(4)]
        )
    )
)
def test_tau_b_is_scipys_for_every_column(lists):
    told, reached = np.array(lists[:2], float).T, np.array(lists[2:], float).T
    found = agreement.tau_b(told / 10, reached)
    for place, tau in enumerate(found):
        if np.ptp(told[:, place]) == 0 or np.ptp(reached[:, place]) == 0:
            assert tau is None
        else:
            wanted = kendalltau(told[:, place], reached[:, place], variant="b").statistic
            assert tau == pytest.approx(wanted, abs=1e-12)


def test_told_ties_survive_float32():
    told = np.array([0.1 + 0.2, 0.3, np.float32(0.3), 0.9])
    assert agreement.tau_b(columns(told), columns([1, 2, 3, 4]))[0] == pytest.approx(
        3 / np.sqrt(3 * 6)
    )


def test_the_cap_is_what_a_policy_without_ties_reaches():
    assert agreement.tau_cap(LINE) == (1.0, 1.0)
    caps = agreement.tau_cap(THIRDS)
    assert all(0.9 < cap < 0.97 for cap in caps)
    noise = np.random.default_rng(0).normal(0, 1e-3, THIRDS.shape)
    assert agreement.tau_b(THIRDS, THIRDS + noise) == pytest.approx(caps, abs=1e-12)
    assert agreement.tau_cap([[0.5, 0.5], [0.5, 0.5]]) == (None, None)
    assert agreement.tau_cap([[0.5, 0.5]]) == (None, None)


def test_squared_error_by_hand():
    assert agreement.squared_error([[1, 0], [0, 1]], [[0.9, 0.2], [0, 1]]) == pytest.approx(
        (0.01 + 0.04) / 4
    )


def test_corner_movement_by_hand():
    told = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.5, 0.5, 0.0]]
    reached = [[0.9, 0.1, 0.2], [0.3, 0.8, 0.0], [0.1, 0.5, 0.7], [9.0, 9.0, 9.0]]
    expected = (0.9 - 0.2, 0.8 - 0.3, 0.7 - 0.1)
    assert agreement.corner_movement(told, reached) == pytest.approx(expected)
    assert agreement.corner_movement(told[1:], reached[1:]) == (None, None, None)
    assert agreement.corner_movement([[1.0]], [[0.5]]) == (None,)
    same = np.full((4, 3), 0.4)
    assert agreement.corner_movement(told, same) == pytest.approx((0, 0, 0))


def test_corner_error_by_hand():
    told = [[1, 0], [0.5, 0.5], [0, 1]]
    reached = [[0.8, 0.1], [0.9, 0.5], [0.0, 0.7]]
    # The middle reaches more of the first objective than its own corner does.
    assert agreement.corner_error(told, reached, [0.0, 0.0]) == pytest.approx((0.1 + 0.0) / 2)
    others = [[0.5, 1.0], [0.95, 0.0]]
    assert agreement.corner_error(told, reached, others) == pytest.approx((0.15 + 0.3) / 2)
    assert agreement.corner_error(told[:2], reached[:2], others) is None


def test_corners_are_missed_where_tau_and_hypervolume_see_nothing():
    middle = LINE * 0.2 + 0.4
    assert agreement.tau_b(LINE, middle) == (1.0, 1.0)
    assert agreement.corner_error(LINE, middle, LINE) == pytest.approx(0.4)
    assert agreement.corner_error(LINE, LINE, LINE) == 0


def test_linear_regret_by_hand():
    weights = [[1, 0], [0.5, 0.5]]
    values = [[0.6, 0.9], [0.6, 0.6]]
    best = [[0.8, 0.0], [0.7, 0.7]]
    assert agreement.linear_regret(weights, values, best) == pytest.approx((0.2 + 0.1) / 2)
    # Who already has more than all that was offered loses nothing.
    assert agreement.linear_regret([[1, 0]], [[0.9, 0]], best) == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: agreement.tau_b(LINE, LINE[:5]), r"shapes \(11, 2\) and \(5, 2\)"),
        (lambda: agreement.tau_b(LINE, LINE * np.nan), "point 0: found"),
        (lambda: agreement.linear_regret(LINE, LINE, [1.0, 0.0]), "expected"),
    ],
)
def test_what_makes_no_sense_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()
