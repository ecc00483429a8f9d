"""Tiny GGUF models, written as llama.cpp's converter does: its names, its order of q and k rows."""

import random
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quants
from tokenizers.pre_tokenizers import ByteLevel

WIDTH, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD = 32, 64, 2, 4, 2, 8
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>"]
MERGES = ["Ġ Ġ", "h e", "l l", "he ll", "hell o", "Ġ w", "Ġw o", "Ġ 1", "1 2", "Ċ Ċ", "ĊĊ Ġ"]
MERGES += ["ĠĠ Ġ", "e Ì", "Ã ©"]
TOKENS = [*SPECIALS, *sorted(ByteLevel.alphabet()), *(m.replace(" ", "") for m in MERGES), "hexe"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_NAMES = {
    "input_layernorm": ("attn_norm", (WIDTH,)),
    "self_attn.q_proj": ("attn_q", (HEADS * HEAD, WIDTH)),
    "self_attn.k_proj": ("attn_k", (KV_HEADS * HEAD, WIDTH)),
    "self_attn.v_proj": ("attn_v", (KV_HEADS * HEAD, WIDTH)),
    "self_attn.o_proj": ("attn_output", (WIDTH, HEADS * HEAD)),
    "post_attention_layernorm": ("ffn_norm", (WIDTH,)),
    "mlp.gate_proj": ("ffn_gate", (HIDDEN, WIDTH)),
    "mlp.up_proj": ("ffn_up", (HIDDEN, WIDTH)),
    "mlp.down_proj": ("ffn_down", (WIDTH, HIDDEN)),
}


def varied_texts(count: int) -> list[str]:
    """Varied texts: languages, code, whitespace runs, digits, emoji, special tokens as text."""
    pieces = ["hello", " world", "Hello,", " don't", " I'LL", "é", "e\u0301", " naïve", "ß", "ﬁ"]
    pieces += [
        " 世界",
        "こんにちは",
        " Привет",
        "مرحبا",
        "हिन्दी",
        "한국어",
        "🎉",
        "👩‍👩‍👧",
        "🇩🇪",
        "\u200d",
    ]
    pieces += ["  ", "    ", "\t", "\n", "\n\n", "\r\n", " \n ", "\u00a0", "\u3000", "\x00", "\x7f"]
    pieces += ["1", "42", " 2024", "3.14", "1,000", "½", "²", "Ⅷ", "٣", " 007", "0x1F", "1e-5"]
    pieces += ["def f(x):\n    return x", "</div>", "//", " != ", "{}[]", "`a`", "\\n", "$", "a_b"]
    pieces += ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_", "<think>", "<repo_name>"]
    pieces += [
        "supercalifragilistic",
        "aaaaaaaaaaaa",
        "...",
        "?!",
        "—",
        "“q”",
        "\ufffd",
        "\U0010ffff",
    ]
    draw = random.Random(7)
    texts = ["", " ", "  ", "\n", *pieces]
    while len(texts) < count:
        texts.append("".join(draw.choices(pieces, k=draw.randint(2, 12))))
    return texts


def named_shapes(architecture: str, tied: bool) -> dict[str, tuple[str, tuple[int, ...]]]:
    """GGUF's name and the shape, by Hugging Face's name."""
    vocabulary = (len(TOKENS), WIDTH)
    names = {"model.embed_tokens.weight": ("token_embd.weight", vocabulary)}
    names["model.norm.weight"] = ("output_norm.weight", (WIDTH,))
    if not tied:
        names["lm_head.weight"] = ("output.weight", vocabulary)
    for layer in range(LAYERS):
        inner, outer = f"blk.{layer}", f"model.layers.{layer}"
        for name, (part, shape) in _NAMES.items():
            names[f"{outer}.{name}.weight"] = (f"{inner}.{part}.weight", shape)
            if architecture == "qwen2" and name.endswith(("q_proj", "k_proj", "v_proj")):
                names[f"{outer}.{name}.bias"] = (f"{inner}.{part}.bias", shape[:1])
        if architecture == "qwen3":
            for part in "qk":
                short = f"{outer}.self_attn.{part}_norm.weight"
                names[short] = (f"{inner}.attn_{part}_norm.weight", (HEAD,))
    return names


def llama_cpp_rows(values: np.ndarray, heads: int) -> np.ndarray:
    """`LlamaModel.permute` of convert_hf_to_gguf.py."""
    split = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return split.swapaxes(1, 2).reshape(values.shape)


def write_gguf(
    path: Path,
    architecture: str = "llama",
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    tied: bool = True,
    pre: str = "smollm",
    drop: tuple[str, ...] = (),
    extra: dict[str, np.ndarray] | None = None,
    pieces: dict[str, tuple[float, int]] | None = None,
    **fields,
) -> dict[str, np.ndarray]:
    """A random model; returns its tensors by Hugging Face's names, quantised and back.

    Args:
        kind: of the matrices; vectors stay float32.
        drop: metadata keys and GGUF tensors to leave out.
        extra: more GGUF tensors.
        pieces: score and type of each token of a SentencePiece tokenizer, in place of the usual.
        fields: more metadata of the architecture, `__` for a dot; a value replaces the usual one.
    """
    rng = np.random.default_rng(3)
    writer = GGUFWriter(path, architecture)
    _write_fields(writer, architecture, drop, fields)
    if pieces is None:
        _write_tokenizer(writer, pre, drop)
    else:
        _write_pieces(writer, pieces, drop)
    tensors = {}
    for name, (inner, shape) in named_shapes(architecture, tied).items():
        values = rng.normal(size=shape).astype(np.float32)
        stored = kind if values.ndim == 2 else GGMLQuantizationType.F32
        tensors[name] = quants.dequantize(quants.quantize(values, stored), stored)
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            values = llama_cpp_rows(values, HEADS if "q_proj" in name else KV_HEADS)
        if inner not in drop:
            writer.add_tensor(inner, quants.quantize(values, stored), raw_dtype=stored)
    for inner, values in (extra or {}).items():
        writer.add_tensor(inner, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def _write_fields(writer, architecture, drop, fields) -> None:
    usual = {
        "block_count": LAYERS,
        "context_length": 96,
        "embedding_length": WIDTH,
        "feed_forward_length": HIDDEN,
        "attention__head_count": HEADS,
        "attention__head_count_kv": KV_HEADS,
        "attention__layer_norm_rms_epsilon": 1e-5,
        "rope__freq_base": 50_000.0,
    }
    if architecture == "llama":
        usual["rope__dimension_count"] = HEAD
    if architecture == "qwen3":
        usual |= {"attention__key_length": HEAD, "attention__value_length": HEAD}
    for name, value in (usual | fields).items():
        key = f"{architecture}.{name.replace('__', '.')}"
        if key in drop:
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_string(key, value)


def _write_tokenizer(writer, pre, drop) -> None:
    types = [3] * 3 + [4] + [1] * (len(TOKENS) - 4)
    parts = {
        "tokenizer.ggml.model": lambda: writer.add_tokenizer_model("gpt2"),
        "tokenizer.ggml.pre": lambda: writer.add_tokenizer_pre(pre),
        "tokenizer.ggml.tokens": lambda: writer.add_token_list(TOKENS),
        "tokenizer.ggml.token_type": lambda: writer.add_token_types(types),
        "tokenizer.ggml.merges": lambda: writer.add_token_merges(MERGES),
        "tokenizer.ggml.bos_token_id": lambda: writer.add_bos_token_id(1),
        "tokenizer.ggml.eos_token_id": lambda: writer.add_eos_token_id(2),
        "tokenizer.ggml.add_bos_token": lambda: writer.add_add_bos_token(False),
        "tokenizer.chat_template": lambda: writer.add_chat_template(TEMPLATE),
    }
    for key, write in parts.items():
        if key not in drop:
            write()


def _write_pieces(writer, pieces, drop) -> None:
    filler = len(TOKENS) - len(pieces)
    scores, types = (list(column) for column in zip(*pieces.values(), strict=True))
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*pieces, *(f"filler{number}" for number in range(filler))])
    if "tokenizer.ggml.scores" not in drop:
        writer.add_token_scores([*scores, *[-1e4] * filler])
    writer.add_token_types([*types, *[5] * filler])  # unused
