"""Rotary position embeddings, the half-split form of Llama and its relatives."""

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.config_fields import checks_fields


@dataclass(frozen=True)
@checks_fields
class Rope:
    """Base and scaling of the rotation angles.

    Attributes:
        theta: base of the geometric series of frequencies.
        scaling: none; `linear` divides every frequency by `factor`; `llama3` only the low ones.
        factor: how many times longer the context became.
        low, high: of `llama3`, turns over `original` tokens below which a frequency is divided,
            and above which it is kept.
        original: of `llama3`, the context length before scaling, tokens.
    """

    theta: float = 10_000.0
    scaling: Literal["none", "linear", "llama3"] = "none"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192


def frequencies(rope: Rope, head_width: int) -> np.ndarray:
    """Angle per position of each pair of dimensions, radians: [H/2] float64.

    Args:
        rope: base and scaling.
        head_width: H.

    Source: Su et al. 2021, https://arxiv.org/abs/2104.09864; scaling `llama3` as Llama 3.1 does.

    Example:
        >>> from jaxalign.models.rope import Rope, frequencies
        >>> frequencies(Rope(theta=100.0), 4).tolist()
        [1.0, 0.1]
        >>> frequencies(Rope(theta=100.0, scaling="linear", factor=2.0), 4).tolist()
        [0.5, 0.05]
    """
    plain = rope.theta ** -(np.arange(0, head_width, 2, dtype=np.float64) / head_width)
    if rope.scaling == "none":
        return plain
    if rope.scaling == "linear":
        return plain / rope.factor
    turns = rope.original * plain / (2 * math.pi)
    kept = np.clip((turns - rope.low) / (rope.high - rope.low), 0, 1)
    return kept * plain + (1 - kept) * plain / rope.factor


def rotation(rope: Rope, head_width: int, positions: jax.Array, dtype: str) -> jax.Array:
    """Cosines and sines at positions.

    Args:
        rope: base and scaling.
        head_width: H.
        positions: [B, T] int, from 0.
        dtype: of the compute; the angles take at least float32.

    Returns:
        [2, B, T, H/2].
    """
    wide = jnp.promote_types(dtype, jnp.float32)
    step = jnp.asarray(frequencies(rope, head_width), wide)
    angles = positions.astype(wide)[:, :, None] * step[None, None, :]
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)])


def rotate(heads: jax.Array, rotated: jax.Array) -> jax.Array:
    """Rotate queries or keys [B, T, N, H] by [2, B, T, H/2] of `rotation`; the dtype is kept."""
    cos, sin = rotated[:, :, :, None, :]
    first, second = jnp.split(heads.astype(cos.dtype), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(heads.dtype)
