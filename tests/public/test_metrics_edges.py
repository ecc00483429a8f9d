"""`jaxalign.metrics` at its edges, see `metrics_table`."""

import pytest
from edge_table import cases, check
from metrics_table import METRICS


@pytest.mark.parametrize(("name", "probe"), cases(METRICS))
def test_edge(name, probe):
    check(METRICS[name], probe)
