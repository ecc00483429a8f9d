import gzip
import json
import unicodedata
from importlib import resources

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.rewards import rules

PLAIN = "The cat sat on the mat. It was warm there."
PROMPTS, ANSWERS = 120, 16


def shipped_rows():
    packed = resources.files("jaxalign.demo").joinpath("answers.jsonl.gz").read_bytes()
    header, *rows = map(json.loads, gzip.decompress(packed).decode("utf-8").splitlines())
    return header, rows


@pytest.fixture(scope="module")
def shipped():
    return shipped_rows()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text() | st.text(alphabet="aey l-*#1.!?\n'"), max_size=4))
def test_every_trait_is_finite_on_any_text(texts):
    values = rules.measure_traits(texts)
    assert values.shape == (len(texts), 5)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()


@pytest.mark.parametrize("text", ["", " \n\t", "...", "123", "🙂", "!!!", "-", "你好"])
def test_text_without_english_words_is_finite(text):
    assert np.isfinite(rules.measure_traits([text])).all()


def test_columns_are_the_traits_in_order():
    assert list(rules.TRAITS) == ["brevity", "positivity", "simplicity", "warmth", "structure"]
    row = rules.measure_traits([PLAIN])[0]
    np.testing.assert_allclose(row, [trait(PLAIN) for trait in rules.TRAITS.values()], rtol=1e-6)


@pytest.mark.parametrize(
    ("trait", "more", "less"),
    [
        ("brevity", "", "Yes."),
        ("brevity", "Yes.", "Yes, of course it is."),
        ("brevity", "one two", "one two " * 20),
        ("positivity", "This is wonderful, I love it.", "This is a table."),
        ("positivity", "This is a table.", "This is terrible, I hate it."),
        ("simplicity", "The dog ran. It was fun.", "The dog ran and it had a lot of fun there."),
        ("simplicity", PLAIN, "Institutional epistemology necessitates interdisciplinarity."),
        ("warmth", "Thank you, my dear friend!", "Read the manual."),
        ("warmth", PLAIN + " Thank you!", PLAIN + " Thank you."),
        ("warmth", "I hope you feel better.", "It is what it is, and so be it."),
        ("structure", "- one\n- two\n- three", "one\ntwo\nthree"),
        ("structure", "one\ntwo\nthree", "one two three"),
        ("structure", "1. one\n2) two", "one\ntwo"),
        ("structure", "# Title\ntext", "Title\ntext"),
        ("structure", "**Title**\ntext", "Title\ntext"),
    ],
)
def test_trait_ranks_a_text_above_another(trait, more, less):
    assert rules.TRAITS[trait](more) > rules.TRAITS[trait](less)


def test_brevity_by_hand():
    assert rules.brevity("don't stop now") == pytest.approx(-np.log(4))
    assert rules.brevity("") == 0.0


@pytest.mark.parametrize("word", ["हिन्दी", "مُحَمَّد", "l’été", "می\u200cخواهم", "Donau\u00addampf"])
def test_a_word_of_any_script_is_one(word):
    """Marks on letters and joiners within words do not split them, composed or not."""
    for form in ("NFC", "NFD"):
        assert rules.brevity(unicodedata.normalize(form, word)) == pytest.approx(-np.log(2))
    apart, composed = (unicodedata.normalize(form, "Éléphant, été!") for form in ("NFD", "NFC"))
    assert rules.measure_traits([apart]).tolist() == rules.measure_traits([composed]).tolist()


def test_simplicity_by_hand():
    # 10 words, 2 sentences, 10 syllables: all words of PLAIN are short.
    assert rules.simplicity(PLAIN) == pytest.approx(206.835 - 1.015 * 5 - 84.6)
    assert rules.simplicity("a" * 5) == rules.simplicity("a")
    assert rules.simplicity("Incomprehensibility " * 9) == rules.FLESCH_RANGE[0]


def test_warmth_by_hand():
    assert rules.warmth("Thank you!!!") == pytest.approx(2.5 / 10)
    assert rules.warmth("You're my friend’s hero.") == pytest.approx(2 / 10)
    assert rules.warmth("thank " * 20) == pytest.approx(1.0)


def test_structure_by_hand():
    assert rules.structure("one paragraph.") == 0.0
    assert rules.structure("a\n\nb") == pytest.approx(0.25)
    assert rules.structure("- a\n- b") == pytest.approx(0.75)
    assert rules.structure("-5 degrees, 3.5 metres") == 0.0


@pytest.mark.parametrize(
    ("word", "count"),
    [
        *{"cat": 1, "make": 1, "table": 2, "happy": 2, "walked": 1, "wanted": 2, "the": 1}.items(),
        *{"banana": 3, "beautiful": 3, "rhythm": 1, "shh": 1, "Apple": 2, "agreed": 2}.items(),
    ],
)
def test_syllables(word, count):
    assert rules.count_syllables(word) == count


def test_shipped_answers_are_complete_and_distinct(shipped):
    header, rows = shipped
    assert header["format"] == 1
    assert len(header["gguf_sha256"]) == 64
    assert len(rows) >= PROMPTS
    assert len({row["prompt"] for row in rows}) == len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        texts = [answer["text"] for answer in row["answers"]]
        assert len(set(texts)) == len(texts) == ANSWERS
        assert all(text == text.strip() != "" for text in texts)


def test_traits_vary_and_are_no_copies_of_each_other(shipped):
    values = rules.measure_traits(
        [answer["text"] for row in shipped[1] for answer in row["answers"]]
    )
    assert (values.std(axis=0) > 0.01).all()
    others = np.corrcoef(values.T) - np.eye(5)
    assert np.abs(others).max() < 0.8
