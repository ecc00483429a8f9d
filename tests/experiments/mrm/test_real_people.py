"""Real people's choices, by the shipped configs: personalisation is proven, harm avoided."""

from pathlib import Path

import pytest
from shared_data import shared

from jaxalign.config import load_config
from jaxalign.experiments.mrm import MRMRunConfig, run

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.slow


def _run(name, folder, out, *options):
    source = str(shared(folder))
    config = load_config(MRMRunConfig, ROOT / "configs" / "mrm" / f"{name}.yaml", options)
    return run(config, source, out, show=False)


def test_jester_personalises(tmp_path):
    report = _run("jester", "jester5k", tmp_path / "run", "--split.item_folds", "0")
    chosen = report["new_users"][report["selected"]["new_users"]]
    assert chosen["gain"] >= 0.020
    assert chosen["gain_low"] > 0.015
    assert {"mrm_published", "mrm", "bayes", "item_ids", "bt"} <= set(report["new_users"])
    # As published, adaptation flips next to no prediction.
    assert report["new_users"]["mrm_published"]["flipped"] < 0.02


def test_ukpconvarg1_does_no_harm(tmp_path):
    report = _run("ukpconvarg1", "ukpconvarg1", tmp_path / "run", "--split.item_folds", "0")
    chosen = report["new_users"][report["selected"]["new_users"]]
    assert chosen["gain_high"] >= 0.0
