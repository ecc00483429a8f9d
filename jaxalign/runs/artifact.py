"""Arrays on disk with a statement of what they are: one file format for every artifact.

An artifact is one safetensors file. Its arrays are a nested dict, keys joined by '/'. Its metadata
hold the kind ("portfolio", "user model", ...), the format version, what it is about as JSON, and
a digest of all of it, so that a reader can refuse what it cannot use.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar, Union

import numpy as np

from jaxalign.errors import InputError
from jaxalign.files import expand_user, write_aside
from jaxalign.recognise import instead

if TYPE_CHECKING:
    import jax
    from _typeshed import DataclassInstance

    About = TypeVar("About", bound=DataclassInstance)
else:
    About = TypeVar("About")

Tree = Mapping[str, Union["Tree", "np.ndarray", "jax.Array", np.generic, float, str]]
"""Nested mappings with arrays, numbers or texts as leaves."""
Arrays = dict[str, Union["Arrays", np.ndarray]]
"""Nested dicts of NumPy arrays, as they are read back."""

FORMAT = 2
"""Version of the file format; format 1 was a folder of NumPy and JSON files."""
_META, _TEXTS = "jaxalign", "texts"


@dataclass(frozen=True)
class Artifact(Generic[About]):
    """What `load_artifact` reads.

    Attributes:
        about: what the artifact is about, checked against its type.
        arrays: by name; what was nested is named by its keys joined with '/' (see `subtree`).
        digest: sha256 over kind, `about` and arrays, in hexadecimal: the artifact's identity.
    """

    about: About
    arrays: dict[str, np.ndarray]
    digest: str


def save_artifact(
    path: str | PathLike[str], kind: str, about: "DataclassInstance", arrays: Tree
) -> str:
    """Write an artifact in one step.

    Args:
        path: file to write, `.safetensors` by custom.
        kind: what the artifact is, as messages call it, such as "portfolio".
        about: a dataclass of plain values (numbers, texts, tuples, nested dataclasses): names,
            settings, digests of what the arrays belong to.
        arrays: nested dicts of arrays.

    Returns:
        The digest that `load_artifact` gives.

    Example:
        >>> import numpy as np
        >>> from jaxalign.runs import load_artifact, save_artifact
        >>> import tempfile
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class AboutWeights:
        ...     names: tuple[str, ...]
        >>> path = tempfile.mkdtemp() + "/weights.safetensors"
        >>> about = AboutWeights(names=("brevity",))
        >>> digest = save_artifact(path, "weights", about, {"mean": np.ones(1)})
        >>> found = load_artifact(path, "weights", AboutWeights, "fit them again")
        >>> found.about.names, found.arrays["mean"].tolist(), found.digest == digest
        (('brevity',), [1.0], True)
    """
    text = json.dumps(asdict(about), sort_keys=True, allow_nan=False)
    flat = {name: _as_stored(value) for name, value in flatten(arrays).items()}
    digest = _digest(kind, text, flat)
    _write(Path(path), flat, {"kind": kind, "format": FORMAT, "digest": digest, "about": text})
    return digest


def load_artifact(
    path: str | PathLike[str], kind: str, about: type[About], remedy: str
) -> Artifact[About]:
    """Read an artifact of one kind.

    Args:
        path: file that `save_artifact` wrote.
        kind: what it must be.
        about: the dataclass type of `Artifact.about`.
        remedy: what the user can do where the file cannot be used, for messages, such as the
            command that writes it: "run `jaxalign palm build`".

    Returns:
        The artifact.

    Raises:
        InputError: the file is missing, damaged, of another kind, or of an older format.
    """
    path = expand_user(path)
    if not path.is_file():
        raise InputError(
            f"{path}: no such file{instead(path.parent)}; expected a {kind}: {remedy}."
        )
    flat, stated = _read(path, f"a {kind}: {remedy}")
    if "kind" not in stated:
        raise InputError(
            f"{path}: holds tensors and no artifact of jaxalign{instead(path.parent)}; expected a "
            f"{kind}: {remedy}."
        )
    if stated["kind"] != kind:
        raise InputError(f"{path}: holds a {stated['kind']}; expected a {kind}: {remedy}.")
    if stated["format"] != FORMAT:
        raise InputError(
            f"{path}: is of format {stated['format']}; this version reads {FORMAT}: {remedy}."
        )
    text = str(stated["about"])
    digest = _digest(kind, text, flat)
    if digest != stated["digest"]:
        raise InputError(f"{path}: is damaged (its digest does not fit its content): {remedy}.")
    return Artifact(_parse(path, text, about, remedy), flat, digest)


def save_arrays(path: str | PathLike[str], tree: Tree) -> None:
    """Write nested dicts of arrays and texts in one step, without identity: the state of a run.

    Args:
        path: file to write.
        tree: nested dicts of arrays, numbers or texts.
    """
    _write(Path(path), flatten(tree), {})


def load_arrays(path: str | PathLike[str]) -> dict[str, np.ndarray]:
    """Read what `save_arrays` wrote, by names as in `flatten`; texts come back as arrays.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file is not whole.
    """
    path = expand_user(path)
    if not path.exists():
        raise FileNotFoundError(path)
    flat, _ = _read(path, "the state of a run: delete it and run again, or copy it again")
    return flat


def flatten(tree: Tree, prefix: str = "") -> dict[str, np.ndarray]:
    """Return nested dicts of arrays as one dict, keys joined by '/'.

    Example:
        >>> from jaxalign.runs.artifact import flatten
        >>> sorted(flatten({"a": {"b": 1.0}, "c": 2.0}))
        ['a/b', 'c']
    """
    flat: dict[str, np.ndarray] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}/"))
        else:
            flat[prefix + name] = np.asarray(value)
    return flat


def unflatten(flat: Mapping[str, np.ndarray]) -> Arrays:
    """Return the nested dicts that `flatten` took apart.

    Example:
        >>> import numpy as np
        >>> from jaxalign.runs.artifact import unflatten
        >>> unflatten({"a/b": np.zeros(1)})
        {'a': {'b': array([0.])}}
    """
    tree: Arrays = {}
    for name, value in flat.items():
        *parents, last = name.split("/")
        node = tree
        for part in parents:
            child = node.setdefault(part, {})
            if not isinstance(child, dict):
                raise InputError(f"tensor {name!r} lies below another tensor: copy the file again.")
            node = child
        node[last] = value
    return tree


def subtree(flat: Mapping[str, np.ndarray], name: str) -> Arrays:
    """Return the nested dicts below a name.

    Example:
        >>> import numpy as np
        >>> from jaxalign.runs.artifact import subtree
        >>> subtree({"params/bias": np.zeros(1), "mean": np.ones(1)}, "params")
        {'bias': array([0.])}
    """
    below = f"{name}/"
    return unflatten({k.removeprefix(below): v for k, v in flat.items() if k.startswith(below)})


def _as_stored(value: np.ndarray) -> np.ndarray:
    """An array as it will be read: texts as wide as the longest, whatever they were cut out of."""
    return np.asarray(value.tolist(), str) if value.dtype.kind == "U" else value


def _write(path: Path, flat: Mapping[str, np.ndarray], meta: dict[str, object]) -> None:
    from safetensors.numpy import save_file

    texts = {name: value.tolist() for name, value in flat.items() if value.dtype.kind == "U"}
    tensors = {
        n: np.ascontiguousarray(v).reshape(v.shape) for n, v in flat.items() if n not in texts
    }
    if texts:
        meta = {**meta, _TEXTS: texts}
    # One entry: safetensors writes several in no fixed order, and equal runs write equal bytes.
    with write_aside(path) as aside:
        save_file(tensors, aside, {_META: json.dumps(meta)} if meta else None)


def _read(path: Path, expected: str) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as handle:
            meta = json.loads((handle.metadata() or {}).get(_META, "{}"))
            flat = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); expected {expected}.") from None
    texts = meta.get(_TEXTS, {})
    return flat | {name: np.asarray(text, str) for name, text in texts.items()}, meta


def _digest(kind: str, about: str, flat: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(f"{kind}\0{about}\0".encode())
    for name in sorted(flat):
        value = np.ascontiguousarray(flat[name])
        digest.update(f"{name} {value.dtype.name} {flat[name].shape}\0".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def _parse(path: Path, text: str, about: type[About], remedy: str) -> About:
    from pydantic import TypeAdapter, ValidationError  # artifacts in memory do not need it

    try:
        return TypeAdapter(about).validate_json(text, strict=True, extra="forbid")
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: `{field}` cannot be used ({first['msg']}): {remedy}.") from None
