"""The demo's last stage: a soft token made of what a user chose conditions a frozen model."""

from dataclasses import replace
from functools import partial
from tempfile import TemporaryDirectory

import jax
import numpy as np
import pytest

from jaxalign.demo import answers as A
from jaxalign.demo import plug as P
from jaxalign.demo import study as S
from jaxalign.demo.people import Population, SimulatedChoices
from jaxalign.models.embed import Encoder
from jaxalign.models.encoder import EncoderConfig
from jaxalign.train.loop import LoopConfig

EPOCHS = 15


def some_answers():
    """Twenty prompts, eight answers each, whose vectors show their traits and their prompt."""
    rng = np.random.default_rng(0)
    prompt = np.repeat(np.arange(20), 8)
    answers = A.DemoAnswers({}, (), ("?",) * 20, ("",) * len(prompt), prompt)
    raw = rng.normal(size=(len(prompt), 5))
    answers.__dict__["_raw"] = raw  # measured traits, in place of those of texts
    about = 5 * rng.normal(size=(20, 12))[prompt]
    return answers, about + raw @ rng.normal(size=(5, 12))


def some_encoder(width=12):
    """An encoder that is never run."""
    config = EncoderConfig(10, width, 1, 1, 8, 16)
    return Encoder(config, {}, None, "mean", True, 16, "tiny", "0" * 64, "0" * 64)


def some_world(answers, plan, seed):
    """Users who like one trait far more than the others."""
    rng = np.random.default_rng(seed)
    users = len(plan.train) + len(plan.validation) + len(plan.test)
    likes = rng.integers(0, 5, users)
    people = Population("friendly", 4.0 * np.eye(5)[likes], likes)
    return S.simulate(people, answers, plan, seed)


def run(seed):
    answers, vectors = some_answers()
    plan = S.design(150, 20, seed)
    world = some_world(answers, plan, seed)
    weights = world.people.weights[plan.test]
    studies = {"named": S.Study({}, None, {}, weights, None, None, None)}
    return P.run_plug(vectors, some_encoder(), answers, plan, world, studies, seed), plan


@pytest.fixture(scope="module", autouse=True)
def few_epochs():
    with pytest.MonkeyPatch.context() as patch:
        loop = LoopConfig(epochs=EPOCHS, batch_size=64, checkpoint_every=1000)
        patch.setattr(P, "CONFIG", replace(P.CONFIG, loop=loop))
        yield


@pytest.fixture(scope="module")
def found(few_epochs):
    return [run(seed) for seed in range(2)]


@pytest.mark.slow
def test_only_the_own_persona_tells_who_asks(found):
    for report, plan in found:
        scores = {name: one["mean"] for name, one in report["accuracy"].items()}
        assert report["toy"]["repeats"] == 1.0
        assert scores["persona"] > 0.4, scores
        # Some four standard errors of what few users do by chance, one in five.
        chance = 4 * np.sqrt(0.16 / len(plan.test))
        for name in ("another", "task", "most_frequent"):
            assert abs(scores[name] - 0.2) < chance, (name, scores)
        for name in ("another", "task"):
            gain = report["gain"][name]
            assert gain["low"] > 0.1
            assert gain["mean"] == pytest.approx(scores["persona"] - scores[name])
        assert report["by_inferred_weights"] == {"named": 1.0}


@pytest.mark.slow
def test_a_seed_decides_everything(found):
    assert run(1)[0] == found[1][0]
    assert found[0][0] != found[1][0]


@pytest.mark.slow
def test_choices_to_judge_on_are_not_looked_at(found):
    answers, vectors = some_answers()
    plan = S.design(150, 20, 1)
    world = some_world(answers, plan, 1)
    nothing = SimulatedChoices(None, None, None, None)
    blind = S.DemoData(
        world.people,
        world.fitted,
        world.support,
        dict.fromkeys(world.query, nothing),
    )
    again = P.run_plug(vectors, some_encoder(), answers, plan, blind, {}, 1)
    assert again["accuracy"] == found[1][0]["accuracy"]


def test_vectors_say_nothing_of_what_a_prompt_is_about():
    answers, vectors = some_answers()
    plan = S.design(150, 20, 0)
    elsewhere = vectors + np.random.default_rng(3).normal(size=(20, 12))[answers.prompt]
    first, second = (P.item_vectors(one, answers, plan) for one in (vectors, elsewhere))
    np.testing.assert_allclose(first, second, atol=1e-5)
    assert np.ptp(first, axis=0).min() > 0.1


def test_without_histories_everyone_has_the_same_two_tokens():
    answers, vectors = some_answers()
    plan = S.design(150, 20, 0)
    world = some_world(answers, plan, 0)
    users = plan.train[:3]
    some = replace(world.fitted, chosen=world.fitted.chosen[:3], rejected=world.fitted.rejected[:3])
    readers = P.user_histories(world, users, some)
    assert [one.output for one in readers.samples] == [
        list(P.TRAITS)[like] for like in world.people.weights[users].argmax(axis=1)
    ]
    model = P.toy.make_toy(0)
    with TemporaryDirectory() as folder, P.pplug.HistoryStore(folder, "test", 12) as store:
        store.add(readers.item_texts(), partial(P.choice_vectors, vectors))
        plug = P.pplug.init_plug(
            jax.random.key(0), model, some_encoder(), P.PERSONA, P.TEXT, readers, store
        )
        own = P.pplug.prefixes(plug, readers, store)
        none = P.pplug.prefixes(plug, readers.with_profiles([()] * 3), store)
    assert own.shape == (3, 2, P.toy.CONFIG.width)
    assert np.abs(own[0, 1] - own[1, 1]).max() > 1e-3
    np.testing.assert_array_equal(own[:, 0], none[:, 0])
    np.testing.assert_array_equal(none, none[[0, 0, 0]])


def test_personas_of_others_are_all_those_but_the_own():
    said, likes = np.array([1, 1, 2, 5]), np.array([1, 2, 2, 1])
    np.testing.assert_allclose(P.share_of_others(said, likes), [1 / 3, 1 / 3, 0, 2 / 3])
