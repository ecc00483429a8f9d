"""Training state on disk, by orbax: whole or absent, restored bit for bit."""

from pathlib import Path
from typing import Any

import jax


def _plain(leaf: Any) -> Any:
    is_key = isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def save_state(path: str | Path, state: Any) -> None:
    """Write a tree of arrays and random keys; orbax renames it into place when it is whole."""
    from orbax.checkpoint import v1 as ocp

    # Leaves by number: optimiser states are tuples of types that orbax need not know.
    leaves = {f"{i:04d}": _plain(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    ocp.save(Path(path).absolute(), leaves, overwrite=True)


def load_state(path: str | Path, like: Any) -> Any:
    """Read what `save_state` wrote.

    Args:
        path: the checkpoint folder.
        like: a state of the same structure, whose values do not matter.

    Returns:
        The state, of the structure, types and placement of `like`.
    """
    from orbax.checkpoint import v1 as ocp

    leaves, structure = jax.tree.flatten(like)
    abstract = {
        f"{i:04d}": jax.ShapeDtypeStruct(plain.shape, plain.dtype, sharding=plain.sharding)
        for i, plain in enumerate(map(_plain, leaves))
    }
    stored = ocp.load(Path(path).absolute(), abstract)
    restored = [stored[f"{i:04d}"] for i in range(len(leaves))]
    typed = [
        jax.random.wrap_key_data(value) if _plain(leaf) is not leaf else value
        for value, leaf in zip(restored, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, typed)
