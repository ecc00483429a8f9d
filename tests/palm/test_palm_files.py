"""Candidates in files: read as they are, and every wrong row named."""

import csv
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxalign.errors import InputError
from jaxalign.palm.candidates import split_prompts, unseen
from jaxalign.palm.closed_form import candidate_oracle, candidate_scale
from jaxalign.palm.config import BuildConfig
from jaxalign.palm.files import read_candidates

ROWS = [
    {"prompt": "p", "answer": "a", "x": 0.5, "y": 1, "note": "n"},
    {"prompt": "q", "answer": "b", "x": 0.25, "y": 0, "note": "n"},
    {"prompt": "p", "answer": "c", "x": 0.0, "y": 0, "note": "n"},
    {"prompt": "q", "answer": "d", "x": 1.0, "y": 1, "note": "n"},
    {"prompt": "q", "answer": "e", "x": 0.75, "y": 0, "note": "n"},
]


def written(path, rows):
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return path
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def changed(row, **values):
    rows = [dict(each) for each in ROWS]
    rows[row].update(values)
    return rows


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_rows_of_a_prompt_come_together(tmp_path, ending):
    found = read_candidates(written(tmp_path / f"c.{ending}", ROWS))
    assert (found.names, found.prompts) == (("x", "y"), ("p", "q"))
    np.testing.assert_array_equal(found.rewards[0], [[0.5, 1], [0, 0], [0, 0]])
    np.testing.assert_array_equal(found.rewards[1], [[0.25, 0], [1, 1], [0.75, 0]])
    np.testing.assert_allclose(
        np.exp(found.log_ref), [[1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3]], rtol=1e-12
    )
    one = read_candidates(tmp_path / f"c.{ending}", ["y"])
    np.testing.assert_array_equal(one.rewards[..., 0], found.rewards[..., 1])


def test_log_ref_is_taken_as_given(tmp_path):
    chances = [0.25, 0.5, 0.75, 0.3, 0.2]
    rows = [row | {"log_ref": float(np.log(c))} for row, c in zip(ROWS, chances, strict=True)]
    found = read_candidates(written(tmp_path / "c.jsonl", rows))
    assert found.names == ("x", "y")
    np.testing.assert_allclose(np.exp(found.log_ref), [[0.25, 0.75, 0], [0.5, 0.3, 0.2]])
    rows[0]["log_ref"] = 0.0
    with pytest.raises(InputError, match=r"line 1: `log_ref` of prompt 'p' .* sum to 1.75"):
        read_candidates(written(tmp_path / "d.jsonl", rows))


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        (changed(2, x=float("nan")), {}, "3: `x` is nan (float), expected a finite number"),
        (changed(1, y=None), {}, "2: `y` is missing"),
        (changed(3, x=1.5), {"reward_range": (0.0, 1.0)}, "4: `x` is 1.5, expected 0 to 1"),
        ([row | {"x": 2.0} for row in ROWS], {}, "`x` is 2 in every row"),
        (ROWS[:2] + ROWS[3:], {}, "1: found 1 answer to prompt 'p', expected at least 2"),
        (ROWS, {"names": ["z"]}, "no column `z`; found `prompt`"),
        (ROWS, {"names": ["x", "x"]}, "expected columns of rewards, once"),
        ([{"prompt": "p", "answer": "a"}], {}, "has no rewards"),
        ([{"answer": "a", "x": 1.0}], {}, "no column `prompt`"),
        (changed(0, prompt=""), {}, "1: `prompt` is empty"),
    ],
)
def test_wrong_rows_are_named(tmp_path, ending, rows, options, words):
    path = written(tmp_path / f"c.{ending}", rows)
    with pytest.raises(InputError) as caught:
        read_candidates(path, **options)
    assert words in str(caught.value)
    assert str(path) in str(caught.value) or "names" in options


def test_half_of_a_surrogate_pair_is_named(tmp_path):
    path = written(tmp_path / "c.jsonl", changed(1, prompt="p \ud83d"))
    with pytest.raises(InputError, match=r"line 2: `prompt` holds half of a surrogate pair"):
        read_candidates(path)


def test_files_that_are_none(tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"not parquet")
    (tmp_path / "c.csv").write_text("prompt,answer")
    for name, words in (
        ("none.jsonl", "does not exist"),
        ("none.parquet", "does not exist"),
        ("bad.parquet", "not a readable Parquet file"),
        ("c.csv", "is empty"),
        ("c.yaml", "does not exist"),
    ):
        with pytest.raises(InputError, match=words):
            read_candidates(tmp_path / name)


def test_the_standard_scale_is_one_map_for_all_rewards(tmp_path):
    found = read_candidates(written(tmp_path / "c.jsonl", ROWS))
    standard = candidate_scale(found, BuildConfig())
    levels = standard.levels(found.rewards)[found.log_ref > -np.inf]
    np.testing.assert_allclose(levels.mean(axis=0), 0.5, rtol=1e-12)
    np.testing.assert_allclose(levels.std(axis=0), 1 / 6, rtol=1e-12)
    outlier = candidate_oracle(replace(found, rewards=(found.rewards - 0.5) * 1e3), standard, 0.1)
    assert (float(outlier.rewards.max()), float(outlier.rewards.min())) == (1, 0)  # clipped
    stated = candidate_scale(found, BuildConfig(scale="range", reward_range=(-1.0, 3.0)))
    np.testing.assert_allclose(stated.levels(np.array([-1.0, 3.0])), [0, 1])
    same = candidate_scale(found, BuildConfig(scale="none"))
    np.testing.assert_array_equal(same.levels(found.rewards), found.rewards)
    assert len({standard, stated, same}) == 3
    # The ends say nothing about weights: one set of samples, one digest.
    assert len({standard.digest, stated.digest, same.digest}) == 1


SCORED = [{key: row[key] for key in ("prompt", "answer", "x", "y")} for row in ROWS]


def columns_of(**more):
    rows = [row | {name: values[place] for name, values in more.items()}
            for place, row in enumerate(SCORED)]  # fmt: skip
    return rows


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
def test_rewards_in_objects_as_reward_score_writes_them(tmp_path, ending):
    """Whatever stands beside the objects is no reward: numbers of generate, ids, times."""
    plain = read_candidates(written(tmp_path / f"flat.{ending}", SCORED))
    assert plain.names == ("x", "y")
    rows = [
        {"prompt": row["prompt"], "answer": row["answer"], "row": place, "sample": place % 2,
         "tokens": 7 + place, "logprob": -1.5 - place, "stopped": True,
         "rewards": {"x": row["x"], "y": row["y"]}}
        for place, row in enumerate(SCORED)
    ]  # fmt: skip
    if ending == "csv":
        rows = [row | {"rewards": json.dumps(row["rewards"])} for row in rows]
    said = []
    found = read_candidates(written(tmp_path / f"s.{ending}", rows), say=said.append)
    assert (found.names, found.prompts) == (plain.names, plain.prompts)
    np.testing.assert_array_equal(found.rewards, plain.rewards)
    assert found.answers.tolist() == [["a", "c", ""], ["b", "d", "e"]]
    assert said == [
        "reward `x`: 0 to 1, 5 values",
        "reward `y`: 0 to 1, 5 values",
        "no rewards: row, sample, tokens, logprob, stopped",
    ]
    one = read_candidates(tmp_path / f"s.{ending}", ["y"])
    np.testing.assert_array_equal(one.rewards[..., 0], plain.rewards[..., 1])
    both = read_candidates(tmp_path / f"s.{ending}", ["tokens", "x"])
    np.testing.assert_array_equal(both.rewards[0, :2], [[7, 0.5], [9, 0.0]])
    renamed = [
        {"completion" if name == "answer" else name: value for name, value in row.items()}
        for row in rows
    ]
    assert read_candidates(written(tmp_path / f"c.{ending}", renamed)).names == plain.names


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
def test_true_and_false_count_as_1_and_0(tmp_path, ending):
    rows = columns_of(good=[True, False, False, True, True])
    found = read_candidates(written(tmp_path / f"c.{ending}", rows))
    assert found.names == ("x", "y", "good")
    np.testing.assert_array_equal(found.rewards[0, :2, 2], [1, 0])
    np.testing.assert_array_equal(found.rewards[1, :, 2], [0, 1, 1])


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (["0.5", 0.2, 0.1, 0.4, 0.3], "line 1: `kind` is '0.5' (text), where 4 rows hold numbers"),
        ([0.5, 0.2, "n/a", 0.4, 0.3], "line 3: `kind` is 'n/a' (text), where 4 rows hold numbers"),
        ([True, 0.2, 0.1, 0.4, 0.3], "line 1: `kind` is True (true or false), where 4 rows"),
        ([0.5, 0.2, 0.1, {}, 0.3], "line 4: `kind` is {} (objects)"),
    ],
)
def test_a_column_of_numbers_and_other_things_is_refused(tmp_path, column, words):
    """A reward whose first row held text was dropped without a word."""
    path = written(tmp_path / "c.jsonl", columns_of(kind=column))
    with pytest.raises(InputError) as caught:
        read_candidates(path)
    assert words in str(caught.value)
    assert "--rewards" in str(caught.value)
    assert read_candidates(path, ["x", "y"]).names == ("x", "y")


@pytest.mark.parametrize(
    ("name", "column", "why"),
    [
        ("index", [0, 1, 2, 3, 4], "0 to 4, growing from row to row"),
        ("anything", [3, 7, 8, 20, 21], "3 to 21, growing from row to row"),
        ("at", [1700000003, 1700000001, 1700000002, 1700000000, 1700000004], "seconds of a clock"),
        ("at", [1.7e12, 1.6e12, 1.71e12, 1.5e12, 1.7e12], "seconds of a clock"),
        ("ID", [3, 1, 2, 0, 4], "by its name no reward"),
        ("sample", [0, 0, 1, 1, 2], "by its name no reward"),
        ("prompt_tokens", [9, 8, 7, 9, 8], "by its name no reward"),
        ("created_at", [2.5, 1.5, 3.5, 1.0, 2.0], "by its name no reward"),
        ("logprob", [-2.5, -1.5, -3.5, -1.0, -2.0], "by its name no reward"),
    ],
)
def test_numbers_that_are_probably_no_rewards_are_asked_about(tmp_path, name, column, why):
    """Row numbers and clocks were certified as rewards."""
    path = written(tmp_path / "c.jsonl", columns_of(**{name: column}))
    with pytest.raises(InputError) as caught:
        read_candidates(path)
    assert f"`{name}` (" in str(caught.value)
    assert why in str(caught.value)
    assert "such as --rewards x y." in str(caught.value)
    said = []
    assert read_candidates(path, ["x", "y"], say=said.append).names == ("x", "y")
    assert said[-1] == f"no rewards: {name}"
    assert read_candidates(path, ["x", name]).names == ("x", name)


def test_objects_that_differ_and_prompts_that_are_conversations(tmp_path):
    rows = [{"prompt": r["prompt"], "answer": r["answer"], "rewards": {"x": r["x"], "y": r["y"]}}
            for r in SCORED]  # fmt: skip
    for change, words in (
        ({"x": 1.0}, "line 3: `rewards` is {'x': 1.0}, expected an object of x, y"),
        (None, "line 3: `rewards` is None, expected an object of x, y"),
        ({"x": 1.0, "y": None}, "line 3: `y` is missing"),
        ({"x": 1.0, "y": "a"}, "line 3: `y` is 'a' (text), where 4 rows hold numbers"),
    ):
        bad = [dict(row) for row in rows]
        bad[2]["rewards"] = change
        with pytest.raises(InputError) as caught:
            read_candidates(written(tmp_path / "bad.jsonl", bad))
        assert words in str(caught.value)
    chats = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
    assert read_candidates(written(tmp_path / "chats.jsonl", chats)).prompts == ("p", "q")


def test_too_few_prompts_to_certify_on_are_refused(tmp_path):
    found = read_candidates(written(tmp_path / "c.jsonl", ROWS))
    with pytest.raises(InputError, match="candidates: found 2 prompts, expected at least 3, to"):
        split_prompts(found, 0.5, 0)
    with pytest.raises(InputError, match=r"c\.jsonl: found 1 prompt that the portfolio was not"):
        unseen(found, found.marks[:1], "c.jsonl")
    assert unseen(found, ("other",), "c.jsonl").prompts == found.prompts
