"""How far rewards conflict, on fronts whose shape is known, and against brute force."""

import chex
import numpy as np
import pytest

from jaxalign import metrics
from jaxalign.errors import InputError
from jaxalign.experiments.moc.conflict import conflict_lines, conflict_report
from jaxalign.moc.preferences import lattice

WEIGHTS = lattice(2, 21)


def on_a_curve(power, count=201):
    """Answers to one prompt on x^power + y^power = 1."""
    x = np.linspace(0, 1, count)
    return np.stack([x, (1 - x**power) ** (1 / power)], axis=1)[None]


@pytest.mark.parametrize("power", [1.2, 2.0, 4.0])
def test_curves_whose_middle_is_known(power):
    found = metrics.conflict(on_a_curve(power), WEIGHTS)
    middle = 0.5 ** (1 / power)  # both rewards alike, where the product is the largest as well
    assert found.balance == pytest.approx(middle, abs=0.01)
    area = metrics.hypervolume(found.front, [0.0, 0.0])
    assert found.single_share == pytest.approx(middle**2 / area, abs=0.01)


@pytest.mark.parametrize("prompts", [1, 3])
def test_on_a_straight_line_the_best_mixture_is_the_middle(prompts):
    x = np.linspace(0, 1, 5)
    line = np.stack([x, 1 - x], axis=1)
    found = metrics.conflict(np.stack([line] * prompts), lattice(2, 20))
    assert found.balance == pytest.approx(0.5)  # weighted sums find the two corners alone
    report = conflict_report(("a", "b"), np.stack([line] * prompts))
    assert "the best mixture has 50% of every reward's range" in list(conflict_lines(report))[-1]


def test_the_best_mixture_is_that_of_a_fine_search():
    rewards = np.random.default_rng(4).normal(size=(2, 6, 3))
    found = metrics.conflict(rewards, lattice(3, 7))
    shares = (found.front - found.front.min(0)) / np.ptp(found.front, axis=0)
    points = np.unique(shares, axis=0)
    mixtures = np.random.default_rng(5).dirichlet(np.full(len(points), 0.3), 4**9)
    searched = (mixtures @ points).min(axis=1).max()
    assert searched <= found.balance + 1e-9
    assert found.balance == pytest.approx(searched, abs=0.02)


def test_rewards_that_agree_do_not_conflict():
    random = np.random.default_rng(0)
    one = random.normal(size=(8, 16))
    found = metrics.conflict(np.stack([one, 3 * one + 1], axis=2), WEIGHTS)
    assert (found.single_share, found.balance) == (None, None)  # the front is one point
    chex.assert_trees_all_close(found.sd, np.array([one.std(), 3 * one.std()]))


def test_units_do_not_matter():
    rewards = np.random.default_rng(1).normal(size=(6, 8, 2))
    found = metrics.conflict(rewards, WEIGHTS)
    moved = metrics.conflict(rewards * 4.0 - 7.0, WEIGHTS)
    chex.assert_trees_all_close(found[2:], moved[2:], rtol=1e-9)


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"weights: found shape \(21, 2\), expected \[W, 3\]"):
        metrics.best_of_front(np.zeros((2, 2, 3)), WEIGHTS)


def test_what_is_said_of_each_kind():
    one = np.random.default_rng(2).normal(size=(8, 16))
    apart = np.random.default_rng(3).normal(size=(8, 16))

    def said(first, second):
        return list(conflict_lines(conflict_report(("a", "b"), np.stack([first, second], axis=2))))

    same = "the best answers for every preference have the same level of one of the rewards"
    assert said(one, one)[-1] == same
    assert said(one, 0.01 * apart)[1].startswith("b hardly varies")
    assert "of the hypervolume, and" in said(one, -one + 0.1 * apart)[-1]
