"""The loop: heuristics count what they saw, gains are true ones, and a small loop closes."""

import argparse
import json

import numpy as np
import pytest

from benchmarks import loop, loop_heuristics
from benchmarks.docs_pages import ROOT, SERVE_PAGE, replaced
from benchmarks.loop_heuristics import ARMS, HEURISTICS, Counts, served_positions
from benchmarks.loop_http import Served
from benchmarks.loop_people import draw_loop_data
from jaxalign.errors import InputError


@pytest.fixture(scope="module")
def data():
    return draw_loop_data("friendly", users=5, turns=6, judged=3, samples=8, seed=0)


def test_no_prompt_of_feedback_is_judged(data):
    assert not set(data.judged) & set(data.feedback_prompts.ravel())
    assert (data.answers.prompt[data.draws] == np.arange(len(data.draws))[:, None]).all()
    assert all(len(set(row)) == 8 for row in data.draws)


def test_misspecified_people_rate_more_kindly_and_sometimes_by_chance():
    friendly = draw_loop_data("friendly", 5, 2, 1, 8, 0).rates
    kind = draw_loop_data("misspecified", 5, 2, 1, 8, 0).rates
    np.testing.assert_allclose(kind.level, friendly.level - 1)
    assert friendly.up(0, friendly.level[0]) == 0.5
    assert 0.97 < kind.up(0, 100.0) < 1


def test_gains_are_those_of_the_served_draws_over_the_first(data):
    true = data.judged_utility()
    position = np.array([[[0, 3, 7]] * 5])
    expected = (true[:, 1, 3] - true[:, 1, 0] + true[:, 2, 7] - true[:, 2, 0]) / 3
    np.testing.assert_allclose(loop.gain(data, position), [expected])


def test_auto_serves_the_first_draw_where_it_is_not_sure():
    served = Served(np.array([[[4, 5, 0]]]), np.array([[[0.75, 0.85, np.nan]]]))
    assert loop.thresholded(served, 0.8).tolist() == [[[0, 5, 0]]]
    assert loop.thresholded(served, 0.5).tolist() == [[[4, 5, 0]]]


def test_the_threshold_of_the_largest_gain_that_harms_few_is_chosen():
    points = (0, 10)
    bold, safe = np.array([[-1.0] * 9, [9.0] * 8 + [-1.0]]), np.full((2, 9), 2.0)
    assert loop.choose_threshold({0.5: bold, 0.8: safe}, points) == 0.8
    # Before the tenth feedback some harm is borne, and with harm everywhere the least is taken.
    assert loop.choose_threshold({0.5: np.array([[-1.0] * 9, [9.0] * 9]), 0.8: safe}, points) == 0.5
    assert loop.choose_threshold({0.5: bold, 0.8: bold - 20}, points) == 0.5


def test_heuristics_score_arms_by_what_they_counted():
    counts = Counts(2)
    for _ in range(4):
        counts.add(0, 3, True)
        counts.add(1, 3, False)
    counts.turns[0] = loop_heuristics.LEAST_INTERACTIONS
    rng = np.random.default_rng(0)
    blend = [loop_heuristics.scores("blend", counts, person, rng)[3] for person in (0, 1)]
    np.testing.assert_allclose(blend, [0.7 * 0.5 + 0.3 * 5 / 6, 0.5])
    drawn = {
        name: np.mean([loop_heuristics.scores(name, counts, 0, rng) for _ in range(2000)], axis=0)
        for name in ("shared_bandit", "own_bandit")
    }
    np.testing.assert_allclose([drawn["shared_bandit"][3], drawn["own_bandit"][3]], [1 / 2, 5 / 6],
                               atol=0.02)  # fmt: skip
    assert len(drawn["own_bandit"]) == ARMS


@pytest.mark.parametrize("name", HEURISTICS)
@pytest.mark.parametrize("feedback", ["thumbs", "pairs", "both"])
def test_heuristics_serve_draws_and_repeat_themselves(data, name, feedback):
    found = [served_positions(data, name, feedback, (0, 2, 6), 0) for _ in range(2)]
    assert found[0].shape == (3, 5, 3)
    assert found[0].min() >= 0
    assert found[0].max() < 8
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--people=1", "--people: found 1, expected 2 or more"),
        ("--prompts=51", "--prompts: found 51, expected 50 or fewer"),
        ("--checkpoints=151", "expected 0 to 150 feedbacks"),
    ],
)
def test_sizes_that_the_pool_does_not_have_are_refused(option, said):
    parser = argparse.ArgumentParser()
    loop.add_arguments(parser)
    with pytest.raises(InputError, match=said):
        loop.run(parser.parse_args([option]))


def test_the_table_of_the_docs_is_that_of_the_committed_result():
    result = json.loads((ROOT / "benchmarks" / "results" / "loop" / "result.json").read_text())
    page = SERVE_PAGE.read_text("utf-8")
    assert replaced(page, "loop", loop.summary(result["rows"])) == page


@pytest.mark.slow
def test_a_small_loop_closes(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    loop.add_arguments(parser)
    small = {"people": "12", "validation": "2", "prompts": "3", "seed": "1"}
    options = parser.parse_args([f"--{name}={value}" for name, value in small.items()])
    options.checkpoints, options.populations, options.feedback = [0, 2, 10], ["friendly"], ["both"]
    options.out = tmp_path / "loop"
    loop.run(options)
    (row,) = json.loads((options.out / "result.json").read_text())["rows"]
    assert row["requests"]["count"] == 14 * (2 * 10 + 3 * 3)
    assert row["auto_over_http"] == {"asked": 12, "differ": 0}
    gain = {way: np.array(points)[:, 0] for way, points in row["gain"].items()}
    assert gain["oracle"][-1] > gain["best_of"][-1] > gain["best_of"][0]
    assert gain["best_of"][-1] > gain["shuffled"][-1] + 1
    assert (options.out / "loop.png").stat().st_size > 10_000
    assert (options.out / "table.md").read_text() in capsys.readouterr().out
