"""`jaxalign.pplug` at its edges, see `pplug_table`."""

import pytest
from edge_table import cases, check
from pplug_table import PPLUG


@pytest.mark.parametrize(("name", "probe"), cases(PPLUG))
def test_edge(name, probe):
    check(PPLUG[name], probe)
