"""BERT weights from safetensors, straight into the stacked layout of `jaxalign.models.encoder`."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import InputError
from jaxalign.models.encoder import EncoderConfig
from jaxalign.models.weights.safetensors import Tensors, open_tensors

_PREFIX = "bert."
# Heads of pre-training and of classifiers, and buffers that older versions saved.
_IGNORED = re.compile(r"(pooler|cls|classifier)\.|embeddings\.(position_ids|token_type_ids)$")
_LAYER = "encoder.layer.{layer}."
# Path in params, tensor name, whether torch holds it transposed.
_Leaf = tuple[tuple[str, ...], str, bool]

_DENSE = {
    "attention.self.query": ("attention", "query"),
    "attention.self.key": ("attention", "key"),
    "attention.self.value": ("attention", "value"),
    "attention.output.dense": ("attention", "out"),
    "intermediate.dense": ("up",),
    "output.dense": ("down",),
}
_NORMS = {"attention.output.LayerNorm": ("attention_norm",), "output.LayerNorm": ("output_norm",)}


def load(paths: Sequence[Path], config: EncoderConfig, dtype: Any = "float32") -> dict[str, Any]:
    """Parameters of an encoder from its safetensors files.

    Args:
        paths: one file, or all shards.
        config: sizes that the tensors must have.
        dtype: of the parameters.

    Returns:
        Nested dicts as `Encoder.init(...)["params"]` gives them; layers stacked, [L, ...].

    Raises:
        InputError: for a broken file, or a tensor that is missing, unknown or of another shape.
    """
    dtype = jnp.dtype(dtype)
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise InputError(f"dtype {dtype.name} needs JAX's 64-bit mode: set jax_enable_x64.")
    with open_tensors(paths) as tensors:
        names = _file_names(tensors)
        expected = _shapes(config)
        _check(tensors, names, expected)
        params: dict[str, Any] = {}
        for leaf, name, transpose in _plan():
            if name.startswith(_LAYER):
                keys = [names[name.format(layer=layer)] for layer in range(config.layers)]
                value = _stack(tensors, keys, transpose, dtype)
            else:
                value = _read(tensors, names[name], transpose).astype(dtype)
            _put(params, leaf, jax.device_put(value))
    return params


def _plan() -> list[_Leaf]:
    table = "embeddings.{}_embeddings.weight"
    kinds = (("word", "word"), ("position", "position"), ("type", "token_type"))
    plan: list[_Leaf] = [
        (("embeddings", ours), table.format(theirs), False) for ours, theirs in kinds
    ]
    norms: dict[str, tuple[str, ...]] = {
        _LAYER + name: ("layers", *path) for name, path in _NORMS.items()
    }
    norms["embeddings.LayerNorm"] = ("embeddings", "norm")
    for name, path in norms.items():
        plan += [
            ((*path, "scale"), f"{name}.weight", False),
            ((*path, "bias"), f"{name}.bias", False),
        ]
    for name, inner in _DENSE.items():
        path = ("layers", *inner)
        name = _LAYER + name
        plan += [
            ((*path, "kernel"), f"{name}.weight", True),
            ((*path, "bias"), f"{name}.bias", False),
        ]
    return plan


def _shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """The shape in the file of every tensor that a config asks for."""
    D, F = config.width, config.hidden
    rows = {
        "word": config.vocab_size,
        "position": config.positions,
        "token_type": config.token_types,
    }
    shapes: dict[str, tuple[int, ...]] = {
        f"embeddings.{name}_embeddings.weight": (count, D) for name, count in rows.items()
    }
    shapes |= {f"embeddings.LayerNorm.{part}": (D,) for part in ("weight", "bias")}
    for layer in range(config.layers):
        prefix = _LAYER.format(layer=layer)
        shapes |= {f"{prefix}{name}.{part}": (D,) for name in _NORMS for part in ("weight", "bias")}
        for name, inner in _DENSE.items():
            out, into = {"up": (F, D), "down": (D, F)}.get(inner[-1], (D, D))
            shapes |= {f"{prefix}{name}.weight": (out, into), f"{prefix}{name}.bias": (out,)}
    return shapes


def _file_names(tensors: Tensors) -> dict[str, str]:
    """Bare name -> name in the file, heads left out; `gamma` and `beta` are early BERT's norms."""
    prefixed = any(name.startswith(f"{_PREFIX}embeddings.") for name in tensors.shapes)
    names: dict[str, str] = {}
    for name in tensors.shapes:
        bare = name.removeprefix(_PREFIX) if prefixed else name
        bare = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", bare)
        bare = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", bare)
        if not _IGNORED.match(bare):
            names[bare] = name
    return names


def _check(
    tensors: Tensors, names: Mapping[str, str], expected: Mapping[str, tuple[int, ...]]
) -> None:
    missing, extra = sorted(expected.keys() - names), sorted(names.keys() - expected)
    for what, found in (("missing", missing), ("not part of this encoder", extra)):
        if found:
            more = f" and {len(found) - 1} more are" if len(found) > 1 else " is"
            raise InputError(
                f"{tensors.source}: tensor {found[0]!r}{more} {what}; "
                "expected those that config.json describes: check that the two belong together."
            )
    for bare, shape in expected.items():
        if tensors.shapes[names[bare]] != shape:
            raise InputError(
                f"{tensors.source}: tensor {names[bare]!r} has shape "
                f"{list(tensors.shapes[names[bare]])}; config.json asks for {list(shape)}: "
                "check that the two belong together."
            )


def _read(tensors: Tensors, name: str, transpose: bool) -> np.ndarray:
    value = tensors.read(name)
    return value.T if transpose else value


def _stack(tensors: Tensors, names: Sequence[str], transpose: bool, dtype: np.dtype) -> np.ndarray:
    first = _read(tensors, names[0], transpose)
    stacked = np.empty((len(names), *first.shape), dtype)
    stacked[0] = first
    for layer, name in enumerate(names[1:], start=1):
        stacked[layer] = _read(tensors, name, transpose)
    return stacked


def _put(params: dict[str, Any], path: tuple[str, ...], value: jax.Array) -> None:
    for part in path[:-1]:
        params = params.setdefault(part, {})
    params[path[-1]] = value
