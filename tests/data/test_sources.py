import gzip
import json

import numpy as np
import pytest
from shared_data import shared

from jaxalign import data
from jaxalign.errors import InputError


def write_gz(path, text):
    path.write_bytes(gzip.compress(text.encode()))


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def jokes(tmp_path):
    """Twelve jokes, seven users; u0 rated only three of them."""
    rng = np.random.default_rng(0)
    (tmp_path / "jokes.jsonl").write_text(
        lines({"id": f"j{i}", "text": f"joke {i}"} for i in range(12))
    )
    ratings = [
        f"u{user},j{joke},{rng.uniform(-10, 10):.2f}"
        for user in (3, 1, 0, 2, 6, 5, 4)
        for joke in rng.permutation(12)[: 3 if user == 0 else 10]
    ]
    write_gz(tmp_path / "ratings.csv.gz", "user,joke,rating\n" + "\n".join(ratings) + "\n")
    return tmp_path


@pytest.fixture
def arguments(tmp_path):
    """Three debates, the first with two sides; w0 contradicts an earlier vote, w1 a tie."""
    texts = [
        {
            "id": f"{topic}/{i}",
            "topic": topic,
            "title": topic[0],
            "stance": "s",
            "text": f"{topic}{i}",
        }
        for topic in ("a-yes", "a-no", "b-yes", "c-yes")
        for i in "123"
    ]
    write_gz(tmp_path / "arguments.jsonl.gz", lines(texts))
    votes = [
        ("w0", "a-yes", "1", "2", "a2", "2016-01-03"),
        ("w0", "a-yes", "2", "1", "a2", "2016-01-01"),
        ("w1", "a-yes", "1", "2", "equal", "2016-01-02"),
        ("w1", "a-yes", "2", "1", "a1", "2016-01-04"),
        ("w1", "b-yes", "1", "3", "a1", "2016-01-05"),
    ]
    names = ("user", "topic", "a1", "a2", "label", "time")
    rows = [dict(zip(names, vote, strict=True)) for vote in votes]
    write_gz(tmp_path / "judgments.jsonl.gz", lines(rows))
    return tmp_path


def ratings_of(folder):
    text = gzip.decompress((folder / "ratings.csv.gz").read_bytes()).decode()
    rows = (line.split(",") for line in text.splitlines()[1:])
    return {(user, joke): float(rating) for user, joke, rating in rows}


def check_jester(source, folder, margin, limit):
    ratings, choices, folds = ratings_of(folder), source.choices, source.fold_of_item
    for table in (choices, source.fold_choices):
        for row in range(0, len(table), 1 + len(table) // 500):
            user = table.users[table.user[row]]
            better, worse = (table.items[i[row]] for i in (table.chosen, table.rejected))
            assert ratings[user, better] - ratings[user, worse] >= margin - 1e-9
    np.testing.assert_array_equal(choices.group // 2, choices.user)
    assert np.bincount(choices.group).max() <= limit
    low, high = np.sort([choices.chosen, choices.rejected], axis=0)
    assert len(np.unique((choices.user.astype(np.int64) * 1000 + low) * 1000 + high)) == len(
        choices
    )
    # No joke of a user is in both halves.
    jokes = np.r_[choices.chosen, choices.rejected]
    seen = np.unique(np.r_[choices.group, choices.group] * 1000 + jokes)
    assert len(np.unique(seen // 2000 * 1000 + seen % 1000)) == len(seen)
    inside = source.fold_choices
    np.testing.assert_array_equal(folds[inside.chosen], inside.group)
    np.testing.assert_array_equal(folds[inside.rejected], inside.group)
    assert (inside.users, inside.items, inside.texts) == (
        choices.users,
        choices.items,
        choices.texts,
    )


def test_jester_on_a_small_folder(jokes):
    source = data.jester(jokes, margin=2.0, pairs_per_half=4, item_folds=3)
    check_jester(source, jokes, 2.0, 4)
    assert source.choices.users == tuple(f"u{i}" for i in range(7))
    assert source.choices.items[:2] == ("j0", "j1")
    assert source.choices.texts[1] == "joke 1"
    np.testing.assert_array_equal(np.bincount(source.fold_of_item), [4, 4, 4])
    assert not source.choices.tie.any()


def test_jester_takes_all_pairs_where_the_limit_allows(jokes):
    choices = data.jester(jokes, margin=1e-6, pairs_per_half=100, item_folds=3).choices
    # Ten rated jokes are two halves of five: ten pairs each.
    np.testing.assert_array_equal(np.bincount(choices.user)[1:], 20)
    ratings = ratings_of(jokes)
    inside = data.jester(jokes, margin=3.0, item_folds=1).fold_choices
    wide = sum(
        ratings[a] - ratings[b] >= 3 - 1e-9
        for a in ratings
        for b in ratings
        if a[0] == b[0] and a != b
    )
    assert len(inside) == wide


def test_jester_depends_on_the_seed_and_not_on_the_order_of_ratings(jokes):
    first = data.jester(jokes, item_folds=3)
    path = jokes / "ratings.csv.gz"
    head, *rest = gzip.decompress(path.read_bytes()).decode().splitlines()
    write_gz(path, "\n".join([head, *reversed(rest)]) + "\n")
    again = data.load_source(jokes, item_folds=3, fold_pairs=False)
    other = data.jester(jokes, item_folds=3, seed=1)
    assert again.fold_choices is None
    np.testing.assert_array_equal(first.choices.chosen, again.choices.chosen)
    np.testing.assert_array_equal(first.fold_of_item, again.fold_of_item)
    assert not np.array_equal(first.choices.chosen[:20], other.choices.chosen[:20])


def test_a_difference_just_at_the_margin_counts(jokes):
    write_gz(jokes / "ratings.csv.gz", "user,joke,rating\nu,j1,5.1\nu,j2,2.1\n")
    assert len(data.jester(jokes, item_folds=1).fold_choices) == 1


def test_ukpconvarg1_on_a_small_folder(arguments):
    source = data.load_source(arguments)
    choices = source.choices
    # The vote of 2016-01-03 contradicts the one of 2016-01-01, though it comes first in the file.
    assert source.dropped == 1
    note = "1 vote left out: the same user had voted the other way before"
    assert choices.notes == (note,)
    assert len(choices) == 4
    picked = [
        (choices.items[c], choices.items[r])
        for c, r in zip(choices.chosen, choices.rejected, strict=True)
    ]
    assert picked == [
        ("a-yes/1", "a-yes/2"),
        ("a-yes/1", "a-yes/2"),
        ("a-yes/2", "a-yes/1"),
        ("b-yes/1", "b-yes/3"),
    ]
    np.testing.assert_array_equal(choices.tie, [False, True, False, False])
    np.testing.assert_array_equal(choices.prompt, [0, 0, 0, 1])
    np.testing.assert_array_equal(choices.group, [0, 1, 1, 2])
    assert choices.texts[0] == "a-yes1"
    folds = source.fold_of_item
    assert len(set(folds[:6].tolist())) == 1
    assert len(set(folds.tolist())) == 3
    assert source.fold_choices is None


def test_ukpconvarg1_without_ties(arguments):
    choices = data.ukpconvarg1(arguments, ties=False).choices
    assert len(choices) == 3
    assert not choices.tie.any()


def test_a_preference_file_is_a_source(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(lines([{"user": "u", "chosen": "a", "rejected": "b"}]))
    source = data.load_source(path)
    assert len(source.choices) == 1
    assert source.fold_choices is None
    assert source.fold_of_item is None


def refused(call, *parts):
    with pytest.raises(InputError) as caught:
        call()
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_folders_kinds_and_options_that_cannot_be_used(tmp_path, jokes):
    empty = tmp_path / "other"
    empty.mkdir()
    refused(lambda: data.load_source(empty), "holds nothing", "jokes.jsonl", "judgments.jsonl.gz")
    (empty / "x.txt").write_text("x")
    refused(lambda: data.load_source(empty), "holds x.txt", "name a preference file")
    refused(lambda: data.load_source(empty, kind="jester"), "has no jokes.jsonl")
    refused(lambda: data.load_source(jokes, kind="ukpconvarg1"), "has no judgments.jsonl.gz")
    refused(lambda: data.load_source(jokes, kind="jokes"), "kind is 'jokes'", "expected auto")
    refused(lambda: data.load_source(jokes, margn=2), "jester has no option 'margn'")
    refused(lambda: data.load_source("x.jsonl", seed=2), "takes no ['seed']")
    refused(lambda: data.jester(jokes, margin=0.0, item_folds=3), "margin 0.0")
    refused(lambda: data.jester(jokes, item_folds=13), "item_folds 13", "1 to 12")
    refused(lambda: data.jester(jokes, pairs_per_half=0), "pairs_per_half 0")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("user,joke\nu,j1\n", ("no column `rating`",)),
        ("user,joke,rating\nu,j1,good\n", ("line 2", "good", "a finite number")),
        ("user,joke,rating\nu,j99,1\n", ("'j99'", "jokes.jsonl")),
        ("user,joke,rating\nu,j1,\n", ("line 2: `rating` is missing",)),
        ("user,joke,rating\nu,j1,1\nu,j1,2\n", ("2 ratings of 1", "each once")),
    ],
)
def test_bad_ratings_are_named(jokes, text, parts):
    write_gz(jokes / "ratings.csv.gz", text)
    refused(lambda: data.jester(jokes, item_folds=3), "ratings.csv.gz", *parts)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"label": "a3"}, ("line 1", "`label` is 'a3'")),
        ({"a1": "9"}, ("line 1", "'a-yes/9' is no known argument")),
        ({"user": None}, ("line 1", "`user` is missing")),
    ],
)
def test_bad_votes_are_named(arguments, change, parts):
    vote = {"user": "w", "topic": "a-yes", "a1": "1", "a2": "2", "label": "a1", "time": "t"}
    write_gz(arguments / "judgments.jsonl.gz", lines([{**vote, **change}]))
    refused(lambda: data.ukpconvarg1(arguments), "judgments.jsonl.gz", *parts)


def test_jokes_with_one_id_twice_are_refused(jokes):
    (jokes / "jokes.jsonl").write_text(lines([{"id": "j1", "text": "x"}] * 2))
    refused(lambda: data.jester(jokes), "jokes.jsonl", "unique ids")


def test_the_real_jester():
    folder = shared("jester5k")
    source = data.load_source(folder)
    check_jester(source, folder, 3.0, 40)
    assert len(source.choices.users) == 5000
    assert len(source.choices.items) == 100
    assert len(source.choices) > 390_000
    np.testing.assert_array_equal(np.bincount(source.fold_of_item), [10] * 10)


def test_the_real_ukpconvarg1():
    source = data.load_source(shared("ukpconvarg1"))
    assert len(source.choices) == 84_445
    assert int((~source.choices.tie).sum()) == 65_340
    assert len(source.choices.users) == 3_815
    assert len(source.choices.items) == 1_052
    assert source.dropped == 0
    assert set(source.fold_of_item.tolist()) == set(range(10))
