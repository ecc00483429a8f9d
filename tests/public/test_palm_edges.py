"""`jaxalign.palm` at its edges, see `palm_table`."""

import numpy as np
import pytest
from bounds_table import BOUNDS
from edge_table import cases, check
from palm_table import BETA, LOG_REF, PALM, REWARDS, WEIGHTS

from jaxalign import palm
from jaxalign.errors import InputError

TABLE = PALM | BOUNDS


@pytest.mark.parametrize(("name", "probe"), cases(TABLE))
def test_edge(name, probe):
    check(TABLE[name], probe)


def test_a_log_ref_may_be_minus_infinity_and_nothing_else_that_is_not_finite():
    log_ref = LOG_REF.copy()
    log_ref[1, 2] = -np.inf
    assert np.isfinite(palm.sweep(REWARDS, log_ref, WEIGHTS, BETA).values).all()
    for value, shown in ((np.nan, "nan"), (np.inf, "infinity")):
        log_ref[0, 1] = value
        with pytest.raises(InputError) as refused:
            palm.sweep(REWARDS, log_ref, WEIGHTS, BETA)
        assert str(refused.value) == (
            f"log_ref[0, 1] is {shown}; expected finite numbers: correct it."
        )
