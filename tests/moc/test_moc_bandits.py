"""The library's rules on both bandits, 8 seeds: what each is there to reach."""

import numpy as np
import pytest

from benchmarks.bandits import BANDITS, attainable, figures, solve
from jaxalign.metrics.pareto import hypervolume
from jaxalign.moc.combination import CombineConfig


@pytest.fixture(scope="module")
def solved():
    """Figures of a rule and form on a bandit; each is trained once."""
    known = {}

    def get(bandit, rule, form, **shape):
        case = (bandit, rule, form, *shape.items())
        if case not in known:
            known[case] = figures(bandit, solve(bandit, CombineConfig(rule, form), **shape))
        return known[case]

    return get


def test_attainable_fronts():
    assert hypervolume(attainable("segment"), [0, 0]) == pytest.approx(0.5, abs=1e-3)
    # A square of .8, and a triangle of height .8 and base .2 on two of its sides.
    assert hypervolume(attainable("both"), [0, 0]) == pytest.approx(0.8, abs=1e-3)
    corner = figures("both", np.tile(np.array(BANDITS["both"][2]), (1, 11, 1)))
    assert corner["slack"]["mean"] == pytest.approx(0.6)
    assert corner["nondominated"]["mean"] == 1  # equal points do not dominate each other


@pytest.mark.parametrize("rule", ["blend", "gate"])
def test_distance_reaches_a_linear_front(solved, rule):
    reached = solved("segment", rule, "distance")
    assert reached["mse"]["most"] <= 0.003
    assert reached["hypervolume"]["least"] >= 0.445
    assert reached["slack"]["most"] <= 0.005


def test_plain_min_norm_stalls(solved):
    reached = solved("segment", "minnorm", "distance")
    assert reached["mse"]["least"] >= 0.05
    assert reached["hypervolume"]["most"] <= 0.35
    # On the front, but nowhere near its ends.
    assert reached["slack"]["most"] <= 0.01


def test_default_serves_both(solved):
    default = CombineConfig()
    reached = solved("both", default.rule, default.form)
    assert reached["hypervolume"]["least"] >= 0.72
    assert reached["nondominated"]["least"] == 1
    assert reached["slack"]["most"] <= 0.1


@pytest.mark.slow
def test_distance_ends_below_the_action_that_serves_both(solved):
    assert solved("both", "blend", "distance")["slack"]["least"] >= 0.15


@pytest.mark.slow
def test_small_groups_need_the_mean_of_the_others(solved):
    shape = {"rows": 8, "groups": 8, "whitened": True}
    own, others = (
        solved("segment", "blend", "ratio", others=value, **shape) for value in (False, True)
    )
    assert own["hypervolume"]["most"] <= 0.44
    assert own["mse"]["mean"] > 0.003
    assert others["hypervolume"]["least"] >= 0.445
    assert others["mse"]["most"] <= 0.003
    assert solved("both", "blend", "ratio", others=True, **shape)["hypervolume"]["least"] >= 0.72
