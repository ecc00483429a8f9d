"""Whole steps of the trainer: what is exact, what is compiled, what is learned, what is refused."""

import importlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import moc_world as world
import numpy as np
import pytest

from jaxalign import moc
from jaxalign.errors import InputError
from jaxalign.moc.prompt_sampler import PromptSampler
from jaxalign.moc.step import init_train_state, make_programs, make_step
from jaxalign.models import lora
from jaxalign.models.chat import generate_texts
from jaxalign.models.sampling import Sampling
from jaxalign.progress import Progress
from jaxalign.rewards.vector import TextReward, TokenReward
from jaxalign.train.mesh import MeshConfig, make_mesh


def policy_of(config, names=world.NAMES, seed=0, dtype="float32"):
    return moc.init_policy(jax.random.key(seed), world.language_model(dtype), names, config)


@cache
def small():
    """A step's program, its arguments, and how it was made."""
    config = world.config(steps=50, kl=moc.KLConfig(coef=0.1, target=3.0, horizon=200.0))
    policy = policy_of(config)
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    decoder = config.trunk.decoder(policy.model.config)
    programs = make_programs(config, decoder, world.NAMES, (world.STOP,), mesh)
    return (
        config,
        policy,
        make_step(programs, world.reward()),
        PromptSampler(policy, world.PROMPTS, config),
    )


@pytest.mark.slow
def test_fifty_steps_are_compiled_once(monkeypatch):
    chex.clear_trace_counter()
    module = importlib.import_module("jaxalign.moc._train")

    def counted(*args):
        return chex.assert_max_traces(make_step(*args), n=1)

    monkeypatch.setattr(module, "make_step", counted)
    config, policy, _, _ = small()
    history = moc.train(policy, world.reward(), world.PROMPTS, config).history
    assert [entry["step"] for entry in history] == list(range(1, 51))
    assert all(entry["first_drift"] == 0.0 for entry in history)
    assert all(entry["updates"] == config.epochs for entry in history)
    # The coefficient goes up where the KL was above its target, and down where it was below.
    kl, coefficient = (np.array([entry[x] for entry in history]) for x in ("kl", "kl_coef"))
    error = np.clip(kl / 3 - 1, -0.2, 0.2)
    np.testing.assert_allclose(coefficient[1:] / coefficient[:-1], 1 + error[:-1] * 16 / 200, 1e-4)


@pytest.mark.slow
def test_it_maps_over_seeds_and_preferences_and_scans():
    config, policy, one_step, source = small()
    frozen, batches = policy.model.params, [source.draw(n).arrays for n in range(2)]
    step = jax.jit(one_step)
    starts = [init_train_state(jax.random.key(n), policy.trained, config) for n in range(2)]
    alone = [step(starts[0], frozen, batches[0]), step(starts[1], frozen, batches[1])]
    stacked, both = (jax.tree.map(lambda *x: jnp.stack(x), *each) for each in (starts, batches))
    states, metrics = jax.jit(jax.vmap(one_step, (0, None, 0)))(stacked, frozen, both)
    for number, (state, own) in enumerate(alone):
        mapped = jax.tree.map(lambda leaf, n=number: leaf[n], (state_of(states), metrics))
        chex.assert_trees_all_close(mapped, (state_of(state), own), rtol=2e-3, atol=2e-4)
    assert metrics["reward_red"][0] != metrics["reward_red"][1]

    def advance(state, batch):
        return one_step(state, frozen, batch)

    last, history = jax.jit(lambda state: jax.lax.scan(advance, state, both))(starts[0])
    second, second_metrics = step(alone[0][0], frozen, batches[1])
    chex.assert_trees_all_close(state_of(last), state_of(second), rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(history["error"][1], second_metrics["error"], rtol=1e-3)


def state_of(state):
    """Numbers of a state, without its keys."""
    return state.train.params, state.step, state.kl_coef


def test_the_first_ratio_is_one_with_dropout():
    """Whatever is dropped, in whatever parts the batch is held; later ratios are not 1."""
    config = world.config(
        groups=4, minibatches=2, micro_batches=2, steps=2, value_dropout=0.5,
        trunk=replace(world.config().trunk, lora=replace(world.LORA, dropout=0.5)),
    )  # fmt: skip
    # An adapter that changes something, so that dropping some of it does.
    policy = policy_of(config)
    adapter = jax.tree.map(lambda leaf: leaf + 0.02, policy.trained["adapter"])
    policy = replace(policy, trained={**policy.trained, "adapter": adapter})
    result = moc.train(policy, world.reward(), world.PROMPTS, config)
    for entry in result.history:
        assert entry["first_drift"] == 0.0
        assert entry["policy_kl"] > 1e-4
        assert entry["updates"] == 4


@pytest.mark.slow
def test_rewards_on_the_host_train_as_traced_ones():
    """Three programs and text between them, or one program: the same numbers."""
    config, texts = world.config(steps=2), []
    width = len(world.LETTERS) // 2

    def function(prompts, answers):
        texts.extend(prompts)
        words = [answer.split() for answer in answers]
        # The stop token, which text does not show, counts in the length.
        return [
            [sum((w in world.LETTERS[:width]) == own for w in row) for own in (True, False)]
            for row in words
        ]

    def counts(prompts, lengths, answers, ends):
        shares = world.reward().function(prompts, lengths, answers, ends)
        return jnp.round(shares * ends[:, None].astype(jnp.float32))

    def letters(prompts, lengths, answers, ends):
        return counts(prompts, lengths, answers, ends)

    traced = TokenReward(world.NAMES, letters, "counts")
    spoken = TextReward(world.NAMES, lambda p, a: letters_only(function(p, a), a), "counts")
    policy = policy_of(config)
    one = moc.train(policy, traced, world.PROMPTS, config)
    two = moc.train(policy, spoken, world.PROMPTS, config)
    for first, second in zip(one.history, two.history, strict=True):
        chex.assert_trees_all_close(first, second, rtol=1e-4, atol=1e-5)
    assert set(texts) <= set(world.PROMPTS)  # no preference in them
    chex.assert_trees_all_close(one.policy.trained, two.policy.trained, rtol=1e-3, atol=1e-5)


def letters_only(table, answers):
    """Words that are no letters, tags among them, are neither red nor blue."""
    other = [sum(w not in world.LETTERS for w in answer.split()) for answer in answers]
    return [[red, blue - more] for (red, blue), more in zip(table, other, strict=True)]


def test_a_policy_learns_and_the_one_given_stays(tmp_path):
    lines = []

    class Lines(Progress):
        def say(self, text):
            lines.append(text)

    config = world.config(
        steps=25, groups=8, combine=moc.CombineConfig("linear"),
        preferences=moc.PreferenceConfig("list", listed=((1.0, 0.0),)),
    )  # fmt: skip
    policy = policy_of(config)
    before = jax.device_get(policy.trained)
    result = moc.train(policy, world.reward(), world.PROMPTS, config, progress=Lines())
    chex.assert_trees_all_equal(before, jax.device_get(policy.trained))
    red = [entry["reward_red"] for entry in result.history]
    assert np.mean(red[-3:]) > np.mean(red[:3]) + 0.3
    assert result.steps == len(result.history) == 25
    assert all(entry["weight_red"] == 1.0 for entry in result.history)
    assert "step 25 of 25: red 0." in lines[-1]
    assert "c 1.00 0.00" in lines[-1]
    assert "tokens/s" in lines[-1]
    # And answers through the ordinary generation.
    preferences = np.tile([1.0, 0.0], (4, 1))
    told = [
        moc.insert_preference_tag(world.NAMES, row, p)
        for row, p in zip(preferences, "abcd", strict=True)
    ]
    answers = generate_texts(
        result.policy.model, told, Sampling(6, min_tokens=1), jax.random.key(0), progress=False,
        adapters=lora.scaled(result.policy.trained["adapter"], result.policy.lora),
    )  # fmt: skip
    words = " ".join(answer.text for answer in answers).split()
    assert np.mean([word in world.LETTERS[:8] for word in words]) > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["token", "closeness", "none"])
def test_other_ways_of_training_run(kind):
    changes = {"reward": kind} if kind == "closeness" else {"conditioning": kind}
    config = world.config(steps=1, **changes)
    policy = policy_of(config)
    result = moc.train(policy, world.reward(), world.PROMPTS, config)
    entry = result.history[0]
    names = ("closeness",) if kind == "closeness" else world.NAMES
    assert {f"weight_{name}" for name in names} <= entry.keys()
    if kind == "none":  # the plain model, which the reference is
        np.testing.assert_allclose(entry["kl"], 0, atol=1e-4)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), result.policy.trained,
                         policy.trained)  # fmt: skip
    assert max(jax.tree.leaves(moved["adapter"])) > 1e-4
    assert ("token" in moved) == (kind == "token")
    if kind == "token":
        assert moved["token"]["inner"]["kernel"] > 1e-4
    else:
        assert entry["weight_" + names[0]] <= 1.0


def test_a_base_in_bfloat16_is_held_once():
    trunk = replace(world.config().trunk, weights="bfloat16", compute="bfloat16")
    config = world.config(steps=2, trunk=trunk, groups=2, epochs=1)
    policy = policy_of(config, dtype="bfloat16")
    before = {id(leaf) for leaf in jax.live_arrays()}
    result = moc.train(policy, world.reward(), world.PROMPTS, config)
    kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(result.policy.trained)}
    assert kinds == {"float32"}
    assert result.history[0]["first_drift"] < 0.02
    table = policy.model.params["embed"]["table"]
    extra = [a for a in jax.live_arrays() if id(a) not in before and a.dtype == jnp.bfloat16]
    assert not any(a.size >= table.size for a in extra)


@pytest.mark.slow
def test_it_stops_a_step_that_goes_too_far():
    optimiser = replace(world.config().optimiser, schedule="linear")
    kl = moc.KLConfig(target=1e-3, adaptive=False)
    config = world.config(steps=2, epochs=4, kl=kl, optimiser=optimiser)
    first, second = moc.train(policy_of(config), world.reward(), world.PROMPTS, config).history
    assert first["updates"] == 2  # the second finds how far the first went
    # The two that were skipped count, so that the schedule reaches its end: of 8, the fifth on.
    made = int(second["updates"])
    rates = [optimiser.rate * (1 - update / 8) for update in range(4, 4 + made)]
    assert second["rate"] == pytest.approx(np.mean(rates), rel=1e-5)


def test_what_does_not_fit_is_refused(tmp_path):
    config = world.config()
    policy = policy_of(config)
    with pytest.raises(InputError, match=r"the rewards are blue, red, the policy's red, blue"):
        moc.train(policy, world.reward(("blue", "red")), world.PROMPTS, config)
    with pytest.raises(InputError, match="conditioning: the policy has tags, the config none"):
        moc.train(policy, world.reward(), world.PROMPTS, world.config(conditioning="none"))
    with pytest.raises(InputError, match=r"3 value heads, 'closeness' with the .* needs 2"):
        moc.train(policy, world.reward(), world.PROMPTS, world.config(reward="closeness"))
    with pytest.raises(InputError, match="none of 1 prompts has at most 16 tokens"):
        moc.train(policy, world.reward(), ["a " * 14], config)
    with pytest.raises(InputError, match=r"answer_tokens: found .* with room for the prompt"):
        moc.train(policy, world.reward(), ["a"], world.config(answer_tokens=64))
    with pytest.raises(InputError, match="groups: found 4, which do not split into 3"):
        world.config(minibatches=3)
    with pytest.raises(InputError, match=r"trunk\.method: found 'full'"):
        world.config(trunk=replace(config.trunk, method="full"))
    for name, value in (("steps", 0), ("temperature", 0.0), ("gamma", 1.5), ("clip", -1.0)):
        with pytest.raises(InputError, match=f"{name}: found"):
            world.config(**{name: value})
    with pytest.raises(InputError, match=r"kl\.target: found 0"):
        moc.KLConfig(target=0.0)
    with pytest.raises(InputError, match=r"groups: found 8\.0, expected a whole number"):
        world.config(groups=8.0)
    with pytest.raises(InputError, match=r"samples_every: found True, expected a whole number"):
        world.config(samples_every=True)
    # A factor of 1 - 0.2 x 16 / horizon: below 3.2, the coefficient paid for KL.
    with pytest.raises(InputError, match=r"kl\.horizon: found 3, expected at least the 16 .*1,600"):
        world.config(kl=moc.KLConfig(horizon=3.0))
    world.config(kl=moc.KLConfig(horizon=3.0, adaptive=False))
    wrong = TokenReward(world.NAMES, lambda p, n, answers, ends: ends * 1.0, "flat")
    with pytest.raises(InputError, match=r"gave shape \(16,\) where \(16, 2\)"):
        moc.train(policy, wrong, world.PROMPTS, config)


def test_prompts_that_are_too_long_are_left_out():
    config = world.config()
    source = PromptSampler(policy_of(config), ["a " * 13, "a b", "c"], config)
    assert (source.left_out, source.prompts) == (1, ["a b", "c"])
    assert source.width == 16
    rows = [text for step in range(3) for text in source.draw(step).texts]
    assert rows.count("a b") == rows.count("c") == 24
    assert (
        source.draw(1).texts
        == PromptSampler(policy_of(config), ["a " * 13, "a b", "c"], config).draw(1).texts
    )


class LongNumbers:
    """The tokenizer of the world, but that 0.3 and 0.7 are three tokens each."""

    def __init__(self):
        self.words = world.language_model().tokenizer

    def __getattr__(self, name):
        return getattr(self.words, name)

    def __call__(self, texts, **options):
        if not isinstance(texts, str):
            return {"input_ids": [self(text, **options)["input_ids"] for text in texts]}
        return self.words(re.sub(r"0\.[37]", "0.0 0.1 0.2", texts), **options)


@pytest.mark.parametrize("kind", ["dirichlet", "list"])
def test_the_width_of_a_step_is_that_of_the_longest_tag(kind):
    """It was that of a corner or the centre, and what was longer ended in an error of NumPy."""
    listed = ((0.3, 0.7), (0.5, 0.5)) if kind == "list" else ()
    config = world.config(preferences=moc.PreferenceConfig(kind=kind, listed=listed))
    policy = policy_of(config)
    policy = replace(policy, model=replace(policy.model, tokenizer=LongNumbers()))
    sampler = PromptSampler(policy, ["a " * 9, "a " * 8, "b"], config)
    assert (sampler.left_out, sampler.width) == (1, 16)
    lengths = np.concatenate([sampler.draw(step).arrays["lengths"] for step in range(5)])
    assert lengths.max() == 16
    sampler.prompts[0] = "a " * 56
    with pytest.raises(InputError, match=r"step 1: found a prompt of \d+ tokens, .* at most 58"):
        sampler.draw(0)


def test_no_tag_of_a_prompt_reaches_policy_reference_or_rewards():
    config = world.config()
    tagged = [f"<pref_red> 1.0 <pref_blue> 0.0 {prompt}" for prompt in world.PROMPTS]
    found, expected = (
        PromptSampler(policy_of(config), prompts, config).draw(0)
        for prompts in (tagged, world.PROMPTS)
    )
    chex.assert_trees_all_equal(found.arrays, expected.arrays)
    assert found.texts == expected.texts


@pytest.mark.slow
def test_meshes_of_two_and_four_devices_train_as_one(tmp_path):
    here = Path(__file__).parent
    out = tmp_path / "out.json"
    environment = os.environ | {"PYTHONPATH": str(here.parent / "models")}
    subprocess.run([sys.executable, here / "moc_mesh_worker.py", out], env=environment, check=True)
    found = json.loads(out.read_text())
    for name in ("data", "fsdp", "tensor"):
        for metric, value in found["one"].items():
            assert abs(found[name][metric] - value) < 1e-5 * max(1, abs(value)), (name, metric)
    assert found["one"]["policy_kl"] > 1e-4  # the second pass saw another policy
