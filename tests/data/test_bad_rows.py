"""Field data: rows that cannot be used are refused, or dropped and counted."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign import data
from jaxalign.data.prompts import load_prompts
from jaxalign.errors import InputError

GOOD = [
    {"user": number % 3, "chosen": f"a{number}", "rejected": f"b{number}"} for number in range(12)
]
BAD = [
    ({"user": None}, "`user` is missing"),
    ({"user": 1.5}, "`user` is not text or a whole number"),
    ({"chosen": ""}, "`chosen` is empty"),
    ({"chosen": "x", "rejected": "x"}, "`chosen` and `rejected` are the same text"),
    ({"rejected": "\ud800"}, "`rejected` holds half of a surrogate pair"),
    ({"tie": "no"}, "`tie` is not true or false"),
    ({"prompt": 3}, "`prompt` is not text"),
    ({"group": [1]}, "`group` is not text or a whole number"),
    ({"chosen": [{"role": "user"}]}, "`chosen[0].content` is missing"),
]


def lines(path, rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


@pytest.mark.parametrize(("change", "reason"), BAD)
def test_a_bad_row_is_dropped_and_counted(tmp_path, change, reason):
    rows = [*GOOD[:5], GOOD[0] | change, *GOOD[5:], GOOD[1] | change]
    path = lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(InputError, match=r"a.jsonl, line 6: "):
        data.load(path)
    table = data.load(path, on_bad_row="drop")
    assert table.notes == (f"2 of 14 rows dropped: {reason} (2, first: {path}, line 6)",)
    whole = data.load(lines(tmp_path / "good.jsonl", GOOD))
    assert (table.users, table.items) == (whole.users, whole.items)
    np.testing.assert_array_equal(table.chosen, whole.chosen)


def test_reasons_are_counted_and_rows_keep_their_numbers(tmp_path):
    rows = [*GOOD[:2], "{", "3", *GOOD[2:], {**GOOD[0], "chosen": " "}, "{"]
    path = lines(tmp_path / "a.jsonl", rows)
    (note,) = data.load(path, on_bad_row="drop").notes
    assert note == (
        f"4 of 16 rows dropped: not readable as JSON (2, first: {path}, line 3); not a JSON object "
        f"(1, first: {path}, line 4); `chosen` is empty (1, first: {path}, line 15)"
    )
    pq.write_table(
        pa.Table.from_pylist([GOOD[0], GOOD[1] | {"chosen": ""}, GOOD[2]]), tmp_path / "a.parquet"
    )
    (note,) = data.load(tmp_path / "a.parquet", on_bad_row="drop").notes
    assert note.endswith("a.parquet, row 2)")


def test_a_file_most_of_whose_rows_are_bad_is_refused(tmp_path):
    rows = [*GOOD[:2], *({"text": "x"} for _ in range(3))]
    with pytest.raises(InputError, match=r"3 of 5 rows are bad, which is more than half"):
        data.load(lines(tmp_path / "a.jsonl", rows), on_bad_row="drop")
    with pytest.raises(InputError, match=r"1 of 1 rows are bad"):
        data.load(lines(tmp_path / "a.jsonl", rows[2:3]), on_bad_row="drop")
    for load in (data.load, load_prompts):
        with pytest.raises(InputError, match="is empty"):
            load(lines(tmp_path / "b.jsonl", []), on_bad_row="drop")


@settings(deadline=None, max_examples=25)
@given(bad=st.lists(st.booleans(), min_size=12, max_size=12).filter(lambda b: sum(b) <= 6))
def test_what_is_left_is_the_file_of_the_good_rows(tmp_path_factory, bad):
    folder = tmp_path_factory.mktemp("bad")
    rows = [row | {"chosen": None} if off else row for row, off in zip(GOOD, bad, strict=True)]
    kept = [row for row, off in zip(GOOD, bad, strict=True) if not off]
    table = data.load(lines(folder / "a.jsonl", rows), on_bad_row="drop")
    whole = data.load(lines(folder / "b.jsonl", kept))
    assert (table.users, table.items, len(table)) == (whole.users, whole.items, len(kept))
    assert len(table.notes) == any(bad)


def test_prompts_are_dropped_and_counted(tmp_path):
    rows = [{"prompt": "a"}, {"prompt": None}, {"prompt": "b"}, {"prompt": "b"}, "["]
    path = lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(InputError, match="line 2: `prompt` is missing"):
        load_prompts(path)
    found = load_prompts(path, on_bad_row="drop")
    assert (found.prompts, found.repeated, found.dropped) == (("a", "b"), 1, 2)
    assert found.places == (f"{path}, line 1", f"{path}, line 3")
    assert found.notes[0].startswith("2 of 5 rows dropped: ")
    (tmp_path / "b.txt").write_bytes(b"a\n\xe9\nb\n")
    assert load_prompts(tmp_path / "b.txt", on_bad_row="drop").prompts == ("a", "b")
