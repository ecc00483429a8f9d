"""The presets hold the literature's tasks and the published settings."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest

from jaxalign.config import load_config, to_yaml
from jaxalign.data.prompts import load_prompts, split_prompts
from jaxalign.errors import InputError
from jaxalign.experiments.moc import MocEvaluateConfig, MocRunConfig
from jaxalign.moc import config as moc_config
from jaxalign.moc.modpo import ModpoConfig
from jaxalign.moc.preferences import PreferenceConfig, preference_tag, sample_preferences
from jaxalign.rewards import spec
from jaxalign.rewards.rules import TRAITS

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "configs" / "moc" / "own_reward.yaml"  # no published task
PRESETS = sorted(set((ROOT / "configs" / "moc").glob("*.yaml")) - {EXAMPLE})
CONFLICTING = {"simplicity_warmth", "brevity_positivity"}  # of eleven preferences, five held out
SMALL = {"smollm2_traits", *CONFLICTING}
SEVEN_B = [path for path in PRESETS if path.stem not in SMALL]
HELPFUL = ("Ray2333/gpt2-large-helpful-reward_model", 0, True)
HARMLESS = ("Ray2333/gpt2-large-harmless-reward_model", 0, True)
HUMOR = ("mohameddhiab/humor-no-humor", 1, False)
TASKS = {
    "helpful_harmless": [HELPFUL, HARMLESS],
    "helpful_humor": [HELPFUL, HUMOR],
    "three": [HARMLESS, HELPFUL, HUMOR],
    "summary": [("Tristan/gpt2_reward_summarization", 0, True), None],
    "smollm2_traits": [None, None],
    "simplicity_warmth": [None, None],
    "brevity_positivity": [None, None],
}


def load(path):
    return load_config(MocRunConfig, path, [])


def test_every_task_has_its_preset():
    assert {path.stem for path in PRESETS} == TASKS.keys()


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_rewards_and_preferences(path, tmp_path, monkeypatch):
    config = load(path)
    wanted = TASKS[path.stem]
    for reward, about in zip(config.rewards, wanted, strict=True):
        if about is None:
            assert reward.name in TRAITS
        else:
            assert (reward.model, reward.label, reward.pair) == about
    asked = []

    def load_reward_model(name, dtype, shardings):
        asked.append(name)
        raise KeyboardInterrupt  # no model is fetched here

    monkeypatch.setattr(spec, "load_reward_model", load_reward_model)
    if any(wanted):
        with pytest.raises(KeyboardInterrupt):
            spec.build_rewards(config.rewards)
        assert asked == [next(about[0] for about in wanted if about)]
    names = [reward.name for reward in config.rewards]
    preferences = config.moc.preferences
    drawn = {
        preference_tag(names, row) for row in sample_preferences(0, 0, 3000, names, preferences)
    }
    held = {preference_tag(names, row) for row in preferences.held_out}
    assert len(held) == (5 if path.stem in CONFLICTING else 2)
    assert not held & drawn
    assert {preference_tag(names, row) for row in np.eye(len(names))} <= drawn
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(config))
    assert load(again) == config


@pytest.mark.parametrize("path", SEVEN_B, ids=lambda path: path.stem)
def test_published_settings(path):
    config = load(path)
    moc, summary = config.moc, path.stem == "summary"
    assert (moc.prompt_tokens, moc.answer_tokens) == ((400, 48) if summary else (256, 128))
    assert (moc.batch, moc.temperature, moc.epochs) == (32, 0.7, 4)
    assert (moc.gamma, moc.lam, moc.clip, moc.value_clip) == (1.0, 0.95, 0.2, 0.2)
    assert (moc.value_coef, moc.value_dropout, moc.conditioning) == (0.1, 0.1, "tags")
    kl = moc.kl
    assert (kl.coef, kl.adaptive, kl.target, kl.horizon, kl.stop) == (0.2, True, 3.0, 10_000.0, 1.5)
    lora = moc.trunk.lora
    assert (lora.rank, lora.alpha, lora.dropout) == (64, 128.0, 0.05)
    assert lora.targets == ("query", "value")
    assert (moc.trunk.weights, moc.trunk.compute) == ("bfloat16", "bfloat16")
    assert moc.trunk.remat == "nothing_saveable"
    optimiser = moc.optimiser
    assert (optimiser.rate, optimiser.schedule, optimiser.clip_norm) == (1e-5, "constant", 0.5)
    assert (moc.combine.rule, moc.combine.form, moc.combine.strength) == ("blend", "ratio", 3.0)


def test_the_small_preset_has_its_prompts():
    path = next(path for path in PRESETS if path.stem == "smollm2_traits")
    words = path.read_text().partition("\n")[0].split()
    prompts = load_prompts(ROOT / words[words.index("--data") + 1])
    train, held = split_prompts(prompts, load(path).prompts.hold_out_share)
    assert (len(train), len(held)) == (160, 40)
    assert load(path).prompts.template == "plain"
    assert all(isinstance(prompt, str) for prompt in prompts.prompts)


def test_counts_are_checked_under_postponed_annotations(monkeypatch):
    """Types of fields are texts then, and no count was found among them."""
    module = types.ModuleType("postponed_moc_config")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    source = Path(moc_config.__file__).read_text("utf-8")
    exec("from __future__ import annotations\n" + source, vars(module))
    assert module.MocConfig().steps == 1000
    for name in ("steps", "groups", "checkpoint_every"):
        with pytest.raises(InputError, match=f"{name}: found 0, expected a number of at least 1"):
            module.MocConfig(**{name: 0})
    with pytest.raises(InputError, match="seed: found -1, expected a number of at least 0"):
        module.MocConfig(seed=-1)


@pytest.mark.parametrize("baseline", ["none", "closeness", "ric"])
def test_a_policy_without_its_preference_is_trained_for_one_weighting_alone(baseline):
    moc = moc_config.MocConfig(conditioning="none")
    with pytest.raises(InputError, match=f"moc.conditioning is none with the baseline {baseline};"):
        MocRunConfig(moc=moc, baseline=baseline)
    assert MocRunConfig(moc=moc, baseline="morlhf", weight="a=1").moc is moc


@pytest.mark.parametrize("quantiles", [(0.9, 0.1), (-0.1, 0.5), (0.5, float("nan"))])
def test_quantiles_are_checked_before_any_work(quantiles):
    with pytest.raises(InputError, match=r"quantiles are .*; expected 0 <= first < last <= 1"):
        MocRunConfig(quantiles=quantiles)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (MocRunConfig, "reference_answers"),
        (MocRunConfig, "conflict_prompts"),
        (MocEvaluateConfig, "samples"),
        (MocEvaluateConfig, "limit"),
        (ModpoConfig, "pairs"),
        (PreferenceConfig, "points"),
    ],
)
def test_counts_are_whole_numbers(config, name):
    with pytest.raises(InputError, match=f"{name}: found 512.0, expected a whole number"):
        config(**{name: 512.0})


@pytest.mark.parametrize("name", ["a=b", "a,b", "<a", " a", ""])
def test_a_reward_whose_name_no_preference_can_hold_is_refused(name):
    reward = spec.RewardSpec(name, kind="python", function="m:f")
    with pytest.raises(InputError, match=r"rewards: found the name .*; rename it"):
        MocRunConfig(rewards=(reward,))
