"""Reward models from choices: the loss, learning beyond chance, heads, folders, bad input."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_lms
import torch
from kept_states import failed_step
from transformers import AutoModelForSequenceClassification

from jaxalign.errors import InputError
from jaxalign.experiments.reward import run
from jaxalign.models.language import load_language_model
from jaxalign.models.lora import LoraConfig
from jaxalign.rewards import bradley_terry as bt
from jaxalign.rewards.reward_model import load_reward_model, score
from jaxalign.rewards.spec import RewardSpec, build_rewards
from jaxalign.rewards.vector import compute_rewards
from jaxalign.train.loop import LoopConfig
from jaxalign.train.optimiser import OptimiserConfig
from jaxalign.train.trunk import TrunkConfig

SMALL = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24}
LETTERS = list("bcdefgh")


def answer(rng, marked):
    """Six letters; a marked one has an "a" somewhere."""
    letters = rng.choice(LETTERS, 6)
    if marked:
        letters[rng.integers(6)] = "a"
    return "".join(letters)


def choices_file(path, objectives, count=240, seed=0):
    """People like answers with an "a" in them, or, as to `without`, those that lack it."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        pair = answer(rng, True), answer(rng, False)
        row = {
            "user": f"u{number % 12}",
            "group": number // 24,
            "prompt": "say " + LETTERS[number % 7],
        }
        if objectives:
            row["objective"] = objectives[number % len(objectives)]
            pair = pair[::-1] if row["objective"] == "without" else pair
        rows.append(row | {"chosen": pair[0], "rejected": pair[1]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(tiny_lms.write(tmp_path_factory.mktemp("reward") / "model", "llama", **SMALL))


def settings(method, **changes):
    return bt.RewardConfig(
        max_tokens=64,
        hold_out_share=0.25,
        trunk=TrunkConfig(
            method=method,
            lora=LoraConfig(rank=4, alpha=16.0, targets=("value", "out", "up", "down")),
        ),
        loop=LoopConfig(epochs=8, batch_size=24, evaluate_every=20),
        optimiser=OptimiserConfig(rate=1e-2),
        **changes,
    )


def test_the_loss_is_the_probability_of_the_choice():
    difference = jnp.asarray([-30.0, -0.3, 0.0, 2.0, 90.0], jnp.float32)
    sure = -np.log(1 / (1 + np.exp(-np.asarray(difference, np.float64))))
    found = bt.bradley_terry(difference, jnp.ones(5))
    np.testing.assert_allclose(found, sure, rtol=1e-6)
    tie = bt.bradley_terry(difference, jnp.full(5, 0.5))
    both = sure / 2 + sure[[0, 1, 2, 3, 4]] / 2 + np.asarray(difference, np.float64) / 2
    np.testing.assert_allclose(tie, both, rtol=1e-6)
    np.testing.assert_allclose(tie, bt.bradley_terry(-difference, jnp.full(5, 0.5)), rtol=1e-6)


def torch_scores(folder, prompts, answers, tokenizer):
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": p}, {"role": "assistant", "content": a}], tokenize=False
        )
        for p, a in zip(prompts, answers, strict=True)
    ]
    batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits.numpy(), model.config


@pytest.mark.slow
def test_two_heads_on_a_whole_model_and_its_folder_in_transformers(base, tmp_path):
    source = choices_file(tmp_path / "choices.jsonl", ("with", "without"))
    out = tmp_path / "run"
    report = run(settings("full", hold_out="user"), base, source, out, show=False)
    assert report["labels"] == ["with", "without"]
    assert report["held_out_choices"] == 60  # three users of twelve
    # A coin would do better than .75 on 30 held-out choices once in 300 times; twice, never.
    assert report["accuracy"]["with"] > 0.75
    assert report["accuracy"]["without"] > 0.75
    assert report["validation"]["loss"] < report["validation_before"]["loss"]
    np.testing.assert_allclose(report["validation"]["accuracy"], report["accuracy"]["all"])
    model = load_reward_model(out / "model")
    prompts, answers = ["say b", "say c", "say"], ["cadbe", "eh", "ggggggggg"]
    ours = score(model, prompts, answers)
    theirs, config = torch_scores(out / "model", prompts, answers, model.tokenizer)
    assert ours.shape == (3, 2)
    assert config.id2label == {0: "with", 1: "without"}
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_one_head_with_an_adapter_and_its_folder(base, tmp_path):
    source = choices_file(tmp_path / "choices.jsonl", ())
    out = tmp_path / "run"
    config = settings("lora")
    report = run(config, base, source, out, show=False)
    # 60 held-out choices: a coin has 44 right once in 5,000 times.
    assert report["accuracy"] == {k: report["accuracy"]["all"] for k in ("reward", "all")}
    assert report["accuracy"]["all"] > 44 / 60
    model = load_reward_model(out / "model")
    held = bt.load_choices(source)
    _, kept = bt.hold_out(held, "group", 0.25, 0)
    assert bt.pairwise_accuracy(model, held.take(kept)) == report["accuracy"]
    ones = score(model, ["say b"] * 2, ["cdaef", "cdbef"])
    np.testing.assert_array_equal(
        ones, score(load_reward_model(out / "model"), ["say b"] * 2, ["cdaef", "cdbef"])
    )
    assert ones.shape == (2, 1)
    assert sorted(p.name for p in (out / "model").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "head.safetensors", "reward.json"
    ]  # fmt: skip
    # A reward model is a reward of a config, known by what was trained and not by its base.
    reward = build_rewards([RewardSpec("liked", "classifier", model=str(out / "model"))])
    np.testing.assert_array_equal(compute_rewards(reward, ["say b"] * 2, ["cdaef", "cdbef"]), ones)
    assert model.sha256[:16] in reward.id
    assert model.sha256 != load_language_model(base).sha256
    # Gone on with, a finished run is what it was.
    assert run(config, base, source, out, resume=True, show=False) == report


@pytest.mark.slow
def test_a_row_that_is_not_finite_is_named_and_the_run_goes_on(base, tmp_path, monkeypatch):
    source, real = choices_file(tmp_path / "choices.jsonl", ()), bt.rows_of
    config = settings("lora")
    config = replace(config, loop=replace(config.loop, epochs=1, checkpoint_every=1))

    def poisoned(choices, texts, widest):
        rows = real(choices, texts, widest)

        def assemble(own, width):
            arrays = rows.assemble(own, width)
            bad = np.where(own == 6, np.nan, arrays["weight"]).astype(np.float32)
            return arrays | {"weight": bad if len(choices.preferences) == 180 else arrays["weight"]}

        return replace(rows, assemble=assemble)

    monkeypatch.setattr(bt, "rows_of", poisoned)
    with pytest.raises(InputError) as refused:
        run(config, base, source, tmp_path / "run", show=False)
    assert failed_step(refused.value) > 1
    monkeypatch.setattr(bt, "rows_of", real)
    report = run(config, base, source, tmp_path / "run", resume=True, show=False)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines if '"loss"' in line]
    assert steps == list(range(1, report["steps"] + 1))


def test_rewards_that_are_all_the_same_are_warned_of(base):
    said, batch = [], np.ones(3)
    watch = bt.AlikeWatch(said.append)
    alike = {"loss": float(bt.bradley_terry(0 * batch, batch).mean()), "accuracy": 0.5}
    for step in range(1, 11):
        # A fresh model near 0 is right on some choices and wrong on others.
        watch.look(step, alike if step != 3 else alike | {"accuracy": 0.4})
    assert [line.partition(" steps")[0] for line in said] == ["warning: step 8: for 5"]
    assert said[0].endswith(
        " steps both answers of every choice had the same reward, from which nothing is learned: "
        "raise max_tokens if it cuts off what tells them apart, or optimiser.rate if it is too low "
        "to start from, in a new folder"
    )


def test_choices_whose_answers_have_the_same_tokens_are_counted_and_alone_refused(base, tmp_path):
    path = tmp_path / "choices.jsonl"
    rows = [
        {"user": "u", "prompt": "say", "chosen": f"{'b' * 40}{one}", "rejected": f"{'b' * 40}{two}"}
        for one, two in ("cd", "ef", "gh")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model, choices = load_language_model(base), bt.load_choices(str(path))
    assert (
        bt.check_distinct(
            choices, bt.tokenized_items(model, choices.preferences, bt.RewardConfig())
        )
        == 0
    )
    short = bt.tokenized_items(model, choices.preferences, bt.RewardConfig(max_tokens=8))
    with pytest.raises(InputError) as refused:
        bt.check_distinct(choices, short)
    assert str(refused.value) == (
        f"{path}: both answers of every choice have the same first 8 tokens, from which nothing "
        "can be learned: raise max_tokens, or correct the choices."
    )


def test_what_takes_other_settings_is_refused_before_the_folder_is_opened(base, tmp_path):
    path = tmp_path / "choices.jsonl"
    rows = [
        {"user": user, "chosen": f"{'b' * 40}{user}", "rejected": f"{'b' * 40}-"} for user in "cd"
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = bt.RewardConfig(max_tokens=8, hold_out="user")
    with pytest.raises(InputError, match="raise max_tokens, or correct the choices"):
        run(config, base, str(path), tmp_path / "run", show=False)
    targets = replace(config.trunk, lora=LoraConfig(targets=("qkv",)))
    with pytest.raises(InputError, match="the model has no matrix 'qkv'"):
        run(replace(config, trunk=targets), base, str(path), tmp_path / "run", show=False)
    with pytest.raises(InputError, match=r"nowhere\.jsonl"):  # and before a model is loaded
        run(config, "no/such-model", str(tmp_path / "nowhere.jsonl"), tmp_path / "run", show=False)
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_loss_trains_the_head_of_its_row_alone(base):
    from jaxalign.models.language import load_language_model
    from jaxalign.train.mesh import MeshConfig, make_mesh

    model = load_language_model(base)
    mesh = make_mesh(MeshConfig())
    rng = np.random.default_rng(0)
    batch = {
        "tokens": jnp.asarray(rng.integers(4, 200, (3, 2, 9)), jnp.int32),
        "lengths": jnp.asarray([[9, 4], [5, 9], [1, 1]], jnp.int32),
        "objective": jnp.asarray([1, 1, 0], jnp.int32),
        "win": jnp.asarray([1.0, 0.5, 1.0]),
        "weight": jnp.asarray([1.0, 1.0, 0.0]),
    }
    head = jnp.asarray(rng.normal(size=(16, 2)), jnp.float32)

    def total(head):
        trained = {"model": model.params, "head": {"kernel": head}}
        config = replace(model.config, tied=True)
        return bt.loss(config, LoraConfig(), mesh, trained, {}, batch, None)

    sums = total(head)
    slope = np.asarray(jax.grad(lambda head: total(head)["loss"])(head))
    assert np.abs(slope[:, 1]).max() > 1e-3
    np.testing.assert_array_equal(slope[:, 0], 0)
    assert float(sums["weight"]) == 2
    assert float(sums["accuracy"]) in (0.5, 1.5)
    # Padding beyond a row's length changes nothing.
    other = batch | {"tokens": batch["tokens"].at[0, 1, 4:].set(0)}
    again = bt.loss(replace(model.config, tied=True), LoraConfig(), mesh,
                    {"model": model.params, "head": {"kernel": head}}, {}, other, None)  # fmt: skip
    np.testing.assert_allclose(again["loss"], sums["loss"], rtol=1e-6)


def test_held_out_groups_users_and_prompts_are_apart(tmp_path):
    choices = bt.load_choices(choices_file(tmp_path / "choices.jsonl", ()))
    for by in ("group", "user", "prompt"):
        train, held = bt.hold_out(choices, by, 0.25, 3)
        codes = getattr(choices.preferences, by)
        assert not set(codes[train]) & set(codes[held])
        assert sorted([*train, *held]) == list(range(240))
        assert 0.1 < len(held) / 240 < 0.4
    everything, none = bt.hold_out(choices, "user", 0.0, 3)
    assert (len(everything), len(none)) == (240, 0)
    alone = choices.take(np.flatnonzero(choices.preferences.user == 0))
    with pytest.raises(InputError, match="has one user, of which none can be held out"):
        bt.hold_out(alone, "user", 0.25, 3)


def test_bad_input(base, tmp_path):
    path = tmp_path / "choices.jsonl"
    row = {"user": "u", "chosen": "a", "rejected": "b", "objective": "x"}
    rows = [row, row | {"objective": None}]
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    with pytest.raises(InputError, match="line 2: `objective` is missing, expected text"):
        bt.load_choices(str(path))
    with pytest.raises(InputError, match="hold_out_share is 1"):
        bt.RewardConfig(hold_out_share=1.0)
    with pytest.raises(InputError, match="1 prompts for 2 answers"):
        score(None, ["p"], ["a", "b"])
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "reward.json").write_text(json.dumps({"format": 9}))
    with pytest.raises(InputError, match="format 9; this version reads 1"):
        load_reward_model(folder)


def test_conversations_are_trained_on_and_scored_as_plain_rows(base, tmp_path):
    model = load_language_model(base)

    def said(*turns):
        return [{"role": role, "content": content} for role, content in turns]

    before = [("user", "a"), ("assistant", "b"), ("user", "c")]
    plain = {"prompt": "q", "chosen": "a", "rejected": "b"}
    talk = {
        side: said(("user", "q"), ("assistant", plain[side])) for side in ("chosen", "rejected")
    }
    long = {side: said(*before, ("assistant", plain[side])) for side in ("chosen", "rejected")}
    found = []
    for number, row in enumerate((plain, talk, long)):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(json.dumps(row) + "\n")
        table = bt.load_choices(str(path)).preferences
        found.append(bt.tokenized_items(model, table, bt.RewardConfig()))
    np.testing.assert_array_equal(found[0].tokens, found[1].tokens)
    expected = model.tokenizer.apply_chat_template(long["chosen"], tokenize=True)
    expected = getattr(expected, "input_ids", expected)
    assert found[2].tokens[: found[2].starts[1]].tolist() == list(expected)
