"""`jaxalign.data`, `rewards`, `personalize`, `kernels` at their edges, see `shared_table`."""

import pytest
from edge_table import cases, check
from shared_table import DATA, PERSONALIZE, REWARDS_TABLE, RUNS, SCALARIZE, TOKEN_LOGPROB

TABLES = {
    "data": DATA,
    "runs": RUNS,
    "rewards": REWARDS_TABLE,
    "personalize": PERSONALIZE,
    "kernels.scalarize": SCALARIZE,
    "kernels.token_logprob": TOKEN_LOGPROB,
}
CASES = [(package, *case) for package, table in TABLES.items() for case in cases(table)]


@pytest.mark.parametrize(("package", "name", "probe"), CASES)
def test_edge(package, name, probe):
    check(TABLES[package][name], probe)
