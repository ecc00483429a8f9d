"""Tiny random language models of every family: in torch, and on disk with a tokenizer."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from jaxalign.models.weights.safetensors import Tensors

# Two libraries that each spin on all cores slow each other down manifold.
torch.set_num_threads(1)

SPECIAL = ["<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"]
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("in", "g"), ("a", "n")]
CHAT = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
VOCABULARY = [*SPECIAL, *BYTES, *("".join(pair) for pair in MERGES)]

_SIZES: dict[str, Any] = {
    # A few rows more than the tokenizer has entries, as real models have.
    "vocab_size": len(VOCABULARY) + 6,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
_GPT2_SIZES = {
    "vocab_size": _SIZES["vocab_size"],
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 128,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e3,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
_TIED = {"tie_word_embeddings": True}

# Name -> class of transformers, changes to the sizes.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", _TIED),
    "llama-biased": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-llama3": ("Llama", {"rope_parameters": _LLAMA3, "num_key_value_heads": 1}),
    "llama-linear": ("Llama", {"rope_parameters": _LINEAR, "num_key_value_heads": 4}),
    "mistral": ("Mistral", {"sliding_window": 5}),
    "qwen2": ("Qwen2", {}),
    "qwen2-tied": ("Qwen2", _TIED),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3-tied": ("Qwen3", {"head_dim": 16, "attention_bias": True} | _TIED),
    "gpt2": ("GPT2", {}),
}
# Every switch of the Llama family once.
DECODERS = (
    "llama",
    "llama-biased",
    "llama-llama3",
    "llama-linear",
    "mistral",
    "qwen2-tied",
    "qwen3",
)


def hf_config(name: str, **changes: Any) -> Any:
    """The transformers config of a name in CONFIGS."""
    kind, own = CONFIGS[name]
    sizes = _GPT2_SIZES if kind == "GPT2" else _SIZES
    settings = sizes | own | changes
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    config = getattr(transformers, f"{kind}Config")(**settings, **ids)
    config._attn_implementation = "eager"
    return config


def hf_model(name: str, seed: int = 0, labels: int | None = None, **changes: Any) -> Any:
    """A random model on torch, every parameter moved off its start, so that each one counts.

    With `labels` a sequence classifier of so many, else a causal language model.
    """
    torch.manual_seed(seed)
    head = "ForCausalLM" if labels is None else "ForSequenceClassification"
    head = "LMHeadModel" if (CONFIGS[name][0], labels) == ("GPT2", None) else head
    if labels is not None:
        changes["num_labels"] = labels
    config = hf_config(name, **changes)
    model = getattr(transformers, CONFIGS[name][0] + head)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def tokenizer() -> Any:
    """Byte-level BPE with a few merges, special tokens and a chat template."""
    vocabulary = {token: number for number, token in enumerate(VOCABULARY)}
    inner = Tokenizer(models.BPE(vocabulary, list(MERGES)))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(SPECIAL)
    outer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=SPECIAL[0], eos_token=SPECIAL[0], pad_token=SPECIAL[1]
    )
    outer.chat_template = CHAT
    return outer


def write(
    folder: Path,
    name: str,
    seed: int = 0,
    labels: int | None = None,
    dtype: torch.dtype = torch.float32,
    shards: str | None = None,
    **changes: Any,
) -> Path:
    """A folder as transformers saves it, tokenizer included; `shards` is a size such as "20KB"."""
    model = hf_model(name, seed, labels, **changes).to(dtype)
    model.save_pretrained(folder, **({} if shards is None else {"max_shard_size": shards}))
    tokenizer().save_pretrained(folder)
    return folder


def in_memory(model: Any) -> Tensors:
    """The weights of a model on torch as if its file were open."""
    state = {name: value.detach() for name, value in model.state_dict().items()}
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    return Tensors("memory", shapes, dict.fromkeys(state, _State(state)))


class _State:
    def __init__(self, state: dict[str, torch.Tensor]):
        self.state = state

    def get_tensor(self, name: str) -> np.ndarray:
        return self.state[name].numpy().copy()


@contextmanager
def in_double() -> Iterator[None]:
    """transformers computes in double where it asks for float32."""
    kept = torch.float32, torch.float, torch.Tensor.float
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.float32, torch.float, torch.Tensor.float = kept


def double(model: Any) -> Any:
    """The model in float64 throughout, its rotary frequencies too; run it under `in_double`."""
    model = model.double()
    base = getattr(model, "model", model)
    if hasattr(base, "rotary_emb"):
        with in_double():
            base.rotary_emb = type(base.rotary_emb)(model.config)
    return model
