"""Statistics: means by hand, power by simulation, reports as they are to be read."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from shared_data import shared

from jaxalign.data import huffpost
from jaxalign.errors import InputError
from jaxalign.experiments.pplug import baselines, report
from jaxalign.experiments.pplug.statistics import (
    compare_methods,
    detectable_difference,
    expected_detectable_difference,
    score_predictions,
)
from jaxalign.metrics import text

RESULTS = Path(__file__).resolve().parents[3] / "benchmarks" / "results"
USERS = ["a", "a", "b", "c", "c", "c"]


def test_means_and_gains_by_hand():
    scores = {
        "base": [0.0, 1.0, 1.0, 0.0, 0.0, 0.0],
        "plug": [[1.0, 1.0, 1.0, 0.0, 0.0, 3.0], [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]],
    }
    found = compare_methods(scores, USERS, np.array([0, 3, 20, 20, 20, 300]), ["base"])
    assert (found["users"], found["samples"]) == (3, 6)
    plug = found["methods"]["plug"]
    assert plug["seeds"] == 2
    assert plug["mean"] == pytest.approx(9 / 12)
    assert plug["user_mean"] == pytest.approx((1 + 1 + 0.5) / 3)
    # Of the means over users of the two seeds, 1 and 2/3.
    assert plug["seed_sd"] == pytest.approx(np.std([1, 2 / 3], ddof=1))
    gain = plug["gains"]["base"]
    assert gain["mean"] == pytest.approx((0.5 + 0 + 0.5) / 3)
    assert 0 <= gain["low"] <= gain["mean"] <= gain["high"] <= 0.5
    # Users gain .5, 0 and .5: standard error sqrt(1/12)/sqrt(3) = 1/6.
    assert gain["detectable"] == pytest.approx(2.80159 / 6, rel=1e-5)
    assert found["methods"]["base"] == {
        "seeds": 1,
        "mean": pytest.approx(1 / 3),
        "user_mean": pytest.approx(0.5),
        "seed_sd": None,
        "gains": {},
    }
    json.dumps(found, allow_nan=False)


def test_groups_by_history_length():
    scores = {"base": np.zeros(6), "plug": np.arange(6.0)}
    found = compare_methods(scores, USERS, np.array([0, 3, 20, 20, 20, 300]), ["base"])
    groups = found["by_length"]
    assert [(one["least"], one["below"]) for one in groups] == [
        (0, 1),
        (1, 16),
        (16, 64),
        (256, None),
    ]
    assert [one["samples"] for one in groups] == [1, 1, 3, 1]
    assert [one["users"] for one in groups] == [1, 1, 2, 1]
    # b has 2; c has 3 and 4.
    assert groups[2]["methods"]["plug"]["user_mean"] == pytest.approx((2 + 3.5) / 2)
    assert groups[0]["methods"]["plug"]["gains"]["base"] == {
        "mean": 0.0, "low": None, "high": None, "standard_error": None, "detectable": None,
    }  # fmt: skip


def test_order_of_samples_does_not_matter():
    rng = np.random.default_rng(0)
    users = np.array([f"u{place // 4}" for place in range(80)])
    scores = {name: rng.random((2, 80)) for name in ("base", "plug")}
    lengths, order = rng.integers(0, 99, 80), rng.permutation(80)
    one = compare_methods(scores, users, lengths, ["base"])
    other = compare_methods(
        {name: values[:, order] for name, values in scores.items()},
        users[order], lengths[order], ["base"],
    )  # fmt: skip
    assert one["methods"]["plug"]["gains"]["base"] == pytest.approx(
        other["methods"]["plug"]["gains"]["base"], rel=1e-12
    )


def test_the_interval_counts_users_and_not_samples():
    # Forty users of fifty equal samples each: the interval is that of forty numbers.
    rng = np.random.default_rng(1)
    gain = rng.normal(0, 1, 40)
    users = np.repeat([f"u{place}" for place in range(40)], 50)
    scores = {"base": np.zeros(2000), "plug": np.repeat(gain, 50)}
    found = compare_methods(scores, users, np.ones(2000, int), ["base"])["methods"]["plug"]
    wanted = gain.std(ddof=1) / math.sqrt(40)
    assert found["gains"]["base"]["standard_error"] == pytest.approx(wanted, rel=0.06)


def test_four_in_five_worlds_show_the_smallest_difference():
    rng, shown, least = np.random.default_rng(0), [], []
    users = np.repeat([f"u{place}" for place in range(60)], 3)
    for seed in range(300):
        noise = rng.normal(0, 0.05, 60).repeat(3) + rng.normal(0, 0.1, 180)
        least.append(detectable_difference(noise.reshape(60, 3).mean(1)))
        true = 2.80159 * math.sqrt((0.05**2 + 0.1**2 / 3) / 60)
        scores = {"base": np.zeros(180), "plug": noise + true}
        found = compare_methods(scores, users, np.ones(180, int), ["base"], seed=seed, draws=400)
        shown.append(found["methods"]["plug"]["gains"]["base"]["low"] > 0)
    assert 0.74 <= np.mean(shown) <= 0.87
    assert np.mean(least) == pytest.approx(true, rel=0.03)


def test_planned_difference_is_that_of_methods_that_correlate_so():
    rng = np.random.default_rng(0)
    users = [f"u{place}" for place in range(40_000)]
    shared, one, two = rng.normal(0, 1, (3, 40_000))
    first, second = shared + one, shared + two  # correlation .5
    planned = expected_detectable_difference(first, users)
    assert planned == pytest.approx(detectable_difference(first - second), rel=0.03)
    assert expected_detectable_difference(first, users, correlation=1) == 0
    half = expected_detectable_difference(first, users, power=0.5)
    assert half == pytest.approx(planned * 1.95996 / 2.80159, rel=1e-4)


def test_judge_scores_answers():
    predictions = {
        "zero-shot": [["red cat", "blue dog"]],
        "persona": [["red cat", "blue cat"], ["red dog", "blue cat"]],
    }
    golds = ["red cat", "blue cat"]
    found = score_predictions("LaMP_4", predictions, golds, ["a", "b"], [3, 40], ["zero-shot"])
    assert found["scores"]["zero-shot"] == {"rouge-1": 0.75, "rouge-L": 0.75}
    assert found["scores"]["persona"]["rouge-1"] == pytest.approx(0.875)
    assert [*found["metrics"]] == ["rouge-1", "rouge-L"]
    gain = found["metrics"]["rouge-1"]["methods"]["persona"]["gains"]["zero-shot"]
    assert gain["mean"] == pytest.approx(0.125)
    rated = score_predictions("LaMP_3", {"x": [["1", "?"]]}, ["2", "2"], ["a", "b"], [1, 1], ["x"])
    assert rated["scores"]["x"] == {"MAE": 2.0, "RMSE": pytest.approx(math.sqrt(5))}
    assert [*rated["metrics"]] == ["MAE"]


def judged():
    predictions = {
        "input only": [["[1]", "[1]", "[2]"]],
        "persona": [["[1]", "[2]", "[2]"], ["[1]", "[2]", "[1]"]],
    }
    return score_predictions(
        "LaMP_1", predictions, ["[1]", "[2]", "[2]"], ["a", "b", "b"], [0, 9, 300], ["input only"]
    )


def test_the_page():
    told = report.markdown(judged())
    assert told.startswith("# LaMP_1\n\n## accuracy\n\n3 samples of 2 users. A difference of ")
    row = next(line for line in told.splitlines() if line.startswith("| persona | 2 "))
    assert "| 0.8333 | 0.8750 |" in row
    assert "| +0.1250 [+0.0000, +0.2500] (" in row
    assert "| method | 0 (1 user, 1 sample) | 1 to 15 (1 user" in told
    assert "| 256 or more (1 user" in told
    assert "| method | accuracy | f1 |" in told
    assert told.endswith("|\n")
    noted = report.markdown(judged(), ["a remark"])
    assert noted == told + "\n## Notes\n\n- a remark\n"


@pytest.mark.parametrize("name", ["pplug_huffpost", "pplug_huffpost_after", "pplug_ukpconvarg1"])
def test_the_committed_page_is_that_of_the_committed_report(name):
    found = json.loads((RESULTS / name / "report.json").read_text())
    page = report.markdown(found["statistics"], found["notes"])
    assert page == (RESULTS / name / "report.md").read_text()


def test_the_page_of_one_user():
    found = score_predictions("LaMP_4", {"x": [["a"]], "y": [["b"]]}, ["a"], ["u"], [1], ["x"])
    told = report.markdown(found)
    assert "1 sample of 1 user. No difference is expected to show with one user." in told
    assert "| y | 1 | 0.0000 | 0.0000 | - | -1.0000 |" in told


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"baselines": ["other"]}, "'other' is no method"),
        ({"baselines": []}, "at least one method"),
        ({"scores": {"base": np.zeros(5)}}, r"base: expected \[seeds, 6 samples\]"),
        ({"scores": {"base": [np.nan] * 6}}, "finite scores"),
        ({"lengths": np.zeros(3)}, "lengths: expected 6"),
        ({"edges": (1, 5)}, "ascending whole numbers from 0"),
        ({"draws": 1}, "draws: expected at least 2"),
    ],
)
def test_refuses(change, words):
    told = {
        "scores": {"base": np.zeros(6)}, "users": USERS, "lengths": np.zeros(6, int),
        "baselines": ["base"],
    }  # fmt: skip
    if "draws" in change:
        told["scores"] = {"base": np.zeros(6), "x": np.ones(6)}
    with pytest.raises(InputError, match=words):
        compare_methods(**{**told, **change})


def test_refuses_power_of_nothing():
    with pytest.raises(InputError, match="at least two"):
        detectable_difference([0.1])
    with pytest.raises(InputError, match="between 0 and 1"):
        detectable_difference([0.1, 0.2], power=1)
    with pytest.raises(InputError, match="correlation is 2"):
        expected_detectable_difference([0.1, 0.2], ["u", "v"], correlation=2)
    with pytest.raises(InputError, match="x: found no predictions"):
        score_predictions("LaMP_4", {"x": []}, ["a"], ["u"], [1], ["x"])


def test_what_the_real_headlines_can_show():
    told = huffpost(shared("huffpost_headlines")).test
    first = [" ".join(words.split()[:12]) for words in told.query_texts("")]
    scores = text.sample_scores("huffpost", first, told.outputs)["rouge-1"]
    assert 0.10 < scores.mean() < 0.11
    assert 0.016 < expected_detectable_difference(scores, told.users) < 0.018
    for within in (None, "category"):
        given = baselines.shuffle_histories(told, 0, within)
        ratio = np.median(given.lengths) / np.median(told.lengths)
        assert 0.7 < ratio < 1.3
        for sample in given.samples:
            own = [told.items[place] for place in sample.profile]
            assert own
            assert sample.user not in {one.id.split("-")[0] for one in own}
            assert max(one.date for one in own) < sample.date
