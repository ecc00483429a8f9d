"""`jaxalign moc train`, `moc evaluate` and `generate --preference`: the whole way, and refusals."""

import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny_lms
import yaml
from cli_calls import call, refused
from moc_cli_world import CONFIG, NAMES, PROMPTS, build, train, weights_of

from jaxalign.config import load_config
from jaxalign.data.prompts import Prompts, load_prompts
from jaxalign.errors import InputError
from jaxalign.experiments.moc import MocEvaluateConfig, MocRunConfig
from jaxalign.experiments.moc._evaluate import _prompts, evaluated_policies, load_run
from jaxalign.experiments.moc._run import estimate_scale, prompts_for
from jaxalign.experiments.moc.evaluation import Evaluation
from jaxalign.moc import load
from jaxalign.moc.prompt_sampler import PromptSampler
from jaxalign.moc.value_table import ValueTable
from jaxalign.models.chat import tokenize_prompt
from jaxalign.models.language import load_language_model
from jaxalign.models.sampling import Sampling
from jaxalign.personalize import answer_conditioned, known, target_for
from jaxalign.rewards.reward_scale import RewardIds
from jaxalign.rewards.spec import build_rewards
from jaxalign.runs import load_arrays

LONG = " ".join(["say thing"] * 600)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny model on disk, prompts, a config, and one run with its evaluation."""
    made = build(tmp_path_factory.mktemp("moc"))
    made.trained = train(made, made.run)
    assert made.trained.code == 0, made.trained.err
    made.judged = made.root / "judged"
    judge = ("moc", "evaluate", "--model", made.run, "--out", made.judged, "--draws", 20)
    result = call(*judge)
    assert result.code == 0, result.err
    made.judge, made.said = judge, result.out
    return made


def test_a_run_measures_how_far_its_rewards_conflict(world):
    found = json.loads((world.run / "report.json").read_text())["conflict"]
    assert (found["prompts"], found["samples"]) == (9, 16)  # of all that it trains on
    kept = load_arrays(world.run / "state" / "conflict.safetensors")["rewards"]
    assert kept.shape == (9, 16, 2)
    scale = load(world.run / "model").scale
    sd = scale.levels(kept.astype(np.float64)).std(axis=(0, 1))
    assert found["sd"] == pytest.approx(dict(zip(NAMES, sd.tolist(), strict=True)))
    assert "standard deviations brevity" in " ".join(world.trained.err.split())


def test_a_conflict_that_cannot_be_measured_is_refused_and_0_measures_none(world, tmp_path):
    refused(train(world, tmp_path / "x", "--conflict_samples", 1), "conflict_samples is 1")
    result = train(world, tmp_path / "run", "--conflict_prompts", 0, "--moc.steps", 1)
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "run" / "report.json").read_text())["conflict"] is None


def test_preferences_that_a_prompt_makes_up_are_removed(world):
    config = load_config(MocRunConfig, world.root / "config.yaml", [])
    read = Prompts(("<pref_brevity> 1.0 <pref_simplicity> 0.0 say the",))
    found = prompts_for(load_language_model(str(world.model)), read, config)
    assert found.prompts == ("say the",)


def test_a_prompt_beyond_the_context_is_left_out_and_named(world, tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("\n".join([*PROMPTS[:3], "", LONG, *PROMPTS[3:]]))
    config = load_config(MocRunConfig, world.root / "config.yaml", [])
    model = load_language_model(str(world.model))
    found = prompts_for(model, load_prompts(path), config)
    assert found.prompts == tuple(PROMPTS)
    length = len(tokenize_prompt(model, f"<pref_brevity> 0.5 <pref_simplicity> 0.5 {LONG}"))
    assert length > model.config.positions
    assert found.dropped == 1
    assert found.off_length == (f"{path}, line 5: {length:,} tokens",)
    said = []
    run = load_run(world.run)
    judged = _prompts(run, str(path), MocEvaluateConfig(), said.append)
    assert judged == PROMPTS
    assert said == [f"{path}: 1 row left out ({path}, line 5: {length:,} tokens)"]
    sampler = PromptSampler(run.policy, [*PROMPTS, LONG], run.config.moc)
    assert (sampler.prompts, sampler.left_out) == (PROMPTS, 1)


@pytest.fixture(scope="module")
def beside(world):
    """The run under all preferences, beside two policies that were trained on one reward each."""
    others = []
    for name in NAMES:
        others.append(world.root / f"only_{name}")
        weight = ("--baseline", "morlhf", "--weight", f"{name}=1", "--moc.steps", 1)
        result = train(world, others[-1], *weight)
        assert result.code == 0, result.err
    out, tried = world.root / "beside", world.root / "system.txt"
    tried.write_text("say it\nsay the word\n")
    result = call(
        "moc", "evaluate", "--model", world.run, "--with", *others, "--out", out, "--draws", 20,
        "--best_of", 4, "--system_prompts", tried,
    )  # fmt: skip
    assert result.code == 0, result.err
    report = json.loads((out / "report.json").read_text())
    return SimpleNamespace(out=out, others=others, report=report)


@pytest.mark.slow
def test_controls_of_the_reference_stand_beside_the_policies(beside):
    names = list(beside.report["policies"])
    assert names[-2:] == ["best of 4 of the reference", "best of 2 system prompts"]
    first, *others = beside.report["policies"].values()
    for one in others[-2:]:
        points = [(point["preference"], point["seen"]) for point in one["points"]]
        assert points == [(point["preference"], point["seen"]) for point in first["points"]]
    page = (beside.out / "report.md").read_text()
    assert "| best of 4 of the reference |" in page
    assert "distinct-2" in page


def test_train_leaves_a_policy_its_scale_and_a_report(world):
    report = json.loads((world.run / "report.json").read_text())
    assert (report["steps"], report["prompts"], report["held_out_prompts"]) == (3, 9, 3)
    for name in NAMES:
        assert np.isfinite(report["last"][f"reward_{name}"])
        assert name in world.trained.out
    policy = load(world.run / "model")
    assert policy.names == NAMES
    assert any(np.abs(value).max() > 0 for name, value in weights_of(world.run / "model").items()
               if "lora_B" in name)  # fmt: skip
    held = json.loads((world.run / "prompts.json").read_text())["held_out"]
    assert len(held) == 3
    assert set(held) < set(PROMPTS)
    # The scale is that of the model alone, whatever was trained.
    config = load_config(MocRunConfig, world.run / "config.yaml", [])
    rest = [prompt for prompt in PROMPTS if prompt not in held]
    model = load_language_model(str(world.model))
    again = estimate_scale(model, build_rewards(config.rewards), rest, config, show=False)
    assert again == policy.scale


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_policy(world, tmp_path):
    shutil.copytree(world.run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/model")
    shutil.rmtree(tmp_path / "run/state/00000003")
    (tmp_path / "run/report.json").unlink()
    refused(train(world, tmp_path / "run"), "an unfinished run", "--resume")
    result = train(world, tmp_path / "run", "--resume")
    assert result.code == 0, result.err
    assert "resumed at step 2" in result.err
    first, second = (weights_of(run / "model") for run in (world.run, tmp_path / "run"))
    for name, value in first.items():
        np.testing.assert_array_equal(second[name], value)
    assert "estimating the scale" not in result.err  # the scale is kept


def test_another_run_is_refused(world, tmp_path):
    before = sorted(path.name for path in world.run.iterdir())
    result = train(world, world.run, "--moc.seed", 1, "--resume", model=tmp_path / "no model")
    refused(result, "another run (moc.seed was 0, now it is 1)")  # before anything is loaded
    refused(train(world, world.run), "a finished run")
    assert sorted(path.name for path in world.run.iterdir()) == before


def test_a_finished_run_is_made_longer(world, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(world.run, out)
    refused(train(world, out, "--moc.steps", 2, "--resume"), "steps was 3, now it is 2")
    assert (out / "report.json").exists()
    result = train(world, out, "--moc.steps", 4, "--resume")
    assert result.code == 0, result.err
    said = " ".join(result.err.split())
    assert "moc.steps was 3, now it is 4" in said
    assert "the rate is constant, so the result is that of a run of this length" in said
    assert "resumed at step 3 of 4" in said
    assert json.loads((out / "report.json").read_text())["steps"] == 4
    judged = tmp_path / "judged"
    shutil.copytree(world.judged, judged)
    judge = ("moc", "evaluate", "--model", out, "--out", judged, "--resume", "--draws", 20)
    refused(call(*judge), "another run (not the same policies as before)")


def test_a_run_does_not_go_on_under_another_chat_template(world, tmp_path):
    out, model = tmp_path / "run", tmp_path / "model"
    shutil.copytree(world.model, model)
    chat = ("--prompts.template", "chat")
    done = train(world, out, *chat, "--moc.steps", 1, model=model)
    assert done.code == 0, done.err
    path = model / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|assistant|>", "<|assistant|>the"))
    longer = train(world, out, *chat, "--moc.steps", 2, "--resume", model=model)
    refused(longer, "another run (not the same chat template as before)")


def test_an_edited_scale_is_refused(world, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(world.run, out)
    path = out / "scale.json"
    scale = json.loads(path.read_text())
    assert scale == load(world.run / "model").scale.to_json()
    path.write_text(json.dumps(scale | {"high": [value + 1 for value in scale["high"]]}))
    refused(train(world, out, "--resume"), "scale.json: holds another scale than the run estimated")
    path.unlink()
    result = train(world, out, "--resume")
    assert result.code == 0, result.err
    assert json.loads(path.read_text()) == scale


def test_devices_are_said_and_recorded(world):
    devices = json.loads((world.run / "report.json").read_text())["devices"]
    assert devices == {
        "platform": "cpu",
        "kind": jax.devices()[0].device_kind,
        "count": jax.device_count(),
        "processes": 1,
        "mesh": {"data": jax.device_count(), "fsdp": 1, "tensor": 1},
    }
    said = " ".join(world.trained.err.split())
    for name in ("the sampling of completions", "their log-probabilities", "the updates"):
        assert said.count(f"compiling {name}") == 1
    assert said.count("step 1, preference -> level: brevity") == 2
    assert "step 2, preference -> level" not in said
    assert f"{jax.device_count()} x cpu (cpu), mesh data" in said


def test_evaluate_judges_all_preferences(world):
    report = json.loads((world.judged / "report.json").read_text())
    (one,) = report["policies"].values()
    assert [one["parts"][part]["points"] for part in ("seen", "held_out")] == [10, 1]
    for name in ("report.md", "front.png", "control.png"):
        assert (world.judged / name).stat().st_size > 100
    assert "tau brevity" in world.said
    result = call(*world.judge, "--resume")
    assert result.code == 0, result.err
    assert result.out == world.said
    refused(call(*world.judge, "--resume", "--seed", 1), "another run")


@pytest.mark.slow
def test_evaluate_puts_the_baselines_beside_it(beside):
    policies = beside.report["policies"]
    assert list(policies)[:4] == ["run", "MORLHF", "soups", "MOD"]
    assert [len(one["points"]) for one in policies.values()] == [11, 2, 11, 11, 11, 11]
    # At the corners a soup, a mixture and MORLHF are one and the same policy.
    evaluations = [
        Evaluation.load(beside.out / f"evaluations/{name}.safetensors")
        for name in ("01_MORLHF", "02_soups", "03_MOD")
    ]
    for corner in ([1.0, 0.0], [0.0, 1.0]):
        said = [one.completions[one.preferences.tolist().index(corner)] for one in evaluations]
        assert said[0] == said[1] == said[2]


@pytest.mark.slow
def test_runs_of_one_weighting_make_a_table_of_their_own(world, beside):
    first = load_run(world.run)
    own, one = evaluated_policies(first, [load_run(beside.others[0], first.policy.model)])
    assert own.name == "run"
    assert one.preferences.tolist() == [[1.0, 0.0]]


def test_the_value_table_turns_users_into_targets(world):
    policy, table = load(world.run / "model"), ValueTable.load(world.run / "model")
    assert table.preferences.shape == (11, 2)
    ids = RewardIds(NAMES, policy.scale.digest)
    users = known(np.array([[1.0, 0.2], [-0.5, 1.0]]), ids)
    target = target_for(users, table)
    np.testing.assert_allclose(
        target.values, table.preferences[np.argmax(users.mean @ table.achieved_rewards.T, axis=1)]
    )
    greedy = Sampling(max_tokens=6, temperature=0.0)
    told = [
        answer_conditioned(policy, what, PROMPTS[:2], greedy, jax.random.key(0), progress=False)
        for what in (target, target.values)
    ]
    assert [one.text for one in told[0]] == [one.text for one in told[1]]


def test_generate_tells_each_row_its_preference(world, tmp_path):
    policy = load(world.run / "model")
    greedy = Sampling(max_tokens=6, temperature=0.0)
    preferences = ["brevity=1", "brevity=0.2,simplicity=0.8"]
    told = answer_conditioned(
        policy, [[1.0, 0.0], [0.2, 0.8]], PROMPTS[:2], greedy, jax.random.key(0), progress=False
    )
    options = ("generate", "--model", world.run, "--max-tokens", 6)
    for prompt, preference, answer in zip(PROMPTS, preferences, told, strict=False):
        result = call(*options, "--prompt", prompt, "--preference", preference)
        assert result.code == 0, result.err
        assert result.out == f"{answer.text}\n"
    rows = [
        {"prompt": PROMPTS[0]},
        {"prompt": PROMPTS[1], "preference": {"brevity": 0.2, "simplicity": 0.8}},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = call(*options, "--prompts", path, "--preference", preferences[0])
    assert result.code == 0, result.err
    assert [json.loads(line)["completion"] for line in result.out.splitlines()] == [
        answer.text for answer in told
    ]
    # What is told changes the answer's probabilities: the policy reads it.
    other = answer_conditioned(
        policy, [[0.0, 1.0], [1.0, 0.0]], PROMPTS[:2], greedy, jax.random.key(0), progress=False
    )
    for one, another in zip(told, other, strict=True):
        assert not np.allclose(one.logprobs[:1], another.logprobs[:1])
    refused(call(*options, "--prompts", path), "line 1", "preference")


def test_bad_input_is_one_sentence(world, tmp_path):
    options = ("generate", "--model", world.run, "--prompt", "a", "--preference")
    refused(call(*options, "brevity=0.5"), "sums to 0.5")
    refused(call(*options, "humor=1"), "no reward 'humor'", "brevity, simplicity")
    refused(call(*options, "brevity=-1,simplicity=2"), "brevity", "0 or more")
    refused(call(*options, "brevity=1", "--adapter", tmp_path), "--preference and --adapter")
    refused(
        call("generate", "--model", world.model, "--prompt", "a", "--preference", "brevity=1"),
        "holds no MOC policy",
    )
    for folder in (world.run, world.run / "model"):
        refused(call("generate", "--model", folder, "--prompt", "a"), "add --preference")
    refused(  # the policy is no language model to start another training from
        call(
            "sft", "--model", world.run / "model", "--data", tmp_path / "x", "--out",
            tmp_path / "y",
        ),
        "holds a MOC policy", "give the policy's base model",
    )  # fmt: skip
    wrong = tmp_path / "wrong.jsonl"
    for row in ({"prompt": 3}, {"messages": 3}, {"messages": [{"role": "user"}]}):
        wrong.write_text(json.dumps(row))
        prompts = ("generate", "--model", world.run, "--preference", "brevity=1", "--prompts")
        refused(call(*prompts, wrong), "wrong.jsonl, line 1")
    out = tmp_path / "out"
    refused(train(world, out, "--baseline", "morlhf"), "weight")
    refused(train(world, out, "--weight", "brevity=1"), "baseline")
    weight = ("--baseline", "morlhf", "--weight", "humor=1")
    refused(train(world, out, *weight), "no reward 'humor'")
    refused(train(world, out, "--reference_answers", 10), "at least 256")
    # Before the scale of the rewards is estimated.
    refused(train(world, out, "--moc.trunk.lora.targets", "qkv"), "no matrix 'qkv'")
    bad = tmp_path / "bad.yaml"
    bad.write_text(yaml.dump({**CONFIG, "rewards": [{"name": "humor"}]}))
    result = call(
        "moc", "train", "--config", bad, "--model", world.model, "--data",
        world.root / "prompts.txt", "--out", out,
    )  # fmt: skip
    refused(result, "humor", "brevity")
    for rewards, word in (("brevity",), "two or more"), ((*NAMES, "warmth"), "held_out"):
        bad.write_text(yaml.dump({**CONFIG, "rewards": [{"name": name} for name in rewards]}))
        result = call(  # before anybody waits for a model
            "moc", "train", "--config", bad, "--model", tmp_path / "no model", "--data",
            world.root / "prompts.txt", "--out", out,
        )  # fmt: skip
        refused(result, word)
    result = call(  # before anybody waits for a model
        "moc", "train", "--config", world.root / "config.yaml", "--model", tmp_path / "no model",
        "--data", tmp_path / "none.txt", "--out", out,
    )  # fmt: skip
    refused(result, "none.txt does not exist")
    evaluate = ("moc", "evaluate", "--out", out, "--model")
    refused(call(*evaluate, tmp_path), "holds no MOC policy")
    refused(call(*evaluate, world.model), "holds no MOC policy")
    stopped = tmp_path / "stopped"
    shutil.copytree(world.run, stopped)
    (stopped / "report.json").unlink()
    refused(call(*evaluate, stopped), "an unfinished run", "--resume")
    refused(call(*evaluate, world.run, "--samples", 0), "samples")
    point = ("--reference_point", 0, 0, 0)
    refused(call(*evaluate, world.run, *point), "found 3 numbers, expected 2", "brevity")
    assert not out.exists()


def test_answers_that_fill_the_context_are_refused_by_their_setting(tmp_path):
    model = tiny_lms.write(tmp_path / "model", "llama")
    (tmp_path / "p.txt").write_text("say thing\n")
    (tmp_path / "c.yaml").write_text(yaml.dump(CONFIG))
    words = ("--config", tmp_path / "c.yaml", "--data", tmp_path / "p.txt", "--out", tmp_path / "o")
    found = call("moc", "train", "--model", model, *words, "--moc.answer_tokens", 2000)
    refused(found, "moc.answer_tokens: found 2000, expected less than the context", "lower it")


@pytest.mark.parametrize(
    ("prompt_tokens", "answer_tokens", "remedy"),
    [(5, 6, "raise moc.prompt_tokens"), (99, 120, "lower moc.answer_tokens")],
)
def test_prompts_without_room_name_the_setting(tmp_path, prompt_tokens, answer_tokens, remedy):
    model = load_language_model(str(tiny_lms.write(tmp_path / "model", "llama")))
    (tmp_path / "c.yaml").write_text(yaml.dump(CONFIG))
    sizes = ["--moc.prompt_tokens", str(prompt_tokens), "--moc.answer_tokens", str(answer_tokens)]
    config = load_config(MocRunConfig, tmp_path / "c.yaml", sizes)
    with pytest.raises(InputError, match=f"p.txt: found 1 prompt of .*; {remedy}"):
        prompts_for(model, Prompts(("say thing",), source="p.txt"), config)
