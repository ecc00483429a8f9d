"""The materialised form, in plain XLA: holds all logits, and the rules that backends share."""

import jax
import jax.numpy as jnp


def project(hidden: jax.Array, unembedding: jax.Array) -> jax.Array:
    """Raw logits [..., V] of hidden [..., D]: products in its dtype, sums in float32 or more."""
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    weight = unembedding.astype(hidden.dtype)
    return jnp.einsum("...D,VD->...V", hidden, weight, preferred_element_type=wide)


def temper(
    raw: jax.Array, temperature: jax.Array, suppressed: jax.Array | None, soft_cap: float | None
) -> jax.Array:
    """Logits [..., V] that tokens were sampled from: capped, divided, banned ids at -inf."""
    logits = raw if soft_cap is None else soft_cap * jnp.tanh(raw / soft_cap)
    logits = logits / temperature
    if suppressed is None:
        return logits
    return jnp.where(jnp.broadcast_to(suppressed, logits.shape), -jnp.inf, logits)


def pick(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The target's logit, [..., V] and [...] -> [...]; NaN where the target is no id."""
    valid = in_vocabulary(targets, logits.shape[-1])
    ids = jnp.where(valid, targets, 0)
    found = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
    return jnp.where(valid, found, jnp.nan)


def in_vocabulary(targets: jax.Array, vocab: int) -> jax.Array:
    """Whether each target is an id: negative ones would count from the end, large ones clip."""
    return (targets >= 0) & (targets < vocab)


def token_logprob(
    hidden: jax.Array,
    unembedding: jax.Array,
    targets: jax.Array,
    temperature: jax.Array,
    suppressed: jax.Array | None,
    soft_cap: float | None,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities and entropies by `log_softmax` over whole logits.

    Args:
        hidden: [..., D].
        unembedding: [V, D].
        targets: [...] int.
        temperature: scalar.
        suppressed: [V] bool, or None.
        soft_cap: logits stay inside (-soft_cap, soft_cap), or None.

    Returns:
        logprob [...], entropy [...].
    """
    logits = temper(project(hidden, unembedding), temperature, suppressed, soft_cap)
    logprobs = jax.nn.log_softmax(logits, axis=-1)
    # 0 log 0 is 0: the inner where keeps its NaN out of the gradient.
    finite = jnp.where(jnp.isfinite(logprobs), logprobs, 0)
    entropy = -jnp.sum(jnp.exp(logprobs) * finite, axis=-1)
    return pick(logprobs, targets), entropy
