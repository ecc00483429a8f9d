"""The command line at large: help, `embed`, and arguments that are no command."""

import argparse
import subprocess
import sys
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest
from cli_calls import call, refused, write_rows
from mrm_cli_world import ITEMS, answer, make_choices

import jaxalign
from jaxalign.commands.processes import join_processes
from jaxalign.data.tables import read_texts
from jaxalign.models import embed
from jaxalign.runs import processes
from jaxalign.train import distributed


@pytest.mark.parametrize(
    "arguments", ["--help", "mrm --help", "mrm train --help", "mrm train --fields", "demo --help"]
)
def test_help(arguments):
    result = call(*arguments.split())
    assert result.code == 0
    assert result.err == ""
    assert len(result.out) > 100


def test_fields_of_entries_are_listed():
    result = call("moc", "train", "--fields")
    lines = [line.strip() for line in result.out.splitlines()]
    assert "Each entry of `rewards`, in the YAML file, has:" in lines
    place = lines.index("function str|None (None)")
    assert lines[place + 1].startswith("for kind `python`: `module:function`")
    assert "kind rule|classifier|python (rule)" in lines


def test_version():
    result = call("--version")
    assert (result.code, result.err) == (0, "")
    assert result.out == f"jaxalign {jaxalign.__version__}\n"


def test_module_runs_as_a_command():
    code = [sys.executable, "-m", "jaxalign.cli", "mrm", "rank", "--model", "nowhere"]
    done = subprocess.run(code, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("jaxalign: ")
    assert done.stderr.count("\n") == 1


LEFT = """
import importlib.util, sys
from jaxalign.commands import generate, moc
def found(arguments, rest):
    print(importlib.util.find_spec("torch") is not None)
generate._generate = moc._train = found
from jaxalign import cli
for words in (["moc", "train", "--data", "x", "--config", "x"], ["generate", "--prompts", "x"]):
    sys.argv[1:] = [*words, "--model", "x", "--out", "nowhere"]
    cli.main()
from dataclasses import dataclass
from jaxalign.config import load_config
@dataclass(frozen=True)
class Config:
    steps: int = 1
print(load_config(Config, None, ["--steps", "2"]).steps)
"""


def test_torch_is_left_to_commands_that_import_functions_of_the_user(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LEFT], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout.split() == ["True", "False", "2"]


def test_a_command_called_from_python_leaves_torch_alone():
    before = list(sys.meta_path)
    assert call("mrm", "rank", "--model", "nowhere", "--texts", "nowhere").code == 2
    assert sys.meta_path == before


def test_embed_encodes_each_text_once(tmp_path, monkeypatch):
    asked = []

    def encode(encoder, texts, pooling=None):
        asked.append((encoder, list(texts), pooling))
        stats = SimpleNamespace(encoded=len(texts), cached=0)
        return np.ones((len(texts), 3), np.float32), stats

    monkeypatch.setattr(embed, "load_encoder", lambda name, dtype: (name, dtype))
    monkeypatch.setattr(embed, "encode_with_stats", encode)
    choices, out = write_rows(tmp_path / "choices.jsonl", make_choices()[1]), tmp_path / "out.npz"
    result = call("embed", "--model", "tiny", "--pooling", "cls", "--data", choices, "--out", out)
    assert result.code == 0, result.err
    assert asked[0][0] == ("tiny", "float32")
    assert asked[0][2] == "cls"
    assert sorted(asked[0][1]) == sorted(answer(i) for i in range(ITEMS))
    assert np.load(out)["features"].shape == (ITEMS, 3)
    texts = tmp_path / "twice.txt"
    texts.write_text("one\ntwo\none\n")
    assert call("embed", "--model", "tiny", "--texts", texts, "--out", out).code == 0
    assert asked[1][1:] == (["one", "two"], None)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "COMMAND"),
        (["mrm"], "ACTION"),
        (["nonsense"], "nonsense"),
        (["mrm", "nonsense"], "nonsense"),
        (["mrm", "train", "--out", "x"], "--data"),
        (["mrm", "rank", "--model", "x", "--texts", "y", "--bogus"], "--bogus"),
        (["mrm", "adapt", "--model", "x", "--data", "y", "stray"], "stray"),
        (["demo", "--seed", "one"], "--seed"),
        (["demo", "--seed", "-1"], "--seed: found -1"),
        (["embed", "--pooling", "most", "--out", "x.npz"], "most"),
        (["embed", "--out", "x.npz"], "--texts"),
        (["embed", "--texts", "a", "--data", "b", "--out", "x.npz"], "--texts"),
        (["embed", "--texts", "nowhere.txt", "--out", "x.npz"], "nowhere.txt"),
        (["embed", "--texts", "nowhere.txt", "--out", "x.csv"], ".npz"),
    ],
)
def test_bad_command_lines(tmp_path, monkeypatch, arguments, word):
    monkeypatch.chdir(tmp_path)
    refused(call(*arguments), word)
    assert not any(tmp_path.iterdir())


def test_texts_keep_characters_that_break_lines_elsewhere(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one\u2028two"}\n', encoding="utf-8")
    assert read_texts(path) == ["one\u2028two"]


def test_what_other_processes_print_is_discarded_until_the_command_ends(monkeypatch, capsys):
    monkeypatch.setattr(distributed, "start", lambda config, say: None)
    monkeypatch.setattr(processes, "is_first_process", lambda: False)
    arguments = argparse.Namespace(joins=True, coordinator=None, processes=None, process=None)
    with ExitStack() as until:
        join_processes(arguments, until)
        print("of a process that is not the first")
    print("afterwards")
    assert capsys.readouterr().out == "afterwards\n"
