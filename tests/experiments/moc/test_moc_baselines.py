"""Baselines: configs of the same trainer, and speakers against adapters merged by hand."""

from dataclasses import replace

import jax
import moc_world as tiny
import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.experiments.moc import baselines
from jaxalign.moc import init_policy
from jaxalign.moc.experience import weighted_reward
from jaxalign.moc.preferences import sample_preferences
from jaxalign.models import families, lora
from jaxalign.models.generate import generate
from jaxalign.models.sampling import Sampling

GREEDY = Sampling(max_tokens=4, temperature=0.0, stop_ids=(tiny.STOP,))


def policies(conditioning="none"):
    """Two, each moved its own way, as if they had been trained."""
    found = []
    for seed in range(2):
        config = tiny.config(conditioning=conditioning)
        made = init_policy(jax.random.key(seed), tiny.language_model(), tiny.NAMES, config)
        rng = np.random.default_rng(seed)
        adapter = jax.tree.map(
            lambda x, r=rng: x + r.normal(0, 0.1, x.shape).astype("f"), made.trained["adapter"]
        )
        found.append(replace(made, trained={**made.trained, "adapter": adapter}))
    return found


def said(evaluated):
    model, rows = evaluated.model, np.arange(len(evaluated.weights))
    ids = [[tiny.VOCABULARY.index(word) for word in p.split()] for p in tiny.PROMPTS[: len(rows)]]
    batch = evaluated.policies.stacked(evaluated.weights)
    return generate(
        model.config, model.params, np.array(ids, np.int32), np.full(len(rows), 2, np.int32),
        jax.random.key(0), GREEDY, **batch.arguments(rows),
    )  # fmt: skip


def logits_of(params, prompt):
    ids = np.array([[tiny.VOCABULARY.index(word) for word in prompt.split()]], np.int32)
    hidden, _ = families.forward(tiny.CONFIG, params, ids)
    return np.asarray(families.logits(params, hidden[:, -1]))[0]


def by_hand(kind, preference, prompt):
    """The likeliest first token, from whole parameters."""
    model, experts = tiny.language_model(), policies()
    scaled = [lora.scaled(one.trained["adapter"], one.lora) for one in experts]
    if kind == "soups":
        params = model.params
        for share, adapter in zip(preference, scaled, strict=True):
            part = jax.tree.map(
                lambda pair, s=share: {"a": pair["a"], "b": pair["b"] * np.float32(s)},
                adapter, is_leaf=lora.is_pair,
            )  # fmt: skip
            params = lora.merge(params, part)
        return int(logits_of(params, prompt).argmax())
    each = [logits_of(lora.merge(model.params, adapter), prompt) for adapter in scaled]
    if kind == "MORLHF":
        return int(each[int(np.argmax(preference))].argmax())
    shares = [share * jax.nn.log_softmax(one) for share, one in zip(preference, each, strict=True)]
    return int(np.argmax(sum(shares)))


@pytest.mark.parametrize("kind", ["soups", "MOD", "MORLHF"])
def test_each_row_answers_as_its_preference_by_hand(kind):
    told = np.array([[0.3, 0.7], [0.3, 0.7], [1.0, 0.0], [0.0, 1.0], [0.6, 0.4], [0.6, 0.4]])
    made = {"soups": baselines.soups, "MOD": baselines.mixing}
    if kind == "MORLHF":
        told = told[[2, 3, 3, 2]]
        both = policies()
        own = baselines.separate([both[int(row[1])] for row in told], told)
    else:
        own = made[kind](policies(), told, np.ones(len(told), bool))
    found = np.asarray(said(own).tokens)[:, 0]
    expected = [by_hand(kind, *pair) for pair in zip(told, tiny.PROMPTS, strict=False)]
    assert found.tolist() == expected
    assert len(set(expected)) > 1


def test_a_policy_of_one_weighting_is_told_nothing_and_drawn_for_it_alone():
    config = baselines.morlhf(tiny.config(), [0.25, 0.75])
    assert (config.conditioning, config.reward) == ("none", "weighted")
    drawn = sample_preferences(config.seed, 3, 4, tiny.NAMES, config.preferences)
    np.testing.assert_allclose(drawn, [[0.25, 0.75]] * 4)
    assert baselines.closeness(tiny.config()).reward == "closeness"
    rewards = np.array([[0.5, 0.5], [1.0, 0.0], [0.0, 0.0], [0.2, 0.8]], np.float32)
    asked = np.array([[0.25, 0.75], [1.0, 0.0]], np.float32)
    np.testing.assert_allclose(weighted_reward(rewards, asked)[:, 0], [0.5, 0.25, 0.0, 0.2])


def test_what_does_not_fit_is_refused():
    told, seen = np.array([[0.5, 0.5]], np.float32), np.ones(1, bool)
    with pytest.raises(InputError, match="conditioned on nothing"):
        baselines.conditioned(policies()[0], "moc", told, seen)
    with pytest.raises(InputError, match="conditioned by 'tags'"):
        baselines.soups(policies("tags"), told, seen)
    first, second = policies()
    other = replace(second, model=replace(second.model, sha256="1" * 64))
    with pytest.raises(InputError, match="all of one model"):
        baselines.mixing([first, other], told, seen)
