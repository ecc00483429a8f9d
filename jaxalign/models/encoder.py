"""The BERT family of text encoders (BERT, MiniLM, BGE, DistilBERT): tokens in, vectors out."""

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxalign.config_fields import checks_fields
from jaxalign.errors import InputError
from jaxalign.models.hf_config import JsonObject, real, size
from jaxalign.models.params import Array, Params, leaf

Pooling = Literal["mean", "cls", "last"]
POOLINGS: tuple[str, ...] = get_args(Pooling)

# Field of a Hugging Face config -> size here, by model type.
_SIZES = {
    "bert": {
        "vocab_size": "vocab_size",
        "hidden_size": "width",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
        "intermediate_size": "hidden",
        "max_position_embeddings": "positions",
    },
    "distilbert": {
        "vocab_size": "vocab_size",
        "dim": "width",
        "n_layers": "layers",
        "n_heads": "heads",
        "hidden_dim": "hidden",
        "max_position_embeddings": "positions",
    },
}
_SUPPORTED: dict[str, dict[str, object]] = {
    "bert": {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False},
    "distilbert": {"activation": "gelu"},
}


@dataclass(frozen=True)
@checks_fields
class EncoderConfig:
    """Sizes and switches of one encoder.

    Attributes:
        vocab_size: V.
        width: D.
        layers: L.
        heads: N; D is a multiple of it.
        hidden: F, the feed-forward width.
        positions: the most tokens a text may have.
        token_types: rows of the token type table; 0 for a model without one (DistilBERT).
        norm_eps: epsilon of every layer norm.
        dtype: of the compute; softmax and layer norm use at least float32.
        unroll: unroll the scan over layers (longer to compile, for counting FLOPs).
        remat: name of a `jax.checkpoint_policies` entry to recompute blocks by, or None.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    hidden: int
    positions: int
    token_types: int = 2
    norm_eps: float = 1e-12
    dtype: str = "float32"
    unroll: bool = False
    remat: str | None = None

    @classmethod
    def from_hf(
        cls, config: JsonObject, dtype: str = "float32", source: str = "config.json"
    ) -> "EncoderConfig":
        """The encoder that a Hugging Face config.json describes.

        Args:
            config: the parsed config.json.
            dtype: of the compute.
            source: what to call the config in messages.

        Raises:
            InputError: for a field that is missing or wrong, or an architecture that is not here.
        """
        kind = config.get("model_type")
        if not isinstance(kind, str) or kind not in _SIZES:
            raise InputError(
                f"{source}: model_type is {kind!r}; the encoder supports "
                f"{', '.join(map(repr, _SIZES))} only: choose a BERT, MiniLM, BGE or DistilBERT "
                "model."
            )
        for field, expected in _SUPPORTED[kind].items():
            found = config.get(field, expected)
            if found != expected:
                raise InputError(f"{source}: {field} is {found!r}; expected {expected!r}.")
        fields = _SIZES[kind]
        sizes = {ours: size(config, name, source) for name, ours in fields.items()}
        if sizes["width"] % sizes["heads"]:
            width, heads = (name for name, ours in fields.items() if ours in ("width", "heads"))
            raise InputError(
                f"{source}: {width} {sizes['width']} is not a multiple of {heads} {sizes['heads']}."
            )
        bert = kind == "bert"  # DistilBERT has no token types, and a fixed epsilon
        return cls(
            vocab_size=sizes["vocab_size"],
            width=sizes["width"],
            layers=sizes["layers"],
            heads=sizes["heads"],
            hidden=sizes["hidden"],
            positions=sizes["positions"],
            token_types=size(config, "type_vocab_size", source, 2) if bert else 0,
            norm_eps=real(config, "layer_norm_eps", source, 1e-12) if bert else 1e-12,
            dtype=dtype,
        )


class EncoderModule(nn.Module):
    """BERT without a head: embeddings, then L post-norm blocks compiled as one.

    Source: Devlin et al. 2019, https://arxiv.org/abs/1810.04805; without token types, Sanh et al.
    2019, https://arxiv.org/abs/1910.01108.
    """

    config: EncoderConfig

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array | None,
        mask: jax.Array,
        *,
        embeddings: jax.Array | None = None,
        types: jax.Array | None = None,
    ) -> jax.Array:
        """Hidden states of the last layer.

        Args:
            tokens: [B, T] int, T at most `config.positions`; None where there are embeddings.
            mask: [B, T], nonzero where there is a token; padding may stand on either side, but
                positions count from the first column.
            embeddings: [B, T, D] in place of the tokens' rows of the table, of `embed` or any
                other; positions and types are added here.
            types: [B, T] int, which of two texts a token belongs to; None for 0 everywhere, and
                for a model without them.

        Returns:
            [B, T, D] in `config.dtype`; rows of padding hold no meaning.

        Raises:
            InputError: for more tokens than there are positions.
        """
        config, length = self.config, mask.shape[-1]
        if length > config.positions:
            raise InputError(
                f"texts of {length} tokens do not fit the encoder, which has "
                f"{config.positions} positions: truncate them."
            )
        hidden = _Embeddings(config, name="embeddings")(tokens, embeddings, types)
        block: type[nn.Module] = _Block
        if config.remat is not None:
            policy = getattr(jax.checkpoint_policies, config.remat)
            block = nn.remat(block, policy=policy, prevent_cse=config.unroll)
        stack = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=config.layers,
            unroll=config.layers if config.unroll else 1,
        )
        hidden, _ = stack(config, name="layers")(hidden, mask.astype(bool))
        return hidden


class _Embeddings(nn.Module):
    config: EncoderConfig

    @nn.compact
    def __call__(
        self, tokens: jax.Array | None, embeddings: jax.Array | None, types: jax.Array | None
    ) -> jax.Array:
        config, init = self.config, nn.initializers.normal(0.02)
        word = self.param("word", init, (config.vocab_size, config.width))
        position = self.param("position", init, (config.positions, config.width))
        hidden = _rows(word, tokens) if embeddings is None else embeddings.astype(word.dtype)
        shared = position[: hidden.shape[1]]
        if config.token_types:
            kind = self.param("type", init, (config.token_types, config.width))
            if types is None:
                shared = shared + kind[:1]
            else:
                hidden = hidden + _rows(kind, types)
        return layer_norm(config, "norm")(hidden + shared[None]).astype(config.dtype)


class _Block(nn.Module):
    """One layer; carries [B, T, D] through the scan."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array) -> tuple[jax.Array, None]:
        config = self.config
        attended = _Attention(config, name="attention")(hidden, mask)
        hidden = layer_norm(config, "attention_norm")(hidden + attended).astype(config.dtype)
        inner = nn.gelu(_dense(config, config.hidden, "up")(hidden), approximate=False)
        hidden = hidden + _dense(config, config.width, "down")(inner)
        return layer_norm(config, "output_norm")(hidden).astype(config.dtype), None


class _Attention(nn.Module):
    config: EncoderConfig

    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
        config = self.config
        split = (*hidden.shape[:-1], config.heads, config.width // config.heads)
        query, key, value = (
            _dense(config, config.width, name)(hidden).reshape(split)
            for name in ("query", "key", "value")
        )
        mixed = attention(query, key, value, mask)
        return _dense(config, config.width, "out")(mixed.reshape(hidden.shape))


def attention(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
    """Attention over all tokens of a text, padding left out.

    `jax.nn.dot_product_attention` fixes its softmax to float32, which costs float64 its digits.

    Args:
        query, key, value: [B, T, N, H].
        mask: [B, T] bool. A row without any token attends evenly, so it stays finite.

    Returns:
        [B, T, N, H] in the dtype of `value`.
    """
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("BTNH,BSNH->BNTS", query, key, preferred_element_type=wide)
    scores = scores * jnp.asarray(query.shape[-1] ** -0.5, wide)
    scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(wide).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("BNTS,BSNH->BTNH", weights, value)


def embed(params: Params, tokens: Array) -> jax.Array:
    """Rows of the word table, before positions: [B, T] int -> [B, T, D]; NaN for no such row."""
    return _rows(leaf(params, "embeddings", "word"), tokens)


def _rows(table: jax.Array, numbers: Array | None) -> jax.Array:
    # A clip would hide a number outside the table; NaN shows it.
    return table.at[numbers].get(mode="fill", fill_value=jnp.nan)


def pool(hidden: jax.Array, mask: jax.Array, pooling: Pooling = "mean") -> jax.Array:
    """Pool the vectors of a text's tokens into one vector per text.

    Args:
        hidden: [B, T, D].
        mask: [B, T], nonzero where there is a token.
        pooling: `mean` over tokens, `cls` the first column, `last` the last token of the mask.

    Returns:
        [B, D], at least float32.

    Raises:
        InputError: another pooling.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.models.encoder import pool
        >>> hidden, mask = jnp.asarray([[[1.0], [3.0], [9.0]]]), jnp.asarray([[1, 1, 0]])
        >>> [pool(hidden, mask, pooling).item() for pooling in ("mean", "cls", "last")]
        [2.0, 1.0, 3.0]
    """
    hidden = hidden.astype(jnp.promote_types(hidden.dtype, jnp.float32))
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last":
        columns = jnp.arange(mask.shape[1])[None, :]
        last = jnp.max(jnp.where(mask.astype(bool), columns, 0), axis=1)
        return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    if pooling == "mean":
        kept = mask.astype(bool)[:, :, None]
        # The double where keeps NaN of a padded row out of the sum and of its gradient.
        total = jnp.sum(jnp.where(kept, hidden, 0), axis=1)
        return total / jnp.maximum(jnp.sum(kept, axis=1), 1).astype(hidden.dtype)
    raise InputError(f"pooling is {pooling!r}; expected one of {', '.join(POOLINGS)}.")


def normalise(vectors: jax.Array, eps: float = 1e-12) -> jax.Array:
    """Vectors of length 1: [..., E] -> [..., E]; a zero vector stays zero.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from jaxalign.models.encoder import normalise
        >>> np.float64(normalise(jnp.asarray([[3.0, 4.0], [0.0, 0.0]]))).round(3).tolist()
        [[0.6, 0.8], [0.0, 0.0]]
    """
    square = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    # Inside the root, so that the gradient at zero is finite.
    return vectors * jax.lax.rsqrt(jnp.maximum(square, eps**2))


def _dense(config: EncoderConfig, features: int, name: str) -> nn.Dense:
    init = nn.initializers.normal(0.02)
    return nn.Dense(features, dtype=config.dtype, kernel_init=init, name=name)


class NormConfig(Protocol):
    """What a layer norm needs to know."""

    @property
    def norm_eps(self) -> float: ...  # noqa: D102
    @property
    def dtype(self) -> str: ...  # noqa: D102


def layer_norm(config: NormConfig, name: str) -> nn.LayerNorm:
    """Layer norm in at least float32, with the `norm_eps` of a config."""
    wide = jnp.promote_types(config.dtype, jnp.float32)
    # The fast variance E[x^2] - E[x]^2 cancels.
    return nn.LayerNorm(config.norm_eps, dtype=wide, use_fast_variance=False, name=name)
