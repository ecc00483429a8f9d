"""The head of a GGUF file: its metadata, and where each tensor lies."""

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast

from jaxalign.errors import InputError

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

Scalar: TypeAlias = bool | int | float | str
Value: TypeAlias = Scalar | list[Scalar]
Kind = TypeVar("Kind")

ARCHITECTURES = ("llama", "qwen2", "qwen3")
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_SCALARS[12] = "d"
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies and how.

    Attributes:
        shape: as in Hugging Face's files, the fastest dimension last.
        kind: a `gguf.GGMLQuantizationType`.
        offset: first byte in the file.
        size: bytes in the file.
    """

    shape: tuple[int, ...]
    kind: "GGMLQuantizationType"
    offset: int
    size: int


@dataclass(frozen=True)
class Header:
    """What a GGUF file says before its tensors.

    Attributes:
        path: the file.
        fields: the metadata; arrays are lists.
        tensors: by llama.cpp's names.
    """

    path: Path
    fields: Mapping[str, Value]
    tensors: Mapping[str, TensorEntry]

    @property
    def architecture(self) -> str:
        """One of `ARCHITECTURES`.

        Raises:
            InputError: for another one.
        """
        found = self.text("general.architecture")
        if found not in ARCHITECTURES:
            raise InputError(
                f"{self.path}: general.architecture is {found!r}; expected one of "
                f"{', '.join(ARCHITECTURES)}."
            )
        return found

    def text(self, key: str) -> str:
        """A field that holds a text.

        Raises:
            InputError: where it is missing or something else.
        """
        return self._field(key, str, "a text")

    def number(self, key: str, default: int | None = None) -> int:
        """A field of the architecture that holds a positive whole number.

        Args:
            key: without the architecture's name, such as `block_count`.
            default: where the field is missing; None for a field that has to be there.

        Raises:
            InputError: where it is missing without a default, or something else.
        """
        full = f"{self.architecture}.{key}"
        if default is not None and full not in self.fields:
            return default
        value = self._field(full, int, "a positive whole number")
        if isinstance(value, bool) or value < 1:
            raise self._wrong(full, value, "a positive whole number")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A field of the architecture that holds a positive number, as the shortest decimal.

        GGUF keeps float32: 1e-5 comes back as 9.9999997e-06, and is 1e-5 again here.

        Args:
            key: without the architecture's name, such as `rope.freq_base`.
            default: where the field is missing; None for a field that has to be there.

        Raises:
            InputError: where it is missing without a default, or something else.
        """
        import numpy as np

        full = f"{self.architecture}.{key}"
        if default is not None and full not in self.fields:
            return default
        value = self._field(full, float, "a positive number")
        if not 0.0 < value < float("inf"):
            raise self._wrong(full, value, "a positive number")
        return float(str(np.float32(value)))

    def texts(self, key: str) -> list[str]:
        """A field that holds a list of texts.

        Raises:
            InputError: where it is missing or something else.
        """
        values = self._field(key, list, "a list of texts")
        if values and not isinstance(values[0], str):  # an array holds one type
            raise self._wrong(key, type(values[0]).__name__, "a list of texts")
        return cast(list[str], values)

    def _field(self, key: str, kind: type[Kind], expected: str) -> Kind:
        if key not in self.fields:
            raise InputError(
                f"{self.path}: the metadata lacks {key}; expected {expected}: "
                "convert or download the model again."
            )
        value = self.fields[key]
        if not isinstance(value, kind):
            raise self._wrong(key, value, expected)
        return value

    def _wrong(self, key: str, value: object, expected: str) -> InputError:
        shown = f"a list of {len(value)}" if isinstance(value, list) else repr(value)
        return InputError(f"{self.path}: {key} is {shown}; expected {expected}.")


def read_header(path: Path) -> Header:
    """The metadata and the table of tensors of a GGUF file; no tensor is read.

    Raises:
        InputError: for a file that is missing, truncated, damaged, not GGUF, or one of several.

    Source: GGUF specification, version 3 (the layout of version 2 is the same).
    """
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            header = _parse(path, data)
    except struct.error as error:
        raise InputError(f"{path}: the file ends early ({error}): download it again.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: a text is not UTF-8 ({error}): download it again.") from error
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        # An empty file cannot be mapped, which is a ValueError.
        raise InputError(f"{path}: cannot be read ({error}); expected a GGUF file.") from error
    shards = header.fields.get("split.count", 1)
    if shards != 1:
        raise InputError(
            f"{path}: is one of {shards} shards; expected a single file: merge them with "
            "llama-gguf-split --merge."
        )
    return header


def _parse(path: Path, data: mmap.mmap) -> Header:
    if data[:4] != b"GGUF":
        raise InputError(f"{path}: starts with {data[:4]!r}; expected a GGUF file (b'GGUF').")
    cursor = _Cursor(path, data, 4)
    (version,) = cursor.take("I")
    if version not in _VERSIONS:
        # A version whose low bytes are zero was written the other way round.
        what = "big-endian" if version & 0xFFFF == 0 else f"version {version}"
        raise InputError(f"{path}: is {what} GGUF; expected little-endian, version 2 or 3.")
    tensors, pairs = cursor.take("QQ")
    fields: dict[str, Value] = {}
    for _ in range(pairs):
        key = cursor.string()
        fields[key] = cursor.value(*cursor.take("I"))
    return Header(path, fields, _tensor_table(cursor, tensors, fields))


def _tensor_table(
    cursor: "_Cursor", count: int, fields: Mapping[str, Value]
) -> dict[str, TensorEntry]:
    rows: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(count):
        name = cursor.string()
        if name in rows:
            raise InputError(f"{cursor.path}: tensor {name!r} is listed twice.")
        (dimensions,) = cursor.take("I")
        shape = tuple(reversed(cursor.take(f"{dimensions}Q")))
        kind, offset = cursor.take("IQ")
        rows[name] = (shape, kind, offset)
    alignment = fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise InputError(f"{cursor.path}: general.alignment is {alignment!r}; expected 32.")
    start = -(-cursor.place // alignment) * alignment
    return {name: _entry(cursor, name, start, *row) for name, row in rows.items()}


def _entry(
    cursor: "_Cursor", name: str, start: int, shape: tuple[int, ...], kind: int, offset: int
) -> TensorEntry:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        known = GGMLQuantizationType(kind)
        block, block_bytes = GGML_QUANT_SIZES[known]
    except (ValueError, KeyError) as error:
        raise InputError(
            f"{cursor.path}: tensor {name!r} has the quantisation type {kind}, which the installed "
            "package gguf does not know: update it."
        ) from error
    if not shape or 0 in shape or shape[-1] % block:
        raise InputError(
            f"{cursor.path}: tensor {name!r} has shape {shape}; expected rows of a multiple of "
            f"{block} for {known.name}."
        )
    size = block_bytes
    for length in (*shape[:-1], shape[-1] // block):
        size *= length
    if start + offset + size > len(cursor.data):
        raise InputError(
            f"{cursor.path}: the file ends early, at byte {len(cursor.data)}; expected tensor "
            f"{name!r} up to byte {start + offset + size}: download it again."
        )
    return TensorEntry(shape, known, start + offset, size)


class _Cursor:
    """Reads on through a file; a `struct.error` where it ends early."""

    def __init__(self, path: Path, data: mmap.mmap, place: int):
        self.path, self.data, self.place = path, data, place

    def take(self, layout: str) -> tuple:
        layout = f"<{layout}"
        values = struct.unpack_from(layout, self.data, self.place)
        self.place += struct.calcsize(layout)
        return values

    def string(self) -> str:
        (length,) = self.take("Q")
        raw = self.data[self.place : self.place + length]
        if len(raw) != length:
            raise struct.error(f"a text of {length} bytes at byte {self.place}")
        self.place += length
        return raw.decode("utf-8")

    def value(self, kind: int) -> Value:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            element, count = self.take("IQ")
            if element == _STRING:
                return [self.string() for _ in range(count)]
            if element in _SCALARS:
                return list(self.take(f"{count}{_SCALARS[element]}"))
            kind = element
        if kind not in _SCALARS:
            raise InputError(
                f"{self.path}: a field at byte {self.place} has the unknown type {kind}; "
                "expected a GGUF file of version 2 or 3: download it again."
            )
        return self.take(_SCALARS[kind])[0]
