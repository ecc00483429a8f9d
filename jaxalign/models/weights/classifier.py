"""The tables of tensors of the sequence classifiers."""

from dataclasses import replace

from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.encoder import EncoderConfig
from jaxalign.models.gpt2 import GPT2Config
from jaxalign.models.weights import decoder, distilbert, encoder, gpt2
from jaxalign.models.weights.layout import Layout, Leaf


def layout(config: DecoderConfig | GPT2Config | EncoderConfig, labels: int) -> Layout:
    """The table of a classifier: the parameters of its trunk, and `head` beside them.

    Args:
        config: of the trunk.
        labels: how many logits it gives.

    Returns:
        With `head` as `ValueHead` of a decoder, `PooledHead` of an encoder.
    """
    if isinstance(config, DecoderConfig):
        return decoder.layout(config, labels)
    if isinstance(config, GPT2Config):
        return gpt2.layout(config, labels)
    if config.token_types:
        trunk = encoder.layout(config)
        leaves = tuple(replace(leaf, name=f"bert.{leaf.name}") for leaf in trunk.leaves)
        inner, ignored = "bert.pooler.dense", r"cls\.|bert\.embeddings\.(position|token_type)_ids$"
    else:
        trunk = distilbert.layout(config)
        leaves = trunk.leaves
        inner, ignored = "pre_classifier", r"vocab_|distilbert\.embeddings\.position_ids$"
    head = (*_dense("inner", inner, config.width, config.width),
            *_dense("score", "classifier", labels, config.width))  # fmt: skip
    return replace(trunk, leaves=(*leaves, *head), ignored=ignored)


def _dense(ours: str, theirs: str, out: int, into: int) -> tuple[Leaf, Leaf]:
    kernel = Leaf(("head", ours, "kernel"), f"{theirs}.weight", (out, into), transpose=True)
    return kernel, Leaf(("head", ours, "bias"), f"{theirs}.bias", (out,))
