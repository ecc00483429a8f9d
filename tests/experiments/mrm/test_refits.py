"""Fits without each fold: what they predict of a user does not depend on the user's choices."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.data.preferences import Preferences
from jaxalign.data.splits import UserSplit
from jaxalign.experiments.mrm import MRMRunConfig
from jaxalign.experiments.mrm.adaptation import AdaptationRule, ReferencePairs
from jaxalign.experiments.mrm.config import method_of
from jaxalign.experiments.mrm.data import ExperimentData
from jaxalign.experiments.mrm.fits import fit_method, shared_effects
from jaxalign.experiments.mrm.refits import Refits
from jaxalign.mrm.config import AdaptationConfig, BayesConfig, SplitConfig
from jaxalign.mrm.support_query import cut_episodes, support_query, with_common_query

USERS, ROWS, ITEMS, FOLDS = 28, 12, 14, 3
RNG = np.random.default_rng(0)
FEATURES = jnp.asarray(RNG.standard_normal((ITEMS, 2)), jnp.float32)
CONFIG = MRMRunConfig(
    split=SplitConfig(min_support=2, min_query=2),
    adaptation=AdaptationConfig(
        folds=FOLDS, enough_users=2, significance=1.0, tolerated_harm=0.0, most_harmed=1.0
    ),
    bayes=BayesConfig(em_steps=6, pseudo_users=(100.0,), strengths=(2.0,), temperatures=(1.0,)),
)


def population():
    """Users whose choices follow effects of the items, which the features say nothing of."""
    effects = 2 * RNG.standard_normal(ITEMS)
    user = np.repeat(np.arange(USERS), ROWS)
    one = RNG.integers(0, ITEMS, len(user))
    two = (one + RNG.integers(1, ITEMS, len(user))) % ITEMS
    first = RNG.random(len(user)) < 1 / (1 + np.exp(effects[two] - effects[one]))
    arrays = (user, np.where(first, one, two), np.where(first, two, one), np.arange(len(user)))
    names = tuple(f"i{number}" for number in range(ITEMS))
    return Preferences(
        tuple(f"u{number:02d}" for number in range(USERS)),
        names,
        names,
        *(array.astype(np.int32) for array in arrays),
        prompt=np.full(len(user), -1, np.int32),
        tie=np.zeros(len(user), bool),
    )


def swapped(choices, users):
    """The same choices, those of some users made the other way round."""
    mine = np.isin(np.asarray(choices.users)[choices.user], users)
    both = choices.chosen, choices.rejected
    chosen, rejected = (np.where(mine, *pair) for pair in (both[::-1], both))
    return replace(choices, chosen=chosen, rejected=rejected)


def at_once(name, compute):
    return compute()


def experiment(choices):
    """Its data, users to validate on, and the fit of `bayes` with the effects of the items."""
    split = UserSplit(choices.users[:14], choices.users[14:24], choices.users[24:], 0)
    data = ExperimentData(choices, choices, np.zeros(ITEMS, int), FEATURES, FEATURES, split)
    validation = support_query(choices, cut_episodes(choices, CONFIG.split, split.validation))
    training = data.training(CONFIG.data)
    one_model = fit_method(method_of(CONFIG, "bt_items"), training, 1, at_once)
    shared = shared_effects(one_model, validation, 2)
    assert shared.effects.any()
    fit = fit_method(method_of(CONFIG, "bayes"), training, 1, at_once, shared=shared)
    return data, validation, fit


@pytest.fixture(scope="module")
def world():
    choices = population()
    return choices, *experiment(choices)


def test_no_prediction_rests_on_choices_of_its_user(world):
    """The choices of a fold's users are swapped, which the fits that predict them have not seen."""
    choices, data, validation, fit = world
    fit.choose(fit.losses(validation, np.arange(10) % 2), may_adapt=True)
    fit.candidates = [{**fit.candidates[0], "item_effects": 1.0}]
    refits = Refits(data, CONFIG, at_once)
    seen = np.array([*data.split.train, *data.split.validation])
    mine = refits.fold == 0
    assert mine.sum() == 8
    changed = replace(data, choices=swapped(choices, seen[mine]))
    some = np.arange(5)
    found = [
        one.unseen(fit).predict(with_common_query(one.users, some, some + 5), adapted=False)[0]
        for one in (refits, Refits(changed, CONFIG, at_once))
    ]
    np.testing.assert_array_equal(found[0][mine], found[1][mine])
    assert np.abs(found[0] - found[1])[~mine].min(axis=0).max() > 0.05
    # The effects, and not the features, are what predicts here.
    fit.candidates = [{**fit.candidates[0], "item_effects": 0.0}]
    bare = refits.unseen(fit).predict(with_common_query(refits.users, some, some + 5))
    assert np.abs(bare[0] - found[0]).max() > 0.2


def test_a_gate_is_chosen_on_all_users_where_validation_users_are_few(world):
    _, data, validation, fit = world
    reference = ReferencePairs(np.arange(6), np.arange(6) + 6)
    for enough, expected in ((10, "validation users"), (11, "training and validation users")):
        config = replace(CONFIG, adaptation=replace(CONFIG.adaptation, enough_for_gate=enough))
        rule = AdaptationRule(data, config, validation, at_once, lambda text: None)
        assert rule.decide(fit, common=False).adapts
        rule.set_gates(fit, reference)
        assert fit.gated_on.startswith(expected)
        assert len(fit.gates) == 1
        assert np.isfinite([fit.gates[0].support, fit.gates[0].pairs]).all()
