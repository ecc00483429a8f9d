"""Functions that need a model, a run or parameters, at their edges, see `doors_table`."""

import re
from pathlib import Path

import pytest
from doors_table import DOORS
from edge_table import cases, check

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
