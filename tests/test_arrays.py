"""Checks of whole numbers that no public function's table reaches."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.arrays import check_whole
from jaxalign.errors import InputError


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([[1, 2], [3]], "ids: found rows of different lengths, expected whole numbers of shape"),
        ([0.5], "ids: found values of type float64, expected whole numbers of shape"),
        (
            [0, 2**31],
            r"found 2147483648, expected whole numbers from -2147483648 to 2147483647",
        ),
        (np.array([-(2**40)]), r"ids: found -1099511627776, expected whole numbers from"),
        ([2**70], "ids: found values of type object"),
    ],
)
def test_what_is_no_array_of_whole_numbers_is_refused(value, said):
    with pytest.raises(InputError, match=said):
        check_whole("ids", value, "N")


def test_the_largest_whole_numbers_pass():
    found = check_whole("ids", np.array([2**31 - 1, -(2**31)]), "N")
    assert found.dtype == jnp.int32
    assert found.tolist() == [2**31 - 1, -(2**31)]
