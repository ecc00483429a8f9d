"""All decoder families behind the same few functions, which generation and training use."""

from dataclasses import replace
from typing import cast

import jax
import jax.numpy as jnp

from jaxalign.errors import InputError
from jaxalign.models import lora
from jaxalign.models.attention import Cache
from jaxalign.models.decoder import Adapters, Caches, Decoder, unembedding
from jaxalign.models.decoder_config import FAMILIES, DecoderConfig
from jaxalign.models.gpt2 import GPT2, GPT2Config
from jaxalign.models.hf_config import JsonObject
from jaxalign.models.layers import check_layers, unstack_params
from jaxalign.models.params import Array, Params
from jaxalign.models.products import times_matrix

Config = DecoderConfig | GPT2Config


def config_from_hf(
    config: JsonObject, dtype: str = "float32", source: str = "config.json"
) -> Config:
    """Return the config of the decoder that a Hugging Face config describes.

    Args:
        config: the parsed config.json, of transformers 4 or 5.
        dtype: of the compute.
        source: what to call the config in messages.

    Raises:
        InputError: the architecture is not supported, or a field is missing or wrong.

    Example:
        >>> from jaxalign.models import families
        >>> sizes = {"vocab_size": 7, "n_embd": 8, "n_head": 2, "n_layer": 1, "n_positions": 32}
        >>> families.config_from_hf({"model_type": "gpt2"} | sizes).head_width
        4
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
    """Return the Linen module of a config."""
    if isinstance(config, GPT2Config):
        return GPT2(config, adapter_dropout)
    return Decoder(config, adapter_dropout)


def forward(
    config: Config,
    params: Params,
    tokens: Array | None = None,
    lengths: Array | None = None,
    *,
    embeddings: Array | None = None,
    cache: Caches = None,
    starts: jax.Array | None = None,
    adapters: Adapters = None,
    rows: Array | None = None,
    past: Cache | None = None,
    adapter_dropout: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, Caches]:
    """States of the last layer, as a pure function of parameters and inputs.

    Args:
        config: static.
        params: nested dict.
        tokens: [B, T] int; or
        embeddings: [B, T, D] in their place.
        lengths, cache, starts, adapters, rows, past: as in `Decoder.__call__`.
        adapter_dropout: static share of the adapters' inputs that `dropout_key` drops.
        dropout_key: None drops nothing.

    Returns:
        [B, T, D] in `config.dtype`, and the new cache (None without one).
    """
    model = module(config, adapter_dropout)
    if embeddings is None:
        if tokens is None:
            raise TypeError("forward takes either tokens or embeddings.")
        embeddings = embed(config, params, tokens)
    if adapter_dropout and dropout_key is not None and adapters is not None:
        adapters = lora.with_dropout_keys(adapters, dropout_key)
    states = model.apply(
        {"params": params},
        embeddings,
        lengths,
        cache=cache,
        starts=starts,
        adapters=adapters,
        rows=rows,
        past=past,
    )
    return cast(tuple[jax.Array, Caches], states)


def embed(config: Config, params: Params, tokens: Array) -> jax.Array:
    """Input embeddings of tokens: [B, T] int -> [B, T, D] in `config.dtype`."""
    return cast(jax.Array, module(config).apply({"params": params}, tokens, method="embed"))


def logits(params: Params, hidden: jax.Array) -> jax.Array:
    """Logits of the next token: [..., D] -> [..., V], at least float32.

    For the few positions of decoding; log-probabilities in training go by
    `jaxalign.kernels.token_logprob`, which never holds them all.
    """
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    return times_matrix(hidden, unembedding(params).astype(hidden.dtype), wide)


def init(key: jax.Array, config: Config) -> Params:
    """Random parameters in float32, layers stacked.

    Args:
        key: random key.
        config: sizes and switches.

    Example:
        >>> import jax
        >>> from jaxalign.models import families
        >>> from jaxalign.models.gpt2 import GPT2Config
        >>> config = GPT2Config(vocab_size=7, width=8, layers=2, heads=2, hidden=16, positions=32)
        >>> params = families.init(jax.random.key(0), config)
        >>> params["layers"]["mlp"]["up"]["weight"].shape
        (2, 16, 8)
    """
    embeddings = jnp.zeros((1, 1, config.width), config.dtype)
    return cast(Params, module(config).init(key, embeddings)["params"])


def unstack_layers(config: Config, params: Params) -> tuple[Config, Params]:
    """Return the same model with a tree of parameters for each layer, copied out of their stacks.

    Args:
        config: sizes and switches.
        params: layers as the config says.

    Raises:
        InputError: layers of another form than the config says.

    Example:
        >>> import jax
        >>> from jaxalign.models import families
        >>> from jaxalign.models.gpt2 import GPT2Config
        >>> config = GPT2Config(vocab_size=7, width=8, layers=2, heads=2, hidden=16, positions=32)
        >>> params = families.init(jax.random.key(0), config)
        >>> config, params = families.unstack_layers(config, params)
        >>> params["layers_1"]["mlp"]["up"]["weight"].shape
        (16, 8)
    """
    check_layers(config.unstacked, params)
    if config.unstacked:
        return config, params
    return replace(config, unstacked=True), unstack_params(params)


def new_cache(config: Config, batch: int, slots: int) -> Caches:
    """Return an empty cache for `batch` rows of at most `slots` tokens, in `config.dtype`.

    Args:
        config: of unstacked layers, the cache is one per layer.
        batch: number of rows.
        slots: most tokens of a row.
    """
    shape = (batch, config.kv_heads, slots, config.head_width)
    if config.unstacked:
        return tuple(_zeros(config, shape) for _ in range(config.layers))
    return _zeros(config, (config.layers, *shape))


def stacked_cache(caches: Caches) -> Cache:
    """Return a cache [L, B, G, S, H] of all layers, from either form.

    Args:
        caches: what `forward` returned beside the states, which kept them all.
    """
    if isinstance(caches, Cache):
        return caches
    return cast(Cache, jax.tree.map(lambda *layers: jnp.stack(layers), *(caches or ())))


def _zeros(config: Config, shape: tuple[int, ...]) -> Cache:
    return Cache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))
