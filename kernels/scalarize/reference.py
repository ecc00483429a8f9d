"""Plain XLA: every array held whole, [W, X, C] and [U, M]."""

import jax
import jax.numpy as jnp

_HIGHEST = jax.lax.Precision.HIGHEST


def tilt(
    rewards: jax.Array,
    log_ref: jax.Array,
    weights: jax.Array,
    beta: float | jax.Array,
    chunk: int | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `api.tilt`; `chunk` is not used."""
    dtype = jnp.promote_types(jnp.result_type(rewards, log_ref, weights), jnp.float32)
    rewards, log_ref, weights = (x.astype(dtype) for x in (rewards, log_ref, weights))
    gain = jnp.einsum("WR,XCR->WXC", weights / beta, rewards, precision=_HIGHEST)
    logits = log_ref[None] + gain
    log_partition = jax.nn.logsumexp(logits, axis=-1)
    probability = jax.nn.softmax(logits, axis=-1)
    expected = jnp.einsum("WXC,XCR->WXR", probability, rewards, precision=_HIGHEST)
    along = jnp.einsum("WXR,WR->WX", expected, weights / beta, precision=_HIGHEST)
    return log_partition, expected, along - log_partition


def tilt_means(
    rewards: jax.Array,
    log_ref: jax.Array,
    weights: jax.Array,
    beta: float | jax.Array,
    chunk: int | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `api.tilt_means`; `chunk` is not used."""
    log_partition, expected, kl = tilt(rewards, log_ref, weights, beta)
    return jnp.mean(log_partition, axis=1), jnp.mean(expected, axis=1), jnp.mean(kl, axis=1)


def best_member(
    weights: jax.Array, values: jax.Array, chunk: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """See `api.best_member`; `chunk` is not used."""
    dtype = jnp.promote_types(jnp.result_type(weights, values), jnp.float32)
    scores = jnp.einsum(
        "UR,MR->UM", weights.astype(dtype), values.astype(dtype), precision=_HIGHEST
    )
    return jnp.max(scores, axis=1), jnp.argmax(scores, axis=1).astype(jnp.int32)
