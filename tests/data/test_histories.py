"""Histories: the official pairs of files, JSON lines, every refusal, and the real headlines."""

import json

import numpy as np
import pytest
from shared_data import shared

from jaxalign import data
from jaxalign.data import dates, lamp
from jaxalign.data.histories import leading_category
from jaxalign.errors import InputError

ASK = "Generate a headline for the following article: "

QUESTIONS = {
    "LaMP_1": 'For an author who has written the paper with the title "Deep, wide", which '
    'reference is related? Just answer with [1] or [2] without explanation. [1]: "A "b" c" '
    '[2]: "D"',
    "LaMP_2": "Which tag does this movie relate to among the following tags? Just answer with the "
    "tag name without further explanation. tags: [sci-fi] description: A description: of two",
    "LaMP_3": "What is the score of the following review on a scale of 1 to 5? just answer with "
    "1, 2, 3, 4, or 5 without further explanation. review: Good. ",
    "LaMP_4": ASK + "Rain fell.",
    "LaMP_5": "Generate a title for the following abstract of a paper: We show.",
    "LaMP_7": "Paraphrase the following tweet without any explanation before or after it: hi: you",
}
ITEMS = {
    "LaMP_1": {"title": "T", "abstract": "A"},
    "LaMP_2": {"description": "D", "tag": "comedy"},
    "LaMP_3": {"text": "X", "score": 4},
    "LaMP_4": {"text": "X", "title": "T"},
    "LaMP_5": {"title": "T", "abstract": "A"},
    "LaMP_7": {"text": "X"},
}


def item(number, date=None, **fields):
    told = {"id": number, "text": f"text {number}", "title": f"title {number}", **fields}
    return told if date is None else {**told, "date": date}


def question(number, profile, **fields):
    return {"id": str(number), "input": f"{ASK}{number}", "profile": profile, **fields}


def pair(folder, questions, golds=None, task="LaMP_4"):
    rows = [{"id": name, "output": "o" + name} for name in {one["id"]: None for one in questions}]
    golds = rows if golds is None else golds
    (folder / "questions.json").write_text(json.dumps(questions))
    (folder / "outputs.json").write_text(json.dumps({"task": task, "golds": golds}))
    return folder / "questions.json", folder / "outputs.json"


@pytest.mark.parametrize("task", [*QUESTIONS])
def test_reads_every_task(tmp_path, task):
    row = {"id": 7, "input": QUESTIONS[task], "profile": [{"id": "1", **ITEMS[task]}]}
    found = data.load_lamp(*pair(tmp_path, [{**row, "id": "7"}], task=task))
    assert (found.task, len(found), found.outputs, found.users) == (task, 1, ("o7",), ("7",))
    assert found.lengths.tolist() == [1]
    assert found.samples[0].input == QUESTIONS[task]


def test_what_the_encoders_read():
    texts = {
        "LaMP_1": ("T A", "T A", "Deep, wide"),
        "LaMP_2": ("D", "D tag: comedy", "A description: of two"),
        "LaMP_3": ("X", "X score: 4", "Good."),
        "LaMP_4": ("X T", "X T", "Rain fell."),
        "LaMP_5": ("T A", "T A", "We show."),
        "LaMP_7": ("X", "X", "hi: you"),
    }
    for task, (plain, labelled, query) in texts.items():
        assert lamp.item_text(task, ITEMS[task]) == plain
        assert lamp.item_text(task, ITEMS[task], labels=True) == labelled
        assert lamp.query_text(task, QUESTIONS[task]) == lamp.QUERY_PREFIX + query
        if task != "LaMP_1":
            assert lamp.retrieval_query(task, QUESTIONS[task]) == query
    assert lamp.retrieval_query("LaMP_1", QUESTIONS["LaMP_1"]) == 'A "b" c D'


def test_what_a_task_asks_about_becomes_its_question():
    """A user types an article, and the model gets the words that it was trained on."""
    for task in sorted({*QUESTIONS} - {"LaMP_1"}):
        question = QUESTIONS[task]
        assert lamp.format_question(task, question) == question
        if task != "LaMP_2":  # of whose tags the question above has one
            assert (
                lamp.format_question(task, lamp.query_text(task, question, "")) == question.rstrip()
            )
    whole = lamp.format_question("LaMP_2", "A film of two")
    assert whole.startswith("Which tag does this movie relate to")
    assert lamp.query_text("LaMP_2", whole, "") == "A film of two"
    assert lamp.format_question("huffpost", "Rain {fell}.") == ASK + "Rain {fell}."
    assert lamp.format_question("text", "anything") == "anything"
    with pytest.raises(InputError, match="has no `title"):
        lamp.format_question("LaMP_1", "Deep, wide")


def test_items_stand_once_and_histories_in_date_order(tmp_path):
    old, new, odd = item(1, "2012-05-03"), item(2, "2013"), item(3, "2012-11")
    rows = [
        question("a", [new, old, odd], user="u"),
        question("b", [old, new], user="u"),
        question("c", []),
    ]
    found = data.load_lamp(*pair(tmp_path, rows))
    assert [one.id for one in found.items] == ["2", "1", "3"]
    assert [sample.profile for sample in found.samples] == [(1, 2, 0), (1, 0), ()]
    assert found.users == ("u", "u", "c")
    assert found.notes == ("histories out of date order, which were sorted: 1",)
    assert found.item_texts()[0] == "text 2 title 2"
    assert found.query_texts("")[2] == "c"


def test_without_dates_the_order_of_the_file_stays(tmp_path):
    found = data.load_lamp(*pair(tmp_path, [question(1, [item(2), item(1)])]))
    assert [found.items[place].id for place in found.samples[0].profile] == ["2", "1"]
    assert found.notes == ()


def test_equal_dates_keep_the_order_of_the_file(tmp_path):
    rows = [question(1, [item(5, "2020-01-02"), item(4, "2020-01-02"), item(9, "2020-01-01")])]
    found = data.load_lamp(*pair(tmp_path, rows))
    assert [found.items[place].id for place in found.samples[0].profile] == ["9", "5", "4"]


def test_same_id_of_two_users_is_two_items(tmp_path):
    rows = [question(1, [item(1)]), question(2, [item(1, text="another")])]
    found = data.load_lamp(*pair(tmp_path, rows))
    assert [sample.profile for sample in found.samples] == [(0,), (1,)]


def test_repeated_and_blank_items_are_noted(tmp_path):
    rows = [question(1, [item(1), item(1), item(2, text=" ", title="")])]
    found = data.load_lamp(*pair(tmp_path, rows))
    assert found.lengths.tolist() == [1]
    assert found.notes == (
        "items repeated within a history, which were kept once: 1",
        "items without any text, which were left out: 1",
    )


def test_questions_alone(tmp_path):
    questions, _ = pair(tmp_path, [question(1, [item(1)])])
    found = data.load_lamp(questions, task="LaMP_4")
    assert found.samples[0].output is None
    with pytest.raises(InputError, match="question '1' has no answer"):
        _ = found.outputs
    with pytest.raises(InputError, match="names no task"):
        data.load_lamp(questions)


def bad(change):
    rows = [question(1, [item(1, "2020"), item(2, "2021")]), question(2, [item(3, "2020")])]
    change(rows)
    return rows


BAD_QUESTIONS = {
    r"profile\[0\]: `title` is missing \(the row has `id`, `text`": lambda rows: rows[0]["profile"][
        0
    ].pop("title"),
    r"profile\[1\]: `text` is None|profile\[1\]: `text` is missing": lambda rows: rows[0][
        "profile"
    ][1].update(text=None),
    r"profile\[1\]: `text` is \['a'\]": lambda rows: rows[0]["profile"][1].update(text=["a"]),
    r"profile\[0\]: found 'x', expected an object": lambda rows: rows[0].update(profile=["x"]),
    "`profile` is missing": lambda rows: rows[0].pop("profile"),
    "`profile` is {}": lambda rows: rows[0].update(profile={}),
    "`input` is missing": lambda rows: rows[0].pop("input"),
    "has no `article:`, which every question of LaMP_4": lambda rows: rows[1].update(input="hm"),
    "item id '1' stands for two different items": lambda rows: rows[0]["profile"][1].update(id=1),
    "row 2: id '1' comes twice": lambda rows: rows[1].update(id="1"),
    "item '2' has no `date` and 1 of 2 have one": lambda rows: rows[0]["profile"][1].pop("date"),
    "item '2': `date` is 'May 2020', expected year": lambda rows: rows[0]["profile"][1].update(
        date="May 2020"
    ),
    "`date` is '2020-13-01'": lambda rows: rows[0]["profile"][1].update(date="2020-13-01"),
    "item '2' is of 2021, after its question of 2020-06-01": lambda rows: rows[0].update(
        date="2020-06-01"
    ),
    "half of a surrogate pair": lambda rows: rows[0]["profile"][0].update(text="\ud800"),
}


@pytest.mark.parametrize("words", [*BAD_QUESTIONS])
def test_refuses_bad_questions(tmp_path, words):
    with pytest.raises(InputError, match=words) as caught:
        data.load_lamp(*pair(tmp_path, bad(BAD_QUESTIONS[words])))
    told = str(caught.value)
    assert told.startswith(str(tmp_path / "questions.json"))
    assert told.endswith(".")
    assert told.count(". ") == 0  # one sentence


def test_items_without_ids_are_named_by_their_content(tmp_path):
    rows = [question(1, [{"text": "x", "title": "t"}, {"text": "x", "title": "t"}])]
    found = data.load_lamp(*pair(tmp_path, rows))
    assert len(found.items) == 1
    assert len(found.items[0].id) == 16


@pytest.mark.parametrize(
    ("golds", "words"),
    [
        ([{"id": "1", "output": "a"}], "row 2: id '2' has no answer"),
        (
            [{"id": str(one), "output": "a"} for one in (1, 2, 3, 4)],
            r"answers id '3', which is no question in .* \(2 such ids\)",
        ),
        ([{"id": "1", "output": "a"}] * 2, "id '1' comes twice"),
    ],
)
def test_ids_must_join(tmp_path, golds, words):
    with pytest.raises(InputError, match=words):
        data.load_lamp(*pair(tmp_path, bad(lambda rows: None), golds))


def test_the_task_must_be_that_of_the_answers(tmp_path):
    files = pair(tmp_path, bad(lambda rows: None))
    with pytest.raises(InputError, match="answers LaMP_4, expected LaMP_5"):
        data.load_lamp(*files, task="LaMP_5")
    assert len(data.load_lamp(*files, task="LaMP_4")) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ('{"id": 1}', "`input` is missing"),
        ("[]", "is empty"),
        ("[1]", "row 1: found a JSON int, expected an object"),
        ('[{"id": "1"', "row 1: not readable as JSON"),
        ('[{"profile": []}]', "`id` is missing"),
    ],
)
def test_refuses_files_that_hold_no_questions(tmp_path, content, words):
    (tmp_path / "q.json").write_text(content)
    with pytest.raises(InputError, match=words):
        data.load_lamp(tmp_path / "q.json", task="LaMP_4")


def test_dates():
    ordered = ["2011", "2012", "2012-05", "2012-05-03", "2012-05-03T04:00", "2012-05-03 05:00:00Z"]
    keys = [dates.date_key(date, "here") for date in ordered]
    assert keys == sorted(keys)
    assert dates.date_key("2012-05-03T01:00+01:00", "here")[:4] == (2012, 5, 3, 0)
    for wrong in ("", "2012-02-30", "03/05/2012", "0", "20125", "yesterday"):
        with pytest.raises(InputError, match="here: `date` is"):
            dates.date_key(wrong, "here")


# JSON lines.


def history_file(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_json_lines(tmp_path):
    rows = [
        {"user": "u", "input": "ask", "output": "said", "history": ["one", "two", "one"]},
        {"user": 3, "input": "again", "history": [{"text": "two"}], "id": "mine"},
        {
            "user": "u",
            "input": "third",
            "history": [
                {"text": "late", "date": 2021, "category": "A"},
                {"text": "early", "date": "2020-02", "category": "B"},
            ],
            "date": "2021",
            "category": "A",
        },
    ]
    found = data.load_histories(history_file(tmp_path / "h.jsonl", rows))
    assert [sample.id for sample in found.samples] == ["1", "mine", "3"]
    assert found.users == ("u", "3", "u")
    assert [sample.profile for sample in found.samples] == [(0, 1), (1,), (3, 2)]
    assert found.item_texts() == ["one", "two", "late", "early"]
    assert found.query_texts("> ") == ["> ask", "> again", "> third"]
    assert found.samples[2].category == "A"
    assert leading_category(found, found.samples[2]) == "A"  # of two that tie the latest
    assert leading_category(found, found.samples[0]) is None
    assert len(found.notes) == 2


def test_json_lines_of_a_task(tmp_path):
    row = {"user": "u", "input": ASK + "x", "history": [{"text": "a", "title": "b"}]}
    path = history_file(tmp_path / "h.jsonl", [row])
    assert data.load_histories(path, "LaMP_4").item_texts() == ["a b"]
    history_file(path, [{**row, "input": "description: x"}])
    with pytest.raises(InputError, match=r"line 1, history\[0\]: `description` is missing"):
        data.load_histories(path, "LaMP_2")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"user": None}, "line 2: `user` is missing"),
        ({"input": "  "}, "line 2: `input` is empty"),
        ({"history": None}, "line 2: `history` is missing"),
        ({"history": [3]}, r"line 2, history\[0\]: found 3"),
        ({"history": [{"words": "a"}]}, r"history\[0\]: `text` is missing .the row has `words`"),
        ({"id": "1"}, "line 2: id '1' comes twice"),
        ({"output": ["a"]}, r"line 2: `output` is \['a'\]"),
        ({"history": [{"text": "a", "date": "x"}]}, "`date` is 'x'"),
        ({"date": "2020", "history": [{"text": "a", "date": "2021"}]}, "is of 2021, after its"),
    ],
)
def test_refuses_bad_lines(tmp_path, change, words):
    row = {"user": "u", "input": "ask", "history": []}
    path = history_file(tmp_path / "h.jsonl", [row, {**row, **change}])
    with pytest.raises(InputError, match=words):
        data.load_histories(path)


def test_parts_of_histories(tmp_path):
    rows = [{"user": str(one), "input": "ask", "history": ["a", str(one)]} for one in range(4)]
    found = data.load_histories(history_file(tmp_path / "h.jsonl", rows))
    assert found.take(np.array([2, 0])).users == ("2", "0")
    assert found.take([1]).items is found.items
    assert found.with_profiles([()] * 4).lengths.tolist() == [0] * 4


# HuffPost.

WORDS = ("Storm", "Vote", "Match", "Trial", "Fire", "Launch", "Peace", "Strike", "Cup", "Bank")


def articles(folder, count=10, **changes):
    rows = [
        {
            "user": user,
            "date": f"2020-01-{day + 1:02d}",
            "category": "NEWS" if user == "a" else "SPORTS",
            "title": f"{word} {user} news",
            "text": f"About {word} {user}.",
            **changes,
        }
        for user in ("a", "b")
        for day, word in enumerate(WORDS[:count])
    ]
    return rows, folder / "articles.jsonl"


def test_huffpost_is_cut_by_time(tmp_path):
    rows, path = articles(tmp_path)
    found = data.huffpost(history_file(path, rows[::-1]), least_history=2)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [10, 2, 4]
    assert found.train.items is found.test.items
    titles = [item.fields["title"] for item in found.test.items]
    last = next(one for one in found.test.samples if one.output == "Bank a news")
    assert [titles[place] for place in last.profile] == [f"{word} a news" for word in WORDS[:9]]
    assert last.input == ASK + "About Bank a."
    assert (last.user, last.category, last.date) == ("a", "NEWS", "2020-01-10")
    assert found.test.query_texts("")[0].startswith("About ")
    assert found.test.item_texts()[0] == "About Bank b. Bank b news"
    for part in (found.train, found.validation, found.test):
        for sample in part.samples:
            assert max(part.items[place].date for place in sample.profile) < sample.date
    dates = {
        name: {one.date for one in getattr(found, name).samples if one.user == "a"}
        for name in ("train", "validation", "test")
    }
    assert max(dates["train"]) < min(dates["validation"]) <= max(dates["validation"])
    assert max(dates["validation"]) < min(dates["test"])


def test_huffpost_shows_nothing_of_the_same_day(tmp_path):
    rows, path = articles(tmp_path)
    for row in rows[7:10]:
        row["date"] = "2020-01-08"
    found = data.huffpost(history_file(path, rows), least_history=2)
    assert {len(one.profile) for one in found.test.samples if one.user == "a"} == {7}


def test_huffpost_limits_authors(tmp_path):
    rows, path = articles(tmp_path)
    found = data.huffpost(history_file(path, rows), test_share=0.5, most=2, least_history=1)
    assert [one.output for one in found.test.samples] == [
        f"{word} {user} news" for user in "ab" for word in ("Cup", "Bank")
    ]


def test_huffpost_drops_series(tmp_path):
    rows, path = articles(tmp_path)
    rows[3]["title"] = "The 20 Best Films (Jan. 2021)"
    rows[8]["title"] = "the 15 best films, May 2022"
    for place, row in enumerate(rows[10:13]):
        row["title"] = f"What to watch on Hulu {WORDS[place]}"
    for row in rows[14:16]:
        row["title"] = f"Twice begun like this here {row['title']}"
    found = data.huffpost(history_file(path, rows), least_history=1)
    assert found.test.notes == ("articles of series, which were dropped: 5",)
    assert len(found.test.items) == 15
    assert not [one for one in found.test.items if "watch" in one.fields["title"]]
    assert len(data.huffpost(path, least_history=1, series=True).test.items) == 20


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"test_share": 0.9, "validation_share": 0.1}, "below 1 in sum"),
        ({"most": 0}, "at least 1 of the others"),
        ({"least_history": 50}, "leaves no article for train"),
    ],
)
def test_huffpost_refuses(tmp_path, options, words):
    rows, path = articles(tmp_path)
    with pytest.raises(InputError, match=words):
        data.huffpost(history_file(path, rows), **options)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"title": ""}, "line 1: `title` is empty"),
        ({"category": None}, "line 1: `category` is missing"),
        ({"date": "12 May"}, "line 1: `date` is '12 May'"),
    ],
)
def test_huffpost_refuses_lines(tmp_path, change, words):
    rows, path = articles(tmp_path, **change)
    with pytest.raises(InputError, match=words):
        data.huffpost(history_file(path, rows))


def test_real_headlines():
    found = data.huffpost(shared("huffpost_headlines"))
    assert found.test.notes == ("articles of series, which were dropped: 158",)
    assert len(found.test.items) == 6946
    sizes = [(len(part), len(set(part.users))) for part in (found.train, found.validation)]
    assert sizes == [(4462, 123), (579, 123)]
    assert (len(found.test), len(set(found.test.users))) == (905, 123)
    seen = [item.fields["title"] for item in found.test.items]
    assert len(set(seen)) == len(seen)
    for part in (found.validation, found.test):
        for sample in part.samples:
            own = [found.test.items[place] for place in sample.profile]
            assert len(own) >= 3
            assert max(one.date for one in own) < sample.date
            assert {one.id.split("-")[0] for one in own} == {sample.user}
            assert sample.output not in {one.fields["title"] for one in own}
