"""`jaxalign.mrm` at its edges, see `mrm_table`."""

import pytest
from edge_table import cases, check
from mrm_table import MRM


@pytest.mark.parametrize(("name", "probe"), cases(MRM))
def test_edge(name, probe):
    check(MRM[name], probe)
