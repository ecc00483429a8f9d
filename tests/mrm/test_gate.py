"""The gate at work: whom adapt leaves alone, and on which answers ranking does."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from test_adapting import ITEMS, WIDTH, bayes_model, choices_of, table_of

from jaxalign import mrm
from jaxalign.mrm.adaptation import Gate, expected_gain
from jaxalign.mrm.adapted_users import own_weights
from jaxalign.mrm.gate import count_left_alone, left_alone
from jaxalign.mrm.serving import win_probability

VALUES = table_of().values
PAIRS = np.random.default_rng(3).integers(0, ITEMS, (2, 50))
REFERENCE = (VALUES[PAIRS[0]] - VALUES[PAIRS[1]]).astype(np.float32)
USERS = [f"u{number}" for number in range(12)]
TEXTS = [f"answer {number}" for number in range(5)]


@pytest.fixture(scope="module")
def open_model():
    """A model that adapts to everybody, with 12 users adapted on 7 choices each."""
    model = bayes_model()
    users = mrm.adapt_users(model, choices_of(USERS, 7), table_of(), accuracy=False)
    return replace(model, users=users)


def gains(model):
    """The gain that each user is expected to have on the reference pairs, from full matrices."""
    found = []
    for user in USERS:
        mean, cov = mrm.weights_of(model, mrm.user_state(model, user))
        both = [
            mrm.choice_probability(*map(jnp.asarray, moments), jnp.asarray(REFERENCE))
            for moments in ((mean, cov.astype(np.float32)), model.population())
        ]
        found.append(expected_gain(*both, np.ones(len(REFERENCE))))
    return np.array(found)


def test_adapt_leaves_alone_those_whose_support_says_too_little(open_model):
    expected = gains(open_model)
    level = float(np.median(expected))
    model = replace(open_model, gate=Gate(True, level, 0.0), reference=REFERENCE)
    users = mrm.adapt_users(model, choices_of(USERS, 7), table_of(), accuracy=False)
    model = replace(model, users=users)
    common = model.population()[0]
    for user, gain in zip(USERS, expected, strict=True):
        state = mrm.user_state(model, user)
        served, cov = mrm.weights_of(model, state)
        before = mrm.weights_of(open_model, mrm.user_state(open_model, user))
        if gain < level:
            np.testing.assert_array_equal(served, common)
            np.testing.assert_array_equal(cov, model.population()[1])
        else:
            np.testing.assert_allclose(served, before[0], rtol=1e-5)
        # Nothing is lost: the user's own posterior follows from what is kept.
        for own, full in zip(own_weights(model, state), before, strict=True):
            np.testing.assert_allclose(own, full, rtol=1e-4, atol=1e-5)
    assert count_left_alone(model, users) == (expected < level).sum() == 6
    assert count_left_alone(open_model, open_model.users) == 0


def test_ranking_looks_at_the_very_answers(open_model):
    """Nobody's weights are gated here, and still a list that is all the same to a user is."""
    base = VALUES[:5]
    state = mrm.user_state(open_model, "u0")
    wins = [
        win_probability(*moments, base)
        for moments in (mrm.weights_of(open_model, state), open_model.population())
    ]
    upper = np.triu_indices(5, 1)
    gain = float(expected_gain(wins[0][upper], wins[1][upper], np.ones(10)))
    alone = replace(open_model, gate=Gate(True, 0.0, gain * 1.01))
    served = replace(open_model, gate=Gate(True, 0.0, gain * 0.99))
    own, common = (mrm.rank(open_model, user, TEXTS, base) for user in ("u0", None))
    assert own != common
    assert mrm.rank(alone, "u0", TEXTS, base) == common
    assert mrm.rank(served, "u0", TEXTS, base) == own
    best = [mrm.best_of(model, "u0", TEXTS, base) for model in (open_model, served, alone)]
    nobodys = mrm.best_of(open_model, None, TEXTS, base)
    np.testing.assert_array_equal(best[0].gains.mean, best[1].gains.mean)
    np.testing.assert_array_equal(best[2].gains.mean, nobodys.gains.mean)


def test_a_model_whose_test_failed_adapts_to_nobody(open_model, tmp_path):
    model = replace(open_model, gate=Gate(adapts=False), reference=REFERENCE, users=None)
    mrm.save(tmp_path, model)
    loaded = mrm.load(tmp_path)
    assert loaded.gate == Gate(adapts=False)
    np.testing.assert_array_equal(loaded.reference, REFERENCE)
    users = mrm.adapt_users(loaded, choices_of(USERS[:3], 7), table_of(), accuracy=False)
    loaded = replace(loaded, users=users)
    assert count_left_alone(loaded, users) == 3
    ranked = [mrm.rank(loaded, user, TEXTS, VALUES[:5]) for user in ("u0", None)]
    assert ranked[0] == ranked[1]
    assert not left_alone(open_model, np.zeros((2, WIDTH)), np.zeros((2, 1, WIDTH)), None).any()
