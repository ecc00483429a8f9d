"""Files that are whole or absent."""

import os

import pytest

from jaxalign.errors import InputError
from jaxalign.files import read_json, write_aside, write_folder_aside, write_json, write_text


def interrupted(block):
    with block as aside:
        write_text(aside / "half" if aside.is_dir() else aside, "half")
        raise KeyboardInterrupt


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt):
        interrupted(write_aside(path))
    assert path.read_text() == "old"
    assert [one.name for one in path.parent.iterdir()] == ["a.txt"]


def test_folders_that_cannot_be_made_are_refused(tmp_path):
    write_text(tmp_path / "file", "x")
    with (
        pytest.raises(InputError, match="its folder cannot be created"),
        write_aside(tmp_path / "file" / "a"),
    ):
        pass
    with pytest.raises(InputError, match="is a folder"), write_aside(tmp_path):
        pass
    with pytest.raises(InputError, match="is a file"), write_folder_aside(tmp_path / "file"):
        pass


def test_a_folder_appears_whole_and_others_files_stay(tmp_path):
    folder = tmp_path / "model"
    with pytest.raises(KeyboardInterrupt):
        interrupted(write_folder_aside(folder))
    assert not list(tmp_path.iterdir())
    for text in ("one", "two"):
        with write_folder_aside(folder, stale="*.part", last="index") as aside:
            write_text(aside / f"{text}.part", text)
            write_text(aside / "index", text)
        (folder / "notes").write_text("mine")
    assert sorted(path.name for path in folder.iterdir()) == ["index", "notes", "two.part"]


def test_files_of_a_folder_reach_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("flushed"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *some: (done.append("named"), replace(*some)))
    for _ in range(2):
        with write_folder_aside(tmp_path / "model") as aside:
            (aside / "weights").write_text("1")
            (aside / "below").mkdir(exist_ok=True)
    assert done[:2] == ["flushed", "named"]
    assert done[2:] == ["flushed", "named", "named"]


def test_threads_of_one_process_write_a_file_apart(tmp_path):
    with write_aside(tmp_path / "a") as one, write_aside(tmp_path / "a") as two:
        one.write_text("one")
        two.write_text("two")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "one"


def test_json(tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"a": float("nan")})
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"x\.json: no such file; expected a report: run it"):
        read_json(path, "a report", "run it")
    write_json(path, {"a": [1]})
    assert read_json(path) == {"a": [1]}
    for text, said in (("[1]", "holds a JSON list"), ("{", "is not JSON")):
        path.write_text(text)
        with pytest.raises(InputError, match=said):
            read_json(path)
