"""`jaxalign palm` over trained policies: five adapters to a portfolio, through the command line."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny_lms
import yaml
from cli_calls import call, refused, write_rows

from jaxalign import moc, palm
from jaxalign.errors import InputError
from jaxalign.experiments.palm import policies
from jaxalign.experiments.palm.policies import load_pool
from jaxalign.moc.config import MocConfig
from jaxalign.moc.policy import init_policy
from jaxalign.models import load_language_model, lora, save_adapter
from jaxalign.models.peft import load_adapter
from jaxalign.models.sampling import Sampling
from jaxalign.palm.config import BuildConfig
from jaxalign.personalize import saved_members
from jaxalign.personalize.policies import Soups, answer_as, identity
from jaxalign.personalize.policy_oracle import AnswerOracle
from jaxalign.rewards import rule_rewards
from jaxalign.rewards.reward_scale import fit_scale
from jaxalign.train.trunk import TrunkConfig

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
    result = build(world, out, "--policies.steps", "2", "--palm.size", "3",
                   "--palm.grid_limit", "5", "--confirm")  # fmt: skip
    assert result.code == 0, result.err
    progress = " ".join(result.err.split())
    assert (
        "6 policies: weighted sums of the adapters kind, brief, plain; 12 prompts, "
        "4 answers each of at most 6 tokens"
    ) in progress
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


def test_policies_of_one_weighting_each_are_adapters(world):
    model = load_language_model(str(world / "base"))
    trunk = TrunkConfig(lora=lora.LoraConfig(2, 4.0, targets=("query", "up")))
    names = ("only_brief", "only_simple")
    for seed, name in enumerate(names):
        plain = MocConfig(conditioning="none", trunk=trunk)
        policy = init_policy(jax.random.key(seed), model, ("brevity", "simplicity"), plain)
        moc.save(world / name / "model", policy)
    folders = [world / name for name in names]
    config = policies.resolved_config(folders, BuildConfig(rewards=("brevity", "simplicity")))
    pool = load_pool(folders, None, config)
    assert pool.policies.kind == "soups"
    assert pool.names == names
    with pytest.raises(InputError, match="found conditioned for 2 adapters"):
        policies.resolved_config(folders, replace(config, policies=replace(
            config.policies, kind="conditioned"
        )))  # fmt: skip


def test_the_portfolio_is_loaded_with_its_policies(world, built):
    about = saved_members.about_policies(built)
    assert about.names == ("kind", "brief", "plain")
    serving = saved_members.load(built, load_language_model(about.base))
    assert tuple(identity(serving.policies)) == about.identity
    shutil.copytree(world / "built", world / "moved" / "built")
    assert saved_members.about_policies(world / "moved" / "built") == about


def test_a_stopped_build_goes_on_where_it_was(world, built, tmp_path, monkeypatch):
    """Stopped after two of the policies: the rest is drawn, and the report is the same."""
    drawn = []
    words = ("--policies.steps", "2", "--palm.size", "3", "--palm.grid_limit", "5", "--confirm")
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
    assert "the reference" not in drawn[0]  # it is there
    whole, part = (
        json.loads((folder / "report.json").read_text()) for folder in (built, tmp_path / "part")
    )
    for name in ("members", "certificate", "held_out"):
        assert whole[name] == part[name]
    # Where memory ran out, fewer answers at once go on with those that are there.
    drawn.clear()
    fewer = build(world, tmp_path / "part", *words, "--policies.batch_size", "12", "--resume")
    assert (fewer.code, drawn) == (0, []), fewer.err


def test_a_stopped_build_does_not_go_on_under_another_chat_template(world, tmp_path, monkeypatch):
    base = shutil.copytree(world / "base", tmp_path / "base")
    settings = base / "tokenizer_config.json"
    said = "{% for message in messages %}SAYS{{ message['content'] }}{% endfor %}"

    def speak(template):
        known = json.loads(settings.read_text())
        settings.write_text(json.dumps(known | {"chat_template": template}))
        (base / "chat_template.jinja").unlink(missing_ok=True)

    def fingerprint():
        model = load_language_model(str(base))
        chats = [[{"role": "user", "content": word}] for word in WORDS[:2]]
        adapters = tuple(load_adapter(world / name, model.config) for name in ("kind", "brief"))
        oracle = AnswerOracle(
            model, Soups(adapters), chats, rule_rewards(["simplicity"]), 0.1,
            Sampling(max_tokens=8), jax.random.key(0), samples=16, reward_range=None,
        )  # fmt: skip
        return oracle.fingerprint

    def stop(self, *_):
        raise KeyboardInterrupt

    words = ("--model", base, "--policies.steps", "2", "--policies.prompts.template", "chat")
    speak(said.replace("SAYS", "say"))
    first = fingerprint()
    with monkeypatch.context() as patch:
        patch.setattr(AnswerOracle, "_draw", stop)
        assert build(world, tmp_path / "part", *words).code == 130
    speak(said.replace("SAYS", "the thing"))
    refused(build(world, tmp_path / "part", *words, "--resume"), "token ids of the prompts")
    assert fingerprint() != first


def test_a_scale_of_other_rewards_is_refused_before_any_answer(world, tmp_path, monkeypatch):
    monkeypatch.setattr(AnswerOracle, "_draw", lambda *_: pytest.fail("answers were drawn"))
    scale = fit_scale(np.random.default_rng(0).random((5, 1)), ("warmth",))
    (tmp_path / "scale.json").write_text(json.dumps(scale.to_json()))
    missing = build(world, tmp_path / "out", "--scale_from", tmp_path / "none.json")
    refused(missing, "none.json")
    other = build(world, tmp_path / "out", "--scale_from", tmp_path / "scale.json")
    refused(other, "scale_from: found a scale of the rewards warmth")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["mixing", "separate"])
def test_mixtures_and_separate_policies(world, tmp_path, kind):
    result = build(world, tmp_path / "out", "--policies.kind", kind, "--policies.steps", "2",
                   names=("kind", "brief"))  # fmt: skip
    assert result.code == 0, result.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    expected = [[0, 1], [0.5, 0.5], [1, 0]] if kind == "mixing" else [[1, 0], [0, 1]]
    assert report["policies"]["pool"] == expected
    about = saved_members.about_policies(tmp_path / "out")
    assert (about.kind, about.names) == (kind, ("kind", "brief"))


def test_whole_models_are_what_the_adapters_are_that_were_merged_into_them(world, tmp_path):
    """Averages of parameters, each policy loaded by itself, and answers by either way."""
    for name in ("kind", "brief"):
        merged = ("merge", "--model", world / name, "--out", tmp_path / name)
        assert call(*merged).code == 0
    out, adapted = tmp_path / "whole", tmp_path / "adapted"
    models = ("--policies", tmp_path / "kind", tmp_path / "brief", "--model", world / "base")
    words = ("palm", "build", "--data", world / "prompts.jsonl", *QUICK, "--policies.steps", "2")
    result = call(*words, *models, "--out", out)
    assert result.code == 0, result.err
    assert "3 policies: weighted sums of the models kind, brief; 12 prompts" in result.err
    assert "loaded one at a time" in result.err
    assert call(*words, "--policies", world / "kind", world / "brief", "--out", adapted).code == 0
    one, other = (json.loads((path / "report.json").read_text()) for path in (out, adapted))
    assert one["policies"]["pool"] == other["policies"]["pool"]
    found, expected = palm.load(out), palm.load(adapted)
    np.testing.assert_allclose(found.pool.rewards, expected.pool.rewards, atol=1e-4)
    np.testing.assert_allclose(found.pool.kl, expected.pool.kl, atol=1e-3)
    # Served: users of different members in one batch, each answer at its place.
    base = load_language_model(str(world / "base"))
    weights = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.5]])
    which, prompts = [1, 0, 2, 1], ["say the", "tell thing", "say in", "tell an"]
    texts = [
        [answer.text for answer in answer_as(
            base, saved_members.load(path, base).policies, weights, which, prompts,
            Sampling(max_tokens=6), jax.random.key(0))]
        for path in (out, adapted)
    ]  # fmt: skip
    assert texts[0] == texts[1]
    (tmp_path / "brief" / "model.safetensors").write_bytes(
        (tmp_path / "kind" / "model.safetensors").read_bytes()
    )
    with pytest.raises(InputError, match=r"brief is not the one that the portfolio was saved"):
        saved_members.load(out, base)
    refused(call(*words, *models, "--out", tmp_path / "n"), "found the same weights in", "leave")


def test_the_two_halves_of_the_prompts_have_keys_of_their_own(world, tmp_path, monkeypatch):
    """Common random numbers are for policies on the same prompts; every reward has its range."""
    keys, ranges, usual = {}, [], AnswerOracle.__init__

    def kept(self, model, policies, prompts, *arguments, **more):
        data = jax.random.key_data(arguments[3]).tolist()
        keys.setdefault(str(data), set()).update(map(str, prompts))
        ranges.append(more["reward_range"])
        usual(self, model, policies, prompts, *arguments, **more)

    monkeypatch.setattr(AnswerOracle, "__init__", kept)
    stated = ("--reward_range", "-1000", "1000", "--policies.kind", "separate")
    result = build(world, tmp_path / "out", *stated, names=("kind", "brief"))
    assert result.code == 0, result.err
    first, second = keys.values()
    assert not first & second
    assert ranges == [(-1000.0, 1000.0)] * 3


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


def test_a_base_named_from_the_working_directory_is_the_same_base(world, tmp_path, monkeypatch):
    near = shutil.copytree(world / "brief", tmp_path / "near")
    path = near / "adapter_config.json"
    settings = json.loads(path.read_text()) | {"base_model_name_or_path": "base"}  # as peft does
    path.write_text(json.dumps(settings))
    monkeypatch.chdir(world)
    pool = load_pool([world / "kind", near], None, BuildConfig(rewards=("brevity", "simplicity")))
    assert pool.options.shape == (5, 2)


def test_three_rewards_are_drawn_for_two_adapters(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = (
        "def ends(prompts, answers):\n    return [float(sum(map(ord, a[-2:]))) for a in answers]"
    )
    (tmp_path / "last_letters.py").write_text(lines)
    rewards = [{"name": "brevity"}, {"name": "simplicity"},
               {"name": "ends", "kind": "python", "function": "last_letters:ends"}]  # fmt: skip
    (tmp_path / "three.json").write_text(json.dumps({"policies": {"rewards": rewards}}))
    result = call(
        "palm", "build", "--policies", world / "kind", world / "brief", "--config", "three.json",
        "--data", world / "prompts.jsonl", "--out", "out", *QUICK[3:-4], "--compare", 0,
        "--policies.batch_size", 24, "--policies.steps", 1, "--palm.size", 2,
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "regions.png" in (tmp_path / "out" / "report.md").read_text()


def test_what_cannot_be_a_policy_is_refused(world, built, tmp_path, monkeypatch):
    def said(*words, names=("kind",)):
        return build(world, tmp_path / "out", *words, names=names)

    refused(said(names=("kind", "nowhere")), "nowhere holds no LoRA adapter", "jaxalign sft")
    refused(said(names=("kind", "base")), "whole models, which name no base model", "--model")
    mixing = said("--policies.kind", "mixing", names=("kind", "base"))
    refused(mixing, "found mixing for whole models", "soups or separate")
    other = tiny_lms.write(tmp_path / "gpt2", "gpt2")
    models = said("--model", world / "base", names=("kind", other))
    refused(models, "gpt2: found a model of another architecture than", "from one base")
    refused(said(names=("kind", "kind")), "found the same weights in", "leave one out")
    refused(said("--policies.kind", "conditioned"), "found conditioned for 1 adapter,")
    refused(said("--policies.samples", "1"), "samples: found 1, expected 2 or more")
    for name, change, words in (
        ("reward", {"task_type": "SEQ_CLS"}, "reward holds a reward model"),
        ("foreign", {"base_model_name_or_path": "owner/model"}, "foreign adapts owner/model"),
    ):
        shutil.copytree(world / "brief", world / name)
        path = world / name / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        refused(said(names=("kind", name)), words)
    refused(said("--export"), "--export and --policies are both given")
    # Before a model is loaded: the grid, and the folder.
    with monkeypatch.context() as patched:
        patched.setattr(policies, "load_language_model", None)
        refused(said("--palm.grid_limit", "5"), "found a grid of", "--confirm")
        taken = build(world, world, names=("kind",))
        refused(taken, "is not empty and holds no run")
        refused(build(world, built, "--palm.size", "2"), "another run", "steps", "size")
    folders = ("palm", "build", "--policies", world / "kind", "--out", tmp_path / "out")
    refused(call(*folders, "--data", world / "prompts.jsonl"), "rewards: found none", "--rewards")
    few = write_rows(tmp_path / "few.jsonl", [{"prompt": f"say {n}"} for n in range(3)])
    one = (*folders, "--data", few, "--rewards", "brevity")
    refused(call(*one), "policies.max_tokens: found 128", "lower it")
    refused(call(*one, "--policies.max_tokens", "6"), "found 3 prompts", "at least 4")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def users(world):
    """Answers scored by `reward score`, and users who like or dislike brevity, adapted on them."""
    rng = np.random.default_rng(0)
    said = [" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(8 * len(WORDS))]
    rows = [{"prompt": f"say {WORDS[place % 12]}", "answer": text}
            for place, text in enumerate(dict.fromkeys(said))]  # fmt: skip
    answers = write_rows(world / "answers.jsonl", rows)
    scores = world / "scores.jsonl"
    ran("reward", "score", "--rewards", "brevity,simplicity", "--data", answers, "--out", scores)
    scored = [json.loads(line) for line in scores.read_text().splitlines()]
    made = []
    while len(made) < 12 * 20:
        one, two = (scored[place] for place in rng.integers(len(scored), size=2))
        if one["prompt"] != two["prompt"] or one["answer"] == two["answer"]:
            continue
        user = len(made) % 12
        margin = (one["rewards"]["brevity"] - two["rewards"]["brevity"]) * (-1) ** (user % 2)
        if not margin:
            continue
        liked, other = (one, two) if margin > 0 else (two, one)
        row = {"user": f"u{user}", "prompt": one["prompt"]}
        made.append(row | {"chosen": liked["answer"], "rejected": other["answer"]})
    log, run = write_rows(world / "log.jsonl", made), world / "users"
    config = {"methods": ["bayes"], "seeds": 1, "draws": 200, "split": {"validation_share": 0.3}}
    (world / "mrm.yaml").write_text(yaml.dump(config))
    ran("mrm", "train", "--config", world / "mrm.yaml", "--data", log, "--out", run,
        "--features.path", scores)  # fmt: skip
    ran("mrm", "adapt", "--model", run, "--data", log, "--features", scores)
    return run


def ran(*words):
    result = call(*words)
    assert result.code == 0, result.err
    return result.out


def routed(portfolio, users, out):
    said = ran("palm", "route", "--portfolio", portfolio, "--users", users / "users.sqlite",
               "--out", out, "--normalise")  # fmt: skip
    assert "12 users" in said
    return {row["user"]: row["member"] for row in map(json.loads, out.read_text().splitlines())}


def test_users_of_a_run_are_routed_on_its_scale_to_candidates(world, users, tmp_path):
    """Named rewards and one digest from `reward score` to `palm route`, dislikes included."""
    out = tmp_path / "built"
    build = ("palm", "build", "--data", world / "scores.jsonl", "--scale_from", users)
    signed = ("--palm.weights", "signed", "--palm.size", "4", "--compare", "0", "--draws", "50")
    ran(*build, *signed, "--out", out)
    portfolio = palm.load(out)
    digest = json.loads((users / "scale.json").read_text())
    assert portfolio.scale.names == ("brevity", "simplicity")
    assert portfolio.scale.mean.tolist() == digest["mean"]
    members = routed(out, users, tmp_path / "routed.jsonl")
    brevity = portfolio.members.rewards[:, 0]
    for user in range(12):
        member = members[f"u{user}"]
        assert (brevity[member] > brevity[0]) == (user % 2 == 0)


def test_users_of_a_run_are_answered_by_a_member(world, users, tmp_path):
    out = tmp_path / "built"
    assert build(world, out, "--scale_from", users, "--palm.weights", "signed",
                 "--policies.steps", "1").code == 0  # fmt: skip
    assert len(set(routed(out, users, tmp_path / "routed.jsonl").values())) > 1
    member = ("--portfolio", out, "--strategy", "member", "--least-probability", "0")
    drawn = ("--prompt", "say the", "--max-tokens", "6", "--seed", "3")
    ask = ("answer", "--run", users, *member, *drawn)
    assert ran(*ask, "--user", "u0") != ran(*ask, "--user", "u1")


def test_a_policy_under_its_preferences_becomes_a_portfolio(world, tmp_path):
    """A MOC policy folder, on the scale that it was trained with."""
    model = load_language_model(str(world / "base"))
    scale = fit_scale(np.random.default_rng(0).normal(size=(50, 2)) * 4 - 6,
                      ("brevity", "simplicity"))  # fmt: skip
    settings = MocConfig(trunk=TrunkConfig(lora=lora.LoraConfig(2, 4.0, targets=("query", "up"))))
    policy = init_policy(jax.random.key(0), model, scale.names, settings, scale)
    rng = np.random.default_rng(1)
    adapter = jax.tree.map(
        lambda x: x + rng.normal(0, 0.5, x.shape).astype("f"), policy.trained["adapter"]
    )
    moc.save(world / "policy", replace(policy, trained={**policy.trained, "adapter": adapter}))
    result = build(world, tmp_path / "out", names=("policy",))
    assert result.code == 0, result.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["policies"]["kind"] == "conditioned"
    assert len(report["policies"]["pool"]) == 11
    assert report["scale"] == scale.digest
    serving = saved_members.load(tmp_path / "out", model)
    assert serving.portfolio.scale.digest == scale.digest
    refused(build(world, tmp_path / "two", names=("policy", "kind")), "expected it alone")
