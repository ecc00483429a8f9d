"""The value table: from weights to what a policy is told."""

import dataclasses

import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.experiments.moc.evaluation import Evaluation
from jaxalign.moc.value_table import FILE, ValueTable
from jaxalign.rewards.reward_scale import RewardScale

# A front bent outwards: of the middle more of both is reached than is told.
TOLD = np.array([[1, 0], [0.5, 0.5], [0, 1]])
LEVELS = np.array([[1.0, 0.0], [0.8, 0.8], [0.0, 1.0]])
SCALE = RewardScale(
    ("kind", "brief"),
    np.array([1.0, -2.0]),
    np.array([0.5, 4.0]),
    np.array([0.0, -6.0]),
    np.array([2.0, 2.0]),
)


def evaluation():
    rewards = np.repeat(LEVELS[:, None], 4, axis=1)
    rewards += np.array([-0.1, 0.1, 0.2, -0.2])[None, :, None]
    return Evaluation(
        "moc", SCALE, TOLD, np.ones(3, bool), rewards,
        np.array([[2.0] * 4, [1.0] * 4, [4.0] * 4]), np.ones(3), np.full(3, 9.0),
        ("a", "b", "c", "d"), (("x",) * 4,) * 3, 1, 0.7,
    )  # fmt: skip


@pytest.fixture
def table():
    return evaluation().value_table()


def test_achieved_rewards_are_in_standard_deviations_of_the_reference_samples(table):
    raw = np.array([0.0, -6.0]) + LEVELS * np.array([2.0, 8.0])
    np.testing.assert_allclose(table.achieved_rewards, (raw - [1.0, -2.0]) / [0.5, 4.0], atol=1e-12)
    np.testing.assert_array_equal(table.kl, [2.0, 1.0, 4.0])
    assert (table.names, table.digest) == (SCALE.names, SCALE.digest)


def test_best_is_the_row_that_is_worth_most(table):
    # Reached: (2, -1), (1.2, .6), (-2, 1).
    weights = [[1, 0], [1, 1], [1, 0.6], [0, 1], [-1, 0], [0.2, 1], [0, -1]]
    wanted = [0, 1, 1, 2, 2, 1, 0]
    np.testing.assert_array_equal(table.best(weights), TOLD[wanted])
    np.testing.assert_array_equal(table.best([0, 1]), TOLD[2])
    # The size of the weights does not matter, until KL has a price.
    np.testing.assert_array_equal(table.best([0, 30]), TOLD[2])
    np.testing.assert_array_equal(table.best([0, 1], beta=0.2), TOLD[1])
    np.testing.assert_array_equal(table.best([0, 30], beta=0.2), TOLD[2])


def test_weights_as_a_target_are_another_thing(table):
    """<w, F(w)> is not max <w, F>: what the table is for."""
    weights = np.array([0.75, 0.25])
    best = table.best(weights)
    assert best.tolist() == TOLD[0].tolist() != weights.tolist()


def test_a_table_comes_back_from_a_policys_folder(table, tmp_path):
    table.save(tmp_path)
    again = ValueTable.load(tmp_path)
    for field in dataclasses.fields(ValueTable):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(table, field.name))
    with pytest.raises(InputError, match="no such file; expected a value table: run `jaxalign"):
        ValueTable.load(tmp_path / "elsewhere")
    path = tmp_path / FILE
    content = path.read_bytes()
    path.write_bytes(content[:-8] + bytes(8))
    with pytest.raises(InputError, match="digest does not fit"):
        ValueTable.load(tmp_path)
    path.write_bytes(content[:40])
    with pytest.raises(InputError, match="run `jaxalign moc evaluate` on the policy"):
        ValueTable.load(tmp_path)


def test_what_does_not_fit_is_refused(table):
    with pytest.raises(InputError, match="one for each of kind, brief"):
        table.best([1, 2, 3])
    with pytest.raises(InputError, match="weights: found"):
        table.best([1, np.nan])
    with pytest.raises(InputError, match=r"preferences \(3, 2\), achieved rewards \(2, 2\)"):
        ValueTable(TOLD, LEVELS[:2], np.zeros(3), SCALE.names, "0")
    with pytest.raises(InputError, match="value table"):
        ValueTable(TOLD, LEVELS, np.array([0, 1, np.nan]), SCALE.names, "0")
