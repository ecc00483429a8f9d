"""LaMP's rules: every rule by hand, scikit-learn and rouge_score as references."""

import gzip
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.data import lamp
from jaxalign.errors import InputError
from jaxalign.metrics import text

TAGS = lamp.TAGS
WORDS = st.lists(
    st.sampled_from(["the", "cat", "Cats", "sat", "u.s.", "2022", "—", "é"]), max_size=8
)


def test_accuracy_and_f1_by_hand():
    # comedy: 1 hit, said twice, true twice: F1 1/2; action: 1 hit, said once, true once: 1;
    # classic is true once and never said: 0; the other 12 tags occur nowhere: 0.
    golds = ["comedy", "comedy", "action", "classic"]
    found = text.score("LaMP_2", [" comedy\n", "Comedy", "action", "comedy"], golds)
    assert found == {"accuracy": 0.5, "f1": pytest.approx((0.5 + 1) / 15)}


def test_unknown_answers_are_wrong_and_lower_f1_only_by_what_they_miss():
    found = text.score("LaMP_1", ["[1]", "1", ""], ["[1]", "[1]", "[2]"])
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found["f1"] == pytest.approx((2 / 3 + 0) / 2)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from([*TAGS, "?", "comedy."]), st.sampled_from(TAGS)), min_size=1)
)
def test_agrees_with_scikit_learn_on_labels(pairs):
    from sklearn.metrics import accuracy_score, f1_score

    answers, golds = (list(side) for side in zip(*pairs, strict=True))
    number = {tag: place for place, tag in enumerate(TAGS)}
    said = [number.get(answer, -1) for answer in answers]
    true = [number[gold] for gold in golds]
    found = text.score("LaMP_2", answers, golds)
    assert found["accuracy"] == pytest.approx(accuracy_score(true, said))
    wanted = f1_score(true, said, labels=range(len(TAGS)), average="macro", zero_division=0)
    assert found["f1"] == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("answer", "gold", "distance"),
    [
        ("4", "5", 1.0),
        (" 4.0 ", "5", 1.0),
        ("9", "5", 4.0),  # a number outside the labels stays what it is
        ("five", "5", 4.0),  # unreadable, 1 is the farther
        ("", "1", 4.0),
        ("?", "3", 2.0),  # both as far
        ("?", "2", 3.0),
        ("nan", "4", 3.0),  # not a number, and would make every mean one
        ("inf", "1", 4.0),
        ("score: 4", "4", 3.0),
    ],
)
def test_ratings_by_hand(answer, gold, distance):
    assert text.sample_scores("LaMP_3", [answer], [gold])["MAE"] == [distance]
    assert text.score("LaMP_3", [answer], [gold]) == {"MAE": distance, "RMSE": distance}


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1))
def test_agrees_with_scikit_learn_on_ratings(pairs):
    from sklearn.metrics import mean_absolute_error, root_mean_squared_error

    said, true = (list(side) for side in zip(*pairs, strict=True))
    found = text.score("LaMP_3", [str(one) for one in said], [str(one) for one in true])
    assert found["MAE"] == pytest.approx(mean_absolute_error(true, said))
    assert found["RMSE"] == pytest.approx(root_mean_squared_error(true, said))


def test_rmse_is_the_root_of_the_mean_over_samples():
    found = text.score("LaMP_3", ["1", "5", "3"], ["5", "5", "3"])
    assert found == {"MAE": pytest.approx(4 / 3), "RMSE": pytest.approx(math.sqrt(16 / 3))}


def test_rouge_by_hand():
    # Words are lower-cased runs of letters and digits. 3 of 4 against 3 of 6 words: F 0.6; the
    # longest common subsequence is `the sat` or `cat sat`: 2 of 4, 2 of 6: F 0.4.
    found = text.score("LaMP_4", ["Cat, the sat; dog"], ["the cat on a mat sat"])
    assert found == {"rouge-1": pytest.approx(0.6), "rouge-L": pytest.approx(0.4)}


def test_rouge_has_no_stemmer_and_counts_words_as_often_as_both_have_them():
    assert text.score("LaMP_5", ["running"], ["run"])["rouge-1"] == 0
    assert text.score("LaMP_7", ["a a a"], ["a a"])["rouge-1"] == pytest.approx(0.8)
    assert text.score("LaMP_7", ["", "..."], ["a", "..."]) == {"rouge-1": 0, "rouge-L": 0}


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5))
def test_agrees_with_rouge_score(pairs):
    from rouge_score import rouge_scorer

    answers, golds = ([" ".join(words) for words in side] for side in zip(*pairs, strict=True))
    scorer = rouge_scorer.RougeScorer(["rouge1", "rougeL"])
    wanted = [scorer.score(gold, answer) for gold, answer in zip(golds, answers, strict=True)]
    found = text.sample_scores("LaMP_4", answers, golds)
    for ours, theirs in (("rouge-1", "rouge1"), ("rouge-L", "rougeL")):
        assert found[ours].tolist() == [one[theirs].fmeasure for one in wanted]
        assert text.score("LaMP_4", answers, golds)[ours] == pytest.approx(found[ours].mean())


def test_summary_is_the_score_of_what_is_known():
    answers, golds = ["comedy", "x"], ["comedy", "action"]
    values = text.sample_scores("LaMP_2", answers, golds)
    assert text.summary("LaMP_2", values, answers, golds) == text.score("LaMP_2", answers, golds)
    assert values["accuracy"].dtype == np.float64


@pytest.mark.parametrize(
    ("task", "answers", "golds", "words"),
    [
        ("LaMP_4", ["a"], ["a", "b"], "1 predictions for 2"),
        ("LaMP_4", [], [], "at least one"),
        ("LaMP_2", ["drama"], ["drama"], "'drama' is none of sci-fi"),
        ("LaMP_3", ["1"], ["good"], "'good' is no number"),
        ("LaMP_6", ["a"], ["a"], "needs a licence"),
        ("LaMP-4", ["a"], ["a"], "expected one of LaMP_1"),
    ],
)
def test_refuses(task, answers, golds, words):
    with pytest.raises(InputError, match=words) as caught:
        text.score(task, answers, golds)
    assert str(caught.value).endswith(".")


def answers_file(path, task, rows):
    path.write_text(json.dumps({"task": task, "golds": rows}))
    return path


def test_answers_are_written_as_lamps_evaluator_reads_them(tmp_path):
    lamp.write_answers(tmp_path / "said.json", "LaMP_3", {"1": "1", "2": "3"})
    written = json.loads((tmp_path / "said.json").read_text())
    assert written == {
        "task": "LaMP_3",
        "golds": [{"id": "1", "output": "1"}, {"id": "2", "output": "3"}],
    }
    assert [path.name for path in tmp_path.iterdir()] == ["said.json"]
    assert lamp.read_answers(tmp_path / "said.json") == ("LaMP_3", {"1": "1", "2": "3"})
    (tmp_path / "said.json.gz").write_bytes(gzip.compress((tmp_path / "said.json").read_bytes()))
    assert lamp.read_answers(tmp_path / "said.json.gz") == ("LaMP_3", {"1": "1", "2": "3"})


def test_an_id_that_comes_twice_is_refused(tmp_path):
    rows = [{"id": "1", "output": "4"}] * 2
    golds = answers_file(tmp_path / "golds.json", "LaMP_3", rows)
    with pytest.raises(InputError, match=r"golds\[1\]: id '1' comes twice"):
        lamp.read_answers(golds)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "holds a JSON list; expected LaMP's answers"),
        ('{"golds": []}', "does not hold answers"),
        ('{"task": "LaMP_4", "golds": [3]}', "expected an object"),
        ('{"task": "LaMP_4", "golds": [{"id": "1"}]}', "`output` is missing"),
        ('{"task": "LaMP_4", "golds": [{"id": "1", "output": null}]}', "`output` is missing"),
        ('{"task": "LaMP_9", "golds": []}', "task is 'LaMP_9'"),
        ('{"task": "LaMP_4", "gol', "is not JSON"),
    ],
)
def test_refuses_files(tmp_path, content, words):
    (tmp_path / "golds.json").write_text(content)
    with pytest.raises(InputError, match=words):
        lamp.read_answers(tmp_path / "golds.json")


def test_refuses_a_file_that_is_absent(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        lamp.read_answers(tmp_path / "golds.json")
