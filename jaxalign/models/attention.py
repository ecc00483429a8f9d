"""Causal attention with grouped heads, on whole sequences and on a cache, and that cache."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

Implementation = Literal["auto", "xla", "cudnn"]


class Cache(NamedTuple):
    """Keys and values of the tokens so far; row b's token t stands in slot t.

    Heads stand before slots, as the two products of a decoding step read them: in the other order
    every step would transpose a layer's whole cache.

    Attributes:
        key, value: [L, B, G, S, H].
    """

    key: jax.Array
    value: jax.Array


def causal_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    lengths: jax.Array | None,
    window: int | None = None,
    implementation: Implementation = "auto",
) -> jax.Array:
    """Each token attends to itself and those before it.

    Args:
        query: [B, T, N, H]; head n reads key head n // (N/G).
        key, value: [B, T, G, H].
        lengths: [B] int32 tokens of each row, padding on the right; None where all have T.
        window: how many tokens a token sees, itself included; None for all.
        implementation: `auto` takes cuDNN where it can.

    Returns:
        [B, T, N, H]; rows of padding hold no meaning.
    """
    if query.dtype == jnp.float64:
        # jax.nn fixes its softmax to float32, which costs float64 its digits.
        mask = _causal_mask(query.shape[1], lengths, window)
        return _mixed(query, jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2), mask)
    if implementation == "auto":
        implementation = _best(query.dtype, query.shape[-1])
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        is_causal=True,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        local_window_size=None if window is None else (window - 1, 0),
        implementation=implementation,
    )


def cached_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, starts: jax.Array, window: int | None = None
) -> jax.Array:
    """New tokens attend to all slots of the cache up to their own.

    Args:
        query: [B, T, N, H] of tokens in slots `starts` to `starts + T - 1`.
        key, value: [B, G, S, H], these tokens' own included.
        starts: [B] int32.
        window: as in `causal_attention`.

    Returns:
        [B, T, N, H].
    """
    slots = jnp.arange(key.shape[2], dtype=jnp.int32)[None, None, :]
    own = (starts[:, None] + jnp.arange(query.shape[1], dtype=jnp.int32)[None, :])[:, :, None]
    mask = slots <= own
    if window is not None:
        mask &= slots > own - window
    return _mixed(query, key, value, mask)


def _best(dtype: jnp.dtype, head_width: int) -> Literal["xla", "cudnn"]:
    half = dtype in (jnp.bfloat16, jnp.float16)
    fits = half and head_width % 8 == 0 and head_width <= 128
    return "cudnn" if fits and jax.default_backend() == "gpu" else "xla"


def _causal_mask(tokens: int, lengths: jax.Array | None, window: int | None) -> jax.Array:
    own, other = jnp.arange(tokens)[:, None], jnp.arange(tokens)[None, :]
    mask = other <= own
    if window is not None:
        mask &= other > own - window
    if lengths is None:
        return mask[None]
    return mask[None] & (other[None] < lengths[:, None, None])


def _mixed(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
    """Attention [B, T, N, H] to keys and values [B, G, S, H]; mask [B, T, S] or [1, T, S]."""
    batch, tokens, heads, width = query.shape
    wide = jnp.promote_types(query.dtype, jnp.float32)
    grouped = query.reshape(batch, tokens, key.shape[1], heads // key.shape[1], width)
    scores = jnp.einsum("BTGKH,BGSH->BGKTS", grouped, key, preferred_element_type=wide)
    scores = scores * jnp.asarray(width**-0.5, wide)
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(wide).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("BGKTS,BGSH->BTGKH", weights, value).reshape(query.shape)
