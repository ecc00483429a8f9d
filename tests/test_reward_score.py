"""`jaxalign reward score`: columns are kept, bad rows are found first, a stopped file goes on."""

import json

import numpy as np
import pytest
import tiny_lms
from cli_calls import call, refused, write_rows

from jaxalign.data import load_features, load_source, lookup
from jaxalign.experiments import reward_score
from jaxalign.rewards.reward_scale import fit_scale, load_scale

ROWS = [
    {"prompt": f"say {row}", "completion": "the " * (row % 5 + 1), "sample": row, "user": "ann"}
    for row in range(9)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_lms.write(tmp_path_factory.mktemp("scorer") / "model", "llama", labels=1)


def score(model, data, out, *more):
    return call("reward", "score", "--model", model, "--data", data, "--out", out, *more)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_columns_are_kept_and_rewards_added(model, tmp_path):
    data, out = write_rows(tmp_path / "a.jsonl", ROWS), tmp_path / "s.jsonl"
    assert score(model, data, out).code == 0
    found = rows_of(out)
    assert [{k: v for k, v in row.items() if k != "rewards"} for row in found] == ROWS
    again = tmp_path / "b.jsonl"
    rules = ("reward", "score", "--rewards", "brevity", "--data", out, "--out", again)
    assert call(*rules).code == 0
    names = {tuple(row["rewards"]) for row in rows_of(again)}
    assert names == {("LABEL_0", "brevity")}
    # An answer may be called so, and texts may be messages.
    turns = [{"role": "user", "content": "say 0"}]
    said = [{"role": "assistant", "content": ROWS[0]["completion"]}]
    others = [{"prompt": turns, "answer": said}, {"prompt": "say 1", "completion": "the the "}]
    assert score(model, write_rows(tmp_path / "c.jsonl", others), tmp_path / "d.jsonl").code == 0
    for one, other in zip(rows_of(tmp_path / "d.jsonl"), found, strict=False):
        assert one["rewards"]["LABEL_0"] == pytest.approx(other["rewards"]["LABEL_0"], abs=1e-5)


def test_a_second_model_does_not_take_the_place_of_the_first(model, tmp_path):
    data, once, both = (tmp_path / f"{name}.jsonl" for name in ("a", "once", "both"))
    data.write_text(json.dumps({"prompt": "q", "completion": "the thing"}) + "\n")
    assert score(model, data, once).code == 0
    (label,) = json.loads(once.read_text())["rewards"]
    refused(score(model, once, both), f"has {label} already", "--names")
    refused(score(model, once, both, "--names", "a,b"), "--names: found a, b, expected 1")
    assert score(model, once, both, "--names", "safe").code == 0
    assert list(json.loads(both.read_text())["rewards"]) == [label, "safe"]


def test_a_bad_row_is_found_before_the_work(model, tmp_path, monkeypatch):
    monkeypatch.setattr(reward_score, "classify_tokens", None)
    out = tmp_path / "s.jsonl"
    lone = [{"completion": "a"}] * 8
    data = write_rows(tmp_path / "empty.jsonl", [*lone, {"completion": ""}])
    refused(score(model, data, out), "empty.jsonl, line 9 has no tokens")
    data = write_rows(tmp_path / "half.jsonl", [*ROWS, {"completion": "a"}])
    refused(score(model, data, out), "half.jsonl, line 10: `prompt` is missing")
    data = write_rows(tmp_path / "none.jsonl", [{"prompt": "a", "text": "b"}])
    refused(score(model, data, out), "none.jsonl, line 1: `completion` is missing")
    choice = {"prompt": "a", "chosen": "b", "rejected": "c"}
    for name, value, found in (
        ("chosen", None, "missing"),
        ("rejected", 5, "5 (int)"),
        ("chosen", "\ud83d", "surrogate"),
    ):
        data = write_rows(tmp_path / "pair.jsonl", [choice, choice | {name: value}])
        refused(score(model, data, out), f"pair.jsonl, line 2: `{name}`", found)
    assert not list(tmp_path.glob("*s.jsonl*"))


def test_a_stopped_file_goes_on_and_refuses_others(model, tmp_path, monkeypatch):
    data, whole = write_rows(tmp_path / "a.jsonl", ROWS), tmp_path / "whole.jsonl"
    monkeypatch.setattr(reward_score, "_SPAN", 4)
    assert score(model, data, whole).code == 0
    usual, left = reward_score.classify_tokens, [1]

    def once(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return usual(*arguments)

    monkeypatch.setattr(reward_score, "classify_tokens", once)
    out = tmp_path / "s.jsonl"
    assert score(model, data, out).code == 130
    assert not out.exists()
    monkeypatch.setattr(reward_score, "classify_tokens", usual)
    refused(score(model, data, out), "--resume")
    other = write_rows(tmp_path / "b.jsonl", [*ROWS[:8], {**ROWS[8], "user": "bob"}])
    refused(score(model, other, out, "--resume"), "not the same data as before")
    assert score(model, data, out, "--resume").code == 0
    assert out.read_bytes() == whole.read_bytes()


def scores(data, out, *more):
    return call("reward", "score", "--data", data, "--out", out, *more)


def test_the_scale_of_the_rewards_is_written_beside_them(tmp_path):
    data, out = write_rows(tmp_path / "a.jsonl", ROWS), tmp_path / "s.jsonl"
    said = scores(data, out, "--rewards", "brevity,warmth")
    assert said.code == 0
    values = np.array([[row["rewards"]["brevity"]] for row in rows_of(out)])
    expected = fit_scale(values, ("brevity",), None)
    assert load_scale(out) == expected == load_scale(tmp_path / "s.scale.json")
    assert expected.digest[:12] in said.out
    assert "no scale: warmth is the same for all answers" in said.out
    # A reward that is added leaves the scale of those before it alone, in fewer rows too.
    few = write_rows(tmp_path / "few.jsonl", rows_of(out)[:4])
    (tmp_path / "few.scale.json").write_bytes((tmp_path / "s.scale.json").read_bytes())
    more = tmp_path / "more.jsonl"
    assert scores(few, more, "--rewards", "simplicity").code == 0
    assert load_scale(more).names == ("brevity", "simplicity")
    assert load_scale(more).take(["brevity"]) == expected
    # A file that says nothing of its scale leaves none of an earlier file of its name.
    alike = write_rows(tmp_path / "alike.jsonl", [ROWS[0], ROWS[0]])
    assert scores(alike, more, "--rewards", "brevity").code == 0
    assert not (tmp_path / "more.scale.json").exists()


def test_rewards_are_put_on_the_scale_of_another_run(tmp_path):
    data, out = write_rows(tmp_path / "a.jsonl", ROWS), tmp_path / "s.jsonl"
    assert scores(data, out, "--rewards", "brevity,simplicity").code == 0
    few, other = write_rows(tmp_path / "b.jsonl", ROWS[:4]), tmp_path / "t.jsonl"
    assert scores(few, other, "--rewards", "brevity", "--scale-from", out).code == 0
    assert load_scale(other) == load_scale(out).take(["brevity"])
    # The rewards that rows have already are put on a scale without being computed again.
    assert scores(few, other, "--rewards", "simplicity,brevity").code == 0
    again = tmp_path / "u.jsonl"
    said = scores(other, again, "--scale-from", out)
    assert "4 answers put on another scale" in said.out
    assert load_scale(other).names == ("simplicity", "brevity")
    assert load_scale(again) == load_scale(out)  # and so is their order
    assert [list(row["rewards"]) for row in rows_of(again)] == [["brevity", "simplicity"]] * 4
    assert rows_of(again) == rows_of(other)
    refused(scores(few, again, "--scale-from", out), "rows without `rewards`", "--rewards")
    refused(
        scores(few, again, "--rewards", "warmth", "--scale-from", out), "expected one of warmth"
    )
    refused(scores(few, again), "found none of --model, --rewards and --scale-from")


def test_the_answers_of_choices_are_scored_once_each(tmp_path):
    asked = {"role": "user", "content": "q"}
    talk = [[asked, {"role": "assistant", "content": said}] for said in ("longer", "short")]
    rows = [
        {"user": "ann", "prompt": "q", "chosen": "short", "rejected": "longer one"},
        {"user": "bob", "prompt": "q", "chosen": "longer one", "rejected": "short"},
        {"user": "bob", "chosen": talk[0], "rejected": talk[1]},
    ]
    data, out = write_rows(tmp_path / "choices.jsonl", rows), tmp_path / "s.jsonl"
    assert "3 answers scored" in scores(data, out, "--rewards", "brevity,simplicity").out
    found = [(row["prompt"], row["completion"]) for row in rows_of(out)]
    assert found == [("q", "short"), ("q", "longer one"), ("q", "longer")]
    # Every answer of the choices is found among the scores.
    features, choices = load_features(out), load_source(data).choices
    assert lookup(features, choices.items, choices.texts).shape == (3, 2)


def test_a_file_that_no_run_has_written_is_kept(tmp_path):
    """Preferences may have the name that somebody thinks of for their scores."""
    choices = write_rows(tmp_path / "kind.jsonl", [{"chosen": "a", "rejected": "b"}])
    data, before = write_rows(tmp_path / "a.jsonl", ROWS), choices.read_bytes()
    rules = ("reward", "score", "--rewards", "brevity", "--data", data, "--out")
    refused(call(*rules, choices), "kind.jsonl is there, and no run of", "remove it")
    assert choices.read_bytes() == before
    assert not (tmp_path / "kind.scale.json").exists()
    out = tmp_path / "scores.jsonl"
    assert call(*rules, out).code == call(*rules, out).code == 0  # its own file is replaced
