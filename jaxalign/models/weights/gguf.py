"""GGUF files as named arrays: Hugging Face's names and row order, float32."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from jaxalign.errors import InputError
from jaxalign.models.weights.gguf_header import Header, TensorEntry, read_header
from jaxalign.models.weights.safetensors import Tensors

ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QK_NORMS = ("attn_q_norm", "attn_k_norm")
# llama3's scaling of the rotary frequencies: the config's matter, no weight of the model.
ROPE_FREQS = "rope_freqs.weight"
_CHUNK = 1 << 22  # elements dequantised at once


@contextmanager
def open_gguf(path: Path) -> Iterator[Tensors]:
    """A GGUF model of the Llama family, opened as its safetensors would be.

    Tensors are read one by one from a memory map and dequantised to float32; float16, bfloat16 and
    float32 keep their values. What llama.cpp's converter changed is undone: the names, and for
    the architecture `llama` the order of the rows of q and k.

    Args:
        path: the .gguf file.

    Yields:
        The tensors by Hugging Face's names, readable until the context ends.

    Raises:
        InputError: for a file that is truncated or not GGUF, an architecture other than llama,
            qwen2 and qwen3, a tensor that is missing or unknown, and, when such a one is read, a
            quantisation type that the package gguf cannot undo.

    Source: llama.cpp, convert_hf_to_gguf.py and gguf-py/gguf/tensor_mapping.py.
    """
    header = read_header(path)
    names = _hugging_face_names(header)
    _require_tensors(header)
    reader = _Reader(header, names, np.memmap(path, np.uint8, "r"))
    shapes = {name: header.tensors[inner].shape for name, inner in names.items()}
    yield Tensors(str(path), shapes, dict.fromkeys(names, reader))


def read_rope_freqs(header: Header) -> np.ndarray | None:
    """What each rotary frequency is divided by, float32 `[H / 2]`; None where the file is silent.

    Raises:
        InputError: for a quantisation type that the package gguf cannot undo.
    """
    entry = header.tensors.get(ROPE_FREQS)
    if entry is None:
        return None
    return _dequantise(header.path, ROPE_FREQS, np.memmap(header.path, np.uint8, "r"), entry)


@dataclass(frozen=True)
class _Reader:
    header: Header
    names: Mapping[str, str]
    data: np.ndarray

    def get_tensor(self, name: str) -> np.ndarray:
        inner = self.names[name]
        values = _dequantise(self.header.path, inner, self.data, self.header.tensors[inner])
        part = inner.split(".")[-2]
        if self.header.architecture != "llama" or part not in ("attn_q", "attn_k"):
            return values
        heads = self.header.number("attention.head_count")
        if part == "attn_k":
            heads = self.header.number("attention.head_count_kv", heads)
        if len(values) % (2 * heads):
            raise InputError(
                f"{self.header.path}: tensor {inner!r} has {len(values)} rows; expected an even "
                f"number for each of {heads} heads."
            )
        # llama.cpp rotates neighbours, Hugging Face the two halves of a head.
        pairs = values.reshape(heads, -1, 2, *values.shape[1:])
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)


def _dequantise(path: Path, name: str, data: np.ndarray, entry: TensorEntry) -> np.ndarray:
    from gguf.quants import dequantize

    *rows, columns = entry.shape
    count = int(np.prod(rows, dtype=np.int64))
    raw = data[entry.offset : entry.offset + entry.size].reshape(count, -1)
    values = np.empty((count, columns), np.float32)
    # In pieces: the package holds everything that it is given twice.
    step = max(1, _CHUNK // columns)
    try:
        for start in range(0, count, step):
            values[start : start + step] = dequantize(raw[start : start + step], entry.kind)
    except NotImplementedError as error:
        raise InputError(
            f"{path}: tensor {name!r} is of the quantisation type {entry.kind.name}, which the "
            "package gguf cannot undo: use the model in another quantisation, such as Q8_0."
        ) from error
    return values.reshape(entry.shape)


def _hugging_face_names(header: Header) -> dict[str, str]:
    """GGUF's names by Hugging Face's; `rope_freqs` belongs to the config and is left out."""
    layers = header.number("block_count")
    names = {}
    for inner in header.tensors:
        if inner == ROPE_FREQS:
            continue
        found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", inner)
        layer, part, suffix = found.groups() if found else (None, inner, "")
        known = _TOP if layer is None else _LAYER
        biased = suffix == "bias" and not known.get(part, "").endswith("_proj")
        if part not in known or biased or int(layer or 0) >= layers:
            raise InputError(
                f"{header.path}: tensor {inner!r} is unknown; expected those of a dense "
                f"{header.architecture} model of {layers} layers."
            )
        prefix = "" if layer is None else f"model.layers.{int(layer)}."
        names[f"{prefix}{known[part]}.{suffix}"] = inner
    return names


def _require_tensors(header: Header) -> None:
    parts = [f"{part}.weight" for part in _LAYER if part not in _QK_NORMS]
    if header.architecture == "qwen2":
        parts += [f"{part}.bias" for part in ATTENTION[:3]]
    elif "blk.0.attn_q.bias" in header.tensors:
        parts += [f"{part}.bias" for part in ATTENTION]
    if header.architecture == "qwen3":
        parts += [f"{part}.weight" for part in _QK_NORMS]
    # One by one up to the first that is missing: a damaged file may claim billions of layers.
    layers = header.number("block_count")
    inner = (f"blk.{layer}.{part}" for layer in range(layers) for part in parts)
    for name in chain(("token_embd.weight", "output_norm.weight"), inner):
        if name not in header.tensors:
            raise InputError(
                f"{header.path}: tensor {name!r} is missing, of a model of {layers} layers: "
                "convert or download the model again."
            )
