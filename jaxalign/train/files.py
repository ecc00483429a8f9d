"""Files that are whole or absent: written aside, then renamed."""

import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.errors import InputError

Tree = dict[str, Any]


def write_text(path: str | Path, text: str) -> None:
    """Write a text file at once."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    aside.write_text(text)
    os.replace(aside, path)


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON, keys in order of insertion, NaN refused."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def flatten(tree: Tree, prefix: str = "") -> dict[str, np.ndarray]:
    """Nested dicts of arrays as one dict, keys joined by '/'."""
    flat: dict[str, np.ndarray] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{name}/"))
        else:
            flat[prefix + name] = np.asarray(value)
    return flat


def unflatten(flat: dict[str, np.ndarray]) -> Tree:
    """The inverse of `flatten`."""
    tree: Tree = {}
    for name, value in flat.items():
        *path, last = name.split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


def save_tree(path: str | Path, tree: Tree) -> None:
    """Write nested dicts of arrays as .npz at once."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(aside, "wb") as handle:
        np.savez(handle, allow_pickle=False, **flatten(tree))
    os.replace(aside, path)


def load_tree(path: str | Path) -> Tree:
    """Read what `save_tree` wrote.

    Raises:
        InputError: for a file that is not whole.
    """
    try:
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as stored:
            return unflatten({name: stored[name] for name in stored.files})
    except FileNotFoundError:
        raise
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, zlib.error) as error:
        raise InputError(
            f"{path} is damaged ({error}): delete it and run again, or copy it again."
        ) from error
