"""LoRA adapters in the folders of the library peft: adapter_config.json, adapter_model.safetensors.

The config says which modules are adapted and how; the tensors must be exactly those it describes
on this model, or the adapter was made for another one.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import InputError
from jaxalign.files import write_folder_aside
from jaxalign.models.families import Config
from jaxalign.models.hf_config import JsonObject, read_config_json, real, section, size
from jaxalign.models.language import layout
from jaxalign.models.lora import LoraConfig, is_pair
from jaxalign.models.params import Params, put, subtree
from jaxalign.models.weights.layout import Leaf
from jaxalign.models.weights.safetensors import Tensors, open_tensors
from jaxalign.models.weights.save import write_tensors

Pair: TypeAlias = Mapping[str, jax.Array]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Fields that make an adapter more than a pair of factors a matrix, and what must stand in them.
_PLAIN: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),  # others change the model
    "layers_pattern": (None, [], "layers", "h", ["layers"], ["h"]),
}
_ABSENT = (
    "use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "target_parameters",
    "layer_replication", "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config",
    "kasa_config", "velora_config", "monteclora_config", "loftq_config", "corda_config",
    "lora_ga_config",
)  # fmt: skip


@dataclass(frozen=True)
class _Module:
    """One matrix of one layer, as peft names it."""

    name: str
    leaf: Leaf
    layer: int
    rank: int
    scale: float

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape of the two factors."""
        out, into = self.leaf.shape if self.leaf.transpose else self.leaf.shape[::-1]
        return {
            f"{_PREFIX}{self.name}.lora_A.weight": (self.rank, into),
            f"{_PREFIX}{self.name}.lora_B.weight": (out, self.rank),
        }


def load_adapter(folder: str | Path, model_config: Config) -> tuple[LoraConfig, Params]:
    """A LoRA adapter from a folder of peft.

    Modules that the config leaves out in some layers become zero there. Where a module has a rank
    or an alpha of its own, the difference in scale is folded into `b`, so that one `LoraConfig`
    describes all.

    Args:
        folder: holds the two files.
        model_config: of the model that it shall adapt.

    Returns:
        The config, and the tree as `lora.init` makes it, float32 (float64 from such a file): not
        yet scaled.

    Raises:
        InputError: for a file that is missing or broken, a kind of adapter that is not plain LoRA,
            and an adapter that does not fit the model.
    """
    folder = Path(folder).expanduser()
    source = folder / CONFIG
    settings = read_config_json(source)
    _refuse(settings, str(source))
    config = _lora_config(settings, str(source))
    modules = list(_modules(settings, config, model_config, str(source)))
    if not (folder / WEIGHTS).is_file():
        raise InputError(
            f"{folder}: {WEIGHTS} is missing: save the adapter again with safe serialisation."
        )
    with open_tensors([folder / WEIGHTS]) as tensors:
        _check(tensors, modules)
        tree = _read(tensors, modules, config, model_config.layers)
    targets = tuple(dict.fromkeys(module.leaf.path[-2] for module in modules))
    return LoraConfig(
        config.rank, config.alpha, config.dropout, targets, config.rank_stabilised
    ), tree


def save_adapter(
    folder: str | Path,
    adapter: Params,
    lora_config: LoraConfig,
    base_name: str,
    model_config: Config,
) -> None:
    """Write a LoRA adapter as peft does, in float32.

    Args:
        folder: new, or one whose adapter is replaced once the new one is whole.
        adapter: as `lora.init` makes it: not scaled.
        lora_config: its config.
        base_name: of the model that it adapts, for whoever loads it.
        model_config: of that model.

    Raises:
        InputError: for an adapter that does not fit the model.
    """
    pairs = _pairs(adapter)
    leaves = _matrices(model_config)
    unknown = pairs.keys() - leaves.keys()
    if unknown:
        raise InputError(
            f"the adapter has {'.'.join(min(unknown))}, which the model lacks; expected some of "
            f"{', '.join('.'.join(path) for path in leaves)}."
        )
    names = _short_names(leaves, pairs)
    ranks = {}
    headers: list[tuple[str, str, tuple[int, ...], int]] = []
    values: list[np.ndarray] = []
    for path, pair in pairs.items():
        leaf = leaves[path]
        rank = ranks[path] = int(pair["a"].shape[-1])
        parts = [np.asarray(pair[part], np.float32) for part in ("a", "b")]
        for layer in range(model_config.layers):
            module = _Module(_module_name(leaf, layer), leaf, layer, rank, 1.0)
            for part, (name, shape) in zip(parts, module.shapes.items(), strict=True):
                if part.shape != (model_config.layers, *shape[::-1]):
                    raise InputError(
                        f"the adapter's {'.'.join(path)} has shape {list(part.shape)}; the model "
                        f"asks for {[model_config.layers, *shape[::-1]]}."
                    )
                headers.append((name, "F32", shape, 4 * shape[0] * shape[1]))
                values.append(part[layer].T)
    other = {path: rank for path, rank in ranks.items() if rank != lora_config.rank}
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": lora_config.rank,
        "lora_alpha": lora_config.alpha,
        "lora_dropout": lora_config.dropout,
        "use_rslora": lora_config.rank_stabilised,
        "target_modules": sorted({names[path] for path in pairs}),
        "rank_pattern": {re.escape(names[path]): rank for path, rank in other.items()},
        # peft scales by each module's own rank, we by one for all.
        "alpha_pattern": {
            re.escape(names[path]): lora_config.scale
            * (rank**0.5 if lora_config.rank_stabilised else rank)
            for path, rank in other.items()
        },
        "bias": "none",
        "fan_in_fan_out": not any(leaves[path].transpose for path in pairs),
        "inference_mode": True,
    }
    with write_folder_aside(folder) as aside:
        with (aside / WEIGHTS).open("wb") as handle:
            write_tensors(handle, headers, iter(values))
        text = json.dumps(settings, indent=2, allow_nan=False)
        (aside / CONFIG).write_text(text + "\n", "utf-8")


def _refuse(settings: JsonObject, source: str) -> None:
    for name, allowed in _PLAIN.items():
        found = settings.get(name, allowed[0])
        if found not in allowed:
            raise InputError(
                f"{source}: {name} is {found!r}; expected plain LoRA, with "
                f"{' or '.join(map(repr, allowed[:2]))}."
            )
    for name in _ABSENT:
        if settings.get(name):
            raise InputError(
                f"{source}: {name} is {settings[name]!r}; expected plain LoRA without it."
            )


def _lora_config(settings: JsonObject, source: str) -> LoraConfig:
    return LoraConfig(
        rank=size(settings, "r", source),
        alpha=real(settings, "lora_alpha", source),
        dropout=real(settings, "lora_dropout", source, 0.0),
        rank_stabilised=bool(settings.get("use_rslora")),
    )


def _modules(
    settings: JsonObject, config: LoraConfig, model_config: Config, source: str
) -> Iterator[_Module]:
    """The modules that a config of peft adapts in a model.

    Source: peft, tuners_utils.check_target_module_exists and utils.other.get_pattern_key.
    """
    targets = _names(settings, "target_modules", source)
    excluded = _names(settings, "exclude_modules", source)
    if not targets:
        raise InputError(
            f"{source}: target_modules is {settings.get('target_modules')!r}; expected the names "
            "of some matrices."
        )
    layers = settings.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers
    if layers is not None and not isinstance(layers, list):
        raise InputError(f"{source}: layers_to_transform is {layers!r}; expected layer numbers.")
    ranks, alphas = (section(settings, f"{name}_pattern", source) for name in ("rank", "alpha"))
    used: set[str] = set()
    for leaf in _matrices(model_config).values():
        for layer in range(model_config.layers):
            name = _module_name(leaf, layer)
            hits = _hits(targets, name)
            used |= hits
            if not hits or _hits(excluded, name):
                continue
            if layers is not None and layer not in layers:
                continue
            rank = size(ranks, _pattern(ranks, name), f"{source}, rank_pattern", config.rank)
            alpha = real(alphas, _pattern(alphas, name), f"{source}, alpha_pattern", config.alpha)
            scale = alpha / (rank**0.5 if config.rank_stabilised else rank)
            yield _Module(name, leaf, layer, rank, scale)
    unused = ({targets} if isinstance(targets, str) else set(targets)) - used
    if unused:
        known = sorted({_short(leaf) for leaf in _matrices(model_config).values()})
        raise InputError(
            f"{source}: target_modules has {min(unused)!r}, which is no matrix of this model's "
            f"layers; expected some of {', '.join(known)}: is the adapter for another model?"
        )


def _names(settings: JsonObject, field: str, source: str) -> str | list[str]:
    """A pattern of module names, or a list of their endings; empty where the field is missing."""
    value = settings.get(field) or []
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise InputError(f"{source}: {field} is {value!r}; expected the names of some matrices.")
    return value


def _hits(targets: str | list[str], name: str) -> set[str]:
    """The entries of target_modules that mean a module: a pattern of its name, or endings."""
    if isinstance(targets, str):
        return {targets} if re.fullmatch(targets, name) else set()
    return {target for target in targets if f".{name}".endswith(f".{target}")}


def _pattern(patterns: JsonObject, name: str) -> str:
    """The first pattern that a module's name matches; empty where there is none."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", name)), "")


def _check(tensors: Tensors, modules: list[_Module]) -> None:
    expected = {name: shape for module in modules for name, shape in module.shapes.items()}
    missing, extra = expected.keys() - tensors.shapes.keys(), tensors.shapes.keys() - expected
    for what, wrong in (("is missing", missing), ("is no part of this model", extra)):
        if wrong:
            raise InputError(
                f"{tensors.source}: tensor {min(wrong)!r} {what} ({len(wrong)} such); expected "
                f"those that {CONFIG} and the model describe: is the adapter for another model?"
            )
    for name, shape in expected.items():
        if tensors.shapes[name] != shape:
            raise InputError(
                f"{tensors.source}: tensor {name!r} has shape {list(tensors.shapes[name])}; the "
                f"model and {CONFIG} ask for {list(shape)}: is the adapter for another model?"
            )


def _read(tensors: Tensors, modules: list[_Module], config: LoraConfig, layers: int) -> Params:
    tree: dict[str, Params | jax.Array] = {}
    for path in dict.fromkeys(module.leaf.path for module in modules):
        own = [module for module in modules if module.leaf.path == path]
        rank = max(module.rank for module in own)
        factors: dict[str, np.ndarray] = {}
        for module in own:
            for part, name in zip(("a", "b"), module.shapes, strict=True):
                value = tensors.read(name).T
                value = value.astype(jnp.promote_types(value.dtype, jnp.float32))
                if part == "b" and module.scale != config.scale:
                    value = value * (module.scale / config.scale)
                if part not in factors:
                    shape = (value.shape[0], rank) if part == "a" else (rank, value.shape[1])
                    factors[part] = np.zeros(
                        (layers, *shape), jax.dtypes.canonicalize_dtype(value.dtype)
                    )
                factors[part][module.layer, : value.shape[0], : value.shape[1]] = value
        put(tree, path[1:-1], {part: jnp.asarray(value) for part, value in factors.items()})
    return tree


def _matrices(config: Config) -> dict[tuple[str, ...], Leaf]:
    """The matrices of the layers, by their path in an adapter."""
    return {
        leaf.path[1:-1]: leaf
        for leaf in layout(config).leaves
        if leaf.layered and leaf.path[-1] == "kernel"
    }


def _pairs(tree: Params, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Pair]:
    found: dict[tuple[str, ...], Pair] = {}
    for name in tree:
        node = subtree(tree, name)
        found |= {(*path, name): node} if is_pair(node) else _pairs(node, (*path, name))
    return found


def _module_name(leaf: Leaf, layer: int) -> str:
    return leaf.name.format(layer=layer).removesuffix(".weight")


def _short(leaf: Leaf) -> str:
    return _module_name(leaf, 0).rpartition(".")[2]


def _short_names(
    leaves: Mapping[tuple[str, ...], Leaf], pairs: Mapping[tuple[str, ...], Pair]
) -> dict[tuple[str, ...], str]:
    """What target_modules calls each matrix: two parts where one would mean others as well."""
    names = {}
    for path in pairs:
        name = _short(leaves[path])
        if sum(_short(leaf) == name for leaf in leaves.values()) > 1:
            name = ".".join(_module_name(leaves[path], 0).split(".")[-2:])
        names[path] = name
    return names
