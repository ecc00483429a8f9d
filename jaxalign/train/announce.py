"""Programs that say when they are compiled, which can take minutes."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def announce(
    name: str, program: Callable[Arguments, Result], say: Callable[[str], None]
) -> Callable[Arguments, Result]:
    """Return the same program, which says when it meets new shapes and so is compiled.

    Args:
        name: what to call it, such as "the training step".
        program: a jitted function of trees of arrays.
        say: called with one line.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jaxalign.train.announce import announce
        >>> double = announce("doubling", jax.jit(lambda x: 2 * x), print)
        >>> double(jnp.ones(2)).tolist(), double(jnp.zeros(2)).tolist()
        compiling doubling
        ([2.0, 2.0], [0.0, 0.0])
    """
    seen: set[tuple[tuple[tuple[int, ...], str], ...]] = set()

    def called(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        leaves = jax.tree.leaves((arguments, named))
        shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
        if shapes not in seen:
            seen.add(shapes)
            say(f"compiling {name}")
        return program(*arguments, **named)

    return called
