"""A user's taste in words says what the posterior says."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm

from jaxalign.personalize import Utility, describe_taste, known
from jaxalign.rewards import RewardIds

IDS = RewardIds(("kind", "brief", "formal", "warm"), "0" * 64)


def test_figures_are_those_of_the_normal_posterior():
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(4, 4))
    mean, cov = rng.normal(size=4), factor @ factor.T
    taste = describe_taste(Utility(mean, cov, IDS), 7, "ann", known(np.arange(4.0), IDS))
    assert {one.name for one in taste.rewards} == set(IDS.names)
    for one in taste.rewards:
        place = IDS.names.index(one.name)
        posterior = norm(mean[place], np.sqrt(cov[place, place]))
        np.testing.assert_allclose(
            [one.low, one.high, one.probability, one.chosen, one.population],
            [*posterior.interval(0.95), posterior.sf(0), expit(mean[place]), place],
            rtol=1e-6,
        )


def test_words_and_order_follow_certainty():
    utility = Utility([0.5, -2.0, 0.1, 3.0], np.diag([0.25, 0.25, 1.0, 4.0]), IDS)
    taste = describe_taste(utility, 1, "ann")
    assert [(one.name, one.certainty) for one in taste.rewards] == [
        ("brief", "clear"),
        ("warm", "likely"),
        ("kind", "likely"),
        ("formal", "open"),
    ]
    alone = replace(taste, alone=True).lines()[0]
    assert alone == (
        "user ann, from all other users: the run does not adapt to this user after 1 choice:"
    )
    assert taste.lines() == [
        "user ann, from 1 choice and all other users:",
        "- dislikes brief; chooses the answer with more of it in 12% (5% to 27%) of equal pairs",
        "- probably likes warm; chooses the answer with more of it in 95% (28% to 100%) of equal "
        "pairs",
        "- probably likes kind; chooses the answer with more of it in 62% (38% to 81%) of equal "
        "pairs",
        "- formal: no clear taste yet; chooses the answer with more of it in 52% (13% to 89%) of "
        "equal pairs",
    ]


@pytest.mark.parametrize(("weight", "certainty"), [(0.0, "open"), (1e-3, "clear")])
def test_a_known_weight_is_certain_unless_it_is_zero(weight, certainty):
    taste = describe_taste(known([weight, 1.0, 1.0, 1.0], IDS), 0)
    assert next(one for one in taste.rewards if one.name == "kind").certainty == certainty
    assert taste.lines()[0] == "a user without choices, from all other users:"
