"""Methods on tables with ratings and implicit choices: what is read, mirrored and chosen."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.data.batching import Pairs
from jaxalign.data.preferences import RowDetails
from jaxalign.mrm import BayesConfig, Levels, feedback_posterior, make_method
from jaxalign.mrm.bayes import Prior
from jaxalign.mrm.feedback_population import FeedbackPopulation
from jaxalign.mrm.feedback_rows import (
    feedback_of,
    levels_of,
    population_arrays,
    population_from,
    prior_from,
    vectors_of,
)
from jaxalign.mrm.selection import predict, select
from jaxalign.mrm.support_query import (
    SupportQueryData,
    TrainingData,
    UserPairs,
    one_bucket,
    with_other_support,
    with_swapped_support,
)

ITEMS, SIZE, ROWS, QUERY = 40, 3, 12, 8
SETTINGS = BayesConfig(em_steps=6, pseudo_users=(10.0,), strengths=(1.0,), temperatures=(1.0,))


def people(users, seed, implicit_noise=False):
    """Items [I, D]; support of users who rate, choose and regenerate; and pairs to judge."""
    rng = np.random.default_rng(seed)
    items = rng.standard_normal((ITEMS, SIZE)).astype(np.float32)
    theta = 2 * rng.standard_normal((users, SIZE))
    one, two = rng.integers(ITEMS, size=(2, users, ROWS + QUERY)).astype(np.int32)
    two = np.where(one == two, (two + 1) % ITEMS, two).astype(np.int32)
    reward = np.einsum("UPD,UD->UP", items[one], theta)
    other = np.einsum("UPD,UD->UP", items[two], theta)
    kind = np.broadcast_to(np.arange(ROWS + QUERY) % 3, one.shape)
    implicit = (kind == 2) & (np.arange(ROWS + QUERY) < ROWS)
    margin = np.where(implicit & implicit_noise, -2 * (reward - other), reward - other)
    wins = rng.logistic(size=one.shape) < margin
    chosen, rejected = np.where(wins, one, two), np.where(wins, two, one)
    rating = (kind == 0)[:, :ROWS]
    up = reward[:, :ROWS] + rng.logistic(size=rating.shape) > 0
    support = Pairs(
        np.where(rating, one[:, :ROWS], chosen[:, :ROWS]),
        np.where(rating, one[:, :ROWS], rejected[:, :ROWS]),
        np.where(rating, 0, 1).astype(np.float32),
        np.broadcast_to(np.arange(ROWS), rating.shape),
    )
    details = RowDetails(
        np.where(rating, 0, -1).astype(np.int32), (rating & up).astype(np.int32),
        rating.astype(np.int32), np.ones(rating.shape, np.float32), implicit[:, :ROWS],
    )  # fmt: skip
    shape = (users, QUERY)
    query = Pairs(
        chosen[:, ROWS:], rejected[:, ROWS:], np.ones(shape, np.float32), np.zeros(shape, np.int32)
    )
    whole = UserPairs((np.arange(users),), (support,), (details,))
    return items, SupportQueryData(whole, one_bucket(query))


@pytest.fixture(scope="module")
def fitted():
    items, users = people(30, 0, implicit_noise=True)
    method = make_method("bayes", SETTINGS)
    features = jnp.asarray(items)
    data = TrainingData(features, features, users.support, scales=((-1.0, 1.0),))
    return method, method.fit(data, 0), features, users


def test_implicit_choices_count_as_validation_says(fitted):
    """Regenerations that contradict what users like get the weight 0, among those there are."""
    method, arrays, features, users = fitted
    assert set(arrays["populations"]) == {"0", "0.3", "1"}
    candidates = method.candidates(arrays)
    assert {one["implicit"] for one in candidates} == {0.0, 0.3, 1.0}
    assert {one["adapt"] for one in candidates} == {True, False}
    candidate, _ = select(method, arrays, features, users)
    assert (candidate["implicit"], candidate["adapt"]) == (0.0, True)
    kept, _ = method.save(arrays, candidate)
    assert set(kept["populations"]) == {"0"}
    chex.assert_trees_all_close(
        predict(method, kept, candidate, features, users),
        predict(method, arrays, candidate, features, users),
    )
    assert method.describe(arrays, candidate)["pseudo_users"] == 10.0


def test_the_predictions_are_those_of_the_posterior(fitted):
    method, arrays, features, users = fitted
    candidate = {"strength": 1.0, "temperature": 1.0, "adapt": True, "implicit": 0.3}
    found = predict(method, arrays, candidate, features, users)
    levels = Levels(ratings=(2,))
    prior = prior_from(arrays["populations"]["0.3"], levels, candidate)
    (pairs,), (details,), (query,) = users.support.parts, users.support.details, users.query.parts
    rows = feedback_of(levels, vectors_of(features, pairs, details), details, 0.3)
    posterior = feedback_posterior(prior, rows)
    inferred = method.infer_feedback(arrays, candidate, rows.vectors, details)
    chex.assert_trees_all_close(inferred.mean, posterior.mean, atol=1e-5)
    chex.assert_trees_all_close(inferred.cov, posterior.cov, atol=1e-5)
    d = features[query.chosen] - features[query.rejected]
    margin = jnp.einsum("UQD,UD->UQ", d, posterior.mean)
    assert (np.asarray(margin > 0) == (found > 0.5)).all()
    # Ratings are read: without them users are predicted otherwise.
    without = details._replace(weight=np.where(details.scale >= 0, 0, details.weight))
    some = SupportQueryData(UserPairs(users.support.members, (pairs,), (without,)), users.query)
    assert abs(predict(method, arrays, candidate, features, some) - found).max() > 0.01


def test_the_controls_turn_ratings_round_and_give_them_to_others(fitted):
    method, arrays, features, users = fitted
    swapped, other = with_swapped_support(users), with_other_support(users)
    (details,) = users.support.details
    assert (
        swapped.support.details[0].level == np.where(details.scale == 0, 1 - details.level, 0)
    ).all()
    chex.assert_trees_all_equal(other.support.details[0].level, np.roll(details.level, 1, axis=0))
    candidate = {"strength": 1.0, "temperature": 1.0, "adapt": True, "implicit": 0.0}
    found = [predict(method, arrays, candidate, features, u) for u in (users, swapped)]
    assert np.mean((found[0] > 0.5) != (found[1] > 0.5)) > 0.5


def test_a_method_of_choices_reads_none_of_the_ratings(fitted):
    _, _, features, users = fitted
    method = make_method("bt")
    data = TrainingData(features, features, users.support, scales=((-1.0, 1.0),))
    plain = UserPairs(users.support.members, users.support.parts)
    alone = TrainingData(features, features, plain)
    chex.assert_trees_all_equal(method.fit(data, 0), method.fit(alone, 0))


def test_a_temperature_leaves_the_probabilities_of_ratings():
    levels = Levels(ratings=(3,))
    weights = Prior(jnp.ones(1), jnp.eye(1))
    found = FeedbackPopulation(weights, jnp.array([-1.0, 1.0]), *map(jnp.float32, (0.7, 0.1, 0.4)))
    arrays = population_arrays(found)
    chex.assert_trees_all_equal(population_from(arrays), found)
    plain, warm = (
        prior_from(arrays, levels, {"strength": 1.0, "temperature": heat}) for heat in (1.0, 2.0)
    )
    assert warm.weights.mean.item() == 0.5
    # s (f - b): both f and b are halved, and s is doubled.
    spread = jnp.exp(warm.log_spread) / jnp.exp(plain.log_spread)
    assert spread.item() == pytest.approx(2, rel=1e-6)
    assert (spread * warm.level_sd).item() == pytest.approx(plain.level_sd.item(), rel=1e-6)
    chex.assert_trees_all_equal(warm.edges, plain.edges)


def test_levels_come_from_scales_and_strengths():
    details = RowDetails(
        *(np.array([[-1, -1, 0]]), np.array([[2, 9, 4]]), *(np.zeros((1, 3)),) * 3)
    )
    assert levels_of(((1, 5),), [details]) == Levels(strengths=5, ratings=(5,))
    # A tie, of weight 0 here, is a level where there is one that counts.
    tied = details._replace(level=np.array([[-1, 2, 4]]))
    assert levels_of(((1, 5),), [tied]) == Levels(strengths=2, ratings=(5,))
    tied = tied._replace(weight=np.array([[0.5, 1, 1]]))
    levels = levels_of(((1, 5),), [tied])
    assert levels == Levels(ties=True, strengths=2, ratings=(5,))
    for known, edges in ((levels, (4, 2)), (Levels(strengths=2, ratings=(5,)), (2, 1))):
        rows = feedback_of(known, jnp.zeros((1, 3, 2)), tied)
        assert (rows.lower[0, 0].item(), rows.upper[0, 0].item()) == edges
    details = details._replace(level=np.array([[0, 3, 4]]))
    assert levels_of(((1, 5),), [details]) == Levels(strengths=3, ratings=(5,))
    whole = details._replace(
        weight=np.array([[1, 1, 0.5]]), implicit=np.array([[True, False, False]])
    )
    rows = feedback_of(Levels(strengths=3, ratings=(5,)), jnp.zeros((1, 3, 2)), whole, 0.2)
    chex.assert_trees_all_close(rows.weight, np.float32([[0.2, 1, 0.5]]))
    assert rows.rating.tolist() == [[False, False, True]]
    assert rows.upper[0, 2].item() == 1
    assert jax.tree.map(lambda leaf: leaf.dtype, rows).lower == jnp.int32
