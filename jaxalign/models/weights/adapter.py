"""LoRA adapters of the library peft as tensors: read, checked, and added to a model's matrices.

`adapter_config.json` says which modules are adapted and how; the tensors must be exactly those it
describes on this model, or the adapter was made for another one.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxalign.errors import InputError
from jaxalign.files import read_json
from jaxalign.models.hf_config import JsonObject, real, section, size
from jaxalign.models.lora import LoraConfig
from jaxalign.models.weights.layout import Layout, Leaf
from jaxalign.models.weights.load import match_names, spellings
from jaxalign.models.weights.safetensors import Tensors, open_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# Fields that make an adapter more than a pair of factors a matrix, and what must stand in them.
_PLAIN: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),  # others change the model
    "layers_pattern": (None, [], "layers", "h", ["layers"], ["h"]),
}
_ABSENT = (
    "use_dora", "lora_bias", "trainable_token_indices", "target_parameters",
    "layer_replication", "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config",
    "kasa_config", "velora_config", "monteclora_config", "loftq_config", "corda_config",
    "lora_ga_config",
)  # fmt: skip
_MERGE = (
    "merge it into its base with peft (`merge_and_unload()`, then `save_pretrained`) and give that "
    "folder as the model"
)
# `.default.` and other names of an adapter stand in files that were not written by peft itself.
_FACTOR = re.compile(r"(.+)\.(lora_[AB])(?:\.\w+)?\.weight")
_SAVED = re.compile(r"(.+)\.modules_to_save(?:\.\w+)?\.(weight|bias)")
_HEAD = "lm_head.weight"
# Modules that have a row for each token.
TABLES = ("embed_tokens", "wte", "lm_head")


@dataclass(frozen=True)
class AdaptedModule:
    """One matrix of one layer that an adapter changes.

    Attributes:
        name: as in the model's file, without `.weight`.
        leaf: the parameter that it is part of.
        layer: number of its layer.
        rank: of its two factors.
        scale: what their product is multiplied by.
    """

    name: str
    leaf: Leaf
    layer: int
    rank: int
    scale: float

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name, without peft's prefix -> shape of the two factors."""
        out, into = self.leaf.shape if self.leaf.out_first else self.leaf.shape[::-1]
        return {
            f"{self.name}.lora_A.weight": (self.rank, into),
            f"{self.name}.lora_B.weight": (out, self.rank),
        }


def adapter_settings(folder: Path) -> dict[str, object]:
    """The config of an adapter that is plain LoRA, perhaps with whole matrices beside it.

    Raises:
        InputError: the file is missing or broken, or names another kind of adapter.
    """
    source = folder / CONFIG
    settings = read_json(
        source, "the folder of a LoRA adapter", "give one that `jaxalign sft` or peft wrote"
    )
    for name, allowed in _PLAIN.items():
        found = settings.get(name, allowed[0])
        if found not in allowed:
            raise InputError(
                f"{source}: {name} is {found!r}; expected plain LoRA, with "
                f"{' or '.join(map(repr, allowed[:2]))}: {_MERGE}."
            )
    for name in _ABSENT:
        if settings.get(name):
            raise InputError(
                f"{source}: {name} is {settings[name]!r}; expected plain LoRA without it: {_MERGE}."
            )
    return settings


def lora_config(settings: JsonObject, source: str) -> LoraConfig:
    """The rank and scale that all matrices share which have none of their own."""
    return LoraConfig(
        rank=size(settings, "r", source),
        alpha=real(settings, "lora_alpha", source),
        dropout=real(settings, "lora_dropout", source, 0.0),
        rank_stabilised=bool(settings.get("use_rslora")),
    )


@contextmanager
def open_adapter(folder: Path, layout: Layout) -> Iterator[Tensors]:
    """The tensors of an adapter, by the model's names followed by `.lora_A.weight` and the like.

    Args:
        folder: of the adapter.
        layout: of the model.

    Raises:
        InputError: the file is missing or not whole.
    """
    if not (folder / WEIGHTS).is_file():
        raise InputError(
            f"{folder}: {WEIGHTS} is missing: save the adapter again with safe serialisation."
        )
    with open_tensors([folder / WEIGHTS]) as tensors:
        names = {
            _canonical(found, layout): found
            for found in tensors.shapes
            if ".original_module." not in found
        }
        shapes = {name: tensors.shapes[found] for name, found in names.items()}
        yield Tensors(tensors.source, shapes, dict.fromkeys(names, _Renamed(tensors, names)))


@dataclass(frozen=True)
class _Renamed:
    tensors: Tensors
    names: Mapping[str, str]

    def get_tensor(self, name: str) -> np.ndarray:
        return self.tensors.read(self.names[name])


def _canonical(found: str, layout: Layout) -> str:
    """The name of an adapter's tensor without peft's prefix and the adapter's own name."""
    name, end = found.removeprefix(PREFIX), ""
    if factor := _FACTOR.fullmatch(name):
        name, end = f"{factor[1]}.weight", f".{factor[2]}.weight"
    elif saved := _SAVED.fullmatch(name):
        name = f"{saved[1]}.{saved[2]}"
    known = dict(layout.tensors()) | dict(layout.copies)
    name = next((spelling for spelling in spellings(name, layout) if spelling in known), name)
    return name.removesuffix(".weight") + end if end else name


def adapted_modules(
    settings: JsonObject, config: LoraConfig, layout: Layout, source: str
) -> Iterator[AdaptedModule]:
    """The modules that a config of peft adapts in a model.

    Args:
        settings: the config of the adapter.
        config: of `lora_config`.
        layout: of the model.
        source: what to call the config in messages.

    Raises:
        InputError: no module is adapted, or one that is no matrix of the layers.

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
    _check_patterns({targets} if isinstance(targets, str) else (), "target_modules", source)
    _check_patterns({excluded} if isinstance(excluded, str) else (), "exclude_modules", source)
    _check_patterns(ranks, "rank_pattern", source)
    _check_patterns(alphas, "alpha_pattern", source)
    used: set[str] = set()
    for leaf in layered_matrices(layout).values():
        for layer in range(layout.layers):
            name = module_name(leaf, layer)
            hits = _hits(targets, name, layout.prefixes)
            used |= hits
            if not hits or _hits(excluded, name, layout.prefixes):
                continue
            if layers is not None and layer not in layers:
                continue
            rank = size(ranks, _pattern(ranks, name), f"{source}, rank_pattern", config.rank)
            alpha = real(alphas, _pattern(alphas, name), f"{source}, alpha_pattern", config.alpha)
            scale = alpha / (rank**0.5 if config.rank_stabilised else rank)
            yield AdaptedModule(name, leaf, layer, rank, scale)
    unused = ({targets} if isinstance(targets, str) else set(targets)) - used
    tables = sorted(unused & set(TABLES))
    if tables:
        raise InputError(
            f"{source}: target_modules has {tables[0]!r}, and low-rank updates of the embeddings "
            f"or of the head are not read; expected matrices of the layers only: {_MERGE}."
        )
    if unused:
        known = sorted({short_name(leaf) for leaf in layered_matrices(layout).values()})
        raise InputError(
            f"{source}: target_modules has {min(unused)!r}, which is no matrix of this model's "
            f"layers; expected some of {', '.join(known)}: is the adapter for another model?"
        )


def layered_matrices(layout: Layout) -> dict[tuple[str, ...], Leaf]:
    """The matrices of the layers, by their path in an adapter."""
    return {
        leaf.path[1:-1]: leaf for leaf in layout.leaves if leaf.layered and len(leaf.shape) == 2
    }


def module_name(leaf: Leaf, layer: int) -> str:
    """What peft calls the matrix of one layer, without its prefix."""
    return leaf.name.format(layer=layer).removesuffix(".weight")


def short_name(leaf: Leaf) -> str:
    """The last part of the name of a matrix, such as `q_proj`."""
    return module_name(leaf, 0).rpartition(".")[2]


def _names(settings: JsonObject, field: str, source: str) -> str | list[str]:
    """A pattern of module names, or a list of their endings; empty where the field is missing."""
    value = settings.get(field) or []
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise InputError(f"{source}: {field} is {value!r}; expected the names of some matrices.")
    return value


def _check_patterns(patterns: Collection[str], field: str, source: str) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise InputError(
                f"{source}: {field} has {pattern!r}, which is no regular expression ({error}); "
                "expected one that matches names of matrices, such as '.*proj': correct it."
            ) from None


def _hits(targets: str | list[str], name: str, prefixes: Sequence[str] = ()) -> set[str]:
    """The entries of target_modules that mean a module: a pattern of its name, or endings."""
    if isinstance(targets, str):
        names = (name, *(name.removeprefix(prefix) for prefix in prefixes))
        return {targets} if any(re.fullmatch(targets, each) for each in names) else set()
    return {target for target in targets if f".{name}".endswith(f".{target}")}


def _pattern(patterns: JsonObject, name: str) -> str:
    """The first pattern that a module's name matches; empty where there is none."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", name)), "")


def check_adapter(
    tensors: Tensors, modules: Sequence[AdaptedModule], saved: Collection[str] = ()
) -> None:
    """Refuse tensors that are not the factors of these modules.

    Args:
        tensors: of `open_adapter`.
        modules: of `adapted_modules`.
        saved: names of tensors that stand beside the factors.

    Raises:
        InputError: a tensor is missing, superfluous, or of another shape.
    """
    expected = {name: shape for module in modules for name, shape in module.shapes.items()}
    missing = expected.keys() - tensors.shapes.keys()
    extra = tensors.shapes.keys() - expected.keys() - set(saved)
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


def saved_rows(folder: Path, modules: Collection[str]) -> int | None:
    """The number of rows of a whole matrix that an adapter holds; None where it holds none.

    Args:
        folder: of the adapter.
        modules: the last parts of its name, such as `lm_head`.

    Raises:
        InputError: the file is not whole.
    """
    with open_tensors([folder / WEIGHTS]) as tensors:
        rows = [
            shape[0]
            for name, shape in tensors.shapes.items()
            if not set(modules).isdisjoint(parts := name.split("."))
            and parts[-1] == "weight"
            and "original_module" not in parts
        ]
    return rows[0] if rows else None


@contextmanager
def add_adapter(
    base: Tensors, folder: Path, layout: Layout, dtype: str, weight: float = 1.0
) -> Iterator[Tensors]:
    """The tensors of a model with an adapter merged into them as they are read.

    Whole matrices of the adapter (`modules_to_save`, saved embeddings) take the place of the
    model's. The sum with a low-rank update is formed in at least float32.

    Args:
        base: of the model.
        folder: of the adapter.
        layout: of the model with the adapter.
        dtype: that the model is read in.
        weight: what the low-rank updates are multiplied by; whole matrices need a weight of 1.

    Yields:
        The tensors by the model's names, readable until the context ends.

    Raises:
        InputError: the adapter is broken, is not plain LoRA, or does not fit the model.
    """
    settings, source = adapter_settings(folder), str(folder / CONFIG)
    config = lora_config(settings, source)
    modules = list(adapted_modules(settings, config, layout, source))
    known = dict(layout.tensors())
    with open_adapter(folder, layout) as tensors:
        saved = frozenset(known.keys() & tensors.shapes.keys())
        check_adapter(tensors, modules, saved | dict(layout.copies).keys())
        if saved and weight != 1:
            raise InputError(
                f"{folder}: the adapter holds whole matrices ({min(saved)}), which have no weight; "
                f"found {weight:g}, expected 1: merge it alone, or leave it out."
            )
        own = match_names(base, layout, replaced=saved | {_HEAD})
        table = next((leaf.name for leaf in layout.leaves if leaf.path == ("embed", "table")), "")
        if table in own:
            own.setdefault(_HEAD, own[table])  # tied in the base, and apart from now on
        names = {name: own.get(name, "") for name in known if name in own or name in saved}
        merged = _Merged(
            base,
            tensors,
            names,
            {f"{module.name}.weight": module for module in modules},
            saved,
            weight,
            np.promote_types(jnp.dtype(dtype), np.float32),
        )
        shapes = {
            name: tensors.shapes[name] if name in saved else base.shapes[found]
            for name, found in names.items()
        }
        yield Tensors(f"{base.source} with {folder}", shapes, dict.fromkeys(shapes, merged))


@dataclass(frozen=True)
class _Merged:
    base: Tensors
    adapter: Tensors
    names: Mapping[str, str]
    modules: Mapping[str, AdaptedModule]
    saved: frozenset[str]
    weight: float
    wide: np.dtype

    def get_tensor(self, name: str) -> np.ndarray:
        if name in self.saved:
            return self.adapter.read(name)
        value, module = self.base.read(self.names[name]), self.modules.get(name)
        if module is None or not jnp.issubdtype(value.dtype, jnp.floating):
            return value
        a, b = (self.adapter.read(part).astype(self.wide) for part in module.shapes)
        update = (b @ a) * self.wide.type(self.weight * module.scale)
        return value.astype(self.wide) + (update if module.leaf.out_first else update.T)
