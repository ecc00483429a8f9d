"""Artifacts on disk: they come back as they were, and readers refuse what they cannot use."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxalign.errors import InputError
from jaxalign.runs.artifact import (
    load_arrays,
    load_artifact,
    save_arrays,
    save_artifact,
    subtree,
    unflatten,
)

REMEDY = "run `jaxalign palm build`"


@dataclass(frozen=True)
class About:
    names: tuple[str, ...]
    beta: float = 0.5


@dataclass(frozen=True)
class OtherAbout:
    names: tuple[str, ...]
    sizes: tuple[int, ...]


def test_arrays_come_back(tmp_path):
    tree = {
        "a": {"b": np.arange(3), "c": np.ones((2, 2), np.float32)[:, ::-1]},
        "d": np.float64(2.0),
        "empty": np.zeros((0, 3)),
        "flags": np.array([True, False]),
        "text": np.array("wörter"),
    }
    save_arrays(tmp_path / "t.safetensors", tree)
    found = load_arrays(tmp_path / "t.safetensors")
    np.testing.assert_array_equal(found["a/b"], tree["a"]["b"])
    assert found["a/c"].dtype == np.float32
    assert found["d"].shape == ()
    assert found["d"] == 2.0
    assert found["empty"].shape == (0, 3)
    assert found["flags"].dtype == bool
    assert str(found["text"]) == "wörter"
    assert unflatten(found).keys() == tree.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["t.safetensors"]


@pytest.mark.parametrize("kept", [0, 10, 300, -30])
def test_a_damaged_file_is_refused(tmp_path, kept):
    path = tmp_path / "t.safetensors"
    save_arrays(path, {"a": np.arange(100.0)})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"t\.safetensors is damaged"):
        load_arrays(path)


def test_an_artifact_comes_back(tmp_path):
    path = tmp_path / "new" / "portfolio.safetensors"
    arrays = {"mean": np.arange(2.0), "params": {"kernel": np.ones((2, 3), np.float32)}}
    digest = save_artifact(path, "portfolio", About(("a", "b")), arrays)
    found = load_artifact(path, "portfolio", About, REMEDY)
    assert found.about == About(("a", "b"))
    assert found.digest == digest
    np.testing.assert_array_equal(found.arrays["mean"], arrays["mean"])
    np.testing.assert_array_equal(subtree(found.arrays, "params")["kernel"], np.ones((2, 3)))
    assert digest == save_artifact(tmp_path / "b", "portfolio", About(("a", "b")), arrays)
    assert digest != save_artifact(tmp_path / "b", "portfolio", About(("a", "c")), arrays)
    arrays["mean"] = arrays["mean"] + 1
    assert digest != save_artifact(tmp_path / "b", "portfolio", About(("a", "b")), arrays)


def test_what_cannot_be_used_is_refused(tmp_path):
    path = tmp_path / "p.safetensors"
    with pytest.raises(
        InputError, match=r"p\.safetensors: no such file.*; expected a portfolio: run"
    ):
        load_artifact(path, "portfolio", About, REMEDY)
    save_artifact(path, "user model", About(("a",)), {"mean": np.arange(64.0)})
    with pytest.raises(InputError, match="holds a user model; expected a portfolio: run `jaxalign"):
        load_artifact(path, "portfolio", About, REMEDY)
    with pytest.raises(InputError, match=r"`sizes` cannot be used .*: run `jaxalign palm build`"):
        load_artifact(path, "user model", OtherAbout, REMEDY)
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    with pytest.raises(InputError, match=r"is damaged .its digest does not fit its content"):
        load_artifact(path, "user model", About, REMEDY)
    save_file({"mean": np.arange(2.0)}, path)
    with pytest.raises(InputError, match="holds tensors and no artifact of jaxalign"):
        load_artifact(path, "user model", About, REMEDY)
    old = json.dumps({"kind": "portfolio", "format": 1, "digest": ""})
    save_file({"mean": np.arange(2.0)}, path, {"jaxalign": old, "about": "{}"})
    with pytest.raises(InputError, match="is of format 1; this version reads 2: run `jaxalign"):
        load_artifact(path, "portfolio", About, REMEDY)


def test_equal_artifacts_are_equal_bytes(tmp_path):
    # safetensors writes the entries of its metadata in no fixed order.
    paths = [tmp_path / f"{number}.safetensors" for number in range(8)]
    for path in paths:
        save_artifact(path, "weights", About(("brevity",)), {"mean": np.ones(2), "name": "a"})
    assert len({path.read_bytes() for path in paths}) == 1


@pytest.mark.parametrize(
    "texts", [np.array(["a", "longer"])[:1], np.array([], str), np.array([["ab", "abc\0"]])]
)
def test_texts_of_any_width_come_back(texts, tmp_path):
    path, about = tmp_path / "t.safetensors", About(("brevity",))
    digest = save_artifact(path, "texts", about, {"words": texts})
    found = load_artifact(path, "texts", About, REMEDY)
    assert found.digest == digest
    assert found.arrays["words"].tolist() == texts.tolist()
    assert found.arrays["words"].dtype.kind == "U"
