"""Tensors out of and into torch's .pt files without torch, and without running a pickle."""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from jaxalign.errors import InputError
from jaxalign.files import expand_user

_DTYPES: dict[str, Any] = {
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "LongStorage": np.int64,
    "BoolStorage": np.bool_,
}


def read_pt(path: str | Path) -> Any:
    """Read what `torch.save` wrote: a tensor, or dicts, lists and numbers that hold tensors.

    Only tensors and plain containers are read; a file that names any other class or function is
    refused before anything of it runs. Arrays are read-only views of the stored values with the
    stored sizes and strides; bfloat16 is that of `ml_dtypes`.

    Args:
        path: a .pt file in the zip format (torch 1.6 and later).

    Returns:
        The saved object with a NumPy array for each tensor or parameter.

    Raises:
        InputError: no such file, another format, a damaged one, or one that holds anything but
            tensors of float16, bfloat16, float32, float64, int64 and bool in plain containers.
    """
    path = expand_user(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path.")
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(archive, path)
    except InputError:
        raise
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(
            f"{path} is not a zip file as torch.save writes it ({error}); save it again with "
            "torch 1.6 or later."
        ) from None
    except Exception as error:
        # A hostile or broken pickle may raise anything; none of it is worth a traceback.
        raise InputError(
            f"{path} is damaged ({type(error).__name__}: {error}), expected tensors saved by "
            "torch.save; download or save it again."
        ) from None


def tensor_bytes(values: np.ndarray) -> bytes:
    """Return what `torch.save` writes of a tensor: a .pt file in the zip format.

    `torch.load` reads it with `weights_only=True`, and vLLM takes it, in base64, as
    `prompt_embeds`.

    Args:
        values: an array of float16, bfloat16 (of `ml_dtypes`), float32, float64, int64 or bool.

    Raises:
        InputError: the values have another type.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from jaxalign.data.torch_files import read_pt, tensor_bytes
        >>> path = Path(tempfile.mkdtemp()) / "tensor.pt"
        >>> _ = path.write_bytes(tensor_bytes(np.arange(6.0).reshape(2, 3)))
        >>> read_pt(path).tolist()
        [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    """
    names = {np.dtype(kind): name for name, kind in _DTYPES.items()}
    values = np.asarray(values, order="C")  # keeps a number without axes
    if values.dtype not in names:
        raise InputError(
            f"found values of {values.dtype}, expected one of {', '.join(map(str, names))}: cast "
            "them."
        )
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("tensor/data.pkl", _tensor_pickle(values, names[values.dtype]))
        archive.writestr("tensor/byteorder", "little")
        little = values.astype(values.dtype.newbyteorder("<"), copy=False)
        archive.writestr("tensor/data/0", little.tobytes())
        archive.writestr("tensor/version", "3\n")
    return stream.getvalue()


def _tensor_pickle(values: np.ndarray, storage: str) -> bytes:
    """Return the pickle of one tensor, opcode by opcode: torch's names cannot be imported here."""

    def text(word: str) -> bytes:
        return b"X" + struct.pack("<I", len(word)) + word.encode()

    def numbers(*values: int) -> bytes:
        return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"

    steps = [step // values.itemsize for step in values.strides]
    kind = b"ctorch\n" + storage.encode() + b"\n"
    count = b"J" + struct.pack("<i", values.size)
    place = b"(" + text("storage") + kind + text("0") + text("cpu") + count + b"tQ"
    hooks = b"ccollections\nOrderedDict\n)R"
    shape = numbers(*values.shape) + numbers(*steps)
    arguments = b"(" + place + b"J" + struct.pack("<i", 0) + shape + b"\x89" + hooks + b"t"
    return b"\x80\x02" + b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R."


def _read_archive(archive: zipfile.ZipFile, path: Path) -> Any:
    names = archive.namelist()
    pickles = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise InputError(
            f"{path} holds {len(pickles)} entries data.pkl, expected the one that torch.save "
            "writes; it is not a file of tensors."
        )
    folder = pickles[0][: -len("data.pkl")]
    order = f"{folder}byteorder"
    if order in names and archive.read(order).strip() != b"little":
        raise InputError(f"{path} is stored big-endian, expected little-endian; save it again.")
    with archive.open(pickles[0]) as stream:
        return _TensorUnpickler(stream, archive, folder, path).load()


class _TensorUnpickler(pickle.Unpickler):
    """Knows tensors and ordered dicts, and refuses every other name.

    What it hands to the pickle is bound to this one reader or immutable (a storage type is a
    plain string), so that no instruction in the file can alter anything that outlives it.
    """

    def __init__(self, stream: IO[bytes], archive: zipfile.ZipFile, folder: str, path: Path):
        super().__init__(stream)
        self._archive, self._folder, self._path = archive, folder, path
        self._storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return name
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return self._parameter
        raise InputError(
            f"{self._path} asks for `{module}.{name}`, expected only tensors of float16, bfloat16, "
            "float32, float64, int64 or bool in dicts and lists; save just those with torch.save."
        )

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, storage, key, _, count = pid
        entry = f"{self._folder}data/{key}"
        if kind != "storage" or storage not in _DTYPES or entry not in self._archive.namelist():
            raise InputError(f"{self._path} refers to `{entry}`, which it does not hold.")
        if entry not in self._storages:
            self._storages[entry] = np.frombuffer(self._archive.read(entry), _DTYPES[storage])
        values = self._storages[entry]
        if values.dtype != _DTYPES[storage] or values.shape[0] != count:
            raise InputError(
                f"{self._path}, entry `{entry}`: found {values.nbytes} bytes of {values.dtype}, "
                f"expected {count} values of {np.dtype(_DTYPES[storage])}; the file is damaged."
            )
        return values

    def _tensor(
        self,
        storage: np.ndarray,
        offset: int,
        size: tuple[int, ...],
        stride: tuple[int, ...],
        _requires_grad: bool,
        _hooks: Any,
        metadata: Any = None,
    ) -> np.ndarray:
        whole = all(isinstance(n, int) and n >= 0 for n in (offset, *size, *stride))
        end = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if metadata or not whole or (0 not in size and end >= storage.shape[0]):
            raise InputError(
                f"{self._path} holds a tensor of size {tuple(size)} and stride {tuple(stride)} at "
                f"{offset} of {storage.shape[0]} values, which does not fit; the file is damaged."
            )
        if 0 in size:
            return np.zeros(size, storage.dtype)
        steps = tuple(s * storage.itemsize for s in stride)
        # Checked above: the view stays inside the storage. Read-only, as tensors may share one.
        return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)

    def _parameter(self, data: np.ndarray, _requires_grad: bool, _hooks: Any) -> np.ndarray:
        return data
