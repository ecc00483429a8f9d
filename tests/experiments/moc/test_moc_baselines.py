"""Baselines: configs of the same trainer, and speakers against adapters merged by hand."""

from dataclasses import replace

import jax
import moc_world as tiny
import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.experiments.moc import baselines
from jaxalign.moc import init_policy
from jaxalign.moc.experience import weighted
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


def said(speaker, preferences):
    rows = np.asarray(preferences, np.float32)
    tokens, lengths = speaker.prompts_of(tiny.PROMPTS[: len(rows)], rows)
    model = speaker.model
    return generate(
        model.config, model.params, tokens, lengths, jax.random.key(0), GREEDY,
        **speaker.arguments(rows),
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
        speaker = baselines.tuned(policies(), np.eye(2))
    else:
        speaker = made[kind](policies())
    found = np.asarray(said(speaker, told).tokens)[:, 0]
    expected = [by_hand(kind, *pair) for pair in zip(told, tiny.PROMPTS, strict=False)]
    assert found.tolist() == expected
    assert len(set(expected)) > 1


def test_batches_keep_their_shape():
    speaker = baselines.soups(policies())
    two = speaker.arguments(np.array([[0.3, 0.7], [0.4, 0.6]], np.float32))
    one = speaker.arguments(np.array([[0.5, 0.5], [0.5, 0.5]], np.float32))
    shapes = [jax.tree.map(np.shape, each) for each in (two, one)]
    assert shapes[0] == shapes[1]


def test_a_policy_of_one_weighting_is_told_nothing_and_drawn_for_it_alone():
    config = baselines.morlhf(tiny.config(), [0.25, 0.75])
    assert (config.conditioning, config.reward) == ("none", "weighted")
    drawn = sample_preferences(config.seed, 3, 4, tiny.NAMES, config.preferences)
    np.testing.assert_allclose(drawn, [[0.25, 0.75]] * 4)
    assert baselines.closeness(tiny.config()).reward == "closeness"
    rewards = np.array([[0.5, 0.5], [1.0, 0.0], [0.0, 0.0], [0.2, 0.8]], np.float32)
    asked = np.array([[0.25, 0.75], [1.0, 0.0]], np.float32)
    np.testing.assert_allclose(weighted(rewards, asked)[:, 0], [0.5, 0.25, 0.0, 0.2])


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="expected one that a policy was trained on"):
        said(baselines.tuned(policies(), np.eye(2)), [[0.5, 0.5]])
    with pytest.raises(InputError, match="told nothing"):
        baselines.conditioned(policies()[0], "moc")
    with pytest.raises(InputError, match="conditioned by 'tags'"):
        baselines.soups(policies("tags"))
    first, second = policies()
    other = replace(second, model=replace(second.model, sha256="1" * 64))
    with pytest.raises(InputError, match="all of one model"):
        baselines.mixing([first, other])
