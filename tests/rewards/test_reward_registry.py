"""A new reward is one file and one line: the recipe of CONTRIBUTING, followed word for word."""

import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from jaxalign.cli import main
from jaxalign.config import load_config
from jaxalign.errors import InputError
from jaxalign.experiments.moc import MocRunConfig
from jaxalign.rewards import registry
from jaxalign.rewards.registry import register_reward, registered_rewards, rule_rewards
from jaxalign.rewards.reward_scale import fit_scale
from jaxalign.rewards.spec import RewardSpec, build_rewards
from jaxalign.rewards.vector import compute_rewards

RECIPE = Path(__file__).resolve().parents[2] / "CONTRIBUTING.md"
ANSWERS = ["Why? How?", "Because.", "What?"]


@pytest.fixture
def registered(monkeypatch):
    """The registry, put back afterwards."""
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))


@pytest.fixture
def recipe(registered, monkeypatch):
    """Follow the recipe: run its file as that module of the package, then its line."""
    section = RECIPE.read_text("utf-8").partition("### A reward\n")[2].partition("\n### ")[0]
    file, line = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    name = re.search(r"`jaxalign/rewards/(\w+)\.py`", section)[1]
    module = types.ModuleType(f"jaxalign.rewards.{name}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(file, vars(module))
    assert len(line.strip().splitlines()) == 1
    exec(line, {})
    return registered_rewards()[-1]


def test_a_reward_added_by_the_recipe_is_used_by_its_name(recipe, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(f"rewards: [{{name: {recipe}}}, {{name: brevity}}]")
    specs = load_config(MocRunConfig, path, []).rewards
    assert specs[0] == RewardSpec(recipe)
    reward = build_rewards(specs)
    raw = compute_rewards(reward, ["p"] * 3, ANSWERS)
    assert raw[:, 0].tolist() == [2, 0, 1]
    scale = fit_scale(raw, reward.names, (0.0, 1.0))
    np.testing.assert_allclose(scale.levels(raw)[:, 0], [1, 0, 0.5])
    assert scale.digest != fit_scale(raw[:, :1], reward.names[:1]).digest


def test_the_command_scores_by_a_reward_added_by_the_recipe(recipe, tmp_path):
    data, out = tmp_path / "answers.jsonl", tmp_path / "scores.jsonl"
    data.write_text("".join(json.dumps({"answer": text}) + "\n" for text in ANSWERS))
    assert (
        main(["reward", "score", "--rewards", recipe, "--data", str(data), "--out", str(out)]) == 0
    )
    found = [json.loads(line)["rewards"][recipe] for line in out.read_text().splitlines()]
    assert found == [2, 0, 1]


def test_a_reward_at_fault_is_named(registered):
    register_reward("short")(lambda prompts, answers: [1.0])
    with pytest.raises(InputError, match=r"the reward short gave shape \(1,\) where \(2, 1\)"):
        compute_rewards(rule_rewards(["short"]), ["a", "b"], ["c", "d"])


def test_names_that_cannot_be_registered(registered):
    with pytest.raises(InputError, match="'two words'"):
        register_reward("two words")
    with pytest.raises(InputError, match="the reward 'brevity' is registered by"):
        register_reward("brevity")(len)
    with pytest.raises(InputError, match="no reward is registered as 'wit'"):
        rule_rewards(["wit"])


def test_the_id_follows_the_text_of_modules_outside_the_package(registered, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    ids = []
    for name, text in (("own_one", "1"), ("own_two", "2")):
        (tmp_path / f"{name}.py").write_text(
            "from jaxalign.rewards import register_reward\n"
            f"@register_reward('{name}')\n"
            f"def value(prompts, answers): return [{text}] * len(answers)\n"
        )
        __import__(name)
        ids.append(rule_rewards([name]).id.split(":")[-1])
    assert ids[0] != ids[1]
    assert rule_rewards(["brevity"]).id == "rules:brevity"
