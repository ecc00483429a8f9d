"""Every config of the package refuses values of other types, in Python, files and options."""

import dataclasses
import importlib
import json
import math
import pkgutil
import types
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal, Union, get_args, get_origin, get_type_hints

import jax
import numpy as np
import pytest

import jaxalign
from jaxalign.config import load_config
from jaxalign.config_fields import ConfigField, checks_fields, is_checked
from jaxalign.errors import InputError
from jaxalign.models.lora import LoraConfig
from jaxalign.models.sampling import Sampling
from jaxalign.mrm.config import MRMConfig
from jaxalign.rewards.spec import RewardSpec
from jaxalign.train.loop import LoopConfig
from jaxalign.train.optimiser import OptimiserConfig
from jaxalign.train.trunk import TrunkConfig

OF_THEIR_OWN = (ConfigField, Sampling)  # the first is no config; the second has checks of its own


def classes_of(kind):
    """The dataclasses in an annotation."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return {kind}
    return {found for part in get_args(kind) for found in classes_of(part)}


def hints_of(config):
    hints = get_type_hints(config)
    return {field.name: hints[field.name] for field in dataclasses.fields(config) if field.init}


def config_classes():
    """Every dataclass of the package that is called a config, and those in their fields."""
    found = set()
    for module in pkgutil.walk_packages(jaxalign.__path__, "jaxalign."):
        if module.name.startswith("jaxalign.kernels.") or module.name.endswith("__main__"):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if name.endswith("Config") and isinstance(value, type):
                found |= classes_of(value)
    while new := {one for config in found for kind in hints_of(config).values()
                  for one in classes_of(kind)} - found:  # fmt: skip
        found |= new
    own = {one for one in found if one.__module__.startswith("jaxalign.")}
    return sorted(own - set(OF_THEIR_OWN), key=lambda one: (one.__module__, one.__name__))


CONFIGS = config_classes()
NEEDED = {RewardSpec: {"name": "brevity"}}
"""Fields without a default whose class takes some values only."""
WRONG = {
    int: (2.5, True, "3", 4.0, np.float32(2)),
    float: ("0.5", True, [0.5]),
    bool: (1, "true", 0.0),
    str: (3, True, Path("text")),
}


def value_of(kind):
    """Some value of a type."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return args[0]
    if origin in (Union, types.UnionType):
        return None if type(None) in args else value_of(args[0])
    if origin is tuple:
        return tuple(value_of(part) for part in args if part is not Ellipsis)
    simple = {int: 1, float: 0.5, str: "text", bool: False}
    return simple[kind] if kind in simple else kind(**needed(kind))


def needed(config):
    """Values of the fields that have no default."""
    return {
        field.name: value_of(hints_of(config)[field.name])
        for field in dataclasses.fields(config)
        if field.init and field.default is field.default_factory is MISSING
    } | NEEDED.get(config, {})


def cases(*kinds):
    """Each field of a simple type, and what makes its value of one of that type."""
    for config in CONFIGS:
        for name, kind in hints_of(config).items():
            for option in get_args(kind) if is_union(kind) else (kind,):
                wrap = tuple_of(option) if get_origin(option) is tuple else lambda value: value
                inner = get_args(option)[0] if get_origin(option) is tuple else option
                if inner in kinds:
                    yield pytest.param(config, name, inner, wrap, id=f"{config.__name__}.{name}")


def is_union(kind):
    return get_origin(kind) in (Union, types.UnionType)


def tuple_of(kind):
    size = len(get_args(kind))
    return lambda value: (value,) * (1 if get_args(kind)[-1] is Ellipsis else size)


def refusal(config, **changes):
    with pytest.raises(InputError) as caught:
        config(**needed(config) | changes)
    return str(caught.value)


def test_the_walk_finds_the_configs():
    names = {config.__name__ for config in CONFIGS}
    wanted = "LoopConfig MeshConfig LoraConfig MRMConfig BayesConfig EngineConfig ServeConfig"
    assert names.issuperset((wanted + " RewardConfig DistributedConfig RewardSpec Rope").split())
    assert len(CONFIGS) > 50


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_every_config_checks_its_fields(config):
    """A new config has `checks_fields` below its `dataclass`."""
    assert is_checked(config)
    assert config(**needed(config)) == config(**needed(config))  # what is right passes


@pytest.mark.parametrize(("config", "name", "kind", "wrap"), list(cases(*WRONG)))
def test_values_of_another_type_are_refused(config, name, kind, wrap):
    expected = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
    for value in WRONG[kind]:
        said = refusal(config, **{name: wrap(value)})
        assert said == f"{name}: found {value!r}, expected {expected}; correct it."


@pytest.mark.parametrize(("config", "name", "kind", "wrap"), list(cases(float)))
def test_numbers_are_finite(config, name, kind, wrap):
    for value in (math.nan, math.inf, -math.inf):
        assert name.partition("_")[0] in refusal(config, **{name: wrap(value)})


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_files_and_options_are_as_strict(config, tmp_path):
    path = tmp_path / "config.yaml"
    for name, kind in hints_of(config).items():
        if needed(config) or kind not in (int, int | None):
            continue
        for value in (2.5, True, "3", 4.0):
            path.write_text(json.dumps({name: value}))
            with pytest.raises(InputError, match=f"`{name}`: found .*expected int"):
                load_config(config, path, [])
        for word in ("2.5", "True", "4.0"):
            with pytest.raises(InputError, match=f"--{name}.: found '{word}', expected int"):
                load_config(config, None, [f"--{name}", word])


def test_other_shapes_are_refused():
    for config, name, value, said in (
        (LoraConfig, "targets", "query", "found 'query', expected a tuple"),
        (RewardSpec, "between", ("a",), "found ('a',), expected 2 entries"),
        (TrunkConfig, "mesh", {"data": 1}, "found {'data': 1}, expected a MeshConfig"),
        (TrunkConfig, "mesh", None, "found None, expected a MeshConfig"),
    ):
        assert refusal(config, **{name: value}) == f"{name}: {said}; correct it."


def test_what_counts_as_a_number_stays():
    assert LoopConfig(epochs=np.int64(2)).epochs == 2
    assert OptimiserConfig(rate=1).rate == 1
    assert OptimiserConfig(rate=np.float32(0.5)).rate == 0.5


def test_traced_numbers_pass():
    """Numbers of a sweep are traced."""
    scaled = jax.jit(lambda scale: MRMConfig(input_scale=scale).input_scale * 2)
    assert scaled(0.5) == 1.0


def test_a_class_with_checks_of_its_own_has_them_between():
    """Types come first, so that its own checks may rely on them."""

    @dataclass(frozen=True)
    @checks_fields
    class Config:
        low: float = 0.0
        high: float = 1.0

        def __post_init__(self):
            if not self.low < self.high:
                raise InputError("low is not below high")

    for changes, said in (
        ({"low": "0"}, "low: found '0', expected a number; correct it."),
        ({"low": math.nan}, "low is not below high"),
        ({"high": math.inf}, "high: found inf, expected a finite number; correct it."),
    ):
        assert refusal(Config, **changes) == said
