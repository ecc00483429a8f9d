"""Numbers that are none, infinite or out of range, see `numbers_table`."""

import math

import pytest
from numbers_table import NUMBERS

from jaxalign.errors import InputError

CASES = [
    (function, argument, value)
    for function, arguments in NUMBERS.items()
    for argument, (_, said) in arguments.items()
    for value in said
]


@pytest.mark.parametrize(("function", "argument", "value"), CASES)
def test_a_number(function, argument, value):
    call, said = NUMBERS[function][argument]
    # NaN is not equal to itself, but it is the same object.
    if said[value] is None:
        assert math.isnan(call(value))
        return
    with pytest.raises(InputError) as refused:
        call(value)
    assert str(refused.value) == said[value]
