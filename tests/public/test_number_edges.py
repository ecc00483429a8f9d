"""Numbers that are none, infinite or out of range, see `numbers_table`."""

import math

import pytest
from numbers_table import NUMBERS

from jaxalign.errors import InputError

CASES = [
    (function, argument, value)
    for function, arguments in NUMBERS.items()
    for argument, (_, words) in arguments.items()
    for value in words
]


@pytest.mark.parametrize(("function", "argument", "value"), CASES)
def test_a_number(function, argument, value):
    call, words = NUMBERS[function][argument]
    # NaN is not equal to itself, but it is the same object.
    if words[value] is None:
        assert math.isnan(call(value))
        return
    with pytest.raises(InputError) as refused:
        call(value)
    assert str(refused.value) == words[value]
