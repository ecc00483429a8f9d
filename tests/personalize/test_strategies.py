"""Members and preferences that answer for a user: values, price of KL, and refusals."""

from dataclasses import replace
from types import SimpleNamespace

import adapted_pair as tiny
import jax
import numpy as np
import pytest

from jaxalign import palm
from jaxalign.errors import InputError
from jaxalign.moc.value_table import ValueTable
from jaxalign.models.sampling import Sampling
from jaxalign.personalize import (
    BestOfAnswers,
    KnownAnswers,
    LargestGain,
    PersonalAnswer,
    Serving,
    ServingRule,
    UserRequest,
    Utility,
    conditioned_strategy,
    member_strategy,
)
from jaxalign.personalize.policies import Soups, answer_as
from jaxalign.personalize.strategies.policies import NEAR_ZERO, typical_size
from jaxalign.rewards.reward_scale import RewardIds, RewardScale

GREEDY = Sampling(max_tokens=5, temperature=0.0, suppressed_ids=(tiny.UNKNOWN,))
KEY = jax.random.key(5)
# A level is 6 and 3 standard deviations wide.
SCALE = RewardScale(tiny.NAMES, [0.2, 0.5], [0.1, 0.2], [-0.1, 0.2], [0.5, 0.8])
IDS = SCALE.ids
POPULATION = Utility([1.0, 0.5], np.diag([1.0, 4.0]), IDS)
USERS = {"early": (3.0, 0.0), "brief": (0.0, 3.0), "neither": (-3.0, -3.0)}


@pytest.fixture(scope="module")
def serving():
    rewards = np.random.default_rng(0).random((6, 5, 2))
    oracle = palm.ClosedForm(rewards, None, beta=0.1)
    config = palm.PalmConfig(size=2, targets="corners")
    portfolio = palm.build(oracle, config, scale=SCALE)
    return Serving(portfolio, Soups(tiny.adapters()), tiny.language_model())


def requests(cov=0.01):
    return [
        UserRequest(prompt, np.array(mean), cov * np.eye(2))
        for prompt, mean in zip(tiny.PROMPTS, USERS.values(), strict=False)
    ]


def test_the_member_of_the_largest_gain_answers(serving):
    strategy = member_strategy(serving, POPULATION, GREEDY, batch_size=3)
    members = serving.portfolio.members
    # From the definitions: levels are (raw - low) / (high - low), weights are per sd of raw.
    width = np.array([6.0, 3.0])
    level_weights = np.array([list(w) for w in USERS.values()]) * width
    draws = np.random.default_rng(1).normal([1.0, 0.5], [1.0, 2.0], (400_000, 2)) * width
    beta = 0.1 * np.abs(draws).sum(1).mean()
    value = level_weights @ members.rewards.T - beta * members.kl
    gain = value - value[:, :1]
    best = gain.argmax(1)
    assert best[2] == 0  # who dislikes both is answered by the reference
    assert len(set(best)) == 3
    found = strategy.answer(requests(), ServingRule(), KEY)
    np.testing.assert_allclose([a.gain for a in found], gain.max(1), atol=0.01)
    assert [a.strategy for a in found] == ["member", "member", "plain"]
    alone = answer_as(
        serving.model, serving.policies, members.payload["weight"], best, tiny.PROMPTS[:3],
        GREEDY, KEY, batch_size=3,
    )  # fmt: skip
    assert [a.text for a in found] == [completion.text for completion in alone]
    assert found[0].choice == f"member {best[0]}"
    beyond = (members.rewards[best[0]] - members.rewards[0]) * width
    assert found[0].sd == pytest.approx(0.1 * np.sqrt((beyond**2).sum()))
    unsure = strategy.answer(requests(cov=1e4), ServingRule(least_probability=0.9), KEY)
    assert {a.strategy for a in unsure} == {"plain"}


def test_a_user_without_a_direction_is_served_as_the_population(serving):
    strategy = member_strategy(serving, POPULATION, GREEDY, batch_size=3)
    tiny_taste = np.array([0.0, NEAR_ZERO * typical_size(POPULATION) * 0.99])
    asked = [UserRequest(p, mean, np.eye(2)) for p, mean in zip(
        tiny.PROMPTS, (tiny_taste, POPULATION.mean, -tiny_taste), strict=False
    )]  # fmt: skip
    choices = [a.choice for a in strategy.answer(asked, ServingRule(least_probability=0), KEY)]
    assert choices[0] == choices[1] == choices[2] != "the reference, member 0"
    # Their own gain is near 0 and uncertain: a rule that asks for certainty serves the reference.
    sure = [a.choice for a in strategy.answer(asked, ServingRule(least_probability=0.6), KEY)]
    assert sure[0] == sure[2] == "the reference, member 0"


def test_users_on_another_scale_or_other_rewards_are_refused(serving):
    other = replace(SCALE, std=SCALE.std * 2).ids
    for ids in (other, RewardIds(("late", "brief"), IDS.digest)):
        with pytest.raises(InputError, match="portfolio: found"):
            member_strategy(serving, replace(POPULATION, reward_ids=ids), GREEDY)
    unknown = Serving(replace(serving.portfolio, scale=None), serving.policies, serving.model)
    with pytest.raises(InputError, match="does not state the scale"):
        member_strategy(unknown, POPULATION, GREEDY)


def test_a_conditioned_policy_is_given_the_best_preference_or_none():
    from test_conditioned import GREEDY as greedy
    from test_conditioned import policy

    made = policy("tags")
    ids = made.scale.ids
    preferences = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    achieved = np.array([[1.0, -0.5], [0.4, 0.4], [-0.5, 1.0]])
    table = ValueTable(preferences, achieved, np.ones(3), ids.names, ids.digest)
    population = replace(POPULATION, reward_ids=ids)
    strategy = conditioned_strategy(made, table, population, greedy, batch_size=3)
    found = strategy.answer(requests(), ServingRule(), KEY)
    assert [a.choice for a in found] == ["early=1, brief=0", "early=0, brief=1", "the reference"]
    np.testing.assert_allclose([a.gain for a in found], [3.0, 3.0, 0.0])
    assert found[0].sd == pytest.approx(0.1 * np.sqrt(1.25))
    with pytest.raises(InputError, match="policy: found the scale"):
        conditioned_strategy(made, table, POPULATION, greedy)
    with pytest.raises(InputError, match="value table: found the scale"):
        conditioned_strategy(made, replace(table, digest="0" * 64), population, greedy)


def test_the_strategy_of_the_largest_expected_gain_answers(serving):
    member = member_strategy(serving, POPULATION, GREEDY, batch_size=3)
    gains = [a.gain for a in member.answer(requests(), ServingRule(), KEY)]
    assert gains[0] > 1

    def drawing(worth):
        """Two draws, of which the second gains `worth` for who wants early letters."""
        return BestOfAnswers(
            KnownAnswers("memory", dict.fromkeys(tiny.PROMPTS, ("plain", "drawn"))),
            lambda prompts, answers: np.array([[0.0, 0.0], [worth, 0.0]] * (len(answers) // 2)),
        )

    for worth, expected in ((0.1, "member"), (100.0, "best_of")):
        found = LargestGain((drawing(worth), member)).answer(requests(), ServingRule(), KEY)
        assert found[0].strategy == expected
        assert found[2].strategy == "plain"
        assert not found[2].held_back
    # The member is not likely enough to be better, and no draw is expected to be.
    strategies = (drawing(-1.0), member)
    sure = ServingRule(least_probability=0.99)
    held = LargestGain(strategies).answer(requests(cov=1e4), sure, KEY)[0]
    assert (held.strategy, held.choice, held.held_back) == ("plain", "answer 1 of 2", True)


def test_caution_is_taken_off_before_strategies_are_compared():
    def answering(name, gain, sd):
        found = PersonalAnswer(name, name, name, gain, sd, 0.9)
        return SimpleNamespace(answer=lambda *_: [found])

    both = LargestGain((answering("unsure", 3.0, 2.0), answering("sure", 2.0, 0.1)))
    for caution, expected in ((0.0, "unsure"), (1.0, "sure")):
        (found,) = both.answer([], ServingRule(caution), KEY)
        assert found.strategy == expected
