"""Parameters into safetensors as transformers names them, one parameter in memory at a time."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxalign.errors import InputError
from jaxalign.files import write_folder_aside
from jaxalign.models.layers import is_stacked
from jaxalign.models.params import Params
from jaxalign.models.weights.layout import Layout, Leaf, Leaves, check_params
from jaxalign.models.weights.load import fill
from jaxalign.models.weights.safetensors import INDEX, SINGLE

# Weights of a folder, which new ones replace.
WEIGHTS = "model*.safetensors*"
Header: TypeAlias = tuple[str, str, tuple[int, ...], int]
"""Name, safetensors' dtype, shape and bytes of a tensor."""
_NAMES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@dataclass(frozen=True)
class _Entry:
    """One tensor to write."""

    name: str
    leaf: Leaf
    layer: int | None
    dtype: np.dtype


def save_params(
    folder: str | Path,
    params: Params,
    layout: Layout,
    max_shard_bytes: float = 5e9,
    dtype: DTypeLike | None = None,
) -> None:
    """Write parameters as `model.safetensors`, or as shards with their index.

    Args:
        folder: made where it is missing; weights in it are replaced once the new ones are whole.
        params: as `load_params` gives them, layers stacked or not.
        layout: the family's table, of stacked layers.
        max_shard_bytes: of one file; a larger tensor gets one of its own.
        dtype: of the file; None for that of each parameter.

    Raises:
        InputError: for parameters that do not fit the layout, or are not of floats.
    """
    layout = layout if is_stacked(params) else layout.unstacked()
    values = check_params(params, layout)
    entries = [
        _Entry(name, leaf, layer if leaf.layered else None, _dtype(leaf, values[leaf.path], dtype))
        for leaf in layout.leaves
        if leaf.path in values
        for layer, name in enumerate(layout.names(leaf))
    ]
    by_name = {entry.name: entry for entry in entries}
    headers = [header_of(entry.name, entry.leaf.shape, entry.dtype.name) for entry in entries]
    with write_folder_aside(folder, WEIGHTS, INDEX) as aside:
        save_shards(
            aside,
            headers,
            lambda names: _contents([by_name[name] for name in names], values),
            max_shard_bytes,
        )


def save_shards(
    folder: Path,
    headers: Sequence[Header],
    contents: Callable[[Sequence[str]], Iterator[np.ndarray]],
    max_shard_bytes: float = 5e9,
) -> None:
    """Write named tensors as `model.safetensors`, or as shards with their index.

    Args:
        folder: to write into, empty.
        headers: name, safetensors' dtype, shape and bytes of each tensor.
        contents: from names to the tensors, one in memory at a time.
        max_shard_bytes: of one file; a larger tensor gets one of its own.
    """
    shards = _shards(headers, max_shard_bytes)
    files = [SINGLE]
    if len(shards) > 1:
        files = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        with (folder / file).open("wb") as handle:
            write_tensors(handle, shard, contents([name for name, *_ in shard]))
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(size for *_, size in headers)},
            "weight_map": {
                name: file for file, shard in zip(files, shards, strict=True) for name, *_ in shard
            },
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def write_tensors(
    handle: IO[bytes], headers: Sequence[Header], values: Iterator[np.ndarray],
) -> None:  # fmt: skip
    """One safetensors file, written as its tensors come.

    Args:
        handle: open for writing, empty.
        headers: name, safetensors' dtype, shape and bytes of each tensor.
        values: their contents, in this order.

    Source: https://github.com/huggingface/safetensors (format).
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, shape, size in headers:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins on a multiple of 8
    handle.write(len(text).to_bytes(8, "little") + text)
    for value in values:
        handle.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)


def _contents(entries: Sequence[_Entry], values: Leaves) -> Iterator[np.ndarray]:
    held, whole = None, np.empty(0)
    for entry in entries:
        if held != entry.leaf.path:
            held, whole = entry.leaf.path, np.asarray(values[entry.leaf.path])
        value = (whole if entry.layer is None else whole[entry.layer]).astype(
            entry.dtype, copy=False
        )
        if entry.leaf.transpose:
            turned = np.empty(entry.leaf.shape, entry.dtype)
            fill(turned, value.T)
            value = turned
        yield value


def _shards(headers: Sequence[Header], most: float) -> list[list[Header]]:
    shards: list[list[Header]] = [[]]
    total = 0
    for header in headers:
        size = header[-1]
        if shards[-1] and total + size > most:
            shards.append([])
            total = 0
        shards[-1].append(header)
        total += size
    return shards


def header_of(name: str, shape: tuple[int, ...], dtype: str) -> Header:
    """The header of a tensor that is written in a dtype of JAX's name."""
    size = int(np.prod(shape, dtype=np.int64)) * jnp.dtype(dtype).itemsize
    return name, _NAMES[dtype], shape, size


def _dtype(leaf: Leaf, value: jax.Array, dtype: DTypeLike | None) -> np.dtype:
    found = jnp.dtype(value.dtype if dtype is None else dtype)
    if found.name not in _NAMES:
        raise InputError(
            f"parameter {'.'.join(leaf.path)} is {found.name}; expected one of {', '.join(_NAMES)}."
        )
    return found
