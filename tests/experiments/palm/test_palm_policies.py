"""`jaxalign palm` over trained policies: five adapters to a portfolio, through the command line."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny_lms
from cli_calls import call, write_rows

from jaxalign import palm
from jaxalign.models import load_language_model, lora, save_adapter
from jaxalign.personalize import serve
from jaxalign.personalize.policies import identity

WORDS = ("the", "thing", "in", "an", "inn", "than", "then", "thin", "ant", "hen", "tin", "net")
QUICK = ("--rewards", "brevity", "simplicity", "--policies.max_tokens", "6", "--draws", "50",
         "--policies.samples", "4", "--compare", "1")  # fmt: skip


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
