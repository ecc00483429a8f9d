"""Arrays on many devices, of one process or of several."""

import math

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from jaxalign.models.params import PyTree

ROW_AXES = ("data", "fsdp")
"""Axes of a mesh over which the rows of a batch are shared out."""


def place(tree: PyTree, shardings: PyTree) -> PyTree:
    """`jax.device_put`, which here also reaches the devices of other processes.

    Args:
        tree: of arrays and random keys. With several processes, each holds the same whole arrays,
            of which its devices take their parts; or arrays that lie on all devices already.
        shardings: a tree alike, or one sharding for all leaves.

    Returns:
        The tree of arrays that lie there.

    Example:
        >>> import jax, numpy as np
        >>> from jax.sharding import SingleDeviceSharding
        >>> from jaxalign.models.global_arrays import place
        >>> place({"kernel": np.ones(2)}, SingleDeviceSharding(jax.devices()[0]))["kernel"].tolist()
        [1.0, 1.0]
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, Sharding):
        return jax.tree.map(lambda leaf: _placed(leaf, shardings), tree)
    return jax.tree.map(_placed, tree, shardings)


def to_host(tree: PyTree) -> PyTree:
    """Bring what other processes hold a part of to the host of every process, leaf by leaf.

    Args:
        tree: of arrays. Every process of a run makes the call.

    Returns:
        The tree with NumPy arrays in place of such leaves; all others stay where they are.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.models.global_arrays import to_host
        >>> to_host({"kernel": jnp.ones(2)})["kernel"].tolist()
        [1.0, 1.0]
    """
    return jax.tree.map(_whole, tree)


def row_parts(params: PyTree) -> int:
    """Return how many parts the rows of a batch are cut into for a model: 1 on one device.

    Args:
        params: of the model, which lie on its devices.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.models.global_arrays import row_parts
        >>> row_parts({"kernel": jnp.ones(2)})
        1
    """
    mesh = _mesh(params)
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in _row_axes(mesh))


def row_sharding(params: PyTree) -> NamedSharding | None:
    """Return where the rows of a batch lie that are shared out over the devices of a model.

    Args:
        params: of the model.

    Returns:
        The sharding of arrays [B, ...]; None on one device.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.models.global_arrays import row_sharding
        >>> print(row_sharding({"kernel": jnp.ones(2)}))
        None
    """
    mesh = _mesh(params)
    return None if mesh is None else NamedSharding(mesh, PartitionSpec(_row_axes(mesh)))


def place_rows(batch: PyTree, params: PyTree) -> PyTree:
    """Share the rows of a batch out over the devices that hold a model, so that all compute.

    Args:
        batch: tree of arrays [B, ...]; rows that do not divide over the devices lie whole on each.
        params: of the model. On one device, the batch stays as it is.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from jaxalign.models.global_arrays import place_rows
        >>> place_rows(np.ones((2, 3)), {"kernel": jnp.ones(2)}).shape
        (2, 3)
    """
    rows, parts = row_sharding(params), row_parts(params)
    if rows is None:
        return batch
    whole = NamedSharding(rows.mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: place(leaf, whole if len(leaf) % parts else rows), batch)


def place_whole(tree: PyTree, params: PyTree) -> PyTree:
    """Copy arrays to all devices that hold a model.

    Args:
        tree: of arrays and random keys.
        params: of the model. On one device, the tree stays as it is.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from jaxalign.models.global_arrays import place_whole
        >>> place_whole(np.ones(2), {"kernel": jnp.ones(2)}).tolist()
        [1.0, 1.0]
    """
    mesh = _mesh(params)
    return tree if mesh is None else place(tree, NamedSharding(mesh, PartitionSpec()))


def device_bytes(params: PyTree) -> int:
    """Return the bytes that parameters take on each of their devices.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.models.global_arrays import device_bytes
        >>> device_bytes({"kernel": jnp.ones(2)})
        8
    """
    shapes = ((leaf.sharding.shard_shape(leaf.shape), leaf) for leaf in jax.tree.leaves(params))
    return sum(math.prod(shape) * leaf.dtype.itemsize for shape, leaf in shapes)


def _mesh(params: PyTree) -> Mesh | None:
    """The devices of a model that lies on several; None on one, or where it is traced."""
    leaves = jax.tree.leaves(params)
    if not leaves or isinstance(leaves[0], jax.core.Tracer):
        return None
    sharding = getattr(leaves[0], "sharding", None)
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
        return None
    return sharding.mesh if sharding.mesh.size > 1 else None


def _row_axes(mesh: Mesh) -> tuple[str, ...]:
    return tuple(axis for axis in ROW_AXES if axis in mesh.shape)


def _placed(leaf: PyTree, sharding: Sharding) -> jax.Array:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _placed(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        if leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
            return leaf
        return jax.jit(_same, out_shardings=sharding)(leaf)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _same(leaf: jax.Array) -> jax.Array:
    return leaf


def _whole(leaf: PyTree) -> PyTree:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return leaf
    if leaf.is_fully_replicated:
        return np.asarray(leaf)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(leaf, tiled=True)
