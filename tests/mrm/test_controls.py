"""Controls: swapped support choices and another user's, on users who differ and who do not."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import mrm
from jaxalign.data.batching import Pairs
from jaxalign.metrics import users as judge
from jaxalign.mrm.calibrated import Calibrated
from jaxalign.mrm.config import BayesConfig
from jaxalign.mrm.selection import predict
from jaxalign.mrm.support_query import (
    SupportQueryData,
    TrainingData,
    one_bucket,
    with_other_support,
    with_swapped_support,
)

ITEMS, WIDTH, USERS, TRAINED = 40, 3, 240, 160
CANDIDATE = {"strength": 1.0, "temperature": 1.0, "adapt": True}
MASK = np.ones((USERS - TRAINED, 20), bool)


def population(spread):
    """Predictions for new users: from their own choices, none, swapped, and another user's."""
    rng = np.random.default_rng(2)
    items = rng.normal(size=(ITEMS, WIDTH)).astype(np.float32)
    common = rng.normal(size=ITEMS)
    taste = rng.normal(size=(USERS, WIDTH)) * spread
    first = rng.integers(0, ITEMS, (USERS, 40))
    second = (first + rng.integers(1, ITEMS, first.shape)) % ITEMS
    score = common + taste @ items.T
    margin = np.take_along_axis(score, first, 1) - np.take_along_axis(score, second, 1)
    wins = rng.random(margin.shape) < 1 / (1 + np.exp(-margin))
    chosen, rejected = np.where(wins, first, second), np.where(wins, second, first)
    pairs = Pairs(chosen, rejected, np.ones(margin.shape, np.float32), 0 * chosen)

    def part(users, rows):
        return one_bucket(Pairs(*(array[users, rows] for array in pairs)))

    table = jnp.asarray(items)
    data = TrainingData(table, table, part(slice(TRAINED), slice(40)))
    settings = BayesConfig(em_steps=30, pseudo_users=(10.0,))
    method = Calibrated(mrm.make_method("bayes", settings), common)
    fitted = method.fit(data, 0)
    new = slice(TRAINED, USERS)
    users = SupportQueryData(part(new, slice(20)), part(new, slice(20, 40)))
    candidate = {**CANDIDATE, "item_effects": 1.0}

    def probability(who, adapted=True):
        return predict(method, fitted, candidate, table, who, adapted)

    wrong = (with_swapped_support(users), with_other_support(users))
    return probability(users), probability(users, False), *map(probability, wrong)


@pytest.fixture(scope="module")
def predictions():
    return {spread: population(spread) for spread in (0.0, 1.5)}


def test_swapped_choices_flip_what_is_read_from_them(predictions):
    flipped = {
        spread: judge.flipped(found[2], found[0], MASK) for spread, found in predictions.items()
    }
    assert flipped[0.0] < 0.1
    assert flipped[1.5] > 0.4


def test_the_choices_of_another_user_do_not_help(predictions):
    for spread, (own, none, _, other) in predictions.items():
        accuracy = [judge.accuracy(found, MASK) for found in (own, none, other)]
        if spread:
            assert accuracy[0] > accuracy[1] + 0.05
            assert accuracy[2] < accuracy[1] - 0.02
        else:
            np.testing.assert_allclose(accuracy, accuracy[0], rtol=0, atol=0.02)
