"""`jaxalign.palm` at its edges, see `palm_table`."""

import pytest
from edge_table import cases, check
from palm_table import PALM


@pytest.mark.parametrize(("name", "probe"), cases(PALM))
def test_edge(name, probe):
    check(PALM[name], probe)
