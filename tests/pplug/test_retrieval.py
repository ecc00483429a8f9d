"""Retrieval: BM25 against its formula, cosines by hand, prompts in LaMP's words."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.data.histories import Histories, Item, Sample
from jaxalign.errors import InputError
from jaxalign.pplug import retrieval
from jaxalign.pplug.config import TextConfig
from jaxalign.pplug.store import HistoryStore

ASK = "Generate a headline for the following article: "
TEXT = st.lists(st.sampled_from("abcdefg"), max_size=8).map(" ".join)


class Words:
    """A tokenizer whose tokens are words."""

    def __init__(self):
        self.words: list[str] = []

    def encode(self, text, add_special_tokens):
        assert not add_special_tokens
        for word in text.split():
            if word not in self.words:
                self.words.append(word)
        return [self.words.index(word) for word in text.split()]

    def decode(self, tokens):
        return " ".join(self.words[token] for token in tokens)


def histories(texts, questions, profiles=None, task="LaMP_4"):
    items = tuple(
        Item(str(place), {"text": text, "title": f"t{place}"}) for place, text in enumerate(texts)
    )
    profiles = profiles or [range(len(texts))] * len(questions)
    samples = tuple(
        Sample(str(place), f"u{place}", ASK + question, None, tuple(profile))
        for place, (question, profile) in enumerate(zip(questions, profiles, strict=True))
    )
    return Histories(samples, items, task)


def okapi(query, texts):
    """BM25 of every text, k1 1.5, b .75, negative idf a quarter of the mean idf."""
    words = [text.split() for text in texts]
    mean = sum(len(one) for one in words) / len(words)
    found = {word: sum(word in one for one in words) for one in words for word in one}
    idf = {
        word: math.log(len(words) - count + 0.5) - math.log(count + 0.5)
        for word, count in found.items()
    }
    floor = 0.25 * sum(idf.values()) / len(idf)
    idf = {word: value if value >= 0 else floor for word, value in idf.items()}
    return [
        sum(
            idf.get(word, 0)
            * one.count(word)
            * 2.5
            / (one.count(word) + 1.5 * (0.25 + 0.75 * len(one) / mean))
            for word in query.split()
        )
        for one in words
    ]


@settings(deadline=None, max_examples=50)
@given(TEXT, st.lists(TEXT, min_size=1, max_size=6))
def test_bm25_is_its_formula(query, texts):
    found = retrieval.bm25(query, texts)
    assert found.shape == (len(texts),)
    if any(texts):
        np.testing.assert_allclose(found, okapi(query, texts), rtol=1e-12, atol=1e-12)
    else:
        assert not found.any()


def test_bm25_finds_in_the_own_history_only():
    texts = ["rain and storm", "a match", "storm storm", "the vote"]
    found = retrieval.rank_by_bm25(
        histories(texts, ["storm", "match", "t3"], [(0, 1, 3), (2, 3), ()]), 2
    )
    assert found[0][0] == 0
    assert set(found[0]) <= {0, 1, 3}
    assert found[1] == (3, 2)  # nothing matches: the latest first
    assert found[2] == ()


def test_titles_are_searched_too():
    assert retrieval.rank_by_bm25(histories(["x", "y", "z"], ["t1"]), 1) == ((1,),)


def test_encoder_takes_cosines():
    told = histories(["a", "b", "c"], ["q", "r"], [(0, 1, 2), (0, 2)])
    items = np.array([[3, 0], [0.1, 0.1], [0, 9]], np.float16)
    queries = np.array([[1, 0.9], [0, 1]], np.float32)
    assert retrieval.rank_by_cosine(told, queries, items.__getitem__, 2) == ((1, 0), (2, 0))
    assert retrieval.rank_by_cosine(told, queries, items.__getitem__, 9)[0] == (1, 0, 2)
    nothing = told.with_profiles([(), ()])
    assert retrieval.rank_by_cosine(nothing, queries, items.__getitem__, 2) == ((), ())


def test_vectors_are_read_one_history_at_a_time(tmp_path, monkeypatch):
    told = histories(["a", "b", "c"], ["q", "r"], [(0, 1, 2), (0, 2)])
    items, sizes = {"a": [3, 0], "b": [0.1, 0.1], "c": [0, 9]}, []
    queries = {"q": [1, 0.9], "r": [0, 1]}

    class CountingStore(HistoryStore):
        def read(self, rows):
            sizes.append(rows.size)
            return super().read(rows)

    monkeypatch.setattr(
        retrieval, "encode_with", lambda _: lambda texts: np.array([items[text] for text in texts])
    )
    monkeypatch.setattr(
        retrieval,
        "encode_unkept",
        lambda _, texts, __: np.array([queries[text.split()[-1]] for text in texts]),
    )
    text = TextConfig(item="{text}", query_prefix="")
    with CountingStore(tmp_path / "store", "x", 2) as store:
        found = retrieval.retrieve_items(told, "encoder", 2, text, None, store)
    assert found == ((1, 0), (2, 0))
    assert sizes == [3, 2]


def test_zero_vectors_are_no_nan():
    found = retrieval.rank_by_cosine(
        histories(["a", "b"], ["q"]), np.ones((1, 2)), np.zeros((2, 2)).__getitem__, 1
    )
    assert found == ((1,),)


@pytest.mark.parametrize(
    ("queries", "items", "count", "words"),
    [
        ((1, 2), (2, 2), 0, "expected at least 1"),
        ((2, 2), (2, 2), 1, "found 2, expected 1, one for each sample"),
        ((1, 2), (2, 3), 1, "one width"),
    ],
)
def test_refuses(queries, items, count, words):
    told = histories(["a", "b"], ["q"])
    with pytest.raises(InputError, match=words):
        retrieval.rank_by_cosine(told, np.ones(queries), np.ones(items).__getitem__, count)
    if not count:
        with pytest.raises(InputError, match=words):
            retrieval.rank_by_bm25(told, count)


PAPER = (
    'For an author who has written the paper with the title "P", which reference is related? '
    'Just answer with [1] or [2] without explanation. [1]: "A" [2]: "B"'
)


@pytest.mark.parametrize(
    ("task", "question", "items", "wanted"),
    [
        (
            "LaMP_1",
            PAPER,
            [{"title": "One", "abstract": "x"}, {"title": "Two", "abstract": "y"}],
            PAPER.replace('title "P"', 'title, and "One", and "Two" "P"'),
        ),
        (
            "LaMP_2",
            "Q",
            [{"description": "D", "tag": "comedy"}, {"description": "E", "tag": "action"}],
            'the tag for the movie: "D" is "comedy" , and the tag for the movie: "E" is "action" '
            ". Q",
        ),
        ("LaMP_3", "Q", [{"text": "X", "score": "4"}], '4 is the score for "X" . Q'),
        ("LaMP_4", "Q", [{"text": "X {}", "title": "T"}], '"T" is the title for "X {}" . Q'),
        (
            "LaMP_5",
            "Q",
            [{"title": "T", "abstract": "A"}],
            '"T" is a title for "A" . Following the given patterns Q',
        ),
        (
            "LaMP_7",
            "Q",
            [{"text": "X"}, {"text": "Y"}],
            '"X" , and "Y"  are written by a person. Following the given patterns Q',
        ),
        ("LaMP_4", "Q", [], "Q"),
    ],
)
def test_prompts_are_lamps(task, question, items, wanted):
    assert retrieval.prompt_with_items(task, question, items, Words(), 256) == wanted


def long(count, word="w"):
    return " ".join(f"{word}{place}" for place in range(count))


def test_items_share_the_room_and_pass_on_what_they_do_not_need():
    # 60 tokens: 10 of the question, 1 the full stop of the frame, 2 between the items: 47, so 23
    # each, of which 6 are around the text. The first needs 3 of 17, the second gets 31.
    items = [{"text": long(3, "a"), "title": "T"}, {"text": long(99, "b"), "title": "T"}]
    found = retrieval.prompt_with_items("LaMP_4", long(10), items, Words(), 60)
    words = found.replace('"', " ").split()
    assert sum(word.startswith("a") and word != "and" for word in words) == 3
    assert sum(word.startswith("b") for word in words) == 31
    assert found.endswith(long(10))
    assert len(found.split()) <= 60


def test_a_long_question_leaves_two_fifths():
    items = [{"text": long(99, "b"), "title": "T"}]
    found = retrieval.prompt_with_items("LaMP_4", long(500), items, Words(), 100)
    assert len(found.split()) == 100
    assert 25 < sum(word.strip('"').startswith("b") for word in found.split()) <= 40
    assert found.split()[-1].startswith("w")  # cut at its end
    assert " w0 " in found


def test_where_items_do_not_fit_the_question_stands_alone():
    items = [{"text": long(9, "b"), "title": long(40)}] * 4
    assert retrieval.prompt_with_items("LaMP_4", long(30), items, Words(), 25) == long(25)
    assert retrieval.prompt_with_items("LaMP_4", long(20), items, Words(), 25) == long(20)


def test_many_items_take_more_from_the_question_rather_than_none():
    items = [{"text": long(9, "b"), "title": "T"}] * 3
    found = retrieval.prompt_with_items("LaMP_4", long(500), items, Words(), 40)
    assert found.count("is the title for") == 3
    assert len(found.split()) == 40


def test_prompts_of_histories():
    told = histories(["x", "y"], ["q", "r"])
    model, text = SimpleNamespace(tokenizer=Words()), TextConfig(prompt_tokens=99)
    found = retrieval.build_questions(told, [(1, 0), ()], text, model)
    assert retrieval.build_questions(told, None, text, model) == [f"{ASK}q", f"{ASK}r"]
    assert found == [
        f'"t1" is the title for "y" , and "t0" is the title for "x" . {ASK}q',
        f"{ASK}r",
    ]
