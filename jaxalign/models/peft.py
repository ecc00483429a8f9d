"""LoRA adapters as trees, from and to folders of the library peft."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import InputError
from jaxalign.files import expand_user, write_folder_aside
from jaxalign.models.families import Config
from jaxalign.models.language import layout
from jaxalign.models.lora import LoraConfig, adapted_pairs
from jaxalign.models.params import Params, put
from jaxalign.models.resolve import stated_name
from jaxalign.models.weights.adapter import (
    CONFIG,
    PREFIX,
    WEIGHTS,
    AdaptedModule,
    adapted_modules,
    adapter_settings,
    check_adapter,
    layered_matrices,
    lora_config,
    module_name,
    open_adapter,
    short_name,
)
from jaxalign.models.weights.layout import Leaf
from jaxalign.models.weights.safetensors import Tensors
from jaxalign.models.weights.save import write_tensors

Pair: TypeAlias = Mapping[str, jax.Array]


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
    folder = expand_user(folder)
    settings, source, table = adapter_settings(folder), str(folder / CONFIG), layout(model_config)
    config = lora_config(settings, source)
    modules = list(adapted_modules(settings, config, table, source))
    with open_adapter(folder, table) as tensors:
        whole = [name for name in tensors.shapes if ".lora_" not in name]
        if settings.get("modules_to_save") or whole:
            raise InputError(
                f"{folder}: the adapter holds whole matrices (modules_to_save is "
                f"{settings.get('modules_to_save')!r}, {len(whole)} in the file), which cannot "
                "be exchanged row by row; expected low-rank updates only: give the folder itself "
                "as the model."
            )
        check_adapter(tensors, modules)
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
        base_name: of the model that it adapts, for whoever loads it; of a path, the whole is
            written.
        model_config: of that model.

    Raises:
        InputError: for an adapter that does not fit the model or is not finite.
    """
    pairs = adapted_pairs(adapter)
    leaves = layered_matrices(layout(model_config))
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
            module = AdaptedModule(module_name(leaf, layer), leaf, layer, rank, 1.0)
            for part, (name, shape) in zip(parts, module.shapes.items(), strict=True):
                if part.shape != (model_config.layers, *shape[::-1]):
                    raise InputError(
                        f"the adapter's {'.'.join(path)} has shape {list(part.shape)}; the model "
                        f"asks for {[model_config.layers, *shape[::-1]]}."
                    )
                if not np.isfinite(part).all():
                    raise InputError(
                        f"the adapter's {'.'.join(path)} holds NaN or infinity, expected finite "
                        "numbers: take the adapter of a training that did not diverge."
                    )
                headers.append((PREFIX + name, "F32", shape, 4 * shape[0] * shape[1]))
                values.append(part[layer].T)
    other = {path: rank for path, rank in ranks.items() if rank != lora_config.rank}
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": stated_name(base_name),
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
        "fan_in_fan_out": not any(leaves[path].out_first for path in pairs),
        "inference_mode": True,
    }
    with write_folder_aside(folder) as aside:
        with (aside / WEIGHTS).open("wb") as handle:
            write_tensors(handle, headers, iter(values))
        text = json.dumps(settings, indent=2, allow_nan=False)
        (aside / CONFIG).write_text(text + "\n", "utf-8")


def _read(
    tensors: Tensors, modules: list[AdaptedModule], config: LoraConfig, layers: int
) -> Params:
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


def _short_names(
    leaves: Mapping[tuple[str, ...], Leaf], pairs: Mapping[tuple[str, ...], Pair]
) -> dict[tuple[str, ...], str]:
    """What target_modules calls each matrix: two parts where one would mean others as well."""
    names = {}
    for path in pairs:
        name = short_name(leaves[path])
        if sum(short_name(leaf) == name for leaf in leaves.values()) > 1:
            name = ".".join(module_name(leaves[path], 0).split(".")[-2:])
        names[path] = name
    return names
