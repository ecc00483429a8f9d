"""`jaxalign.rewards`, `personalize` and `kernels` at their edges, see `shared_table`."""

import pytest
from edge_table import cases, check
from shared_table import PERSONALIZE, REWARDS_TABLE, SCALARIZE, TOKEN_LOGPROB

TABLES = {
    "rewards": REWARDS_TABLE,
    "personalize": PERSONALIZE,
    "kernels.scalarize": SCALARIZE,
    "kernels.token_logprob": TOKEN_LOGPROB,
}
CASES = [(package, *case) for package, table in TABLES.items() for case in cases(table)]


@pytest.mark.parametrize(("package", "name", "probe"), CASES)
def test_edge(package, name, probe):
    check(TABLES[package][name], probe)
