import gzip
import json
import re

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxalign import data
from jaxalign.errors import InputError

ROWS = [
    {"user": "ann", "chosen": "tea", "rejected": "mud", "prompt": "drink?", "group": "g1"},
    {"user": "bob", "chosen": "mud", "rejected": "tea", "prompt": "drink?", "group": "g1"},
    {"user": "ann", "chosen": "tea", "rejected": "oil", "prompt": "fuel?", "group": "g1"},
    {"user": "ann", "chosen": "oil", "rejected": "tea", "prompt": "drink?", "tie": True},
]

COLUMNS = ("user", "chosen", "rejected", "prompt", "group", "tie")
# Arrow takes the columns of the first row for those of all.
FILLED = [{name: row.get(name) for name in COLUMNS} for row in ROWS]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def refused(source, *parts):
    with pytest.raises(InputError) as caught:
        data.load(source)
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message


def same(left, right):
    for name in ("users", "items", "texts"):
        assert getattr(left, name) == getattr(right, name)
    for name in ("user", "chosen", "rejected", "group", "prompt", "tie"):
        a, b = getattr(left, name), getattr(right, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_items_are_pairs_of_prompt_and_answer(tmp_path):
    table = data.load(write(tmp_path / "a.jsonl", ROWS))
    assert len(table) == 4
    assert table.users == ("ann", "bob")
    assert table.items == ("tea", "mud", "tea", "oil", "oil")
    assert table.texts[0] == "drink?\n\ntea"
    assert table.texts[2] == "fuel?\n\ntea"
    np.testing.assert_array_equal(table.chosen, [0, 1, 2, 4])
    np.testing.assert_array_equal(table.rejected, [1, 0, 3, 0])
    np.testing.assert_array_equal(table.prompt, [0, 0, 1, 0])
    np.testing.assert_array_equal(table.tie, [False, False, False, True])
    # The same group name of two users is two groups; the row without one is its own.
    np.testing.assert_array_equal(table.group, [0, 1, 0, 2])
    assert {table.user.dtype, table.chosen.dtype, table.group.dtype} == {np.dtype(np.int32)}
    assert table.source.endswith("a.jsonl")


def test_without_prompt_the_text_is_the_answer_and_each_row_a_group(tmp_path):
    rows = [{k: row[k] for k in ("user", "chosen", "rejected")} for row in ROWS[:3]]
    table = data.load(write(tmp_path / "a.json", rows))
    assert table.texts == table.items == ("tea", "mud", "oil")
    np.testing.assert_array_equal(table.prompt, [-1, -1, -1])
    np.testing.assert_array_equal(table.group, [0, 1, 2])


def test_json_lines_gz_parquet_and_columns_give_one_table(tmp_path):
    plain = data.load(write(tmp_path / "a.jsonl", ROWS))
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    pq.write_table(pa.Table.from_pylist(FILLED), tmp_path / "a.parquet")
    columns = {name: [row[name] for row in FILLED] for name in COLUMNS}
    as_dictionary = {**columns, "user": pa.array(columns["user"]).dictionary_encode()}
    same(plain, data.load(packed))
    same(plain, data.load(str(tmp_path / "a.parquet")))
    same(plain, data.from_columns(columns))
    same(plain, data.from_columns(as_dictionary))


def test_a_group_may_be_a_number(tmp_path):
    one = {"user": "u", "chosen": "a", "rejected": "b"}
    for groups in ([3, 3, 4], np.array([3, 3, 4]), pa.array([3, 3, 4]), [3, "3", 4]):
        columns = {name: [one[name]] * 3 for name in one}
        np.testing.assert_array_equal(
            data.from_columns({**columns, "group": groups}).group, [0, 0, 1]
        )


def test_exact_duplicates_blank_lines_time_and_unicode_separators_are_kept(tmp_path):
    row = {"user": "u", "chosen": "a\u2028b", "rejected": "é", "time": 3}
    path = tmp_path / "a.jsonl"
    line = json.dumps(row, ensure_ascii=False)
    path.write_text(f"\ufeff{line}\n\n{line}\n", "utf-8")
    table = data.load(path)
    assert len(table) == 2
    assert table.items == ("a\u2028b", "é")


def test_many_rows():
    rows = 100_000
    number = np.arange(rows)
    table = data.from_columns(
        {
            "user": pa.array((number % 500).astype(str)),
            "chosen": pa.array((number + 7).astype(str)),
            "rejected": pa.array(number.astype(str)),
        }
    )
    assert len(table.items) == rows + 7
    picked = [table.items[i] for i in table.chosen[:3]]
    assert picked == ["7", "8", "9"]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"user": 5.0}, ("line 2", "`user` is 5.0 (float)", "expected text or a whole number")),
        ({"user": ""}, ("line 2", "`user` is empty")),
        ({"chosen": "  "}, ("line 2", "`chosen` is empty")),
        ({"rejected": None}, ("line 2", "`rejected` is missing")),
        ({"chosen": float("nan")}, ("line 2", "`chosen` is nan (float)")),
        ({"chosen": ["a"]}, ("line 2", "`chosen` is ['a'] (list)")),
        ({"chosen": "\ud800"}, ("line 2", "`chosen`", "surrogate")),
        ({"chosen": "tea"}, ("line 2", "`chosen` and `rejected` are the same text")),
        ({"prompt": 1.5}, ("line 2", "`prompt` is 1.5 (float)")),
        ({"group": True}, ("line 2", "`group` is True (bool)", "text or a whole number")),
        ({"tie": "yes"}, ("line 2", "`tie` is 'yes'", "true or false")),
    ],
)
def test_a_bad_row_is_named(tmp_path, change, parts):
    rows = [dict(row) for row in ROWS]
    rows[1].update(change)
    refused(write(tmp_path / "a.jsonl", rows), "a.jsonl", *parts)


def test_blank_lines_count_and_parquet_counts_rows(tmp_path):
    path = tmp_path / "a.jsonl"
    good, bad = json.dumps(ROWS[0]), json.dumps({**ROWS[0], "chosen": ""})
    path.write_text(f"{good}\n\n{bad}\n")
    refused(path, "line 3", "`chosen` is empty")
    pq.write_table(
        pa.Table.from_pylist([ROWS[0], {**ROWS[0], "chosen": ""}]), tmp_path / "b.parquet"
    )
    refused(tmp_path / "b.parquet", "row 2", "`chosen` is empty")
    pq.write_table(
        pa.table({"user": [1.5], "chosen": ["a"], "rejected": ["b"]}), tmp_path / "c.parquet"
    )
    refused(tmp_path / "c.parquet", "row 1", "`user` is 1.5 (float)")


def test_a_tie_may_come_in_any_order_and_equal_texts_may_not(tmp_path):
    pair = {"user": "u", "chosen": "a", "rejected": "b"}
    back = {"user": "u", "chosen": "b", "rejected": "a"}
    data.load(write(tmp_path / "a.jsonl", [pair, {**back, "tie": True}]))
    data.load(write(tmp_path / "a.jsonl", [{**pair, "prompt": "p"}, {**back, "prompt": "q"}]))
    table = data.load(write(tmp_path / "a.jsonl", [{**back, "tie": True}, pair, pair, back, back]))
    assert len(table) == 5
    assert table.notes == (
        "2 rows repeat an earlier choice of the same user, and count",
        "2 rows choose a pair the other way than the same user did before (first: line 2 and line "
        "4); both count, as people change their minds",
    )


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ("is empty",)),
        ("\n\n", ("is empty",)),
        ('{"user": "u"\n', ("line 1", "not readable as JSON")),
        ('{"user": "u"}\n\xff', ("line 2", "not UTF-8 text")),
        ("[1, 2]\n", ("row 1", "found a JSON int")),
        (
            '{"user": "u", "winner": "a", "rejected": "b"}',
            ("no column `chosen`", "`user`, `winner`, `rejected`"),
        ),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, parts):
    path = tmp_path / "a.jsonl"
    path.write_bytes(text.encode("latin-1"))
    refused(path, "a.jsonl", *parts)


def test_files_that_are_not_there_or_not_readable(tmp_path):
    refused(tmp_path / "no.jsonl", "no.jsonl does not exist")
    refused(tmp_path / "no.parquet", "no.parquet does not exist")
    refused(tmp_path, "is a folder")
    refused(str(tmp_path / "a.yaml"), "neither a file ending in .jsonl")
    refused(str(tmp_path / "b c"), "neither a file ending in .jsonl")
    (tmp_path / "a.parquet").write_bytes(b"no")
    refused(tmp_path / "a.parquet", "not a readable Parquet file")
    whole = gzip.compress(write(tmp_path / "a.jsonl", ROWS).read_bytes())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-12])
    refused(tmp_path / "cut.jsonl.gz", "cut.jsonl.gz cannot be read")
    (tmp_path / "not.jsonl.gz").write_bytes(b"plain")
    refused(tmp_path / "not.jsonl.gz", "not.jsonl.gz cannot be read")
    pq.write_table(pa.table({"user": ["u"], "text": ["t"]}), tmp_path / "b.parquet")
    refused(tmp_path / "b.parquet", "no column `chosen`, `rejected`", "`user`, `text`")
    pq.write_table(pa.Table.from_pylist(ROWS).slice(0, 0), tmp_path / "d.parquet")
    refused(tmp_path / "d.parquet", "no rows")


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(InputError, match=re.escape("(`user` 1, `chosen` 2, `rejected` 1)")):
        data.from_columns({"user": ["u"], "chosen": ["a", "b"], "rejected": ["c"]})


@pytest.fixture
def hub(monkeypatch):
    """A hub that knows one data set, `drinks` with the config `hot`, and remembers requests."""
    asked = []

    def load_dataset(name, config=None, split=None):
        asked.append((name, config, split))
        if name in ("drinks", "shop/drinks"):
            if split not in ("train", "test"):
                raise ValueError(f"Unknown split {split!r}.\nmore")
            return datasets.Dataset.from_list(FILLED)
        if name == "away":
            raise ConnectionError("Couldn't reach 'away' on the Hub (offline)")
        raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' doesn't exist")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


@pytest.mark.parametrize(
    ("name", "request_"),
    [
        ("drinks", ("drinks", None, "train")),
        ("drinks:test", ("drinks", None, "test")),
        ("drinks/hot:test", ("drinks", "hot", "test")),
        ("shop/drinks:test", ("shop/drinks", None, "test")),
        ("shop/drinks/hot", ("shop/drinks", "hot", "train")),
    ],
)
def test_a_data_set_by_name(hub, tmp_path, name, request_):
    table = data.load(name)
    assert hub[-1] == request_
    same(table, data.load(write(tmp_path / "a.jsonl", ROWS)))
    assert table.source == name


def test_a_data_set_that_cannot_be_loaded(hub):
    refused("away", "away is no file here", "ConnectionError", "network")
    refused("nobody/nothing", "DatasetNotFoundError")
    refused("drinks:dev", "split `dev`", "Unknown split 'dev'")
