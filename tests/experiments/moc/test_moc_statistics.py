"""The report on policies: figures worked out by hand, intervals, and what cannot be measured."""

import json

import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.experiments.moc.evaluation import Evaluation
from jaxalign.experiments.moc.statistics import evaluation_report, spread
from jaxalign.metrics import agreement, pareto
from jaxalign.moc.preferences import evaluation_points
from jaxalign.rewards.reward_scale import RewardScale

POINTS = evaluation_points(2).astype(float)
HELD = np.array([[0.35, 0.65], [0.85, 0.15]])


def arc(preference):
    """A concave front: the unit circle."""
    return preference / np.linalg.norm(preference)


def scale(names, high=1):
    return RewardScale(names, *np.array([[0], [1], [0], [high]] * np.ones(len(names))))


def made(name, told, reach, prompts=40, noise=0.0, held=(), seed=0):
    """A policy whose rewards are a function of the preference, plus noise that sums to 0."""
    told = np.concatenate([np.asarray(told, float), np.reshape(held, (-1, np.shape(told)[1]))])
    count, size = told.shape
    random = np.random.default_rng(seed)
    off = random.normal(0, noise, (count, prompts, size)) if noise else 0.0
    rewards = np.array([reach(row) for row in told])[:, None] + np.zeros((1, prompts, 1)) + off
    return Evaluation(
        policy=name,
        scale=scale(("kind", "brief", "funny")[:size]),
        preferences=told,
        seen=np.arange(count) < count - len(held),
        rewards=rewards,
        kl=np.tile(np.arange(count, dtype=float)[:, None], (1, prompts)),
        entropy=np.linspace(1, 2, count),
        tokens=np.full(count, 7.0),
        prompts=tuple(f"question {number}" for number in range(prompts)),
        completions=tuple(tuple(f"{row}:{n}" for n in range(prompts)) for row in range(count)),
        samples=1,
        temperature=0.7,
    )


def value(entry):
    assert entry["low"] <= entry["value"] <= entry["high"]
    return entry["value"]


def test_a_front_without_noise_by_hand():
    found = evaluation_report([made("moc", POINTS, arc, held=HELD)], draws=5)
    seen = found["policies"]["moc"]["parts"]["seen"]
    reached = np.array([arc(row) for row in POINTS])
    assert {name: value(entry) for name, entry in seen["tau"].items()} == {"kind": 1, "brief": 1}
    assert value(seen["squared_error"]) == pytest.approx(((reached - POINTS) ** 2).mean())
    assert value(seen["corner_error"]) == pytest.approx(0)
    assert {name: value(entry) for name, entry in seen["movement"].items()} == {
        "kind": pytest.approx(1),
        "brief": pytest.approx(1),
    }
    assert value(seen["hypervolume"]) == pytest.approx(pareto.hypervolume(reached, [0, 0]))
    assert value(seen["single_point"]) == pytest.approx(reached.prod(axis=1).max())
    assert seen["distinct_2"] is None  # completions of one word
    assert value(seen["sparsity"]) == pytest.approx(pareto.sparsity(reached))
    assert value(seen["nondominated"]) == 1
    assert value(seen["entropy"]) == pytest.approx(pareto.entropy(reached))
    assert (seen["points"], seen["kl"], seen["tokens"]) == (11, 5.0, 7.0)
    # On a circle the best point for weights lies in their direction: told (1, 2) / 3, best (1, 2).
    assert value(seen["regret"]["direct_own"]) == pytest.approx(0, abs=1e-3)
    assert value(seen["regret"]["table_own"]) == pytest.approx(0, abs=1e-12)
    held = found["policies"]["moc"]["parts"]["held_out"]
    assert held["points"] == 2
    assert held["corner_error"] is None
    assert held["movement"] == {"kind": None, "brief": None}
    assert value(held["squared_error"]) == pytest.approx(
        np.mean([(arc(row) - row) ** 2 for row in HELD])
    )
    assert "shared" not in found["policies"]["moc"]["parts"]


def test_weights_fed_as_a_target_cost_what_the_table_saves():
    """On a straight front p.R = 1 the best of w is a corner; told w it gives |w|^2."""
    found = evaluation_report([made("moc", POINTS, lambda row: row)], draws=5)
    regret = found["policies"]["moc"]["parts"]["seen"]["regret"]
    assert value(regret["table_own"]) == pytest.approx(0, abs=1e-12)
    wanted = np.mean(POINTS.max(axis=1) - (POINTS**2).sum(axis=1))
    assert value(regret["direct_own"]) == pytest.approx(wanted)
    assert value(regret["direct_all"]) == pytest.approx(wanted)


def test_regret_and_corners_are_measured_against_all_policies_too():
    weak = made("weak", POINTS, lambda row: 0.5 * row)
    found = evaluation_report([weak, made("strong", POINTS, arc)], draws=5)
    parts = found["policies"]["weak"]["parts"]["seen"]
    best = np.array([arc(row) for row in POINTS])
    wanted = agreement.linear_regret(POINTS, 0.5 * np.eye(2)[np.argmax(POINTS, axis=1)], best)
    # At (.5, .5) both corners are worth the same.
    assert value(parts["regret"]["table_all"]) == pytest.approx(wanted)
    assert value(parts["regret"]["table_own"]) == pytest.approx(0, abs=1e-12)
    assert value(parts["corner_error"]) == pytest.approx(0.5)
    first = found["policies"]["weak"]["parts"]["seen"]["hypervolume"]["value"]
    strong = found["policies"]["strong"]["parts"]["seen"]
    assert value(strong["hypervolume_less_first"]) == pytest.approx(
        strong["hypervolume"]["value"] - first
    )
    assert "hypervolume_less_first" not in parts


def test_the_table_is_judged_on_prompts_it_was_not_chosen_on():
    """Of points that are all alike the luckiest is chosen: on the same prompts it would look good.

    Against the best on the judged half it must lose about what a random choice does.
    """
    told = evaluation_points(2)
    noisy = made("noise", told, lambda row: np.full(2, 0.5), prompts=60, noise=1.0)
    regret = evaluation_report([noisy], draws=2)["policies"]["noise"]["parts"]["seen"]["regret"]
    halves = np.sqrt(1 / 30)  # standard error of a half's mean
    assert value(regret["table_own"]) > 0.5 * halves
    assert value(regret["direct_own"]) > 0.5 * halves


def test_fronts_of_few_points_are_compared_on_shared_preferences():
    few = [[1, 0], [0.5, 0.5], [0, 1]]
    reference = made("reference", [[0.5, 0.5]], lambda row: 0.2 + 0 * row)
    found = evaluation_report(
        [made("moc", POINTS, arc, held=HELD), made("morlhf", few, arc), reference], draws=3
    )["policies"]
    assert found["moc"]["parts"]["shared"]["points"] == 3
    own, other = (found[name]["parts"]["shared"] for name in ("moc", "morlhf"))
    assert own["hypervolume"]["value"] == pytest.approx(other["hypervolume"]["value"])
    assert value(other["hypervolume_less_first"]) == pytest.approx(0)
    assert own["hypervolume"]["value"] < found["moc"]["parts"]["seen"]["hypervolume"]["value"]
    assert "shared" not in found["reference"]["parts"]


def test_what_cannot_be_measured_is_null():
    constant = made("constant", POINTS, lambda row: np.array([0.5, row[1]]))
    single = made("single", [[0.5, 0.5]], arc)
    found = evaluation_report([constant, single], draws=3)
    seen = found["policies"]["constant"]["parts"]["seen"]
    assert seen["tau"]["kind"] is None
    assert seen["tau"]["brief"]["value"] == 1
    assert seen["sparsity"] is None
    alone = found["policies"]["single"]["parts"]["seen"]
    assert alone["tau"] == {"kind": None, "brief": None}
    assert alone["tau_cap"] == {"kind": None, "brief": None}
    assert alone["corner_error"] is alone["regret"]["table_own"] is alone["sparsity"] is None
    assert alone["regret"]["table_all"]["value"] > 0
    json.dumps(found, allow_nan=False)


def test_intervals_are_those_of_the_mean_over_prompts():
    """One objective: hypervolume above 0 is the mean reward itself."""
    random = np.random.default_rng(5)
    base = made("moc", [[1.0]], lambda row: row, prompts=100)
    rewards = random.normal(5, 2, (1, 100, 1))
    own = Evaluation(**{**vars(base), "rewards": rewards})
    more = Evaluation(**{**vars(base), "rewards": rewards + 0.3, "policy": "more"})
    found = evaluation_report([own, more], draws=500)["policies"]
    volume = found["moc"]["parts"]["seen"]["hypervolume"]
    error = rewards.std() / 10
    assert volume["value"] == pytest.approx(rewards.mean())
    assert volume["low"] == pytest.approx(rewards.mean() - 1.96 * error, abs=0.3 * error)
    assert volume["high"] == pytest.approx(rewards.mean() + 1.96 * error, abs=0.3 * error)
    # The same resamples for both: what they share falls out of the difference.
    less = found["more"]["parts"]["seen"]["hypervolume_less_first"]
    np.testing.assert_allclose(list(less.values()), 0.3, atol=1e-9)


@pytest.mark.parametrize(("prompts", "known"), [(2, False), (3, False), (4, True)])
def test_resamples_of_a_single_prompt_make_no_interval(prompts, known):
    policy = made("moc", POINTS, arc, prompts=prompts, noise=0.3)
    found = evaluation_report([policy], draws=50)["policies"]["moc"]["parts"]["seen"]
    entry = found["hypervolume"]
    assert entry["value"] > 0
    assert (entry["low"] is None, entry["high"] is None) == (not known, not known)
    assert not known or entry["high"] - entry["low"] > 1e-3


def test_the_reference_point_is_stated_and_counts():
    one = [made("moc", POINTS, arc)]
    near, far = evaluation_report(one, draws=2), evaluation_report(one, [-1.0, -0.5], draws=2)
    assert near["reference_point"] == [0.0, 0.0]
    assert far["reference_point"] == [-1.0, -0.5]
    volumes = [
        found["policies"]["moc"]["parts"]["seen"]["hypervolume"]["value"] for found in (near, far)
    ]
    # The corners reach out to the far reference: 2 x 1.5 less what the circle leaves out.
    assert volumes[1] == pytest.approx(volumes[0] + 2 * 1.5 - 1)


def test_the_same_seed_says_the_same():
    noisy = [made("moc", POINTS, arc, noise=0.3)]
    assert evaluation_report(noisy, draws=20) == evaluation_report(noisy, draws=20)
    assert evaluation_report(noisy, draws=20) != evaluation_report(noisy, draws=20, seed=1)


def test_three_objectives():
    told = evaluation_points(3)
    found = evaluation_report([made("moc", told, arc, noise=0.01)], draws=3)
    seen = found["policies"]["moc"]["parts"]["seen"]
    for name in ("kind", "brief", "funny"):
        assert seen["tau"][name]["value"] == pytest.approx(seen["tau_cap"][name], abs=0.03)
        assert 0.9 < seen["tau_cap"][name] < 0.97
    assert [len(example["completions"]) for example in found["examples"]] == [5, 5, 5]


def test_examples_lie_far_apart():
    assert POINTS[spread(POINTS, 5)][:, 0].tolist() == pytest.approx(
        [1, 0.7, 0.5, 0.3, 0], abs=0.11
    )
    rows = spread(evaluation_points(3).astype(float), 4)
    assert {row for row in rows} >= set(
        np.flatnonzero(evaluation_points(3).max(axis=1) == 1).tolist()
    )
    assert spread(np.array([[0.5, 0.5]]), 5) == [0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"policy": "moc"}, "found moc twice"),
        (
            {"scale": scale(("kind", "brief"), 2)},
            "other was judged on .* brief from 0 to 2, moc on",
        ),
        ({"prompts": tuple("x" * 40)}, "other completed other prompts than moc"),
    ],
)
def test_policies_that_cannot_be_compared_are_refused(change, words):
    first = made("moc", POINTS, arc)
    second = Evaluation(**{**vars(first), "policy": "other", **change})
    with pytest.raises(InputError, match=words):
        evaluation_report([first, second])
    with pytest.raises(InputError, match="no evaluation"):
        evaluation_report([])


def test_an_evaluation_that_does_not_fit_together_is_refused():
    first = vars(made("moc", POINTS, arc))
    with pytest.raises(InputError, match=r"found kl of shape \(3,\), expected finite .*\(11, 40\)"):
        Evaluation(**{**first, "kl": np.zeros(3)})
    with pytest.raises(InputError, match="found rewards of shape"):
        Evaluation(**{**first, "rewards": first["rewards"] * np.nan})
    with pytest.raises(InputError, match="a completion of each of 40 prompts"):
        Evaluation(**{**first, "completions": (("a",),) * 11})
