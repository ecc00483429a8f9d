"""`jaxalign palm` over trained policies: five adapters to a portfolio, through the command line."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny_lms
from cli_calls import call, refused, write_rows

from jaxalign import palm
from jaxalign.models import load_language_model, lora, save_adapter
from jaxalign.personalize import serve
from jaxalign.personalize.policies import identity
from jaxalign.personalize.policy_oracle import AnswerOracle

WORDS = ("the", "thing", "in", "an", "inn", "than", "then", "thin", "ant", "hen", "tin", "net")
QUICK = ("--rewards", "brevity", "simplicity", "--policies.max_tokens", "6", "--draws", "50",
         "--policies.samples", "4", "--compare", "1", "--policies.batch_size", "24")  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny model and three adapters, away from their start as if they had been trained."""
    root = tmp_path_factory.mktemp("policies")
    base = tiny_lms.write(root / "base", "llama")
    model = load_language_model(str(base))
    for seed, name in enumerate(("kind", "brief", "plain")):
        config = lora.LoraConfig(2, 4.0, targets=("query", "up"))
        tree = lora.init(jax.random.key(seed), config, model.params)
        rng = np.random.default_rng(seed)
        tree = jax.tree.map(lambda x, r=rng: x + r.normal(0, 0.5, x.shape).astype("f"), tree)
        save_adapter(root / name, tree, config, str(base), model.config)
    write_rows(root / "prompts.jsonl", [{"prompt": f"say {word}"} for word in WORDS])
    write_rows(root / "others.jsonl", [{"prompt": f"tell {word}"} for word in WORDS])
    return root


def build(world, out, *words, names=("kind", "brief", "plain")):
    folders = [world / name for name in names]
    return call("palm", "build", "--policies", *folders, "--data", world / "prompts.jsonl",
                "--out", out, *QUICK, *words)  # fmt: skip


@pytest.fixture(scope="module")
def built(world):
    out = world / "built"
    result = build(world, out, "--policies.steps", "2", "--palm.size", "3")
    assert result.code == 0, result.err
    assert "6 policies (soups of kind, brief, plain), 12 prompts" in result.err
    return out


def test_adapters_and_their_soups_become_a_portfolio(built):
    report = json.loads((built / "report.json").read_text())
    assert report["prompts"] == {"chosen_on": 6, "certified_on": 6}
    assert report["policies"]["kind"] == "soups"
    assert len(report["policies"]["pool"]) == 6
    portfolio = palm.load(built)
    weights = portfolio.members.payload["weight"]
    assert len(np.unique(portfolio.values, axis=0)) == len(weights) <= 4
    for row, member in zip(weights[1:], report["members"][1:], strict=True):
        assert list(member["made_of"]) == ["kind", "brief", "plain"]
        assert list(member["made_of"].values()) == row.tolist()
        assert sum(row) == pytest.approx(1)
    # Finite prompts: what is stated is relative to the pool, with the error of its estimate.
    certificate = report["certificate"]
    assert certificate["scope"] == "relative to the pool"
    low, high = certificate["sampling_95"]
    assert low <= certificate["pool"]["additive"]["value"] <= high
    held = report["held_out"]
    assert held["additive_low"] <= held["additive"]["value"] <= held["additive_high"]


def test_the_portfolio_is_loaded_with_its_policies(world, built):
    about = serve.about_policies(built)
    assert about.names == ("kind", "brief", "plain")
    serving = serve.load(built, load_language_model(about.base))
    assert tuple(identity(serving.policies)) == about.identity
    shutil.copytree(world / "built", world / "moved" / "built")
    assert serve.about_policies(world / "moved" / "built") == about


def test_a_stopped_build_goes_on_where_it_was(world, built, tmp_path, monkeypatch):
    """Stopped after two of the policies: the rest is drawn, and the report is the same."""
    words, drawn = ("--policies.steps", "2", "--palm.size", "3"), []
    draw = AnswerOracle._draw

    def counted(self, weights, size, title):
        if len(drawn) == 3 and not (tmp_path / "going").exists():
            raise KeyboardInterrupt
        drawn.append(title)
        return draw(self, weights, size, title)

    monkeypatch.setattr(AnswerOracle, "_draw", counted)
    stopped = build(world, tmp_path / "part", *words)
    assert stopped.code == 130
    refused(build(world, tmp_path / "part", *words), "--resume")
    for change in (("--policies.samples", "3"), ("--policies.temperature", "0.7"),
                   ("--policies.kind", "mixing")):  # fmt: skip
        other = build(world, tmp_path / "part", *words, *change,
                      "--resume")  # fmt: skip
        refused(other, "another run")
    fewer = build(world, tmp_path / "part", *words, "--resume",
                  names=("kind", "plain", "brief"))  # fmt: skip
    refused(fewer, "another run")
    (tmp_path / "going").touch()
    drawn.clear()
    again = build(world, tmp_path / "part", *words, "--resume")
    assert again.code == 0, again.err
    assert "policy 1 of 1," not in drawn[0]  # the reference is there
    whole, part = (
        json.loads((folder / "report.json").read_text()) for folder in (built, tmp_path / "part")
    )
    for name in ("members", "certificate", "held_out"):
        assert whole[name] == part[name]


@pytest.mark.parametrize("kind", ["mixing", "separate"])
def test_mixtures_and_separate_policies(world, tmp_path, kind):
    result = build(world, tmp_path / "out", "--policies.kind", kind, "--policies.steps", "2",
                   names=("kind", "brief"))  # fmt: skip
    assert result.code == 0, result.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    expected = [[0, 1], [0.5, 0.5], [1, 0]] if kind == "mixing" else [[1, 0], [0, 1]]
    assert report["policies"]["pool"] == expected
    about = serve.about_policies(tmp_path / "out")
    assert (about.kind, about.names) == (kind, ("kind", "brief"))


def test_certified_on_other_prompts_and_routed(world, built, tmp_path):
    certify = ("palm", "certify", "--portfolio", built, "--out", tmp_path / "certificate.json")
    result = call(*certify, "--data", world / "others.jsonl")
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "certificate.json").read_text())
    assert found["prompts"] == 12
    assert found["additive_low"] <= found["additive"]["value"] <= found["additive_high"]
    # Of the prompts of the build, those that the members were chosen on are left out.
    assert call(*certify, "--data", world / "prompts.jsonl").code == 0
    again = json.loads((tmp_path / "certificate.json").read_text())
    own = json.loads((built / "report.json").read_text())["held_out"]
    assert again["prompts"] == own["prompts"] == 6
    rows = [{"user": f"u{n}", "brevity": n / 4, "simplicity": 1 - n / 4} for n in range(5)]
    out = tmp_path / "new" / "folder" / "routed.jsonl"
    result = call("palm", "route", "--portfolio", built, "--out", out,
                  "--users", write_rows(tmp_path / "users.jsonl", rows))  # fmt: skip
    assert result.code == 0, result.err
    weights = np.array([[row["brevity"], row["simplicity"]] for row in rows])
    portfolio = palm.load(built)
    routed = [json.loads(line) for line in out.read_text().splitlines()]
    scores = weights @ portfolio.values.T
    assert [row["member"] for row in routed] == scores.argmax(axis=1).tolist()


def test_what_cannot_be_a_policy_is_refused(world, tmp_path):
    def said(*words, names=("kind",)):
        return build(world, tmp_path / "out", *words, names=names)

    refused(said(names=("kind", "nowhere")), "nowhere holds neither a LoRA adapter", "jaxalign sft")
    refused(said(names=("base",)), "base holds a whole model", "--trunk.method lora")
    refused(said("--policies.kind", "conditioned"), "found conditioned for 1 adapters")
    refused(said("--policies.samples", "1"), "samples: found 1, expected 2 or more")
    refused(said("--export"), "--export and --policies are both given")
    folders = ("palm", "build", "--policies", world / "kind", "--out", tmp_path / "out")
    refused(call(*folders, "--data", world / "prompts.jsonl"), "rewards: found none", "--rewards")
    few = write_rows(tmp_path / "few.jsonl", [{"prompt": f"say {n}"} for n in range(3)])
    one = (*folders, "--data", few, "--rewards", "brevity")
    refused(call(*one), "policies.max_tokens: found 128", "lower it")
    refused(call(*one, "--policies.max_tokens", "6"), "found 3 prompts", "at least 4")
    assert not (tmp_path / "out").exists()
