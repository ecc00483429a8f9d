"""Devices as a mesh of three axes, and where each array lies on it.

`data` and `fsdp` share the rows of a batch; `fsdp` also cuts the parameters, which are gathered
layer by layer when they are used; `tensor` cuts heads, feed-forward and vocabulary, so that each
device computes its part of them. One table gives the axes of a parameter by its path, a second the
mesh axis of each of these; parameters stay plain dicts.

XLA follows the shardings of the inputs; a loss pins two things on them, or the compiler may cut
the states by width and put the whole batch on every device: the input embeddings, by
`jax.lax.with_sharding_constraint(embeddings, batch_sharding(mesh))`, and the table that they are
looked up in, by `gathered(table, mesh)`.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypedDict

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxalign.config_fields import checks_fields
from jaxalign.errors import InputError
from jaxalign.models.global_arrays import ROW_AXES
from jaxalign.models.params import PyTree

AXES = (*ROW_AXES, "tensor")

# The axes of each parameter by the end of its path; the first row of the right rank counts, without
# "layers" for unstacked ones. The "a" and "b" of an adapter take the axes of the weight that they
# adapt. A `weight` of a decoder is [out, in], a `kernel` of an encoder or a head [in, out].
Rules = Iterable[tuple[str, tuple[str | None, ...]]]
RULES: Rules = (
    (r"(embed|unembed)/table|embeddings/word", ("vocab", "embed")),
    (r"positions/table|embeddings/(position|type)", (None, "embed")),
    (r"attention/query/weight", ("layers", "heads", "embed")),
    (r"attention/(key|value)/weight", ("layers", "kv", "embed")),
    (r"attention/qkv/weight", ("layers", "fused", "embed")),
    (r"attention/out/weight", ("layers", "embed", "heads")),
    (r"attention/query/kernel", ("layers", "embed", "heads")),
    (r"attention/(key|value)/kernel", ("layers", "embed", "kv")),
    (r"attention/out/kernel", ("layers", "heads", "embed")),
    (r"attention/query/bias", ("layers", "heads")),
    (r"attention/(key|value)/bias", ("layers", "kv")),
    (r"attention/qkv/bias", ("layers", "fused")),
    (r"(gate|up)/weight", ("layers", "mlp", "embed")),
    (r"up/kernel", ("layers", "embed", "mlp")),
    (r"(gate|up)/bias", ("layers", "mlp")),
    (r"down/weight", ("layers", "embed", "mlp")),
    (r"down/kernel", ("layers", "mlp", "embed")),
    (r"(attention/out|down)/bias", ("layers", None)),
    (r"layers/(attention/)?\w*norm/(scale|bias)", ("layers", None)),
    (r"\w*norm/(scale|bias)", (None,)),
    (r"(head|value|score|inner)/kernel", (None, None)),
    (r"(head|value|score|inner)/bias", (None,)),
)
# The mesh axis of each logical one. Query, key and value side by side ("fused", GPT-2) stay whole:
# equal parts of the row of three would not be heads.
MESH_AXES = {
    "layers": None,
    "embed": "fsdp",
    "fused": None,
    "heads": "tensor",
    "kv": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}


@dataclass(frozen=True)
@checks_fields
class MeshConfig:
    """Number of devices of each mesh axis; their product is the number of devices.

    Attributes:
        data: copies of the parameters, at least 1, each of which computes its rows of the batch;
            -1, in one of the three fields, takes the rest of the devices.
        fsdp: parts that each parameter is cut into, at least 1, each of which computes its rows of
            the batch. Raise it if parameters and optimiser do not fit into one device's memory.
        tensor: parts that heads, feed-forward and vocabulary are cut into, at least 1. Raise it
            within one host only, where devices communicate fast.

    Example:
        >>> from jaxalign.train.mesh import MeshConfig
        >>> MeshConfig(data=1, fsdp=-1)
        MeshConfig(data=1, fsdp=-1, tensor=1)
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        sizes = (self.data, self.fsdp, self.tensor)
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise InputError(
                f"mesh of data {self.data}, fsdp {self.fsdp}, tensor {self.tensor}; expected "
                "positive sizes, at most one of them -1 for the rest of the devices."
            )


class DeviceReport(TypedDict):
    """What a run was computed on.

    Attributes:
        platform: cpu, gpu or tpu.
        kind: of a device, as its maker calls it.
        count: number of devices.
        processes: number of processes that they belong to.
        mesh: size of each axis.
    """

    platform: str
    kind: str
    count: int
    processes: int
    mesh: dict[str, int]


def device_report(mesh: Mesh) -> DeviceReport:
    """Return what a mesh is made of."""
    first = mesh.devices.flat[0]
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": mesh.size,
        "processes": jax.process_count(),
        "mesh": {axis: int(size) for axis, size in mesh.shape.items()},
    }


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a config, with axes `data`, `fsdp` and `tensor`.

    Args:
        config: sizes.
        devices: all of the mesh's; None takes those of all processes.

    Raises:
        InputError: where the sizes do not use up the devices.

    Example:
        >>> import jax
        >>> from jaxalign.train.mesh import MeshConfig, make_mesh
        >>> dict(make_mesh(MeshConfig(), jax.devices()[:1]).shape)
        {'data': 1, 'fsdp': 1, 'tensor': 1}
    """
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp, config.tensor]
    given = 1
    for size in sizes:
        given *= size if size != -1 else 1
    if -1 in sizes and len(devices) % given == 0:
        sizes[sizes.index(-1)] = len(devices) // given
    elif -1 in sizes or given != len(devices):
        raise InputError(
            f"mesh of data {config.data}, fsdp {config.fsdp}, tensor {config.tensor} on "
            f"{len(devices)} devices; expected sizes whose product is the number of devices: "
            "change one of them, or make it -1."
        )
    # Explicit axes, the default of jax.make_mesh, would type every array by its sharding.
    types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(sizes), AXES, axis_types=types, devices=devices)


def inference_shardings(parts: int = 1) -> Callable[[PyTree], PyTree] | None:
    """Return how parameters that are only read are laid out over the devices of this process.

    Args:
        parts: that each parameter is cut into, as far as the number of devices allows; the copies
            of all parts share the rows of a batch.

    Returns:
        From the shapes of parameters to a sharding for each, as the loaders of models take it;
        None on one device.

    Example:
        >>> from jaxalign.train.mesh import inference_shardings
        >>> inference_shardings() is None  # on one device
        True
    """
    devices = jax.local_devices()
    if len(devices) == 1:
        return None
    mesh = make_mesh(MeshConfig(data=-1, fsdp=math.gcd(parts, len(devices))), devices)
    return partial(param_shardings, mesh=mesh)


def param_shardings(
    shapes: PyTree, mesh: Mesh, config: PyTree = None, rules: Rules = RULES
) -> PyTree:
    """Where each parameter of a model, adapter or head lies.

    An axis whose size the mesh axis does not divide stays whole.

    Args:
        shapes: tree of arrays or `jax.ShapeDtypeStruct`.
        mesh: of `make_mesh`.
        config: the model's, whose `heads` and `kv_heads` are then cut as wholes only; None cuts
            by the size of the array, which gives the same values with more communication.
        rules: for parameters of your own, rows before those of `RULES`.

    Returns:
        The tree with a `jax.sharding.NamedSharding` for each leaf.

    Raises:
        InputError: for a parameter without a rule.
    """

    def at(path: PyTree, leaf: PyTree) -> NamedSharding:
        axes, _ = _axes(path, leaf, rules)
        if axes is None:
            raise InputError(
                f"parameter {_name(path)!r} with {leaf.ndim} axes has no rule in "
                "jaxalign.train.mesh: give one in `rules`."
            )
        return NamedSharding(mesh, _spec(axes, leaf.shape, mesh, config))

    return jax.tree_util.tree_map_with_path(at, shapes)


def state_shardings(
    state: PyTree, mesh: Mesh, config: PyTree = None, rules: Rules = RULES
) -> PyTree:
    """Where each leaf of a training state lies: what mirrors a parameter lies as the parameter.

    Args:
        state: tree of arrays or `jax.ShapeDtypeStruct` (`jax.eval_shape` of its making), such as
            parameters, optax states, random keys, counters. Scalars, keys, and what has a
            parameter's path with fewer axes (Adafactor's factors) lie whole on every device.
        mesh, config, rules: as in `param_shardings`.

    Returns:
        The tree with a `jax.sharding.NamedSharding` for each leaf.

    Raises:
        InputError: for any other leaf without a rule.
    """

    def at(path: PyTree, leaf: PyTree) -> NamedSharding:
        axes, mirrors = _axes(path, leaf, rules)
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        if axes is None and (mirrors or is_key or leaf.ndim == 0):
            return NamedSharding(mesh, PartitionSpec())
        if axes is None:
            raise InputError(
                f"state {_name(path)!r} with {leaf.ndim} axes has no rule in "
                "jaxalign.train.mesh: give one in `rules`."
            )
        return NamedSharding(mesh, _spec(axes, leaf.shape, mesh, config))

    return jax.tree_util.tree_map_with_path(at, state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows shared out over `data` and `fsdp`, all other axes whole: [B, ...]."""
    return NamedSharding(mesh, PartitionSpec(ROW_AXES))


def shard_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """A batch on the mesh, from the rows that this process holds.

    Args:
        batch: tree of host arrays [B, ...]. With many processes each gives its own rows, as many
            as every other; those whose devices hold the same rows (`tensor` across hosts) give
            the same.
        mesh: of `make_mesh`.

    Returns:
        The tree of global arrays.

    Raises:
        InputError: where the rows do not divide over this process's part of `data` and `fsdp`.
    """
    sharding = batch_sharding(mesh)
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    here = {str(index) for index in sharding.addressable_devices_indices_map((parts,)).values()}

    def put(leaf: PyTree) -> jax.Array:
        if leaf.shape[0] % len(here):
            raise InputError(
                f"a batch of {leaf.shape[0]} rows on {len(here)} parts of the mesh's data and fsdp "
                "axes; expected a multiple: change the batch size or the mesh."
            )
        return jax.make_array_from_process_local_data(sharding, leaf)

    return jax.tree.map(put, batch)


def gathered(table: jax.Array, mesh: Mesh) -> jax.Array:
    """A table [V, D] with whole rows on every part of `fsdp`, for looking up tokens.

    A row cut by `fsdp`, looked up for a batch cut by `fsdp`, would be gathered for all of the
    batch on each device.
    """
    axis = "tensor" if table.shape[0] % mesh.shape["tensor"] == 0 else None
    sharding = NamedSharding(mesh, PartitionSpec(axis))
    return jax.lax.with_sharding_constraint(table, sharding)


def _name(path: PyTree) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _axes(path: PyTree, leaf: PyTree, rules: Rules) -> tuple[tuple[str | None, ...] | None, bool]:
    """The logical axes of a leaf, None without a rule; and whether a rule knows its path."""
    name = _name(path)
    parent, _, last = name.rpartition("/")
    known = False
    apart = re.search(r"(^|/)layers_\d+/", name) is not None
    for pattern, axes in rules:
        if re.fullmatch(rf"(.*/)?({pattern})", name):
            known = True
            if len(axes) == leaf.ndim:
                return axes, True
            if apart and axes[0] == "layers" and len(axes) == leaf.ndim + 1:
                return axes[1:], True
        elif last in ("a", "b") and re.fullmatch(rf"(.*/)?({pattern})", f"{parent}/weight"):
            known = True
            if len(axes) == 3 and leaf.ndim in (3, 4):
                stack = (None,) * (leaf.ndim - 3)  # of many adapters
                pair = (axes[2], None) if last == "a" else (None, axes[1])
                return (axes[0], *stack, *pair), True
    return None, known


def _spec(
    axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh, config: PyTree
) -> PartitionSpec:
    parts: list[str | None] = []
    for logical, size in zip(axes, shape, strict=True):
        axis = None if logical is None else MESH_AXES[logical]
        if axis is not None and _wholes(logical, size, config) % mesh.shape[axis]:
            axis = None
        parts.append(axis)
    return PartitionSpec(*parts)


def _wholes(logical: str | None, size: int, config: PyTree) -> int:
    """How many pieces an axis has that are not to be cut."""
    if config is None or logical not in ("heads", "kv"):
        return size
    heads: int = config.heads
    return heads if logical == "heads" else getattr(config, "kv_heads", heads)
