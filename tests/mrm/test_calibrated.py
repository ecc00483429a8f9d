"""The temperature that validation users choose, and the effects that it divides too, in float64."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import mrm
from jaxalign.data.batching import Pairs
from jaxalign.mrm.adaptation import Gate, expected_gain
from jaxalign.mrm.calibrated import SCALES, TEMPERATURES, Calibrated, moved
from jaxalign.mrm.gate import left_alone
from jaxalign.mrm.known_items import known_effects
from jaxalign.mrm.reduce import identity
from jaxalign.mrm.selection import predict, select
from jaxalign.mrm.support_query import SupportQueryData, one_bucket

ITEMS, WIDTH, USERS = 12, 3, 400
RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=(ITEMS, WIDTH))
EFFECTS = RNG.normal(size=ITEMS)
THETA = np.array([[1.0, -0.5, 0.3], [0.2, 0.1, 0.0]])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def people(scale):
    """Choices between items, logistic in `scale` times the first model's margins."""
    rng = np.random.default_rng(1)
    first = rng.integers(0, ITEMS, (USERS, 10))
    second = (first + rng.integers(1, ITEMS, first.shape)) % ITEMS
    score = VALUES @ THETA[0] + EFFECTS
    wins = rng.random(first.shape) < sigmoid(scale * (score[first] - score[second]))
    chosen, rejected = np.where(wins, first, second), np.where(wins, second, first)
    pairs = Pairs(chosen, rejected, np.ones(first.shape), 0 * chosen)
    halves = [Pairs(*(array[:, side] for array in pairs)) for side in (slice(5), slice(5, 10))]
    return SupportQueryData(*map(one_bucket, halves))


def one_model():
    """`bt_items` with two models, of which the second has no effects."""
    fitted = {
        "theta": THETA,
        "effects": np.stack([EFFECTS, 0 * EFFECTS]),
        "grid": np.array([[1e-3, 1.0, WIDTH], [1e-2, 0.0, WIDTH]]),
    }
    return mrm.make_method("bt_items"), fitted


def margins(users):
    """Exact margins [2, U, Q] of both models of `one_model`."""
    query = users.query.padded
    scores = np.stack([VALUES @ THETA[0] + EFFECTS, VALUES @ THETA[1]])
    return scores[:, query.chosen] - scores[:, query.rejected]


@pytest.mark.parametrize("scale", [0.7, 1.4])
def test_validation_users_choose_the_temperature(scale, x64):
    method, fitted = one_model()
    users, table = people(scale), jnp.asarray(VALUES)
    exact = margins(users)
    losses = {
        (model, divisor): np.logaddexp(0, -exact[model] / divisor).mean()
        for model in (0, 1)
        for divisor in TEMPERATURES
    }
    best = min(losses, key=losses.get)
    candidate, loss = select(Calibrated(method), fitted, table, users)
    assert (candidate["model"], candidate["temperature"]) == best
    assert abs(np.log(scale * best[1])) < 0.13
    assert loss == pytest.approx(losses[best], abs=1e-12)
    assert loss < losses[0, 1.0] - 0.001
    found = predict(Calibrated(method), fitted, candidate, table, users)
    # What is kept of a user's probabilities is float32.
    np.testing.assert_allclose(found, sigmoid(exact[0] / best[1]), rtol=0, atol=1e-7)


def test_margins_are_moved_then_divided(x64):
    method, fitted = one_model()
    users = people(1.0)
    _, support, query, _ = next(iter(users.parts()))
    candidates = Calibrated(method).candidates(fitted)
    assert len(candidates) == 2 * len(TEMPERATURES)
    found = Calibrated(method).predict(fitted, candidates, jnp.asarray(VALUES), support, query)
    exact = margins(users)
    for candidate, probability in zip(candidates, found, strict=True):
        wanted = sigmoid(exact[candidate["model"]] / candidate["temperature"])
        np.testing.assert_allclose(probability, wanted, rtol=0, atol=1e-14)
    certain = np.array([0.0, 1.0])
    np.testing.assert_array_equal(moved(certain, np.ones(2), 3.0), certain)


def test_a_temperature_of_its_own_divides_the_effects_too():
    method = mrm.make_method("bayes")
    fitted = {"mean": np.zeros(WIDTH), "cov": np.zeros((WIDTH, WIDTH)), "pseudo_users": 0.0}
    candidates = Calibrated(method, EFFECTS).candidates(fitted)
    assert len(candidates) == len(SCALES) * len(method.candidates(fitted))
    for one in candidates:
        assert one["item_effects"] * one["temperature"] == pytest.approx(0.5, abs=0.5)
    fitted |= {"mean": THETA[0]}
    users = people(1.0)
    candidate = {"strength": 1.0, "temperature": 0.8, "adapt": True, "item_effects": 1 / 0.8}
    found = predict(Calibrated(method, EFFECTS), fitted, candidate, jnp.asarray(VALUES), users)
    np.testing.assert_allclose(found, sigmoid(margins(users)[0] / 0.8), rtol=0, atol=1e-6)


def saved_model(path):
    """A model for all users with effects, of another temperature than 1, saved and read again."""
    method, fitted = one_model()
    texts = [f"item {number}" for number in range(ITEMS)]
    candidate = {"model": 0, "ridge": 1e-3, "tau": 1.0, "directions": WIDTH, "temperature": 1.6}
    model = mrm.UserModel(
        method, fitted, candidate, np.zeros(WIDTH), identity(WIDTH),
        item_effects=known_effects(texts, texts, EFFECTS),
    )  # fmt: skip
    mrm.save(path, model)
    return mrm.load(path), texts


def test_a_saved_model_ranks_at_its_temperature(tmp_path):
    model, texts = saved_model(tmp_path)
    assert model.temperature == 1.6
    ranked = mrm.rank(model, None, texts[:2], VALUES[:2])
    margin = (VALUES @ THETA[0] + EFFECTS)[:2]
    wanted = sigmoid(np.array([margin[0] - margin[1], margin[1] - margin[0]]) / 1.6)
    for entry in ranked:
        assert entry.probability == pytest.approx(wanted[entry.position], abs=1e-6)


def test_the_gate_judges_support_at_the_temperature_with_the_effects():
    """A method without a posterior: users' weights beside the population's, on two pairs."""
    fitted = {"2": {"0": {"basis": np.eye(2, dtype=np.float32), "mean": np.zeros(2, np.float32)}}}
    candidate = {"rank": 2, "decay": 1e-3, "spread": 1.0, "temperature": 1.6}
    reference, effects = np.eye(2, dtype=np.float32), np.array([1.0, -2.0])
    weights = np.array([[0.4, -0.1], [2.0, 1.0]], np.float32)
    after, before = sigmoid((weights + effects) / 1.6), sigmoid(effects / 1.6)
    gains = expected_gain(after, np.broadcast_to(before, after.shape), np.ones(2))
    model = mrm.UserModel(
        mrm.make_method("lore"), fitted, candidate, np.zeros(2), identity(2),
        reference=reference, reference_effects=effects,
    )  # fmt: skip
    for level in (0.99, 1.01):
        for number in (0, 1):
            gated = replace(model, gate=Gate(True, level * float(gains[number]), 0.0))
            alone = left_alone(gated, weights, np.zeros((2, 1, 2), np.float32), None)
            assert alone[number] == (level > 1)
