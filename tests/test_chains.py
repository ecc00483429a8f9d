"""What one command writes, the next one reads: the chains of commands, as typed, on tiny models.

Commands run by their defaults. Where these are sized for real models or data, so that a tiny model
would take minutes, a setting is made smaller, and stated here: steps and tokens of `moc train` and
`pplug train`, methods, seeds and draws of `mrm train`, the answers that are drawn to prompts, and
the comparison of portfolio sizes, which has tests of its own.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_bert
import tiny_lms
import yaml
from cli_calls import call, write_rows
from moc_cli_world import CONFIG as MOC
from moc_cli_world import PROMPTS, WORDS

from jaxalign import mrm
from jaxalign.rewards.reward_scale import load_scale

REWARDS = ("brevity", "simplicity")
# The settings of the other tests of moc, so that its programs are compiled once for all of them.
MOC = MOC | {"rewards": [{"name": name} for name in REWARDS]}
PPLUG = {
    "data": {"kind": "jsonl", "test_share": 0.4, "validation_share": 0.2},
    "pplug": {
        "text": {"query_prefix": "", "prompt_tokens": 40, "answer_tokens": 6, "template": "plain"},
        "loop": {"epochs": 1, "batch_size": 4},
        "weights": "float32", "compute": "float32",
    },
}  # fmt: skip
# By default five methods are fitted, by three seeds each, and judged with 2,000 draws.
MRM = {"methods": ["bayes"], "seeds": 1, "draws": 200, "split": {"validation_share": 0.3}}


def ran(*words):
    """Run a command that must succeed; return what it printed."""
    result = call(*words)
    assert result.code == 0, result.err
    return result.out


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def texts_of(path):
    return [row["completion"] for row in read_rows(path)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny model, an adapter of it by sft, and a reward model: nothing but commands' defaults."""
    root = tmp_path_factory.mktemp("chains")
    made = SimpleNamespace(
        root=root,
        model=tiny_lms.write(root / "base", "llama"),
        encoder=tiny_bert.write_model(root / "bert"),
        prompts=write_rows(root / "prompts.jsonl", [{"prompt": prompt} for prompt in PROMPTS]),
    )
    for name, config in (("moc", MOC), ("pplug", PPLUG), ("mrm", MRM)):
        (root / f"{name}.yaml").write_text(yaml.dump(config))
    texts = [{"prompt": p, "completion": w} for p, w in zip(PROMPTS, WORDS, strict=True)]
    completions = write_rows(root / "completions.jsonl", texts)
    ran("sft", "--model", made.model, "--data", completions, "--out", root / "sft")
    made.adapter = root / "sft" / "model"
    turned = [row | {"completion": row["completion"][::-1]} for row in texts]
    completions = write_rows(root / "turned.jsonl", turned)
    ran("sft", "--model", made.model, "--data", completions, "--out", root / "sft2")
    made.other = root / "sft2" / "model"
    rows = [
        {"user": f"u{row}", "prompt": prompt, "chosen": "the the", "rejected": "in"}
        for row, prompt in enumerate(PROMPTS)
    ]
    made.choices = write_rows(root / "choices.jsonl", rows)
    reward = ("reward", "train", "--model", made.model, "--data", made.choices)
    ran(*reward, "--out", root / "reward")
    made.reward = root / "reward" / "model"
    return made


USERS = "users.sqlite"


@pytest.mark.slow
def test_an_adapter_of_sft_is_fine_tuned_and_asked(world, tmp_path):
    generate = ("generate", "--prompts", world.prompts, "--max-tokens", 4)
    ran(*generate, "--model", world.adapter, "--out", tmp_path / "a.jsonl")
    ran(
        *generate, "--model", world.model, "--adapter", world.adapter, "--out", tmp_path / "b.jsonl"
    )
    texts = [texts_of(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    assert texts[0] == texts[1]
    moc = ("moc", "train", "--config", world.root / "moc.yaml", "--data", world.prompts)
    ran(*moc, "--model", world.adapter, "--out", tmp_path / "moc")
    reward = ("reward", "train", "--model", world.adapter, "--data", world.choices)
    ran(*reward, "--out", tmp_path / "reward")
    people = [
        {
            "id": f"{user}", "user": f"u{user}", "input": "say", "output": word,
            "history": [{"text": f"{word} {letter}"} for letter in "abc"],
        }
        for user, word in enumerate(WORDS)
    ]  # fmt: skip
    pplug = ("pplug", "train", "--config", world.root / "pplug.yaml", "--encoder", world.encoder)
    data = write_rows(tmp_path / "people.jsonl", people)
    ran(*pplug, "--data", data, "--model", world.adapter, "--out", tmp_path / "pplug")


def test_an_adapter_is_merged_into_a_whole_model(world, tmp_path):
    ran("merge", "--model", world.adapter, "--out", tmp_path / "whole")
    generate = ("generate", "--prompts", world.prompts, "--max-tokens", 4)
    ran(*generate, "--model", tmp_path / "whole", "--out", tmp_path / "a.jsonl")
    ran(
        *generate, "--model", world.model, "--adapter", world.adapter, "--out", tmp_path / "b.jsonl"
    )
    texts = [texts_of(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    assert texts[0] == texts[1]


def test_a_reward_of_reward_train_is_a_reward_of_moc_train(world, tmp_path):
    rewards = [
        {"name": "brevity"},
        {"name": "liked", "kind": "classifier", "model": str(world.reward)},
    ]
    (tmp_path / "moc.yaml").write_text(yaml.dump(MOC | {"rewards": rewards}))
    moc = ("moc", "train", "--config", tmp_path / "moc.yaml", "--data", world.prompts)
    ran(*moc, "--model", world.model, "--out", tmp_path / "moc")
    report = json.loads((tmp_path / "moc" / "report.json").read_text())
    assert report["rewards"] == ["brevity", "liked"]


@pytest.fixture(scope="module")
def scored(world):
    """Several drawn answers to each prompt, as generate writes them, scored by two rewards."""
    root = world.root
    draw = ("generate", "--model", world.model, "--prompts", world.prompts, "--max-tokens", 8)
    ran(*draw, "--samples", 4, "--temperature", 1, "--out", root / "drawn.jsonl")
    score = ("reward", "score", "--rewards", ",".join(REWARDS), "--data", root / "drawn.jsonl")
    ran(*score, "--out", root / "scores.jsonl")
    return root / "scores.jsonl"


@pytest.fixture(scope="module")
def policy(world):
    """A policy that is conditioned on two rewards, with its value table."""
    run = world.root / "policy"
    moc = ("moc", "train", "--config", world.root / "moc.yaml", "--data", world.prompts)
    ran(*moc, "--model", world.model, "--out", run)
    ran("moc", "evaluate", "--model", run, "--out", world.root / "judged")
    return run


def test_drawn_answers_are_scored_and_make_a_portfolio(scored, tmp_path):
    assert len(read_rows(scored)) == 4 * len(PROMPTS)
    ran("palm", "build", "--data", scored, "--out", tmp_path / "portfolio")
    report = json.loads((tmp_path / "portfolio" / "report.json").read_text())
    assert report["rewards"] == list(REWARDS)


@pytest.fixture(scope="module")
def users(scored, world):
    """Users who choose among the scored answers by brevity, adapted on named rewards."""
    rows = [row for row in read_rows(scored) if row["completion"].strip()]
    rng, made = np.random.default_rng(0), []
    while len(made) < 12 * 20:
        one, two = (rows[place] for place in rng.integers(len(rows), size=2))
        if one["prompt"] != two["prompt"] or one["completion"] == two["completion"]:
            continue
        margin = one["rewards"]["brevity"] - two["rewards"]["brevity"]
        liked, other = (one, two) if rng.logistic() < 5 * margin else (two, one)
        row = {"user": f"u{len(made) % 12}", "prompt": one["prompt"]}
        made.append(row | {"chosen": liked["completion"], "rejected": other["completion"]})
    log = write_rows(world.root / "log.jsonl", made)
    run = world.root / "users"
    train = ("mrm", "train", "--config", world.root / "mrm.yaml", "--data", log, "--out", run)
    ran(*train, "--features.path", scored)
    ran("mrm", "adapt", "--model", run, "--data", log, "--features", scored)
    return run


def test_scores_are_named_features_of_users(users):
    found = mrm.load(users)
    assert found.reward_ids.names == REWARDS
    assert np.mean([user.weights[0] > 0 for user in found.users]) > 0.8


@pytest.fixture(scope="module")
def elsewhere(scored, world):
    """The scores of other answers to the same prompts, which lie on a scale of their own."""
    rows = [row | {"completion": f"{row['completion']} so"} for row in read_rows(scored)[::2]]
    for row in rows:
        del row["rewards"]
    data = write_rows(world.root / "more.jsonl", rows)
    out = world.root / "elsewhere.jsonl"
    ran("reward", "score", "--rewards", ",".join(REWARDS), "--data", data, "--out", out)
    assert load_scale(out).digest != load_scale(scored).digest
    return out


SIGNED = ("--palm.weights", "signed")  # users may dislike a reward


def test_one_scale_goes_from_scores_to_users_portfolios_and_answers(users, scored, tmp_path):
    portfolio, routed = tmp_path / "portfolio", tmp_path / "routed.jsonl"
    ran("palm", "build", "--data", scored, *SIGNED, "--out", portfolio, "--compare", 0)
    route = ("palm", "route", "--portfolio", portfolio, "--normalise", "--users", users / USERS)
    ran(*route, "--out", routed)
    assert len(read_rows(routed)) == 12
    digest = load_scale(scored).digest
    assert json.loads((portfolio / "report.json").read_text())["scale"] == digest
    assert mrm.load(users).reward_ids.digest == mrm.open_users(users / USERS).about.scale == digest
    best = ran("answer", "--run", users, "--prompt", PROMPTS[0], "--candidates", scored)
    assert best.removesuffix("\n") in [row["completion"] for row in read_rows(scored)]


def test_every_reader_of_scores_refuses_another_scale(users, scored, elsewhere, world, tmp_path):
    one, other = (load_scale(path).digest[:12] for path in (scored, elsewhere))
    log, portfolio = world.root / "log.jsonl", tmp_path / "portfolio"
    ran("palm", "build", "--data", elsewhere, *SIGNED, "--out", portfolio, "--compare", 0)
    out = tmp_path / "out.jsonl"
    adapt = ("mrm", "adapt", "--model", users, "--out", tmp_path / "users.sqlite", "--data", log)
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": read_rows(elsewhere)[0]["completion"]}])
    answer = ("answer", "--run", users, "--prompt", PROMPTS[0])
    for words in (
        (*adapt, "--features", elsewhere),
        ("mrm", "rank", "--model", users, "--texts", texts, "--features", elsewhere),
        (*answer, "--candidates", elsewhere),
        ("palm", "certify", "--portfolio", portfolio, "--data", scored),
        ("palm", "route", "--portfolio", portfolio, "--users", users / USERS, "--out", out),
    ):
        found = call(*words)
        assert found.code == 2, words
        assert one in found.err, words
        assert other in found.err, words
    # Put on the scale of the users, the other answers are taken.
    again = tmp_path / "again.jsonl"
    ran("reward", "score", "--data", elsewhere, "--scale-from", users, "--out", again)
    said = ran(*answer, "--candidates", again)
    assert said.removesuffix("\n") in [row["completion"] for row in read_rows(again)]


def test_a_user_is_answered_by_the_best_of_several_draws(users, world, scored):
    common = ("answer", "--run", users, "--user", "u1", "--prompt", PROMPTS[0])
    said = ran(*common, "--candidates", scored)
    texts = [row["completion"] for row in read_rows(scored) if row["prompt"] == PROMPTS[0]]
    assert said.removesuffix("\n") in texts
    ran(*common, "--model", world.model, "--max-tokens", 8, "--samples", 4)


def test_a_named_reward_model_reads_new_answers(users, world, scored, tmp_path):
    both, run = tmp_path / "both.jsonl", tmp_path / "run"
    score = ("reward", "score", "--model", world.reward, "--names", "liked", "--data", scored)
    ran(*score, "--out", both)
    train = (
        "mrm",
        "train",
        "--config",
        world.root / "mrm.yaml",
        "--data",
        world.root / "log.jsonl",
    )
    ran(*train, "--features.path", both, "--out", run)
    answer = ("answer", "--run", run, "--prompt", PROMPTS[0], "--model", world.model)
    drawn = (*answer, "--max-tokens", 8, "--samples", 2)
    unnamed = call(*drawn, "--reward-model", world.reward)
    assert unnamed.code == 2
    assert "NAME=FOLDER" in unnamed.err
    ran(*drawn, "--reward-model", f"liked={world.reward}")


POOL = ("--policies.samples", 4, "--policies.max_tokens", 8, "--policies.prompts.template", "plain")


def test_a_portfolio_of_adapters_is_certified_routes_and_answers(world, users, tmp_path):
    out = tmp_path / "portfolio"
    build = ("palm", "build", "--data", world.prompts, "--policies", world.adapter, world.other)
    scale = ("--scale_from", users, *SIGNED)
    rewards = ("--rewards", *REWARDS)
    ran(*build, "--out", out, *scale, *rewards, "--compare", 0, *POOL)
    more = write_rows(tmp_path / "more.jsonl", [{"prompt": f"tell {word}"} for word in WORDS])
    ran("palm", "certify", "--portfolio", out, "--data", more, "--out", tmp_path / "held.json")
    route = ("palm", "route", "--portfolio", out, "--normalise", "--users", users / USERS)
    ran(*route, "--out", tmp_path / "routed.jsonl")
    assert len(read_rows(tmp_path / "routed.jsonl")) == 12
    asked = [{"prompt": PROMPTS[0], "user": f"u{number}"} for number in range(12)]
    prompts = write_rows(tmp_path / "asked.jsonl", asked)
    answer = ("answer", "--run", users, "--portfolio", out, "--max-tokens", 8)
    ran(*answer, "--prompts", prompts, "--out", tmp_path / "answers.jsonl")
    assert {row["strategy"] for row in read_rows(tmp_path / "answers.jsonl")} <= {"member", "plain"}


@pytest.mark.slow
def test_a_conditioned_policy_answers_users_on_its_scale(world, users, policy, scored, tmp_path):
    run = tmp_path / "users"
    log = world.root / "log.jsonl"
    train = ("mrm", "train", "--config", world.root / "mrm.yaml", "--data", log)
    ran(*train, "--out", run, "--features.path", scored, "--features.scale", policy)
    ran("mrm", "adapt", "--model", run, "--data", log, "--features", scored)
    # Without a length of their own, answers are as long as those that the policy was trained on.
    answer = ("answer", "--user", "u1", "--prompt", PROMPTS[0])
    assert ran(*answer, "--run", run, "--policy", policy)
    out = tmp_path / "portfolio"
    build = ("palm", "build", "--data", world.prompts, "--policies", policy, "--out", out)
    said = call(*build, "--policies.samples", 4, "--policies.prompts.template", "plain")
    assert (said.code, "4 answers each of at most 8 tokens" in said.err) == (0, True), said.err
    assert ran(*answer, "--run", run, "--portfolio", out)
    assert "expected" in call(*answer, "--run", users, "--policy", policy).err  # another scale
