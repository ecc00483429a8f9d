"""Functions that need a model, a run or parameters, at their edges, see `doors_table`."""

import re
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from doors_table import DOORS
from edge_table import TYPES, cases, check

from jaxalign import data, mrm
from jaxalign.errors import InputError
from jaxalign.mrm.config import SplitConfig

CASES = [(package, *case) for package, table in DOORS.items() for case in cases(table)]


@pytest.mark.parametrize(("package", "name", "probe"), CASES)
def test_edge(package, name, probe):
    check(DOORS[package][name], probe)


TESTS = Path(__file__).resolve().parents[1]
WITH_A_MODEL = [
    (name, entry.skipped["plain"])
    for table in DOORS.values()
    for name, entry in table.items()
    if "plain" in entry.skipped
]


@pytest.mark.parametrize(("name", "reason"), WITH_A_MODEL)
def test_values_of_a_model_are_tested_where_it_says(name, reason):
    text = (TESTS / reason.rpartition(": ")[2]).read_text("utf-8")
    assert re.search(rf"\b{name}\b", text)


_USERS, _ITEMS = 12, 7
_CHOICES = data.from_columns({
    "user": [f"u{row % _USERS}" for row in range(12 * _USERS)],
    "chosen": [f"i{row % _ITEMS}" for row in range(12 * _USERS)],
    "rejected": [f"i{(row + 1 + row // _ITEMS % 4) % _ITEMS}" for row in range(12 * _USERS)],
})  # fmt: skip
_QUARTERS = np.random.default_rng(0).integers(-8, 8, (len(_CHOICES.items), 3)) / 4
_TINY = mrm.MRMConfig(hidden_sizes=(2,), epochs=1, snapshots=1, eval_steps=1)
_FIT = {
    "lists": np.ndarray.tolist, "strided": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    **{name: lambda x, kind=kind: x.astype(kind) for name, kind in TYPES.items()},
    "int": lambda x: np.rint(x).astype(np.int32),
}  # fmt: skip


def fitted(features):
    split = SplitConfig(support_pairs=4, validation_share=0.25)
    found = mrm.fit(_CHOICES, features, _TINY, split)
    return found.params, found.losses


@pytest.mark.parametrize("kind", _FIT)
def test_a_fit_reads_features_of_any_type_as_the_same_numbers(kind):
    given = _FIT[kind](_QUARTERS)
    expected = fitted(np.asarray(given, np.float32))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected))
    chex.assert_trees_all_equal(fitted(given), expected)


def test_a_fit_without_a_user_to_validate_on_is_refused():
    split = SplitConfig(validation_share=0.25, min_query=100)
    with pytest.raises(InputError) as refused:
        mrm.fit(_CHOICES, _QUARTERS, _TINY, split)
    assert str(refused.value) == (
        "preferences: found no validation user with 5 choices to adapt on and 100 to be judged on, "
        "expected one or more; give more choices, or lower the split's min_support and min_query."
    )
