"""Bounded memory: weights and prompts in tiles that stay in cache, users in chunks.

Of one tile [prompts, C, weights] the exponential is taken once; the partition and all weighted sums
are then one batched product with [1, r] [prompts, 1 + R, C]. R is small, so <w, r> is unrolled.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxalign.backend import program_backend

_HIGHEST = jax.lax.Precision.HIGHEST
# Elements of a tile: half a megabyte of float32 on a CPU, the fastest of those tried.
_TILE = {"cpu": 2**17}
_ACCELERATOR_TILE = 2**25
_WEIGHTS = {"cpu": 64}
_ACCELERATOR_WEIGHTS = 256
# Members compared between two passes over the running best of a chunk of users.
_BLOCK = 16
_USERS = 2**14  # handled at once on a CPU

Triple = tuple[jax.Array, jax.Array, jax.Array]


def _accumulation(*arrays: jax.Array) -> jnp.dtype:
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def _weighted_sum(factors: jax.Array, terms: jax.Array) -> jax.Array:
    """Sum over the leading axis of a product; unrolled, so that XLA fuses it."""
    total = factors[0] * terms[0]
    for factor, term in zip(factors[1:], terms[1:], strict=True):
        total = total + factor * term
    return total


@jax.checkpoint
def _tile(rewards: jax.Array, log_ref: jax.Array, scaled: jax.Array) -> Triple:
    """Log-partition [w, x], expected rewards [w, x, R] and KL [w, x] of one tile.

    rewards [x, C, R], log_ref [x, C], scaled [w, R] (weights over beta).
    """
    columns = jnp.moveaxis(rewards, 2, 0)
    gain = _weighted_sum(scaled.T[:, None, None, :], columns[:, :, :, None])
    logits = log_ref[:, :, None] + gain
    top = jax.lax.stop_gradient(jnp.max(logits, axis=1))
    powers = jnp.exp(logits - top[:, None, :])
    ones = jnp.concatenate([jnp.ones_like(log_ref)[:, None], jnp.moveaxis(rewards, 2, 1)], axis=1)
    sums = jnp.einsum("xrC,xCw->rxw", ones, powers, precision=_HIGHEST)
    log_partition = top + jnp.log(sums[0])
    expected = sums[1:] / sums[:1]
    kl = _weighted_sum(scaled.T[:, None, :], expected) - log_partition
    return log_partition.T, jnp.moveaxis(expected, 0, 2).swapaxes(0, 1), kl.T


def _over_weights(scaled: jax.Array, chunk: int, one: Callable[[jax.Array], Triple]) -> Triple:
    """`one` on every chunk [w, R] of weights [W, R]; its results joined along their first axis."""
    count = len(scaled)
    padded = jnp.pad(scaled, [(0, -count % chunk), (0, 0)])
    parts = jax.lax.map(one, padded.reshape(-1, chunk, scaled.shape[1]))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], parts)


def _sizes(rewards: jax.Array, weights: jax.Array, chunk: int | None) -> tuple[int, int]:
    """Weights and prompts of a tile."""
    backend = program_backend()
    prompts, candidates, _ = rewards.shape
    wide = max(min(chunk or _WEIGHTS.get(backend, _ACCELERATOR_WEIGHTS), len(weights)), 1)
    high = _TILE.get(backend, _ACCELERATOR_TILE) // (wide * candidates)
    return wide, max(min(high, prompts), 1)


def _prepared(
    rewards: jax.Array, log_ref: jax.Array, weights: jax.Array, beta: float | jax.Array
) -> Triple:
    dtype = _accumulation(rewards, log_ref, weights)
    scaled = weights.astype(dtype) / jnp.asarray(beta, dtype)
    return rewards.astype(dtype), log_ref.astype(dtype), scaled


def _in_tiles(array: jax.Array, size: int) -> jax.Array:
    padding = [(0, -len(array) % size)] + [(0, 0)] * (array.ndim - 1)
    return jnp.pad(array, padding).reshape(-1, size, *array.shape[1:])


def tilt(
    rewards: jax.Array,
    log_ref: jax.Array,
    weights: jax.Array,
    beta: float | jax.Array,
    chunk: int | None = None,
) -> Triple:
    """See `api.tilt`."""
    wide, high = _sizes(rewards, weights, chunk)
    rewards, log_ref, scaled = _prepared(rewards, log_ref, weights, beta)
    prompts = len(rewards)
    # A padding prompt has log_ref 0 for every candidate: finite, and cut off below.
    tiles = _in_tiles(rewards, high), _in_tiles(log_ref, high)

    def one_chunk(part: jax.Array) -> Triple:
        outcomes = jax.lax.map(lambda tile: _tile(*tile, part), tiles)
        return jax.tree.map(
            lambda x: x.swapaxes(0, 1).reshape(len(part), -1, *x.shape[3:])[:, :prompts], outcomes
        )

    return _over_weights(scaled, wide, one_chunk)


def tilt_means(
    rewards: jax.Array,
    log_ref: jax.Array,
    weights: jax.Array,
    beta: float | jax.Array,
    chunk: int | None = None,
) -> Triple:
    """See `api.tilt_means`."""
    wide, high = _sizes(rewards, weights, chunk)
    rewards, log_ref, scaled = _prepared(rewards, log_ref, weights, beta)
    prompts = len(rewards)
    share = jnp.full(prompts, 1 / prompts, scaled.dtype)
    tiles = _in_tiles(rewards, high), _in_tiles(log_ref, high), _in_tiles(share, high)

    def one_chunk(part: jax.Array) -> Triple:
        def one_tile(total: Triple, tile: tuple) -> tuple[Triple, None]:
            log_partition, expected, kl = _tile(tile[0], tile[1], part)
            share = tile[2][None, :]
            sums = (
                jnp.sum(share * log_partition, axis=1),
                jnp.sum(share[:, :, None] * expected, axis=1),
                jnp.sum(share * kl, axis=1),
            )
            return jax.tree.map(jnp.add, total, sums), None

        zero = jnp.zeros(len(part), part.dtype)
        return jax.lax.scan(one_tile, (zero, jnp.zeros_like(part), zero), tiles)[0]

    return _over_weights(scaled, wide, one_chunk)


def best_member(
    weights: jax.Array, values: jax.Array, chunk: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """See `api.best_member`."""
    if chunk is None and program_backend() != "cpu":
        return best_in_one_pass(weights, values)
    dtype = _accumulation(weights, values)
    members = values.astype(dtype)
    size = min(_BLOCK, len(members))
    blocks = -(-len(members) // size)
    # Copies of the last member fill the last block; where one wins by a rounding, it is the last.
    filler = jnp.broadcast_to(members[-1:], (blocks * size - len(members), members.shape[1]))
    members = jnp.concatenate([members, filler])
    users = len(weights)
    wide = max(min(chunk or _USERS, users), 1)

    def one_chunk(part: jax.Array) -> tuple[jax.Array, jax.Array]:
        columns = part.astype(dtype).T

        def one_block(block: jax.Array, best: tuple) -> tuple:
            value, index = best
            rows = jax.lax.dynamic_slice_in_dim(members, block * size, size)
            for offset in range(size):
                score = _weighted_sum(rows[offset], columns)
                index = jnp.where(score > value, block * size + offset, index)
                value = jnp.maximum(value, score)
            return value, index

        start = jnp.full(wide, -jnp.inf, dtype), jnp.zeros(wide, jnp.int32)
        value, index = jax.lax.fori_loop(jnp.int32(0), jnp.int32(blocks), one_block, start)
        return value, jnp.minimum(index, jnp.int32(len(values) - 1))

    whole = users // wide
    body = weights[: whole * wide].reshape(whole, wide, weights.shape[1])
    value, index = jax.lax.map(one_chunk, body)
    value, index = value.reshape(-1), index.reshape(-1)
    if whole * wide == users:
        return value, index
    # The rest overlaps the last whole chunk, so that no copy of all users is padded.
    rest = users - whole * wide
    last_value, last_index = one_chunk(weights[users - wide :])
    return (
        jnp.concatenate([value, last_value[-rest:]]),
        jnp.concatenate([index, last_index[-rest:]]),
    )


def best_in_one_pass(weights: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """See `api.best_member`: one reduction over the members, which a GPU's compiler fuses whole.

    XLA on a CPU would hold the scores [U, M].
    """
    dtype = _accumulation(weights, values)
    users, rewards = weights.shape
    # Gathered for every member, a column of weights is read inside the reduction. XLA would write
    # a slice or a transposition of the weights to memory first, and read it again.
    rows = jnp.broadcast_to(jnp.arange(users, dtype=jnp.int32), (len(values), users))
    columns = [
        weights.at[rows, reward].get(mode="promise_in_bounds", wrap_negative_indices=False)
        for reward in range(rewards)
    ]
    scores = _weighted_sum(jnp.stack(columns).astype(dtype), values.astype(dtype).T[:, :, None])
    members = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)

    def better(one: tuple, other: tuple) -> tuple:
        larger = (other[0] > one[0]) | jnp.isnan(other[0])
        first = (other[0] == one[0]) & (other[1] < one[1])
        return tuple(
            jnp.where(larger | first, new, old) for new, old in zip(other, one, strict=True)
        )

    least = jnp.asarray(-jnp.inf, dtype), jnp.asarray(len(values) - 1, jnp.int32)
    value, index = jax.lax.reduce((scores, members), least, better, (0,))
    return value, index
