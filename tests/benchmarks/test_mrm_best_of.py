"""Best of n: the benchmark gives what `mrm.best_option` gives, and judges it by true utility."""

import argparse
import json

import numpy as np
import pytest

from benchmarks import mrm_best_of
from benchmarks.mrm_best_of import SIZES, Beliefs
from jaxalign import mrm


@pytest.mark.parametrize("k", [0.0, 0.7])
def test_it_gives_what_best_option_gives_and_counts_its_true_utility(k):
    rng = np.random.default_rng(0)
    users, prompts, answers, width = 3, 2, 16, 4
    root = rng.normal(size=(users, width, width))
    beliefs = Beliefs(rng.normal(size=(users, width)), root @ root.swapaxes(1, 2))
    values = rng.normal(size=(prompts, answers, width))
    true = rng.normal(size=(users, prompts, answers))
    found = mrm_best_of.reached(true, *mrm_best_of.gains(beliefs, values), k)
    for user in range(users):
        for column, size in enumerate(SIZES):
            expected = []
            for prompt in range(prompts):
                options = values[prompt, :size]
                gains = mrm.expected_gains(beliefs.mean[user], beliefs.cov[user], options)
                given = mrm.best_option(gains, k)
                expected.append(true[user, prompt, given] - true[user, prompt, 0])
            np.testing.assert_allclose(found[user, column], np.mean(expected), rtol=1e-12)
    assert (found[:, 0] == 0).all()  # of one answer, the plain one is given


def test_rows_pool_the_users_of_all_seeds():
    def part(gain, k):
        steps = np.arange(len(SIZES))
        gains = {way: np.full((4, 1), gain) * steps for way in mrm_best_of.WAYS}
        gains["oracle"] = 2 * gains["oracle"]
        by_k = {k: gains["own"][:, -1] for k in mrm_best_of.CAUTIONS}
        return {"gains": gains, "k": k, "by_k": by_k}

    row = mrm_best_of._row([part(1.0, 0.0), part(3.0, 0.5)])
    assert (row["users"], row["k"]) == (8, [0.0, 0.5])
    np.testing.assert_allclose([mean for mean, *_ in row["gain"]["own"]], [0, 2, 4, 6, 8])
    np.testing.assert_allclose(row["share"]["own"], 0.5)
    text = mrm_best_of._table([{"name": "x", **row}])
    assert "x (8 users), the user's own choices | 2.00 (" in text
    assert "| 50 | 0 | 0, 0.5 |" in text


@pytest.mark.slow
def test_own_choices_are_worth_more_than_another_users(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    mrm_best_of.add_arguments(parser)
    options = parser.parse_args(["--seeds", "0", "--users", "120", "--kinds", "named"])
    options.out = tmp_path / "best"
    mrm_best_of.run(options)
    result = json.loads((options.out / "result.json").read_text())
    assert [row["name"] for row in result["rows"]] == [
        "friendly, named rewards",
        "misspecified, named rewards",
    ]
    for row in result["rows"]:
        gain = {way: np.array(points)[:, 0] for way, points in row["gain"].items()}
        assert all(found[0] == 0 for found in gain.values())
        assert (np.diff(gain["own"]) > 0).all()
        assert gain["oracle"][-1] > gain["own"][-1] > gain["other"][-1] + 1
        assert gain["own"][-1] > gain["one_model"][-1] + 1
    assert (options.out / "mrm_best_of.png").stat().st_size > 10_000
    assert (options.out / "table.md").read_text() in capsys.readouterr().out
