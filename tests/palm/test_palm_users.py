"""Files of users: weights by name, on a stated scale, and every other file refused."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxalign.errors import InputError
from jaxalign.palm.users import read_users
from jaxalign.rewards.reward_scale import RewardScale
from jaxalign.runs.user_store import AboutUsers, UserRecord, create_users

USERS = np.random.default_rng(0).dirichlet(np.ones(2), 7)
# Levels 6 standard deviations wide, as `palm build` makes them, and of unequal width.
SCALE = RewardScale(("x", "y"), [0.0, 1.0], [1.0, 2.0], [-3.0, -5.0], [3.0, 7.0])
UNEQUAL = replace(SCALE, high=[3.0, 1.0])
OTHER = replace(SCALE, std=[1.0, 3.0])


def written(path, rows, **metadata):
    if path.suffix == ".parquet":
        table = pa.Table.from_pylist(rows)
        pq.write_table(table.replace_schema_metadata(metadata or None), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def named(**more):
    return [{"user": f"u{i}", "y": y, "x": x} | more for i, (x, y) in enumerate(USERS.tolist())]


def adapted():
    return [{"user": f"u{i}", "weights": row} for i, row in enumerate(USERS.tolist())]


def weights_of(path, scale=SCALE, **options):
    return np.concatenate([batch.weights for batch in read_users(path, scale, **options)])


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_users_by_name(tmp_path, ending):
    path = written(tmp_path / f"u.{ending}", named())
    ((ids, weights, origin, unused),) = read_users(path, SCALE)
    assert unused == ()
    assert ids.to_pylist() == [f"u{i}" for i in range(7)]
    assert origin.start == 0
    np.testing.assert_allclose(weights, USERS, rtol=1e-12)


def test_a_user_has_one_row_and_columns_that_are_not_used_are_named(tmp_path):
    rows = [{"user": user, "x": 0.5, "y": 0.5, "z": 1.0} for user in (7, "8", "7")]
    path = written(tmp_path / "u.jsonl", rows)
    with pytest.raises(InputError, match=r"line 3: found the user '7' of line 1"):
        weights_of(path)
    (batch,) = read_users(written(path, rows[:2]), SCALE)
    assert batch.unused == ("z",)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_stated_scale_says_that_weights_are_per_standard_deviation(tmp_path, ending):
    for digest in (SCALE.digest, SCALE.digest[:12]):
        path = written(tmp_path / f"u.{ending}", named(scale=digest))
        np.testing.assert_allclose(weights_of(path), USERS, rtol=1e-12)
        np.testing.assert_allclose(weights_of(path, keep_sum=False), 6 * USERS, rtol=1e-12)
        found = weights_of(path, UNEQUAL)  # 6 and 3 standard deviations wide
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-12)
        np.testing.assert_allclose(found[:, 0] / found[:, 1], 2 * USERS[:, 0] / USERS[:, 1])
    for wrong in (OTHER.digest, SCALE.digest[:4]):
        path = written(tmp_path / f"u.{ending}", named(scale=wrong))
        with pytest.raises(InputError, match=r"on the scale .* expected .*scale_from"):
            weights_of(path)


def users_file(path, rewards=("x", "y"), scale=SCALE.digest, size=2):
    users = create_users(AboutUsers("", "bayes", size, 1, rewards, scale))
    rows = np.ones((1, 1))
    users.put(
        UserRecord(f"u{n}", 1, np.nan, weights[:size], rows) for n, weights in enumerate(USERS)
    )
    users.save(path)
    return path


def test_users_of_mrm_adapt_state_rewards_and_scale(tmp_path):
    path = users_file(tmp_path / "u.sqlite")
    np.testing.assert_allclose(weights_of(path), USERS, rtol=1e-6)
    batch = next(read_users(path, SCALE))
    assert batch.ids.to_pylist() == [f"u{n}" for n in range(len(USERS))]


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ({"rewards": (), "scale": ""}, "found weights on rewards without names, as of learned"),
        ({"rewards": ("y", "x")}, "found weights of y, x, expected"),
        ({"scale": OTHER.digest}, "found weights on the scale"),
        ({"size": 0}, "found users as their choices, of a method without"),
    ],
)
def test_users_of_other_rewards_or_scales_are_refused(tmp_path, stated, words):
    path = users_file(tmp_path / "u.sqlite", **stated)
    with pytest.raises(InputError, match=words) as caught:
        weights_of(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"x": 1.0}], "no column `y`; found `x`"),
        ([{"x": 1.0, "weights": [0.5, 0.5]}], "no column `y`"),
        ([{"x": 1.0, "y": 0.0}, {"x": None, "y": 1.0}], "2: `x` is missing"),
        ([{"x": 1.0, "y": 0.0, "scale": ""}], "`scale` is empty"),
    ],
)
def test_wrong_users_are_named(tmp_path, ending, rows, words):
    path = written(tmp_path / f"u.{ending}", rows)
    with pytest.raises(InputError) as caught:
        weights_of(path)
    assert words in str(caught.value)


def test_lists_without_names_in_json_lines_are_refused(tmp_path):
    path = written(tmp_path / "u.jsonl", adapted())
    with pytest.raises(InputError, match="do not name their rewards, expected weights on x, y"):
        weights_of(path)
