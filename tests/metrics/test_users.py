"""The protocol against slow loops, and the properties that any judge must have."""

import json
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxalign.errors import InputError
from jaxalign.metrics import users
from jaxalign.metrics.groups import _group_mean

few = settings(max_examples=40, deadline=None)


def right(p):
    return 0.5 if p == 0.5 else float(p > 0.5)


def loop_accuracy(probability, mask):
    means = []
    for row, keep in zip(probability, mask, strict=True):
        hits = [right(p) for p, k in zip(row, keep, strict=True) if k]
        means.append(sum(hits) / len(hits) if hits else math.nan)
    return means


def present(values):
    return [value for value in values if not math.isnan(value)]


def mean(values):
    return sum(values) / len(values)


@st.composite
def judged(draw, models=2):
    """Probabilities on a grid with exact halves and exact complements, and a ragged mask."""
    shape = (draw(st.integers(1, 7)), draw(st.integers(1, 6)))
    mask = draw(hnp.arrays(bool, shape))
    mask[0, 0] = True
    grids = [draw(hnp.arrays(np.int64, shape, elements=st.integers(0, 16))) for _ in range(models)]
    return [np.where(mask, grid / 16, np.nan) for grid in grids], mask


def simulate(seed=0, num_users=40, pairs=12):
    rng = np.random.default_rng(seed)
    mask = rng.random((num_users, pairs)) < 0.8
    mask[3] = False
    return [rng.random((num_users, pairs)).round(2) for _ in range(3)], mask


@few
@given(judged())
def test_matches_loops(case):
    (p, q), mask = case
    expected = loop_accuracy(p, mask)
    np.testing.assert_allclose(users.user_accuracy(p, mask), expected, rtol=1e-12)
    assert users.accuracy(p, mask) == pytest.approx(mean(present(expected)))
    gains = [a - b for a, b in zip(expected, loop_accuracy(q, mask), strict=True)]
    np.testing.assert_allclose(users.user_gain(p, q, mask), gains, atol=1e-12)
    worse = [gain < -1e-9 for gain in present(gains)]
    assert users.harmed(p, q, mask, draws=5).mean == pytest.approx(mean(worse))
    moved = [right(a) != right(b) for a, b in zip(p[mask], q[mask], strict=True)]
    assert users.flipped(p, q, mask) == pytest.approx(mean(moved))


def test_nll_matches_loop_and_survives_a_certain_error():
    (p, _, _), mask = simulate()
    p = np.clip(p, 0.01, 1)
    rows = [
        [-math.log(value) for value, keep in zip(row, kept, strict=True) if keep]
        for row, kept in zip(p, mask, strict=True)
    ]
    expected = [mean(row) if row else math.nan for row in rows]
    np.testing.assert_allclose(users.user_nll(p, mask), expected, rtol=1e-12)
    assert users.nll(p, mask) == pytest.approx(mean(present(expected)))
    assert users.nll([[0.0]], [[True]]) == pytest.approx(87.3, abs=0.1)
    assert math.copysign(1, users.nll([[1.0]], [[True]])) == 1


@few
@given(judged(), st.randoms(use_true_random=False))
def test_order_and_padding_change_nothing(case, shuffler):
    (p, q), mask = case
    rows = list(range(len(mask)))
    shuffler.shuffle(rows)
    columns = list(range(mask.shape[1]))
    shuffler.shuffle(columns)

    def moved(array, fill):
        return np.pad(array[rows][:, columns], ((1, 2), (3, 0)), constant_values=fill)

    def figures(p, q, mask):
        published = users.worst_groups(p, q, mask, splits=1)
        return {
            **{k: v for k, v in published.items() if "split" not in k},
            "accuracy": users.accuracy(p, mask),
            "nll": users.nll(p, mask),
            "flipped": users.flipped(p, q, mask),
            "calibration": users.calibration_error(p, mask),
            **users.paired_bootstrap(0, p, q, mask, draws=20)._asdict(),
            **{f"h_{k}": v for k, v in users.harmed(p, q, mask, draws=20)._asdict().items()},
        }

    after = figures(moved(p, np.nan), moved(q, 7.0), moved(mask, False))
    assert after == pytest.approx(figures(p, q, mask), abs=1e-12)


@few
@given(judged())
def test_padding_leaves_the_random_halves_alone(case):
    (p, q), mask = case

    def pad(array, fill):
        return np.pad(array, ((0, 0), (2, 1)), constant_values=fill)

    before = users.worst_groups(p, q, mask, splits=2)
    after = users.worst_groups(pad(p, np.nan), pad(q, np.nan), pad(mask, False), splits=2)
    assert after == pytest.approx(before, abs=1e-12)


@few
@given(judged(models=1))
def test_identical_predictions_gain_exactly_nothing(case):
    (p,), mask = case
    result = users.judge(np.stack([p, p, p]), p, p, mask, draws=10)
    for key in ("gain", "gain_low", "gain_high", "gain_sd", "accuracy_sd", "harmed", "flipped"):
        assert result[key] == 0
    assert result["harmed_high"] == 0


@few
@given(judged(models=1))
def test_complement_gives_the_complement(case):
    (p,), mask = case
    assert users.accuracy(1 - p, mask) == pytest.approx(1 - users.accuracy(p, mask))


def loop_reliability(probability, mask, bins):
    """Both orders of every pair, an edge going to the bin further from one half."""
    found = [[] for _ in range(bins)]
    for p in probability[mask]:
        for claim, truth in ((p, 1.0), (1 - p, 0.0)):
            if p == 0.5:  # no opinion stands on both sides, half of it true
                place, truth = (bins // 2 if truth else (bins - 1) // 2), 0.5
            elif claim > 0.5:
                place = min(int(claim * bins), bins - 1)
            else:
                place = bins - 1 - min(int((1 - claim) * bins), bins - 1)
            found[place].append((claim, truth))
    return found


@few
@given(judged(models=1), st.integers(2, 9))
def test_reliability_matches_loop(case, bins):
    (p,), mask = case
    table = users.reliability(p, mask, bins)
    found = loop_reliability(p, mask, bins)
    assert table.counts.tolist() == [len(rows) for rows in found]
    assert table.counts.sum() == 2 * mask.sum()
    error = 0.0
    for place, rows in enumerate(found):
        if not rows:
            assert math.isnan(table.predicted[place])
            assert math.isnan(table.observed[place])
            continue
        claim, truth = mean([row[0] for row in rows]), mean([row[1] for row in rows])
        assert table.predicted[place] == pytest.approx(claim)
        assert table.observed[place] == pytest.approx(truth)
        error += len(rows) * abs(claim - truth) / (2 * mask.sum())
    assert users.calibration_error(p, mask, bins) == pytest.approx(error)
    np.testing.assert_allclose(table.observed, 1 - table.observed[::-1], atol=1e-12)


def test_calibrated_predictions_have_no_calibration_error():
    rng = np.random.default_rng(0)
    p = rng.random((500, 40))
    won = np.where(rng.random(p.shape) < p, p, 1 - p)
    mask = np.ones(p.shape, bool)
    assert users.calibration_error(won, mask) < 0.01
    assert users.calibration_error(np.sqrt(won), mask) > 0.02


def loop_group(order, value, share):
    """The average over many ways to break ties by chance."""
    places = round(share * len(order))
    shuffler, found = random.Random(0), []
    for _ in range(4000):
        line = list(range(len(order)))
        shuffler.shuffle(line)
        line.sort(key=lambda user: order[user])
        found.append(mean([value[user] for user in line[:places]]))
    return mean(found)


def test_published_groups_match_loop():
    (p, q, _), mask = simulate()
    own = sorted(present(loop_accuracy(p, mask)))
    result = users.worst_groups(p, q, mask, fractions=(1 / 39, 2 / 39, 0.5, 1))
    assert result["worst_2.564"] == pytest.approx(own[0])
    assert result["worst_5.128"] == pytest.approx(mean(own[:2]))
    # 39 users: half of them is 19 and half of the 20th.
    assert result["worst_50"] == pytest.approx((sum(own[:19]) + own[19] / 2) / 19.5)
    assert result["worst_100"] == pytest.approx(users.accuracy(p, mask))


def test_split_groups_match_loop_where_the_halves_are_known():
    # Two pairs a user: whichever the halves are, both directions use both pairs.
    rng = np.random.default_rng(1)
    p, q = rng.random((2, 10, 2)).round(2)
    mask = np.ones((10, 2), bool)
    result = users.worst_groups(p, q, mask, splits=3000, fractions=(0.2, 0.5))
    for share, key in ((0.2, "worst_20_split"), (0.5, "worst_50_split")):
        shuffler, found = random.Random(0), []
        for _ in range(300):
            first = [shuffler.randrange(2) for _ in range(10)]
            order = [right(q[user, side]) for user, side in enumerate(first)]
            value = [right(p[user, 1 - side]) for user, side in enumerate(first)]
            cut = sorted(order)[round(share * 10) - 1]
            below = [v for o, v in zip(order, value, strict=True) if o < cut]
            tied = [v for o, v in zip(order, value, strict=True) if o == cut]
            places = share * 10
            found.append((sum(below) + (places - len(below)) * mean(tied)) / places)
        # The loop is a sample too: within four of its standard errors.
        assert result[key] == pytest.approx(mean(found), abs=4 * np.std(found) / 300**0.5)


def test_ties_share_the_last_places():
    (p, q, _), mask = simulate(num_users=40)
    keep = np.delete(mask, 3, 0)
    p = np.delete(p, 3, 0)
    order = np.asarray(loop_accuracy(np.delete(q, 3, 0).round(0), keep)).round(1)
    value = np.asarray(loop_accuracy(p, keep))
    expected = loop_group(order.tolist(), value.tolist(), 12 / 39)
    assert _group_mean(order, value, 12 / 39) == pytest.approx(expected, abs=0.005)


def test_equal_users_show_the_selection_effect_only_when_chosen_and_scored_on_the_same_pairs():
    rng = np.random.default_rng(0)
    p = np.where(rng.random((1000, 40)) < 0.7, 0.8, 0.2)
    result = users.worst_groups(p, p, np.ones(p.shape, bool))
    assert result["worst_10"] < 0.60
    assert result["worst_10_split"] == pytest.approx(0.7, abs=0.015)


def test_users_who_differ_are_found_by_the_split_too():
    rng = np.random.default_rng(0)
    hard = np.arange(1000) < 100
    p = np.where(rng.random((1000, 80)) < np.where(hard, 0.4, 0.8)[:, None], 0.8, 0.2)
    result = users.worst_groups(p, p, np.ones(p.shape, bool))
    assert result["worst_10_split"] == pytest.approx(0.4, abs=0.03)


def test_single_pairs_have_no_split():
    result = users.worst_groups([[0.7], [0.2]], [[0.7], [0.2]], [[True], [True]])
    assert result["worst_10"] == 0
    assert not any("split" in key for key in result)


def test_share_of_gap():
    assert users.share_of_gap(0.71, 0.69, 0.73) == pytest.approx(0.5)
    assert users.share_of_gap(0.67, 0.69, 0.73) == pytest.approx(-0.5)
    assert math.isnan(users.share_of_gap(0.7, 0.7, 0.7))
    assert math.isnan(users.share_of_gap(0.7, 0.7, 0.6))


def test_judge_is_json_and_agrees_with_its_parts():
    (p, q, base), mask = simulate()
    rng = np.random.default_rng(2)
    chosen = rng.integers(0, 30, mask.shape)
    rejected = (chosen + 1 + rng.integers(0, 29, mask.shape)) % 30
    result = users.judge(p, q, base, mask, chosen, rejected, seed=3, draws=200)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert set(result) == {
        *("accuracy", "accuracy_sd", "nll", "gain", "gain_low", "gain_high", "gain_sd"),
        *("gain_items_low", "gain_items_high", "harmed", "harmed_low", "harmed_high", "flipped"),
        *("harm_floor", "harm_excess", "calibration_error", "users", "pairs"),
        *(f"worst_{tenth}0{form}" for tenth in range(1, 6) for form in ("", "_split")),
    }
    assert result["gain"] == pytest.approx(users.accuracy(p, mask) - users.accuracy(base, mask))
    assert result["gain_low"] < result["gain"] < result["gain_high"]
    assert (result["users"], result["pairs"]) == (39, mask.sum())
    assert result["accuracy_sd"] == 0


def test_seeds_are_averaged_user_by_user():
    (p, q, base), mask = simulate()
    both = np.stack([p, q])
    result = users.judge(both, base, base, mask, draws=200)
    each = [users.judge(one, base, base, mask, draws=200) for one in (p, q)]
    for key in ("accuracy", "nll", "gain", "worst_10", "worst_30_split", "harmed", "flipped"):
        assert result[key] == pytest.approx(mean([one[key] for one in each]))
    for key in ("accuracy", "gain"):
        spread = abs(each[0][key] - each[1][key]) / math.sqrt(2)
        assert result[f"{key}_sd"] == pytest.approx(spread)
    averaged = users.user_gain(both, base, mask)
    one_by_one = [users.user_gain(one, base, mask) for one in (p, q)]
    np.testing.assert_allclose(averaged, np.mean(one_by_one, 0), atol=1e-12)


def test_nobody_loses_by_rounding():
    # Three seeds: a win, a loss, nothing; thirds do not add up to 0 in floating point.
    p = np.asarray([[[0.9, 0.1, 0.9]], [[0.9, 0.9, 0.1]], [[0.1, 0.9, 0.9]]])
    assert users.user_gain(p, p[[1, 2, 0]], np.ones((1, 3), bool)) == [0.0]


@pytest.mark.parametrize(
    ("probability", "mask", "words"),
    [
        ([[0.5, 1.5]], [[True, True]], "from 0 to 1"),
        ([[0.5, math.nan]], [[True, True]], "NaN"),
        ([[0.5]], [[True, True]], "like mask"),
        ([[0.5, 0.5]], [[1, 1]], "bool"),
        ([[0.5, 0.5]], [[False, False]], "no pair"),
        (np.zeros((0, 2)), np.zeros((0, 2), bool), "no pair"),
    ],
)
def test_refuses(probability, mask, words):
    with pytest.raises(InputError, match=words):
        users.accuracy(probability, mask)


def test_refuses_what_does_not_fit_together():
    p, mask = np.full((1, 2), 0.7), np.ones((1, 2), bool)
    with pytest.raises(InputError, match="seeds"):
        users.user_gain(np.stack([p, p]), np.stack([p, p, p]), mask)
    with pytest.raises(InputError, match="bins"):
        users.reliability(p, mask, 1)
    with pytest.raises(InputError, match="fractions"):
        users.worst_groups(p, p, mask, fractions=(0,))
    with pytest.raises(InputError, match="unadapted"):
        users.flipped(p, p[:, :1], mask)
