"""`jaxalign moc train` with completions that exist already: RiC, MODPO, and refusals."""

import json

import chex
import numpy as np
import pytest
from cli_calls import refused
from moc_cli_world import PROMPTS, build, train, weights_of

from jaxalign.errors import InputError
from jaxalign.experiments.moc import _run
from jaxalign.experiments.moc._evaluate import evaluated_policies, load_run
from jaxalign.moc import load


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build(tmp_path_factory.mktemp("moc_warm_start"))


@pytest.fixture(scope="module")
def scored(world):
    """Completions of every prompt, long and short."""
    path = world.root / "scored.jsonl"
    texts = ("the thing in the inn is a thing in the inn", "in", "an ant")
    rows = [{"prompt": prompt, "completion": text} for prompt in PROMPTS for text in texts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


WARM = ("--conflict_prompts", 0, "--warm_start.loop.batch_size", 4, "--warm_start.data")


@pytest.fixture(scope="module")
def ric(world, scored):
    """A policy after its warm start alone."""
    out = world.root / "ric"
    result = train(world, out, "--baseline", "ric", *WARM, scored)
    assert result.code == 0, result.err
    assert "warm start: " in result.err
    return out


def test_a_policy_is_warmed_up_by_scored_completions_alone(world, ric, tmp_path):
    report = json.loads((ric / "report.json").read_text())
    assert (report["steps"], report["first"], report["baseline"]) == (0, {}, "ric")
    losses = [
        json.loads(line) for line in (ric / "warm_start" / "metrics.jsonl").read_text().splitlines()
    ]
    assert losses[-1]["loss"] < losses[0]["loss"]
    assert any(np.abs(value).max() > 0 for name, value in weights_of(ric / "model").items()
               if "lora_B" in name)  # fmt: skip
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"prompt": PROMPTS[0], "completion": "net"}) + "\n")
    again = train(world, ric, "--baseline", "ric", *WARM, other, "--resume")
    refused(again, "another run (warm_start.data was")


def test_ppo_goes_on_from_a_warm_start(world, scored, ric, tmp_path, monkeypatch):
    def begin(policy, *_):
        chex.assert_trees_all_close(
            policy.trained["adapter"], load(ric / "model").trained["adapter"], atol=1e-7
        )
        raise InputError("PPO begins")

    monkeypatch.setattr(_run, "train", begin)
    refused(train(world, tmp_path / "run", *WARM, scored), "PPO begins")


def test_modpo_learns_a_weighting_from_pairs(world, scored, ric, tmp_path):
    out = tmp_path / "modpo"
    options = ("--baseline", "modpo", "--weight", "brevity=1", *WARM, scored)
    result = train(world, out, *options)
    assert result.code == 0, result.err
    assert "pairs of completions, labelled by brevity" in " ".join(result.err.split())
    assert json.loads((out / "report.json").read_text())["steps"] == 0
    found = evaluated_policies(load_run(ric), [load_run(out)])
    assert [one.name for one in found] == ["ric", "MODPO"]


def test_refusals_of_a_warm_start(world, scored, tmp_path):
    out = tmp_path / "run"
    refused(train(world, out, "--baseline", "ric"), "warm_start.data is null", "baseline ric")
    modpo = ("--baseline", "modpo", "--weight", "brevity=1")
    refused(train(world, out, *modpo), "warm_start.data is null", "baseline modpo")
    refused(train(world, out, *modpo[:2]), "expected a weight such as")
    alone = tmp_path / "alone.jsonl"
    alone.write_text(
        "".join(json.dumps({"prompt": p, "completion": "net"}) + "\n" for p in PROMPTS)
    )
    refused(
        train(world, tmp_path / "late", *modpo, *WARM, alone),
        "no prompt has two completions with different",
    )
    refused(train(world, out, "--warm_start.data", tmp_path / "none.jsonl"), "none.jsonl")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "say the", "completion": 3}\n')
    refused(train(world, out, "--warm_start.data", bad), "bad.jsonl, line 1", "completion")
    bad.write_text('{"prompt": "other", "completion": "words"}\n')
    refused(
        train(world, out, "--warm_start.data", bad),
        "warm_start.data: none of 1 row completes a prompt that the run trains on",
    )
    refused(train(world, out, "--warm_start.keep", 2), "warm_start.keep: found 2.0")
    assert not out.exists()  # nothing was begun
