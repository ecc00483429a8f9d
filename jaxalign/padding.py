"""Padding that does not spread: what a mask of 0 leaves out reaches no result and no gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def kept(mask: jax.Array, values: jax.Array) -> jax.Array:
    """Return values with 0 where the mask is not above 0: neither they nor gradients spread.

    Args:
        mask: weights of the leading axes of `values`.
        values: [..., any].

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.padding import kept
        >>> kept(jnp.array([1.0, 0.0]), jnp.array([[2.0], [jnp.nan]])).tolist()
        [[2.0], [0.0]]
    """
    live = (mask > 0).reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
    return jnp.where(live, values, 0)


def over_kept(
    function: Callable[..., jax.Array], mask: jax.Array, values: jax.Array, *others: Any
) -> jax.Array:
    """Return `function(kept(mask, values), mask, *others)`, without a pass over finite padding.

    Setting padding to 0 is one more pass over an array, which counts where the function itself
    makes only a few. Under `jit` the function is therefore run on the array as it is, and once more
    with padding set to 0 where its result is not finite. Derivatives always take the latter.

    Args:
        function: pure; all arrays that may be traced are its arguments. It multiplies what padding
            gives by the mask, so that a finite value there changes nothing and any other value
            makes the result NaN.
        mask: weights of the leading axes of `values`.
        values: [..., any].
        others: further arguments of the function, trees of arrays.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jaxalign.padding import over_kept
        >>> total = jax.jit(lambda mask, v: over_kept(lambda v, mask: mask @ v, mask, v))
        >>> total(jnp.array([1.0, 0.0]), jnp.array([[2.0], [jnp.nan]])).tolist()
        [2.0]
    """

    def cleaned(values: jax.Array, mask: jax.Array, *others: Any) -> jax.Array:
        return function(kept(mask, values), mask, *others)

    if not isinstance(values, jax.core.Tracer):  # nothing fuses here: one program is enough
        return cleaned(values, mask, *others)

    @jax.custom_jvp
    def lazily(values: jax.Array, mask: jax.Array, *others: Any) -> jax.Array:
        return _mended(function(values, mask, *others), lambda _: cleaned(values, mask, *others))

    @lazily.defjvp
    def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
        found: tuple[jax.Array, jax.Array] = jax.jvp(cleaned, primals, tangents)
        return found

    found: jax.Array = lazily(values, mask, *others)
    return found


def _mended(result: jax.Array, again: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The result, or what `again` makes of it where a value is not finite."""
    # At most one turn of a loop: under `vmap` a `cond` would always run both of its branches.
    bad = ~jnp.isfinite(jnp.sum(result))
    found: jax.Array = jax.lax.while_loop(
        lambda carry: carry[1], lambda carry: (again(carry[0]), jnp.array(False)), (result, bad)
    )[0]
    return found
