"""PRISM and Reddit TL;DR, from files with the fields of the real ones and from a stand-in Hub."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_lms

from jaxalign import data
from jaxalign.cli import main
from jaxalign.data import feedback
from jaxalign.data.splits import episodes, learned_from
from jaxalign.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def said(turn, role, content, within=0, score=None, chosen=None):
    """An entry of `conversation_history`, with the fields of the real file."""
    model = {"model_name": None, "model_provider": None}
    if role == "model":
        model = {"model_name": "m", "model_provider": "p"}
    return {
        "turn": turn, "role": role, "content": content, **model, "score": score,
        "if_chosen": chosen, "within_turn_id": within,
    }  # fmt: skip


def conversation(user, number, history):
    return {
        "conversation_id": f"c{number}", "user_id": user, "conversation_type": "unguided",
        "opening_prompt": history[0]["content"], "conversation_turns": 2,
        "conversation_history": history, "open_feedback": "fine", "timing_duration_s": 1.5,
    }  # fmt: skip


def talk(user, number):
    """Two turns: four answers in the first, two in the second."""
    first = [said(0, "user", f"prompt {user} {number}")]
    first += [said(0, "model", f"answer {user} {number} {i}", i, 50 + i, i == 2) for i in range(4)]
    second = [said(1, "user", "and then?")]
    second += [said(1, "model", f"more {user} {number} {i}", i, 50 + i, i == 0) for i in range(2)]
    # The order of entries is not the order of turns.
    return conversation(user, number, second + first)


def prism_rows(users=6, each=6):
    rows = [talk(f"u{u}", f"{u}-{c}") for u in range(users) for c in range(each)]
    rows.append(talk("rare", "r-0"))
    nothing = [said(0, "user", "hello"), said(0, "model", "only one", 0, 70, True)]
    rows.append(conversation("u0", "0-x", nothing))
    return rows


def comparison(worker, post, texts, choice, split, **info):
    return {
        "info": {
            "id": "t3_x", "post": post, "title": "t", "subreddit": "s", "site": None,
            "article": None, **info,
        },
        "summaries": [{"text": text, "policy": "ref", "note": "ok"} for text in texts],
        "choice": choice, "worker": worker, "batch": "b", "split": split,
        "extra": {"confidence": 3},
    }  # fmt: skip


def reddit_rows(workers=8, each=9):
    """Rows of the two files, each worker in both but the last two."""
    train = [
        comparison(f"w{w}", f"post {w} {i}", (f"a {w} {i}", f"b {w} {i}"), i % 2, "train")
        for w in range(workers - 1)
        for i in range(each)
    ]
    validation = [
        comparison(f"w{w}", f"news {w} {i}", (f"c {w} {i}", f"d {w} {i}"), i % 2, "valid1")
        for w in [*range(workers - 2), workers - 1]
        for i in range(each)
    ]
    return train, validation


def jsonl(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def write(folder, stem, rows, ending=".jsonl"):
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / (stem + ending)
    if ending == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        jsonl(path, rows)
    return path


@pytest.fixture
def prism_folder(tmp_path):
    write(tmp_path / "prism", "conversations", prism_rows())
    return tmp_path / "prism"


@pytest.fixture
def reddit_folder(tmp_path):
    for stem, rows in zip(("train", "validation"), reddit_rows(), strict=True):
        write(tmp_path / "reddit", stem, rows)
    return tmp_path / "reddit"


def readable(table):
    """Every choice in words."""
    texts = [getattr(text, "turns", text) for text in table.texts]
    columns = (table.user, table.chosen, table.rejected)
    return [(table.users[u], texts[c], texts[r]) for u, c, r in zip(*columns, strict=True)]


def test_prism_turns_are_choices_with_their_history(prism_folder):
    source = data.load_source(prism_folder)
    table = source.choices
    assert table.users == tuple(f"u{i}" for i in range(6))
    # Three in the first turn, one in the second, in 6 conversations of each of 6 users.
    assert (len(table), source.dropped, table.held_out) == (6 * 6 * 4, 0, None)
    rows = readable(table)
    start = "prompt u0 0-0"
    good = "answer u0 0-0 2"
    assert rows[:4] == [
        ("u0", (start, good), (start, f"answer u0 0-0 {other}")) for other in (0, 1, 3)
    ] + [
        (
            "u0",
            (start, good, "and then?", "more u0 0-0 0"),
            (start, good, "and then?", "more u0 0-0 1"),
        )
    ]
    assert table.texts[table.chosen[3]] == f"{start}\n\n{good}\n\nand then?\n\nmore u0 0-0 0"
    groups = [set(table.group[table.user == user].tolist()) for user in range(6)]
    assert all(len(group) == 6 for group in groups)
    assert len(set.union(*groups)) == 36
    assert len(set(table.items)) == len(table.items) == 6 * 6 * 6
    assert table.prompt.max() == 71  # one for each turn


@pytest.mark.parametrize("ending", [".jsonl.gz", ".parquet"])
def test_other_files_hold_the_same(prism_folder, reddit_folder, tmp_path, ending):
    parts = {
        "conversations": prism_rows(),
        **dict(zip(("train", "validation"), reddit_rows(), strict=True)),
    }
    write(tmp_path / "p", "conversations", parts["conversations"], ending)
    for stem in ("train", "validation"):
        write(tmp_path / "r" / "comparisons", stem, parts[stem], ending)
    one_file = tmp_path / "p" / f"conversations{ending}"
    for mine, theirs in (
        (prism_folder, one_file),
        (prism_folder, tmp_path / "p"),
        (reddit_folder, tmp_path / "r"),
    ):
        one, two = data.load_source(mine).choices, data.load_source(str(theirs)).choices
        assert (one.users, one.items, one.texts) == (two.users, two.items, two.texts)
        for name in ("user", "chosen", "rejected", "group", "prompt"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_fewer_conversations_keep_more_users(prism_folder):
    assert "rare" in data.prism(prism_folder, least_conversations=1).choices.users
    with pytest.raises(InputError, match=r"no user has 7 conversations .* most are 6"):
        data.prism(prism_folder, least_conversations=7)


def test_no_choice_is_left_out_and_counted(tmp_path):
    def turn(answers, number):
        history = [said(0, "user", "same prompt")]
        history += [said(0, "model", text, i, 1, i == 0) for i, text in enumerate(answers)]
        return conversation("u", number, history)

    rows = [turn(("a", "b"), 1), turn(("a", "a", " "), 2), turn(("b", "a", "c"), 3)]
    write(tmp_path, "conversations", rows)
    source = data.prism(tmp_path, least_conversations=3)
    # a over a, a over nothing, and b over a after a over b.
    assert source.dropped == 3
    assert source.choices.notes[0].startswith("3 choices left out: both answers are the same")
    found = readable(source.choices)
    prompt = "same prompt"
    assert found == [("u", (prompt, "a"), (prompt, "b")), ("u", (prompt, "b"), (prompt, "c"))]


def test_reddit_keeps_its_own_split(reddit_folder):
    table = data.load_source(reddit_folder).choices
    assert table.users == tuple(f"w{i}" for i in range(6))
    assert len(table) == 6 * 18
    rows = readable(table)
    assert rows[0] == ("w0", ("post 0 0", "a 0 0"), ("post 0 0", "b 0 0"))
    assert rows[1] == ("w0", ("post 0 1", "b 0 1"), ("post 0 1", "a 0 1"))
    held_out = np.array([chosen[0].startswith("news") for _, chosen, _ in rows])
    np.testing.assert_array_equal(table.held_out, held_out)
    np.testing.assert_array_equal(table.take(np.arange(30)).held_out, held_out[:30])
    cut = episodes(table, table.users[:3], 0, 4, 0)
    for support, query in zip(cut.support, cut.query, strict=True):
        assert (len(support), len(query)) == (4, 9)
        assert not held_out[support].any()
        assert held_out[query].all()
    for rows_of_user in learned_from(table, table.users):
        assert len(rows_of_user) == 9
        assert not held_out[rows_of_user].any()


def test_news_has_an_article_where_reddit_has_a_post(tmp_path):
    train, validation = reddit_rows(workers=3)
    validation[0]["info"] |= {"post": None, "article": "the news"}
    write(tmp_path, "train", train)
    write(tmp_path, "validation", validation)
    assert ("w0", ("the news", "c 0 0"), ("the news", "d 0 0")) in readable(
        data.reddit(tmp_path).choices
    )


def test_without_a_split_of_its_own_groups_are_cut(prism_folder):
    table = data.prism(prism_folder).choices
    assert [len(rows) for rows in learned_from(table, table.users)] == [24] * 6
    cut = episodes(table, table.users, 0, 0, 0)
    for support, query in zip(cut.support, cut.query, strict=True):
        assert not set(table.group[support]) & set(table.group[query])


def damage(rows, change):
    change(rows[1])
    return rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.pop("user_id"), r"conversations.jsonl, line 2: `user_id` is missing"),
        (lambda row: row.update(conversation_history="x"), "line 2: `conversation_history` is 'x'"),
        (lambda row: row["conversation_history"][2].pop("if_chosen"), "entry 3: `if_chosen`"),
        (
            lambda row: row["conversation_history"][0].update(turn=None),
            "entry 1: `turn` is missing",
        ),
        (
            lambda row: row["conversation_history"][0].update(content=7),
            "`content` is 7, expected text",
        ),
        (lambda row: row["conversation_history"].insert(0, "hi"), "entry 1: found hi, expected an"),
    ],
)
def test_wrong_rows_of_prism_are_named(tmp_path, change, message):
    write(tmp_path, "conversations", damage(prism_rows(), change))
    with pytest.raises(InputError, match=message):
        data.prism(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.pop("worker"), r"train.jsonl, line 2: `worker` is missing, expected text"),
        (lambda row: row.update(choice=2), "line 2: found 2 `summaries` and `choice` 2"),
        (lambda row: row.update(choice=True), "`choice` is True, expected a whole number"),
        (lambda row: row["summaries"].pop(), "found 1 `summaries`"),
        (lambda row: row["summaries"][0].pop("text"), "`summaries`: `text` is missing"),
        (lambda row: row["info"].update(post=None), "`post` is missing"),
        (lambda row: row.update(info=3), "`info` is 3, expected an object"),
    ],
)
def test_wrong_rows_of_reddit_are_named(tmp_path, change, message):
    train, validation = reddit_rows()
    write(tmp_path, "train", damage(train, change))
    write(tmp_path, "validation", validation)
    with pytest.raises(InputError, match=message):
        data.reddit(tmp_path)


def test_folders_that_are_neither_say_what_was_expected(tmp_path, reddit_folder):
    with pytest.raises(InputError, match=r"has no conversations.jsonl .* HannahRoseKirk"):
        data.prism(reddit_folder)
    with pytest.raises(InputError, match="PRISM"):
        data.load_source(tmp_path)
    (reddit_folder / "validation.jsonl").write_text("")
    with pytest.raises(InputError, match="is empty"):
        data.reddit(reddit_folder)
    strangers = [row | {"worker": "x"} for row in reddit_rows()[1]]
    write(reddit_folder, "validation", strangers)
    with pytest.raises(InputError, match="none of its 8 workers is in both"):
        data.reddit(reddit_folder)
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "conversations.parquet").write_text("no")
    with pytest.raises(InputError, match="not a readable Parquet"):
        data.load_source(tmp_path / "p")


class Hub:
    """Stands for `datasets.load_dataset`; a data set of scripts is only there as converted."""

    def __init__(self, tables, scripts=()):
        self.tables, self.scripts, self.calls = tables, scripts, []

    def __call__(self, path, name=None, *, split, data_dir=None, revision=None):
        self.calls.append((path, split))
        converted = revision == "refs/convert/parquet"
        config = data_dir if converted else name
        if converted != (path in self.scripts) or (path, config, split) not in self.tables:
            raise ConnectionError("no route to host\nmore")
        return iter(self.tables[path, config, split])


def test_names_on_the_hub_are_loaded_through_datasets(monkeypatch, prism_folder, reddit_folder):
    import datasets

    train, validation = reddit_rows()
    hub = Hub(
        {
            (feedback.PRISM, "conversations", "train"): prism_rows(),
            (feedback.REDDIT, "comparisons", "train"): train,
            (feedback.REDDIT, "comparisons", "validation"): validation,
        },
        scripts=(feedback.REDDIT,),
    )
    monkeypatch.setattr(datasets, "load_dataset", hub)
    for name, folder in ((feedback.PRISM, prism_folder), (feedback.REDDIT, reddit_folder)):
        one, two = data.load_source(name).choices, data.load_source(folder).choices
        assert (one.users, one.items, one.texts) == (two.users, two.items, two.texts)
        np.testing.assert_array_equal(one.chosen, two.chosen)
        assert one.source == name
    # PRISM at once, Reddit's two splits after the script was refused.
    assert len(hub.calls) == 1 + 2 * 2


def test_no_network_is_one_sentence(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", Hub({}))
    for name in (feedback.PRISM, feedback.REDDIT):
        with pytest.raises(
            InputError, match=r"cannot be loaded .*ConnectionError: no route to host"
        ) as e:
            data.load_source(name)
        assert "\n" not in str(e.value)
        assert "give their folder" in str(e.value)


# The whole way ----------------------------------------------------------------------------------

QUICK = {
    "methods": "mrm_published", "mrm_published.epochs": 2, "mrm_published.snapshots": 1,
    "seeds": 1, "shots": 0, "draws": 50, "features.max_dims": 4,
}  # fmt: skip


def options(**more):
    return [word for key, value in (QUICK | more).items() for word in (f"--{key}", str(value))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("prism", {"conversations": prism_rows(users=12)}),
        ("reddit", dict(zip(("train", "validation"), reddit_rows(workers=14), strict=True))),
    ],
)
def test_the_presets_run_from_embed_to_report(tmp_path, monkeypatch, name, rows):
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "cache"))
    for stem, content in rows.items():
        write(tmp_path / name, stem, content)
    trunk = tiny_lms.write(tmp_path / "trunk", "llama", labels=1)
    table, out = tmp_path / f"{name}.npz", tmp_path / "run"
    source = ["--data", str(tmp_path / name)]
    assert main(["embed", *source, "--model", str(trunk), "--out", str(table)]) == 0
    choices = data.load_source(tmp_path / name).choices
    features = data.load_features(table)
    assert features.ids == choices.items
    assert features.values.shape == (len(choices.items), 32)
    train = ["mrm", "train", "--config", str(ROOT / f"configs/mrm/{name}.yaml"), *source]
    by_table = options(**{"features.path": table})
    assert main([*train, "--out", str(out), *by_table]) == 0
    report = json.loads((out / "report.json").read_text())
    assert set(report["new_users"]) == {"bt", "bt_items", "mrm_published"}
    # Half of the users are test users, and each has enough to be judged on.
    assert report["users"]["dropped"] == {"validation": 0, "test": 0}
    # The trunk itself serves as the encoder of a run, with the same features.
    by_trunk = options(**{"features.model": trunk})
    assert main([*train, "--out", str(tmp_path / "again"), *by_trunk]) == 0
    again = json.loads((tmp_path / "again/report.json").read_text())
    assert again["new_users"]["bt"] == report["new_users"]["bt"]
