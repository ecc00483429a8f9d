"""Every decoder behind the same few functions: what generation and training are written on."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.errors import InputError
from jaxalign.models.attention import Cache
from jaxalign.models.decoder import Adapters, Decoder, unembedding
from jaxalign.models.decoder_config import FAMILIES, DecoderConfig
from jaxalign.models.gpt2 import GPT2, GPT2Config

Config = DecoderConfig | GPT2Config


def config_from_hf(
    config: Mapping[str, Any], dtype: str = "float32", source: str = "config.json"
) -> Config:
    """The decoder that a Hugging Face config describes.

    Args:
        config: as a dict, of transformers 4 or 5.
        dtype: of the compute.
        source: what to call the config in messages.

    Raises:
        InputError: for an architecture that is not here, or a field that is missing or wrong.
    """
    kind = config.get("model_type")
    if kind in FAMILIES:
        return DecoderConfig.from_hf(config, dtype, source)
    if kind == "gpt2":
        return GPT2Config.from_hf(config, dtype, source)
    raise InputError(
        f"{source}: model_type is {kind!r}; expected a decoder, one of {', '.join(FAMILIES)}, gpt2."
    )


def module(config: Config, adapter_dropout: float = 0.0) -> Decoder | GPT2:
    """The Linen module of a config."""
    if isinstance(config, GPT2Config):
        return GPT2(config, adapter_dropout)
    return Decoder(config, adapter_dropout)


def forward(
    config: Config,
    params: Mapping[str, Any],
    tokens: jax.Array | None = None,
    lengths: jax.Array | None = None,
    *,
    embeddings: jax.Array | None = None,
    cache: Cache | None = None,
    starts: jax.Array | None = None,
    adapters: Adapters = None,
    rows: jax.Array | None = None,
    adapter_dropout: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, Cache | None]:
    """States of the last layer, as a pure function of parameters and inputs.

    Args:
        config: static.
        params: nested dict.
        tokens: [B, T] int; or
        embeddings: [B, T, D] in their place.
        lengths, cache, starts, adapters, rows: as in `Decoder.__call__`.
        adapter_dropout: static share of the adapters' inputs that `dropout_key` drops.
        dropout_key: None drops nothing.

    Returns:
        [B, T, D] in `config.dtype`, and the new cache (None without one).
    """
    model = module(config, adapter_dropout)
    if embeddings is None:
        embeddings = embed(config, params, tokens)
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    states: Any = model.apply(
        {"params": params},
        embeddings,
        lengths,
        cache=cache,
        starts=starts,
        adapters=adapters,
        rows=rows,
        rngs=rngs,
    )
    return states


def embed(config: Config, params: Mapping[str, Any], tokens: Any) -> jax.Array:
    """Input embeddings of tokens: [B, T] int -> [B, T, D] in `config.dtype`."""
    rows: Any = module(config).apply({"params": params}, tokens, method="embed")
    return rows


def logits(params: Mapping[str, Any], hidden: jax.Array) -> jax.Array:
    """Logits of the next token: [..., D] -> [..., V], at least float32.

    For the few positions of decoding; log-probabilities in training go by
    `jaxalign.kernels.token_logprob`, which never holds them all.
    """
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    table = unembedding(params).astype(hidden.dtype)
    return jnp.einsum("...D,VD->...V", hidden, table, preferred_element_type=wide)


def init(key: jax.Array, config: Config) -> dict[str, Any]:
    """Random parameters, float32, layers stacked."""
    embeddings = jnp.zeros((1, 1, config.width), config.dtype)
    params: dict[str, Any] = module(config).init(key, embeddings)["params"]
    return params


def unstack_layers(config: Config, params: Mapping[str, Any]) -> tuple[Config, dict[str, Any]]:
    """The same model with a tree of parameters for each layer, copied out of their stacks."""
    rest = {name: value for name, value in params.items() if name != "layers"}
    layers = unstack_tree(config, params["layers"])
    named = {f"layers_{number}": layer for number, layer in enumerate(layers)}
    return replace(config, unstacked=True), rest | named


def unstack_tree(config: Config, stack: Any) -> tuple[Any, ...]:
    """A cache or adapters, leaves [L, ...], as one tree a layer."""

    def at(number: int) -> Any:
        return jax.tree.map(lambda leaf: leaf[number], stack)

    return tuple(at(number) for number in range(config.layers))


def new_cache(config: Config, batch: int, slots: int) -> Cache:
    """An empty cache for `batch` rows of at most `slots` tokens, in `config.dtype`."""
    shape = (config.layers, batch, config.kv_heads, slots, config.head_width)
    return Cache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))
