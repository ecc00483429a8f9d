"""Real people's choices, by the shipped configs: personalisation is proven, harm avoided."""

from pathlib import Path

import pytest
from shared_data import shared

from jaxalign.config import load_config
from jaxalign.experiments.mrm import MRMRunConfig, run

ROOT = Path(__file__).resolve().parents[3]
pytestmark = [pytest.mark.slow, pytest.mark.optimised]


def _run(name, folder, out, *options):
    source = str(shared(folder))
    # Nothing claimed here is about the spread over seeds, which only the networks have.
    options = ("--split.item_folds", "0", "--seeds", "1", *options)
    config = load_config(MRMRunConfig, ROOT / "configs" / "mrm" / f"{name}.yaml", options)
    return run(config, source, out, show=False)


def test_jester_personalises(tmp_path):
    # The validation users alone choose the gates: five more fits of `bayes` would take ten minutes.
    report = _run("jester", "jester5k", tmp_path / "run", "--adaptation.enough_for_gate", "2")
    chosen = report["new_users"][report["selected"]["new_users"]]
    assert chosen["gain"] >= 0.020
    assert chosen["gain_low"] > 0.015
    # A gate leaves alone whom adaptation would rather harm, and says how much of harm is noise.
    assert report["adaptation"][report["selected"]["new_users"]]["p"] < 1e-6
    assert 0.2 < chosen["harm_floor"] < chosen["harmed"]
    for form, most, least in (("support", 0.25, 0.023), ("pairs", 0.22, 0.025)):
        gate = {key: chosen[f"gate_{form}_{key}"] for key in ("harmed", "gain", "random_gain")}
        assert gate["harmed"] <= most
        assert gate["gain"] >= least
        assert gate["gain"] > gate["random_gain"]
    assert {"mrm_published", "mrm", "bayes", "item_ids", "bt"} <= set(report["new_users"])
    # As published, adaptation flips next to no prediction.
    assert report["new_users"]["mrm_published"]["flipped"] < 0.02


def test_ukpconvarg1_does_no_harm(tmp_path):
    report = _run("ukpconvarg1", "ukpconvarg1", tmp_path / "run")
    chosen = report["new_users"][report["selected"]["new_users"]]
    assert chosen["gain_high"] >= 0.0
