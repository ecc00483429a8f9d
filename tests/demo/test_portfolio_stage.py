"""The demo's second stage: routed to few policies, judged against everyone's own optimum."""

from dataclasses import replace

import numpy as np
import pytest

from jaxalign.demo import answers as A
from jaxalign.demo import portfolio as T
from jaxalign.demo import study as S
from jaxalign.demo.people import draw_people
from jaxalign.personalize import known


def some_answers():
    """Twelve prompts, six answers each, one prompt with fewer."""
    rng = np.random.default_rng(0)
    prompt = np.repeat(np.arange(12), 6)[:-2]
    answers = A.DemoAnswers({}, (), ("?",) * 12, ("",) * len(prompt), prompt)
    raw = rng.normal(size=(len(prompt), 5))
    answers.__dict__["_raw"] = raw  # measured traits, in place of those of texts
    return answers


@pytest.fixture(scope="module")
def stage():
    answers, plan = some_answers(), S.design(60, 12, 0)
    people = draw_people("friendly", 60, 0)
    world = S.DemoData(people, None, {}, {})
    rng = np.random.default_rng(1)
    true = people.weights[plan.test]
    guess = true + rng.normal(size=true.shape)
    cov = np.broadcast_to(np.eye(5), (*true.shape, 5))
    study = S.Study({}, None, {}, guess, cov, None, None)
    config = replace(T.CONFIG, max_calls=20, size=4, refine=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(T, "CONFIG", config)
        return answers, plan, T.run_stage(answers, plan, world, study, 0)


def test_candidates_are_padded_with_answers_that_nobody_gives():
    answers = some_answers()
    rewards, log_ref = T.candidates(answers, np.array([3, 11]))
    assert rewards.shape == (2, 6, 5)
    np.testing.assert_allclose(rewards[1, :4], answers.traits[answers.prompt == 11], rtol=1e-6)
    assert (log_ref[1, 4:] == -np.inf).all()
    np.testing.assert_allclose(np.exp(log_ref).sum(1), 1, rtol=1e-6)


def test_regret_is_that_of_float64_by_hand(stage):
    answers, plan, found = stage
    solved = found.router.portfolio.members.payload["weight"] * T.RADIUS
    for name, prompts in (("known", plan.known), ("held_out", plan.held_out)):
        rows = [answers.traits[answers.prompt == p].astype(np.float64) for p in prompts]

        def tilted(weight, rows=rows):
            """Expected traits and KL of the optimum for one weight, mean over prompts."""
            means, kls = [], []
            for traits in rows:
                p = np.exp(traits @ weight / T.BETA - (traits @ weight / T.BETA).max())
                p /= p.sum()
                means.append(p @ traits)
                kls.append(np.sum(p * np.log(np.maximum(p, 1e-300) * len(p))))
            return np.mean(means, axis=0), np.mean(kls)

        members = [tilted(weight) for weight in solved]
        lost = []
        for weight, member in zip(found.weights, found.member, strict=True):
            (best, price), (served, paid) = tilted(weight), members[member]
            lost.append(weight @ (best - served) - T.BETA * (price - paid))
        report = found.report["true_weights"][name]
        assert report["mean_regret"] == pytest.approx(np.mean(lost), abs=1e-4)
        assert report["worst_regret"] == pytest.approx(np.max(lost), abs=1e-4)


def test_nobody_of_known_taste_is_below_the_reference_and_guesses_cost(stage):
    _, _, found = stage
    true, guessed = found.report["true_weights"], found.report["inferred"]
    assert true["known"]["below_reference"] == 0
    assert found.report["disliking_share"] > 0.9
    assert guessed["known"]["share_lost"] > true["known"]["share_lost"]
    assert 0 < guessed["probability_best"] < 1
    assert sum(true["usage"]) == pytest.approx(1)
    whole = {g["who"]: g for g in found.report["guarantees"]}
    assert whole["signed"]["pool"]["additive"] <= whole["signed"]["optimum"]["additive"]
    again = found.router.route(known(found.weights, found.router.reward_ids))
    np.testing.assert_array_equal(again.member, found.member)
