"""What are no numbers at all is refused with one sentence by every function that takes lists."""

import pytest
from edge_table import Entry
from test_every_function import TABLES

from jaxalign.errors import InputError

ENTRIES = {
    f"{package}.{name}": entry
    for package, table in TABLES.items()
    for name, entry in table.items()
    if "lists" not in entry.skipped
}
VALUES = {"an integer that no float holds": 10**400, "a text": "a", "nothing": None}


def with_last(values, last):
    """Nested lists with another last value, or without it where it is ..."""
    if not isinstance(values, list):
        return last
    if isinstance(values[-1], list):
        return [*values[:-1], with_last(values[-1], last)]
    return values[:-1] if last is ... else [*values[:-1], last]


def refused(entry: Entry, last: object) -> str:
    given = {name: array.tolist() for name, array in entry.arrays.items()}
    given[entry.live] = with_last(given[entry.live], last)
    with pytest.raises(InputError) as error:
        entry.call(**given)
    return str(error.value)


GAPS = {("data.from_columns", "nothing")}  # a row that states no strength


@pytest.mark.parametrize(
    ("name", "value"), [(n, v) for n in ENTRIES for v in VALUES if (n, v) not in GAPS]
)
def test_a_value_that_is_no_number(name, value):
    assert "\n" not in refused(ENTRIES[name], VALUES[value])


@pytest.mark.parametrize(
    "name", [name for name, entry in ENTRIES.items() if entry.arrays[entry.live].ndim > 1]
)
def test_rows_of_different_lengths(name):
    assert "\n" not in refused(ENTRIES[name], ...)
