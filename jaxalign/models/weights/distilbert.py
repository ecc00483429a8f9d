"""The table of tensors of DistilBERT."""

from jaxalign.models.encoder import EncoderConfig
from jaxalign.models.weights.layout import Layout, Leaf

_LAYER = "distilbert.transformer.layer.{layer}."
# Heads of pre-training, classifiers and question answering, and a buffer of older versions.
_IGNORED = (
    r"(vocab_transform|vocab_layer_norm|vocab_projector|pre_classifier|classifier|qa_outputs)\.|"
    r"distilbert\.embeddings\.position_ids$"
)


def layout(config: EncoderConfig) -> Layout:
    """The table of a DistilBERT without its heads."""
    D, F = config.width, config.hidden
    table = "distilbert.embeddings.{}_embeddings.weight"
    leaves = [
        Leaf(("embeddings", "word"), table.format("word"), (config.vocab_size, D)),
        Leaf(("embeddings", "position"), table.format("position"), (config.positions, D)),
    ]
    norms = {
        "distilbert.embeddings.LayerNorm": ("embeddings", "norm"),
        _LAYER + "sa_layer_norm": ("layers", "attention_norm"),
        _LAYER + "output_layer_norm": ("layers", "output_norm"),
    }
    for name, path in norms.items():
        leaves += [
            Leaf((*path, "scale"), f"{name}.weight", (D,)),
            Leaf((*path, "bias"), f"{name}.bias", (D,)),
        ]
    matrices = {
        "attention.q_lin": (("attention", "query"), (D, D)),
        "attention.k_lin": (("attention", "key"), (D, D)),
        "attention.v_lin": (("attention", "value"), (D, D)),
        "attention.out_lin": (("attention", "out"), (D, D)),
        "ffn.lin1": (("up",), (F, D)),
        "ffn.lin2": (("down",), (D, F)),
    }
    for name, (inner, shape) in matrices.items():
        leaves += [
            Leaf(("layers", *inner, "kernel"), f"{_LAYER}{name}.weight", shape, transpose=True),
            Leaf(("layers", *inner, "bias"), f"{_LAYER}{name}.bias", shape[:1]),
        ]
    return Layout(tuple(leaves), config.layers, ("distilbert.",), _IGNORED)
