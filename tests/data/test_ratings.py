"""Ratings, strengths and implicit choices of a preference file, read and refused."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxalign.data import from_columns, load
from jaxalign.data.batching import pad_details, pad_pairs
from jaxalign.data.choice_parts import digest_of, write_parts
from jaxalign.data.ratings import on_scales, rating_level, scale_levels
from jaxalign.errors import InputError

ROWS = [
    {"user": "ann", "prompt": "Hi", "chosen": "Hello!", "rejected": "What?", "strength": 3},
    {"user": "ann", "prompt": "Hi", "answer": "Hey", "rating": 4, "scale": [1, 5]},
    {"user": "bob", "chosen": "b", "rejected": "c", "tie": True},
    {"user": "bob", "answer": "b", "rating": -1, "scale": [-1, 1], "group": "chat"},
    {
        "user": "bob",
        "chosen": "c",
        "rejected": "b",
        "implicit": True,
        "group": "chat",
        "weight": 0.25,
    },
    {"user": "eve", "answer": "c", "rating": 2.5, "scale": [-10, 10]},
]


def written(folder, kind, rows=ROWS):
    path = folder / f"rows.{kind}"
    names = list(dict.fromkeys(name for row in rows for name in row))
    if kind == "parquet":
        pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), path)
    elif kind == "csv":
        quoted = [[json.dumps(row[n]) if n in row else "" for n in names] for row in rows]
        cells = [[f'"{c}"' if c.startswith("[") else c.strip('"') for c in row] for row in quoted]
        path.write_text("\n".join([",".join(names), *(",".join(row) for row in cells)]))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize("on_bad_row", ["refuse", "drop"])
def test_all_kinds_of_rows_are_read_where_they_are_asked_for(kind, on_bad_row, tmp_path):
    found = load(written(tmp_path, kind), on_bad_row=on_bad_row, ratings=True)
    assert found.users == ("ann", "bob", "eve")
    assert found.rating.tolist() == [False, True, False, True, False, True]
    assert found.strict.tolist() == [True, False, False, False, True, False]
    assert found.scales == ((-10.0, 10.0), (-1.0, 1.0), (1.0, 5.0))
    assert found.details.scale.tolist() == [-1, 2, -1, 1, -1, 0]
    assert found.details.level.tolist() == [3, 3, 0, 0, 0, 6]
    assert found.details.top.tolist() == [0, 4, 0, 1, 0, 9]
    assert found.details.implicit.tolist() == [False] * 4 + [True, False]
    assert found.details.weight.tolist() == [1, 1, 1, 1, 0.25, 1]
    assert (found.chosen == found.rejected).tolist() == found.rating.tolist()
    assert found.texts[found.chosen[1]] == "Hi\n\nHey"


def test_without_being_asked_for_choices_alone_are_read(tmp_path):
    found = load(written(tmp_path, "jsonl"))
    assert (len(found), found.scales) == (3, ())
    assert found.details.weight.tolist() == [1, 1, 0.25]
    assert found.notes == ("3 ratings left out: choices between two answers are learned from",)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_parts_on_disk_hold_the_same_rows(kind, tmp_path):
    path = written(tmp_path, kind)
    whole = load(path, ratings=True)
    parts = write_parts(tmp_path / "parts", path, ratings=True)
    read, _ = parts.read(range(128))
    assert (read.users, read.texts, read.scales) == (whole.users, whole.texts, whole.scales)
    for one, other in zip(read.details, whole.details, strict=True):
        np.testing.assert_array_equal(one, other)
    assert parts.digest == digest_of(whole)
    other = from_columns({
        "user": ["ann"], "answer": ["x"], "rating": [2], "scale": [[1, 5]]
    })  # fmt: skip
    again = other.take(np.array([0]))
    assert digest_of(other) == digest_of(again)
    better = from_columns({"user": ["ann"], "answer": ["x"], "rating": [3], "scale": [[1, 5]]})
    assert digest_of(other) != digest_of(better)


def test_ratings_are_no_choices_in_padded_arrays(tmp_path):
    table = load(written(tmp_path, "jsonl"), ratings=True)
    rows = [np.flatnonzero(table.user == user) for user in range(3)]
    pairs, details = pad_pairs(table, rows), pad_details(table, rows)
    assert pairs.weight.tolist() == [[1, 0, 0, 0], [0.5, 0, 0.25, 0.5], [0, 0, 0, 0]]
    assert details.weight.tolist() == [[1, 1, 0, 0], [0.5, 1, 0.25, 0.5], [1, 0, 0, 0]]
    assert details.scale.tolist() == [[-1, 2, -1, -1], [-1, 1, -1, -1], [0, -1, -1, -1]]
    assert details.level[1].tolist() == [-1, 0, 0, -1]
    # Groups of choices are numbered without gaps, behind them those of ratings alone.
    assert pairs.group[1].tolist() == [0, 1, 1, 0]
    assert pairs.group[0, :2].tolist() == [0, 1]


def test_levels_of_scales():
    assert [scale_levels(*s) for s in ((-1, 1), (0, 1), (1, 5), (0, 10), (0.5, 5), (1, 100))] == [
        2, 2, 5, 11, 10, 10,
    ]  # fmt: skip
    assert [rating_level(value, 0.5, 5) for value in (0.5, 1.0, 4.5, 5.0)] == [0, 1, 8, 9]
    levels = [rating_level(value, -10, 10) for value in np.linspace(-10, 10, 200)]
    assert levels == sorted(levels)
    assert (levels[0], levels[-1], len(set(levels))) == (0, 9, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rating": 6}, r"line 2: the rating is 6, expected 1 to 5"),
        ({"rating": "good"}, "line 2: `rating` is 'good'"),
        ({"scale": None}, r"line 2: `scale` is missing, expected \[lowest, highest\]"),
        ({"scale": [5, 1]}, "line 2: `scale` is"),
        ({"scale": [1, 2, 3]}, "line 2: `scale` is"),
        ({"scale": [-1, 1], "rating": 0}, "line 2: the rating is 0, expected -1 or 1"),
        ({"answer": ""}, "line 2: `answer` is empty"),
        ({"answer": None}, "line 2: `answer` is missing"),
        ({"answer": " "}, "line 2: `answer` is empty"),
        ({"user": None}, "line 2: `user` is missing"),
        ({"weight": -1}, "line 2: `weight` is -1, expected how much the row counts, from 0 to 1"),
        ({"weight": 1.5}, "line 2: `weight` is 1.5"),
        ({"weight": "much"}, "line 2: `weight` is 'much'"),
    ],
)
def test_a_rating_that_cannot_be_used_is_refused_or_dropped(change, message, tmp_path):
    path = written(tmp_path, "jsonl", [ROWS[0], {**ROWS[1], **change}, *ROWS[2:]])
    with pytest.raises(InputError, match=message):
        load(path, ratings=True)
    found = load(path, ratings=True, on_bad_row="drop")
    assert len(found) == len(ROWS) - 1
    assert "1 of 6 rows dropped" in found.notes[0]


@pytest.mark.parametrize("strength", [0, -1, "much", float("inf")])
def test_a_strength_that_cannot_be_used_is_refused(strength, tmp_path):
    path = written(tmp_path, "jsonl", [{**ROWS[0], "strength": strength}, *ROWS[1:]])
    with pytest.raises(InputError, match="line 1: `strength` is"):
        load(path, ratings=True)


def test_a_conversation_is_rated():
    turns = [{"role": "assistant", "content": "Hello"}]
    columns = {
        "user": ["u"], "prompt": [[{"role": "user", "content": "Hi"}]], "answer": [turns],
        "rating": [1], "scale": [[-1, 1]],
    }  # fmt: skip
    assert from_columns(columns).texts == ("Hi\n\nHello",)


def test_scales_are_numbered_as_a_model_numbers_them(tmp_path):
    table = load(written(tmp_path, "jsonl"), ratings=True)
    known = ((1.0, 5.0), (-1.0, 1.0), (-10.0, 10.0))
    found = on_scales(table, known)
    assert found.details.scale.tolist() == [-1, 0, -1, 1, -1, 2]
    with pytest.raises(InputError, match=r"row 6: the rating is on the scale \[-10, 10\]"):
        on_scales(table, known[:2])


@pytest.mark.parametrize("on_bad_row", ["refuse", "drop"])
def test_choices_alone_have_their_weights_too(tmp_path, on_bad_row):
    pair = {"user": "u", "chosen": "a", "rejected": "b"}
    rating = {"user": "v", "answer": "c", "rating": 1, "scale": [1, 5]}
    rows = [{**pair, "weight": 0}, {**pair, "weight": 0.5}, rating, pair]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load(path, on_bad_row=on_bad_row)
    assert found.details.weight.tolist() == [0.5, 1]
    assert "1 row of weight 0 left out" in found.notes
    bad = [*rows, {**pair, "weight": 2}]
    path.write_text("".join(json.dumps(row) + "\n" for row in bad))
    with pytest.raises(InputError, match="line 5: `weight` is 2, expected"):
        load(path)
    assert load(path, on_bad_row="drop").details.weight.tolist() == [0.5, 1]


def test_rows_of_weight_0_are_left_out_of_a_file_without_users(tmp_path):
    rows = [{"chosen": "a", "rejected": "b", "weight": weight} for weight in (0, 1)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(load(path, require_user=False, ratings=True)) == 1


@pytest.mark.parametrize("on_bad_row", ["refuse", "drop"])
def test_rows_of_weight_0_are_left_out_and_counted(tmp_path, on_bad_row):
    pair = {"user": "u", "chosen": "a", "rejected": "b"}
    rating = {"user": "v", "answer": "c", "rating": 1, "scale": [1, 5]}
    rows = [{**pair, "weight": 0}, {**pair, "weight": 0.5}, {**rating, "weight": 0.0}, pair]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load(path, ratings=True, on_bad_row=on_bad_row)
    assert found.users == ("u",)
    assert found.details.weight.tolist() == [0.5, 1]
    assert "2 rows of weight 0 left out" in found.notes
    path.write_text(json.dumps(rows[0]))
    with pytest.raises(InputError, match="1 row has the weight 0 and no other is left"):
        load(path, ratings=True, on_bad_row=on_bad_row)
