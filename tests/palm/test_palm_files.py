"""Candidates in files: read as they are, and every wrong row named."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxalign.errors import InputError
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
        ([{"prompt": "p", "answer": "a"}], {}, "no numeric column"),
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
