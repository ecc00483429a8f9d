"""`jaxalign generate --resume`: the same bytes after any stop, and never another run's rows."""

import json
from dataclasses import replace

import pytest
import tiny_lms
from cli_calls import call, refused, write_rows

from jaxalign.experiments import generate

SEPARATORS = "a\u2028b\u2029c\x85d"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two tiny models, an adapter and two files of prompts."""
    root = tmp_path_factory.mktemp("resume")
    for number, name in enumerate(("model", "other")):
        tiny_lms.write(root / name, "llama", seed=number)
    for name in ("one", "two"):
        write_rows(root / f"{name}.jsonl", [{"prompt": f"{name} {row}"} for row in range(21)])
    return root


def command(root, out, *more, prompts="one"):
    words = ["generate", "--model", root / "model", "--prompts", root / f"{prompts}.jsonl"]
    words += ["--max-tokens", 3, "--batch-size", 1, "--temperature", 1, "--out", out, *more]
    return call(*words)


def texts(path):
    return [json.loads(line)["completion"] for line in path.read_text().split("\n")[:-1]]


@pytest.fixture
def stop(monkeypatch):
    """Returns what lets the next commands stop after some batches; every answer has separators."""
    whole = generate.complete_tokens

    def after(count):
        left = [count]

        def some(*arguments, **more):
            for batch in whole(*arguments, **more):
                if not left[0]:
                    raise KeyboardInterrupt
                left[0] -= 1
                yield {row: replace(one, text=one.text + SEPARATORS) for row, one in batch.items()}

        monkeypatch.setattr(generate, "complete_tokens", some)

    return after


def test_a_stopped_file_goes_on_to_the_same_bytes(root, tmp_path, stop):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    stop(99)
    assert command(root, whole).code == 0
    rows = [json.loads(line) for line in whole.read_text().split("\n")[:-1]]
    assert [row["row"] for row in rows] == list(range(21))
    assert all(row["completion"].endswith(SEPARATORS) for row in rows)
    for count in (0, 3, 12):  # before anything is written; after; and once more
        stop(count)
        stopped = command(root, out, *(["--resume"] if count else []))
        assert stopped.code == 130
        assert "--resume" in stopped.err
        assert not out.exists()
    part = tmp_path / ".out.jsonl.run" / "rows.jsonl"
    assert part.read_bytes().count(b"\n") == 8
    with part.open("ab") as file:  # killed while it wrote the ninth row
        file.write('{"row": 8, "completion": "a\u2028'.encode()[:-1])
    stop(99)
    refused(command(root, out), "unfinished run", "--resume")
    assert command(root, out, "--resume").code == 0
    assert out.read_bytes() == whole.read_bytes()
    assert not part.exists()


def test_another_run_is_not_gone_on_with(root, tmp_path, stop):
    out = tmp_path / "out.jsonl"
    stop(9)
    assert command(root, out).code == 130
    stop(99)
    others = {
        ("--temperature", 0.5): "sampling.temperature was 1.0, now it is 0.5",
        ("--seed", 1): "seed was 0, now it is 1",
        ("--max-tokens", 4): "sampling.max_tokens was 3, now it is 4",
        ("--samples", 2): "samples was 1, now it is 2",
        ("--model", root / "other"): "not the same model",
        ("--system", "be kind"): "not the same prompts",
        ("--prompts", root / "two.jsonl"): "not the same prompts",
    }
    for more, reason in others.items():
        refused(command(root, out, "--resume", *more), "another run", reason)
    assert not out.exists()
    # The size of a batch changes no answer.
    assert command(root, out, "--resume", "--batch-size", 2).code == 0
    assert command(root, tmp_path / "fresh.jsonl").code == 0
    assert texts(out) == texts(tmp_path / "fresh.jsonl")


def test_a_finished_file_is_known_again(root, tmp_path):
    out = tmp_path / "out.jsonl"
    assert command(root, out).code == 0
    before = out.stat()
    again = command(root, out, "--resume")
    assert again.code == 0
    assert "finished before" in again.err
    assert out.stat().st_mtime_ns == before.st_mtime_ns
    refused(command(root, out, "--resume", "--seed", 1), "seed was 0, now it is 1")
    assert command(root, out, "--seed", 1).code == 0  # without --resume it is written anew
    assert out.stat().st_mtime_ns != before.st_mtime_ns
    out.write_text("mine")
    refused(command(root, out, "--resume"), "no run beside it has written what it holds")
    assert out.read_text() == "mine"
