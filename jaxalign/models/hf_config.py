"""Fields of a Hugging Face config.json, checked as they are read."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from jaxalign.errors import InputError
from jaxalign.files import read_json

JsonObject: TypeAlias = Mapping[str, object]
"""A parsed JSON object, such as a config.json."""


def size(config: JsonObject, name: str, source: str, default: int | None = None) -> int:
    """Return a positive whole number of a config.

    Args:
        config: the parsed config.json.
        name: of the field.
        source: what to call the config in messages.
        default: for a field that is missing or null; None for a field that has to be there.

    Raises:
        InputError: the field is missing without a default, or is something else.

    Example:
        >>> from jaxalign.models.hf_config import size
        >>> size({"hidden_size": 64}, "hidden_size", "config.json")
        64
    """
    value = config.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{source}: {name} is {value!r}; expected a positive whole number.")
    return value


def real(config: JsonObject, name: str, source: str, default: float | None = None) -> float:
    """Return a finite number of a config.

    Args:
        config, name, source, default: as in `size`.

    Raises:
        InputError: the field is missing without a default, or is something else.
    """
    value = config.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{source}: {name} is {value!r}; expected a number.")
    return float(value)


def optional_id(config: JsonObject, name: str, source: str) -> int | None:
    """Return a token id of a config, or None where the field is missing or null.

    Raises:
        InputError: the field is something else.
    """
    value = config.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise InputError(f"{source}: {name} is {value!r}; expected a token id.")
    return value


def optional_text(config: JsonObject, name: str, source: str) -> str | None:
    """Return a text of a config, or None where the field is missing or null.

    Raises:
        InputError: the field is something else.
    """
    value = config.get(name)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{source}: {name} is {value!r}; expected a text.")
    return value


def section(config: JsonObject, name: str, source: str) -> JsonObject:
    """Return the object in a field of a config; empty where the field is missing or null.

    Raises:
        InputError: the field is something else.
    """
    value = config.get(name)
    value = {} if value is None else value
    if not isinstance(value, Mapping):
        raise InputError(f"{source}: {name} is {value!r:.60}; expected a JSON object.")
    return value


def read_config_json(path: Path, required: bool = True) -> dict[str, object]:
    """Return the content of a config file of a model.

    Args:
        path: of the file.
        required: False gives an empty object where there is no such file.

    Raises:
        InputError: the file is required and missing, cannot be read, or holds no JSON object.
    """
    if not required and not path.is_file():
        return {}
    remedy = "give the folder of a model, or download it again"
    return read_json(path, f"{path.name} of a model", remedy)


def first_architecture(config: JsonObject) -> str:
    """Return the class of transformers that a config names first; empty where it names none."""
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""
