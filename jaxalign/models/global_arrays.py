"""Arrays whose parts lie on the devices of several processes."""

import jax
import numpy as np
from jax.sharding import Sharding

from jaxalign.models.params import PyTree


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
