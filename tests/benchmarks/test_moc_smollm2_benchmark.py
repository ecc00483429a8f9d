"""The benchmark of MOC on a real model: equal budgets, and its table over seeds."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import moc_cli_world
import numpy as np
import pytest
import tiny_lms
import yaml

from benchmarks import moc_smollm2
from jaxalign.config import load_config
from jaxalign.experiments.moc import MocRunConfig
from jaxalign.experiments.moc.evaluation import Evaluation
from jaxalign.experiments.moc.statistics import evaluation_report
from jaxalign.rewards.reward_scale import RewardScale

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
        policy="adapters",
        scale=RewardScale(("a", "b"), *np.array([[0, 0], [1, 1], [0, 0], [1, 1]])),
        preferences=points,
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
    # What no training is needed for is judged once.
    reports[0]["policies"]["tried"] = reports[0]["policies"]["adapters"]
    over_seeds = moc_smollm2.over_seeds(reports)
    assert over_seeds["tried"]["seen"]["kl"] == [1.0]
    text = moc_smollm2.table(over_seeds, ("a", "b"))
    assert "2.00 (1.00 to 3.00)" in text
    assert "| adapters | seen |" in text


def test_system_prompts_are_judged_with_the_first_seed(tmp_path, monkeypatch):
    judged = []

    def evaluate(config, model, out, others, *, resume):
        judged.append((model.parent.name, config.system_prompts))
        report = evaluation_report([evaluated(len(judged))], draws=2)
        out.mkdir(parents=True)
        (out / "report.json").write_text(json.dumps(report | {"rewards": ["a", "b"]}))

    monkeypatch.setattr(moc_smollm2, "_train", lambda *_: None)
    monkeypatch.setattr(moc_smollm2, "evaluate", evaluate)
    parser = argparse.ArgumentParser()
    moc_smollm2.add_arguments(parser)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(
        f"--runs {tmp_path} --out {tmp_path} --seeds 4 5 6 --system-prompts said.txt".split()
    )
    assert moc_smollm2.run(arguments) == 0
    assert judged == [("seed4", "said.txt"), ("seed5", None), ("seed6", None)]


def test_the_demo_answers_are_written_as_completions(tmp_path):
    moc_smollm2.write_completions(tmp_path / "completions.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    assert len(rows) > 3000
    assert set(rows[0]) == {"prompt", "completion"}
    assert len({row["prompt"] for row in rows}) == 200


@pytest.mark.slow
def test_the_whole_benchmark_on_a_tiny_model_and_again(tmp_path):
    tiny = json.loads(json.dumps(moc_cli_world.CONFIG))
    tiny["prompts"]["limit"] = 8
    tiny["conflict_prompts"] = 0
    tiny["moc"] |= {"steps": 2, "conditioning": "adapters", "advantage_baseline": "group"}
    (tmp_path / "tiny.yaml").write_text(yaml.dump(tiny))
    (tmp_path / "system.txt").write_text("say it\nsay the word\n")
    parser = argparse.ArgumentParser()
    moc_smollm2.add_arguments(parser)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(
        f"--config {tmp_path}/tiny.yaml --model {tiny_lms.write(tmp_path / 'model', 'llama')} "
        f"--runs {tmp_path}/runs --seeds 0 --samples 1 --best-of 2 --out {tmp_path}/out "
        f"--system-prompts {tmp_path}/system.txt".split()
    )
    assert moc_smollm2.run(arguments) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert list(result["policies"]) == [
        "adapters", "ric", "adapters_after_ric", "MODPO", "MORLHF", "soups", "MOD",
        "best of 2 of the reference", "best of 2 system prompts",
    ]  # fmt: skip
    for parts in result["policies"].values():
        assert np.isfinite(parts["seen"]["hypervolume"]).all()
    reports = sorted((tmp_path / "runs").rglob("report.json"))
    times = [path.stat().st_mtime_ns for path in reports]
    assert moc_smollm2.run(arguments) == 0  # what is finished stays
    assert [path.stat().st_mtime_ns for path in reports] == times
    arguments.only = ["adapters", "even"]
    assert moc_smollm2.run(arguments) == 0
    some = json.loads((tmp_path / "out" / "result.json").read_text())
    assert list(some["policies"])[:2] == ["adapters", "MORLHF"]
    adapters = (found["policies"]["adapters"]["seen"] for found in (some, result))
    assert next(adapters) == next(adapters)
