"""`jaxalign answer`: the best of given or drawn answers for a user, with its reasons."""

import json
from dataclasses import replace
from types import SimpleNamespace

import answer_world
import numpy as np
import pytest
from answer_world import NAMES, TEXTS, USERS
from cli_calls import call, refused, write_rows

from jaxalign import mrm
from jaxalign.errors import InputError
from jaxalign.experiments import answer_sources
from jaxalign.mrm.reduce import identity, standardise
from jaxalign.rewards import rule_rewards

PROMPT = "How was your day?"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return answer_world.build(tmp_path_factory.mktemp("answer"))


def answer(world, *more, prompt=PROMPT):
    asked = () if prompt is None else ("--prompt", prompt)
    given = ("--candidates", world.candidates)
    return call("answer", "--run", world.run, *given, *asked, *more)


def expected(world, user, prompt):
    """Gains over the first answer, and their standard deviations, from the definitions."""
    raw = rule_rewards(NAMES).function([""] * 3, list(TEXTS[prompt]))
    beyond = (raw - raw[0]) / world.scale.std
    variance = 4.0 if user == "unsure" else 0.04
    return beyond @ USERS[user], np.sqrt(variance * (beyond**2).sum(1))


@pytest.mark.parametrize(("user", "place"), [("brief", 1), ("warm", 2)])
def test_a_user_is_given_the_answer_that_the_user_likes_best(world, user, place):
    result = answer(world, "--user", user)
    assert (result.code, result.out) == (0, f"{TEXTS[PROMPT][place]}\n")
    gain, sd = (column[place] for column in expected(world, user, PROMPT))
    assert f"answer {place + 1} of 3 (best_of), better than the plain answer" in result.err
    assert f"(gain {gain:.2f} +- {sd:.2f} logits)" in result.err
    assert "not sure" not in result.err
    assert "population" not in result.err


def test_it_says_that_it_is_not_sure_or_does_not_know_the_user(world):
    result = answer(world, "--user", "unsure")
    assert "not sure to help" in result.err
    result = answer(world, "--user", "nobody")
    assert result.out == f"{TEXTS[PROMPT][1]}\n"  # everybody likes brevity
    assert "no choices of 'nobody' are known, so the taste of the whole population" in result.err
    assert "no user was named" in answer(world).err


def test_it_says_that_a_user_with_choices_is_served_as_everybody(world, tmp_path):
    """Nobody may take an answer for everybody for a personal one."""
    run = answer_world.save_run(tmp_path / "run", world.scale, users={"ann": (1.0, 0.0)})
    given = ("answer", "--run", run, "--candidates", world.candidates, "--prompt", PROMPT)
    said = call(*given, "--user", "ann").err
    assert "; the run does not adapt to 'ann', so the taste of the whole population" in said


def test_the_plain_answer_where_no_other_is_sure_enough(world):
    for more in (("--least-probability", 0.99), ("--caution", 5), ("--strategy", "plain")):
        result = answer(world, "--user", "unsure", *more)
        assert result.out == f"{TEXTS[PROMPT][0]}\n"
        assert "the plain answer" in result.err


def test_caution_is_refused_where_the_method_knows_no_uncertainty(world, tmp_path):
    scale, fitted = answer_world.scale_of(), {"theta": np.array([USERS["brief"]])}
    model = mrm.UserModel(
        mrm.make_method("bt"), fitted, {"ridge": 0}, np.zeros(2), standardise(scale)
    )
    mrm.save(tmp_path / "run", model)
    given = ("answer", "--run", tmp_path / "run", "--candidates", world.candidates)
    served = call(*given, "--prompt", PROMPT)
    assert (served.code, served.out) == (0, f"{TEXTS[PROMPT][1]}\n"), served.err
    assert "how sure is not known" in served.err
    for more in (("--caution", 2), ("--least-probability", 0.9)):
        refused(call(*given, "--prompt", PROMPT, *more), "bt", "no posterior", more[0], "bayes")


def test_rows_bring_their_own_users(world, tmp_path):
    rows = [
        {"prompt": "Tea?", "user": "warm"},
        {"prompt": "Tea?", "user": "brief"},
        {"prompt": PROMPT},
    ]
    prompts, out = write_rows(tmp_path / "p.jsonl", rows), tmp_path / "out.jsonl"
    result = answer(world, "--prompts", prompts, "--user", "warm", "--out", out, prompt=None)
    assert result.code == 0, result.err
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["answer"] for row in found] == [
        TEXTS["Tea?"][2],
        TEXTS["Tea?"][1],
        TEXTS[PROMPT][2],
    ]
    assert [row["user"] for row in found] == ["warm", "brief", "warm"]
    assert [row["row"] for row in found] == [0, 1, 2]
    gain, sd = expected(world, "warm", "Tea?")
    assert found[0]["gain"] == pytest.approx(gain[2], rel=1e-4)
    assert found[0]["gain_sd"] == pytest.approx(sd[2], rel=1e-4)
    assert found[0]["probability"] > 0.99
    assert found[0]["why"].startswith("answer 3 of 3 (best_of)")


def test_users_of_another_run_and_missing_sources_are_refused(world, tmp_path):
    other = answer_world.save_run(tmp_path / "other", world.scale, variance=0.02)
    users = ("--users", other / "users.sqlite")
    assert answer(world, *users).code == 0  # the same population: the same model
    third = answer_world.save_run(
        tmp_path / "third", answer_world.scale_of(("brevity", "simplicity"))
    )
    refused(answer(world, "--users", third / "users.sqlite"), "another model")
    refused(answer(world, prompt="Why?"), "'Why?'", "has no answer", "--model")
    refused(
        call("answer", "--run", world.run, "--prompt", "x"), "--model, --candidates, --portfolio"
    )
    refused(answer(world, "--strategy", "member"), "--portfolio")
    refused(answer(world, "--model", "x"), "--model and --candidates")
    refused(answer(world, "--samples", 4), "--samples: found no --model", "leave out --samples")
    refused(
        answer(world, "--least-probability", 2),
        "least_probability: found 2, expected a finite number of 0 or more and at most 1",
    )
    refused(answer(world, "--resume"), "--resume: found no --out")
    refused(call("answer", "--run", tmp_path, "--prompt", "x"), "no trained model")


def test_an_interrupted_file_goes_on_to_the_same_bytes_or_is_refused(world, tmp_path):
    rows = [{"prompt": prompt, "user": user} for prompt in TEXTS for user in USERS] * 2
    prompts, out = write_rows(tmp_path / "p.jsonl", rows), tmp_path / "out.jsonl"
    options = ("--prompts", prompts, "--batch-size", 1)
    assert answer(world, *options, "--out", out, prompt=None).code == 0
    whole, again = out.read_bytes(), tmp_path / "again.jsonl"
    assert answer(world, *options, "--out", again, prompt=None).code == 0
    folder = tmp_path / ".again.jsonl.run"
    (folder / "report.json").unlink()
    again.unlink()
    (folder / "rows.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:6]) + b'{"row"')
    refused(
        answer(world, *options, "--out", again, "--caution", 1, "--resume", prompt=None), "caution"
    )
    resumed = answer(world, *options, "--out", again, "--resume", prompt=None)
    assert resumed.code == 0, resumed.err
    assert again.read_bytes() == whole
    plain = whole.count(b'"strategy": "plain"')
    finished = answer(world, *options, "--out", again, "--resume", prompt=None)
    for result in (resumed, finished):
        assert f"{len(rows)} answers, {plain} of them plain" in result.err


def test_a_file_does_not_go_on_with_candidates_that_have_changed(world, tmp_path):
    candidates = tmp_path / "candidates.jsonl"
    candidates.write_bytes(world.candidates.read_bytes())
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": PROMPT}])
    given = ("answer", "--run", world.run, "--candidates", candidates, "--prompts", prompts)
    out = tmp_path / "out.jsonl"
    assert call(*given, "--out", out).code == 0
    (tmp_path / ".out.jsonl.run" / "report.json").unlink()
    out.unlink()
    rows = [json.loads(line) for line in world.candidates.read_text().splitlines()]
    write_rows(candidates, [row | {"answer": row["answer"] + " Indeed."} for row in rows])
    refused(call(*given, "--out", out, "--resume"), "candidates")
    candidates.write_text("\n".join(json.dumps(row, indent=None) for row in rows) + "\n\n")
    assert call(*given, "--out", out, "--resume").code == 0


def test_an_encoder_reads_prompts_where_the_choices_had_them(monkeypatch):
    """As the items of the choices were encoded: with their prompts, or without any."""
    read = []
    monkeypatch.setattr(
        answer_sources, "encode_texts", lambda model, texts, keep: read.extend(texts) or np.eye(2)
    )
    fitted = {"mean": np.zeros((1, 2)), "cov": np.eye(2)[None], "step": np.ones(1, int)}
    plain = mrm.UserModel(
        mrm.make_method("bayes"), fitted, {"em": 0, "adapt": True}, np.zeros(2), identity(2)
    )
    chat = ({"role": "user", "content": "q"},)
    for model in (plain, replace(plain, with_prompts=True)):
        answer_sources.answer_reader(model)(["p", chat], ["a", "b"])
    assert read == ["a", "b", "p\n\na", "q\n\nb"]


def test_reward_models_are_given_by_the_names_of_their_scores(tmp_path, monkeypatch):
    read = []
    model = SimpleNamespace(labels=["LABEL_0"], sha256="0")
    monkeypatch.setattr(
        answer_sources, "load_reward_model", lambda folder: read.append(folder) or model
    )
    (tmp_path / "b=c").mkdir()
    given = ["kind=runs/kind", f"safe={tmp_path / 'b=c'}", str(tmp_path / "b=c")]
    reward = answer_sources._named_rewards(("kind", "safe", "LABEL_0", "brevity"), given)
    assert reward.names == ("kind", "safe", "LABEL_0", "brevity")
    assert read == ["runs/kind", str(tmp_path / "b=c"), str(tmp_path / "b=c")]
    with pytest.raises(InputError, match=r"computes kind .*given compute LABEL_0.*NAME=FOLDER"):
        answer_sources._named_rewards(("kind",), ["runs/kind"])
    with pytest.raises(InputError, match="found the names a,b, expected 1 name, for LABEL_0"):
        answer_sources._named_rewards(("kind",), ["a,b=runs/kind"])
