"""What `palm build --export` writes for `jaxalign sft`."""

import json

from cli_calls import call, refused
from test_palm_cli import QUICK, candidate_rows, write


def test_conversations_are_exported_with_their_turns(tmp_path):
    rows = candidate_rows(prompts=8)
    turns = {
        row["prompt"]: [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "And?"},
        ]
        for row in rows
    }
    data = write(tmp_path / "c.jsonl", [row | {"prompt": turns[row["prompt"]]} for row in rows])
    out = tmp_path / "built"
    built = call("palm", "build", "--data", data, "--out", out, *QUICK, "--palm.size", "1",
                 "--export")  # fmt: skip
    assert built.code == 0, built.err
    lines = (out / "train" / "member_1.jsonl").read_text().splitlines()
    assert len(lines) == 4
    assert all(json.loads(line)["prompt"] in turns.values() for line in lines)


def test_an_export_of_prompts_that_are_numbers_is_refused(tmp_path):
    rows, numbers = candidate_rows(prompts=8), {}
    for row in rows:
        row["prompt"] = numbers.setdefault(row["prompt"], len(numbers))
    build = ("palm", "build", "--data", write(tmp_path / "c.jsonl", rows), *QUICK)
    refused(
        call(*build, "--out", tmp_path / "out", "--export"), "--export", "prompts that are numb"
    )
    assert not (tmp_path / "out").exists()
