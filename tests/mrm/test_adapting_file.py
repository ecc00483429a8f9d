"""A file of choices adapted in bounded memory: the users of one piece, stopped and resumed."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_adapting import WIDTH, bayes_model, choices_of, table_of

from jaxalign import mrm
from jaxalign.data import choice_parts, files, from_columns, load
from jaxalign.data.choice_parts import digest_of, write_parts
from jaxalign.errors import InputError

NAMES = [f"user {n}" for n in range(24)]


@pytest.fixture(scope="module")
def model():
    return replace(bayes_model(), digest="d" * 64)


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch):
    """Blocks of 16 rows, and groups of 64: what a file of millions is cut into."""
    monkeypatch.setattr(files, "BLOCK_ROWS", 16)
    monkeypatch.setattr(choice_parts, "_BLOCK_BYTES", 2000)
    monkeypatch.setattr(choice_parts.ChoiceParts.groups, "__defaults__", (64,))


def rows_of(count=7, seed=0):
    """Choices of 24 users by turns, some of them ties, with groups."""
    choices = choices_of(NAMES, count, seed, ties=True)
    order = np.random.default_rng(seed).permutation(len(choices))
    return [
        {
            "user": choices.users[choices.user[row]],
            "chosen": choices.items[choices.chosen[row]],
            "rejected": choices.items[choices.rejected[row]],
            "group": f"g{row % 3}",
            "tie": bool(choices.tie[row]),
        }
        for row in order
    ]


def write(folder, kind, rows):
    path = folder / f"choices.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "csv":
        lines = [",".join(map(str, row.values())).replace("False", "false") for row in rows]
        lines = [",".join(rows[0]), *(line.replace("True", "true") for line in lines)]
        path.write_text("\n".join(lines))
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return path


def assert_same_users(one, other):
    assert sorted(one.names()) == sorted(other.names())
    assert one.about == other.about
    for name in one.names():
        ours, theirs = one.get(name), other.get(name)
        assert ours.choices == theirs.choices
        np.testing.assert_allclose(ours.weights, theirs.weights, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(ours.rows, theirs.rows, rtol=1e-5, atol=1e-6)
        np.testing.assert_equal(ours.accuracy, theirs.accuracy)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_groups_give_the_users_of_one_piece(model, tmp_path, kind):
    path, features = write(tmp_path, kind, rows_of()), table_of()
    parts = write_parts(tmp_path / "parts", path)
    assert len(parts.groups()) > 2
    assert parts.blocks > 2
    found = mrm.adapt_file(model, str(path), tmp_path / "users.sqlite", features)
    expected = mrm.adapt_users(model, load(path), features)
    assert_same_users(found.users, expected)
    assert found.notes == load(path).notes
    assert found.users.progress == 0


def test_one_group_gives_the_bytes_of_one_piece(model, tmp_path, monkeypatch):
    monkeypatch.setattr(choice_parts.ChoiceParts.groups, "__defaults__", (10_000,))
    path, features = write(tmp_path, "jsonl", rows_of()), table_of()
    found = mrm.adapt_file(model, str(path), tmp_path / "users.sqlite", features).users
    expected = mrm.adapt_users(model, load(path), features, tmp_path / "piece.sqlite")
    for one, other in zip(found, expected, strict=True):
        assert (one.user, one.choices, one.accuracy) == (other.user, other.choices, other.accuracy)
        assert one.weights.tobytes() == other.weights.tobytes()
        assert one.rows.tobytes() == other.rows.tobytes()


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_model_of_plain_choices_reads_weights(model, tmp_path, kind):
    assert model.scales is None
    rows = [{**row, "weight": (0, 0.5, 1)[n % 3]} for n, row in enumerate(rows_of())]
    path, features = write(tmp_path, kind, rows), table_of()
    found = mrm.adapt_file(model, str(path), tmp_path / "users.sqlite", features)
    assert "56 rows of weight 0 left out" in found.notes
    counting = [row for row in rows if row["weight"]]
    columns = {name: [row[name] for row in counting] for name in counting[0]}
    assert_same_users(found.users, mrm.adapt_users(model, from_columns(columns), features))


def test_prompts_and_turns_survive_the_parts(tmp_path):
    talk = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    rows = [
        {"user": "ann", "prompt": talk, "chosen": "yes", "rejected": "no"},
        {"user": "ann", "prompt": "Hi", "chosen": "yes", "rejected": "never"},
    ]
    path = tmp_path / "choices.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    parts, whole = write_parts(tmp_path / "parts", path), load(path)
    (group,) = parts.groups()
    choices, _ = parts.read(group)
    assert choices.texts == whole.texts
    assert [text.messages for text in choices.texts] == [text.messages for text in whole.texts]
    assert digest_of(whole) == parts.digest


def stopped(monkeypatch, after):
    """Stop as Ctrl-C would, when so many batches of users have been written."""
    put, left = mrm.open_users.__globals__["UserStore"].put, [after]

    def counting(store, records):
        put(store, records)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    monkeypatch.setattr("jaxalign.runs.user_store.UserStore.put", counting)


def test_a_stopped_run_is_resumed_and_only_as_itself(model, tmp_path, monkeypatch):
    path, features, out = write(tmp_path, "jsonl", rows_of()), table_of(), tmp_path / "users.sqlite"
    with monkeypatch.context() as patch:
        stopped(patch, after=3)
        with pytest.raises(KeyboardInterrupt):
            mrm.adapt_file(model, str(path), out, features)
    assert not out.exists()
    with pytest.raises(InputError, match="add --resume to go on, or give another --out"):
        mrm.adapt_file(model, str(path), out, features)
    other = write(tmp_path, "csv", rows_of(seed=1))
    with pytest.raises(InputError, match="not the same choices as before"):
        mrm.adapt_file(model, str(other), out, features, resume=True)
    config = mrm.AdaptConfig(accuracy=False)
    with pytest.raises(InputError, match="accuracy was True, now it is False"):
        mrm.adapt_file(model, str(path), out, features, config, resume=True)
    read = []
    monkeypatch.setattr(
        "jaxalign.mrm.adapting_file.write_parts", lambda *_: read.append("read again")
    )
    found = mrm.adapt_file(model, str(path), out, features, resume=True)
    assert not read
    assert_same_users(found.users, mrm.adapt_users(model, load(path), features))
    before = out.stat().st_mtime_ns
    mrm.adapt_file(model, str(path), out, features, resume=True)
    assert out.stat().st_mtime_ns == before


def test_a_stopped_update_changes_nothing_and_is_resumed(model, tmp_path, monkeypatch):
    features, out = table_of(), tmp_path / "users.sqlite"
    first, second = rows_of(), rows_of(3, seed=1)
    config = mrm.AdaptConfig(update=True)
    mrm.adapt_file(model, str(write(tmp_path, "csv", first)), out, features).users.close()
    before, path = out.read_bytes(), write(tmp_path, "jsonl", second)
    with monkeypatch.context() as patch:
        stopped(patch, after=2)
        with pytest.raises(KeyboardInterrupt):
            mrm.adapt_file(model, str(path), out, features, config)
    assert out.read_bytes() == before
    found = mrm.adapt_file(model, str(path), out, features, config, resume=True).users
    whole = mrm.adapt_users(model, load(write(tmp_path, "parquet", first + second)), features)
    assert sorted(found.names()) == sorted(whole.names())
    for name in whole.names():
        ours, theirs = found.get(name), whole.get(name)
        np.testing.assert_allclose(ours.weights, theirs.weights, rtol=1e-4, atol=1e-5)
        assert ours.choices == theirs.choices
    found.close()
    with pytest.raises(InputError, match="has these choices already"):
        mrm.adapt_file(model, str(path), out, features, config)


def test_what_cannot_be_used_is_refused_before_any_user_is_adapted(model, tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("adapted")

    monkeypatch.setattr("jaxalign.mrm.adapting_file.adapt_into", never)
    features, out = table_of(), tmp_path / "users.sqlite"
    for change, words in (
        ({"chosen": "unknown"}, "items have no features"),
        ({"user": None}, r"choices.jsonl, line 161: `user` is missing"),
        ({"chosen": "i1", "rejected": "i1"}, "are the same text"),
    ):
        rows = rows_of()
        rows[160] |= change
        path = write(tmp_path, "jsonl", rows)
        with pytest.raises(InputError, match=words):
            mrm.adapt_file(model, str(path), out, features)
        assert sorted(file.name for file in tmp_path.iterdir()) == ["choices.jsonl"]
    path = write(tmp_path, "jsonl", rows_of())
    with pytest.raises(InputError, match="wide"):
        mrm.adapt_file(model, str(path), out, table_of(WIDTH - 1))
    assert [file.name for file in tmp_path.iterdir()] == ["choices.jsonl"]
    config = mrm.AdaptConfig(on_bad_row="drop")
    with pytest.raises(AssertionError, match="adapted"):
        mrm.adapt_file(model, str(path), out, features, config)


@pytest.mark.parametrize("content", [b"my notes", b""])
def test_another_file_is_not_replaced(model, tmp_path, content):
    path, out = write(tmp_path, "jsonl", rows_of()), tmp_path / "notes"
    out.write_bytes(content)
    for adapt in (
        lambda: mrm.adapt_file(model, str(path), out, table_of()),
        lambda: mrm.adapt_users(model, load(path), table_of(), out),
    ):
        with pytest.raises(InputError, match="was not written by `jaxalign mrm adapt`"):
            adapt()
    assert out.read_bytes() == content
