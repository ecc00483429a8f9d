"""A portfolio from candidates: built, routed, certified on other prompts, saved and loaded."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import palm
from jaxalign.errors import InputError
from jaxalign.palm.portfolio import FILE
from jaxalign.rewards.reward_scale import RewardScale
from jaxalign.runs.artifact import save_arrays


def candidates(seed=0, prompts=24, count=12, size=3):
    """Rewards of unequal spread, so that methods differ."""
    rng = np.random.default_rng(seed)
    raw = rng.normal(size=(prompts, count, size)) * (0.6 ** np.arange(size))
    return 1 / (1 + np.exp(-raw))


@pytest.fixture(scope="module")
def built():
    with jax.enable_x64(True):
        oracle = palm.ClosedForm(candidates(), None, 0.1)
        return oracle, palm.build(oracle, palm.PalmConfig(size=4))


def users(kind, count, size, seed=0):
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(size), count)
    return weights if kind == "simplex" else weights * rng.choice([-1, 1], weights.shape)


def test_routing_finds_the_best_member_and_never_less_than_the_reference(built, x64):
    oracle, portfolio = built
    weights = users("simplex", 5000, 3)
    value, index = portfolio.route(weights)
    scores = weights @ portfolio.values.T
    np.testing.assert_array_equal(index, scores.argmax(1))
    np.testing.assert_allclose(value, scores.max(1), rtol=1e-12)
    optimum = palm.sweep(oracle.rewards, oracle.log_ref, jnp.asarray(weights), oracle.beta).values
    regret = np.asarray(optimum) - np.asarray(value)
    assert regret.min() > -1e-9
    assert regret.max() <= portfolio.certificate.optimum.additive.value + 1e-9
    reference = weights @ np.asarray(oracle.reference.rewards)
    assert (np.asarray(value) >= reference - 1e-12).all()


def test_disliking_users_are_covered_by_a_signed_portfolio(x64):
    oracle = palm.ClosedForm(candidates(size=2), None, 0.1)
    config = palm.PalmConfig(weights="signed", size=5, stop_delta=0.02, refine=3)
    signed = palm.build(oracle, config)
    weights = users("signed", 2000, 2) * np.random.default_rng(1).random((2000, 1))
    value = np.asarray(signed.route(weights)[0])
    optimum = palm.sweep(oracle.rewards, oracle.log_ref, jnp.asarray(weights), oracle.beta).values
    regret = np.asarray(optimum) - value
    assert regret.min() > -1e-9
    assert regret.max() <= signed.certificate.optimum.additive.value + 1e-9
    assert (value >= weights @ np.asarray(oracle.reference.rewards) - 1e-12).all()


def test_usage(built):
    _, portfolio = built
    weights = users("simplex", 1000, 3)
    counts = np.bincount(portfolio.route(weights)[1], minlength=5)
    usage, share = palm.usage(counts), counts / 1000
    np.testing.assert_allclose(usage.share, share)
    assert usage.unused == tuple(np.flatnonzero(share == 0))
    assert usage.perplexity == pytest.approx(np.exp(-sum(p * np.log(p) for p in share if p)))
    assert palm.usage([0, 1]).perplexity == 1
    with pytest.raises(InputError, match="found no user"):
        palm.usage([0, 0])


def test_saved_and_loaded(built, tmp_path):
    _, portfolio = built
    portfolio.save(tmp_path / "portfolio")
    loaded = palm.load(tmp_path / "portfolio")
    assert loaded.config == portfolio.config
    assert loaded.selection == portfolio.selection
    now, then = loaded.certificate.as_dict(), portfolio.certificate.as_dict()
    chex.assert_trees_all_close(now["pool"], then["pool"], atol=1e-9)
    chex.assert_trees_all_close(now["optimum"], then["optimum"], atol=1e-9)
    weights = users("simplex", 50, 3)
    np.testing.assert_array_equal(loaded.route(weights)[1], portfolio.route(weights)[1])


def test_what_is_damaged_or_of_another_kind_is_refused(built, tmp_path):
    _, portfolio = built
    portfolio.save(tmp_path / "whole")
    path = tmp_path / "whole" / FILE
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="digest does not fit its content"):
        palm.load(path.parent)
    save_arrays(path, {"solved": portfolio.solved})
    with pytest.raises(InputError, match=r"no artifact of jaxalign.*; expected a portfolio"):
        palm.load(path.parent)
    with pytest.raises(InputError, match=r"no such file.*; expected a portfolio.*palm build"):
        palm.load(tmp_path)


def test_the_certificate_is_computed_from_the_members(built, tmp_path):
    """A portfolio cannot state more than its members are worth."""
    _, portfolio = built
    nothing = replace(portfolio.certificate.pool, additive=palm.Gap(0.0, np.ones(3)))
    boast = replace(portfolio, certificate=replace(portfolio.certificate, pool=nothing))
    boast.save(tmp_path)
    found = palm.load(tmp_path).certificate.pool.additive.value
    assert found == pytest.approx(portfolio.certificate.pool.additive.value, abs=1e-9)
    assert found > 0


def test_the_scale_is_kept(built, tmp_path):
    _, portfolio = built
    scale = RewardScale(("a", "b", "c"), [0.1] * 3, [1.0] * 3, [-3.0] * 3, [1 / 3] * 3)
    replace(portfolio, scale=scale, chosen_on=("p", "q")).save(tmp_path)
    loaded = palm.load(tmp_path)
    assert (loaded.scale, loaded.chosen_on) == (scale, ("p", "q"))
    assert loaded.scale.digest == scale.digest


def test_other_prompts(built, x64):
    _, portfolio = built
    other = palm.ClosedForm(candidates(seed=9, prompts=40), None, 0.1)
    found = portfolio.held_out(other, draws=300)
    assert found.additive_low <= found.report.additive.value <= found.additive_high
    assert found.additive_sd_low <= found.report.additive_sd.value <= found.additive_sd_high
    weights = users("simplex", 2000, 3)
    values = [
        palm.coordinates("simplex", *(x.mean(1) for x in other.outcomes(p)), 0.1)
        for p in (portfolio.pool, portfolio.members)
    ]
    seen = (weights @ values[0].T).max(1) - (weights @ values[1].T).max(1)
    assert seen.max() <= found.report.additive.value + 1e-12
    assert found.prompts == 40
    again = portfolio.held_out(other, draws=300)
    assert (found.additive_low, found.additive_high) == (again.additive_low, again.additive_high)


def test_the_band_holds_as_often_as_it_says():
    """The true gap of a portfolio lies in the band of draws of prompts."""
    rng = np.random.default_rng(0)
    truth, inside = rng.random((6, 2)), 0
    exact = palm.worst_gap(truth, truth[:2]).value
    for seed in range(40):
        noise = 0.3 * rng.normal(size=(6, 80, 2)) + 0.3 * rng.normal(size=(1, 80, 2))
        values = truth[:, None] + noise
        found = palm.held_out(values, values[:2], np.ones(2), np.eye(2), 200, seed=seed)
        inside += found.additive_low <= exact <= found.additive_high
        # The band comes from contrasts on the same prompts: what prompts share costs no width.
        assert found.additive_high - found.additive_low < 0.6
    assert inside >= 36


def test_baselines_have_the_same_budget_and_are_not_better(built, x64):
    oracle, portfolio = built
    found = palm.search(oracle, portfolio.config)
    for kind in ("uniform", "random", "k_center"):
        other = palm.baseline(oracle, portfolio.config, found, kind, 4)
        assert len(other.members) == len(portfolio.members) == 5
        ours = portfolio.certificate.optimum.additive_sd.value
        assert ours <= other.certificate.optimum.additive_sd.value + 0.02
    with pytest.raises(InputError, match="expected uniform"):
        palm.baseline_weights("best", 2, 3)


@pytest.mark.parametrize("kind", ["uniform", "random", "k_center"])
@pytest.mark.parametrize("weights", ["simplex", "signed"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_baseline_weights_lie_in_the_domain(kind, weights, size):
    for count in (1, 3, 7):
        found = palm.baseline_weights(kind, size, count, weights)
        assert found.shape == (count, size)
        palm.check_weights(weights, found, size)


def test_uniform_weights_in_two_rewards_are_evenly_spaced():
    found = palm.baseline_weights("uniform", 2, 5)
    np.testing.assert_allclose(np.sort(found[:, 0]), [0, 0.25, 0.5, 0.75, 1])


def test_one_trace_of_the_sweep_for_any_weights(x64):
    oracle = palm.ClosedForm(candidates(seed=3, prompts=5), None, 0.1)
    counted = jax.jit(chex.assert_max_traces(palm.sweep, n=1))
    for seed in range(3):
        weights = jnp.asarray(users("simplex", 16, 3, seed))
        found = counted(oracle.rewards, oracle.log_ref, weights, 0.1)
    log_probs = jax.vmap(palm.tilted_log_probs, (None, None, 0, None))(
        oracle.rewards, oracle.log_ref, weights, 0.1
    )
    expected = jnp.einsum("WXC,XCR->WR", jnp.exp(log_probs), oracle.rewards) / 5
    chex.assert_trees_all_close(found.expected, expected, rtol=1e-12)
    chex.assert_trees_all_close(
        found.values, jnp.sum(weights * found.expected, 1) - 0.1 * found.kl, rtol=1e-12
    )


def test_float32_is_carried_as_an_error_of_the_oracle():
    oracle = palm.ClosedForm(candidates().astype(np.float32), None, 0.1)
    assert oracle.error == (0.0, pytest.approx(1e-5 * candidates().max(), rel=1e-6))
    built = palm.build(oracle, palm.PalmConfig(size=3))
    with jax.enable_x64(True):
        exact = palm.ClosedForm(np.asarray(oracle.rewards, np.float64), None, 0.1)
        weights = users("simplex", 500, 3)
        optimum = palm.sweep(exact.rewards, exact.log_ref, jnp.asarray(weights), 0.1).values
        regret = np.asarray(optimum) - (weights @ built.values.T).max(1)
    assert regret.max() <= built.certificate.optimum.additive.value + 1e-6


def test_bad_candidates_are_refused():
    rewards = candidates()
    log_ref = np.full(rewards.shape[:2], -np.log(12.0))

    def refused(match, rewards=rewards, log_ref=log_ref, beta=0.1, **options):
        with pytest.raises(InputError, match=match):
            palm.ClosedForm(rewards, log_ref, beta, **options)

    refused("candidate 0, warmth: found", 2 * rewards + 1, names=("warmth", "a", "b"))
    refused("NaN", np.where(rewards == rewards[0, 0, 0], np.nan, rewards))
    constant = rewards.copy()
    constant[..., 1] = 0.5
    refused("reward 1: found the same", constant)
    refused("at least 2 candidates", rewards[:, :1], log_ref[:, :1])
    refused("sum to", log_ref=log_ref - 1)
    refused("log_ref: found shape", log_ref=log_ref[:-1])
    refused("beta", beta=0.0)
    absent = log_ref.copy()
    absent[4] = -np.inf
    absent[4, 0] = 0
    refused("prompt 4: found 1 candidates", log_ref=absent)


def test_weights_off_the_domain_are_refused(built):
    _, portfolio = built
    for wrong in ([[0.5, 0.6, 0.1]], [[1.2, -0.2, 0.0]], [[np.nan, 0.5, 0.5]]):
        with pytest.raises(InputError, match="row 1"):
            portfolio.route(np.concatenate([[[0.2, 0.3, 0.5]], wrong]))
    with pytest.raises(InputError, match="found shape"):
        portfolio.route(np.ones((3, 2)) / 2)
    with pytest.raises(InputError, match="at most 1"):
        palm.check_weights("signed", [[0.6, -0.6]], 2)
