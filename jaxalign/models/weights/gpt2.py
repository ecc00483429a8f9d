"""The table of tensors of GPT-2."""

from jaxalign.models.gpt2 import GPT2Config
from jaxalign.models.weights.layout import Layout, Leaf

_LAYER = "transformer.h.{layer}."
_BUFFERS = r"transformer\.h\.\d+\.attn\.(masked_)?bias$"  # the causal mask


def layout(config: GPT2Config, labels: int | None = None) -> Layout:
    """The table of a GPT-2, whose matrices (Conv1D) are [in, out] in the file.

    Args:
        config: sizes and switches.
        labels: of a sequence classifier, whose `score` [labels, D] then takes the place of the
            unembedding; None for a language model.

    Returns:
        The parameters of `GPT2`; a classifier's have `head.kernel` [D, labels] beside them.
    """
    V, D, F = config.vocab_size, config.width, config.hidden
    table = "transformer.wte.weight"
    leaves = [
        Leaf(("embed", "table"), table, (V, D)),
        Leaf(("positions", "table"), "transformer.wpe.weight", (config.positions, D)),
    ]
    norms = {
        _LAYER + "ln_1": ("layers", "attention_norm"),
        _LAYER + "ln_2": ("layers", "mlp_norm"),
        "transformer.ln_f": ("final_norm",),
    }
    for name, path in norms.items():
        leaves += [
            Leaf((*path, "scale"), f"{name}.weight", (D,)),
            Leaf((*path, "bias"), f"{name}.bias", (D,)),
        ]
    matrices = {
        "attn.c_attn": (("attention", "qkv"), (D, 3 * D)),
        "attn.c_proj": (("attention", "out"), (D, D)),
        "mlp.c_fc": (("mlp", "up"), (D, F)),
        "mlp.c_proj": (("mlp", "down"), (F, D)),
    }
    for name, (inner, shape) in matrices.items():
        leaves += [
            Leaf(("layers", *inner, "weight"), f"{_LAYER}{name}.weight", shape, transpose=True),
            Leaf(("layers", *inner, "bias"), f"{_LAYER}{name}.bias", shape[1:]),
        ]
    copies: tuple[tuple[str, str], ...] = ()
    ignored = _BUFFERS
    if labels is not None:
        ignored += r"|lm_head\."  # of a language model that an adapter makes a classifier
        leaves.append(Leaf(("head", "kernel"), "score.weight", (labels, D), transpose=True))
    elif config.tied:
        copies = (("lm_head.weight", table),)
    else:
        leaves.append(Leaf(("unembed", "table"), "lm_head.weight", (V, D)))
    return Layout(tuple(leaves), config.layers, ("transformer.",), ignored, copies=copies)
