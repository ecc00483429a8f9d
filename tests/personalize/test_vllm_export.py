"""`jaxalign export vllm`: adapters that do what the policies do, their table, and the script."""

import json
import subprocess
from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny_lms
from cli_calls import call, digest, refused
from safetensors.numpy import load_file

from jaxalign import moc, palm
from jaxalign.moc.config import MocConfig
from jaxalign.moc.policy import init_policy
from jaxalign.moc.value_table import ValueTable
from jaxalign.models import load_language_model, lora, save_adapter
from jaxalign.models.weights.adapter import CONFIG
from jaxalign.personalize import Serving
from jaxalign.personalize.policies import Mixing, Separate, Soups, open_models
from jaxalign.personalize.saved import open_policies
from jaxalign.personalize.vllm_export import RANKS
from jaxalign.rewards.reward_scale import RewardScale
from jaxalign.train.trunk import TrunkConfig

NAMES = ("early", "brief")
# A level is 6 and 3 standard deviations wide.
SCALE = RewardScale(NAMES, [0.2, 0.5], [0.1, 0.2], [-0.1, 0.2], [0.5, 0.8])
WEIGHTS = np.array([[0.0, 0.0], [1.0, 0.0], [0.25, 0.75]])


def moved(seed, rank, alpha, targets, model):
    """An adapter away from the start, as if it had been trained."""
    config = lora.LoraConfig(rank, alpha, targets=targets)
    rng = np.random.default_rng(seed)
    tree = lora.init(jax.random.key(seed), config, model.params)
    return config, jax.tree.map(lambda x: x + rng.normal(0, 0.5, x.shape).astype("f"), tree)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_language_model(str(tiny_lms.write(tmp_path_factory.mktemp("base"), "llama")))


@pytest.fixture(scope="module")
def adapters(model):
    """Of different ranks, scales and matrices."""
    return (
        moved(0, 2, 3.0, ("query", "up"), model),
        moved(1, 7, 5.0, ("query", "down"), model),
    )


@pytest.fixture(scope="module")
def portfolio():
    oracle = palm.ClosedForm(np.random.default_rng(0).random((6, 5, 2)), None, beta=0.1)
    built = palm.build(oracle, palm.PalmConfig(size=2, targets="corners"), scale=SCALE)
    return replace(built, members=replace(built.members, payload={"weight": WEIGHTS}))


def saved(folder, portfolio, policies, model):
    Serving(portfolio, policies, model, NAMES).save(folder)
    return folder


def export(folder, out, option="--portfolio"):
    return call("export", "vllm", option, folder, "--out", out)


def update_of(folder):
    """Module -> what the adapter of a folder adds to it, by the one scale that vLLM reads."""
    settings = json.loads((folder / CONFIG).read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    modules = {name.rpartition(".lora_")[0] for name in tensors}
    scale = settings["lora_alpha"] / settings["r"]
    found = {}
    for module in modules:
        a, b = (tensors[f"{module}.lora_{part}.weight"].astype(np.float64) for part in "AB")
        found[module] = scale * (b @ a)
    return found, a.shape[0]


def test_a_soup_becomes_one_adapter_with_the_same_update(tmp_path, model, adapters, portfolio):
    folder = saved(tmp_path / "soups", portfolio, Soups(adapters), model)
    result = export(folder, tmp_path / "out")
    assert result.code == 0, result.err
    assert "2 adapters of" in result.out
    assert "of ranks up to 16" in result.out
    own = [update_of(folder / "adapters" / str(number))[0] for number in (0, 1)]
    table = json.loads((tmp_path / "out" / "routing.json").read_text())
    for policy, weights in zip(table["policies"], WEIGHTS[1:], strict=True):
        found, rank = update_of(tmp_path / "out" / policy["folder"])
        settings = json.loads((tmp_path / "out" / policy["folder"] / CONFIG).read_text())
        assert rank == policy["rank"] == settings["r"]
        assert not settings["rank_pattern"]
        assert rank in RANKS
        for module, update in found.items():
            parts = zip(weights, own, strict=True)
            expected = sum(w * part[module] for w, part in parts if module in part)
            np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-6)
        used = {name for w, part in zip(weights, own, strict=True) if w for name in part}
        assert set(found) == used
    # Two ranks of 2 and of 7, each padded to the larger one and put side by side, are 14.
    assert [policy["rank"] for policy in table["policies"]] == [8, 16]


def test_the_table_says_what_the_policies_achieve(tmp_path, model, adapters, portfolio):
    folder = saved(tmp_path / "separate", portfolio, Separate(adapters), model)
    separate = replace(portfolio.members, payload={"weight": np.array([[0.0, 0], [1, 0], [0, 1]])})
    portfolio = replace(portfolio, members=separate)
    saved(folder, portfolio, Separate(adapters), model)
    assert export(folder, tmp_path / "out").code == 0
    table = json.loads((tmp_path / "out" / "routing.json").read_text())
    levels = portfolio.members.rewards
    expected = (levels - levels[0]) * [6.0, 3.0]
    found = [policy["rewards"] for policy in table["policies"]]
    np.testing.assert_allclose(found, expected[1:], rtol=1e-6)
    assert [policy["weights"] for policy in table["policies"]] == [[1, 0], [0, 1]]
    assert table["rewards"] == {"names": list(NAMES), "digest": SCALE.digest}
    assert table["base_sha256"] == model.sha256
    assert [policy["rank"] for policy in table["policies"]] == [8, 8]
    assert (
        tuple(policy["name"] for policy in table["policies"])
        == (open_policies(folder, None).names[1:])
    )


def test_a_portfolio_of_the_reference_alone_is_refused(tmp_path, model, adapters):
    oracle = palm.ClosedForm(np.random.default_rng(0).random((6, 5, 2)), None, beta=0.1)
    built = palm.build(oracle, palm.PalmConfig(size=1, targets="corners"), scale=SCALE)
    kept = replace(built.members.take([0]), payload={"weight": WEIGHTS[:1]})
    alone = replace(built, members=kept)
    folder = saved(tmp_path / "alone", alone, Soups(adapters), model)
    refused(export(folder, tmp_path / "out"), "found only the reference", "serve the base model")


def test_names_differ_for_other_members_and_other_adapters(tmp_path, model, adapters, portfolio):
    folder = saved(tmp_path / "one", portfolio, Soups(adapters), model)
    other = saved(tmp_path / "other", portfolio, Soups(adapters[::-1]), model)
    third = replace(portfolio.members, payload={"weight": WEIGHTS[:, ::-1]})
    third = saved(tmp_path / "third", replace(portfolio, members=third), Soups(adapters), model)
    names = [open_policies(place, None).names for place in (folder, other, third)]
    assert len({name for some in names for name in some}) == 9
    saved(tmp_path / "again", portfolio, Soups(adapters), model)
    assert open_policies(tmp_path / "again", None).names == names[0]


def test_the_script_starts_vllm_with_adapters_that_are_there(
    tmp_path, model, adapters, portfolio, monkeypatch
):
    folder = saved(tmp_path / "soups", portfolio, Soups(adapters), model)
    assert export(folder, tmp_path / "first place").code == 0
    out = (tmp_path / "first place").rename(tmp_path / "another place")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "vllm").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (programs / "vllm").chmod(0o700)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    said = subprocess.run(
        ["sh", str(out / "start_vllm.sh"), "--port", "8001"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert said[:2] == ["serve", model.name]
    assert said[-2:] == ["--port", "8001"]
    assert said[said.index("--max-lora-rank") + 1] == "16"
    assert said[said.index("--max-loras") + 1] == "2"
    modules = dict(one.split("=", 1) for one in said[said.index("--lora-modules") + 1 : -2])
    assert tuple(modules) == open_policies(folder, None).names[1:]
    for place in modules.values():
        assert update_of(type(out)(place))[1] in RANKS


def test_preferences_of_a_policy_become_adapters(tmp_path, model):
    def policy(conditioning):
        trunk = TrunkConfig(lora=lora.LoraConfig(3, 5.0, targets=("query", "up")))
        config = MocConfig(conditioning=conditioning, trunk=trunk)
        made = init_policy(jax.random.key(1), model, NAMES, config, SCALE)
        rng = np.random.default_rng(2)
        tree = jax.tree.map(
            lambda x: x + rng.normal(0, 0.5, x.shape).astype("f"), made.trained["adapter"]
        )
        made = replace(made, trained={**made.trained, "adapter": tree})
        moc.save(tmp_path / conditioning, made)
        preferences = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
        achieved = np.array([[1.0, -0.5], [0.4, 0.4], [-0.5, 1.0]])
        table = ValueTable(preferences, achieved, np.ones(3), SCALE.ids.names, SCALE.digest)
        table.save(tmp_path / conditioning)
        return made

    made = policy("adapters")
    result = export(tmp_path / "adapters", tmp_path / "out", "--policy")
    assert result.code == 0, result.err
    table = json.loads((tmp_path / "out" / "routing.json").read_text())
    assert [one["rewards"] for one in table["policies"]] == [[1, -0.5], [0.4, 0.4], [-0.5, 1]]
    for one in table["policies"]:
        moc.save_preference(tmp_path / one["name"], made, one["weights"])
        expected, _ = update_of(tmp_path / one["name"])
        found, rank = update_of(tmp_path / "out" / one["folder"])
        assert rank == 8
        assert found.keys() == expected.keys()
        for module, update in found.items():
            np.testing.assert_allclose(update, expected[module], rtol=1e-5, atol=1e-6)
    policy("tags")
    said = refused(export(tmp_path / "tags", tmp_path / "no", "--policy"))
    assert "given preferences by tags" in said
    assert "--moc.conditioning adapters" in said


def test_what_vllm_does_not_serve_is_refused(tmp_path, model, adapters, portfolio):
    out = tmp_path / "out"
    folder = saved(tmp_path / "mixing", portfolio, Mixing(adapters), model)
    refused(export(folder, out), "several adapters together", "--policies.kind soups")
    whole = [str(tiny_lms.write(tmp_path / name, "llama")) for name in "ab"]
    folder = saved(tmp_path / "whole", portfolio, open_models(model, whole), model)
    refused(export(folder, out), "whole models", "fine-tune adapters")
    large = (moved(0, 300, 3.0, ("query",), model), adapters[1])
    folder = saved(tmp_path / "large", portfolio, Soups(large), model)
    refused(export(folder, out), "has rank 600", "expected 512 or less", "separate")
    gpt2 = load_language_model(str(tiny_lms.write(tmp_path / "gpt2", "gpt2")))
    both = tuple(moved(seed, 2, 3.0, ("qkv",), gpt2) for seed in (0, 1))
    folder = saved(tmp_path / "of gpt2", portfolio, Soups(both), gpt2)
    refused(export(folder, out), "is a GPT-2", "--engine local")
    save_adapter(tmp_path / "below", adapters[0][1], adapters[0][0], model.name, model.config)
    adapted = load_language_model(str(tmp_path / "below"))
    folder = saved(tmp_path / "above", portfolio, Soups(adapters), adapted)
    refused(export(folder, out), "is a LoRA adapter itself", "jaxalign merge")
    assert not out.exists()
    refused(call("export", "vllm", "--out", out), "found neither of --portfolio and --policy")


def test_a_folder_in_use_is_left_alone(tmp_path, model, adapters, portfolio):
    folder = saved(tmp_path / "soups", portfolio, Soups(adapters), model)
    before = digest(folder)
    refused(export(folder, folder), "is the folder that is read")
    assert export(folder, tmp_path / "out").code == 0
    refused(export(folder, tmp_path / "out"), "is not empty", "holds adapters of `jaxalign export")
    assert digest(folder) == before
