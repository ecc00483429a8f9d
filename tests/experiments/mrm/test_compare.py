"""One run with every method: from choices to the report, in all regimes, and resumed alike."""

import json

import pytest
from few_choices import write_choices

from jaxalign.config import load_config
from jaxalign.errors import InputError
from jaxalign.experiments.mrm import MRMRunConfig, run

BASELINES = ("mixture", "lore", "lore_published", "pal", "neighbours", "vpl", "gpo", "pttt")
EPISODES = {"epochs": 2, "snapshots": 1, "users_per_batch": 4, "most_support": 5, "most_query": 5}
CONFIG = {
    "split": {"item_folds": 2, "min_support": 3, "min_query": 3},
    "mixture": {"components": [2], "em_steps": 2},
    "lore": {"ranks": [2], "steps": 5, "decays": [1e-3]},
    "lore_published": {"ranks": [2], "steps": 5, "few_shot_steps": 5},
    "pal": {"prototypes": [2], "steps": 4, "snapshots": 2, "few_shot_steps": [2]},
    "neighbours": {"counts": [3], "shares": [1.0]},
    "vpl": {**EPISODES, "latent": 2, "hidden": 4, "draws": 2},
    "gpo": {**EPISODES, "width": 4, "heads": 1, "feed_forward": 4, "layers": 1},
    "pttt": {**EPISODES, "hidden": 4, "width": 2},
    "methods": list(BASELINES),
    "fold_methods": list(BASELINES),
    "seeds": 2,
    "shots": [0, 5],
    "draws": 50,
}


def write_world(root):
    """Choices, features and a config in a folder."""
    write_choices(root)
    (root / "config.yaml").write_text(json.dumps(CONFIG))
    options = ["--features.path", str(root / "features.npz")]
    return load_config(MRMRunConfig, root / "config.yaml", options)


@pytest.mark.slow
def test_every_baseline_in_every_regime_and_resumed(tmp_path):
    config = write_world(tmp_path)
    source, out = str(tmp_path / "choices.jsonl"), tmp_path / "run"
    report = run(config, source, out, show=False)
    for regime in ("new_users", "new_items", "new_users_new_items"):
        assert set(report[regime]) == {"bt", "bt_items", *BASELINES}
        for figures in report[regime].values():
            assert figures["gain_low"] <= figures["gain"] <= figures["gain_high"]
        assert report["selected"][regime] in {"bt", "bt_items", *BASELINES}
    assert len(report["settings"]["pal"]) == 2
    assert len(report["settings"]["neighbours"]) == 1
    text = (out / "report.json").read_bytes()
    for name in ("report.json", "state/lore.safetensors", "state/fold01.safetensors"):
        (out / name).unlink()
    run(config, source, out, resume=True, show=False)
    assert (out / "report.json").read_bytes() == text


def test_a_method_that_does_not_exist(tmp_path):
    write_world(tmp_path)
    with pytest.raises(InputError, match="mixture"):
        load_config(MRMRunConfig, tmp_path / "config.yaml", ["--methods", "mixtures"])
