"""Worst gaps against enumeration and sampling; bounds against linear programs."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.spatial import ConvexHull, QhullError

from jaxalign import palm
from jaxalign.errors import InputError
from jaxalign.palm import bounds, gaps
from jaxalign.palm.gaps import worst_ratio

few = settings(max_examples=25, deadline=None)


def gap_at(weights, pool, members, kind="additive", eps=0.0, delta=0.0):
    best, mine = (weights @ pool.T).max(1), (weights @ members.T).max(1)
    if kind == "multiplicative":
        return 1 - mine / best
    return (1 - eps) * best - delta - mine if kind == "mixed" else best - mine


def enumerated(pool, members):
    """Every point of the simplex where as many ties and faces meet as it takes to fix one."""
    size = pool.shape[1]
    planes = [a - b for a, b in itertools.combinations(members, 2)] + list(np.eye(size))
    points = []
    for chosen in itertools.combinations(planes, size - 1):
        system = np.stack([*chosen, np.ones(size)])
        if abs(np.linalg.det(system)) > 1e-12:
            points.append(np.linalg.solve(system, np.eye(size)[-1]))
    points = np.array([p for p in points if (p > -1e-12).all()])
    return points


@few
@given(st.integers(0, 10**6), st.integers(2, 4), st.integers(1, 4))
def test_additive_and_mixed_equal_enumeration(seed, size, count):
    rng = np.random.default_rng(seed)
    pool = rng.random((12, size))
    members = pool[:count]
    points = enumerated(pool, members)
    sample = rng.dirichlet(np.ones(size), 4000)
    for kind, eps, delta in (("additive", 0, 0), ("mixed", 0.1, 0.02)):
        gap, weight = palm.worst_gap(pool, members, kind, eps, delta)
        exact = gap_at(points, pool, members, kind, eps, delta).max()
        assert abs(gap - exact) < 1e-9
        assert gap >= gap_at(sample, pool, members, kind, eps, delta).max() - 1e-12
        assert abs(gap_at(weight[None], pool, members, kind, eps, delta)[0] - gap) < 1e-9


@few
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_ratios_are_never_below_sampling(seed, size):
    rng = np.random.default_rng(seed)
    pool = rng.random((20, size))
    reference = 0.4 * rng.random(size)
    members = np.concatenate([pool[:3], reference[None]])
    sample = rng.dirichlet(np.ones(size), 4000)
    gap, weight = palm.worst_gap(pool, members, "multiplicative")
    assert gap >= gap_at(sample, pool, members, "multiplicative").max() - 1e-12
    assert abs(gap_at(weight[None], pool, members, "multiplicative")[0] - gap) < 1e-8

    found = palm.report(pool, members, reference, np.full(size, 0.3), np.eye(size), floor=0.1)
    best, mine = (sample @ pool.T).max(1), (sample @ members.T).max(1)
    could = best - sample @ reference
    asked = could >= 0.03
    assert found.share_lost.value >= ((best - mine)[asked] / could[asked]).max() - 1e-12
    w = found.share_lost.weight
    at = (pool @ w).max() - (members @ w).max()
    assert abs(at / ((pool @ w).max() - reference @ w) - found.share_lost.value) < 1e-7
    assert abs(found.additive_sd.value - found.additive.value / 0.3) < 1e-9


@few
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_the_signed_ball(seed, size):
    rng = np.random.default_rng(seed)
    policies = np.column_stack([rng.random((15, size)), -rng.random(15)])
    policies[0, -1] = 0
    corners = palm.corners("signed", size)
    gap, weight = palm.worst_gap(policies, policies[:3], corners=corners)
    assert weight[-1] == pytest.approx(1)
    assert np.abs(weight[:-1]).sum() <= 1 + 1e-12
    raw = rng.dirichlet(np.ones(size + 1), 4000)[:, :size] * rng.choice([-1, 1], (4000, size))
    sample = np.column_stack([raw, np.ones(4000)])
    assert gap >= gap_at(sample, policies, policies[:3]).max() - 1e-12
    assert abs(gap_at(weight[None], policies, policies[:3])[0] - gap) < 1e-9


@few
@given(st.integers(0, 10**6), st.integers(1, 4), st.sampled_from(["simplex", "signed"]))
def test_upper_bound_is_the_linear_program(seed, size, kind):
    rng = np.random.default_rng(seed)
    corners = palm.corners(kind, size)
    mixtures = rng.dirichlet(np.ones(len(corners)), 12)
    solved = np.concatenate([corners, mixtures @ corners])
    values = (solved @ rng.normal(size=(30, solved.shape[1])).T).max(axis=1)  # convex
    functions = palm.upper_facets(solved, values)
    for weight in rng.dirichlet(np.ones(len(corners)), 8) @ corners:
        program = linprog(values, A_eq=solved.T, b_eq=weight)
        assert abs(program.fun - (functions @ weight).max()) < 1e-7
    np.testing.assert_allclose((solved @ functions.T).max(1), values, atol=1e-9)


@few
@given(st.integers(0, 10**6), st.integers(2, 4), st.sampled_from(["simplex", "signed"]))
def test_gaps_peak_at_tie_points(seed, size, kind):
    rng = np.random.default_rng(seed)
    corners = palm.corners(kind, size)
    pool = rng.random((20, corners.shape[1]))
    points = palm.tie_points(pool[:6], corners)
    gap = palm.worst_gap(pool, pool[:6], corners=corners).value
    assert abs(gap_at(points, pool, pool[:6]).max() - gap) < 1e-8


def test_shared_policies_and_single_rewards():
    pool = np.array([[0.2], [0.7]])
    assert palm.worst_gap(pool, pool[:1]).value == pytest.approx(0.5)
    assert palm.worst_gap(pool, pool).value == 0
    assert palm.worst_gap(pool, pool[:1], "multiplicative").value == pytest.approx(5 / 7)


def test_the_share_is_asked_above_the_floor_only():
    corner = np.eye(2)
    pool, reference = np.array([[0.5, 0.01], [0.5, 0.0]]), np.zeros((1, 2))
    # At (0, 1) all of .01 is lost; asked for from .1 on it is 1 / 11 of a mixture's .1.
    members = np.concatenate([pool[1:], reference])
    gap = worst_ratio(pool, members, pool - reference, corner, 0.1 * np.ones(2))
    at = 0.01 * gap.weight[1] / (pool[0] @ gap.weight)
    assert pool[0] @ gap.weight == pytest.approx(0.1)
    assert gap.value == pytest.approx(at)
    assert worst_ratio(pool, members, pool, corner).value == pytest.approx(1)


def test_refusals():
    pool = np.array([[0.5, -0.5], [-0.5, 0.5]])
    with pytest.raises(InputError, match="expected 0 or more for a multiplicative gap"):
        palm.worst_gap(pool, pool[:1], "multiplicative")
    with pytest.raises(InputError, match="no policy of positive value"):
        palm.worst_gap(np.zeros((1, 2)), np.zeros((1, 2)), "multiplicative")
    with pytest.raises(InputError, match="NaN"):
        palm.worst_gap(np.full((1, 2), np.nan), pool)
    with pytest.raises(InputError, match="members: found shape"):
        palm.worst_gap(pool, pool[:, :1])


def test_a_hull_that_fails_is_joggled_to_a_bound(monkeypatch):
    rng = np.random.default_rng(3)
    solved = np.concatenate([np.eye(4), rng.dirichlet(np.ones(4), 20)])
    policies = rng.random((30, 4))
    values = np.max(solved @ policies.T, axis=1)
    exact = palm.upper_facets(solved, values)
    asked = []

    def hull(points, qhull_options=""):
        asked.append(qhull_options)
        if qhull_options == "Qt":
            raise bounds.QhullError("QH6271 wide merge")
        return ConvexHull(points, qhull_options=qhull_options)

    monkeypatch.setattr(bounds, "ConvexHull", hull)
    joggled = palm.upper_facets(solved, values)
    assert asked == ["Qt", "QJ"]
    everywhere = rng.dirichlet(np.ones(4), 2000)
    optimum = np.max(everywhere @ policies.T, axis=1)
    upper = np.max(everywhere @ joggled.T, axis=1)
    assert (upper >= optimum - 1e-12).all()
    np.testing.assert_allclose(upper, np.max(everywhere @ exact.T, axis=1), atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_a_joggled_hull_has_no_facets_above_its_points(seed, monkeypatch):
    """With 5 signed rewards and 160 calls, slivers put the gap at 24 where it was 0.04."""

    def joggled(points, qhull_options=""):
        if qhull_options == "Qt":
            raise QhullError("too degenerate")
        return ConvexHull(points, qhull_options=qhull_options)

    rng = np.random.default_rng(seed)
    domain, policies = palm.corners("signed", 3), rng.random((12, 4)) - 0.5
    solved = np.unique(palm.tie_points(policies, domain).round(12), axis=0)
    values = (solved @ policies.T).max(axis=1)
    monkeypatch.setattr(bounds, "ConvexHull", joggled)
    found = palm.upper_facets(solved, values)
    assert (solved @ found.T - values[:, None]).max() < 1e-8
    users = rng.dirichlet(np.ones(6), 2000) @ domain
    bound, optimum = ((users @ each.T).max(axis=1) for each in (found, policies))
    np.testing.assert_allclose(bound, optimum, atol=1e-8)


def test_a_policy_of_huge_values_leaves_the_others_as_they_are():
    """Each program is measured in its own unit; one that fails keeps the bound that is known."""
    rng = np.random.default_rng(0)
    pool, members = rng.random((6, 3)), rng.random((2, 3))
    huge = np.array([[0.9, -1e11, -1e11]])  # the best at a corner alone
    alone, beside = (
        worst_ratio(one, members, np.ones_like(one), np.eye(3))
        for one in (np.concatenate([pool, [[0.9, 0.0, 0.0]]]), np.concatenate([pool, huge]))
    )
    assert beside.value == pytest.approx(alone.value, abs=1e-9)


def test_what_no_program_answers_is_not_certified_as_nothing(monkeypatch):
    failed = SimpleNamespace(status=4)
    monkeypatch.setattr(gaps, "linprog", lambda *_, **__: failed)
    pool, members = np.array([[1.0, 0.2], [0.1, 0.8]]), np.zeros((1, 2))
    gap = worst_ratio(pool, members, np.ones_like(pool), np.eye(2))
    assert gap.value == 1.0  # the least that any mixture allows
    assert gaps.share_of(gap._replace(value=np.inf)).value == 1.0
    assert gaps.share_of(gap._replace(value=-np.inf)).value == 0.0
