"""Decoders for users of Flax NNX: the same parameters and programs, as an `nnx.Module`."""

from collections.abc import Mapping

import jax
from flax import nnx

from jaxalign.models import families
from jaxalign.models.language import check_decoder
from jaxalign.models.params import Params


class ParamGroup(nnx.Module):
    """A nested dict of arrays as NNX state: one attribute per name, `nnx.Param` at the leaves."""

    def __init__(self, params: Params):
        for name, value in params.items():
            setattr(
                self, name, ParamGroup(value) if isinstance(value, Mapping) else nnx.Param(value)
            )


class NNXDecoder(nnx.Module):
    """A decoder of any family as an NNX module; made by `to_nnx`.

    Attributes:
        config: sizes and switches; static.
        params: the parameters, by the names and in the stacked layout of this package, such as
            `params.layers.attention.query.weight` [L, N H, D].
    """

    def __init__(self, config: families.Config, params: Params):
        self.config = config
        self.params = ParamGroup(params)

    def __call__(self, tokens: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        """Return the logits of the next token at every position.

        Args:
            tokens: [B, T] int, padding on the right.
            lengths: [B] int32 tokens of each row; None where all rows have T.

        Returns:
            [B, T, V], at least float32.
        """
        params = from_nnx(self)
        hidden, _ = families.forward(self.config, params, tokens, lengths)
        return families.logits(params, hidden)


def to_nnx(config: families.Config, params: Params) -> NNXDecoder:
    """Return a decoder as an NNX module, for `nnx.split`, `nnx.jit`, `nnx.Optimizer` or tunix.

    Args:
        config: sizes and switches, such as `LanguageModel.config`.
        params: nested dict of arrays, such as `LanguageModel.params`. The arrays are not copied.

    Returns:
        A module that maps tokens [B, T] to logits [B, T, V].

    Raises:
        InputError: parameters that are not those of the config.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxalign.models import families, from_nnx, to_nnx
        >>> from jaxalign.models.decoder_config import DecoderConfig
        >>> config = DecoderConfig(
        ...     family="llama", vocab_size=11, width=8, layers=2, heads=2, kv_heads=1,
        ...     head_width=4, hidden=16, positions=32,
        ... )
        >>> params = families.init(jax.random.key(0), config)
        >>> model = to_nnx(config, params)
        >>> model(jnp.ones((1, 3), jnp.int32)).shape
        (1, 3, 11)
        >>> model.params.layers.attention.query.weight.shape
        (2, 8, 8)
        >>> jax.tree.all(jax.tree.map(jnp.array_equal, from_nnx(model), params))
        True
    """
    check_decoder(config, params)
    return NNXDecoder(config, params)


def from_nnx(module: NNXDecoder) -> Params:
    """Return the parameters of a module of `to_nnx`, bit-identical, as a nested dict of arrays.

    Args:
        module: as made, or after training.

    Returns:
        What `families.forward`, `save_language_model` and all of this package take.
    """
    params: Params = nnx.to_pure_dict(nnx.state(module.params, nnx.Param))
    return params
