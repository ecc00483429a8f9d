"""Tiny random BERTs: in torch, and on disk as sentence-transformers saves them."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import BertConfig, BertModel

# Two libraries that each spin on all cores slow each other down manifold.
torch.set_num_threads(1)

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnop"]
WORDS += [f"##{letter}" for letter in "abcdefghijklmnop"] + ["red", "green", "blue", "."]
SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}


def torch_bert(seed: int = 0, **changes) -> BertModel:
    """A random BertModel, biases and norms moved off zero and one, so that each one counts."""
    torch.manual_seed(seed)
    config = BertConfig(**(SIZES | changes), attn_implementation="eager")
    model = BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def torch_tensors(model: BertModel) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def write_model(folder: Path, model: BertModel | None = None, max_length: int | None = 48) -> Path:
    """A sentence-transformers folder around a tiny BERT."""
    model = model or torch_bert()
    folder.mkdir(parents=True, exist_ok=True)
    config = SIZES | {"model_type": "bert", "hidden_act": "gelu", "layer_norm_eps": 1e-12}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    if max_length:
        limit = json.dumps({"max_seq_length": max_length})
        (folder / "sentence_bert_config.json").write_text(limit)
    save_file(torch_tensors(model), folder / "model.safetensors")
    return folder
