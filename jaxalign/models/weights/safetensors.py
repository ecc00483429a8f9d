"""Safetensors files, one or several, as one set of named arrays."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxalign.errors import InputError
from jaxalign.recognise import instead

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# What safetensors does not read into NumPy arrays.
_FLOAT8 = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}
_READ = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")


class TensorFile(Protocol):
    """An open file of tensors."""

    def get_tensor(self, name: str, /) -> np.ndarray:
        """Return a tensor by its name."""


@dataclass(frozen=True)
class Tensors:
    """Open weight files: names and shapes at once, values when read.

    Attributes:
        source: what to call the files in messages.
        shapes: of every tensor, by name.
    """

    source: str
    shapes: Mapping[str, tuple[int, ...]]
    _files: Mapping[str, TensorFile]

    def read(self, name: str) -> np.ndarray:
        """The tensor of this name, in the dtype of the file."""
        return self._files[name].get_tensor(name)


@contextmanager
def open_tensors(paths: Sequence[Path]) -> Iterator[Tensors]:
    """Weight files opened together.

    Args:
        paths: one safetensors file, or all shards of a model.

    Yields:
        The tensors of all files, readable until the context ends.

    Raises:
        InputError: for a file that is missing, truncated or not safetensors, or a name held twice.
    """
    with ExitStack() as stack:
        files: dict[str, TensorFile] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for path in paths:
            handle = stack.enter_context(_open(path))
            for name in handle.keys():  # noqa: SIM118  (a handle is no mapping)
                if name in files:
                    raise InputError(f"{path}: tensor {name!r} is also in another shard.")
                described = handle.get_slice(name)
                shapes[name] = tuple(described.get_shape())
                kind = described.get_dtype()
                files[name] = handle if kind in _READ else _Float8(path, kind)
        yield Tensors(_title(paths), shapes, files)


@dataclass(frozen=True)
class _Float8:
    """A file whose tensors of 8-bit floating point numbers are read."""

    path: Path
    kind: str

    def get_tensor(self, name: str) -> np.ndarray:
        if self.kind not in _FLOAT8:
            raise InputError(
                f"{self.path}: tensor {name!r} holds {self.kind}, which is not read; expected "
                "floating point numbers of 8 bits or more: take a checkpoint that is not quantised."
            )
        with self.path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            entry = json.loads(file.read(size))[name]
            start, end = entry["data_offsets"]
            file.seek(8 + size + start)
            raw = np.frombuffer(file.read(end - start), _FLOAT8[self.kind])
        return raw.reshape(entry["shape"])


def find_weights(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a model's folder, in the order of their names.

    Args:
        folder: holds `model.safetensors`, or the index of a sharded model and its shards, or one
            safetensors file of another name.

    Raises:
        InputError: where there is none, several without an index, or a shard is missing.
    """
    if (folder / INDEX).is_file():
        return _shards(folder / INDEX)
    if (folder / SINGLE).is_file():
        return (folder / SINGLE,)
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return (found[0],)
    what = "several safetensors files and no index" if found else "no safetensors file"
    raise InputError(
        f"{folder}: found {what}{instead(folder)}; expected a model with {SINGLE}, or {INDEX} and "
        "its shards: give the folder of a model, or save it again with safe serialisation."
    )


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        paths = tuple(index.parent / name for name in names)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(
            f"{index}: not a readable index; expected JSON with a weight_map from tensor to file: "
            "download it again."
        ) from error
    for path in paths:
        if path.parent != index.parent:
            raise InputError(f"{index}: shard {path.name!r} lies outside the model's folder.")
        if not path.is_file():
            raise InputError(f"{index}: shard {path.name} is missing: download it again.")
    return paths


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: not a whole safetensors file ({error}): download or save it again."
        ) from error


def _title(paths: Sequence[Path]) -> str:
    return str(paths[0]) if len(paths) == 1 else f"{paths[0].parent} ({len(paths)} shards)"
