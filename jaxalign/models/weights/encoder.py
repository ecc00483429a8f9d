"""The table of tensors of the BERT family."""

from jaxalign.models.encoder import EncoderConfig
from jaxalign.models.weights.layout import Layout, Leaf

_LAYER = "encoder.layer.{layer}."
# Heads of pre-training and of classifiers, and buffers that older versions saved.
_IGNORED = r"(pooler|cls|classifier)\.|embeddings\.(position_ids|token_type_ids)$"
# Early BERT's names of the norms' scale and bias.
_RENAMED = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))


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
