import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxalign import data
from jaxalign.errors import InputError

IDS = ("a", "b\nb", "ç")
VALUES = np.arange(6, dtype=np.float32).reshape(3, 2)


def refused(call, *parts):
    with pytest.raises(InputError) as caught:
        call()
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def same(features, names=None):
    assert features.ids == IDS
    assert features.names == names
    np.testing.assert_array_equal(features.values.astype(np.float32), VALUES)


def test_saved_features_come_back(tmp_path):
    path = tmp_path / "f.npz"
    data.save_features(path, data.Features(IDS, VALUES, ("kind", "short")))
    same(data.load_features(path), ("kind", "short"))
    data.save_features(path, data.Features(IDS, VALUES.astype(ml_dtypes.bfloat16)))
    same(data.load_features(str(path)))
    assert [entry.name for entry in tmp_path.iterdir()] == ["f.npz"]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "f.npz"
    data.save_features(path, data.Features(IDS, VALUES))

    def full(file, **_):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(InputError, match="no space"):
        data.save_features(path, data.Features(IDS, VALUES + 1))
    monkeypatch.undo()
    same(data.load_features(path))
    assert [entry.name for entry in tmp_path.iterdir()] == ["f.npz"]


def test_every_format_reads(tmp_path):
    np.savez(tmp_path / "a.npz", ids=np.array(IDS), features=VALUES, names=np.array(["x", "y"]))
    same(data.load_features(tmp_path / "a.npz"), ("x", "y"))
    np.save(tmp_path / "b.npy", VALUES)
    (tmp_path / "b.ids.json").write_text(json.dumps(IDS))
    same(data.load_features(tmp_path / "b.npy"))
    np.save(tmp_path / "c.npy", VALUES.astype(np.int64))
    (tmp_path / "c.ids.txt").write_text("j1\nj2\nj3\n")
    features = data.load_features(tmp_path / "c.npy")
    assert features.ids == ("j1", "j2", "j3")
    assert features.values.dtype == np.float32
    texts = {"ids": json.dumps(IDS), "names": json.dumps(["x", "y"])}
    save_file({"features": VALUES}, tmp_path / "d.safetensors", texts)
    same(data.load_features(tmp_path / "d.safetensors"), ("x", "y"))
    save_file({"features": VALUES.astype(ml_dtypes.bfloat16)}, tmp_path / "e.safetensors")
    (tmp_path / "e.ids.json").write_text(json.dumps(IDS))
    features = data.load_features(tmp_path / "e.safetensors")
    same(features)
    assert features.values.dtype == ml_dtypes.bfloat16


def test_lookup_gathers_in_the_order_of_items():
    rows = data.lookup(data.Features(IDS, VALUES), ["ç", "a", "ç"])
    np.testing.assert_array_equal(rows, VALUES[[2, 0, 2]])


def test_lookup_refuses_missing_and_non_finite_rows():
    features = data.Features(IDS, np.array([[0, 1], [np.nan, 1], [2, np.inf]], np.float32))
    np.testing.assert_array_equal(data.lookup(features, ["a"]), [[0, 1]])
    refused(lambda: data.lookup(features, ["a", "b\nb"]), r"features of 'b\nb'", "NaN or infinity")
    refused(lambda: data.lookup(features, ["ç"]), "features of 'ç'")
    refused(
        lambda: data.lookup(features, ["a", "v", "w", "v", "x", "y"]),
        "4 of 5 items have no features",
        "'v', 'w', 'x'",
    )


def test_bad_files_are_named(tmp_path):
    def load(name):
        return lambda: data.load_features(tmp_path / name)

    refused(load("no.npz"), "no.npz does not exist")
    refused(load("a.csv"), "expected .npy, .npz or .safetensors")
    np.save(tmp_path / "b.npy", VALUES)
    refused(load("b.npy"), "has no ids", "b.ids.json or b.ids.txt")
    (tmp_path / "b.ids.json").write_text("{}")
    refused(load("b.npy"), "b.ids.json", "not a JSON list of texts")
    (tmp_path / "b.ids.json").write_text("[")
    refused(load("b.npy"), "b.ids.json", "not readable as JSON")
    (tmp_path / "b.ids.json").write_text('["a", "b"]')
    refused(load("b.npy"), "3 feature rows and 2 ids")
    (tmp_path / "b.ids.json").write_text('["a", "b", "a"]')
    refused(load("b.npy"), "the id 'a' occurs twice")
    (tmp_path / "b.ids.json").unlink()
    (tmp_path / "b.ids.txt").write_bytes(b"\xff\n")
    refused(load("b.npy"), "not UTF-8")
    np.save(tmp_path / "c.npy", np.array([{}], dtype=object), allow_pickle=True)
    refused(load("c.npy"), "not a readable .npy file")
    for name in ("d.npz", "d.safetensors"):
        (tmp_path / name).write_bytes(b"no")
        refused(load(name), name, "is not a readable")
    np.savez(tmp_path / "e.npz", values=VALUES)
    refused(load("e.npz"), "no key `features`; found values")
    np.savez(tmp_path / "f.npz", features=VALUES, ids=np.arange(3) / 2)
    refused(load("f.npz"), "`ids`", "float64", "a list of texts")
    (tmp_path / "b.ids.txt").unlink()
    (tmp_path / "b.ids.json").write_text('["a", "b", null]')
    refused(load("b.npy"), "b.ids.json, row 3", "`ids` is missing")
    np.savez(tmp_path / "g.npz", features=VALUES, ids=np.array(IDS), names=np.array(["x"]))
    refused(load("g.npz"), "1 names for 2 columns")
    np.savez(tmp_path / "h.npz", features=VALUES[0], ids=np.array(IDS))
    refused(load("h.npz"), "shape (2,)")
    np.savez(tmp_path / "i.npz", features=VALUES > 0, ids=np.array(IDS))
    refused(load("i.npz"), "features are bool")
    save_file({"x": VALUES}, tmp_path / "j.safetensors")
    refused(load("j.safetensors"), "no tensor `features`; found x")
    refused(
        lambda: data.save_features(tmp_path / "k.npy", data.Features(IDS, VALUES)), "end in .npz"
    )


def test_ids_of_features_are_ids_as_everywhere(tmp_path):
    np.save(tmp_path / "a.npy", VALUES)
    (tmp_path / "a.ids.txt").write_bytes("\ufeff7\r\n\r\n8\u2028\r\nx".encode())
    assert data.load_features(tmp_path / "a.npy").ids == ("7", "8\u2028", "x")
    (tmp_path / "a.ids.json").write_bytes(b'\xef\xbb\xbf[7, "8", "x"]')
    assert data.load_features(tmp_path / "a.npy").ids == ("7", "8", "x")
    np.savez(tmp_path / "b.npz", features=VALUES, ids=np.arange(7, 10))
    assert data.load_features(tmp_path / "b.npz").ids == ("7", "8", "9")


def score_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_scores_are_named_features_by_answer_and_by_prompt_and_answer(tmp_path):
    rows = [
        {"prompt": "p", "answer": "a", "rewards": {"kind": 1.0, "short": 2}},
        {"prompt": "q", "answer": "a", "rewards": {"short": 5.0, "kind": 3.0}},
        {"prompt": "q", "answer": "b", "rewards": {"kind": 4.0, "short": 6.0}},
    ]
    found = data.load_features(score_rows(tmp_path / "s.jsonl", rows))
    assert found.names == ("kind", "short")
    # The answer "a" is worth something else to each prompt: it is known with its prompt alone.
    assert set(found.ids) == {"p\n\na", "q\n\na", "q\n\nb", "b"}
    texts = ["q\n\na", "p\n\na", "r\n\nb"]
    got = data.lookup(found, ["a", "a", "b"], texts)
    assert got.tolist() == [[3, 5], [1, 2], [4, 6]]
    with pytest.raises(InputError, match="no features"):
        data.lookup(found, ["a"])
    plain = [{key: row[key] for key in ("answer", "rewards")} for row in rows[::2]]
    assert data.load_features(score_rows(tmp_path / "t.jsonl", plain)).ids == ("a", "b")


def test_scores_that_cannot_be_used_are_refused_by_line(tmp_path):
    good = {"answer": "a", "rewards": {"kind": 1.0}}
    for bad, words in (
        ({"answer": "a", "rewards": {"kind": 2.0}}, "has others in line 1"),
        ({"answer": "b", "rewards": {"wit": 2.0}}, "a number for kind"),
        ({"answer": "b", "rewards": {"kind": "x"}}, "a finite number"),
        ({"answer": "b", "rewards": {"kind": float("nan")}}, "a finite number"),
        ({"answer": "b"}, "a number for kind"),
    ):
        path = score_rows(tmp_path / "s.jsonl", [good, bad])
        with pytest.raises(InputError, match=f"s.jsonl, line 2: .*{words}"):
            data.load_features(path)
    with pytest.raises(InputError, match="`rewards` is"):
        data.load_features(score_rows(tmp_path / "t.jsonl", [{"answer": "a", "text": "b"}]))
    with pytest.raises(InputError, match=r"`rewards` is \{\}, expected a number for each reward"):
        data.load_features(score_rows(tmp_path / "t.jsonl", [{"answer": "a", "rewards": {}}]))


def test_scores_of_conversations_are_known_by_their_text(tmp_path):
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "w"}]
    more = [*talk, {"role": "user", "content": "r"}]
    rows = [
        {"prompt": talk[:1], "answer": "a", "rewards": {"kind": 1.0}},
        {"prompt": more, "completion": "a", "rewards": {"kind": 2.0}},
    ]
    found = data.load_features(score_rows(tmp_path / "s.jsonl", rows))
    choices = {"user": [1], "prompt": [more], "chosen": ["a"], "rejected": ["b"]}
    assert found.ids == ("q\n\na", "q\n\nw\n\nr\n\na")
    assert data.from_columns(choices).texts[0] == found.ids[1]
