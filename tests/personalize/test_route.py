"""Routing: nobody below the reference, sizes as prices, floors, and how sure the choice is."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from jaxalign import palm, personalize
from jaxalign.errors import InputError
from jaxalign.personalize import Router, Target, Utility, known
from jaxalign.rewards.reward_scale import RewardIds, fit_scale

IDS = RewardIds(("kind", "brief", "harmless"), "a" * 64)
BETA = 1.0
RADIUS = 4.0


def candidates(prompts=12, count=8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(prompts, count, 3)) * np.array([1.0, 0.7, 0.5])


CONFIG = palm.PalmConfig(stop_eps=0.0, stop_delta=0.05, max_calls=40, size=5, refine=2)


@pytest.fixture(scope="module")
def world():
    with jax.enable_x64(True):
        oracle = palm.ClosedForm(candidates(), None, BETA / RADIUS, reward_range=None)
        portfolio = personalize.build_signed(oracle, CONFIG)
    return oracle, Router(portfolio, IDS, BETA, known([0.9, 0.2, 0.3], IDS))


def optimum(oracle, weights):
    return np.asarray(palm.sweep(oracle.rewards, oracle.log_ref, jnp.asarray(weights), BETA).values)


def values(router, weights, member):
    """f of a member by hand: <w, R> - beta KL in raw units."""
    members = router.portfolio.members
    scores = weights @ members.rewards.T - router.beta * members.kl
    return np.take_along_axis(scores, np.asarray(member)[..., None], -1)[..., 0], scores


weights_of_users = st.lists(
    st.lists(st.floats(-50, 50), min_size=3, max_size=3), min_size=1, max_size=8
)


@settings(max_examples=150, deadline=None)
@given(users=weights_of_users, scale=st.sampled_from([1e-6, 1e-2, 1.0]))
def test_no_user_of_known_weights_is_served_below_the_reference(world, users, scale):
    _, router = world
    weights = np.asarray(users) * scale
    with jax.enable_x64(True):
        routes = router.route(known(weights, IDS))
    value, scores = values(router, weights, routes.member)
    assert (value >= scores[:, 0] - 1e-12 * np.abs(scores).max()).all()
    np.testing.assert_allclose(value, scores.max(1), rtol=1e-12)
    np.testing.assert_allclose(value, routes.value, rtol=1e-9, atol=1e-12)


def test_the_guarantee_holds_for_everyone_in_the_ball(world, x64):
    oracle, router = world
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.full(3, 0.5), 3000) * rng.choice([-1, 1], (3000, 3))
    weights *= RADIUS * rng.random((3000, 1))
    routes = router.route(known(weights, IDS))
    regret = optimum(oracle, weights) - routes.value
    found = {g.who: g for g in personalize.guarantees(router)}
    assert regret.min() > -1e-9
    assert regret.max() <= found["signed"].optimum.additive + 1e-9
    likes = (weights >= 0).all(1)
    assert regret[likes].max() <= found["simplex"].optimum.additive + 1e-9
    assert found["simplex"].pool.additive <= found["signed"].pool.additive + 1e-9
    pool = weights @ router.portfolio.pool.rewards.T - BETA * router.portfolio.pool.kl
    over = np.maximum(pool.max(1) - routes.value, 0)
    assert over.max() <= found["signed"].pool.additive + 1e-9
    # The worst weights of all are worse than any that was drawn, and not by much.
    assert over.max() > 0.5 * found["signed"].pool.additive
    worst = found["signed"].pool.weight
    served = router.route(known(worst, IDS)).value
    best = (router.portfolio.pool.rewards @ worst - BETA * router.portfolio.pool.kl).max()
    assert best - served == pytest.approx(found["signed"].pool.additive, abs=1e-7)
    assert found["signed"].pool.additive == pytest.approx(
        RADIUS * router.portfolio.certificate.pool.additive.value, abs=1e-6
    )
    gain = optimum(oracle, weights) - weights @ router.portfolio.members.rewards[0]
    enough = gain >= router.portfolio.config.floor * np.abs(weights) @ router.portfolio.spread
    assert (regret[enough] / gain[enough]).max() <= found["signed"].optimum.share_lost + 1e-9


def test_size_sets_the_price_and_is_never_divided_out(world, x64):
    _, router = world
    weights = np.array([2.0, -1.0, 0.5])
    routes = router.route(known(np.stack([weights, 2 * weights, 1e-9 * weights]), IDS))
    np.testing.assert_allclose(routes.price, BETA / np.array([3.5, 7.0, 3.5e-9]))
    assert routes.beyond.tolist() == [False, True, False]
    # Hardly anything wanted: nothing is worth a nat of KL.
    assert routes.member[2] == 0
    assert routes.member[0] != 0
    assert router.route(known(np.zeros(3), IDS)).price == np.inf
    # A normalised vector is another user.
    assert routes.value[0] != pytest.approx(
        3.5 * router.route(known(weights / 3.5, IDS)).value, rel=1e-3
    )


def test_inferred_vectors_near_zero_get_the_populations_member(world, x64):
    _, router = world
    tiny = np.array([[-1e-3, 2e-3, 1e-3], [1e-4, -1e-3, 0.0]])
    inferred = Utility(tiny, np.broadcast_to(0.1 * np.eye(3), (2, 3, 3)), IDS)
    strong = known([3.0, 0.5, 0.0], IDS)
    router = replace(router, population=strong)
    assert router.population_member == router.route(strong).member != 0
    routes = router.route(inferred)
    assert routes.near_zero.all()
    assert (routes.member == router.population_member).all()
    # Known to be that small, they keep the reference.
    assert router.route(known(tiny, IDS)).member.tolist() == [0, 0]
    guarantee = next(g for g in personalize.guarantees(router) if g.who == "near_zero")
    _, scores = values(router, tiny, routes.member)
    below = scores[:, 0] - scores[:, router.population_member]
    assert 0 < below.max() <= guarantee.below_reference + 1e-12
    assert guarantee.below_reference < below.max() * 1.2


@settings(max_examples=100, deadline=None)
@given(users=weights_of_users, floor=st.floats(0, 2), turned=st.floats(0, 100))
def test_nobody_turns_a_protected_reward_round(world, users, floor, turned):
    _, router = world
    router = replace(router, protected={"harmless": floor})
    weights = np.asarray(users)
    hostile = weights.copy()
    weights[:, 2] = floor
    hostile[:, 2] = floor - turned
    with jax.enable_x64(True):
        np.testing.assert_array_equal(
            router.route(known(hostile, IDS)).member, router.route(known(weights, IDS)).member
        )
        served = router.weights(known(hostile, IDS))
    assert (served[:, 2] >= floor).all()
    np.testing.assert_array_equal(served[:, :2], hostile[:, :2])


def test_protected_users_have_a_guarantee_on_the_weights_routed_on(world, x64):
    oracle, router = world
    router = replace(router, protected={"harmless": 0.5})
    found = {g.who: g for g in personalize.guarantees(router)}
    assert list(found) == ["simplex", "signed", "near_zero", "protected", "beyond"]
    rng = np.random.default_rng(1)
    weights = rng.uniform(-4, 4, (20000, 3))
    weights[:, 2] = np.abs(weights[:, 2]) + 0.5
    weights = weights[np.abs(weights).sum(1) <= RADIUS]
    assert len(weights) > 500
    regret = optimum(oracle, weights) - router.route(known(weights, IDS)).value
    assert regret.max() <= found["protected"].optimum.additive + 1e-9
    # Fewer users, no worse a guarantee.
    assert found["protected"].pool.additive <= found["signed"].pool.additive + 1e-9
    assert found["protected"].as_dict()["pool"]["weight"][2] >= 0.5 - 1e-9


def test_probability_agrees_with_the_normal_distribution_for_two_members(world, x64):
    oracle, router = world
    two = replace(
        router.portfolio, members=palm.stack([oracle.reference, oracle(np.array([1.0, 0, 0]))])
    )
    router = replace(router, portfolio=two)
    rng = np.random.default_rng(0)
    mean, root = rng.normal(size=(70, 3)), rng.normal(size=(70, 3, 3))
    cov = root @ root.swapaxes(-1, -2)
    utility = Utility(mean, cov, IDS)
    member = router.route(utility).member
    draws = 4000
    found = router.confidence(utility, member, jax.random.key(0), draws)
    step = two.members.rewards[1] - two.members.rewards[0]
    margin = mean @ step - BETA * two.members.kl[1]
    spread = np.sqrt(np.einsum("i,uij,j->u", step, cov, step))
    exact = norm.cdf(np.where(member == 1, 1, -1) * margin / spread)
    assert (np.abs(found.probability - exact) < 4.5 * found.error).all()
    np.testing.assert_allclose(found.error, np.sqrt(exact * (1 - exact) / draws), atol=2e-3)
    assert (found.probability >= 0.5 - 4.5 * found.error).all()
    # One user alone, weights that are known, and the other member.
    one = Utility(mean[3], cov[3], IDS)
    alone = router.confidence(one, member[3], jax.random.key(0), draws)
    assert alone.probability == pytest.approx(found.probability[3])
    sure = router.confidence(known(mean[3], IDS), member[3], jax.random.key(1))
    assert sure.probability == 1
    other = router.confidence(one, 1 - member[3], jax.random.key(0), draws)
    assert other.probability + alone.probability == pytest.approx(1)


def test_draws_respect_the_floors(world, x64):
    _, router = world
    router = replace(router, protected={"kind": 3.0, "brief": 0.0, "harmless": 0.0})
    hostile = Utility(np.array([-9.0, -9.0, -9.0]), 0.01 * np.eye(3), IDS)
    routes = router.route(hostile)
    found = router.confidence(hostile, routes.member, jax.random.key(0))
    assert found.probability == 1


def test_a_simplex_portfolio_says_less(x64):
    oracle = palm.ClosedForm(candidates(), None, BETA / RADIUS, reward_range=None)
    portfolio = palm.build(oracle, replace(CONFIG, targets="corners"))
    router = Router(portfolio, IDS, BETA, known([0.9, 0.2, 0.3], IDS))
    found = {g.who: g for g in personalize.guarantees(router)}
    assert "exactly" in found["simplex"].words
    assert found["signed"].optimum is None
    weights = RADIUS * np.random.default_rng(0).dirichlet(np.ones(3), 2000)
    regret = optimum(oracle, weights) - router.route(known(weights, IDS)).value
    assert regret.max() <= found["simplex"].optimum.additive + 1e-9
    # Nor does it serve dislikes as well, but never below the reference.
    weights = -weights
    value = router.route(known(weights, IDS)).value
    assert (value >= weights @ portfolio.members.rewards[0] - 1e-12).all()


def test_what_is_no_utility_on_these_rewards_is_refused(world):
    _, router = world
    for wrong, message in (
        (Target(np.ones(3), IDS), "found a Target"),
        (np.ones(3), "found a ndarray"),
        (known(np.ones(3), RewardIds(IDS.names, "b" * 64)), "scale"),
        (known(np.ones(3), IDS, units="stars"), "'stars'"),
    ):
        with pytest.raises(InputError, match=message):
            router.route(wrong)
    with pytest.raises(InputError, match="at least 2 draws"):
        router.confidence(known(np.ones(3), IDS), np.array(0), jax.random.key(0), 1)
    with pytest.raises(InputError, match="expected members 0 to"):
        router.confidence(known(np.ones(3), IDS), np.array(77), jax.random.key(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta": 0.0}, "beta: found 0.0"),
        ({"near_zero": 1.0}, "near_zero"),
        ({"protected": {"kind": 4.0}}, "reach the radius"),
        ({"reward_ids": RewardIds(("a",), "")}, "found 1 names, expected 3"),
        ({"population": known(np.ones((2, 3)), IDS)}, "one vector"),
        ({"population": Target(np.ones(3), IDS)}, "found a Target"),
    ],
)
def test_senseless_routers_are_refused(world, change, message):
    with pytest.raises(InputError, match=message):
        replace(world[1], **change)


def test_a_portfolio_on_another_scale_is_refused(world):
    _, router = world
    standard = fit_scale(np.random.default_rng(0).normal(size=(9, 3)), IDS.names, quantiles=None)

    def routed(scale, ids=standard.ids):
        portfolio = replace(router.portfolio, scale=scale)
        return Router(portfolio, ids, BETA, known([0.9, 0.2, 0.3], ids))

    assert routed(standard).population_member == router.population_member
    with pytest.raises(InputError, match="portfolio: found the scale"):
        routed(standard, IDS)
    # Levels that `palm build` makes are six deviations wide: weights would count six times less.
    levels = replace(
        standard, low=standard.mean - 3 * standard.std, high=standard.mean + 3 * standard.std
    )
    assert levels.digest == standard.digest
    with pytest.raises(InputError, match="6 standard deviations wide, expected standardised"):
        routed(levels)
