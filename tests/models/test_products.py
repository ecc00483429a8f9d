"""The two forms of a product with a matrix: values, types and gradients of a plain product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.backend import programs_for
from jaxalign.models.products import times_matrix

TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 0.02}
MATRICES = [(5, 6), (256, 256)]  # of the second, few rows come second


def draws(*shapes):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape) for shape in shapes]


def close(found, expected, dtype):
    assert found.dtype == dtype
    bound = TOLERANCE[dtype]
    np.testing.assert_allclose(np.asarray(found, float), expected, rtol=bound, atol=8 * bound)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("sizes", MATRICES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 16, 64, 65])
def test_values_and_gradients_are_those_of_a_plain_product(rows, sizes, dtype, x64):
    out, into = sizes
    inputs, matrix, pull = (
        jnp.asarray(draw / into**0.5, dtype)
        for draw in draws((rows, 1, into), sizes, (rows, 1, out))
    )
    found, back = jax.jit(lambda *given: jax.vjp(times_matrix, *given))(inputs, matrix)
    x, w, g = (np.asarray(array, float) for array in (inputs, matrix, pull))
    close(found, x @ w.T, dtype)
    slopes = back(pull)
    close(slopes[0], g @ w, dtype)
    close(slopes[1], g[:, 0].T @ x[:, 0], dtype)


@pytest.mark.parametrize("sizes", MATRICES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 16, 64, 65])
def test_mapped_products_are_those_one_by_one(rows, sizes, x64):
    inputs, matrices = (jnp.asarray(draw) for draw in draws((3, rows, sizes[1]), (3, *sizes)))
    expected = np.einsum("KRD,KOD->KRO", inputs, matrices)
    close(jax.vmap(times_matrix)(inputs, matrices), expected, "float64")
    shared = jax.vmap(times_matrix, (0, None))(inputs, matrices[0])
    close(shared, np.einsum("KRD,OD->KRO", inputs, matrices[0]), "float64")
    _, scanned = jax.lax.scan(lambda carry, at: (carry, times_matrix(*at)), 0, (inputs, matrices))
    close(scanned, expected, "float64")


@pytest.mark.parametrize("sizes", MATRICES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 65])
def test_a_result_may_be_wider_than_its_factors(rows, sizes):
    inputs, matrix = (jnp.asarray(draw, jnp.bfloat16) for draw in draws((rows, sizes[1]), sizes))
    expected = np.asarray(inputs, float) @ np.asarray(matrix, float).T
    close(times_matrix(inputs, matrix, jnp.float32), expected, "float32")


def barriers(rows, sizes=(256, 256)):
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((rows, sizes[1]), sizes)]
    return str(jax.make_jaxpr(times_matrix)(*shapes)).count("optimization_barrier")


def test_only_a_cpu_takes_a_large_matrix_first_and_only_for_few_rows():
    assert [barriers(rows) for rows in (1, 2, 64, 65)] == [0, 1, 1, 0]
    assert barriers(2, (255, 256)) == 0
    with programs_for("gpu"):
        assert barriers(2) == 0
