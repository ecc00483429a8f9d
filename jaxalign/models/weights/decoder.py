"""The table of tensors of the Llama family."""

from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.weights.layout import Layout, Leaf

_LAYER = "model.layers.{layer}."
_BUFFERS = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq$"


def layout(config: DecoderConfig, labels: int | None = None) -> Layout:
    """The table of a decoder.

    Args:
        config: sizes and switches.
        labels: of a sequence classifier, whose `score` [labels, D] then takes the place of the
            unembedding; None for a language model.

    Returns:
        The parameters of `Decoder`; a classifier's have `head.kernel` [D, labels] beside them.
    """
    V, D, F = config.vocab_size, config.width, config.hidden
    table = "model.embed_tokens.weight"
    leaves = [Leaf(("embed", "table"), table, (V, D))]
    norms = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    for ours, theirs in norms.items():
        leaves.append(Leaf(("layers", ours, "scale"), f"{_LAYER}{theirs}.weight", (D,)))
    if config.qk_norm:
        for ours, theirs in {"query_norm": "q_norm", "key_norm": "k_norm"}.items():
            name = f"{_LAYER}self_attn.{theirs}.weight"
            leaves.append(Leaf(("layers", "attention", ours, "scale"), name, (config.head_width,)))
    own, shared = config.heads * config.head_width, config.kv_heads * config.head_width
    for block, part, theirs, out, into, bias in (
        ("attention", "query", "self_attn.q_proj", own, D, config.qkv_bias),
        ("attention", "key", "self_attn.k_proj", shared, D, config.qkv_bias),
        ("attention", "value", "self_attn.v_proj", shared, D, config.qkv_bias),
        ("attention", "out", "self_attn.o_proj", D, own, config.out_bias),
        ("mlp", "gate", "mlp.gate_proj", F, D, config.mlp_bias),
        ("mlp", "up", "mlp.up_proj", F, D, config.mlp_bias),
        ("mlp", "down", "mlp.down_proj", D, F, config.mlp_bias),
    ):
        name = f"{_LAYER}{theirs}"
        path = ("layers", block, part)
        leaves.append(Leaf((*path, "weight"), f"{name}.weight", (out, into)))
        if bias:
            leaves.append(Leaf((*path, "bias"), f"{name}.bias", (out,)))
    leaves.append(Leaf(("final_norm", "scale"), "model.norm.weight", (D,)))
    copies: tuple[tuple[str, str], ...] = ()
    ignored = _BUFFERS
    if labels is not None:
        ignored += r"|lm_head\."  # of a language model that an adapter makes a classifier
        leaves.append(Leaf(("head", "kernel"), "score.weight", (labels, D), transpose=True))
    elif config.tied:
        copies = (("lm_head.weight", table),)
    else:
        leaves.append(Leaf(("unembed", "table"), "lm_head.weight", (V, D)))
    return Layout(tuple(leaves), config.layers, ("model.",), ignored, copies=copies)
