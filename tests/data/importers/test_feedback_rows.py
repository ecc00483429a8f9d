"""Imported feedback is what user reward models learn from: choices, with ratings counted."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxalign.cli import main
from jaxalign.data import load
from jaxalign.errors import InputError

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
    with pytest.raises(InputError, match="holds 2 ratings and no choices, expected choices"):
        load(written(tmp_path, "jsonl", [RATING, RATING]))


def test_from_an_export_of_a_chat_application_to_a_ranking(tmp_path, capsys):
    """Thumbs of 20 people on answers of the same chats, through import, train, adapt and rank."""
    rng, exported = np.random.default_rng(0), []
    for user in range(20):
        for chat in range(20):
            texts = {name: f"{name} answer {chat}" for name in ("short", "long")}
            liked = "short" if rng.random() < (0.9 if user % 2 else 0.2) else "long"
            nodes = {"q": {"id": "q", "parentId": None, "role": "user", "content": f"Ask {chat}"}}
            for name, text in texts.items():
                nodes[name] = {"id": name, "parentId": "q", "role": "assistant", "content": text}
            snapshot = {"chat": {"chat": {"history": {"messages": nodes}}}}
            for name in texts:
                exported.append({
                    "id": f"{user}-{chat}-{name}", "user_id": user, "type": "rating",
                    "data": {"rating": 1 if name == liked else -1}, "snapshot": snapshot,
                    "meta": {"chat_id": f"c{user}-{chat}", "message_id": name},
                })  # fmt: skip
    export, choices = tmp_path / "export.json", tmp_path / "choices.jsonl"
    export.write_text(json.dumps(exported))
    assert main(["import", "auto", str(export), "--out", str(choices)]) == 0
    assert "400 choices and 800 ratings of 20 users" in capsys.readouterr().out
    rows = [json.loads(line) for line in choices.read_text().splitlines()]
    items = sorted({row["answer"] for row in rows if "answer" in row})
    features = tmp_path / "features.npz"
    vectors = [[item.startswith("short"), item.startswith("long"), 0.1] for item in items]
    np.savez(features, features=np.asarray(vectors, np.float32), ids=np.asarray(items))
    out, answers = tmp_path / "run", tmp_path / "answers.jsonl"
    assert main([
        "mrm", "train", "--data", str(choices), "--out", str(out), "--features.path", str(features),
        "--methods", "bayes", "--seeds", "1", "--shots", "0", "5", "--draws", "50",
        "--split.item_folds", "0",
    ]) == 0  # fmt: skip
    assert "800 ratings left out" in capsys.readouterr().err
    call = [
        "mrm",
        "adapt",
        "--model",
        str(out),
        "--data",
        str(choices),
        "--features",
        str(features),
    ]
    assert main(call) == 0
    answers.write_text(
        "".join(json.dumps({"id": item, "text": item}) + "\n" for item in items[-1::-20])
    )
    first = {}
    for user in ("0", "1"):
        capsys.readouterr()
        assert main([
            "mrm", "rank", "--model", str(out), "--user", user, "--texts", str(answers),
            "--features", str(features), "--json",
        ]) == 0  # fmt: skip
        first[user] = json.loads(capsys.readouterr().out.splitlines()[0])
    # The odd ones mostly like the short answer.
    assert first["0"]["text"].startswith("long")
    assert first["1"]["text"].startswith("short")
