"""Log-probability of each target and entropy of its distribution: one call, several backends."""

import math
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from jaxalign.kernels.token_logprob import chunked, reference

Backend = Literal["auto", "reference", "chunked"]
BACKENDS: tuple[str, ...] = get_args(Backend)

# Logits of one chunk: large enough that the matrix products, not the reading of [V, D], take the
# time; small enough that the backward pass stays near 1 GiB at any number of tokens.
CHUNK_BYTES = 640 * 2**20


def token_logprob(
    hidden: jax.Array,
    unembedding: jax.Array,
    targets: jax.Array | np.ndarray,
    *,
    temperature: jax.Array | np.ndarray | float = 1.0,
    soft_cap: float | None = None,
    suppressed: jax.Array | np.ndarray | None = None,
    chunk: int | None = None,
    shards: int | None = None,
    backend: Backend = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each target and entropy of its distribution, from hidden states.

    No array of [tokens, V] is held, forward or backward: chunks of tokens meet the full vocabulary
    one after another, and the backward pass computes their logits again. Tokens that fit one chunk
    keep theirs instead: no second product. An unembedding that needs no gradient (frozen, LoRA)
    costs none. Matrix products run in the dtype of `hidden` and add up
    in at least float32; all that follows is in at least float32.

    Args:
        hidden: [..., D] hidden states, after the last norm.
        unembedding: [V, D], `lm_head.weight` or the tied embedding; its gradient adds up in at
            least float32 over all tokens, so float32 weights beside bfloat16 states lose nothing.
            Its rows may be split over devices (tensor parallel); columns are gathered again by each
            chunk, so replicate those first.
        targets: [...] int. For an id outside [0, V) the log-probability is NaN and passes no
            gradient: give padding any valid id, and mask the result.
        temperature: scalar that divides the (capped) logits, may be traced; gets no gradient.
        soft_cap: logits become soft_cap * tanh(logits / soft_cap), or None.
        suppressed: [V] bool or numbers, nonzero for ids that were never sampled: their logits are
            -inf. At least one id has to be left, or the values are NaN.
        chunk: tokens of one shard at a time; by default so that their float32 logits stay under
            CHUNK_BYTES.
        shards: over how many devices the first axis of `targets` is laid out; divides that axis. By
            default as many as the mesh of `hidden` has (or the one set by `jax.set_mesh`), as far
            as they divide the axis. Give 1 where a mesh splits the model and not the tokens.
        backend: `chunked` (what `auto` picks), or `reference`, which does hold [tokens, V].

    Returns:
        logprob [...] and entropy [...], natural logarithms, at least float32. The log-probability
        of a suppressed target is -inf.

    Raises:
        ValueError: for shapes that do not fit, targets that are not integers, or a temperature,
            soft_cap, chunk, shards or backend out of range.

    Source: the recomputed logits of Wijmans et al. 2025, https://arxiv.org/abs/2411.09009, by
    chunks of tokens instead of blocks; the entropy's gradient is dH/dz_j = -p_j (log p_j + H).

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from jaxalign.kernels.token_logprob import token_logprob
        >>> hidden, unembedding = jnp.ones((2, 3)), jnp.zeros((4, 3))
        >>> logprob, entropy = token_logprob(hidden, unembedding, jnp.asarray([0, 3]))
        >>> np.exp(np.float64([logprob, entropy])).round(3).tolist()
        [[0.25, 0.25], [4.0, 4.0]]
    """
    _check(hidden, unembedding, targets, suppressed)
    _check_options(temperature, soft_cap, chunk, backend)
    targets = jnp.asarray(targets)  # 64 bits from NumPy are 32 here, narrow ones are widened
    targets = targets.astype(jnp.promote_types(targets.dtype, jnp.int32))
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    scalar = jax.lax.stop_gradient(jnp.asarray(temperature, wide))
    banned = None if suppressed is None else jnp.asarray(suppressed).astype(bool)
    if backend == "reference" or targets.size == 0:
        return reference.token_logprob(hidden, unembedding, targets, scalar, banned, soft_cap)
    shards = _shards(hidden, targets.shape, shards)
    tokens = targets.size // shards
    logprob, entropy = chunked.token_logprob(
        soft_cap,
        min(tokens, chunk or default_chunk(len(unembedding))),
        hidden.reshape(shards, tokens, hidden.shape[-1]),
        unembedding,
        targets.reshape(shards, tokens),
        scalar,
        banned,
    )
    return logprob.reshape(targets.shape), entropy.reshape(targets.shape)


def default_chunk(vocab: int) -> int:
    """The largest power of two of tokens whose float32 logits fit CHUNK_BYTES (at least 1).

    A power of two divides most batches, so that the last chunk repeats nothing.

    Example:
        >>> from jaxalign.kernels.token_logprob.api import default_chunk
        >>> default_chunk(49_152)
        2048
    """
    return 1 << (max(1, CHUNK_BYTES // (4 * vocab)).bit_length() - 1)


def _shards(hidden: jax.Array, shape: tuple[int, ...], shards: int | None) -> int:
    first = shape[0] if shape else 1
    if shards is None:
        mesh: Any = jax.typeof(hidden).sharding.mesh
        if mesh.empty:
            mesh = jax.sharding.get_abstract_mesh()
        # A manual axis (shard_map) has cut the tokens already.
        axes = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
        return math.gcd(first, math.prod(size for size, kind in axes if kind != AxisType.Manual))
    if shards < 1 or first % shards:
        raise ValueError(
            f"shards is {shards}; expected a positive divisor of the first axis of targets "
            f"{list(shape)}."
        )
    return shards


def _check(
    hidden: jax.Array,
    unembedding: jax.Array,
    targets: jax.Array | np.ndarray,
    suppressed: jax.Array | np.ndarray | None,
) -> None:
    if unembedding.ndim != 2 or hidden.ndim < 1 or hidden.shape[-1] != unembedding.shape[1]:
        raise ValueError(
            f"hidden {list(hidden.shape)} and unembedding {list(unembedding.shape)} do not fit; "
            "expected [..., D] and [V, D]: transpose an unembedding of [D, V]."
        )
    if targets.shape != hidden.shape[:-1]:
        raise ValueError(
            f"targets are {list(targets.shape)}; expected one id for each of the hidden states "
            f"{list(hidden.shape[:-1])}."
        )
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(f"targets are {targets.dtype}; expected integers.")
    if not jnp.issubdtype(hidden.dtype, jnp.floating):
        raise ValueError(f"hidden is {hidden.dtype}; expected floating point.")
    if suppressed is not None and jnp.shape(suppressed) != unembedding.shape[:1]:
        raise ValueError(
            f"suppressed is {list(jnp.shape(suppressed))}; expected one entry for each of the "
            f"{len(unembedding)} rows of the unembedding."
        )


def _check_options(
    temperature: jax.Array | np.ndarray | float,
    soft_cap: float | None,
    chunk: int | None,
    backend: str,
) -> None:
    # An array may be traced, or would wait for the device: only plain numbers are looked at.
    if isinstance(temperature, int | float | np.number) and not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; expected a positive number.")
    if jnp.ndim(temperature):
        raise ValueError(f"temperature is {list(jnp.shape(temperature))}; expected a scalar.")
    if soft_cap is not None and not 0 < soft_cap < math.inf:
        raise ValueError(f"soft_cap is {soft_cap}; expected a positive number, or None.")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}; expected at least one token.")
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; expected one of {', '.join(BACKENDS)}.")
