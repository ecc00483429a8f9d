"""The one reader: the same rows in every format, and every fault with its line or row."""

import csv
import gzip
import json
import re
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.data.prompt_rows import read_prompt_rows
from jaxalign.data.prompts import load_prompts
from jaxalign.data.tables import read_rows, read_table, read_tables
from jaxalign.errors import InputError

# What a text may hold: line separators that only other readers split at, and any plane.
TEXTS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1
).filter(str.strip)
ROWS = st.lists(
    st.fixed_dictionaries(
        {"user": TEXTS, "n": st.integers(-(2**40), 2**40), "x": st.floats(-1e9, 1e9), "t": TEXTS}
    ),
    min_size=1,
    max_size=5,
)
KINDS = (".jsonl", ".array.json", ".lines.json", ".csv", ".parquet")


def write(folder, rows, kind, mark=False, packed=False):
    path = Path(folder) / f"rows{kind}{'.gz' if packed else ''}"
    if kind == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        content = path.read_bytes()
    elif kind == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        content = path.read_bytes()
    elif kind == ".array.json":
        content = json.dumps(rows, ensure_ascii=False, indent=1).encode()
    else:
        content = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode()
    if mark and kind != ".parquet":
        content = b"\xef\xbb\xbf" + content
    path.write_bytes(gzip.compress(content) if packed else content)
    return path


@settings(deadline=None, max_examples=25)
@given(rows=ROWS, mark=st.booleans(), packed=st.booleans())
def test_the_same_rows_in_every_format_read_alike(rows, mark, packed):
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            path = write(folder, rows, kind, mark, packed)
            found = [
                {
                    "user": row.identifier("user"),
                    "n": int(row.identifier("n")),
                    "x": row.number("x"),
                    "t": row.text("t"),
                }
                for row in read_rows(path)
            ]
            assert found == rows, kind
            for table in (read_table(path), *read_tables(path, ["user", "n", "x", "t"], 100)):
                assert table.identifiers("user").to_pylist() == [row["user"] for row in rows]
                assert table.identifiers("n").to_pylist() == [str(row["n"]) for row in rows]
                assert table.numbers("x").tolist() == [row["x"] for row in rows]
                assert table.texts("t").to_pylist() == [row["t"] for row in rows]


@settings(deadline=None, max_examples=25)
@given(rows=ROWS, size=st.integers(1, 3))
def test_a_table_in_parts_is_the_table(rows, size):
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            parts = [*read_tables(write(folder, rows, kind), None, size)]
            assert [len(part.numbers("x")) for part in parts[:-1]] == [size] * (len(parts) - 1)
            assert [x for part in parts for x in part.numbers("x")] == [row["x"] for row in rows]
            if kind in (".parquet", ".array.json"):
                assert parts[-1].origin.place(0) == f"row {size * (len(parts) - 1) + 1}"


@pytest.mark.parametrize("packed", [False, True])
def test_lines_of_text_keep_what_is_in_them(tmp_path, packed):
    path = tmp_path / ("a.txt.gz" if packed else "a.txt")
    content = "\ufeffone\r\n\n two\u2028\u0085 \n\u3000\nlast".encode()
    path.write_bytes(gzip.compress(content) if packed else content)
    rows = [*read_rows(path, "prompt")]
    assert [row.text("prompt") for row in rows] == ["one", " two\u2028\u0085 ", "last"]
    assert [row.where[-6:] for row in rows] == ["line 1", "line 3", "line 5"]
    with pytest.raises(InputError, match=r"a\.txt\S* holds lines of text, expected columns"):
        next(read_rows(path))


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (True, "`user` is True (bool), expected text or a whole number"),
        (None, "`user` is missing (the row has `t`)"),
        (7.0, "`user` is 7.0 (float)"),
        (["a"], "`user` is ['a'] (list)"),
        ({}, "`user` is {} (dict)"),
        (" ", "`user` is empty"),
        ("\ud83d", "`user` holds half of a surrogate pair"),
    ],
)
def test_what_is_no_id_is_refused_with_its_line(tmp_path, value, found):
    path = tmp_path / "a.jsonl"
    rows = [{"user": 1, "t": "x"}, {"user": value, "t": "x"}]
    path.write_text(json.dumps(rows[0]) + "\n\n" + json.dumps(rows[1]) + "\n")
    for read in (
        lambda: [row.identifier("user") for row in read_rows(path)],
        lambda: read_table(path).identifiers("user"),
    ):
        with pytest.raises(InputError, match=re.escape(found.split(" (the")[0])) as caught:
            read()
        assert f"{path}, line 3: " in str(caught.value)


@pytest.mark.parametrize("value", [None, 3, 1.5, ["a"], {"a": 1}, False, "", "\udc00"])
def test_a_text_is_never_made_of_something_else(tmp_path, value):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "fine"}, {"text": value}]))
    for read in (
        lambda: [row.text("text") for row in read_rows(path)],
        lambda: read_table(path).texts("text"),
    ):
        with pytest.raises(InputError, match="row 2: `text`"):
            read()


@pytest.mark.parametrize("value", [None, "0.5", True, [1], float("nan"), float("inf")])
def test_a_number_is_a_finite_number(tmp_path, value):
    path = tmp_path / "a.jsonl"
    path.write_text('{"x": 1}\n' + json.dumps({"x": value}) + "\n")
    for read in (
        lambda: [row.number("x") for row in read_rows(path)],
        lambda: read_table(path).numbers("x"),
    ):
        with pytest.raises(InputError, match=r"line 2: `x` is .*expected a finite number"):
            read()


def test_csv_counts_lines_and_knows_numbers_and_flags(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'user,x,tie,t\r\n007,1e2,TRUE,"two\nlines"\r\n\r\n8,,false,\r\n9,a,maybe,z')
    one, two, three = read_rows(path)
    assert (one.identifier("user"), one.number("x"), one.flag("tie")) == ("007", 100.0, True)
    assert one.text("t") == "two\nlines"
    assert (one.place, two.place, three.place) == (2, 5, 6)
    for fault, read in (
        ("line 5: `x` is missing", lambda: two.number("x")),
        ("line 6: `x` is 'a'", lambda: three.number("x")),
        ("line 6: `tie` is 'maybe'", lambda: three.flag("tie")),
        ("line 5: `t` is missing", lambda: two.text("t")),
    ):
        with pytest.raises(InputError, match=fault):
            read()
    table = read_table(path)
    with pytest.raises(InputError, match="line 5: `x` is missing"):
        table.numbers("x")


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.jsonl", b'{"t": 1}\n{"t": "\xe9"}\n', "line 2: not UTF-8 text (found the byte 0xe9)"),
        ("a.csv", b"t\n1\n\xe9\n", "line 3: not UTF-8 text"),
        ("a.txt", b"t\n1\n\xe9\n", "line 3: not UTF-8 text"),
        ("a.json", b'[\n{"t": 1},\n{"t": "\xe9"}]', "line 3: not UTF-8 text"),
        ("a.txt", "hi\n".encode("utf-16"), "line 1: not UTF-8 text"),
        ("a.jsonl", b'{"t": 1}\n{"t": \n', "line 2: not readable as JSON"),
        ("a.jsonl", b'{"t": 1}\n3\n', "line 2: found a JSON int, expected an object"),
        ("a.json", b'[{"t": 1}, 3]', "row 2: found a JSON int"),
        ("a.json", b'[{"t": 1}, {"t": ]', "row 2: not readable as JSON"),
        ("a.json", b'[{"t": 1}, {"t": 2}', "the JSON array does not end"),
        ("a.json", b'[{"t": 1}] {"t": 2}', "behind the array"),
        ("a.json", b"[" * 100_000, "row 1: not readable as JSON"),
        ("a.csv", b"t,u\n1\n", "line 2: found 1 values, expected 2"),
        ("a.csv", b't\n"1\n', "not readable as CSV"),
        ("a.csv", b"t,t\n1,2\n", "expected a header of different names"),
        ("a.csv", b"t;u\n1;2\n", "line 1: found columns separated by ';', expected commas"),
        ("a.csv", b"t\tu\n1\t2\n", "line 1: found columns separated by"),
        ("a.csv", b"t\n", "is empty, expected at least one row"),
        ("a.json", b"[]", "is empty"),
        ("a.txt", b"\n \n", "is empty"),
        ("a.parquet", b"no", "not a readable Parquet file"),
        ("a.jsonl.gz", b"plain", "cannot be read (Not a gzipped"),
        ("a.csv.gz", gzip.compress(b"t\n" + b"1\n" * 1000, mtime=0)[:-12], "cannot be read"),
        ("a.yaml", b"t: 1\n", "neither a file ending in .jsonl"),
    ],
)
def test_an_unreadable_file_is_one_sentence(tmp_path, name, content, fault):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(fault)) as caught:
        list(read_rows(path, "t"))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    for kind in ("jsonl", "json", "csv", "parquet", "txt", "csv.gz"):
        with pytest.raises(InputError, match="does not exist"):
            list(read_rows(tmp_path / f"no.{kind}", "t"))
    with pytest.raises(InputError, match="is a folder"):
        list(read_rows(tmp_path))


def test_a_long_array_is_read_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxalign.data.parsers._BLOCK", 7)
    path = tmp_path / "a.json"
    rows = [{"t": "é\u2028" * number, "n": number} for number in range(40)]
    path.write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    assert [dict(row.values) for row in read_rows(path)] == rows


def test_columns_that_come_late_or_are_not_wanted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"b": 2}\n')
    assert dict(read_table(path).columns) == {"a": [1, None], "b": [None, 2]}
    assert dict(read_table(path, ["b"]).columns) == {"a": (), "b": [None, 2]}
    with pytest.raises(InputError, match="no column `c`; found `a`, `b`"):
        read_table(path).texts("c")


def test_numbers_of_parquet_come_without_a_detour(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": pa.array([1, 2], pa.int32()), "user": [3, 4]}), path)
    table = read_table(path)
    np.testing.assert_array_equal(table.numbers("x"), [1.0, 2.0])
    assert table.identifiers("user").to_pylist() == ["3", "4"]


def prompt_files(folder):
    """The same two prompts as people write them down."""
    rows = [{"prompt": "hello"}, {"prompt": "caf\u00e9"}]
    plain = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    texts = {
        "plain.jsonl": plain, "mark.jsonl": "\ufeff" + plain, "lines.json": plain,
        "array.json": "\ufeff" + json.dumps(rows, indent=2),
        "windows.jsonl": plain.replace("\n", "\r\n"),
        "mark.txt": "\ufeffhello\ncaf\u00e9\n", "windows.txt": "hello\r\n\r\ncaf\u00e9",
        "excel.csv": "\ufeffprompt\r\nhello\r\ncaf\u00e9\r\n",
    }  # fmt: skip
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode())
        (folder / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    (folder / "a.parquet.gz").write_bytes(gzip.compress((folder / "a.parquet").read_bytes()))
    return sorted(folder.iterdir())


def test_prompts_are_read_alike_by_every_command(tmp_path):
    files = prompt_files(tmp_path)
    assert len(files) == 18
    for path in files:
        assert [row.prompt for row in read_prompt_rows(path)] == ["hello", "caf\u00e9"], path
        assert (
            load_prompts(path).prompts == load_prompts(str(path)).prompts == ("hello", "caf\u00e9")
        )


@pytest.mark.parametrize("read", [read_prompt_rows, load_prompts])
def test_prompts_in_another_encoding_are_one_sentence(tmp_path, read):
    path = tmp_path / "latin1.jsonl"
    path.write_bytes('{"prompt": "ok"}\n{"prompt": "caf\u00e9"}\n'.encode("latin-1"))
    with pytest.raises(InputError, match=r"latin1.jsonl, line 2: not UTF-8 text .* 0xe9\)"):
        read(path)


def test_rows_are_read_in_bounded_memory(tmp_path):
    rows = [{"t": "x" * 1000, "n": number} for number in range(8000)]
    for kind, most in ((".jsonl", 1), (".csv", 1), (".array.json", 8)):
        path = write(tmp_path, rows, kind, packed=True)
        tracemalloc.start()
        assert sum(1 for _ in read_rows(path)) == 8000
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < most * 2**20, (kind, peak)
