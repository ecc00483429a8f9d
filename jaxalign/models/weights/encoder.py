"""BERT weights from safetensors, straight into the stacked layout of `jaxalign.models.encoder`."""

from collections.abc import Sequence
from pathlib import Path

from jax.typing import DTypeLike

from jaxalign.models.encoder import EncoderConfig
from jaxalign.models.params import Params
from jaxalign.models.weights.layout import Layout, Leaf
from jaxalign.models.weights.load import load_params
from jaxalign.models.weights.safetensors import open_tensors

_LAYER = "encoder.layer.{layer}."
# Heads of pre-training and of classifiers, and buffers that older versions saved.
_IGNORED = r"(pooler|cls|classifier)\.|embeddings\.(position_ids|token_type_ids)$"
# Early BERT's names of the norms' scale and bias.
_RENAMED = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))


def load(paths: Sequence[Path], config: EncoderConfig, dtype: DTypeLike = "float32") -> Params:
    """Parameters of an encoder from its safetensors files.

    Args:
        paths: one file, or all shards.
        config: sizes that the tensors must have.
        dtype: of the parameters.

    Returns:
        Nested dicts as `EncoderModule.init(...)["params"]` gives them; layers stacked, [L, ...].

    Raises:
        InputError: for a broken file, or a tensor that is missing, unknown or of another shape.
    """
    with open_tensors(paths) as tensors:
        return load_params(tensors, layout(config), dtype)


def layout(config: EncoderConfig) -> Layout:
    """The table of a BERT without its heads."""
    D, F = config.width, config.hidden
    rows = {
        "word": ("word", config.vocab_size),
        "position": ("position", config.positions),
        "type": ("token_type", config.token_types),
    }
    leaves = [
        Leaf(("embeddings", ours), f"embeddings.{theirs}_embeddings.weight", (count, D))
        for ours, (theirs, count) in rows.items()
    ]
    norms: dict[tuple[str, ...], str] = {
        ("embeddings", "norm"): "embeddings.LayerNorm",
        ("layers", "attention_norm"): _LAYER + "attention.output.LayerNorm",
        ("layers", "output_norm"): _LAYER + "output.LayerNorm",
    }
    for path, name in norms.items():
        leaves += [
            Leaf((*path, "scale"), f"{name}.weight", (D,)),
            Leaf((*path, "bias"), f"{name}.bias", (D,)),
        ]
    dense: dict[tuple[str, ...], tuple[str, int, int]] = {
        ("attention", "query"): ("attention.self.query", D, D),
        ("attention", "key"): ("attention.self.key", D, D),
        ("attention", "value"): ("attention.self.value", D, D),
        ("attention", "out"): ("attention.output.dense", D, D),
        ("up",): ("intermediate.dense", F, D),
        ("down",): ("output.dense", D, F),
    }
    for inner, (name, out, into) in dense.items():
        path = ("layers", *inner)
        leaves += [
            Leaf((*path, "kernel"), f"{_LAYER}{name}.weight", (out, into), transpose=True),
            Leaf((*path, "bias"), f"{_LAYER}{name}.bias", (out,)),
        ]
    return Layout(tuple(leaves), config.layers, ("bert.",), _IGNORED, renamed=_RENAMED)
