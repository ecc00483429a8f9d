"""One rule for --out in every command: what cannot be written is refused before the work."""

import argparse
import os
from pathlib import Path

import pytest
from cli_calls import call, refused, write_rows

from jaxalign import cli
from jaxalign.commands.parser import Parser
from jaxalign.errors import InputError
from jaxalign.files import check_output, write_aside, write_folder_aside

FILES = {
    "answer": "--run none --prompts READ",
    "embed": "--texts READ",
    "generate": "--model none --prompts READ",
    "import": "auto READ",
    "mrm adapt": "--model none --data READ",
    "mrm evaluate": "--model none --data READ",
    "palm certify": "--portfolio none --data READ",
    "palm route": "--portfolio none --users READ",
    "pplug export": "--model none --input a --history READ",
    "pplug generate": "--model none --requests READ",
    "reward score": "--rewards brevity --data READ",
}
# What the first row of each of these has; the others keep a run beside their file.
REPLACED = {
    "embed": ("ids", "features"),
    "import": ("user", "chosen", "rejected"),
    "mrm evaluate": ("method",),
    "palm certify": ("additive", "share_lost", "level"),
    "palm route": ("user", "member", "value", "regret_bound"),
    "pplug export": ("tensor/data.pkl", "tensor/data/0"),
}
FOLDERS = {
    "demo": "",
    "export vllm": "--portfolio READ",
    "merge": "--adapter READ",
    "moc train": "--model none --data READ --config READ",
    "moc evaluate": "--model READ",
    "moc export": "--model READ --preference a=1",
    "mrm convert": "--checkpoint READ",
    "mrm train": "--data READ",
    "palm build": "--data READ",
    "pplug train": "--model none --encoder none --data READ --config READ",
    "pplug evaluate": "--model READ",
    "reward train": "--model none --data READ",
    "sft": "--model none --data READ",
}


def commands_with_out(parser=None, words=()):
    """Return the words of every command that has --out, with what it writes there."""
    parser = parser or cli._parser()
    inner = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    found = {}
    for action in inner:
        for name, child in action.choices.items():
            found |= commands_with_out(child, (*words, name))
    if not inner and "--out" in parser._option_string_actions:
        assert isinstance(parser, Parser)
        found[" ".join(words)] = parser.get_default("out_kind")
    return found


def test_every_out_is_in_these_tests():
    assert commands_with_out() == dict.fromkeys(FILES, "file") | dict.fromkeys(FOLDERS, "folder")


def words_of(command, read):
    given = (FILES | FOLDERS)[command].replace("READ", str(read))
    return [*command.split(), *given.split()]


def ending(command):
    return {"embed": ".npz", "pplug export": ".pt"}.get(command, ".jsonl")


@pytest.mark.parametrize("command", [*FILES, *FOLDERS])
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path, command):
    read = write_rows(tmp_path / f"rows{ending(command)}", [{"answer": "a"}])
    words, before = words_of(command, read), read.read_bytes()
    refused(call(*words, "--out", read / f"out{ending(command)}"), "lies below the file", read)
    place = f"/proc/none/out{ending(command)}"
    refused(call(*words, "--out", place), f"{place} cannot be written, for nothing can in /proc")
    long = tmp_path / ("o" * 300 + ending(command))
    refused(call(*words, "--out", long), "cannot be written (File name too long)")
    if command in FOLDERS:
        refused(call(*words, "--out", read), "is a file; expected a folder, new or old")
    else:
        refused(call(*words, "--out", read), "is the file that is read; expected another")
        folder = tmp_path / f"folder{ending(command)}"
        folder.mkdir()
        refused(call(*words, "--out", folder), "is a folder; expected the name of a file")
        folder.rmdir()
    assert read.read_bytes() == before
    assert list(tmp_path.iterdir()) == [read]


@pytest.mark.parametrize("command", ["export vllm", "moc evaluate", "moc export", "pplug evaluate"])
def test_a_folder_that_is_read_is_not_written_over(tmp_path, command):
    words = words_of(command, tmp_path)
    refused(call(*words, "--out", tmp_path), "is the folder that is read; expected another")


@pytest.mark.parametrize("command", FILES)
def test_a_file_of_something_else_is_not_replaced(tmp_path, command):
    read = write_rows(tmp_path / f"rows{ending(command)}", [{"answer": "a"}])
    foreign = write_rows(tmp_path / f"foreign{ending(command)}", [{"prompt": "p"}])
    before = foreign.read_bytes()
    result = call(*words_of(command, read), "--out", foreign)
    assert result.code == 2
    assert foreign.read_bytes() == before
    if command in REPLACED:
        refused(result, "foreign", "is there, and this command has not written what it holds")
        # A file of its own kind, and one with nothing in it, are: the command goes on, and fails.
        empty = tmp_path / f"empty{ending(command)}"
        empty.touch()
        assert "is there, and" not in call(*words_of(command, read), "--out", empty).err
        if ending(command) == ".jsonl":
            own = write_rows(tmp_path / "own.jsonl", [dict.fromkeys(REPLACED[command], 0)])
            assert "is there, and" not in call(*words_of(command, read), "--out", own).err


@pytest.mark.parametrize(("command", "name"), [("embed", "x.csv"), ("palm route", "x.csv")])
def test_an_ending_that_is_not_written_is_refused(tmp_path, command, name):
    read = write_rows(tmp_path / "rows.jsonl", [{"answer": "a"}])
    result = call(*words_of(command, read), "--out", tmp_path / name)
    refused(result, f"{name} must end in .")


def test_a_store_that_cannot_be_written_is_refused(tmp_path):
    read = write_rows(tmp_path / "rows.jsonl", [{"answer": "a"}])
    result = call(*words_of("pplug train", read), "--out", tmp_path / "run", "--store", read)
    refused(result, f"--store {read} is a file; expected a folder")


def test_the_file_beside_a_model_is_checked_where_out_is_left_out(tmp_path):
    read = write_rows(tmp_path / "rows.jsonl", [{"answer": "a"}])
    (tmp_path / "users.sqlite").mkdir()
    result = call("mrm", "adapt", "--model", tmp_path, "--data", read)
    refused(result, "users.sqlite is a folder; expected the name of a file")


@pytest.mark.parametrize("where", ["new/deep/scores.jsonl", "scores.jsonl"])
def test_missing_parents_are_made(tmp_path, where):
    read = write_rows(tmp_path / "rows.jsonl", [{"answer": "a"}])
    out = tmp_path / where
    assert call("reward", "score", "--rewards", "brevity", "--data", read, "--out", out).code == 0
    assert out.read_text().count("\n") == 1


def test_a_device_is_no_file():
    with pytest.raises(InputError, match="/dev/null is a device; expected the name of a file"):
        check_output("/dev/null", "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="everything is writable for root")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match=r"nothing can in .*Permission denied"):
        check_output(tmp_path / "new" / "x", "file")


def test_messages_name_the_file_and_not_the_temporary_one(tmp_path):
    def fail(block, error):
        with block as aside:
            raise error(aside)

    path = tmp_path / "x.parquet"
    full = (28, "No space left on device")
    errors = (
        lambda aside: OSError(*full),
        lambda aside: OSError(*full, str(aside)),
        lambda aside: OSError(f"Failed to open local file '{aside}'"),
    )
    for error in errors:
        for block in (write_aside(path), write_folder_aside(path)):
            with pytest.raises(InputError, match=r"x\.parquet cannot be written") as caught:
                fail(block, error)
            assert ".part" not in str(caught.value)
    with pytest.raises(FileNotFoundError):  # of something else that is read meanwhile
        fail(write_aside(path), lambda aside: FileNotFoundError(2, "No such file", "other"))
    assert list(tmp_path.iterdir()) == []


def test_benchmarks_follow_the_same_rule(tmp_path, monkeypatch, capsys):
    from benchmarks.__main__ import main

    file = tmp_path / "file"
    file.write_text("x")
    monkeypatch.setattr("sys.argv", ["benchmarks", "palm", "--out", str(file / "out")])
    assert main() == 2
    assert f"lies below the file {file}" in capsys.readouterr().err
    assert Path(file).read_text() == "x"
