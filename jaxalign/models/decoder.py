"""The Llama family of decoders (Llama, Mistral, SmolLM2, Qwen2, Qwen3)."""

from collections.abc import Callable, Sequence
from typing import TypeAlias, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxalign.models import lora
from jaxalign.models.attention import (
    Cache,
    cached_attention,
    causal_attention,
    past_attention,
)
from jaxalign.models.decoder_config import DecoderConfig, StackConfig
from jaxalign.models.layers import each_layer
from jaxalign.models.params import Params, leaf, subtree
from jaxalign.models.products import times_matrix
from jaxalign.models.rope import rotate, rotation

# Scaled adapters, stacked; for unstacked layers also one tree per layer.
Adapters: TypeAlias = Params | tuple[Params, ...] | None
# A cache of all layers; of unstacked layers one per layer.
Caches: TypeAlias = Cache | tuple[Cache | None, ...] | None


class Decoder(nn.Module):
    """A decoder without its unembedding; every family of decoders has these two methods.

    Attributes:
        config: sizes and switches.
        adapter_dropout: share of the adapters' inputs that is dropped, where they hold keys
            (`lora.with_dropout_keys`).

    Source: Touvron et al. 2023, https://arxiv.org/abs/2302.13971.
    """

    config: DecoderConfig
    adapter_dropout: float = 0.0

    def setup(self) -> None:
        """Tables, blocks and the last norm."""
        config = self.config
        self.embed_tokens = TokenTable(config.vocab_size, config.width, name="embed")
        self.layers = layers_of(_Block, config, self.adapter_dropout)
        self.final_norm = rms_norm(config, "final_norm")
        if not config.tied:
            # In the orientation that the log-probability kernel and the files have.
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
            embeddings: [B, T, D], of `embed` or any other: soft tokens stand in line with words.
            lengths: [B] int32 tokens of each row, padding on the right; None where all have T.
            cache: where keys and values are kept, S slots; of unstacked layers one per layer. None
                keeps none.
            starts: [B] int32 slot of each row's first token here, which then also sees the slots
                before it; None where the rows begin here.
            adapters: a scaled adapter, or a stack of them (`jaxalign.models.lora`).
            rows: [B] int32, which adapter of a stack each row has, -1 for none; or [B, A] floats,
                by which each row weighs all of them.
            past: [L, B, G, S, H] keys and values of the tokens before these, `starts` of each row,
                which are read and not added to; instead of `cache`.

        Returns:
            [B, T, D] in `config.dtype`, rows of padding without meaning; and the new cache. A
            token without a slot is not kept: give the cache room.
        """
        config = self.config
        if self.is_initializing():  # what a forward pass from embeddings does not touch
            for table in (self.embed_tokens,) if config.tied else (self.embed_tokens, self.unembed):
                table(jnp.zeros((1, 1), jnp.int32), config.dtype)
        batch, tokens, _ = embeddings.shape
        first = jnp.zeros(batch, jnp.int32) if starts is None else starts
        positions = first[:, None] + jnp.arange(tokens, dtype=jnp.int32)[None, :]
        # The barrier keeps XLA from computing the cosines again at every layer and head.
        turn = jax.lax.optimization_barrier(
            rotation(config.rope, config.head_width, positions, config.dtype)
        )
        carry = (embeddings.astype(config.dtype), cache)
        hidden, cache = through(
            self.layers, config, carry, adapters, past, turn, lengths, starts, rows
        )
        return self.final_norm(hidden).astype(config.dtype), cache


def unembedding(params: Params) -> jax.Array:
    """The matrix from states to logits, [V, D]; tied to the input embeddings where it has none."""
    return leaf(params, "unembed" if "unembed" in params else "embed", "table")


class TokenTable(nn.Module):
    """A row of D for each of V tokens."""

    vocab_size: int
    width: int

    @nn.compact
    def __call__(self, tokens: jax.Array, dtype: str) -> jax.Array:
        """[B, T] int -> [B, T, D]."""
        shape = (self.vocab_size, self.width)
        table = self.param("table", nn.initializers.normal(0.02), shape)
        # A clip would hide an id outside the table; NaN shows it.
        return table.at[tokens].get(mode="fill", fill_value=jnp.nan).astype(dtype)


def one_axis(values: jax.Array, rows: jax.Array | None) -> jax.Array:
    """Inputs of matrices, [B, T, D], with all tokens on one axis: [B * T, D].

    The gradient of a matrix adds over tokens. Over two axes at once, XLA on a CPU would copy both
    of its factors transposed. Adapters that differ by row, as `rows` says, need the axis of rows.
    """
    return values if rows is not None else values.reshape(-1, values.shape[-1])


class Linear(nn.Module):
    """x W^T + b, plus what an adapter adds; W is `weight` [features, in], as in torch."""

    features: int
    bias: bool
    dtype: str
    adapter_dropout: float = 0.0

    @nn.compact
    def __call__(
        self, inputs: jax.Array, pair: Params | None = None, rows: jax.Array | None = None
    ) -> jax.Array:
        """[..., in] -> [..., features]; `pair` and `rows` as in `lora.delta`."""
        weight = self.param("weight", _drawn_transposed, (self.features, inputs.shape[-1]))
        result = times_matrix(inputs, weight.astype(self.dtype))
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
            result = result + jnp.broadcast_to(bias.astype(self.dtype), result.shape)
        if pair:
            if self.adapter_dropout and "dropout" in pair:
                dropout = nn.Dropout(self.adapter_dropout, deterministic=False)
                inputs = dropout(inputs, rng=leaf(pair, "dropout"))
            result = result + lora.delta(inputs, pair, rows)
        return result


def _drawn_transposed(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Draw [in, out], so that a seed gives the matrices that it gave when they were stored so."""
    return nn.initializers.normal(0.02)(key, shape[::-1]).T


def layers_of(
    block: type[nn.Module], config: StackConfig, adapter_dropout: float
) -> nn.Module | list[nn.Module]:
    """The blocks of a decoder: one, compiled once and scanned over its stacked parameters; or L.

    A block takes (carry, layer, adapters, past, four inputs that all layers share). `config` says
    layers, unroll, remat and unstacked.
    """
    if config.remat is not None:
        policy = getattr(jax.checkpoint_policies, config.remat)
        block = nn.remat(block, policy=policy, prevent_cse=inlined(config))
    if config.unstacked:
        block = nn.jit(block)  # traced once for all layers, not once for each
        return [block(config, adapter_dropout) for _ in range(config.layers)]
    scanned = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, 0, 0, nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast),
        length=config.layers,
        unroll=config.layers if config.unroll else 1,
    )
    return scanned(config, adapter_dropout)


def recomputed(
    activation: Callable[..., jax.Array], config: StackConfig
) -> Callable[..., jax.Array]:
    """Return an activation of which a backward pass keeps the inputs alone.

    What lies between inputs and result is cheaper to compute again than to write and read: three
    arrays as wide as the feed-forward layer, the widest of a block.
    """
    return jax.checkpoint(activation, prevent_cse=inlined(config))


def inlined(config: StackConfig) -> bool:
    """Return whether the layers stand one after another in the program.

    A loop keeps XLA from joining what is recomputed with what was computed; here is none.
    """
    return config.unstacked or config.unroll


def through(
    layers: nn.Module | Sequence[nn.Module],
    config: StackConfig,
    carry: tuple[jax.Array, Caches],
    adapters: Adapters,
    past: Cache | None,
    *shared: jax.Array | None,
) -> tuple[jax.Array, Caches]:
    """Carries states [B, T, D] and cache through all layers of `layers_of`.

    Args:
        layers: as it made them.
        config: says layers and unstacked.
        carry: states, and the cache or None; of unstacked layers a cache for each.
        adapters: or None; of unstacked layers stacked or a tree for each.
        past: as in `Decoder.__call__`.
        shared: what is the same for each layer.
    """
    if isinstance(layers, nn.Module):
        numbers = jnp.arange(config.layers, dtype=jnp.int32)
        (hidden, cache), _ = layers(carry, numbers, adapters, past, *shared)
        return hidden, cache
    hidden, caches = carry
    nothing = (None,) * config.layers
    each_cache = nothing if caches is None else cast(tuple[Cache | None, ...], caches)
    each_adapter = nothing if adapters is None else each_layer(config.layers, adapters)
    kept: list[Cache | None] = []
    for number, (block, cache, own) in enumerate(
        zip(layers, each_cache, each_adapter, strict=True)
    ):
        before = None if past is None else Cache(past.key[number], past.value[number])
        (hidden, cache), _ = block((hidden, cache), None, own, before, *shared)
        kept.append(cache)
    return hidden, None if caches is None else tuple(kept)


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    cache: Cache | None,
    layer: jax.Array | None,
    lengths: jax.Array | None,
    starts: jax.Array | None,
    past: Cache | None,
    config: StackConfig,
) -> tuple[jax.Array, Cache | None]:
    """Attention of one layer, its keys and values kept in the cache where there is one.

    Args:
        query: [B, T, N, H].
        key, value: [B, T, G, H] of the same tokens.
        cache: of all layers; or of this one, [B, G, S, H].
        layer: scalar int32; None for a cache of this layer alone.
        lengths, starts: as in `Decoder.__call__`.
        past: of this layer, [B, G, S, H], or None.
        config: says window and attention.

    Returns:
        [B, T, N, H] and the new cache.
    """
    if past is not None:
        first = jnp.zeros(len(query), jnp.int32) if starts is None else starts
        return past_attention(query, key, value, past, first, config.window), cache
    if cache is None:
        mixed = causal_attention(query, key, value, lengths, config.window, config.attention)
        return mixed, None
    batch, tokens = query.shape[:2]
    first = jnp.zeros(batch, jnp.int32) if starts is None else starts
    # The cache travels as the loop's carry, so that XLA writes these few slots in place.
    slots = first[:, None] + jnp.arange(tokens, dtype=jnp.int32)[None, :]
    line = jnp.arange(batch, dtype=jnp.int32)[:, None]
    place = (line, slice(None), slots) if layer is None else (layer, line, slice(None), slots)
    cache = Cache(
        *(
            whole.at[place].set(new.astype(whole.dtype), mode="drop")
            for whole, new in zip(cache, (key, value), strict=True)
        )
    )
    if starts is None:
        mixed = causal_attention(query, key, value, lengths, config.window, config.attention)
    else:
        own = cache if layer is None else (whole[layer] for whole in cache)
        keys, values = (each.astype(query.dtype) for each in own)
        mixed = cached_attention(query, keys, values, starts, config.window)
    return mixed, cache


def rms_norm(config: DecoderConfig, name: str) -> nn.RMSNorm:
    """Root-mean-square norm in at least float32."""
    wide = jnp.promote_types(config.dtype, jnp.float32)
    return nn.RMSNorm(config.norm_eps, dtype=wide, name=name)


class _Block(nn.Module):
    config: DecoderConfig
    adapter_dropout: float

    @nn.compact
    def __call__(
        self,
        carry: tuple[jax.Array, Cache | None],
        layer: jax.Array | None,
        adapters: Params | None,
        past: Cache | None,
        turn: jax.Array,
        lengths: jax.Array | None,
        starts: jax.Array | None,
        rows: jax.Array | None,
    ) -> tuple[tuple[jax.Array, Cache | None], None]:
        config, (hidden, cache) = self.config, carry
        inputs = rms_norm(config, "attention_norm")(hidden).astype(config.dtype)
        attention = _Attention(config, self.adapter_dropout, name="attention")
        mixed, cache = attention(
            inputs, cache, layer, subtree(adapters, "attention"), past, turn, lengths, starts, rows
        )
        hidden = hidden + mixed
        inputs = rms_norm(config, "mlp_norm")(hidden).astype(config.dtype)
        mlp = _Mlp(config, self.adapter_dropout, name="mlp")
        return (hidden + mlp(inputs, subtree(adapters, "mlp"), rows), cache), None


class _Attention(nn.Module):
    config: DecoderConfig
    adapter_dropout: float

    @nn.compact
    def __call__(
        self,
        inputs: jax.Array,
        cache: Cache | None,
        layer: jax.Array | None,
        adapters: Params,
        past: Cache | None,
        turn: jax.Array,
        lengths: jax.Array | None,
        starts: jax.Array | None,
        rows: jax.Array | None,
    ) -> tuple[jax.Array, Cache | None]:
        config, (batch, tokens, _) = self.config, inputs.shape
        inputs = one_axis(inputs, rows)

        def linear(name: str, features: int, bias: bool, values: jax.Array) -> jax.Array:
            module = Linear(features, bias, config.dtype, self.adapter_dropout, name=name)
            return module(values, subtree(adapters, name), rows)

        def heads(name: str, count: int) -> jax.Array:
            flat = linear(name, count * config.head_width, config.qkv_bias, inputs)
            return flat.reshape(batch, tokens, count, config.head_width)

        query, key = heads("query", config.heads), heads("key", config.kv_heads)
        value = heads("value", config.kv_heads)
        if config.qk_norm:
            query = rms_norm(config, "query_norm")(query).astype(config.dtype)
            key = rms_norm(config, "key_norm")(key).astype(config.dtype)
        mixed, cache = attend(
            rotate(query, turn),
            rotate(key, turn),
            value,
            cache,
            layer,
            lengths,
            starts,
            past,
            config,
        )
        mixed = one_axis(mixed.reshape(batch, tokens, config.heads * config.head_width), rows)
        found = linear("out", config.width, config.out_bias, mixed)
        return found.reshape(batch, tokens, config.width), cache


class _Mlp(nn.Module):
    config: DecoderConfig
    adapter_dropout: float

    @nn.compact
    def __call__(self, inputs: jax.Array, adapters: Params, rows: jax.Array | None) -> jax.Array:
        config, shape = self.config, inputs.shape
        inputs = one_axis(inputs, rows)

        def linear(name: str, features: int, values: jax.Array) -> jax.Array:
            module = Linear(
                features, config.mlp_bias, config.dtype, self.adapter_dropout, name=name
            )
            return module(values, subtree(adapters, name), rows)

        gate, up = (linear(name, config.hidden, inputs) for name in ("gate", "up"))
        inner = recomputed(_swiglu, config)(gate, up)
        return linear("down", config.width, inner).reshape(shape)


def _swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    return nn.silu(gate) * up
