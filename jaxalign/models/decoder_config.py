"""Sizes and switches of the Llama family, and how a Hugging Face config gives them."""

from dataclasses import dataclass, field
from typing import Protocol

from jaxalign.config_fields import checks_fields
from jaxalign.errors import InputError
from jaxalign.models.attention import Implementation
from jaxalign.models.hf_config import JsonObject, real, section, size
from jaxalign.models.rope import Rope

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


class StackConfig(Protocol):
    """What the layers of every decoder family need to know; see `DecoderConfig`."""

    @property
    def layers(self) -> int: ...  # noqa: D102
    @property
    def window(self) -> int | None: ...  # noqa: D102
    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def unroll(self) -> bool: ...  # noqa: D102
    @property
    def unstacked(self) -> bool: ...  # noqa: D102
    @property
    def remat(self) -> str | None: ...  # noqa: D102
    @property
    def attention(self) -> Implementation: ...  # noqa: D102


@dataclass(frozen=True)
@checks_fields
class DecoderConfig:
    """Sizes and switches of one decoder.

    Attributes:
        family: model type of its Hugging Face config.
        vocab_size: V.
        width: D.
        layers: L.
        heads: N.
        kv_heads: G; N is a multiple of it.
        head_width: H.
        hidden: F, the feed-forward width.
        positions: the most tokens the model was made for.
        rope: of the rotary position embeddings.
        norm_eps: epsilon of every norm.
        window: tokens a token sees, itself included; None for all before it.
        qkv_bias, out_bias, mlp_bias: which matrices have a bias.
        qk_norm: whether queries and keys are normed.
        tied: whether the unembedding is the input embedding.
        dtype: of the compute; softmax, norms and angles use at least float32.
        unroll: unroll the scan over layers (longer to compile, for counting FLOPs).
        unstacked: parameters, adapters and cache are one tree per layer instead of a stack
            (`families.unstack_layers`), so that a decoding loop copies no layer out of a stack.
        remat: name of a `jax.checkpoint_policies` entry to recompute blocks by, or None.
        attention: `auto` takes cuDNN on a GPU in half precision, XLA elsewhere.
    """

    family: str
    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    hidden: int
    positions: int
    rope: Rope = field(default_factory=Rope)
    norm_eps: float = 1e-6
    window: int | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tied: bool = False
    dtype: str = "float32"
    unroll: bool = False
    unstacked: bool = False
    remat: str | None = None
    attention: Implementation = "auto"

    @classmethod
    def from_hf(
        cls, config: JsonObject, dtype: str = "float32", source: str = "config.json"
    ) -> "DecoderConfig":
        """The decoder that a Hugging Face config describes.

        Args:
            config: as a dict, of transformers 4 or 5.
            dtype: of the compute.
            source: what to call the config in messages.

        Raises:
            InputError: for a field that is missing or wrong, or an architecture that is not here.
        """
        family = config.get("model_type")
        if family not in FAMILIES:
            raise InputError(
                f"{source}: model_type is {family!r}; expected one of {', '.join(FAMILIES)}."
            )
        if config.get("hidden_act", "silu") != "silu":
            raise InputError(f"{source}: hidden_act is {config['hidden_act']!r}; expected 'silu'.")
        width, heads = (
            size(config, name, source) for name in ("hidden_size", "num_attention_heads")
        )
        kv_heads = size(config, "num_key_value_heads", source, heads)
        default_width = 128 if family == "qwen3" else width // heads
        head_width = size(config, "head_dim", source, default_width)
        if heads % kv_heads or head_width % 2:
            raise InputError(
                f"{source}: {heads} heads of width {head_width} on {kv_heads} key heads; expected "
                "a multiple of the key heads, and an even width."
            )
        biased = bool(config.get("attention_bias", False))
        return cls(
            family=str(family),
            vocab_size=size(config, "vocab_size", source),
            width=width,
            layers=size(config, "num_hidden_layers", source),
            heads=heads,
            kv_heads=kv_heads,
            head_width=head_width,
            hidden=size(config, "intermediate_size", source),
            positions=size(config, "max_position_embeddings", source),
            rope=_rope(config, source),
            norm_eps=real(config, "rms_norm_eps", source, 1e-6),
            window=_window(config, str(family), source),
            qkv_bias=family == "qwen2" or biased,
            out_bias=biased and family != "qwen2",
            mlp_bias=bool(config.get("mlp_bias", False)),
            qk_norm=family == "qwen3",
            tied=bool(config.get("tie_word_embeddings", False)),
            dtype=dtype,
        )


def _rope(config: JsonObject, source: str) -> Rope:
    # transformers 5 keeps all in rope_parameters; before, rope_theta stood beside rope_scaling.
    parts = (section(config, name, source) for name in ("rope_scaling", "rope_parameters"))
    settings = {key: value for part in parts for key, value in part.items()}
    theta = real(settings, "rope_theta", source, real(config, "rope_theta", source, 10_000.0))
    kind = settings.get("rope_type") or settings.get("type") or "default"
    partial = settings.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    if kind not in ("default", "linear", "llama3") or partial != 1.0:
        raise InputError(
            f"{source}: rotary embeddings of type {kind!r} on a share {partial} of each head; "
            "expected 'default', 'linear' or 'llama3' on all of it."
        )
    if kind == "default":
        return Rope(theta)
    factor = real(settings, "factor", source)
    if kind == "linear":
        return Rope(theta, "linear", factor)
    return Rope(
        theta,
        "llama3",
        factor,
        real(settings, "low_freq_factor", source),
        real(settings, "high_freq_factor", source),
        size(settings, "original_max_position_embeddings", source),
    )


def _window(config: JsonObject, family: str, source: str) -> int | None:
    window = config.get("sliding_window")
    if family != "mistral":
        if config.get("use_sliding_window"):
            raise InputError(
                f"{source}: use_sliding_window is set; expected full attention in every layer: "
                "set it to false where texts are shorter than the window."
            )
        return None
    return None if window is None else size(config, "sliding_window", source)
