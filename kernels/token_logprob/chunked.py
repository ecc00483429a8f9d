"""Chunks of tokens over the full vocabulary, scanned; the backward pass computes logits again.

A step takes the next tokens of *every* shard, so that a token axis laid out over devices stays
where it is. The last step starts earlier instead of padding, which would copy all hidden states:
it repeats some tokens, and writes what is there already. If one chunk holds all tokens, its logits
are kept for the backward pass, which would hold as many in any case.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero, custom_vjp_primal_tree_values

from jaxalign.kernels.token_logprob.reference import in_vocabulary, pick, project, temper


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def token_logprob(
    soft_cap: float | None,
    chunk: int,
    hidden: jax.Array,
    unembedding: jax.Array,
    targets: jax.Array,
    temperature: jax.Array,
    suppressed: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities and entropies, with [S, chunk, V] logits at a time.

    Saves each token's entropy and log-sum-exp, as the largest logit and the rest (their sum would
    round large logits), for the backward pass; and the logits if a single chunk holds all. The
    scan's carry holds one gradient of the unembedding per shard, so shards are added once, after
    the scan.

    Args:
        soft_cap: logits stay inside (-soft_cap, soft_cap), or None.
        chunk: tokens of a shard that a step takes, at most R.
        hidden: [S, R, D] shards of R tokens.
        unembedding: [V, D].
        targets: [S, R] int.
        temperature: scalar; gets no gradient.
        suppressed: [V] bool, or None.

    Returns:
        logprob [S, R], entropy [S, R].
    """
    args = hidden, unembedding, targets, temperature, suppressed
    return _forward(soft_cap, chunk, *args)[0]


def _starts(tokens: int, chunk: int) -> jax.Array:
    """Where each step's tokens begin; the last is moved back to end with the shard."""
    return jnp.minimum(_unmoved(tokens, chunk), tokens - chunk)


def _unmoved(tokens: int, chunk: int) -> jax.Array:
    return chunk * jnp.arange(-(-tokens // chunk), dtype=jnp.int32)


def _cut(array: jax.Array, start: jax.Array, chunk: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(array, start, chunk, axis=1)


def _join(steps: jax.Array, tokens: int) -> jax.Array:
    """[steps, S, chunk] -> [S, R], without what the last step repeats."""
    count, shards, chunk = steps.shape
    head = jnp.moveaxis(steps[:-1], 0, 1).reshape(shards, (count - 1) * chunk)
    return jnp.concatenate([head, steps[-1][:, count * chunk - tokens :]], axis=1)


def _forward(
    soft_cap: float | None,
    chunk: int,
    hidden: jax.Array,
    unembedding: jax.Array,
    targets: jax.Array,
    temperature: jax.Array,
    suppressed: jax.Array | None,
) -> tuple[tuple[jax.Array, jax.Array], tuple]:
    weight = unembedding.astype(hidden.dtype)

    def values(raw: jax.Array, targets: jax.Array) -> tuple[jax.Array, ...]:
        logits = temper(raw, temperature, suppressed, soft_cap)
        top = jnp.max(logits, axis=-1)
        shifted = logits - top[..., None]
        odds = jnp.exp(shifted)
        total = jnp.sum(odds, axis=-1)
        # A banned id has odds 0 and shifted -inf.
        mean = jnp.sum(jnp.where(odds > 0, odds * shifted, 0), axis=-1) / total
        log_total = jnp.log(total)
        # (z - top) - log: two large logits cancel before the small one is taken off.
        logprob = pick(logits, targets) - top - log_total
        return logprob, log_total - mean, top, log_total

    def step(_: None, start: jax.Array) -> tuple[None, tuple]:
        raw = project(_cut(hidden, start, chunk), weight)
        return None, values(raw, _cut(targets, start, chunk))

    kept = None
    if chunk == hidden.shape[1]:
        kept = project(hidden, weight)
        logprob, entropy, *lse = values(kept, targets)
    else:
        _, steps = lax.scan(step, None, _starts(hidden.shape[1], chunk))
        logprob, entropy, *lse = (_join(part, hidden.shape[1]) for part in steps)
    saved = hidden, unembedding, targets, temperature, suppressed, kept, entropy, *lse
    return (logprob, entropy), saved


def _saving(soft_cap: float | None, chunk: int, *args: object) -> tuple[tuple, tuple]:
    return _forward(soft_cap, chunk, *custom_vjp_primal_tree_values(args))


def _backward(soft_cap: float | None, chunk: int, saved: tuple, cotangents: tuple) -> tuple:
    hidden, unembedding, targets, temperature, suppressed, kept, entropy, top, log_total = saved
    weight = unembedding.astype(hidden.dtype)
    vocab, tokens, wide = len(weight), hidden.shape[1], entropy.dtype
    to_logprob, to_entropy = cotangents
    if isinstance(to_logprob, SymbolicZero):
        to_logprob = jnp.zeros_like(entropy)
    if isinstance(to_entropy, SymbolicZero):
        # Where no loss takes the entropy, it is not computed either: two passes over the logits.
        to_entropy = entropy = None
    # A target that is no id has the value NaN, a constant.
    to_logprob = jnp.where(in_vocabulary(targets, vocab), to_logprob, 0)
    tokens_of = _PerToken(targets, to_logprob, top, log_total, to_entropy, entropy)

    def slopes(
        raw: jax.Array, rows: jax.Array, counted: jax.Array, own: _PerToken
    ) -> tuple[jax.Array, jax.Array]:
        """Gradients by the rows of hidden, and by the unembedding from those that count."""
        logits, pull = jax.vjp(lambda raw: temper(raw, temperature, suppressed, soft_cap), raw)
        (d_raw,) = pull(_d_logits(logits, own))
        d_raw = d_raw.astype(hidden.dtype)
        d_rows = jnp.einsum("SCV,VD->SCD", d_raw, weight, preferred_element_type=wide)
        d_weight = jnp.einsum("SCV,SCD->SVD", d_raw, counted, preferred_element_type=wide)
        return d_rows.astype(rows.dtype), d_weight

    def step(carry: tuple, place: tuple) -> tuple[tuple, None]:
        d_hidden, d_unembedding = carry
        start, first_new = place
        rows = _cut(hidden, start, chunk)
        new = (start + jnp.arange(chunk, dtype=jnp.int32) >= first_new)[None, :, None]
        own = jax.tree.map(lambda array: _cut(array, start, chunk), tokens_of)
        d_rows, d_weight = slopes(project(rows, weight), rows, jnp.where(new, rows, 0), own)
        d_hidden = lax.dynamic_update_slice_in_dim(d_hidden, d_rows, start, axis=1)
        return (d_hidden, d_unembedding + d_weight), None

    if kept is not None:
        d_hidden, shards = slopes(kept, hidden, hidden, tokens_of)
    else:
        # Two carries that do not meet: the one that is not used is removed from the scan.
        start_of = jnp.zeros_like(hidden), jnp.zeros((len(hidden), *weight.shape), wide)
        places = _starts(tokens, chunk), _unmoved(tokens, chunk)
        (d_hidden, shards), _ = lax.scan(step, start_of, places)
    d_unembedding = jnp.sum(shards, axis=0).astype(unembedding.dtype)
    return d_hidden, d_unembedding, None, jnp.zeros_like(temperature), None


class _PerToken(NamedTuple):
    """What the gradient by the logits of each token [S, C] needs.

    Attributes:
        targets: ids.
        to_logprob: gradient by the log-probability.
        top, log_total: log-sum-exp of the logits, in two parts.
        to_entropy, entropy: gradient by the entropy, and the entropy; None where no loss takes it.
    """

    targets: jax.Array
    to_logprob: jax.Array
    top: jax.Array
    log_total: jax.Array
    to_entropy: jax.Array | None
    entropy: jax.Array | None


def _d_logits(logits: jax.Array, token: _PerToken) -> jax.Array:
    """Gradient by the tempered logits [S, C, V]: g (1[t] - p) - h p (log p + entropy)."""
    to_logprob = token.to_logprob[..., None]
    logprobs = logits - token.top[..., None] - token.log_total[..., None]
    probability = jnp.exp(logprobs)
    pressure = to_logprob
    if token.to_entropy is not None and token.entropy is not None:
        pressure = pressure + token.to_entropy[..., None] * (logprobs + token.entropy[..., None])
    ids = lax.broadcasted_iota(token.targets.dtype, logits.shape, logits.ndim - 1)
    chosen = jnp.where(ids == token.targets[..., None], to_logprob, 0)
    # 0 times -inf at banned ids: NaN that `temper`'s own gradient does not select.
    return chosen - probability * pressure


token_logprob.defvjp(_saving, _backward, symbolic_zeros=True)
