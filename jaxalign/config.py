"""Configs: frozen dataclasses, filled from a YAML file and from `--dotted.field value` options.

A file and the options go through one strict check (pydantic, on the plain dataclass): every key
must exist, at every level, and nothing is converted but an int to a float and a list to a tuple.
What does not fit is an `InputError` that names the file or the option, and the key.
"""

import dataclasses
import json
import re
import textwrap
from collections.abc import Hashable, Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import MISSING
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

import yaml

from jaxalign.config_fields import ConfigField, config_leaves, entry_class, is_list, type_name
from jaxalign.errors import InputError
from jaxalign.files import expand_user

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

Config = TypeVar("Config")
Value = TypeVar("Value")
ON_RESUME = "on_resume"
"""Key of the metadata of `on_resume`."""

# PyYAML speaks YAML 1.1, where 1e-3 is text and 2026-01-01 a date; here they are number and text.
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+")
_MISMATCHES = ("literal_error", "enum", "int_from_float")


def load_config(cls: type[Config], path: str | Path | None, overrides: Sequence[str]) -> Config:
    """A config from its defaults, a YAML file and command-line options, each over the one before.

    Args:
        cls: a frozen dataclass, whose fields may be such dataclasses.
        path: a YAML file with some or all of the keys, or the name of a config that ships with the
            package, such as moc/smollm2_traits; None for the defaults alone.
        overrides: words of a command line: `--mrm.inner_lr 0.1`, `--mrm.inner-lr=0.1`,
            `--mrm.hidden_sizes 64 2`.

    Returns:
        An instance of `cls`.

    Raises:
        InputError: a file that cannot be read, a key that does not exist, or a value that is not
            of its field's type.

    Example:
        >>> from jaxalign.config import load_config
        >>> from jaxalign.train.mesh import MeshConfig
        >>> load_config(MeshConfig, None, ["--tensor", "2"]).tensor
        2
    """
    import pydantic  # here, and tyro below: trainings called from Python need neither

    leaves = {leaf.key: leaf for leaf in config_leaves(cls)}
    document = _defaults(leaves.values())
    if path is not None:
        document = _merged(document, _read(find_config(path)), leaves)
    options = _options(overrides, leaves)
    for key, values in options.items():
        _put(document, key, _parsed(leaves[key], values))
    try:
        text = json.dumps(document)
        return pydantic.TypeAdapter(cls).validate_json(text, strict=True, extra="forbid")
    except pydantic.ValidationError as error:
        raise InputError(_sentence(error, document, leaves, path, options)) from None
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{path}: found a value that no field holds ({error}), expected text, numbers, "
            "true/false, lists and keys; correct the file."
        ) from None


def shipped_configs() -> dict[str, Path]:
    """Return the configs that ship with the package, by name: folder and file without its ending.

    Example:
        >>> from jaxalign.config import shipped_configs
        >>> "moc/smollm2_traits" in shipped_configs()
        True
    """
    folder = Path(__file__).parent / "configs"
    found = sorted(folder.glob("*/*.yaml"))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in found}


def find_config(path: str | Path) -> Path:
    """Return the file of a config: the one that is named, or else the shipped one of that name.

    Raises:
        InputError: there is neither.
    """
    path, shipped = expand_user(path), shipped_configs()
    name = path.with_suffix("").as_posix() if path.suffix == ".yaml" else path.as_posix()
    if path.exists() or name.removeprefix("configs/") in shipped:
        return path if path.exists() else shipped[name.removeprefix("configs/")]
    near = get_close_matches(name, shipped, 1, 0.8)
    listed = f"a name such as {near[0]}" if near else f"one of {', '.join(shipped)}"
    raise InputError(
        f"{path} does not exist, expected a YAML file, or {listed}, which ship with the package; "
        "check the path."
    )


def on_resume(rule: Literal["any", "more"], default: Value) -> Value:
    """Declare a field of a config that a resumed run may change; all others must stay.

    Args:
        rule: "more" lets a number grow, such as the steps of a longer run; "any" is for fields that
            change no result.
        default: of the field.

    Example:
        >>> from dataclasses import dataclass
        >>> from jaxalign.config import on_resume, resume_rules
        >>> @dataclass(frozen=True)
        ... class Config:
        ...     steps: int = on_resume("more", 60)
        ...     seed: int = 0
        >>> resume_rules(Config())
        {'steps': 'more'}
    """
    field: Value = dataclasses.field(default=default, metadata={ON_RESUME: rule})
    return field


def resume_rules(config: object, prefix: str = "") -> dict[str, str]:
    """Return the rule of each field that `on_resume` declares in a config, by dotted key."""
    rules: dict[str, str] = {}
    if not dataclasses.is_dataclass(config):
        return rules
    for field in dataclasses.fields(config):
        if ON_RESUME in field.metadata:
            rules[prefix + field.name] = field.metadata[ON_RESUME]
        rules |= resume_rules(getattr(config, field.name), f"{prefix}{field.name}.")
    return rules


def to_yaml(config: object) -> str:
    """The YAML text of a config instance; `load_config` reads the same instance from it.

    Example:
        >>> from jaxalign.config import to_yaml
        >>> from jaxalign.train.mesh import MeshConfig
        >>> print(to_yaml(MeshConfig(tensor=2)), end="")
        data: -1
        fsdp: 1
        tensor: 2
    """
    import pydantic

    plain = pydantic.TypeAdapter(type(config)).dump_python(config, mode="json")
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def describe(cls: type) -> str:
    """The options of a config class for `--help`: `--dotted.field TYPE (default)` and its help.

    The help is the field's entry under `Attributes:` in the docstring of its class.

    Example:
        >>> from jaxalign.config import describe
        >>> from jaxalign.train.mesh import MeshConfig
        >>> describe(MeshConfig).splitlines()[0]
        '  --data int (-1)'
    """
    return _described(cls, "--")


def _described(cls: type, dashes: str) -> str:
    lines = []
    for leaf in config_leaves(cls):
        default = "required" if leaf.default is MISSING else _shown(leaf.default)
        lines.append(f"  {dashes}{leaf.key} {type_name(leaf.type)} ({default})")
        if leaf.help:
            indent = " " * 6
            lines.append(
                textwrap.fill(leaf.help, 96, initial_indent=indent, subsequent_indent=indent)
            )
        if (entry := entry_class(leaf)) is not None:
            owner = "Each entry of " if is_list(leaf) else ""
            lines.append(f"      {owner}`{leaf.key}`, in the YAML file, has:")
            lines.append(textwrap.indent(_described(entry, ""), " " * 6))
    return "\n".join(lines)


def _shown(value: object) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


# The document.


def _defaults(leaves: Iterable[ConfigField]) -> dict[str, object]:
    document: dict[str, object] = {}
    for leaf in leaves:
        if leaf.default is not MISSING:
            _put(document, leaf.key, _plain(leaf, leaf.default))
    return document


def _plain(leaf: ConfigField, value: object) -> object:
    import pydantic

    adapter: pydantic.TypeAdapter[object] = pydantic.TypeAdapter(leaf.type)
    return adapter.dump_python(value, mode="json")


# The file.


class _Loader(yaml.SafeLoader):
    """YAML as people write configs: 1e-3 is a number, and a key stands once."""

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Hashable, object]:
        """The mapping of a node whose keys are distinct."""
        seen = set()
        for key, _ in getattr(node, "value", ()):
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is a list or an object, expected text", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key `{key.value}` stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would read as something else."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Text; PyYAML reads a NEL as the end of a line unless it is escaped."""
        style = '"' if "\x85" in data else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Dumper.add_representer(str, _Dumper.represent_str)


for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {
        first: [pair for pair in pairs if not pair[0].endswith(":timestamp")]
        for first, pairs in _class.yaml_implicit_resolvers.items()
    }
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(_FLOAT.pattern + "$"), list("-+.0123456789")
    )


def _read(path: Path) -> dict[str, object]:
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a YAML file ({error}); check it.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise InputError(f"{path}{line}: not readable as YAML ({problem}); correct it.") from None
    if document is None:
        raise InputError(f"{path} is empty, expected `key: value` lines; fill in or leave it out.")
    if not isinstance(document, dict):
        raise InputError(
            f"{path}: found {_found(document)}, expected `key: value` lines; correct the file."
        )
    return document


def _merged(
    base: dict[str, object], over: dict[str, object], leaves: Iterable[str], prefix: str = ""
) -> dict[str, object]:
    """`base` with the keys of `over`, down to the leaves."""
    merged = dict(base)
    for name, value in over.items():
        key, below = f"{prefix}{name}", merged.get(name)
        if isinstance(value, dict) and isinstance(below, dict) and key not in leaves:
            value = _merged(below, value, leaves, key + ".")
        merged[name] = value
    return merged


# The options.


def _options(overrides: Sequence[str], leaves: dict[str, ConfigField]) -> dict[str, list[str]]:
    """The words of each option by dotted key; an option that comes twice counts as last given."""
    options: dict[str, list[str]] = {}
    words: list[str] | None = None
    for word in overrides:
        if word.startswith("--"):
            name, given, value = word[2:].partition("=")
            key = name.replace("-", "_")
            if key not in leaves:
                raise InputError(
                    f"The option `--{name}` does not exist, expected "
                    f"{_nearest(key, leaves, '--')}; correct or remove it."
                )
            words = options[key] = [value] if given else []
        elif words is None:
            raise InputError(f"Found the argument '{word}', expected `--key value`; remove it.")
        else:
            words.append(word)
    return options


def _parsed(leaf: ConfigField, words: list[str]) -> object:
    """The JSON value of an option's words, read by tyro as the field's type."""
    import tyro

    if leaf.type is bool or bool in get_args(leaf.type):
        words = [word.capitalize() for word in words] or ["True"]
    if words == ["null"] and type(None) in get_args(leaf.type):  # as YAML has it
        words = ["None"]
    single = dataclasses.make_dataclass("Option", [("value", leaf.type)])
    args = [f"--value={words[0]}"] if len(words) == 1 else ["--value", *words]
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            value: object = tyro.cli(single, args=args).value
    except (SystemExit, tyro.constructors.UnsupportedTypeAnnotationError):
        found = f"'{' '.join(words)}'" if words else "no value"
        raise InputError(
            f"The option `--{leaf.key}`: found {found}, expected {type_name(leaf.type)}; "
            "correct the value."
        ) from None
    return _plain(leaf, value)


def _put(document: dict[str, object], key: str, value: object) -> None:
    *parents, last = key.split(".")
    for name in parents:
        below = document.setdefault(name, {})
        if not isinstance(below, dict):
            return  # the file is wrong here, and the check says so
        document = below
    document[last] = value


# The sentence.


def _sentence(
    error: "ValidationError",
    document: dict[str, object],
    leaves: dict[str, ConfigField],
    path: str | Path | None,
    options: Iterable[str],
) -> str:
    """What is wrong with the document, in one sentence; a key that does not exist comes first."""
    problems = error.errors(include_url=False)
    problem = min(problems, key=lambda each: each["type"] != "unexpected_keyword_argument")
    if said := _entry_sentence(problem, leaves, path):
        return said
    kind, key = problem["type"], ".".join(str(part) for part in problem["loc"])
    owner = next((name for name in leaves if f"{key}.".startswith(f"{name}.")), None)
    if owner is not None and owner in options:
        where = f"The option `--{owner}`"
    elif kind == "value_error":
        origins = [str(path)] * (path is not None) + ["the options"] * bool(options)
        where = (" and ".join(origins) or "The defaults") + (f", `{key}`" if key else "")
    else:
        named = key if kind == "unexpected_keyword_argument" else owner or key
        where = f"{path or 'The defaults'}, key `{named}`"
    if kind == "unexpected_keyword_argument":
        return f"{where} does not exist, expected {_nearest(key, leaves)}; correct or remove it."
    if kind == "missing":
        expected = type_name(leaves[key].type) if key in leaves else "its keys"
        return f"{where} is missing, expected {expected}; give it in the file or as an option."
    if kind == "value_error":
        return f"{where}: {problem['ctx']['error']}"
    found = _found(_get(document, owner) if owner else problem["input"])
    if owner and (kind.endswith("_type") or kind in _MISMATCHES):
        expected = type_name(leaves[owner].type)
    elif kind == "dataclass_type":
        expected = "`key: value` lines of its own"
    else:
        expected = problem["msg"].removeprefix("Input should be ")
    return f"{where}: found {found}, expected {expected}; correct the value."


def _entry_sentence(
    problem: "ErrorDetails", leaves: dict[str, ConfigField], path: str | Path | None
) -> str | None:
    """What is wrong with an optional config, a list of them or an entry; None for other fields."""
    parts = [str(part) for part in problem["loc"]]
    heads = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    place = next((n for n, key in enumerate(heads) if key in leaves), None)
    entry = None if place is None else entry_class(leaves[heads[place]])
    if place is None or entry is None:
        return None
    fields = {leaf.key: leaf for leaf in config_leaves(entry)}
    rest, kind = parts[place + 1 :], problem["type"]
    value = _found(problem["input"])
    where = f"{path or 'The defaults'}, key `{heads[place]}`"
    keys = f"the keys {', '.join(f'`{name}`' for name in fields)}"
    if is_list(leaves[heads[place]]):
        if not rest:
            return f"{where}: found {value}, expected a list, with some of {keys} in each entry."
        where = f"{where}, entry {int(rest.pop(0)) + 1}"
    key = ".".join(rest)
    if kind == "value_error":
        return f"{where}: {problem['ctx']['error']}"
    if not key:
        return f"{where}: found {value}, expected some of {keys}."
    if kind == "unexpected_keyword_argument":
        return f"{where}: `{key}` does not exist, expected {_nearest(key, fields)}; correct it."
    owner = next((name for name in fields if f"{key}.".startswith(f"{name}.")), key)
    expected = type_name(fields[owner].type) if owner in fields else "another value"
    found = "missing" if kind == "missing" else value
    return f"{where}: `{key}` is {found}, expected {expected}; correct the value."


def _get(document: dict[str, object], key: str) -> object:
    found: object = document
    for name in key.split("."):
        found = found[name] if isinstance(found, dict) else None
    return found


def _found(value: object) -> str:
    if value is None:
        return "nothing"
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def _nearest(key: str, leaves: Iterable[str], dashes: str = "") -> str:
    """The existing key that was probably meant, or else those of the same level."""
    known = {name[: end.start()] for name in leaves for end in re.finditer(r"\.|$", name)}
    known = set(leaves) if dashes else known
    parent, _, last = key.rpartition(".")
    level = sorted(name for name in known if name.rpartition(".")[0] == parent)
    by_last: dict[str, str] = {name.rpartition(".")[2]: name for name in sorted(known)}
    near = (
        get_close_matches(key, level, 1)
        or [by_last[match] for match in get_close_matches(last, by_last, 1, 0.8)]
        or get_close_matches(key, sorted(known), 1)
    )
    if near:
        return f"a key such as `{dashes}{near[0]}`"
    return "one of " + ", ".join(f"`{dashes}{name}`" for name in level or sorted(known))
