"""Tensors of files into stacked, sharded parameters, one tensor in memory at a time."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding
from jax.typing import DTypeLike

from jaxalign.errors import InputError
from jaxalign.models.params import Params, put
from jaxalign.models.weights.layout import Layout, Leaf
from jaxalign.models.weights.quantised import refuse_quantised_tensors
from jaxalign.models.weights.safetensors import Tensors

ShapeTree: TypeAlias = Mapping[str, "ShapeTree | jax.ShapeDtypeStruct"]
ShardingTree: TypeAlias = Mapping[str, "ShardingTree | Sharding"]
# From the shapes of parameters to where each one goes.
Shardings: TypeAlias = Callable[[ShapeTree], ShardingTree]
# Rows turned at once: a block that fits the processor's cache is several times faster.
_BLOCK = 256
_ALIGNMENT = 64  # bytes; XLA on a CPU takes such memory as it is


def load_params(
    tensors: Tensors,
    layout: Layout,
    dtype: DTypeLike = "float32",
    shardings: ShardingTree | None = None,
) -> Params:
    """Parameters of a model, from open files straight to where they belong.

    Names and shapes are checked before anything is read. Each tensor is then read once, and only
    the parts that this process's devices hold are kept.

    Args:
        tensors: open files, safetensors or GGUF.
        layout: the family's table.
        dtype: of the parameters.
        shardings: tree of `jax.sharding.Sharding` like the parameters (`abstract_params`); None
            for the default device.

    Returns:
        Nested dicts of arrays; layers stacked, [L, ...].

    Raises:
        InputError: for a tensor that is missing, unknown, of another shape or not of floats.
    """
    dtype = jnp.dtype(dtype)
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise InputError(f"dtype {dtype.name} needs JAX's 64-bit mode: set jax_enable_x64.")
    names = match_names(tensors, layout)
    _check_copies(tensors, layout, names)
    # Where none are given: the default device, which jax.default_device may have set.
    default: Sharding = SingleDeviceSharding(next(iter(jnp.zeros(()).devices())))
    params: dict[str, Params | jax.Array] = {}
    # The largest tensors first, while there is least beside them.
    for leaf in sorted(layout.leaves, key=lambda leaf: -np.prod(leaf.shape, dtype=np.int64)):
        if layout.names(leaf)[0] in names:
            sharding = default if shardings is None else _at(shardings, leaf.path)
            put(params, leaf.path, _read_leaf(tensors, layout, leaf, names, dtype, sharding))
    return params


def abstract_params(layout: Layout, dtype: DTypeLike = "float32") -> ShapeTree:
    """Shapes and dtypes of the parameters, as `jax.ShapeDtypeStruct`; optional ones included."""
    tree: dict[str, ShapeTree | jax.ShapeDtypeStruct] = {}
    for leaf in layout.leaves:
        put(tree, leaf.path, jax.ShapeDtypeStruct(layout.shape(leaf), jnp.dtype(dtype)))
    return tree


def match_names(tensors: Tensors, layout: Layout, replaced: Collection[str] = ()) -> dict[str, str]:
    """The file's name of every tensor in the table; optional ones that are missing left out.

    Args:
        tensors: open files.
        layout: the family's table.
        replaced: tensors of the table that come from elsewhere: here they may be missing, or of
            another shape.

    Raises:
        InputError: for a tensor that is missing, held twice, unknown or of another shape.
    """
    expected = dict(layout.tensors())
    copies = {name for name, _ in layout.copies}
    names: dict[str, str] = {}
    extra: list[str] = []
    for found in tensors.shapes:
        known = [name for name in spellings(found, layout) if name in expected or name in copies]
        if not known:
            if not any(re.match(layout.ignored, name) for name in spellings(found, layout)):
                extra.append(found)
            continue
        if known[0] in names:
            raise InputError(
                f"{tensors.source}: tensors {names[known[0]]!r} and {found!r} are the same "
                "parameter; expected one of them: save the model again."
            )
        names[known[0]] = found
    refuse_quantised_tensors(extra, tensors.source)
    needed = [name for name in expected if not re.match(layout.optional, name)]
    missing = [name for name in needed if name not in names and name not in replaced]
    for what, wrong in (("missing", missing), ("not part of this model", extra)):
        if wrong:
            more = f" and {len(wrong) - 1} more are" if len(wrong) > 1 else " is"
            raise InputError(
                f"{tensors.source}: tensor {min(wrong)!r}{more} {what}; "
                "expected those that config.json describes: check that the two belong together."
            )
    for name, shape in expected.items():
        if name in names and name not in replaced and tensors.shapes[names[name]] != shape:
            raise InputError(
                f"{tensors.source}: tensor {names[name]!r} has shape "
                f"{list(tensors.shapes[names[name]])}; config.json asks for {list(shape)}: "
                "check that the two belong together."
            )
    return names


def spellings(name: str, layout: Layout) -> Iterator[str]:
    """A file's name of a tensor as it may stand in the table: renamed, with or without prefixes."""
    for pattern, now in layout.renamed:
        name = re.sub(pattern, now, name)
    yield name
    for prefix in layout.prefixes:
        yield name.removeprefix(prefix) if name.startswith(prefix) else prefix + name


def _check_copies(tensors: Tensors, layout: Layout, names: Mapping[str, str]) -> None:
    for copy, original in layout.copies:
        if copy in names and not np.array_equal(
            tensors.read(names[copy]), tensors.read(names[original])
        ):
            raise InputError(
                f"{tensors.source}: tensors {names[copy]!r} and {names[original]!r} differ; "
                "config.json ties them: set tie_word_embeddings to false if both are meant."
            )


def _read_leaf(
    tensors: Tensors,
    layout: Layout,
    leaf: Leaf,
    names: Mapping[str, str],
    dtype: np.dtype,
    sharding: Sharding,
) -> jax.Array:
    """One parameter: a host buffer for each distinct part, handed over without a copy on a CPU."""
    shape = layout.shape(leaf)
    places = sharding.addressable_devices_indices_map(shape)
    parts = {_bounds(index, shape): index for index in places.values()}
    buffers = {
        bounds: _aligned(tuple(stop - start for start, stop in bounds), dtype) for bounds in parts
    }
    for layer, name in enumerate(layout.names(leaf)):
        if leaf.layered and not any(start <= layer < stop for (start, stop), *_ in buffers):
            continue
        value = tensors.read(names[name])
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise InputError(
                f"{tensors.source}: tensor {names[name]!r} holds {value.dtype.name}; expected "
                "floating point numbers: take a checkpoint that is not quantised, or a GGUF file."
            )
        value = value.T if leaf.transpose else value
        for bounds, buffer in buffers.items():
            if not leaf.layered:
                fill(buffer, value[_slices(bounds)])
            elif bounds[0][0] <= layer < bounds[0][1]:
                fill(buffer[layer - bounds[0][0]], value[_slices(bounds[1:])])
        del value
    arrays = [
        jax.device_put(buffers[_bounds(index, shape)], device, may_alias=True)
        for device, index in places.items()
    ]
    result = jax.make_array_from_single_device_arrays(shape, sharding, arrays)
    # Else the buffers of several leaves wait on the host for an accelerator's transfers.
    return result.block_until_ready()


def _bounds(index: tuple[slice, ...] | None, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    index = index or (slice(None),) * len(shape)
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _slices(bounds: tuple[tuple[int, int], ...]) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in bounds)


def fill(target: np.ndarray, value: np.ndarray) -> None:
    """target[...] = value, in blocks where one of the two lies the other way round."""
    if value.ndim != 2 or value.flags.c_contiguous:
        target[...] = value
        return
    for start in range(0, value.shape[1], _BLOCK):
        target[:, start : start + _BLOCK] = value[:, start : start + _BLOCK]


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def _at(tree: ShardingTree, path: tuple[str, ...]) -> Sharding:
    node: ShardingTree | Sharding = tree
    for name in path:
        if isinstance(node, Sharding):
            raise TypeError(f"shardings end above {'.'.join(path)}")
        node = node[name]
    if not isinstance(node, Sharding):
        raise TypeError(f"shardings hold no sharding at {'.'.join(path)}")
    return node
