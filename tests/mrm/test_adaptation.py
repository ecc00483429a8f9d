"""Whom to adapt: the test over users against scipy, choices by others, and gates by value."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from jaxalign.experiments.mrm.adaptation import gates, harmed_share
from jaxalign.mrm.adaptation import (
    Gate,
    expected_gain,
    gate_level,
    gated,
    harm_level,
    losses_by_others,
    paired_test,
)
from jaxalign.mrm.config import AdaptationConfig
from jaxalign.mrm.out_of_fold import CandidateLosses, adaptation_test

RNG = np.random.default_rng(0)


def test_the_paired_test_is_scipys():
    gains = RNG.normal(0.02, 0.1, 60)
    found, expected = paired_test(gains), stats.ttest_1samp(gains, 0, alternative="greater")
    assert found.t == pytest.approx(expected.statistic, rel=1e-12)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.standard_error == pytest.approx(gains.std(ddof=1) / np.sqrt(60))
    assert paired_test(np.append(gains, np.nan)) == found


@pytest.mark.parametrize(("gains", "p"), [([0.3], 1), ([], 1), ([0.0, 0.0], 1), ([0.1, 0.1], 0)])
def test_too_few_users_or_no_spread(gains, p):
    assert paired_test(np.array(gains, float)).p == p


def test_the_best_of_many_equal_candidates_is_not_better_for_having_been_chosen():
    """Chosen on the users themselves, the least of 200 noisy losses would look far better."""
    noise = RNG.normal(0, 0.1, (200, 50))
    fold = np.arange(50) % 5
    assert noise.mean(1).min() < -0.03
    assert abs(losses_by_others(noise, fold).mean()) < 0.03
    # A candidate that is really better is found from any users.
    noise[7] -= 1
    np.testing.assert_array_equal(losses_by_others(noise, fold), noise[7])


def test_adaptation_has_to_beat_the_best_model_for_all():
    fold, rng = np.arange(80) % 5, np.random.default_rng(1)
    base = rng.normal(0.7, 0.1, 80)
    mine = CandidateLosses(
        np.stack([base, base - 0.05 + rng.normal(0, 0.05, 80)]), np.stack([base, base]), fold
    )
    assert adaptation_test(mine).p < 0.001
    better = CandidateLosses(base[None] - 0.05, base[None] - 0.05, fold)
    assert adaptation_test(mine, [better]).p > 0.05
    # A method that reads no support has nothing to be tested.
    assert adaptation_test(better) is None


def test_the_expected_gain_is_what_people_who_choose_by_the_model_gain():
    p, q = 1 / (1 + np.exp(-RNG.normal(size=(2, 100_000))))
    seen = RNG.random(len(p)) < p
    real = np.where(seen, np.log(p / q), np.log((1 - p) / (1 - q))).mean()
    assert expected_gain(p, q, np.ones(len(p))) == pytest.approx(real, rel=0.03)
    # Nothing changes, no pair counts, and certainties stay finite.
    assert expected_gain(p, p, np.ones(len(p))) == 0
    assert expected_gain(p, q, np.zeros(len(p))) == 0
    assert np.isfinite(expected_gain(np.array([0.0, 1.0]), np.array([1.0, 0.5]), np.ones(2)))


def test_the_level_is_the_highest_that_keeps_the_share():
    expected = RNG.random(500)
    gains = np.append(expected[:-1] - 0.3 + RNG.normal(0, 0.5, 499), np.nan)
    level = gate_level(expected, gains, 0.9)
    known = np.isfinite(gains)
    total = gains[known].sum()

    def kept(at):
        return gains[known & (expected >= at)].sum() / total

    assert kept(level) >= 0.9
    higher = np.sort(expected[known & (expected > level)])
    assert all(kept(at) < 0.9 for at in higher)
    assert gate_level(expected, -np.abs(gains), 0.9) == 0
    assert gate_level(np.zeros(0), np.zeros(0), 0.9) == 0


def test_gated_users_get_the_other_probabilities():
    adapted, unadapted = np.full((2, 3, 4), 0.9), np.full((2, 3, 4), 0.4)
    through = np.array([[True, False, True], [False, False, True]])
    served = gated(adapted, unadapted, through)
    assert (served[..., 0] == np.where(through, 0.9, 0.4)).all()
    assert Gate() == Gate(adapts=True, support=0.0, pairs=0.0)


def test_the_harm_level_is_the_lowest_that_the_exact_limit_allows():
    expected = np.append(RNG.permutation(400) / 400, [0.1, 0.1])
    harmed = np.append((RNG.random(400) < 0.5 - 0.4 * expected[:400]).astype(float), [1, np.nan])
    level = harm_level(expected, harmed, 0.2)
    known = np.isfinite(harmed)

    def limit(at):
        count = int(harmed[known & (expected >= at)].sum())
        return stats.binomtest(count, known.sum(), alternative="less").proportion_ci(0.95).high

    assert limit(level) <= 0.2
    lower = np.sort(expected[known & (expected < level)])[-1]
    assert limit(lower) > 0.2
    assert harm_level(expected, harmed, 1.0) == 0
    # Even with nobody harmed, ten users do not prove that few are.
    assert harm_level(np.ones(10), np.zeros(10), 0.25) == np.inf
    assert harm_level(np.zeros(0), np.zeros(0), 0.25) == np.inf
    # Users of one gain pass together.
    assert harm_level(np.ones(50), np.arange(50) % 2, 0.25) == np.inf


def test_the_harm_level_holds_for_other_users():
    """Of 200 draws of 300 users, at most one in ten has a level that harms too many."""
    rng, most = np.random.default_rng(3), 0.25
    level = np.linspace(0, 1, 1001)
    # A user of expected gain x is harmed with probability (1 - x) / 1.5.
    true = (1 - level) ** 2 / 3
    wrong = 0
    for _ in range(200):
        expected = rng.random(300)
        harmed = rng.random(300) < (1 - expected) / 1.5
        found = harm_level(expected, harmed.astype(float), most)
        wrong += np.interp(found, level, true) > most
    assert wrong <= 20


class _Fit:
    """A fit whose predictions are given: adapted [1, U, P] and unadapted [1, U, P]."""

    def __init__(self, adapted, unadapted):
        self._predictions = {True: adapted, False: unadapted}

    def predict(self, users, adapted=True):
        return self._predictions[adapted]


def few_harmed():
    """Four in twenty users are predicted worse, whose expected gain is least; its users, gains."""
    adapted, unadapted = np.full((1, 20, 2), 0.9), np.full((1, 20, 2), 0.4)
    adapted[0, :4], unadapted[0, :4] = 0.45, 0.55
    users = SimpleNamespace(query=SimpleNamespace(padded=SimpleNamespace(weight=np.ones((20, 2)))))
    return _Fit(adapted, unadapted), users, 0.1 * np.arange(1.0, 21.0)[None]


def test_the_share_of_users_who_are_predicted_worse():
    fit, users, _ = few_harmed()
    assert harmed_share(fit, users) == 0.2


@pytest.mark.parametrize(
    ("kept", "most", "least", "level"),
    [
        (1.0, 1.0, 1.0, 0.5),  # all of the gain
        (0.9, 1.0, 0.9, 0.7),  # what may be lost is two of sixteen users'
        (1.0, 0.3, 0.5, 0.5),  # two of twenty harmed would be too many; nobody is, from here on
        (1.0, 0.1, 0.5, 1.3),  # nothing proves so few: as many are left alone as may be
    ],
)
def test_levels_keep_the_gain_and_then_limit_the_harm(kept, most, least, level):
    fit, users, expected = few_harmed()
    reference = SimpleNamespace(expected=lambda fit, users: expected)
    config = AdaptationConfig(kept_gain=kept, most_harmed=most, least_kept_gain=least)
    (gate,) = gates(fit, users, reference, config)
    assert gate.adapts
    assert gate.support == pytest.approx(level)
    # The expected gain on the pairs is that of the predictions, not of the reference.
    assert gate.pairs > 0
