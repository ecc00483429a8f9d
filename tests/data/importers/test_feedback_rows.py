"""Imported feedback is what user reward models learn from: choices, and ratings where they can."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_calls import call, refused, write_rows

from jaxalign import mrm
from jaxalign.data import load, load_features
from jaxalign.errors import InputError
from jaxalign.mrm.feedback_rows import prior_from

CHOICES = [
    {"user": "ann", "prompt": "Hi", "chosen": "Hello!", "rejected": "What?"},
    {"user": "bob", "prompt": "Hi", "chosen": "What?", "rejected": "Hello!", "tie": True},
]
RATING = {"user": "ann", "prompt": "Hi", "answer": "Hey", "rating": 1.0, "scale": [-1, 1]}
NOTE = "1 rating left out: choices between two answers are learned from"


def written(folder, kind, rows):
    path = folder / f"rows.{kind}"
    if kind == "parquet":
        names = dict.fromkeys(name for row in rows for name in row)
        pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), path)
    elif kind == "csv":
        names = list(dict.fromkeys(name for row in rows for name in row if name != "scale"))
        lines = [",".join(str(row.get(name, "")) for name in names) for row in rows]
        path.write_text("\n".join([",".join(names), *lines]))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize("on_bad_row", ["refuse", "drop"])
def test_ratings_between_choices_are_left_out_and_counted(kind, on_bad_row, tmp_path):
    rows = [CHOICES[0], RATING, CHOICES[1]]
    found = load(written(tmp_path, kind, rows), on_bad_row=on_bad_row)
    plain = load(written(tmp_path, kind, CHOICES))
    for name in ("users", "items", "texts"):
        assert getattr(found, name) == getattr(plain, name)
    for name in ("user", "chosen", "rejected", "tie"):
        np.testing.assert_array_equal(getattr(found, name), getattr(plain, name))
    assert found.notes == (NOTE,)
    assert plain.notes == ()


def test_a_bad_row_after_a_rating_keeps_its_line(tmp_path):
    rows = [RATING, CHOICES[0], {**CHOICES[1], "chosen": 5}]
    with pytest.raises(InputError, match=r"rows\.jsonl, line 3: `chosen` is 5"):
        load(written(tmp_path, "jsonl", rows))
    with pytest.raises(InputError, match=r"rows\.parquet, row 3: `rejected` is missing"):
        load(written(tmp_path, "parquet", [RATING, CHOICES[0], {"user": "c", "chosen": "a"}]))


def test_a_file_of_ratings_alone_is_refused(tmp_path):
    path = written(tmp_path, "jsonl", [RATING, RATING])
    with pytest.raises(InputError, match="holds 2 ratings and no choices, expected choices") as bad:
        load(path)
    # The command that the message names makes a file that is read.
    command = str(bad.value).split("`jaxalign ")[1].split("`")[0]
    names = {"RATINGS": str(path), "BOTH.jsonl": str(tmp_path / "both.jsonl")}
    names["CHOICES"] = str(written(tmp_path, "parquet", CHOICES))
    call(*(names.get(word, word) for word in command.split()))
    assert len(load(tmp_path / "both.jsonl", ratings=True)) == 2 + len(CHOICES)


def a_chat(user, chat, liked, names):
    """Rows of an export for answers to one question, of which a person likes one kind."""
    nodes = {"q": {"id": "q", "parentId": None, "role": "user", "content": f"Ask {chat}"}}
    for name in names:
        text = f"{name} answer {chat}"
        nodes[name] = {"id": name, "parentId": "q", "role": "assistant", "content": text}
    snapshot = {"chat": {"chat": {"history": {"messages": nodes}}}}
    return [
        {
            "id": f"{user}-{chat}-{name}", "user_id": user, "type": "rating",
            "data": {"rating": 1 if name == liked else -1}, "snapshot": snapshot,
            "meta": {"chat_id": f"c{user}-{chat}", "message_id": name},
        }
        for name in names
    ]  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An export of 20 people who rate two answers in most chats and 2 who rate one, and its run.

    People of even numbers mostly like the long answer, the others the short one.
    """
    root, rng, rows = tmp_path_factory.mktemp("export"), np.random.default_rng(0), []
    for user in range(22):
        for chat in range(25):
            liked = "short" if rng.random() < (0.9 if user % 2 else 0.2) else "long"
            both = user < 20 and chat < 20
            names = ("short", "long") if both else (("short", "long")[chat % 2],)
            rows += a_chat(user, chat, liked, names)
    (root / "export.json").write_text(json.dumps(rows))
    called = call("import", "auto", root / "export.json", "--out", root / "choices.jsonl")
    assert "400 choices and 150 ratings of 22 users" in called.out
    rows = [json.loads(line) for line in (root / "choices.jsonl").read_text().splitlines()]
    answers = ("answer", "chosen", "rejected")
    items = sorted({row[name] for row in rows for name in answers if name in row})
    noise = rng.standard_normal(len(items))
    vectors = [[one.startswith("short"), extra] for one, extra in zip(items, noise, strict=True)]
    np.savez(
        root / "features.npz", features=np.asarray(vectors, np.float32), ids=np.asarray(items),
        names=np.asarray(["short", "noise"]),
    )  # fmt: skip
    texts = [{"id": item, "text": item} for item in (items[0], items[-1])]
    write_rows(root / "answers.jsonl", texts)
    trained = call(
        "mrm", "train", "--data", root / "choices.jsonl", "--out", root / "run",
        "--features.path", root / "features.npz", "--methods", "bayes",
        "--select", "bayes", "--seeds", "1", "--shots", "0", "5", "--draws", "50",
        "--split.item_folds", "0", "--adaptation.significance", "1", "--bayes.em_steps", "9",
        "--bayes.pseudo_users", "10", "--bayes.strengths", "1", "--bayes.temperatures", "1",
        "--adaptation.folds", "0", "--adaptation.tolerated_harm", "1",
    )  # fmt: skip
    assert trained.code == 0, trained.err
    adapted = call(*adapt_words(root))
    assert adapted.code == 0, adapted.err
    return SimpleNamespace(root=root, trained=trained, adapted=adapted)


def adapt_words(root, *more):
    return (
        "mrm", "adapt", "--model", root / "run", "--data", root / "choices.jsonl",
        "--features", root / "features.npz", *more,
    )  # fmt: skip


def ranked(root, user):
    found = call(
        "mrm", "rank", "--model", root / "run", "--user", user, "--texts", root / "answers.jsonl",
        "--features", root / "features.npz", "--json",
    )  # fmt: skip
    assert found.code == 0, found.err
    return [json.loads(line) for line in found.out.splitlines()]


def test_training_says_what_reads_ratings_and_what_does_not(exported):
    said = " ".join(exported.trained.err.split())
    assert "400 choices and 150 ratings of 22 users" in said
    assert "150 ratings left out by bt, bt_items: they learn from choices alone" in said
    assert (
        "**The settings chose** new_users: bayes" in (exported.root / "run/report.md").read_text()
    )
    assert "22 users" in exported.adapted.out
    assert "left out" not in exported.adapted.err


@pytest.mark.parametrize("user", ["0", "1", "20", "21"])
def test_a_ranking_follows_choices_and_ratings_alike(exported, user):
    """Users 20 and 21 have rated single answers and chosen between none."""
    first, *_, last = ranked(exported.root, user)
    liked, other = ("short", "long") if int(user) % 2 else ("long", "short")
    assert first["text"].startswith(liked)
    assert last["text"].startswith(other)
    assert first["probability"] > 0.55


def test_a_rater_is_described_with_the_number_of_ratings(exported):
    words = ("mrm", "describe", "--model", exported.root / "run", "--user")
    found = {user: json.loads(call(*words, user, "--json").out) for user in ("1", "21")}
    assert [(one["choices"], one["ratings"]) for one in found.values()] == [(20, 5), (0, 25)]
    short = next(one for one in found["21"]["rewards"] if one["name"] == "short")
    assert short["certainty"] != "open"
    assert short["low"] > 0
    assert "user 21, from 25 ratings and all other users:" in call(*words, "21").out
    assert "user 1, from 20 choices, 5 ratings and all other users:" in call(*words, "1").out


def test_the_weights_of_a_rater_are_the_posterior_of_the_ratings(exported):
    """From the file's own rows, without the tables, padding and groups of the command."""
    model = mrm.load(exported.root / "run")
    rows = [json.loads(line) for line in (exported.root / "choices.jsonl").read_text().splitlines()]
    mine = [row for row in rows if row["user"] == "21"]
    table = load_features(exported.root / "features.npz")
    base = model.base(np.stack([table.values[table.ids.index(row["answer"])] for row in mine]))
    prior = prior_from(
        model.fitted["populations"]["1"], mrm.Levels(ratings=(2,)), model.candidate
    )  # fmt: skip
    up = np.array([[row["rating"] > 0 for row in mine]]).astype(np.int32)
    shape = up.shape
    ends = mrm.Levels(ratings=(2,)).rating(0, up)
    feedback = mrm.Feedback(base[None], np.ones(shape, bool), *ends, np.ones(shape, np.float32))
    expected = mrm.feedback_posterior(prior, feedback)
    found = mrm.user_state(model, "21")
    np.testing.assert_allclose(found.mean, expected.mean[0], atol=1e-4)
    mean, cov = mrm.weights_of(model, found)
    np.testing.assert_allclose(mean, expected.mean[0], atol=1e-4)
    np.testing.assert_allclose(cov, expected.cov[0], atol=1e-4)


def test_ratings_that_come_later_count_as_if_all_had_come_together(exported, tmp_path):
    lines = (exported.root / "choices.jsonl").read_text().splitlines(keepends=True)
    users = tmp_path / "users.sqlite"
    for number, update in ((0, ()), (1, ("--update",))):
        part = tmp_path / f"part{number}.jsonl"
        part.write_text("".join(lines[number::2]))
        words = (
            "mrm", "adapt", "--model", exported.root / "run", "--data", part,
            "--features", exported.root / "features.npz", "--out", users, "--skip-accuracy",
        )  # fmt: skip
        done = call(*words, *update)
        assert done.code == 0, done.err
    whole, pieces = mrm.load(exported.root / "run").users, mrm.open_users(users)
    for user in ("1", "20", "21"):
        one, other = whole.get(user), pieces.get(user)
        assert one.choices == other.choices
        np.testing.assert_allclose(one.weights, other.weights, atol=1e-4)


def test_a_scale_that_training_has_not_seen_is_refused(exported, tmp_path):
    row = {"user": "x", "answer": "short answer 0", "rating": 3, "scale": [1, 5]}
    other = write_rows(tmp_path / "other.jsonl", [row])
    words = (
        "mrm", "adapt", "--model", exported.root / "run", "--data", other,
        "--features", exported.root / "features.npz", "--out", tmp_path / "users.sqlite",
    )  # fmt: skip
    refused(call(*words), "line 1", "the scale [1, 5]", "[-1, 1]")
    assert not (tmp_path / "users.sqlite").exists()


def test_a_saved_model_of_ratings_is_judged_again(exported):
    found = call(
        "mrm", "evaluate", "--model", exported.root / "run", "--data",
        exported.root / "choices.jsonl",
    )  # fmt: skip
    assert found.code == 0, found.err
    report = json.loads((exported.root / "run" / "report.json").read_text())
    judged = json.loads(found.out)
    assert judged["accuracy"] == pytest.approx(report["new_users"]["bayes"]["accuracy"], abs=1e-4)
    # Thumbs of users who like short answers or long ones: better with the user's other rows.
    assert judged["ratings"] > 0
    assert judged["rating_nll"] < judged["rating_nll_unadapted"]
    assert judged["rating_nll_unadapted"] == pytest.approx(np.log(2), abs=0.2)


def test_held_out_ratings_count_once_whatever_their_weight(exported, tmp_path):
    rows = [json.loads(line) for line in (exported.root / "choices.jsonl").read_text().splitlines()]
    light = write_rows(tmp_path / "light.jsonl", [{**row, "weight": 0.25} for row in rows])
    words = ("mrm", "evaluate", "--model", exported.root / "run", "--data")
    found = [json.loads(call(*words, p).out) for p in (exported.root / "choices.jsonl", light)]
    assert found[0]["ratings"] == found[1]["ratings"] > 0
    # Without anything of the user, the same ratings are predicted alike.
    assert found[0]["rating_nll_unadapted"] == pytest.approx(found[1]["rating_nll_unadapted"])


def test_a_model_of_ratings_is_judged_on_choices_alone(exported, tmp_path):
    rows = [json.loads(line) for line in (exported.root / "choices.jsonl").read_text().splitlines()]
    plain = write_rows(tmp_path / "plain.jsonl", [row for row in rows if "chosen" in row])
    found = call("mrm", "evaluate", "--model", exported.root / "run", "--data", plain)
    assert found.code == 0, found.err
    assert not {"ratings", "rating_nll"} & set(json.loads(found.out))
