"""The benchmark of MOC on a real model: equal budgets, and its table over seeds."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import moc_smollm2
from jaxalign.config import load_config
from jaxalign.experiments.moc import MocRunConfig
from jaxalign.experiments.moc.evaluation import Evaluation
from jaxalign.experiments.moc.statistics import evaluation_report

CONFIG = load_config(MocRunConfig, "moc/simplicity_warmth", [])


def test_soups_and_adapters_have_one_budget():
    made = {one.name: one.config for one in moc_smollm2.trainings(CONFIG, 3, "scored.jsonl")}
    assert list(made) == [
        "adapters", "only_simplicity", "only_warmth", "even", "ric", "adapters_after_ric",
        "modpo_simplicity", "modpo_warmth", "modpo_even",
    ]  # fmt: skip
    assert {one.moc.seed for one in made.values()} == {3}
    answers = {name: one.moc.steps * one.moc.batch for name, one in made.items()}
    assert answers["adapters"] == answers["only_simplicity"] + answers["only_warmth"] == 1280
    # The same signal: all else is the config's.
    for name in ("only_simplicity", "only_warmth", "even"):
        alone = made[name]
        assert alone.baseline == "morlhf"
        assert replace(alone.moc, steps=80) == made["adapters"].moc
    assert made["only_warmth"].weight == "simplicity=0,warmth=1"
    assert made["ric"].baseline == "ric"
    assert made["adapters_after_ric"].warm_start.data == "scored.jsonl"


def evaluated(seed):
    random = np.random.default_rng(seed)
    points = np.stack([np.linspace(1, 0, 3), np.linspace(0, 1, 3)], 1)
    return Evaluation(
        policy="adapters", names=("a", "b"), digest="0" * 64, preferences=points,
        seen=np.ones(3, bool), rewards=points[:, None] + random.normal(size=(3, 6, 2)) / 10,
        kl=np.full((3, 6), 1.0 + seed), entropy=np.ones(3), tokens=np.ones(3),
        prompts=tuple("abcdef"), completions=(("one two",) * 6,) * 3, samples=1, temperature=1.0,
    )  # fmt: skip


def test_the_table_is_over_seeds():
    reports = [evaluation_report([evaluated(seed)], draws=2) for seed in (0, 1, 2)]
    reports = [json.loads(json.dumps(report)) for report in reports]
    found = moc_smollm2.over_seeds(reports)["adapters"]["seen"]
    assert found["kl"] == [1.0, 2.0, 3.0]
    assert found["tau a"] == pytest.approx([1.0, 1.0, 1.0])
    hypervolumes = [
        report["policies"]["adapters"]["parts"]["seen"]["hypervolume"]["value"]
        for report in reports
    ]
    assert found["hypervolume"] == hypervolumes
    text = moc_smollm2.table(moc_smollm2.over_seeds(reports), ("a", "b"))
    assert "2.00 (1.00 to 3.00)" in text
    assert "| adapters | seen |" in text


def test_the_demo_answers_are_written_as_completions(tmp_path):
    moc_smollm2.write_completions(tmp_path / "completions.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    assert len(rows) > 3000
    assert set(rows[0]) == {"prompt", "completion"}
    assert len({row["prompt"] for row in rows}) == 200
