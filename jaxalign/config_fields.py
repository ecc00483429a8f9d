"""The fields of config classes: their dotted keys, types, choices, defaults and help."""

import dataclasses
import inspect
import math
import re
import types
from collections.abc import Callable, Hashable, Iterator
from dataclasses import MISSING, dataclass
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from jaxalign.errors import InputError

Config = TypeVar("Config")
_CHECKS = "_checks_fields"
_EXPECTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
}


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


def checks_fields(cls: type[Config]) -> type[Config]:
    """Let a dataclass refuse values that are not of the types of its fields, wherever it is made.

    `load_config` refuses them in files and options; this is for configs that are made in Python.
    A float may be an integer, but nothing else is converted: 4.0 is no whole number, True is no
    number, and a list is no tuple. Numbers of Python are finite; traced ones are not looked at.

    Args:
        cls: the class, before `dataclass` sees it. Types are checked before its own
            `__post_init__`, which may rely on them, and after it whether numbers are finite.

    Raises:
        InputError: in `__post_init__`: a field with a value of another type or choice, or with a
            number that is not finite.

    Example:
        >>> from dataclasses import dataclass
        >>> from typing import Literal
        >>> from jaxalign.config_fields import checks_fields
        >>> @dataclass(frozen=True)
        ... @checks_fields
        ... class Config:
        ...     groups: int | None = 8
        ...     kind: Literal["grid", "list"] = "grid"
        >>> for changes in ({"groups": 8.0}, {"kind": "gird"}):
        ...     try:
        ...         Config(**changes)
        ...     except ValueError as error:
        ...         print(error)
        groups: found 8.0, expected a whole number; correct it.
        kind: found 'gird', expected one of grid, list; correct it.
    """
    own: Callable[[Config], None] | None = getattr(cls, "__post_init__", None)
    if getattr(own, _CHECKS, False):
        return cls  # inherited: it checks the fields of the subclass

    def checked(config: Config) -> None:
        _check_fields(config, finite=False)
        if own is not None:
            own(config)
        _check_fields(config, finite=True)

    setattr(checked, _CHECKS, True)
    cls.__post_init__ = checked  # type: ignore[attr-defined]
    return cls


def is_checked(cls: type) -> bool:
    """Return whether a class is one of `checks_fields`, or inherits from one."""
    return getattr(getattr(cls, "__post_init__", None), _CHECKS, False)


@cache
def _hints(cls: type) -> dict[str, object]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _check_fields(config: object, finite: bool) -> None:
    """Refuse a config with a field of another type; or, `finite`, with NaN or infinity."""
    for name, kind in _hints(cast(Hashable, type(config))).items():
        if problem := _problem(kind, getattr(config, name), finite):
            found, expected = problem
            raise InputError(f"{name}: found {found!r}, expected {expected}; correct it.")


def _problem(kind: object, value: object, finite: bool) -> tuple[object, str] | None:
    """What of a value is not of a type, and what was expected; None where it is."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return None if value in args else (value, f"one of {', '.join(map(str, args))}")
    if origin in (Union, types.UnionType):
        return _union_problem(kind, value, finite)
    if origin is tuple:
        return _tuple_problem(args, value, finite)
    expected = _EXPECTED.get(kind) if isinstance(kind, type) else None
    if kind is type(None):
        return None if value is None else (value, "nothing")
    if kind is float and finite and isinstance(value, Real) and not math.isfinite(value):
        return value, "a finite number"
    if not isinstance(kind, type) or not (expected or dataclasses.is_dataclass(kind)):
        return None  # of other types, nothing is known here
    return None if _is_of(kind, value) else (value, expected or f"a {kind.__name__}")


def _is_of(kind: type, value: object) -> bool:
    if kind in (int, float) and isinstance(value, bool):
        return False
    if kind is float:  # a number, or a traced one
        return isinstance(value, Real) or getattr(value, "shape", None) == ()
    return isinstance(value, Integral if kind is int else kind)


def _tuple_problem(
    args: tuple[object, ...], value: object, finite: bool
) -> tuple[object, str] | None:
    if not isinstance(value, tuple):
        return value, "a tuple"
    if args[-1] is Ellipsis:
        args = args[:1] * len(value)
    if len(value) != len(args):
        return value, f"{len(args)} entries"
    problems = (_problem(*pair, finite) for pair in zip(args, value, strict=True))
    return next((problem for problem in problems if problem), None)


def _union_problem(kind: object, value: object, finite: bool) -> tuple[object, str] | None:
    problems = [_problem(part, value, finite) for part in get_args(kind)]
    if None in problems:
        return None
    if choices := _choices(kind):
        return value, f"one of {', '.join(map(str, choices))}"
    some = [problem for problem in problems if problem and problem[1] != "nothing"]
    return some[0] if len(some) == 1 else (value, " or ".join(said for _, said in some))


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
