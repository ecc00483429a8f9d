"""Types that all models share, and access to nested dicts of arrays."""

from collections.abc import Mapping
from typing import Any, TypeAlias, TypeVar, cast

import jax
import numpy as np

Array: TypeAlias = jax.Array | np.ndarray
"""An array on the device or on the host."""

Params: TypeAlias = Mapping[str, "Params | jax.Array"]
"""Parameters of a model, an adapter or a head: nested dicts of arrays."""

PyTree: TypeAlias = Any
"""A tree of arrays of any structure, as `jax.tree` walks it; jax has no type for it."""

Value = TypeVar("Value")


def leaf(params: Params, *path: str) -> jax.Array:
    """Return the array at a path of a nested dict.

    Args:
        params: nested dict of arrays.
        path: names from the root to the array.

    Raises:
        KeyError: there is no array at this path.

    Example:
        >>> from jaxalign.models.params import leaf
        >>> import jax.numpy as jnp
        >>> leaf({"embed": {"table": jnp.ones((3, 2))}}, "embed", "table").shape
        (3, 2)
    """
    node: Params | jax.Array = params
    for name in path:
        if not isinstance(node, Mapping):
            raise KeyError(".".join(path))
        node = node[name]
    if isinstance(node, Mapping):
        raise KeyError(f"{'.'.join(path)} is a dict of {', '.join(node)}")
    return node


def subtree(params: Params | None, name: str) -> Params:
    """Return the nested dict under a name; empty where there is none.

    Args:
        params: nested dict of arrays, or None for an empty one.
        name: of an entry that is itself a dict, or missing.

    Example:
        >>> from jaxalign.models.params import subtree
        >>> subtree({"mlp": {}}, "attention"), subtree(None, "mlp")
        ({}, {})
    """
    found = {} if params is None else params.get(name, {})
    if not isinstance(found, Mapping):
        raise KeyError(f"{name} is an array; expected a nested dict")
    return found


def put(tree: dict[str, Value], path: tuple[str, ...], value: object) -> None:
    """Set an entry of a nested dict, and make the dicts on the way that are missing.

    Args:
        tree: changed in place.
        path: names from the root to the entry.
        value: an array, a nested dict, or whatever else a tree of this shape holds.

    Example:
        >>> from jaxalign.models.params import put
        >>> tree = {}
        >>> put(tree, ("mlp", "up"), 3)
        >>> tree
        {'mlp': {'up': 3}}
    """
    node = cast(dict[str, object], tree)
    for name in path[:-1]:
        node = cast(dict[str, object], node.setdefault(name, {}))
    node[path[-1]] = value
