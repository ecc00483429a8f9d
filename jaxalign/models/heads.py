"""Heads on a trunk's states, in at least float32: values per objective, and class logits."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxalign.models.params import Array


class ValueHead(nn.Module):
    """One value for each of R objectives; R = 1 for a scalar head.

    Attributes:
        objectives: R.
        bias: whether each value has an offset; the classifiers on decoders have none.
        scale: standard deviation of the fresh kernel; 0 starts every value at 0.
    """

    objectives: int
    bias: bool = True
    scale: float = 0.02

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[..., D] -> [..., R], at least float32 whatever the trunk computes in."""
        wide = jnp.promote_types(hidden.dtype, jnp.float32)
        shape = (hidden.shape[-1], self.objectives)
        kernel = self.param("kernel", nn.initializers.normal(self.scale), shape)
        # An accelerator would round float32 to TF32 or bfloat16.
        values = jnp.matmul(hidden.astype(wide), kernel.astype(wide), precision="highest")
        if not self.bias:
            return values
        bias = self.param("bias", nn.initializers.zeros_init(), (self.objectives,))
        return values + jnp.broadcast_to(bias.astype(wide), values.shape)


class PooledHead(nn.Module):
    """From one vector a text to its class logits, by a square layer, as encoders do.

    Attributes:
        labels: how many.
        activation: after the square layer, tanh for BERT and relu for DistilBERT.
    """

    labels: int
    activation: Literal["tanh", "relu"]

    @nn.compact
    def __call__(self, vectors: jax.Array) -> jax.Array:
        """[..., D] -> [..., labels], at least float32."""
        inner = ValueHead(vectors.shape[-1], name="inner")(vectors)
        inner = jnp.tanh(inner) if self.activation == "tanh" else nn.relu(inner)
        return ValueHead(self.labels, name="score")(inner)


def last_token(hidden: jax.Array, lengths: Array) -> jax.Array:
    """State of the last token of each row, which in a decoder has attended to the whole text.

    Args:
        hidden: [B, T, D].
        lengths: [B] int32, padding on the right; 0 takes the first column.

    Returns:
        [B, D] in the dtype of the states.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.models.heads import last_token
        >>> hidden = jnp.arange(6.0).reshape(2, 3, 1)
        >>> last_token(hidden, jnp.asarray([3, 1])).tolist()
        [[2.0], [3.0]]
    """
    last = jnp.maximum(lengths - 1, 0)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
