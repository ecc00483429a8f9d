"""Gains of answers over a plain one against closed forms and draws; which one is served."""

import numpy as np
import pytest
from few_states import posterior_users

from jaxalign import mrm
from jaxalign.errors import InputError
from jaxalign.mrm.reduce import identity

RNG = np.random.default_rng(0)
MEAN, ROOT = RNG.normal(size=3), RNG.normal(size=(3, 3)) * 0.6
COV, VALUES = ROOT @ ROOT.T, RNG.normal(size=(5, 3))
COST = np.array([0.2, 0.0, 0.5, 0.1, 0.3])


def test_mean_sd_and_probability_are_those_of_draws_of_the_weights():
    found = mrm.expected_gains(MEAN, COV, VALUES, COST)
    weights = MEAN + RNG.normal(size=(200_000, 3)) @ ROOT.T
    drawn = weights @ (VALUES - VALUES[0]).T - (COST - COST[0])
    np.testing.assert_allclose(found.mean, drawn.mean(0), atol=0.01)
    np.testing.assert_allclose(found.sd, drawn.std(0), atol=0.01)
    np.testing.assert_allclose(found.probability[1:], (drawn > 0).mean(0)[1:], atol=0.005)
    assert (found.mean[0], found.sd[0], found.probability[0]) == (0, 0, 0.5)


def test_known_weights_leave_no_doubt_and_no_posterior_states_none():
    known = mrm.expected_gains([1.0], [[0.0]], [[0.0], [2.0], [-1.0]])
    assert known.probability.tolist() == [0.5, 1.0, 0.0]
    unknown = mrm.expected_gains([1.0], None, [[0.0], [2.0], [-1.0]])
    assert unknown.mean.tolist() == [0.0, 2.0, -1.0]
    assert unknown.sd is None
    assert unknown.probability is None
    assert mrm.best_option(unknown, k=3, least_probability=1) == 1


def test_caution_prefers_what_is_sure_and_then_the_plain_answer():
    # 2 +- 2 against 1 +- 0.1 logits.
    gains = mrm.Gains(np.array([0.0, 2, 1]), np.array([0.0, 2, 0.1]), np.array([0.5, 0.84, 1]))
    assert [mrm.best_option(gains, k) for k in (0, 1, 20)] == [1, 2, 0]
    assert mrm.best_option(gains, least_probability=0.9) == 0
    with pytest.raises(InputError, match="k: found -1"):
        mrm.best_option(gains, k=-1)


def test_best_of_is_the_answer_of_the_largest_posterior_mean():
    fitted = {"mean": MEAN, "cov": COV}
    method = mrm.make_method("bayes")
    users = posterior_users("", COV, ["ann"], -3 * MEAN[None], 0.1 * COV[None])
    model = mrm.UserModel(
        method,
        fitted,
        {"strength": 1.0, "temperature": 1.0, "adapt": True},
        np.zeros(3),
        identity(3),
        users=users,
    )
    texts = [f"answer {number}" for number in range(5)]
    liked, disliked = (int(place(VALUES @ MEAN)) for place in (np.argmax, np.argmin))
    everybody, ann = (mrm.best_of(model, user, texts, VALUES) for user in (None, "ann"))
    assert (everybody.position, everybody.text) == (liked, texts[liked])
    assert ann.position == disliked
    beyond = VALUES - VALUES[0]
    np.testing.assert_allclose(ann.gains.mean, -3 * beyond @ MEAN, rtol=1e-5, atol=1e-6)
    variance = 0.1 * np.einsum("ij,jk,ik->i", beyond, COV, beyond)
    np.testing.assert_allclose(ann.gains.sd, np.sqrt(variance), rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="'bob' has not been adapted"):
        mrm.best_of(model, "bob", texts, VALUES)
    with pytest.raises(InputError, match="found none"):
        mrm.best_of(model, None, [])
