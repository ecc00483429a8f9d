"""`jaxalign mrm`: bad choices, features, settings, texts, folders and users are refused."""

import json
import shutil
import sqlite3
from contextlib import closing

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_calls import call, digest, refused, write_rows
from mrm_cli_world import (
    CHOICES,
    USERS,
    WIDTH,
    answer,
    build,
    make_choices,
    rank,
    train,
    write_features,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build(tmp_path_factory.mktemp("cli"))


# Bad choices ----------------------------------------------------------------------------------


def broken_files(rows):
    """Name -> (text of a preference file, words of the message)."""
    lines = [json.dumps(row) for row in rows]
    first = rows[0]
    text = "\n".join(lines)
    without = [{k: v for k, v in row.items() if k != "rejected"} for row in rows]
    return {
        "missing column": ("\n".join(map(json.dumps, without)), ["`rejected`"]),
        "missing in one row": ("\n".join([*lines[:6], json.dumps(without[0])]), ["line 7"]),
        "unreadable line": ("\n".join([*lines[:4], '{"user": "u', *lines[4:]]), ["line 5"]),
        "not an object": ("\n".join([*lines[:2], "[1]", *lines[2:]]), ["line 3"]),
        "chosen = rejected": (
            "\n".join([*lines, json.dumps({**first, "chosen": first["rejected"]})]),
            [f"line {len(lines) + 1}", "`chosen` and `rejected`"],
        ),
        "number for text": (f'{text}\n{{"user": 3.5, "chosen": "a", "rejected": "b"}}', ["`user`"]),
        "empty": ("", ["empty"]),
        "blank": ("\n\n", ["empty"]),
        "one user": ("\n".join(lines[:CHOICES]), ["users"]),
    }


@pytest.mark.parametrize("name", broken_files(make_choices()[1]))
def test_bad_choices(world, tmp_path, name):
    text, words = broken_files(world.rows)[name]
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    refused(train(world, path, tmp_path / "run"), *words)
    assert not (tmp_path / "run").exists()
    if name != "one user":
        before = digest(world.run)
        result = call(
            "mrm", "adapt", "--model", world.run, "--data", path, "--features", world.table
        )
        refused(result, *words)
        refused(call("mrm", "evaluate", "--model", world.run, "--data", path), *words)
        refused(call("embed", "--data", path, "--out", tmp_path / "e.npz"), *words)
        assert digest(world.run) == before
        assert not (tmp_path / "e.npz").exists()


@pytest.mark.parametrize("name", ["nowhere.jsonl", "nowhere.parquet"])
def test_choices_that_are_not_there(world, tmp_path, name):
    refused(train(world, tmp_path / name, tmp_path / "run"), name, "does not exist")
    assert not (tmp_path / "run").exists()


def test_parquet_without_a_column(world, tmp_path):
    path = tmp_path / "bad.parquet"
    pq.write_table(pa.table({"user": ["a"], "chosen": ["b"]}), path)
    refused(train(world, path, tmp_path / "run"), "`rejected`")
    path.write_bytes(b"PAR1 broken")
    refused(train(world, path, tmp_path / "run"), "Parquet")
    assert not (tmp_path / "run").exists()


def test_all_users_with_too_few_choices(world, tmp_path):
    # Before the features, which take minutes to encode, are asked for.
    words = ("--split.min_support", 1000, "--features.path", tmp_path / "none.npz")
    result = train(world, world.choices, tmp_path / "run", *words)
    refused(result, "1000", "split.min_support")
    assert "users dropped: too few choices" in " ".join(result.err.split())
    assert not (tmp_path / "run/report.json").exists()


UNUSABLE = [
    ("--seeds 0", "seeds is 0; expected 1 or more"),
    ("--draws 1", "draws is 1; expected 2 or more"),
    ("--shots", "shots is []; expected one number or more, each 0 or more"),
    ("--methods", "methods is empty"),
    ("--split.query_share 1.5", "query_share is 1.5; expected above 0, and below 1"),
    ("--split.query_share 0", "query_share is 0.0; expected above 0, and below 1"),
    ("--split.unseen_share 1", "unseen_share is 1.0; expected 0 or more, and below 1"),
    ("--split.seed -1", "Split seed is -1; expected 0 or more"),
    ("--bayes.rank 0", "Bayes rank is 0; expected 1 or more"),
    ("--mrm.hidden_sizes 0", "MRM hidden_sizes is [0]; expected one number or more, each 1"),
    ("--split.min_query 0", "min_query is 0; expected 1 or more"),
    ("--data.max_pairs -1", "max_pairs is -1; expected 0 or more"),
    ("--features.max_dims 0", "max_dims is 0; expected 1 or more"),
    ("--features.whiten nan", "whiten is nan"),
    ("--bt.ridges", "OneModel ridges is []; expected one number or more, each above 0"),
    ("--bayes.em_steps 0", "Bayes em_steps is 0; expected 1 or more"),
    ("--mrm.rates", "MRM rates is []"),
    ("--mrm.snapshots 0", "MRM snapshots is 0"),
    ("--gpo.epochs 0", "GPO epochs is 0"),
    ("--gpo.heads 3", "a multiple of its 3 heads"),
    ("--vpl.kl_anneal 2", "VPL kl_anneal is 2.0"),
    ("--pttt.rate 0", "PTTT rate is 0.0; expected above 0"),
    ("--lore.ranks", "LoRe ranks is []"),
    ("--pal.few_shot_steps 0", "PAL few_shot_steps is [0]"),
    ("--neighbours.counts 0", "Neighbours counts is [0]"),
    ("--mixture.em_steps 0", "Mixture em_steps is 0"),
]


@pytest.mark.parametrize(("options", "words"), UNUSABLE)
def test_settings_that_nothing_can_be_fitted_with(world, tmp_path, options, words):
    refused(train(world, world.choices, tmp_path / "run", *options.split()), words)
    assert not (tmp_path / "run").exists()


# Bad features ---------------------------------------------------------------------------------


def broken_features(folder, values):
    """Name -> (feature file, words of the message)."""
    spoilt = values.copy()
    spoilt[2, 1] = np.nan
    text = folder / "text.npz"
    text.write_text("not an archive")
    keyless = folder / "keyless.npz"
    np.savez(keyless, values=values)
    return {
        "ids without features": (
            write_features(folder / "a.npz", values[:4]),
            ["no features", "expected a row"],
        ),
        "NaN": (write_features(folder / "b.npz", spoilt), [answer(2), "NaN"]),
        "unreadable": (text, ["text.npz"]),
        "keyless": (keyless, ["`features`"]),
        "missing": (folder / "nowhere.npz", ["nowhere.npz", "does not exist"]),
        "unknown format": (folder / "features.csv", [".npy"]),
    }


FEATURES = ("ids without features", "NaN", "unreadable", "keyless", "missing", "unknown format")


@pytest.mark.parametrize("name", FEATURES)
def test_bad_features(world, tmp_path, name):
    path, words = broken_features(tmp_path, world.features)[name]
    result = train(world, world.choices, tmp_path / "run", "--features.path", path)
    refused(result, *words)
    assert not (tmp_path / "run/report.json").exists()
    before = digest(world.run)
    given = ("--features", path)
    refused(
        call("mrm", "adapt", "--model", world.run, "--data", world.choices, *given),
        *words,
    )
    refused(rank(world, *given), *words)
    assert digest(world.run) == before


def test_features_of_another_width(world, tmp_path):
    path = write_features(tmp_path / "narrow.npz", world.features[:, :4])
    before = digest(world.run)
    words = ("4 wide", str(WIDTH))
    out = tmp_path / "users.sqlite"
    given = ("--features", path)
    refused(
        call("mrm", "adapt", "--model", world.run, "--data", world.choices, *given, "--out", out),
        *words,
    )
    refused(rank(world, *given), *words)
    refused(rank(world, "--user", "user00", *given), *words)
    assert digest(world.run) == before
    assert not out.exists()


def test_named_rewards_without_names(world, tmp_path):
    options = ("--features.named", "true")
    refused(train(world, world.choices, tmp_path / "run", *options), "names")


def test_text_for_a_model_of_given_features(world):
    refused(rank(world), "--features")
    refused(call("mrm", "adapt", "--model", world.run, "--data", world.choices), "--features")


# Bad settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mrm: {epoch: 3}", ["mrm.epoch", "does not exist"]),
        ("seed: 3", ["seed", "does not exist"]),
        ("mrm: {epochs: many}", ["mrm.epochs", "'many'", "int"]),
        ("seeds: 1.5", ["seeds"]),
        ("mrm: [1, 2]", ["mrm"]),
        ("mrm: {epochs: 3", ["not readable as YAML"]),
        ("", ["empty"]),
    ],
)
def test_bad_yaml(world, tmp_path, text, words):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    command = ("--config", path, "--data", world.choices, "--out", tmp_path / "run")
    refused(call("mrm", "train", *command), "bad.yaml", *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--mrm.epoch", "3"], ["mrm.epoch", "does not exist"]),
        (["--mrm.epochs", "many"], ["mrm.epochs", "many", "int"]),
        (["--mrm.link", "linear"], ["mrm.link", "softmax"]),
        (["--bogus"], ["--bogus", "does not exist"]),
        (["stray"], ["stray"]),
        (["--methods", "bogus"], ["methods", "bogus"]),
        (
            ["--features.scale", "runs/palm", "--features.path", ""],
            ["features.scale", "--features.path SCORES"],
        ),
        (
            ["--split.support_pairs", "1", "--shots", "0", "2"],
            ["shots: found 2, expected at most 1"],
        ),
        (["--config", "nowhere.yaml"], ["nowhere.yaml", "does not exist"]),
    ],
)
def test_bad_options_of_train(world, tmp_path, options, words):
    refused(train(world, world.choices, tmp_path / "run", *options), *words)
    assert not (tmp_path / "run/report.json").exists()


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.txt", b"\n", ["empty"]),
        ("a.txt", b"\xff\xfe", ["UTF-8"]),
        ("a.jsonl", b'{"text": "a"}\n{"words": "b"}\n', ["line 2"]),
        ("a.jsonl", b"a\n", ["line 1"]),
        ("a.jsonl", b'{"text": "a"}\n{"text": null}\n', ["line 2", "`text` is missing"]),
        ("a.jsonl", b'{"text": "a"}\n{"text": ["b"]}\n', ["line 2", "(list), expected text"]),
        ("a.json", b'[{"text": "a"}, {"text": 3}]', ["row 2", "expected text"]),
    ],
)
def test_bad_texts(world, tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    refused(rank(world, "--features", world.table, texts=tmp_path / name), *words)


# Folders and users that are not what they should be -------------------------------------------


def test_a_folder_that_holds_another_run(world, tmp_path):
    before = digest(world.run)
    for more in ((), ("--resume",)):
        result = train(world, world.choices, world.run, "--split.seed", 1, *more)
        refused(result, "another run", "--out")
    other = write_rows(tmp_path / "other.jsonl", world.rows[:-1])
    refused(train(world, other, world.run, "--resume"), "another run")
    assert digest(world.run) == before


def test_a_finished_run_without_resume(world):
    before = digest(world.run)
    refused(train(world, world.choices, world.run), "finished run", "--resume")
    assert digest(world.run) == before


def test_a_folder_of_something_else(world, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    before = digest(tmp_path)
    refused(train(world, world.choices, tmp_path), "not empty")
    refused(train(world, world.choices, tmp_path, "--resume"), "not empty")
    refused(train(world, world.choices, tmp_path / "notes.txt"), "notes.txt")
    assert digest(tmp_path) == before


def test_an_unknown_user(world):
    before = digest(world.run)
    result = rank(world, "--user", "nobody", "--features", world.table)
    refused(result, "'nobody'", str(USERS), "adapt")
    assert digest(world.run) == before


def spoil(source, path, **stated):
    """A copy of a file of users that states other things."""
    path.write_bytes(source.read_bytes())
    with closing(sqlite3.connect(path)) as database, database:
        old = json.loads(database.execute("SELECT value FROM about").fetchone()[0])
        old["about"] |= {name: stated.pop(name) for name in ("model",) if name in stated}
        database.execute("UPDATE about SET value = ?", (json.dumps(old | stated),))


def test_users_of_another_model(world, tmp_path):
    path, own = tmp_path / "users.sqlite", world.run / "users.sqlite"
    given = ("--user", "user00", "--features", world.table, "--users", path)
    refused(rank(world, *given), "users.sqlite", "does not exist")
    path.write_text("not SQLite")
    refused(rank(world, *given), "users.sqlite", "no file of `jaxalign mrm adapt`")
    with closing(sqlite3.connect(tmp_path / "other.sqlite")) as database, database:
        database.execute("CREATE TABLE other (x)")
    refused(rank(world, *given[:-1], tmp_path / "other.sqlite"), "no such table: about", "adapt")
    spoil(own, path, format=2)
    refused(rank(world, *given), "users.sqlite", "format 2", "adapt")
    spoil(own, path, kind="embeddings")
    refused(rank(world, *given), "users.sqlite", "holds embeddings", "adapt")
    spoil(own, path, model="f" * 64)
    refused(rank(world, *given), "another model", "ffffffffffff")
    path.write_bytes(own.read_bytes())
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE users SET weights = x'00'")
    refused(rank(world, *given), "damaged", "adapt")


def test_a_model_of_an_older_format(world, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.json").write_text('{"format": 1}')
    result = call("mrm", "rank", "--model", tmp_path, "--texts", world.texts)
    refused(result, "older format", "jaxalign mrm train")


def test_a_run_that_is_not_finished(world, tmp_path):
    for name in ("run.json", "model.safetensors"):
        (tmp_path / name).write_bytes((world.run / name).read_bytes())
    result = call("mrm", "rank", "--model", tmp_path, "--texts", world.texts)
    refused(result, "unfinished run", "--resume")


@pytest.mark.parametrize("action", ["adapt", "rank", "evaluate"])
def test_a_folder_without_a_model(world, tmp_path, action):
    what = ("--texts", world.texts) if action == "rank" else ("--data", world.choices)
    for folder in (tmp_path, tmp_path / "nowhere"):
        refused(call("mrm", action, "--model", folder, *what), folder, "no trained model")
    assert not any(tmp_path.iterdir())


def test_evaluate_without_the_runs_users(world, tmp_path):
    strangers = [{**row, "user": f"x{row['user']}"} for row in world.rows]
    path = write_rows(tmp_path / "strangers.jsonl", strangers)
    refused(call("mrm", "evaluate", "--model", world.run, "--data", path), "test users")


@pytest.mark.parametrize("kind", ["damaged", "of another model", "of another program"])
def test_users_that_cannot_be_read_do_not_stand_in_the_way(world, tmp_path, kind):
    run, own = tmp_path / "run", world.run / "users.sqlite"
    shutil.copytree(world.run, run)
    users = run / "users.sqlite"
    if kind == "damaged":
        users.write_bytes(users.read_bytes()[:100])
    elif kind == "of another model":
        spoil(own, users, model="f" * 64)
    else:
        spoil(own, users, kind="embeddings")
    texts = ("mrm", "rank", "--model", run, "--texts", world.texts, "--features", world.table)
    refused(call(*texts, "--user", "user00"), "users.sqlite", "adapt")
    assert call(*texts).code == 0
    assert call(*texts, "--user", "user00", "--users", own).code == 0
    assert call("mrm", "evaluate", "--model", run, "--data", world.choices).code == 0
    data = ("--data", world.choices, "--features", world.table)
    if kind == "of another program":
        before = users.read_bytes()
        words = "was not written by `jaxalign mrm adapt`"
        refused(call("mrm", "adapt", "--model", run, *data), "users.sqlite", words)
        assert users.read_bytes() == before
        return
    assert call("mrm", "adapt", "--model", run, *data).code == 0
    assert users.read_bytes() == own.read_bytes()
