"""`jaxalign reward score`: columns are kept, bad rows are found first, a stopped file goes on."""

import json

import pytest
import tiny_lms
from cli_calls import call, refused, write_rows

from jaxalign.experiments import reward_score

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
