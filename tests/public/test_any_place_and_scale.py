"""Every entry with a bad value at any place, at scales from 1e-8 to 1e8, in any memory layout."""

import numpy as np
import pytest
from edge_table import Entry, check_value
from hypothesis import given, settings
from hypothesis import strategies as st
from test_every_function import TABLES

from jaxalign.errors import InputError

ALL = {
    f"{package}.{name}": entry for package, table in TABLES.items() for name, entry in table.items()
}
BAD = st.sampled_from((np.nan, np.inf, -np.inf))
EXAMPLES = settings(max_examples=4)


def counted(entry: Entry) -> np.ndarray:
    """Where the argument that is poisoned counts."""
    shape = entry.arrays[entry.live].shape
    if entry.mask is None:
        return np.ones(shape, bool)
    mask = entry.arrays[entry.mask] > 0
    return np.broadcast_to(mask.reshape(mask.shape + (1,) * (len(shape) - mask.ndim)), shape)


def poisoned(entry: Entry, data: st.DataObject, places: np.ndarray) -> dict[str, np.ndarray]:
    place = data.draw(st.sampled_from([tuple(row) for row in np.argwhere(places).tolist()]))
    array = np.array(entry.arrays[entry.live], np.float64)
    array[place] = data.draw(BAD)
    return {**entry.arrays, entry.live: array}


def refuses(entry: Entry) -> bool:
    """Whether every value that counts has to be finite."""
    return {"nan live", "infinity live"} <= set(entry.refused)


@pytest.mark.parametrize("name", [name for name, entry in ALL.items() if refuses(entry)])
@EXAMPLES
@given(data=st.data())
def test_a_value_that_is_not_finite_is_refused_wherever_it_counts(name, data):
    entry = ALL[name]
    with pytest.raises(InputError):
        entry.call(**poisoned(entry, data, counted(entry)))


@pytest.mark.parametrize(
    "name", [n for n, e in ALL.items() if e.mask is not None and "nan masked" not in e.skipped]
)
@EXAMPLES
@given(data=st.data())
def test_what_does_not_count_may_hold_anything(name, data):
    entry = ALL[name]
    arrays = poisoned(entry, data, ~counted(entry))
    check_value(entry, arrays, arrays)


def laid_out(array: np.ndarray, layout: str) -> np.ndarray:
    """The same numbers, elsewhere in memory."""
    if array.ndim and layout == "columns":  # NumPy would give a number an axis
        return np.asfortranarray(array)
    return array[::-1].copy()[::-1] if layout == "reversed" and array.ndim else array


# At the ends the table says what a function does.
SCALED = [n for n, e in ALL.items() if not {"scale 1e-8", "scale 1e8"} & {*e.skipped, *e.refused}]


@pytest.mark.parametrize("name", SCALED)
@EXAMPLES
@given(exponent=st.integers(-8, 8), layout=st.sampled_from(("rows", "columns", "reversed")))
def test_every_scale_and_layout_gives_the_value(name, exponent, layout):
    entry = ALL[name]
    scaled = entry.scaled or (entry.live,)
    arrays = {
        name: laid_out(array * 10.0**exponent if name in scaled else array, layout)
        for name, array in entry.arrays.items()
    }
    check_value(entry, arrays, arrays)
