"""The Hugging Face config that a GGUF file's metadata stands for."""

from pathlib import Path

import numpy as np

from jaxalign.errors import InputError
from jaxalign.models.weights.gguf import read_rope_freqs
from jaxalign.models.weights.gguf_header import Header, read_header

_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
# Fields that change the mathematics, and the one value of each that leaves it alone.
_NEUTRAL = {
    "expert_count": 0,
    "attention.causal": True,
    "attention.scale": None,
    "logit_scale": 1.0,
    "embedding_scale": 1.0,
    "residual_scale": 1.0,
}


def gguf_config(path: Path) -> dict[str, object]:
    """The config.json of the model in a GGUF file, as a dict.

    Args:
        path: the .gguf file.

    Returns:
        `model_type` (llama, qwen2 or qwen3), sizes, rotary embeddings (`rope_theta`,
        `rope_scaling`), `tie_word_embeddings` and the ids of the special tokens, as Hugging Face
        names them.

    Raises:
        InputError: for a file that is not whole, another architecture, a field that is missing,
            or a feature (experts, sliding window, partial rotation, YaRN) that is not here.

    Source: llama.cpp, convert_hf_to_gguf.py.
    """
    header = read_header(path)
    architecture = header.architecture
    _refuse_features(header)
    if "token_embd.weight" not in header.tensors:
        raise InputError(f"{path}: tensor 'token_embd.weight' is missing: download it again.")
    heads = header.number("attention.head_count")
    theta, width = header.real("rope.freq_base", 10_000.0), _head_width(header, heads)
    config: dict[str, object] = {
        "architectures": [_CLASSES[architecture]],
        "model_type": architecture,
        "hidden_act": "silu",
        "hidden_size": header.number("embedding_length"),
        "intermediate_size": header.number("feed_forward_length"),
        "num_hidden_layers": header.number("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": header.number("attention.head_count_kv", heads),
        "head_dim": width,
        "vocab_size": header.tensors["token_embd.weight"].shape[0],
        "rms_norm_eps": header.real("attention.layer_norm_rms_epsilon"),
        "rope_theta": theta,
        "max_position_embeddings": header.number("context_length"),
        "tie_word_embeddings": "output.weight" not in header.tensors,
    }
    if architecture != "qwen2":  # whose biases are no choice
        config["attention_bias"] = "blk.0.attn_q.bias" in header.tensors
    if architecture == "llama":
        config["mlp_bias"] = "blk.0.ffn_up.bias" in header.tensors
    scaling = _rope_scaling(header, theta, width)
    if scaling is not None:
        config["rope_scaling"] = scaling
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        token = header.fields.get(f"tokenizer.ggml.{key}_token_id")
        if token is not None:
            config[f"{name}_token_id"] = token
    return config


def _refuse_features(header: Header) -> None:
    for key, neutral in _NEUTRAL.items():
        full = f"{header.architecture}.{key}"
        value = header.fields.get(full, neutral)
        if value != neutral:
            raise InputError(
                f"{header.path}: {full} is {value!r}; expected a dense, causal model without it."
            )
    window = header.number("attention.sliding_window", 1 << 62)
    if window < header.number("context_length"):
        raise InputError(
            f"{header.path}: attention.sliding_window is {window}; expected full attention over "
            f"all {header.number('context_length')} positions."
        )


def _head_width(header: Header, heads: int) -> int:
    rotated = header.number("rope.dimension_count", 1 << 62)
    default = header.number("embedding_length") // heads
    width = header.number("attention.key_length", default)
    values = header.number("attention.value_length", width)
    if values != width or rotated not in (width, 1 << 62):
        raise InputError(
            f"{header.path}: heads are {width} wide for keys, {values} for values and rotated on "
            f"{rotated} dimensions; expected one width."
        )
    return width


def _rope_scaling(header: Header, theta: float, width: int) -> dict[str, object] | None:
    factors = read_rope_freqs(header)
    if f"{header.architecture}.rope.scale_linear" in header.fields:  # files of 2023
        kind, factor = "linear", header.real("rope.scale_linear")
    else:
        kind = str(header.fields.get(f"{header.architecture}.rope.scaling.type", "none"))
        factor = header.real("rope.scaling.factor", 1.0)
    if kind not in ("none", "linear") or (kind == "linear" and factors is not None):
        raise InputError(
            f"{header.path}: rope.scaling.type is {kind!r}; expected none, linear or the factors "
            "of llama3."
        )
    if factors is not None:
        return _llama3_scaling(header.path, factors, theta, width)
    return {"rope_type": "linear", "factor": factor} if kind == "linear" and factor != 1 else None


def _llama3_scaling(
    path: Path, factors: np.ndarray, theta: float, width: int
) -> dict[str, object] | None:
    """The settings that give the divisors of the frequencies, float32 `[H / 2]`.

    A frequency of wavelength w is divided by 1 below `original / high`, by `factor` above
    `original / low`, and between them by 1 / ((1 - s) / factor + s) with
    s = (original / w - low) / (high - low). So s is a line in 1 / w, and shows `original / low` and
    `original / high` only; `low` is 1 in every published model.

    Source: Llama 3.1's config; llama.cpp, convert_hf_to_gguf.py (`rope_freqs`).
    """
    if factors.shape != (width // 2,) or not np.all(np.isfinite(factors) & (factors >= 1.0)):
        raise InputError(
            f"{path}: rope_freqs.weight has shape {factors.shape}, values from {factors.min()} to "
            f"{factors.max()}; expected {width // 2} numbers of at least 1."
        )
    if np.all(factors == 1.0):
        return None
    inverse = theta ** -(np.arange(width // 2, dtype=np.float64) * 2 / width) / (2 * np.pi)
    divisors = factors.astype(np.float64)
    largest = float(str(factors.max()))
    between = (divisors > 1.0) & (divisors < largest)
    if between.sum() >= 2:
        share = (1 / divisors[between] - 1 / largest) / (1 - 1 / largest)
        slope, start = np.polyfit(inverse[between], share, 1)
        if slope > 0 > start:
            high, original = round(1 - 1 / start, 3), round(-slope / start)
            found = _llama3_divisors(inverse, largest, high, original)
            if np.allclose(found, divisors, rtol=1e-5, atol=0.0):
                return {
                    "rope_type": "llama3",
                    "factor": largest,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": high,
                    "original_max_position_embeddings": original,
                }
    raise InputError(
        f"{path}: rope_freqs.weight is no scaling of the kind llama3; expected 1 for short "
        "wavelengths, one factor for long ones, and a smooth passage between them."
    )


def _llama3_divisors(inverse: np.ndarray, factor: float, high: float, original: int) -> np.ndarray:
    smooth = np.clip((original * inverse - 1.0) / (high - 1.0), 0.0, 1.0)
    return 1 / ((1 - smooth) / factor + smooth)
