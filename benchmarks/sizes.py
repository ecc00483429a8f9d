"""Real shapes of decoders, and their arithmetic counted by hand: FLOPs and bytes."""

from dataclasses import replace
from typing import Any

from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.rope import Rope

SIZES = {
    # For seeing that a benchmark runs.
    "nano": DecoderConfig("llama", 256, 32, 2, 2, 1, 16, 64, 512, tied=True),
    # For machines without an accelerator: says nothing about speed elsewhere.
    "tiny": DecoderConfig("llama", 4096, 256, 4, 8, 4, 32, 704, 2048, tied=True),
    "135M": DecoderConfig(  # SmolLM2-135M
        "llama", 49_152, 576, 30, 9, 3, 64, 1536, 8192, rope=Rope(1e5), norm_eps=1e-5, tied=True
    ),
    "1B": DecoderConfig(  # Llama-3.2-1B
        "llama", 128_256, 2048, 16, 32, 8, 64, 8192, 131_072, rope=Rope(5e5), norm_eps=1e-5,
        tied=True,
    ),
    "7B": DecoderConfig(  # Llama-2-7B
        "llama", 32_000, 4096, 32, 32, 32, 128, 11_008, 4096, norm_eps=1e-5
    ),
    "8B": DecoderConfig(  # Llama-3.1-8B
        "llama", 128_256, 4096, 32, 32, 8, 128, 14_336, 131_072, rope=Rope(5e5), norm_eps=1e-5
    ),
}  # fmt: skip


def config(size: str, dtype: str, **changes: Any) -> DecoderConfig:
    """A size in a compute dtype."""
    return replace(SIZES[size], dtype=dtype, **changes)


def matrix_parameters(config: DecoderConfig) -> int:
    """Parameters of the matrices of all layers; norms, embedding and unembedding apart."""
    attention = config.width * config.head_width * (2 * config.heads + 2 * config.kv_heads)
    return config.layers * (attention + 3 * config.width * config.hidden)


def unembedding_parameters(config: DecoderConfig) -> int:
    """Parameters of the unembedding."""
    return config.vocab_size * config.width


def forward_flops(config: DecoderConfig, batch: int, tokens: int, unembedded: int) -> int:
    """Multiplications and additions of a forward pass, causal attention counted once.

    Args:
        config: sizes.
        batch: B.
        tokens: T.
        unembedded: positions of each row whose logits are formed.
    """
    matrices = 2 * batch * tokens * matrix_parameters(config)
    # Scores and mixing, 2 * H each for a head and a pair; half of the pairs are masked.
    pairs = batch * tokens * (tokens + 1) // 2
    attention = 4 * config.layers * config.heads * config.head_width * pairs
    return matrices + attention + 2 * batch * unembedded * unembedding_parameters(config)


def training_flops(config: DecoderConfig, batch: int, tokens: int, lora: bool) -> int:
    """Of a step without recomputation: twice the forward's again for a full step, once for LoRA.

    A frozen matrix needs the gradient of its input but none of itself; the adapters' own few
    per mille are left out.
    """
    once = forward_flops(config, batch, tokens, tokens)
    return once * (2 if lora else 3)


def decode_bytes(config: DecoderConfig, batch: int, context: int, itemsize: int) -> int:
    """What one decoding step must read: every matrix once, and each row's keys and values.

    Args:
        config: sizes.
        batch: B.
        context: tokens of a row so far, on average.
        itemsize: bytes of a number.
    """
    matrices = matrix_parameters(config) + unembedding_parameters(config)
    return itemsize * (matrices + batch * context * cached_numbers(config))


def cached_numbers(config: DecoderConfig) -> int:
    """Keys and values of one token in all layers."""
    return 2 * config.layers * config.kv_heads * config.head_width


def torch_config(config: DecoderConfig) -> object:
    """The same sizes for `transformers`."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        intermediate_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_width,
        max_position_embeddings=config.positions,
        rms_norm_eps=config.norm_eps,
        rope_theta=config.rope.theta,
        tie_word_embeddings=config.tied,
        bos_token_id=None,
        eos_token_id=None,
    )
