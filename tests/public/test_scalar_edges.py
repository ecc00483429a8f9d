"""Functions of numbers at their edges, see `scalars_table`."""

import numpy as np
import pytest
from edge_table import cases, check
from scalars_table import SCALARS

from jaxalign import metrics, moc
from jaxalign.errors import InputError

CASES = [(package, *case) for package, table in SCALARS.items() for case in cases(table)]


@pytest.mark.parametrize(("package", "name", "probe"), CASES)
def test_edge(package, name, probe):
    check(SCALARS[package][name], probe)


ENTRIES = [entry for table in SCALARS.values() for entry in table.values()]


def test_probes_are_left_out_only_of_numbers_and_counts():
    numbers = [entry for entry in ENTRIES if "a number" in entry.skipped.values()]
    counts = [entry for entry in ENTRIES if "a count" in entry.skipped.values()]
    assert {value.ndim for entry in numbers for value in entry.arrays.values()} == {0}
    kinds = {value.dtype.kind for entry in counts for value in entry.arrays.values()}
    assert kinds == {"i"}


def test_a_share_of_a_count_is_refused():
    with pytest.raises(InputError) as refused:
        moc.evaluation_points(2.5)
    assert str(refused.value) == "count: found 2.5, expected a whole number; correct it."


def test_no_known_gap_has_no_share():
    for given in ((np.nan, 0.25, 0.75), (0.5, 0.75, 0.25)):
        assert np.isnan(metrics.share_of_gap(*given))
