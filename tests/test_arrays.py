"""Checks of whole numbers that no public function's table reaches."""

import tracemalloc

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxalign.arrays import check_array, check_whole
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


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_named_wherever_it_stands(dtype, place, bad):
    values = np.array([1, 2, 3], dtype)
    check_array("x", values, "N")
    values[place] = bad
    with pytest.raises(InputError, match=rf"x\[{place}\] is "):
        check_array("x", values, "N")


def test_a_check_makes_no_array_as_large():
    values = jnp.ones((1000, 1000))
    tracemalloc.start()
    check_array("x", values, "N M")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < values.nbytes / 10
