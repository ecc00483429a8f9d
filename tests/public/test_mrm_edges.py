"""`jaxalign.mrm` at its edges, see `mrm_table`."""

import pytest
from belief_table import BELIEFS
from edge_table import cases, check
from mrm_table import MRM

TABLE = MRM | BELIEFS


@pytest.mark.parametrize(("name", "probe"), cases(TABLE))
def test_edge(name, probe):
    check(TABLE[name], probe)
