"""The simulated people: what they like and how they choose."""

import numpy as np
import pytest

from jaxalign.demo import people
from jaxalign.demo.people import Population, choose, draw_people

TRAITS = np.random.default_rng(3).normal(size=(16, 5))
PAIRS = np.stack(np.triu_indices(16, 1), axis=1)


def uniform(users=400, **changes):
    """People who all like the first trait only."""
    weights = np.tile([2.0, 0, 0, 0, 0], (users, 1))
    return Population("test", weights, np.zeros(users, int), **changes)


def test_people_have_likes_and_dislikes_in_every_trait_and_several_types():
    crowd = draw_people("friendly", 600, 0)
    assert crowd.weights.shape == (600, 5)
    assert ((crowd.weights < -0.3).mean(0) > 0.1).all()
    assert ((crowd.weights > 0.3).mean(0) > 0.1).all()
    shares = np.bincount(crowd.types, minlength=len(people.TYPES)) / 600
    np.testing.assert_allclose(shares, [share for share, _ in people.TYPES.values()], atol=0.06)
    assert sum(share for share, _ in people.TYPES.values()) == pytest.approx(1)


def test_only_the_misspecified_population_leaves_the_models_class():
    friendly, other = (draw_people(name, 50, 1) for name in ("friendly", "misspecified"))
    np.testing.assert_array_equal(friendly.weights, other.weights)
    assert (friendly.saturating, friendly.lapses, friendly.bias) == (False, 0, 0)
    assert (other.saturating, other.lapses, other.bias) == (True, 0.05, people.POSITION_BIAS)


def test_friendly_choices_follow_bradley_terry_with_noise():
    crowd = uniform()
    made = choose(crowd, np.arange(400), TRAITS, PAIRS, 60, np.random.default_rng(0))
    margin = 2 * (TRAITS[made.chosen, 0] - TRAITS[made.rejected, 0])
    np.testing.assert_allclose(made.probability, 1 / (1 + np.exp(-margin)), rtol=1e-12)
    # Which of the two is the better one is known; how often it wins is what the model says.
    better = np.maximum(made.probability, 1 - made.probability)
    assert (made.probability > 0.5).mean() == pytest.approx(better.mean(), abs=0.01)
    assert made.first.mean() == pytest.approx(0.5, abs=0.01)


def test_pairs_of_a_user_are_distinct_and_from_the_pool():
    made = choose(uniform(3), np.arange(3), TRAITS, PAIRS, 500, np.random.default_rng(0))
    assert made.chosen.shape == (3, 120)
    for one, other in zip(made.chosen, made.rejected, strict=True):
        assert len({tuple(sorted(pair)) for pair in zip(one, other, strict=True)}) == 120


def test_lapses_choose_at_random_however_clear_the_case():
    sure = np.array([50.0, -50.0])
    np.testing.assert_allclose(uniform(1, lapses=0.05).choice(sure), [0.975, 0.025])
    np.testing.assert_allclose(uniform(1).choice(sure), [1, 0], atol=1e-12)


def test_position_bias_favours_what_is_shown_first_and_cancels_over_both_orders():
    crowd = uniform(bias=0.5)
    made = choose(crowd, np.arange(400), TRAITS, PAIRS, 60, np.random.default_rng(0))
    assert made.first.mean() > 0.53
    margin = np.linspace(-3, 3, 13)
    np.testing.assert_allclose(crowd.preference(margin) + crowd.preference(-margin), 1)
    assert crowd.preference(0.0) == pytest.approx(0.5)
    assert crowd.choice(np.array(0.0)) > 0.6


def test_saturating_taste_is_tanh_of_the_traits():
    worth = uniform(1, saturating=True).utility(np.diag([1.0, 9, 9, 9, 9])[:1])
    np.testing.assert_allclose(worth, [[2 * people.SATURATION * np.tanh(1.0)]])
    far = uniform(1, saturating=True).utility(np.array([[4.0, 0, 0, 0, 0], [8.0, 0, 0, 0, 0]]))
    assert far[0, 1] - far[0, 0] < 0.01
