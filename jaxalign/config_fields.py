"""The fields of config classes: their dotted keys, types, choices, defaults and help."""

import dataclasses
import inspect
import re
import types
from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from numbers import Integral
from typing import Literal, Union, get_args, get_origin, get_type_hints

from jaxalign.errors import InputError


@dataclass(frozen=True)
class ConfigField:
    """A field that is not itself a config.

    Attributes:
        key: dotted, from the outermost config.
        type: its annotation.
        default: `MISSING` for a required field.
        help: its entry under `Attributes:` in the docstring of its class.
    """

    key: str
    type: type
    default: object
    help: str


def config_leaves(cls: type, prefix: str = "", parent: object = MISSING) -> Iterator[ConfigField]:
    """Yield the fields of a config class and of the configs in it.

    Args:
        cls: the dataclass.
        prefix: before each key.
        parent: the instance whose values are the defaults; `MISSING` for those of the class.

    Example:
        >>> from jaxalign.config_fields import config_leaves
        >>> from jaxalign.train.mesh import MeshConfig
        >>> [leaf.key for leaf in config_leaves(MeshConfig)]
        ['data', 'fsdp', 'tensor']
    """
    hints = get_type_hints(cls)
    helps = _attribute_help(cls)
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        if parent is not MISSING:
            default = getattr(parent, field.name)
        elif field.default_factory is not MISSING:
            default = field.default_factory()
        else:
            default = field.default
        key, kind = prefix + field.name, hints[field.name]
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from config_leaves(kind, key + ".", default)
        else:
            yield ConfigField(key, kind, default, helps.get(field.name, ""))


def entry_class(leaf: ConfigField) -> type | None:
    """Return the class of an optional config or of the entries of a list, None for other fields."""
    kinds = (kind for kind in get_args(leaf.type) if isinstance(kind, type))
    return next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)


def is_list(leaf: ConfigField) -> bool:
    """Return whether a field holds a list or a tuple."""
    return get_origin(leaf.type) in (list, tuple)


def type_name(kind: object) -> str:
    """Return an annotation as help and messages show it, such as `int|None`."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is type(None):
        return "None"
    if origin is Literal:
        return "|".join(str(choice) for choice in args)
    if origin in (Union, types.UnionType):
        return "|".join(type_name(arg) for arg in args)
    if origin is not None:
        inner = " ".join("..." if arg is Ellipsis else type_name(arg) for arg in args)
        return f"{{{inner}}}" if origin is dict else f"[{inner}]"
    return getattr(kind, "__name__", str(kind))


def check_choices(config: object) -> None:
    """Refuse a config in which a field holds something else than one of its choices.

    The choices of a field are those of its `Literal`, which may stand in a union with None or in a
    tuple. `load_config` checks them too; this is for configs that are made in Python.

    Args:
        config: an instance of a dataclass; call it first in `__post_init__`.

    Raises:
        InputError: a field with another value.

    Example:
        >>> from dataclasses import dataclass
        >>> from typing import Literal
        >>> from jaxalign.config_fields import check_choices
        >>> @dataclass(frozen=True)
        ... class Config:
        ...     kind: Literal["grid", "list"] = "grid"
        >>> try:
        ...     check_choices(Config("gird"))
        ... except ValueError as error:
        ...     print(error)
        kind: found 'gird', expected one of grid, list; correct it.
    """
    for name, kind in get_type_hints(type(config)).items():
        several = get_origin(kind) is tuple
        choices = _choices(get_args(kind)[0] if several else kind)
        if not choices:
            continue
        value = getattr(config, name)
        for one in value if several else (value,):
            if one not in choices:
                raise InputError(
                    f"{name}: found {one!r}, expected one of {', '.join(map(str, choices))}; "
                    "correct it."
                )


def check_whole_numbers(config: object) -> None:
    """Refuse a config in which a field for a whole number holds something else, such as 8.0.

    `load_config` checks them too; this is for configs that are made in Python.

    Args:
        config: an instance of a dataclass; call it first in `__post_init__`.

    Raises:
        InputError: a field of type int, or of ints, with another value.

    Example:
        >>> from dataclasses import dataclass
        >>> from jaxalign.config_fields import check_whole_numbers
        >>> @dataclass(frozen=True)
        ... class Config:
        ...     groups: int | None = 8
        >>> try:
        ...     check_whole_numbers(Config(8.0))
        ... except ValueError as error:
        ...     print(error)
        groups: found 8.0, expected a whole number; correct it.
    """
    for name, kind in get_type_hints(type(config)).items():
        several = get_origin(kind) is tuple
        one = get_args(kind)[0] if several else kind
        if one not in (int, int | None):
            continue
        value = getattr(config, name)
        for number in value if several else (value,):
            if number is None and one is not int:
                continue
            if not isinstance(number, Integral) or isinstance(number, bool):
                raise InputError(f"{name}: found {number!r}, expected a whole number; correct it.")


def _choices(kind: object) -> tuple[object, ...]:
    """The values that an annotation of `Literal` allows; none for other annotations."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    if get_origin(kind) not in (Union, types.UnionType):
        return ()
    parts = [(None,) if part is type(None) else _choices(part) for part in get_args(kind)]
    return tuple(value for part in parts for value in part) if all(parts) else ()


def _attribute_help(cls: type) -> dict[str, str]:
    helps: dict[str, str] = {}
    for owner in reversed(cls.__mro__):  # a class inherits fields, but not their entries
        listed = inspect.cleandoc(owner.__doc__ or "").partition("Attributes:\n")[2]
        entries = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", listed, re.MULTILINE)
        helps |= {name: " ".join(text.split()) for name, text in entries}
    return helps
