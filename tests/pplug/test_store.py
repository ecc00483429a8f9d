"""Vectors on disk: encoded once, never half written, never another encoder's."""

import errno
import hashlib
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from tiny_bert import write_model

from jaxalign.errors import InputError
from jaxalign.models.embed import encode, load_encoder
from jaxalign.pplug import store as stores
from jaxalign.pplug.store import INDEX, VECTORS, HistoryStore, encode_with, history_store

E = 5


class Counting:
    """An encoder of texts that remembers what it was asked for."""

    def __init__(self):
        self.texts = []

    def __call__(self, texts):
        self.texts += texts
        return np.stack([vector(text) for text in texts]).astype(np.float32)


def vector(text):
    digest = hashlib.sha256(text.encode()).digest()
    return np.frombuffer(digest[:E], np.uint8) / 256 - 0.5


def half(texts):
    return np.stack([vector(text) for text in texts]).astype(np.float16)


def test_each_text_is_encoded_once_and_found_again(tmp_path):
    first, second = Counting(), Counting()
    with HistoryStore(tmp_path, "one", E) as store:
        rows = store.add(["a", "b", "a", "c"], first)
        assert first.texts == ["a", "b", "c"]
        assert rows[0] == rows[2]
        np.testing.assert_array_equal(store.read(rows), half(["a", "b", "a", "c"]))
    with HistoryStore(tmp_path, "one", E) as store:
        again = store.add(["c", "d", "a"], second)
        assert second.texts == ["d"]
        assert len(store) == 4
        assert (tmp_path / VECTORS).stat().st_size == 4 * E * 2
        np.testing.assert_array_equal(again[[2, 0]], rows[[0, 3]])
        np.testing.assert_array_equal(store.find(["x", "d"]), [-1, again[1]])
        np.testing.assert_array_equal(store.read(again), half(["c", "d", "a"]))


def test_a_full_disk_is_said_and_what_was_encoded_is_kept(tmp_path, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    with HistoryStore(tmp_path, "one", E) as store:
        store.add(["a"], Counting())
        with monkeypatch.context() as patched:
            patched.setattr(stores.os, "fsync", full)
            with pytest.raises(InputError, match=r"cannot be written \(.*No space left.*is kept"):
                store.add(["a", "b"], Counting())
        rows = store.add(["b", "a"], Counting())
        np.testing.assert_array_equal(store.read(rows), half(["b", "a"]))


def test_users_are_read_by_index_with_zeros_where_there_is_none(tmp_path):
    with HistoryStore(tmp_path, "one", E) as store:
        assert store.read(np.full((2, 3), -1)).shape == (2, 3, E)
        rows = store.add(["a", "b", "c"], Counting())
        found = store.read(np.array([[rows[2], rows[0]], [rows[1], -1]]))
        assert found.dtype == np.float16
        np.testing.assert_array_equal(found[0], half(["c", "a"]))
        np.testing.assert_array_equal(found[1, 0], vector("b").astype(np.float16))
        assert not found[1, 1].any()
        for row in (3, -2):
            with pytest.raises(InputError, match="row"):
                store.read(np.array([row]))


def test_many_texts_come_in_chunks_that_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "_CHUNK", 100)
    monkeypatch.setattr(stores, "_ROWS", 7)
    texts = [f"text {number}" for number in range(250)]
    counting = Counting()

    def failing(part):
        if len(counting.texts) >= 200:
            raise KeyboardInterrupt
        return counting(part)

    with HistoryStore(tmp_path, "one", E) as store:
        with pytest.raises(KeyboardInterrupt):
            store.add(texts, failing)
        assert len(store) == 200
        rows = store.add(texts, counting)
        assert counting.texts == texts
        np.testing.assert_array_equal(store.read(rows), half(texts))


def test_torn_append_is_cut_back(tmp_path):
    with HistoryStore(tmp_path, "one", E) as store:
        store.add(["a", "b"], Counting())
    with (tmp_path / VECTORS).open("ab") as file:
        file.write(b"x" * (3 * E))  # a vector and a half that no row of the index knows
    with HistoryStore(tmp_path, "one", E) as store:
        assert len(store) == 2
        rows = store.add(["b", "c", "a"], Counting())
        np.testing.assert_array_equal(store.read(rows), half(["b", "c", "a"]))
        assert (tmp_path / VECTORS).stat().st_size == 3 * E * 2


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import test_store
from jaxalign.pplug.store import HistoryStore
store = HistoryStore({folder!r}, "one", test_store.E)
store.add(["a", "b"], test_store.Counting())
# Dies with the vectors written and the index not yet.
os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
store.add(["c"], test_store.Counting())
"""


def test_killed_while_it_writes(tmp_path):
    tests = os.path.dirname(__file__)
    code = KILLED.format(tests=tests, folder=str(tmp_path))
    models = os.path.join(os.path.dirname(tests), "models")
    environment = os.environ | {"PYTHONPATH": models}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / VECTORS).stat().st_size == 3 * E * 2
    with HistoryStore(tmp_path, "one", E) as store:
        np.testing.assert_array_equal(store.find(["a", "b", "c"]), [0, 1, -1])
        rows = store.add(["d", "a", "c"], Counting())
        np.testing.assert_array_equal(store.read(rows), half(["d", "a", "c"]))


def test_another_process_adds_meanwhile(tmp_path):
    with HistoryStore(tmp_path, "one", E) as one, HistoryStore(tmp_path, "one", E) as two:
        one.add(["a"], Counting())

        def slow(texts):
            one.add(["b", "c"], Counting())  # the same text comes in from elsewhere
            return Counting()(texts)

        rows = two.add(["c", "d"], slow)
        np.testing.assert_array_equal(two.read(rows), half(["c", "d"]))
        assert len(two) == 4


def test_another_encoder_is_refused_and_nothing_lost(tmp_path):
    with HistoryStore(tmp_path, "one", E) as store:
        store.add(["a"], Counting())
    for encoder, width in (("two", E), ("one", E + 1)):
        with pytest.raises(InputError, match="holds vectors of encoder one"):
            HistoryStore(tmp_path, encoder, width)
    with HistoryStore(tmp_path, "one", E) as store:
        np.testing.assert_array_equal(store.read(store.find(["a"])), half(["a"]))


def test_damage_is_said(tmp_path):
    with HistoryStore(tmp_path / "cut", "one", E) as store:
        store.add(["a", "b"], Counting())
    (tmp_path / "cut" / VECTORS).write_bytes(b"xx")
    with pytest.raises(InputError, match="shorter than the 2 vectors"):
        HistoryStore(tmp_path / "cut", "one", E)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / INDEX).write_text("no database, but long enough to be read as one " * 9)
    with pytest.raises(InputError, match="cannot be used as a history store"):
        HistoryStore(tmp_path / "else", "one", E)


@pytest.mark.parametrize("value", [np.nan, 1e6])
def test_vectors_that_float16_cannot_hold_are_refused(tmp_path, value):
    with HistoryStore(tmp_path, "one", E) as store:
        with pytest.raises(InputError, match="not finite in float16"):
            store.add(["a"], lambda texts: np.full((1, E), value, np.float32))
        with pytest.raises(InputError, match="shape"):
            store.add(["a"], lambda texts: np.zeros((1, E + 1), np.float32))
        assert len(store) == 0


def test_real_encoder(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "cache"))
    encoder = load_encoder(str(write_model(tmp_path / "bert")))
    texts = ["red green", "a b c", "red green", "blue ."]
    with history_store(tmp_path / "store", encoder) as store:
        rows = store.add(texts, encode_with(encoder))
        assert len(store) == 3
        assert not (tmp_path / "cache" / "embeddings").exists()  # no second copy of the vectors
        expected = encode(encoder, texts, cache_dir=tmp_path / "other")
        np.testing.assert_allclose(store.read(rows), expected, atol=1e-3)
    other = load_encoder(str(tmp_path / "bert"), "bfloat16")
    with pytest.raises(InputError, match="another folder"):
        history_store(tmp_path / "store", other)
