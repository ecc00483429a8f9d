"""One model for all with item effects: the penalised fit, its offset in predictions, and saving."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import mrm
from jaxalign.data import Conversation, Features, from_columns
from jaxalign.data.batching import Pairs
from jaxalign.data.preferences import Preferences
from jaxalign.mrm.calibrated import Calibrated
from jaxalign.mrm.config import FeatureConfig
from jaxalign.mrm.item_effects import CountedPairs, count_pairs, fit_one_model
from jaxalign.mrm.item_ids import id_features
from jaxalign.mrm.known_items import effects_of, known_effects
from jaxalign.mrm.newton import bradley_terry
from jaxalign.mrm.reduce import identity
from jaxalign.mrm.selection import predict
from jaxalign.mrm.support_query import (
    SupportQueryData,
    UserPairs,
    one_bucket,
    with_other_support,
    with_swapped_support,
)

ITEMS, WIDTH, L2, TAU = 12, 3, 1e-2, 0.7


@pytest.fixture(scope="module")
def world():
    """Items, and 40 users with 10 choices each; the last item is never chosen from."""
    rng = np.random.default_rng(0)
    items = rng.normal(size=(ITEMS, WIDTH))
    scores = items @ np.array([1.0, -0.5, 0.0]) + rng.normal(size=ITEMS)
    first = rng.integers(0, ITEMS - 1, (40, 10))
    second = (first + rng.integers(1, ITEMS - 1, first.shape)) % (ITEMS - 1)
    wins = rng.random(first.shape) < 1 / (1 + np.exp(scores[second] - scores[first]))
    chosen, rejected = np.where(wins, first, second), np.where(wins, second, first)
    weight = np.ones(first.shape, np.float32)
    weight[:, 0] = 0.5
    return items, Pairs(chosen, rejected, weight, 0 * chosen)


def newton(items, pairs, l2, tau):
    """The same penalised logistic regression in NumPy, on a dense design of every choice."""
    eye = np.eye(len(items))
    chosen, rejected = pairs.chosen.ravel(), pairs.rejected.ravel()
    weight = pairs.weight.ravel().astype(np.float64)
    d = items[chosen] - items[rejected]
    ridge = l2 * np.sum(weight * np.sum(d * d, axis=1))
    design = np.hstack([d, tau * (eye[chosen] - eye[rejected])])
    penalty = np.diag(np.r_[np.full(items.shape[1], ridge), np.ones(len(items))])
    at = np.zeros(design.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-design @ at))
        gradient = penalty @ at - design.T @ (weight * (1 - p))
        hessian = penalty + (design.T * (weight * p * (1 - p))) @ design
        at = at - np.linalg.solve(hessian, gradient)
    return at[: items.shape[1]], tau * at[items.shape[1] :]


@pytest.mark.parametrize("tau", [0.0, TAU])
def test_the_fit_is_penalised_logistic_regression(world, tau, x64):
    items, pairs = world
    counted = count_pairs([pairs], ITEMS)
    found = jax.jit(fit_one_model)(jnp.asarray(items), counted, L2, tau)
    theta, effects = newton(items, pairs, L2, tau)
    np.testing.assert_allclose(found.theta, theta, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.effects, effects, rtol=0, atol=1e-9)
    assert found.effects[ITEMS - 1] == 0
    if not tau:
        d = jnp.asarray(items[pairs.chosen] - items[pairs.rejected])
        plain = bradley_terry(d, jnp.asarray(pairs.weight), L2)
        np.testing.assert_allclose(found.theta, plain, rtol=0, atol=1e-8)


def test_pairs_are_counted_whatever_their_order(world):
    _, pairs = world
    counted = count_pairs([pairs], ITEMS)
    assert isinstance(counted, CountedPairs)
    assert float(counted.wins.sum() + counted.losses.sum()) == pytest.approx(pairs.weight.sum())
    real = np.asarray(counted.wins + counted.losses) > 0
    assert (np.asarray(counted.first) < np.asarray(counted.second))[real].all()
    turned = count_pairs([pairs._replace(chosen=pairs.rejected, rejected=pairs.chosen)], ITEMS)
    np.testing.assert_array_equal(turned.wins, counted.losses)


def halves(pairs):
    """Five choices to adapt on and five to judge, in one bucket."""
    both = [Pairs(*(array[:, part] for array in pairs)) for part in (slice(5), slice(5, 10))]
    return SupportQueryData(*map(one_bucket, both))


def judged(items):
    """Hierarchical Bayes with a broad population, and what it has learned."""
    fitted = {"mean": jnp.zeros(WIDTH), "cov": 4 * jnp.eye(WIDTH), "pseudo_users": jnp.zeros(())}
    candidate = {"strength": 1.0, "temperature": 1.0, "adapt": True}
    return mrm.make_method("bayes"), fitted, candidate, jnp.asarray(items, jnp.float32)


def test_the_offset_moves_logits_of_known_items_alone(world):
    items, pairs = world
    method, fitted, candidate, table = judged(items)
    effects = np.zeros(ITEMS)
    effects[:3] = [1.0, -0.5, 0.25]
    users = halves(pairs)
    moved = Calibrated(method, effects)
    assert len(moved.candidates(fitted)) == 3 * len(method.candidates(fitted))
    bare = predict(method, fitted, candidate, table, users).astype(np.float64)
    one = predict(moved, fitted, {**candidate, "item_effects": 0.5}, table, users)
    query = users.query.padded
    offset = 0.5 * (effects[query.chosen] - effects[query.rejected])
    logit = np.log(bare / (1 - bare)) + offset
    np.testing.assert_allclose(one, 1 / (1 + np.exp(-logit)), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(one[offset == 0], bare[offset == 0].astype(np.float32))


def test_controls_tell_who_reads_the_choices(world):
    items, pairs = world
    method, fitted, candidate, table = judged(items)
    users = halves(pairs)

    def right(who, adapt=True):
        chosen = {**candidate, "adapt": adapt}
        return predict(method, fitted, chosen, table, who) > 0.5

    own = right(users)
    assert (right(with_swapped_support(users)) != own).mean() > 0.5
    assert (right(with_other_support(users)) != own).mean() > 0.1
    assert (right(with_swapped_support(users), adapt=False) == right(users, adapt=False)).all()
    np.testing.assert_array_equal(
        with_other_support(users).support.padded.chosen, np.roll(pairs.chosen[:, :5], 1, axis=0)
    )
    alone = Pairs(*(array[:1, :5] for array in pairs))
    buckets = UserPairs((np.array([0]),), (alone,))
    assert not with_other_support(SupportQueryData(buckets, buckets)).support.padded.weight.any()


def test_the_same_words_under_another_prompt_are_another_item():
    rows = [("p1", "Yes", "No"), ("p2", "No", "Yes")] * 2
    columns = {"user": list("uuvv")} | dict(
        zip(("prompt", "chosen", "rejected"), map(list, zip(*rows, strict=True)), strict=True)
    )
    items = from_columns(columns, "memory")
    known = known_effects(items.items, items.texts, np.array([1.0, -1.0, 0.8, -0.8]))
    named = effects_of(known, items.texts, items.items)
    assert named.tolist() == effects_of(known, items.texts).tolist()
    assert np.allclose(named, [1.0, -1.0, 0.8, -0.8])
    new = [Conversation(("p3", answer)) for answer in ("Yes", "No")]
    assert effects_of(known, new, ["Yes", "No"]).tolist() == [0, 0]


def test_a_saved_model_knows_its_items_by_text_and_by_id(tmp_path):
    known = known_effects(["1", "2"], ["first\n\nyes", "second"], np.array([2.0, 0.0]))
    assert known_effects(["1"], ["first"], np.zeros(1)) is None
    method, fitted, candidate, _ = judged(np.zeros((1, WIDTH)))
    model = mrm.UserModel(
        method, fitted, candidate, np.zeros(WIDTH), identity(WIDTH),
        FeatureConfig(path="given"), item_effects=known,
    )  # fmt: skip
    mrm.save(tmp_path, model)
    loaded = mrm.load(tmp_path)
    assert effects_of(loaded.item_effects, ["second", "first\n\nyes", "1"]).tolist() == [0, 2, 2]
    values = np.zeros((2, WIDTH))
    ranked = mrm.rank(loaded, None, ["no", "yes"], values, prompt="first")
    assert [entry.text for entry in ranked] == ["yes", "no"]
    assert ranked[0].probability == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-6)
    assert ranked[0].score - ranked[1].score == pytest.approx(2)
    # A new prompt makes them new items.
    assert mrm.rank(loaded, None, ["no", "yes"], values, prompt="new")[
        0
    ].probability == pytest.approx(0.5)


def test_many_items_are_known_by_effects_and_factors_of_choices():
    """Users of two opposite tastes, beside what all think of 300 items; the last is never shown."""
    rng = np.random.default_rng(1)
    count, shape = 300, (600, 40)
    common, taste = rng.normal(size=count), rng.normal(size=count)
    sign = np.where(np.arange(shape[0]) % 2, 1, -1)[:, None]
    first = rng.integers(0, count - 1, shape)
    second = (first + rng.integers(1, count - 1, shape)) % (count - 1)
    margin = (common[first] - common[second]) + 2 * sign * (taste[first] - taste[second])
    wins = rng.random(shape) < 1 / (1 + np.exp(-margin))
    chosen, rejected = np.where(wins, first, second), np.where(wins, second, first)
    found = id_features([Pairs(chosen, rejected, np.ones(shape), 0 * chosen)], count, factors=4)
    assert found.shape == (count, 5)
    assert not found[-1].any()
    assert np.corrcoef(found[:-1, 0], common[:-1])[0, 1] > 0.8
    assert abs(np.corrcoef(found[:-1, 1], taste[:-1])[0, 1]) > 0.9


def test_the_accuracy_of_an_adapted_user_counts_item_effects():
    ids = ("a", "b")
    numbers = np.arange(4, dtype=np.int32)
    chosen, none = np.zeros(4, np.int32), np.full(4, -1, np.int32)
    choices = Preferences(
        ("ann",), ids, ids, chosen, chosen, chosen + 1, numbers, none, np.zeros(4, bool)
    )
    fitted = {"theta": jnp.array([[0.0, 0.0]])}
    model = mrm.UserModel(
        mrm.make_method("bt"), fitted, {"ridge": 0}, np.zeros(2), identity(2),
        FeatureConfig(path="given"), item_effects=known_effects(ids, ids, np.array([1.0, 0.0])),
    )  # fmt: skip
    features = Features(ids, np.eye(2))
    assert mrm.adapt_users(model, choices, features).get("ann").accuracy == 1
    plain = dataclasses.replace(model, item_effects=None)
    assert mrm.adapt_users(plain, choices, features).get("ann").accuracy == 0.5


@pytest.mark.parametrize("users", [0, 1])
def test_the_ids_of_many_items_need_no_second_user(users):
    chosen = np.arange(2 * users, dtype=np.int32).reshape(users, 2)
    part = Pairs(chosen, chosen + 5, np.ones((users, 2), np.float32), 0 * chosen)
    found = id_features([part], 300)
    assert found.shape == (300, 1)
    assert np.isfinite(found).all()
    assert found.any() == bool(users)
