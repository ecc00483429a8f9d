"""Flax (Linen) modules with plain nested dicts of parameters, and their weights."""

from jaxalign.models.chat import Completion, generate_texts
from jaxalign.models.classifier import Classifier, classify, load_classifier
from jaxalign.models.embed import Encoder, encode, load_encoder
from jaxalign.models.language import LanguageModel, load_language_model, save_language_model
from jaxalign.models.lora import LoraConfig
from jaxalign.models.nnx_bridge import NNXDecoder, from_nnx, to_nnx
from jaxalign.models.peft import load_adapter, save_adapter
from jaxalign.models.sampling import Sampling

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
