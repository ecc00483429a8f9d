"""Every shipped preset loads, and the published ones hold the authors' values."""

from dataclasses import replace
from pathlib import Path

import pytest

from jaxalign.config import load_config, shipped_configs
from jaxalign.errors import InputError
from jaxalign.experiments.moc import MocRunConfig
from jaxalign.experiments.mrm import MRMRunConfig
from jaxalign.experiments.pplug.config import PPlugRunConfig
from jaxalign.palm.config import BuildConfig
from jaxalign.pplug.config import PPlugConfig
from jaxalign.rewards.bradley_terry import RewardConfig
from jaxalign.rewards.spec import build_rewards
from jaxalign.rewards.vector import compute_rewards
from jaxalign.train.sft import SftConfig

ROOT = Path(__file__).resolve().parents[1] / "configs"
CONFIGS = sorted((ROOT / "mrm").glob("*.yaml"))
COMMANDS = {
    "moc": (MocRunConfig, "moc train"),
    "mrm": (MRMRunConfig, "mrm train"),
    "palm": (BuildConfig, "palm build"),
    "pplug": (PPlugRunConfig, "pplug train"),
    "reward": (RewardConfig, "reward train"),
    "sft": (SftConfig, "sft"),
}


def test_every_folder_has_its_command():
    assert {path.name for path in ROOT.iterdir()} == COMMANDS.keys()


def test_shipped_configs_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert set(shipped_configs()) == {
        f"{path.parent.name}/{path.stem}" for path in ROOT.glob("*/*.yaml")
    }
    by_path = load_config(MocRunConfig, ROOT / "moc/smollm2_traits.yaml", [])
    for name in (
        "moc/smollm2_traits",
        "moc/smollm2_traits.yaml",
        "configs/moc/smollm2_traits.yaml",
    ):
        assert load_config(MocRunConfig, name, []) == by_path
    with pytest.raises(InputError, match=r"moc/nope does not exist, .* or one of"):
        load_config(MocRunConfig, "moc/nope", [])
    with pytest.raises(InputError, match="a name such as sft/lora, which ship with the package"):
        load_config(SftConfig, "sft/loar", [])
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft/lora").write_text("validation_share: 0.5")
    assert load_config(SftConfig, "sft/lora", []).validation_share == 0.5


def test_a_shipped_config_uses_a_reward_of_ones_own(monkeypatch):
    monkeypatch.chdir(ROOT.parent)
    config = load_config(MocRunConfig, "moc/own_reward", [])
    reward = build_rewards(config.rewards)
    assert (reward.names, config.rewards[0].kind) == (("questions", "brevity"), "python")
    assert compute_rewards(reward, ["a"] * 2, ["Why? How?", "So."])[:, 0].tolist() == [2, 0]


@pytest.mark.parametrize("path", sorted(ROOT.glob("*/*.yaml")), ids=lambda path: path.stem)
def test_preset_loads_and_says_how_to_run_it(path):
    config, command = COMMANDS[path.parent.name]
    load_config(config, path, [])
    place = f"--config configs/{path.parent.name}/{path.name}"
    first = path.read_text().partition("\n")[0]
    assert first.startswith(f"# jaxalign {command} ")
    assert place in first


@pytest.mark.parametrize(("name", "rate"), [("prism", 1e-3), ("reddit", 5e-3)])
def test_published_recipes(name, rate):
    path = next(path for path in CONFIGS if path.stem == name)
    recipe = load_config(MRMRunConfig, path, []).mrm_published
    assert (recipe.hidden_sizes, recipe.use_bias, recipe.link) == ((2,), False, "softmax")
    assert (recipe.inner_lr, recipe.outer_lr) == (rate, rate)
    assert (recipe.inner_steps, recipe.eval_steps, recipe.users_per_batch) == (1, 1, 2)
    assert (recipe.rpo_tail, recipe.rpo_gamma, recipe.rpo_scope) == (0.5, 0.5, "batch")
    assert (recipe.epochs, recipe.warmup, recipe.clip_norm) == (200, 0.05, 1.0)
    assert (recipe.input_scale, recipe.query_share) == (0.01, 0.9)


@pytest.mark.parametrize("path", sorted((ROOT / "pplug").glob("lamp_*.yaml")), ids=lambda p: p.stem)
def test_published_settings_of_pplug(path):
    config = load_config(PPlugRunConfig, path, [])
    ratings = path.stem == "lamp_3"
    assert config.data.task == path.stem.replace("lamp", "LaMP")
    defaults = PPlugConfig()  # as published
    text = replace(defaults.text, answer_tokens=10 if ratings else 128)
    loop = replace(defaults.loop, epochs=1 if ratings else 2)
    changed = replace(config.pplug.loop, micro_batches=1, evaluate_every=100, checkpoint_every=100)
    assert replace(config.pplug, loop=changed, remat=None) == replace(
        defaults, text=text, loop=loop
    )
