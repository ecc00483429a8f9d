"""GPT-2: learned positions, layer norms, a fused query-key-value matrix."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxalign.config_fields import checks_fields
from jaxalign.errors import InputError
from jaxalign.models.attention import Cache, Implementation
from jaxalign.models.decoder import (
    Adapters,
    Caches,
    Linear,
    TokenTable,
    attend,
    layers_of,
    one_axis,
    recomputed,
    through,
)
from jaxalign.models.encoder import layer_norm
from jaxalign.models.hf_config import JsonObject, real, size
from jaxalign.models.params import Params, subtree

_SUPPORTED: dict[str, object] = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
}


@dataclass(frozen=True)
@checks_fields
class GPT2Config:
    """Sizes and switches of one GPT-2.

    Attributes:
        vocab_size: V.
        width: D.
        layers: L.
        heads: N; D is a multiple of it.
        hidden: F, the feed-forward width.
        positions: rows of the position table, the most tokens a text may have.
        norm_eps: epsilon of every layer norm.
        tied: whether the unembedding is the input embedding.
        dtype, unroll, unstacked, remat, attention: as in `DecoderConfig`.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    hidden: int
    positions: int
    norm_eps: float = 1e-5
    tied: bool = True
    dtype: str = "float32"
    unroll: bool = False
    unstacked: bool = False
    remat: str | None = None
    attention: Implementation = "auto"

    @property
    def kv_heads(self) -> int:
        """G: every head has keys of its own."""
        return self.heads

    @property
    def head_width(self) -> int:
        """H."""
        return self.width // self.heads

    @property
    def window(self) -> None:
        """A token sees all before it."""
        return None

    @classmethod
    def from_hf(
        cls, config: JsonObject, dtype: str = "float32", source: str = "config.json"
    ) -> "GPT2Config":
        """The GPT-2 that a Hugging Face config describes.

        Args:
            config: as a dict, of transformers 4 or 5.
            dtype: of the compute.
            source: what to call the config in messages.

        Raises:
            InputError: for a field that is missing or wrong, or a switch that is not here.
        """
        for name, expected in _SUPPORTED.items():
            found = config.get(name, None if name == "model_type" else expected)
            if found != expected:
                raise InputError(f"{source}: {name} is {found!r}; expected {expected!r}.")
        width, heads = size(config, "n_embd", source), size(config, "n_head", source)
        if width % heads:
            raise InputError(f"{source}: n_embd {width} is not a multiple of n_head {heads}.")
        return cls(
            vocab_size=size(config, "vocab_size", source),
            width=width,
            layers=size(config, "n_layer", source),
            heads=heads,
            hidden=size(config, "n_inner", source, 4 * width),
            positions=size(config, "n_positions", source),
            norm_eps=real(config, "layer_norm_epsilon", source, 1e-5),
            tied=bool(config.get("tie_word_embeddings", True)),
            dtype=dtype,
        )


class GPT2(nn.Module):
    """GPT-2 without its unembedding; the methods of `Decoder`.

    Attributes:
        config: sizes and switches.
        adapter_dropout: share of the adapters' inputs that is dropped, where they hold keys
            (`lora.with_dropout_keys`).

    Source: Radford et al. 2019, Language Models are Unsupervised Multitask Learners.
    """

    config: GPT2Config
    adapter_dropout: float = 0.0

    def setup(self) -> None:
        """Tables, blocks and the last norm."""
        config = self.config
        self.embed_tokens = TokenTable(config.vocab_size, config.width, name="embed")
        self.embed_positions = TokenTable(config.positions, config.width, name="positions")
        self.layers = layers_of(_Block, config, self.adapter_dropout)
        self.final_norm = layer_norm(config, "final_norm")
        if not config.tied:
            self.unembed = TokenTable(config.vocab_size, config.width, name="unembed")

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Input embeddings: tokens [B, T] int -> [B, T, D]; an id outside the table gives NaN."""
        return self.embed_tokens(tokens, self.config.dtype)

    def __call__(
        self,
        embeddings: jax.Array,
        lengths: jax.Array | None = None,
        *,
        cache: Caches = None,
        starts: jax.Array | None = None,
        adapters: Adapters = None,
        rows: jax.Array | None = None,
        past: Cache | None = None,
    ) -> tuple[jax.Array, Caches]:
        """States after the last norm, and the cache with these tokens in it.

        Args:
            embeddings: [B, T, D], of `embed` or any other; positions are added here.
            lengths, cache, starts, adapters, rows, past: as in `Decoder.__call__`.

        Returns:
            [B, T, D] in `config.dtype`, rows of padding without meaning; and the new cache. A row
            with a token past the position table is NaN.

        Raises:
            InputError: for more tokens than there are positions.
        """
        config = self.config
        batch, tokens, _ = embeddings.shape
        if tokens > config.positions:
            raise InputError(
                f"texts of {tokens} tokens do not fit GPT-2, which has {config.positions} "
                "positions: truncate them."
            )
        if self.is_initializing():  # what a forward pass from embeddings does not touch
            for table in (self.embed_tokens,) if config.tied else (self.embed_tokens, self.unembed):
                table(jnp.zeros((1, 1), jnp.int32), config.dtype)
        first = jnp.zeros(batch, jnp.int32) if starts is None else starts
        places = first[:, None] + jnp.arange(tokens, dtype=jnp.int32)[None, :]
        hidden = embeddings.astype(config.dtype) + self.embed_positions(places, config.dtype)
        carry = (hidden, cache)
        hidden, cache = through(
            self.layers, config, carry, adapters, past, None, lengths, starts, rows
        )
        return self.final_norm(hidden).astype(config.dtype), cache


class _Block(nn.Module):
    config: GPT2Config
    adapter_dropout: float

    @nn.compact
    def __call__(
        self,
        carry: tuple[jax.Array, Cache | None],
        layer: jax.Array | None,
        adapters: Params | None,
        past: Cache | None,
        turn: None,  # no rotation here
        lengths: jax.Array | None,
        starts: jax.Array | None,
        rows: jax.Array | None,
    ) -> tuple[tuple[jax.Array, Cache | None], None]:
        config, (hidden, cache) = self.config, carry
        inputs = layer_norm(config, "attention_norm")(hidden).astype(config.dtype)
        attention = _Attention(config, self.adapter_dropout, name="attention")
        mixed, cache = attention(
            inputs, cache, layer, subtree(adapters, "attention"), past, lengths, starts, rows
        )
        hidden = hidden + mixed
        inputs = layer_norm(config, "mlp_norm")(hidden).astype(config.dtype)
        mlp = _Mlp(config, self.adapter_dropout, name="mlp")
        return (hidden + mlp(inputs, subtree(adapters, "mlp"), rows), cache), None


class _Attention(nn.Module):
    config: GPT2Config
    adapter_dropout: float

    @nn.compact
    def __call__(
        self,
        inputs: jax.Array,
        cache: Cache | None,
        layer: jax.Array | None,
        adapters: Params,
        past: Cache | None,
        lengths: jax.Array | None,
        starts: jax.Array | None,
        rows: jax.Array | None,
    ) -> tuple[jax.Array, Cache | None]:
        config, dropout = self.config, self.adapter_dropout
        qkv = Linear(3 * config.width, True, config.dtype, dropout, name="qkv")
        out = Linear(config.width, True, config.dtype, dropout, name="out")
        split = (*inputs.shape[:2], config.heads, config.head_width)
        flat = one_axis(inputs, rows)
        fused = jnp.split(qkv(flat, subtree(adapters, "qkv"), rows), 3, axis=-1)
        query, key, value = (part.reshape(split) for part in fused)
        mixed, cache = attend(query, key, value, cache, layer, lengths, starts, past, config)
        flat = one_axis(mixed.reshape(inputs.shape), rows)
        return out(flat, subtree(adapters, "out"), rows).reshape(inputs.shape), cache


class _Mlp(nn.Module):
    config: GPT2Config
    adapter_dropout: float

    @nn.compact
    def __call__(self, inputs: jax.Array, adapters: Params, rows: jax.Array | None) -> jax.Array:
        config, dropout = self.config, self.adapter_dropout
        up = Linear(config.hidden, True, config.dtype, dropout, name="up")
        down = Linear(config.width, True, config.dtype, dropout, name="down")
        flat = one_axis(inputs, rows)
        gelu = recomputed(partial(nn.gelu, approximate=True), config)
        inner = gelu(up(flat, subtree(adapters, "up"), rows))
        return down(inner, subtree(adapters, "down"), rows).reshape(inputs.shape)
