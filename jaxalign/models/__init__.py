"""Flax (Linen) modules with plain nested dicts of parameters, and their weights."""

import importlib
from typing import TYPE_CHECKING, Any

from jaxalign.models.chat import Completion, generate_texts
from jaxalign.models.classifier import Classifier, classify, load_classifier
from jaxalign.models.embed import Encoder, encode, load_encoder
from jaxalign.models.language import LanguageModel, load_language_model, save_language_model
from jaxalign.models.lora import LoraConfig
from jaxalign.models.peft import load_adapter, save_adapter
from jaxalign.models.sampling import Sampling

if TYPE_CHECKING:
    from jaxalign.models.nnx_bridge import NNXDecoder, from_nnx, to_nnx

__all__ = [
    "Classifier",
    "Completion",
    "Encoder",
    "LanguageModel",
    "LoraConfig",
    "NNXDecoder",
    "Sampling",
    "classify",
    "encode",
    "from_nnx",
    "generate_texts",
    "load_adapter",
    "load_classifier",
    "load_encoder",
    "load_language_model",
    "save_adapter",
    "save_language_model",
    "to_nnx",
]


def __getattr__(name: str) -> Any:
    # Flax NNX takes a quarter of the time of the imports of a command, and no command needs it.
    if name in ("NNXDecoder", "from_nnx", "to_nnx"):
        return getattr(importlib.import_module("jaxalign.models.nnx_bridge"), name)
    raise AttributeError(f"module 'jaxalign.models' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
