"""The guarantee of the grid, the search and its state, on oracles of two kinds."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import Listed, Mixed

from jaxalign import palm
from jaxalign.errors import InputError
from jaxalign.palm.domain import extend

# Tolerances that keep the grid small in 5 dimensions.
EPS = {2: 0.2, 3: 0.3, 4: 0.5, 5: 0.9}
DELTA = {2: 0.1, 3: 0.2, 4: 0.4, 5: 0.9}


def sample(rng, size):
    flat = rng.dirichlet(np.ones(size), 1500)
    return np.concatenate([np.eye(size), flat, rng.dirichlet(np.full(size, 0.2), 1500)])


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_guarantee_on_random_worlds(size):
    @settings(max_examples=50, deadline=None)
    @given(st.integers(0, 10**6), st.sampled_from(["lazy", "full"]), st.booleans())
    def check(seed, mode, exact):
        rng = np.random.default_rng(seed)
        # Sharp policies of few strong rewards: what makes the worst case near the corners.
        values = rng.random((25, size)) ** rng.choice([1, 4])
        error = (0.0, 0.0) if exact else (0.05, 0.02)
        stop = (0.1, 0.05)
        config = palm.PalmConfig(
            eps=EPS[size],
            delta=DELTA[size],
            search="lazy" if size > 3 else mode,
            stop_eps=stop[0],
            stop_delta=stop[1],
        )
        oracle = Listed(values, error)
        state = palm.search(oracle, config)
        if not state.done:
            assert not exact
            return
        allowed = error if config.search == "full" else stop
        a, b = palm.guarantee(config.eps, config.delta, *allowed)
        weights = sample(rng, size)
        optimum = (weights @ values.T).max(axis=1)
        best = (weights @ state.policies.rewards.T).max(axis=1)
        assert (best >= a * optimum - b - 1e-9).all()
        # The upper bound is one, whatever the error: it knows of it.
        functions = palm.upper_facets(
            state.weights,
            (np.einsum("nR,nR->n", state.weights, state.policies.rewards) + error[1])
            / (1 - error[0]),
        )
        assert ((weights @ functions.T).max(axis=1) >= optimum - 1e-9).all()

    check()


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 4))
def test_certificate_holds_against_what_the_oracle_never_showed(seed, size):
    rng = np.random.default_rng(seed)
    values = rng.random((20, size))
    oracle = Listed(values, (0.05, 0.02))
    config = palm.PalmConfig(targets="corners", stop_eps=0.1, stop_delta=0.08, prune_eps=0.05)
    built = palm.build(oracle, config)
    weights = sample(rng, size)
    optimum = (weights @ values.T).max(axis=1)
    best = np.asarray(built.route(weights)[0])
    assert (optimum - best).max() <= built.certificate.optimum.additive.value + 1e-6
    pooled = (weights @ built.pool.rewards.T).max(axis=1)
    assert (pooled - best).max() <= built.certificate.pool.additive.value + 1e-6
    # The cover's own promise, over the whole simplex.
    beyond = built.selection.worst
    assert (best >= 0.95 * pooled - 0.005 - beyond - 1e-6).all()


def test_a_search_goes_on_from_its_file(tmp_path):
    values = np.random.default_rng(0).random((60, 3)) ** 2
    config = palm.PalmConfig(stop_eps=0.001, stop_delta=0.0)
    whole = palm.search(Listed(values), config)
    part = palm.search(
        Listed(values),
        palm.PalmConfig(stop_eps=0.001, stop_delta=0.0, max_calls=5),
        on_call=lambda state: state.save(tmp_path / "state.npz"),
    )
    assert len(part.weights) == 5
    assert not part.done
    (tmp_path / "half").write_bytes((tmp_path / "state.npz").read_bytes()[:100])
    with pytest.raises(InputError, match=r"half is damaged .* delete it and run again") as caught:
        palm.load_state(tmp_path / "half")
    with pytest.raises(InputError, match="no such file, expected the state of a search"):
        palm.load_state(tmp_path / "none")
    assert str(caught.value).count(str(tmp_path)) == 1
    oracle = Listed(values)
    rest = palm.search(oracle, config, palm.load_state(tmp_path / "state.npz"))
    assert oracle.calls == len(whole.weights) - 5 > 0
    np.testing.assert_array_equal(rest.weights, whole.weights)
    np.testing.assert_array_equal(rest.policies.payload["row"], whole.policies.payload["row"])
    np.testing.assert_array_equal(rest.gaps, whole.gaps)
    assert rest.done
    assert np.isnan(rest.gaps[:3]).all()


def test_a_search_of_few_calls_solves_the_corners():
    values = np.random.default_rng(2).random((8, 3))
    for search in ("full", "lazy"):
        config = palm.PalmConfig(eps=0.3, delta=0.3, search=search, max_calls=1, size=2)
        built = palm.build(Listed(values), config)
        assert (built.calls, built.search_done) == (3, False)
        assert np.isfinite(built.certificate.optimum.additive.value)


def test_full_and_lazy_agree_on_who_is_covered():
    values = np.random.default_rng(1).random((30, 3))
    lazy = palm.search(Listed(values), palm.PalmConfig(stop_eps=0.01, stop_delta=0.0))
    full = palm.search(Listed(values), palm.PalmConfig(search="full"))
    weights = palm.weight_grid(3, 0.15, 0.1)
    best = (weights @ full.policies.rewards.T).max(axis=1)
    assert ((weights @ lazy.policies.rewards.T).max(axis=1) >= 0.99 * best - 1e-9).all()
    assert len(lazy.weights) < 40 < len(full.weights)


def test_an_oracle_of_unknown_error_is_certified_relative_to_the_pool():
    built = palm.build(Mixed(), palm.PalmConfig(size=2))
    assert built.certificate.scope == "relative to the pool"
    assert built.certificate.optimum is None
    assert built.members.payload["mix"].shape == (len(built.members), 2)
    weights = np.random.default_rng(0).dirichlet(np.ones(2), 100)
    value, _ = built.route(weights)
    reference = weights @ Mixed().reference.rewards
    assert (np.asarray(value) >= reference - 1e-6).all()


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_grid_is_what_the_count_says(size):
    for eps, delta in ((0.3, 0.2), (0.9, 0.9), (0.15, 0.3)):
        grid = palm.weight_grid(size, eps, delta)
        assert len(grid) == palm.grid_size(size, eps, delta) == len(np.unique(grid, axis=0))
        np.testing.assert_allclose(grid.sum(axis=1), 1)
        assert (grid >= 0).all()
        top = math.ceil(math.log((size - 1) / delta) / math.log1p(eps)) if size > 1 else 0
        if size > 1:
            scaled = grid / grid.max(axis=1, keepdims=True)
            assert np.min(scaled[scaled > 0]) == pytest.approx((1 + eps) ** -max(top, 0))


class Broken(Listed):
    def __call__(self, weight):
        return palm.OraclePolicy(np.full(2, np.nan), 0.0, {"row": np.array(0)})


def test_refusals():
    with pytest.raises(InputError, match="found a grid of"):
        palm.weight_grid(6, 0.05, 0.01)
    with pytest.raises(InputError, match="eps: found 0"):
        palm.grid_size(2, 0.0, 0.1)
    with pytest.raises(InputError, match="delta: found"):
        palm.PalmConfig(delta=1.5)
    with pytest.raises(InputError, match="num_rewards"):
        palm.grid_size(0, 0.1, 0.1)
    with pytest.raises(InputError, match="no grid to solve"):
        palm.search(Listed(np.ones((2, 2))), palm.PalmConfig(weights="signed", search="full"))
    with pytest.raises(InputError, match="correct the oracle"):
        palm.search(Broken(np.ones((2, 2))), palm.PalmConfig())


@pytest.mark.parametrize("seed", [3, 11])
def test_sides_of_the_hull_are_no_facets(seed):
    """Rewards that are true or false make many values equal, and sides vertical but for rounding.

    A facet of 1e11 in the bound of the optimum hid its share lost, which was certified as 0.
    """
    rewards = (np.random.default_rng(seed).random((8, 5, 3)) < 0.5).astype(float)
    config = palm.PalmConfig(weights="signed", size=2, max_calls=60)
    found = palm.build(palm.ClosedForm(rewards, None, 0.1), config)
    assert np.abs(found.facets).max() < 1e3
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.full(3, 0.5), 2000) * rng.choice([-1, 1], (2000, 3))
    gains = np.exp(np.einsum("wR,XCR->wXC", weights, rewards) / 0.1)
    optimum = 0.1 * np.log(gains.mean(axis=2)).mean(axis=1)
    bound = (extend("signed", weights) @ found.facets.T).max(axis=1)
    assert (bound >= optimum - 1e-9).all()
    at_pool, at_best = found.certificate.pool, found.certificate.optimum
    for gap in ("additive", "additive_sd", "share_lost"):
        assert getattr(at_best, gap).value >= getattr(at_pool, gap).value - 1e-6
    assert at_best.share_lost.value > 0.5


@pytest.mark.parametrize("criterion", ["additive", "share"])
def test_a_portfolio_of_nobody_who_improves_has_no_member(tmp_path, criterion):
    """At a high price of KL nobody improves by the floor: the reference alone serves everybody."""
    rewards = np.random.default_rng(0).random((6, 4, 2))
    config = palm.PalmConfig(size=2, criterion=criterion, floor=0.9, max_calls=20)
    oracle = palm.ClosedForm(rewards, None, 50.0)
    found = palm.build(oracle, config)
    found.save(tmp_path)
    assert palm.load(tmp_path).certificate.pool.share_lost.value == 0
    expected, kl = oracle.outcomes(found.members.take(np.zeros(0, np.intp)))
    assert (expected.shape, kl.shape) == ((0, 6, 2), (0, 6))
