"""`jaxalign sft` and `jaxalign reward`: a small run through the command line, and refusals."""

import json

import pytest
import tiny_lms

from jaxalign.cli import main
from jaxalign.rewards import registry

FEW = ["--loop.epochs", "1", "--loop.batch_size", "4", "--trunk.lora.rank", "2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_lms.write(tmp_path_factory.mktemp("tiny") / "model", "llama"))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def said(*turns):
    return [{"role": role, "content": content} for role, content in turns]


def test_a_reward_model_is_trained_and_scores(model, tmp_path, capsys):
    """On rows without users, half of them conversations, and one that cannot be used."""
    rows = [{"prompt": f"say {row}", "chosen": "yes", "rejected": "no"} for row in range(4)]
    for row in range(4, 8):
        asked = ("user", f"say {row}")
        answers = {
            "chosen": said(asked, ("assistant", "yes")),
            "rejected": said(asked, ("assistant", "no")),
        }
        rows.append(answers)
    rows.insert(2, {"prompt": "say", "chosen": "yes", "rejected": None})
    data, out = write(tmp_path / "choices.jsonl", rows), tmp_path / "run"
    train = ["reward", "train", "--model", model, "--data", data, "--out", str(out), *FEW]
    assert main(train) == 2
    assert "line 3: `rejected` is missing" in capsys.readouterr().err
    train += ["--on_bad_row", "drop"]
    assert main(train) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["choices"] + report["held_out_choices"] == 8
    assert report["notes"] == [
        f"1 of 9 rows dropped: `rejected` is missing (1, first: {data}, line 3)"
    ]
    assert main(train) == 2
    assert "--resume" in capsys.readouterr().err
    answers = write(tmp_path / "answers.jsonl", [{"prompt": "say 1", "answer": "yes"}])
    scores = tmp_path / "scores.jsonl"
    score = ["reward", "score", "--model", str(out / "model"), "--data", answers]
    assert main([*score, "--out", str(scores)]) == 0
    (row,) = (json.loads(line) for line in scores.read_text().splitlines())
    assert isinstance(row["rewards"]["reward"], float)
    talk = {"prompt": said(("user", "say 1")), "completion": said(("assistant", "yes"))}
    again = ["--data", write(tmp_path / "talk.jsonl", [talk]), "--out", str(tmp_path / "t.jsonl")]
    assert main([*score[:4], *again]) == 0
    assert json.loads((tmp_path / "t.jsonl").read_text())["rewards"] == row["rewards"]
    by_name = ["reward", "score", "--rewards", "brevity,structure", "--data", answers]
    assert main([*by_name, "--out", str(scores)]) == 0
    (row,) = (json.loads(line) for line in scores.read_text().splitlines())
    assert row["rewards"] == {"brevity": pytest.approx(-0.6931472), "structure": 0.0}


def test_a_reward_at_fault_is_named_with_the_line(tmp_path, monkeypatch, capsys):
    def fails(prompts, answers):
        return [1 / len(answer) for answer in answers]

    monkeypatch.setitem(registry._REGISTERED, "fails", fails)
    data = tmp_path / "answers.jsonl"
    data.write_text('{"answer": "a"}\n\n{"answer": ""}\n')
    out = ["--out", str(tmp_path / "scores.jsonl")]
    assert main(["reward", "score", "--rewards", "fails", "--data", str(data), *out]) == 2
    said = capsys.readouterr().err
    assert f"the reward fails raised ZeroDivisionError: division by zero ({data}, line 3" in said


def test_bad_input_is_one_sentence(model, tmp_path, capsys):
    good = write(tmp_path / "good.jsonl", [{"prompt": "a", "completion": "b"}] * 4)
    broken = write(tmp_path / "broken.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": 3}])
    said = write(tmp_path / "said.jsonl", [{"answer": "a"}])
    out, lines_out = (["--out", str(tmp_path / name)] for name in ("run", "scores.jsonl"))
    cases = [
        (["sft", "--model", model, "--data", broken, *out], "broken.jsonl, line 2"),
        (["sft", "--model", model, "--data", str(tmp_path / "no.jsonl"), *out], "no.jsonl"),
        (["sft", "--model", str(tmp_path / "no"), "--data", good, *out], "no"),
        (["sft", "--model", model, "--data", good, *out, "--loop.batch", "3"], "--loop.batch"),
        (["sft", "--model", model, "--data", good, *out, "--trunk.remat", "x"], "remat"),
        (["reward", "train", "--model", model, "--data", good, *out], "good.jsonl"),
        (["reward", "score", "--model", str(tmp_path), "--data", said, *lines_out], str(tmp_path)),
        (["reward", "score", "--rewards", "wit", "--data", said, *lines_out], "'wit'"),
        (["reward", "score", "--data", said, *lines_out], "--rewards"),
        (["reward", "score", "--rewards", "warmth", "--data", said, *out], "must end in .jsonl"),
    ]
    for arguments, word in cases:
        assert main(arguments) == 2, arguments
        said = capsys.readouterr()
        lines = [line for line in said.err.splitlines() if line.startswith("jaxalign: ")]
        assert len(lines) == 1, said.err
        assert word in lines[0], said.err
        assert "Traceback" not in said.err
