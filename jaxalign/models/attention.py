"""Causal attention with grouped heads, on whole sequences and on a cache, and that cache."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.backend import program_backend

Implementation = Literal["auto", "xla", "cudnn"]


class Cache(NamedTuple):
    """Keys and values of the tokens so far; token t of row b has slot t.

    The axis of heads comes before that of slots, as the two products of a decoding step read them.
    In the other order, every step would transpose a layer's whole cache.

    Attributes:
        key: [L, B, G, S, H].
        value: [L, B, G, S, H].
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
    """Attention of each token to itself and the tokens before it.

    Args:
        query: [B, T, N, H]; head n reads key head n // (N/G).
        key: [B, T, G, H].
        value: [B, T, G, H].
        lengths: [B] int32 tokens of each row, padding on the right; None if all rows have T.
        window: how many tokens a token attends to, itself included; None for all.
        implementation: `auto` takes cuDNN on a GPU where it can, XLA elsewhere.

    Returns:
        [B, T, N, H]; rows of padding are without meaning.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxalign.models.attention import causal_attention
        >>> query, key = jax.random.normal(jax.random.key(0), (2, 1, 3, 2, 4))
        >>> value = jnp.arange(3.0)[None, :, None, None] * jnp.ones((1, 3, 1, 4))
        >>> mixed = causal_attention(query, key[:, :, :1], value, None)
        >>> mixed.shape, mixed[0, 0, 0].tolist()
        ((1, 3, 2, 4), [0.0, 0.0, 0.0, 0.0])
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
    """Attention of new tokens to all slots of the cache up to their own.

    Args:
        query: [B, T, N, H] of tokens in slots `starts` to `starts + T - 1`.
        key: [B, G, S, H], those of these tokens included.
        value: [B, G, S, H].
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


def past_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    past: Cache,
    starts: jax.Array,
    window: int | None = None,
) -> jax.Array:
    """Attention of tokens to the tokens before them in a cache that stays as it is, and here.

    Args:
        query: [B, T, N, H] of tokens at the positions `starts` to `starts + T - 1`.
        key, value: [B, T, G, H] of these tokens.
        past: keys and values of one layer, [B, G, S, H]; slots from `starts` on are not read.
        starts: [B] int32 tokens of each row in `past`.
        window: as in `causal_attention`.

    Returns:
        [B, T, N, H].
    """
    slots = past.key.shape[2]
    own = starts[:, None] + jnp.arange(query.shape[1], dtype=jnp.int32)[None, :]
    kept = jnp.broadcast_to(jnp.arange(slots, dtype=jnp.int32)[None, :], (len(starts), slots))
    places = jnp.concatenate([kept, own], axis=1)[:, None, :]
    mask = places <= own[:, :, None]
    mask &= jnp.concatenate([kept < starts[:, None], own >= 0], axis=1)[:, None, :]
    if window is not None:
        mask &= places > own[:, :, None] - window
    keys, values = (
        jnp.concatenate([old.astype(new.dtype), jnp.swapaxes(new, 1, 2)], axis=2)
        for old, new in zip(past, (key, value), strict=True)
    )
    return _mixed(query, keys, values, mask)


def _best(dtype: jnp.dtype, head_width: int) -> Literal["xla", "cudnn"]:
    half = dtype in (jnp.bfloat16, jnp.float16)
    fits = half and head_width % 8 == 0 and head_width <= 128
    return "cudnn" if fits and program_backend() == "gpu" else "xla"


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
    # In the order of the product: in the other order, einsum transposes the values.
    mixed = jnp.einsum("BGKTS,BGSH->BGKTH", weights, value)
    return jnp.moveaxis(mixed, 3, 1).reshape(query.shape)
