"""Checks of the arguments of public functions that take arrays: shapes, types and bad values.

A public function passes each argument through `check_array` (or `check_mask`), and then calls its
mathematics with arrays of at least float32. Shapes are checked always, since they are known under
`jit` and `vmap` as well. Values are checked only where they are concrete: a traced array has none,
and the functions stay pure and jittable. What the mathematics does with NaN under `jit` is the
function's own matter: behind a mask of 0 it must not spread.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.typing import ArrayLike

from jaxalign.errors import InputError

Value = ArrayLike | npt.ArrayLike
"""What a caller may give for an array: NumPy's or JAX's, a number, or nested lists of numbers."""


class Sizes(dict[str, tuple[int, str]]):
    """Sizes of the dimensions that the arguments of one call share: letter -> (size, argument)."""


def check_array(
    name: str,
    value: Value,
    axes: str,
    sizes: Sizes | None = None,
    *,
    mask: jax.Array | None = None,
    empty: str = "",
    finite: bool = True,
    absent: bool = False,
) -> jax.Array:
    """Return an argument as an array of floating point numbers, at least float32.

    Args:
        name: of the argument, for the message.
        value: array, or nested lists of numbers.
        axes: letters of its dimensions, such as "U P E"; "..." before or after them stands for any.
        sizes: of the call's dimensions so far; those of this argument are added.
        mask: weights of the leading axes of `value`; values where it is 0 are not looked at.
        empty: letters of the dimensions that may be 0.
        finite: whether NaN and infinity are refused.
        absent: whether -infinity is allowed nevertheless, such as the log-probability of what
            cannot occur.

    Raises:
        InputError: no numbers, another shape, an empty dimension, or a value that is not finite;
            the last only where the value is concrete.

    Example:
        >>> from jaxalign.arrays import check_array
        >>> check_array("mean", [1, 2], "E").tolist()
        [1.0, 2.0]
        >>> try:
        ...     check_array("mean", [1.0, float("nan")], "E")
        ... except ValueError as error:
        ...     print(error)
        mean[1] is nan; expected finite numbers: correct it.
    """
    array = _widened(_numbers(name, value, axes))
    _check_shape(name, array.shape, axes, Sizes() if sizes is None else sizes, empty)
    if finite:
        _check_finite(name, array, _are_finite_or_absent if absent else _are_finite, mask)
    return jnp.asarray(array)


def check_numpy(
    name: str,
    value: Value,
    axes: str,
    sizes: Sizes | None = None,
    *,
    empty: str = "",
    finite: bool = True,
) -> npt.NDArray[np.float64]:
    """Return an argument as float64 numbers of NumPy, for functions that compute in NumPy.

    Args:
        name: of the argument, for the message.
        value: array, or nested lists of numbers.
        axes: as in `check_array`.
        sizes: as in `check_array`.
        empty: as in `check_array`.
        finite: as in `check_array`.

    Raises:
        InputError: as `check_array`.

    Example:
        >>> from jaxalign.arrays import check_numpy
        >>> check_numpy("values", [[1e300, 0]], "P W")
        array([[1.e+300, 0.e+000]])
    """
    array = np.asarray(_numbers(name, value, axes)).astype(np.float64)
    _check_shape(name, array.shape, axes, Sizes() if sizes is None else sizes, empty)
    if finite:
        _check_finite(name, array, _are_finite)
    return array


def check_mask(
    name: str, value: Value, axes: str, sizes: Sizes | None = None, *, empty: str = ""
) -> jax.Array:
    """Return a mask or weights as numbers, at least float32, none of them negative.

    Args:
        name: of the argument, for the message.
        value: bool, or weights of 0 or more.
        axes: as in `check_array`.
        sizes: as in `check_array`.
        empty: as in `check_array`.

    Raises:
        InputError: as `check_array`, and for a negative weight.

    Example:
        >>> from jaxalign.arrays import check_mask
        >>> check_mask("mask", [True, False], "P").tolist()
        [1.0, 0.0]
    """
    array = check_array(name, value, axes, sizes, empty=empty, finite=False)
    if (place := _first_bad(array, _are_weights)) is not None:
        raise InputError(
            f"{_at(name, place)} is {_shown(array, place)}; expected a finite weight of 0 or more: "
            "correct it, with 0 for what does not count."
        )
    return array


def check_whole(
    name: str, value: Value, axes: str, sizes: Sizes | None = None, *, empty: str = ""
) -> jax.Array:
    """Return an argument as an array of whole numbers, such as ids.

    Args:
        name: of the argument, for the message.
        value: array of an integer type, or nested lists of whole numbers.
        axes: as in `check_array`.
        sizes: as in `check_array`.
        empty: as in `check_array`.

    Raises:
        InputError: another type or shape, or a number that JAX has no integers for.

    Example:
        >>> from jaxalign.arrays import check_whole
        >>> check_whole("segments", [0, 0, 1], "N").tolist()
        [0, 0, 1]
    """
    array = _as_array(name, value, "whole numbers", axes)
    if not array.size and isinstance(value, list | tuple):
        array = array.astype(int)  # of no numbers NumPy takes floating point ones
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise _no_numbers(name, f"values of type {array.dtype}", "whole numbers", axes)
    _check_shape(name, array.shape, axes, Sizes() if sizes is None else sizes, empty)
    widest = jnp.iinfo(jax.dtypes.canonicalize_dtype(array.dtype))
    if isinstance(array, np.ndarray) and array.size and widest.bits < 8 * array.itemsize:
        for number in (int(array.min()), int(array.max())):
            if not widest.min <= number <= widest.max:
                raise InputError(
                    f"{name}: found {number}, expected whole numbers from {widest.min} to "
                    f"{widest.max}; correct it."
                )
    return jnp.asarray(array)


def check_number(
    name: str,
    value: float | jax.Array,
    least: float = -math.inf,
    most: float = math.inf,
    above: bool = False,
) -> None:
    """Refuse a number that is not finite or lies outside a range, where it is concrete.

    Args:
        name: of the argument, for the message.
        value: a number.
        least: the least it may be.
        most: the most it may be.
        above: whether `least` itself is refused.

    Raises:
        InputError: an array of numbers, NaN, infinity, or a number outside the range.

    Example:
        >>> from jaxalign.arrays import check_number
        >>> try:
        ...     check_number("temperature", 0.0, 0, above=True)
        ... except ValueError as error:
        ...     print(error)
        temperature: found 0, expected a finite number above 0; correct it.
    """
    if isinstance(value, jax.core.Tracer):
        _check_shape(name, value.shape, "", Sizes(), "")
        return
    number = check_scalar(name, value)
    if math.isfinite(number) and least <= number <= most and not (above and number == least):
        return
    low = "" if least == -math.inf else f"above {least:g}" if above else f"of {least:g} or more"
    high = "" if most == math.inf else f"at most {most:g}"
    wanted = " and ".join(part for part in (low, high) if part)
    raise InputError(
        f"{name}: found {number:g}, expected a finite number{wanted and f' {wanted}'}; correct it."
    )


def check_scalar(name: str, value: Value) -> float:
    """Return a number as a float of Python, whatever its type.

    Args:
        name: of the argument, for the message.
        value: a number, or an array without axes.

    Raises:
        InputError: something else.

    Example:
        >>> import numpy as np
        >>> from jaxalign.arrays import check_scalar
        >>> check_scalar("eps", np.float16(0.5))
        0.5
    """
    array = _numbers(name, value, "")
    _check_shape(name, array.shape, "", Sizes(), "")
    return float(array)


def check_count(name: str, value: Value, least: int = 1) -> int:
    """Return a count as an int of Python, whatever its type.

    Args:
        name: of the argument, for the message.
        value: a whole number.
        least: the least it may be.

    Raises:
        InputError: no whole number, or one below the least.

    Example:
        >>> from jaxalign.arrays import check_count
        >>> try:
        ...     check_count("size", 2.5)
        ... except ValueError as error:
        ...     print(error)
        size: found 2.5, expected a whole number; correct it.
    """
    number = check_scalar(name, value)
    check_number(name, number, least)
    if not number.is_integer():
        raise InputError(f"{name}: found {number:g}, expected a whole number; correct it.")
    return int(number)


def check_scale(name: str, array: jax.Array) -> None:
    """Refuse values whose squares, and the inverses of these, are no numbers of their precision.

    Args:
        name: of the argument, for the message.
        array: finite values, 0 where they do not count.

    Raises:
        InputError: the largest is outside the range, where it is concrete.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.arrays import check_scale
        >>> try:
        ...     check_scale("differences", jnp.array([1e30, 0.0], jnp.float32))
        ... except ValueError as error:
        ...     print(error)
        differences: the largest value is 1e+30, expected one from 7e-16 to 1e+15: rescale them.
    """
    values = _testable(array)
    if values is None:
        return
    largest = max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))
    tiny = float(np.finfo(values.dtype).tiny)
    if largest and not tiny**0.4 <= largest <= tiny**-0.4:
        raise InputError(
            f"{name}: the largest value is {largest:.0e}, expected one from {tiny**0.4:.0e} to "
            f"{tiny**-0.4:.0e}: rescale them."
        )


def _check_finite(
    name: str,
    array: np.ndarray | jax.Array,
    good: Callable[[Any], Any],
    mask: jax.Array | None = None,
) -> None:
    place = _first_bad(array, good, mask)
    if place is not None:
        where = "finite numbers" if mask is None else "finite numbers where the mask is above 0"
        remedy = "correct it" if mask is None else "correct it, or set the mask to 0 there"
        raise InputError(
            f"{_at(name, place)} is {_shown(array, place)}; expected {where}: {remedy}."
        )


def _numbers(name: str, value: Value, axes: str) -> np.ndarray | jax.Array:
    """An array of numbers of the type that they have."""
    array = _as_array(name, value, "numbers", axes)
    kinds = (jnp.floating, jnp.integer, jnp.bool_)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in kinds):
        raise _no_numbers(name, f"values of type {array.dtype}", "numbers", axes)
    return array


def _as_array(name: str, value: Value, wanted: str, axes: str) -> np.ndarray | jax.Array:
    if isinstance(value, jax.Array):
        return value
    try:
        return np.asarray(value)
    except (ValueError, TypeError, OverflowError):
        raise _no_numbers(name, "rows of different lengths", wanted, axes) from None


def _widened(array: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
    """The same numbers as at least float32."""
    kind = array.dtype
    floating = jnp.issubdtype(kind, jnp.floating)
    wide = jnp.promote_types(kind, jnp.float32) if floating else jnp.result_type(float)
    with np.errstate(over="ignore"):  # found by the check for finite numbers
        return array.astype(jax.dtypes.canonicalize_dtype(wide))


def _no_numbers(name: str, found: str, wanted: str, axes: str) -> InputError:
    return InputError(
        f"{name}: found {found}, expected {wanted} of shape {_expected(axes)}; correct it."
    )


def _check_shape(name: str, shape: tuple[int, ...], axes: str, sizes: Sizes, empty: str) -> None:
    letters = [letter for letter in axes.split() if letter != "..."]
    rest = len(shape) - len(letters)
    fits = rest >= 0 if "..." in axes else rest == 0
    own = shape[rest:] if axes.startswith("...") else shape[: len(letters)]
    if not fits:
        wanted = f"an array of {len(letters)} {'axis' if len(letters) == 1 else 'axes'}"
        raise InputError(
            f"{name}: found shape {list(shape)}, expected {_expected(axes)}; give "
            f"{wanted if axes else 'one number'}{' or more' if '...' in axes else ''}."
        )
    for letter, size in zip(letters, own, strict=True):
        if letter.isdigit() or (size == 0 and letter not in empty):
            wanted = letter if letter.isdigit() else "1 or more"
            if str(size) != wanted:
                raise InputError(
                    f"{name}: found shape {list(shape)}, expected {_expected(axes)} with "
                    f"{letter} {wanted}; correct it."
                )
        known, source = sizes.setdefault(letter, (size, name))
        if known != size:
            raise InputError(
                f"{name}: found shape {list(shape)}, expected {_expected(axes)} with {letter} = "
                f"{known} as in {source}; correct one of the two."
            )


def _expected(axes: str) -> str:
    return "a number" if not axes else f"[{', '.join(axes.split())}]"


def _are_finite(array: Any) -> Any:
    return abs(array) < math.inf


def _are_finite_or_absent(array: Any) -> Any:
    return array < math.inf


def _are_weights(array: Any) -> Any:
    return (array >= 0) & (array < math.inf)


def _testable(array: np.ndarray | jax.Array) -> np.ndarray | jax.Array | None:
    """The values where they lie, from a CPU as NumPy's, whose tests need no compilation.

    None where they are traced, or on devices of other processes.
    """
    if not isinstance(array, jax.Array):
        return array
    if isinstance(array, jax.core.Tracer) or not array.is_fully_addressable:
        return None
    on_cpu = any(device.platform == "cpu" for device in array.devices())
    return np.asarray(array) if on_cpu else array


def _first_bad(
    array: np.ndarray | jax.Array, good: Callable[[Any], Any], mask: jax.Array | None = None
) -> tuple[int, ...] | None:
    """The index of the first value that fails a test and counts; None where there is none.

    Where all pass, only one bit leaves an accelerator, and no array as large is made: the values
    that pass a test lie between two ends, and the least and the greatest are NaN where any is.
    """
    values = _testable(array)
    if values is None or not values.size:
        return None
    with np.errstate(invalid="ignore", over="ignore"):  # of NaN in half precision
        if bool(good(values.min()) & good(values.max())):
            return None
        return _first_that_counts(np.asarray(values), good, mask)


def _first_that_counts(
    host: np.ndarray, good: Callable[[Any], Any], mask: jax.Array | None
) -> tuple[int, ...] | None:
    bad = ~good(host)
    if mask is not None:
        weights = _testable(mask)
        if weights is None:
            return None
        live = np.asarray(weights) > 0
        bad &= live.reshape(live.shape + (1,) * (host.ndim - live.ndim))
    return tuple(map(int, np.unravel_index(np.argmax(bad), bad.shape))) if bad.any() else None


def _at(name: str, place: tuple[int, ...]) -> str:
    return f"{name}[{', '.join(map(str, place))}]" if place else name


def _shown(array: np.ndarray | jax.Array, place: tuple[int, ...]) -> str:
    value = float(array[place])
    return "infinity" if value == math.inf else "-infinity" if value == -math.inf else f"{value:g}"
