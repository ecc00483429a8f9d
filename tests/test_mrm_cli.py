"""`jaxalign mrm`: the whole way on small made-up choices, and runs that go on from others."""

import json
import shutil

import chex
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_calls import call, refused, write_rows
from mrm_cli_world import (
    CHOICES,
    USERS,
    WIDTH,
    answer,
    build,
    rank,
    train,
    write_features,
)

from jaxalign import mrm, progress
from jaxalign.commands.mrm import _answers, _shown
from jaxalign.errors import InputError
from jaxalign.mrm.baselines.bradley_terry import OneModelConfig
from jaxalign.rewards.reward_scale import load_scale
from jaxalign.runs.artifact import load_arrays, unflatten

KEYS = ("accuracy", "nll", "gain", "gain_low", "gain_high", "worst_10_split", "worst_10",
        "worst_50", "harmed", "flipped", "gain_best", "swap_flipped", "gain_other",
        "calibration_error")  # fmt: skip
PLOTS = ("gains.png", "shots.png", "user_gains.png", "reliability.png")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build(tmp_path_factory.mktemp("cli"))


# The whole way --------------------------------------------------------------------------------


def test_train_leaves_a_report(world):
    report = world.report
    assert set(report["new_users"]) == {"bt", "bt_items", "bayes", "mrm"}
    for figures in report["new_users"].values():
        assert set(KEYS) <= set(figures)
    assert report["seeds"] == 1
    assert report["selected"]["new_users"] in ("bt", "bt_items", "bayes", "mrm")
    assert report["settings"]["bt"][0]["ridge"] in OneModelConfig().ridges
    assert [point[0] for point in report["shots"]["bayes"]] == [0, 5]
    for name in (*PLOTS, "report.md", "run.json", "splits.json", "model.safetensors"):
        assert (world.run / name).stat().st_size > 100, name
    markdown = (world.run / "report.md").read_text()
    assert all(name in markdown for name in ("bayes", "mrm", *PLOTS))
    assert "validation chose" in world.trained.out
    adapts = report["adaptation"][report["selected"]["new_users"]]["adapts"]
    assert ("adapts to no user here" in world.trained.out) is not adapts


def test_users_with_too_few_choices_are_dropped_counted_and_said(world):
    dropped = world.report["users"]["dropped"]
    assert sum(dropped.values()) > 0
    split = json.loads((world.run / "splits.json").read_text())
    few = {f"user{number:02d}" for number in range(3, USERS, 4)}
    said = " ".join(world.trained.err.split())
    for role in ("validation", "test"):
        assert dropped[role] == len(few & set(split[role]))
        if dropped[role]:
            everyone = len(split[role])
            assert f"{dropped[role]} of {everyone} {role} users dropped: too few choices" in said


def test_resuming_a_finished_run_changes_nothing(world, monkeypatch):
    waiting, blocks = progress.Progress.waiting, set()

    def noted(self, title):
        blocks.add(title)
        return waiting(self, title)

    monkeypatch.setattr(progress.Progress, "waiting", noted)
    names = ("report.json", "report.md", "splits.json", "run.json", "model.safetensors")
    before = [(world.run / name).read_bytes() for name in names]
    result = train(world, world.choices, world.run, "--resume")
    assert result.code == 0, result.err
    assert "kept from before" in result.err
    # Whatever takes a while at real sizes says that it is at work.
    assert blocks >= {"levels of the gates", "test users", "intervals of the report"}
    assert [(world.run / name).read_bytes() for name in names] == before


@pytest.mark.parametrize("prompts", [1, 2])
def test_folds_that_cannot_be_cut_are_left_out_before_training(world, tmp_path, prompts):
    """The prompts are dealt to the folds, so that one or two leave most of them without a row."""
    rows = [{**row, "prompt": f"p{n % prompts}"} for n, row in enumerate(world.rows)]
    choices = write_rows(tmp_path / "choices.jsonl", rows)
    options = ("--features.path", world.table, "--split.item_folds", 3, "--methods", "bayes")
    result = train(world, choices, tmp_path / "run", *options)
    assert result.code == 0, result.err
    said = " ".join(result.err.split())
    left, kept = (
        ("3 of 3", []) if prompts == 1 else ("1 of 3", ["new_items", "new_users_new_items"])
    )
    assert f"{left} item folds left out" in said
    assert "split.item_folds 0" in said
    assert said.index("item folds left out") < said.index(" bt ")
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert [name for name in report if name.startswith("new_")] == ["new_users", *kept]
    assert (tmp_path / "run/model.safetensors").exists()


def test_parquet_gives_the_report_of_json_lines(world, tmp_path):
    rows = [{"tie": False, **row} for row in world.rows]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "choices.parquet")
    result = train(world, tmp_path / "choices.parquet", tmp_path / "run")
    assert result.code == 0, result.err
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report.pop("source").endswith("choices.parquet")
    assert report == {name: value for name, value in world.report.items() if name != "source"}


def test_adapt_keeps_every_user(world):
    users = mrm.open_users(world.run / "users.sqlite", mrm.load(world.run).digest)
    assert sorted(users.names()) == [f"user{number:02d}" for number in range(USERS)]
    assert (users.get("user00").choices, users.get("user03").choices) == (CHOICES, 3)
    found = list(users)
    assert all(np.isfinite(user.weights).all() for user in found)
    accuracy = [user.accuracy for user in found]
    assert np.nanmin(accuracy) >= 0
    assert np.nanmax(accuracy) <= 1
    assert f"{USERS} users, held-out accuracy {np.nanmean(accuracy):.3f}" in world.adapted.out


def test_bad_rows_are_dropped_and_said_and_users_may_be_numbers(world, tmp_path):
    rows = [{**row, "user": 7} for row in world.rows[:4]]
    path = write_rows(tmp_path / "c.jsonl", [*rows[:2], {**rows[0], "chosen": None}, *rows[2:]])
    command = ["mrm", "adapt", "--model", world.run, "--features", world.table, "--data", path]
    command += ["--out", tmp_path / "u.sqlite"]
    refused(call(*command), f"{path}, line 3: `chosen` is missing")
    result = call(*command, "--on-bad-row", "drop")
    assert result.code == 0, result.err
    assert "1 of 5 rows dropped: `chosen` is missing (1, first: " in result.err
    assert [*mrm.open_users(tmp_path / "u.sqlite").names()] == ["7"]


def test_choices_that_come_in_two_files_give_the_users_of_all_of_them(world, tmp_path):
    """Each user's rows are halved; some users are in one half only."""
    parts = [[row for n, row in enumerate(world.rows) if n % 2 == k] for k in (0, 1)]
    parts[1] = [row for row in parts[1] if row["user"] != "user05"]
    parts[0] = [row for row in parts[0] if row["user"] != "user06"]
    files = [write_rows(tmp_path / f"{k}.jsonl", rows) for k, rows in enumerate(parts)]
    whole = write_rows(tmp_path / "whole.jsonl", [*parts[0], *parts[1]])
    common = ("mrm", "adapt", "--model", world.run, "--features", world.table, "--out")
    out, all_at_once = tmp_path / "users.sqlite", tmp_path / "all.sqlite"
    refused(call(*common, out, "--data", files[0], "--update"), "users.sqlite does not exist")
    assert call(*common, out, "--data", files[0]).code == 0
    before = out.read_bytes()
    result = call(*common, out, "--data", files[1], "--update")
    assert result.code == 0, result.err
    assert call(*common, all_at_once, "--data", whole).code == 0
    model = mrm.load(world.run)
    one, other = (mrm.open_users(path) for path in (out, all_at_once))
    assert sorted(one.names()) == sorted(other.names())
    for name in one.names():
        ours, theirs = one.get(name), other.get(name)
        assert ours.choices == theirs.choices
        np.testing.assert_allclose(ours.weights, theirs.weights, rtol=1e-4, atol=1e-5)
        if "posterior" in model.method.capabilities:
            cov, same = (mrm.weights_of(model, mrm.read_state(model, r))[1] for r in (ours, theirs))
            np.testing.assert_allclose(cov, same, rtol=1e-4, atol=1e-5)
    # The same choices are not counted twice.
    after = out.read_bytes()
    refused(call(*common, out, "--data", files[1], "--update"), "has these choices already")
    assert out.read_bytes() == after != before


def test_an_update_without_accuracies_states_none(world, tmp_path):
    out = tmp_path / "users.sqlite"
    shutil.copy(world.run / "users.sqlite", out)
    late = write_rows(tmp_path / "late.jsonl", [{**row, "user": "late"} for row in world.rows[:4]])
    result = call(
        "mrm", "adapt", "--model", world.run, "--features", world.table, "--data", late,
        "--out", out, "--update", "--skip-accuracy",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert f"{USERS + 1} users; wrote {out}" in result.out


def test_evaluate_gives_the_figures_of_the_report(world, tmp_path):
    result = call(
        "mrm", "evaluate", "--model", world.run, "--data", world.choices, "--out",
        tmp_path / "judged.json",
    )  # fmt: skip
    assert result.code == 0, result.err
    judged = json.loads(result.out)
    assert judged == json.loads((tmp_path / "judged.json").read_text())
    reported = world.report["new_users"][world.report["selected"]["new_users"]]
    # What needs more than the saved model is in the report alone.
    for name in set(KEYS) - {"gain_best", "swap_flipped", "gain_other"}:
        assert judged[name] == pytest.approx(reported[name], abs=1e-6), name


@pytest.mark.parametrize("user", ["user00", "user01", None])
def test_rank_orders_answers(world, user):
    who = ("--user", user) if user else ()
    result = rank(world, *who, "--features", world.table, "--json")
    assert result.code == 0, result.err
    ranked = [json.loads(line) for line in result.out.splitlines()]
    assert sorted(entry["position"] for entry in ranked) == [0, 1, 2, 3, 4]
    assert all(entry["text"] == answer(entry["position"]) for entry in ranked)
    scores = [entry["score"] for entry in ranked]
    assert scores == sorted(scores, reverse=True)
    assert np.mean([entry["probability"] for entry in ranked]) == pytest.approx(0.5)
    shown = rank(world, *who, "--features", world.table).out.splitlines()
    assert len(shown) == 6
    assert [line.split("  ")[-1].strip() for line in shown[1:]] == [e["text"] for e in ranked]


def test_a_prompt_that_the_choices_did_not_have_is_remarked_on(world):
    result = rank(world, "--prompt", "Hi")  # and refused, since this run has no encoder
    assert "had no prompts: leave out --prompt, or the order may be wrong" in result.err
    assert "--prompt" not in rank(world).err


def test_users_rank_differently(world):
    orders = {
        tuple(json.loads(line)["position"] for line in result.out.splitlines())
        for user in ("user00", "user01", "user02", "user04")
        for result in [rank(world, "--user", user, "--features", world.table, "--json")]
    }
    assert len(orders) > 1


def test_rank_reads_json_lines_and_other_users(world, tmp_path):
    texts = write_rows(tmp_path / "answers.jsonl", [{"text": answer(i)} for i in range(5)])
    (tmp_path / "users.sqlite").write_bytes((world.run / "users.sqlite").read_bytes())
    given = ("--user", "user00", "--features", world.table, "--json")
    other = rank(world, *given, "--users", tmp_path / "users.sqlite", texts=texts)
    assert other.code == 0, other.err
    assert other.out == rank(world, *given).out
    # What `generate` and `reward score` write has answers by another name.
    for column in ("completion", "answer"):
        rows = [{"prompt": "Hi", column: answer(i)} for i in range(5)]
        texts = write_rows(tmp_path / f"{column}.jsonl", rows)
        assert rank(world, *given, texts=texts).out == other.out


def test_an_answer_is_shown_in_one_line():
    assert _shown("First:\n\n1. This.\n") == "First: 1. This."
    assert _shown("x" * 91) == "x" * 87 + "..."


def test_answers_to_rank_are_to_one_prompt(tmp_path):
    rows = [{"prompt": "Hi", "answer": "Hello."}, {"prompt": "Bye", "answer": "See you."}]
    one, both = (write_rows(tmp_path / f"{n}.jsonl", rows[:n]) for n in (1, 2))
    assert _answers(one, None, True) == (["Hello."], "Hi")
    assert _answers(both, None, False) == (["Hello.", "See you."], None)
    with pytest.raises(InputError, match=r"line 2: found an answer to 'Bye', .* one prompt, 'Hi'"):
        _answers(both, None, True)
    with pytest.raises(InputError, match=r"line 1: found an answer to 'Hi', .* one prompt, 'Bye'"):
        _answers(both, "Bye", True)


def test_a_file_in_place_of_the_run_is_named_as_such(world):
    result = call("mrm", "adapt", "--model", world.choices, "--data", world.choices)
    assert "--out" not in refused(result, f"{world.choices} holds no trained model")


def test_named_rewards(world, tmp_path):
    names = np.array([f"trait {i}" for i in range(WIDTH)])
    path = write_features(tmp_path / "named.npz", world.features, names=names)
    out = tmp_path / "run"
    options = ("--features.path", path, "--features.named", "true", "--methods", "bayes")
    result = train(world, world.choices, out, *options)
    assert result.code == 0, result.err
    ids = mrm.load(out).reward_ids
    assert ids.names == tuple(names.tolist())
    result = call("mrm", "adapt", "--model", out, "--data", world.choices, "--features", path)
    assert result.code == 0, result.err
    about = mrm.open_users(out / "users.sqlite").about
    assert about.rewards == tuple(names.tolist())
    assert about.scale == ids.digest == load_scale(out).digest
    shown = call("mrm", "describe", "--model", out, "--user", "user00")
    assert shown.code == 0, shown.err
    choices = sum(row["user"] == "user00" for row in world.rows)
    assert shown.out.startswith(f"user user00, from {choices} choices and all other users:\n- ")
    assert shown.out.count("of equal pairs\n") == WIDTH
    found = json.loads(call("mrm", "describe", "--model", out, "--user", "user00", "--json").out)
    mean, cov = mrm.weights_of(mrm.load(out), mrm.user_state(mrm.load(out), "user00"))
    for one in found["rewards"]:
        place = ids.names.index(one["name"])
        assert one["weight"] == pytest.approx(float(mean[place]), rel=1e-5)
        assert one["high"] - one["low"] == pytest.approx(3.92 * cov[place, place] ** 0.5, rel=1e-3)
    everyone = call("mrm", "describe", "--model", out)
    assert everyone.out.startswith("a user without choices, from all other users:")
    refused(call("mrm", "describe", "--model", out, "--user", "nobody"), "has not been adapted")
    refused(call("mrm", "describe", "--model", world.run), "on learned features", "--features.path")
    # The weights of another run, on the scale of this one: the items differ, the units do not.
    moved = write_features(tmp_path / "moved.npz", 3 * world.features + 1, names=names)
    options = ("--features.path", moved, *options[2:], "--features.scale", out)
    result = train(world, world.choices, tmp_path / "other", *options)
    assert result.code == 0, result.err
    assert mrm.load(tmp_path / "other").reward_ids == ids
    few = write_features(tmp_path / "few.npz", world.features[:, :2], names=names[:2])
    options = ("--features.path", few, *options[2:])
    refused(train(world, world.choices, tmp_path / "few", *options), "trait 5", "trait 0, trait 1")


def test_scores_of_rewards_are_features_by_their_names(world, tmp_path):
    """As the same numbers in a feature file, whatever the order of the columns at adaptation."""
    names = ("kind", "short", "wise")
    rows = [
        {"answer": answer(item), "rewards": dict(zip(names, map(float, row), strict=False))}
        for item, row in enumerate(world.features)
    ]
    scores = write_rows(tmp_path / "scores.jsonl", rows)
    turned = [row | {"rewards": dict(reversed(row["rewards"].items()))} for row in rows]
    turned = write_rows(tmp_path / "turned.jsonl", turned)
    named = write_features(tmp_path / "named.npz", world.features[:, :3], names=np.array(names))
    found = []
    for number, (path, given) in enumerate(((scores, turned), (named, named))):
        out = tmp_path / f"run{number}"
        result = train(world, world.choices, out, "--features.path", path, "--methods", "bayes")
        assert result.code == 0, result.err
        adapt = ("mrm", "adapt", "--model", out, "--data", world.choices, "--features", given)
        assert call(*adapt).code == 0
        found.append(mrm.load(out).users)
    assert found[0].about.scale == found[1].about.scale
    assert found[0].about.rewards == names
    for one, other in zip(*found, strict=True):
        assert one.user == other.user
        np.testing.assert_array_equal(one.weights, other.weights)
    fewer = write_rows(tmp_path / "few.jsonl", [r | {"rewards": {"kind": 1.0}} for r in rows])
    words = f"{fewer}: found the columns kind, expected kind, short, wise; add short, wise."
    refused(call(*adapt[:-1], fewer), words)


def test_a_finished_run_goes_on_with_more_epochs(world, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(world.run, run)
    before = (run / "state/bayes.safetensors").stat().st_mtime_ns
    refused(train(world, world.choices, run, "--resume", "--mrm.epochs", 2), "mrm.epochs")
    result = train(world, world.choices, run, "--resume", "--mrm.epochs", 8)
    assert result.code == 0, result.err
    said = " ".join(result.err.split())
    assert "mrm goes on: epochs was 4, now it is 8" in said
    assert "epoch 6 of 8" in said
    assert "epoch 4 of 8" not in said
    assert (run / "state/bayes.safetensors").stat().st_mtime_ns == before
    report = json.loads((run / "report.json").read_text())
    assert report["new_users"]["bayes"] == world.report["new_users"]["bayes"]
    assert json.loads((run / "run.json").read_text())["config"]["mrm"]["epochs"] == 8


@pytest.mark.slow
def test_a_longer_run_judges_new_items_with_snapshots_of_the_same_epochs(world, tmp_path):
    run = tmp_path / "run"
    quick = ("--methods", "mrm", "--fold_methods", "mrm", "--split.item_folds", 2)
    assert train(world, world.choices, run, *quick).code == 0
    result = train(world, world.choices, run, *quick, "--resume", "--mrm.epochs", 8)
    assert result.code == 0, result.err
    kept = unflatten(load_arrays(run / "state/mrm.safetensors"))
    assert kept["0"]["moments"].tolist() == [2, 4, 6, 8]
    assert "new_items" in json.loads((run / "report.json").read_text())


def test_a_run_starts_from_an_earlier_one(world, tmp_path):
    """On new choices of the same users and of new ones: roles and directions stay."""
    new = [{**row, "user": f"new{row['user'][4:]}"} for row in world.rows[: 6 * CHOICES]]
    choices = write_rows(tmp_path / "more.jsonl", [*world.rows, *new])
    quick = ("--methods", "bayes", "--select", "bayes", "--split.item_folds", 2)
    first, second = tmp_path / "first", tmp_path / "second"
    assert train(world, world.choices, first, *quick).code == 0
    result = train(world, choices, second, *quick, "--from", first)
    assert result.code == 0, result.err
    old, found = (json.loads((run / "splits.json").read_text()) for run in (first, second))
    for role in ("train", "validation", "test"):
        assert found[role][: len(old[role])] == old[role]
    assert len(found["train"]) > len(old["train"])
    report = json.loads((second / "report.json").read_text())
    assert not [name for name in report if name.startswith("new_items")]
    models = [mrm.load(run) for run in (first, second)]
    np.testing.assert_array_equal(*(model.projection.matrix for model in models))
    assert models[0].digest != models[1].digest
    refused(train(world, choices, second, *quick, "--resume"), "another run")
    refused(train(world, choices, tmp_path / "x", "--methods", "mrm", "--from", first), "of bayes")
    whiter = (*quick, "--features.whiten", 1, "--from", first)
    refused(train(world, choices, tmp_path / "x", *whiter), "features.whiten 0.5", "found 1")
    narrow = write_features(tmp_path / "narrow.npz", world.features[:, :4])
    other = ("--features.path", narrow, "--from", first)
    refused(train(world, choices, tmp_path / "y", *quick, *other), "other features", "4 wide")


@pytest.mark.parametrize("method", ["mrm", pytest.param("mrm_published", marks=pytest.mark.slow)])
def test_meta_reward_models_start_from_an_earlier_run(world, tmp_path, method):
    """Without a step worth the name, the parameters are those of the earlier run."""
    quick = ["--methods", method, "--select", method, "--split.item_folds", "0"]
    quick += [f"--{method}.epochs", "1", f"--{method}.snapshots", "1"]
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    assert train(world, world.choices, first, *quick).code == 0
    new = [{**row, "user": f"new{row['user'][4:]}"} for row in world.rows[: 6 * CHOICES]]
    choices = write_rows(tmp_path / "more.jsonl", [*world.rows, *new])
    still = (f"--{method}.outer_lr", "1e-20")
    result = train(world, choices, second, *quick, *still, "--from", first)
    assert result.code == 0, result.err
    one, other = (mrm.load(run) for run in (first, second))
    chex.assert_trees_all_close(one.fitted["params"], other.fitted["params"], rtol=1e-6)
    assert train(world, choices, third, *quick, "--from", first).code == 0
    moved = mrm.load(third).fitted["params"]["weight_init"] - one.fitted["params"]["weight_init"]
    assert np.abs(moved).max() > 0
    for field, value in (
        ("hidden_sizes", "3"),
        ("link", "softmax" if method == "mrm" else "signed"),
    ):
        words = (f"was trained with {method}.{field}", f"set {method}.{field} as in that run")
        given = (*quick, f"--{method}.{field}", value, "--from", first)
        refused(train(world, choices, tmp_path / "x", *given), *words)
        assert not (tmp_path / "x").exists()
