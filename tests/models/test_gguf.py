"""GGUF files against llama.cpp's rules and transformers' loading of the same files."""

import os
import re
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_gguf import HEAD, LAYERS, MERGES, TEMPLATE, TOKENS, varied_texts, write_gguf
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Tokenizer,
    LlamaConfig,
    Qwen2Tokenizer,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from jaxalign.errors import InputError
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.gguf_config import gguf_config
from jaxalign.models.gguf_tokenizer import gguf_tokenizer
from jaxalign.models.weights.gguf import open_gguf
from jaxalign.models.weights.gguf_header import read_header

torch.set_num_threads(1)

ARCHITECTURES = ("llama", "qwen2", "qwen3")
CONVERSATION = [
    {"role": "user", "content": "Tell me  of 12 things."},
    {"role": "assistant", "content": "No.\n"},
    {"role": "user", "content": "Déjà vu 🎉?"},
]
# Taken before a fixture moves the cache aside.


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path)
    return path


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q5_1])
def test_tensors_come_back(tmp_path, architecture, kind):
    expected = write_gguf(tmp_path / "m.gguf", architecture, kind, tied=architecture != "qwen2")
    with open_gguf(tmp_path / "m.gguf") as tensors:
        assert tensors.source == str(tmp_path / "m.gguf")
        assert dict(tensors.shapes) == {name: value.shape for name, value in expected.items()}
        for name, value in expected.items():
            found = tensors.read(name)
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, value, err_msg=name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_transformers_loads_the_same(tmp_path, architecture):
    path = tmp_path / "m.gguf"
    write_gguf(path, architecture, Kind.Q8_0, tied=architecture != "qwen2")
    # transformers overlooks qwen3's head width, so the config is ours: it has to fit the class.
    config = AutoConfig.for_model(**gguf_config(path))
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, config=config, dtype=torch.float32
    )
    _assert_same_tensors(path, model)


def _assert_same_tensors(path, model):
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    with open_gguf(path) as tensors:
        assert set(state) - set(tensors.shapes) <= {"lm_head.weight"}
        for name in tensors.shapes:
            np.testing.assert_array_equal(tensors.read(name), state[name], err_msg=name)


def test_pieces_change_nothing(tiny, monkeypatch):
    with open_gguf(tiny) as tensors:
        whole = {name: tensors.read(name) for name in tensors.shapes}
        monkeypatch.setattr("jaxalign.models.weights.gguf._CHUNK", 96)  # three rows, with a rest
        for name, value in whole.items():
            np.testing.assert_array_equal(tensors.read(name), value)


def test_biases_of_llama_follow_their_rows(tmp_path):
    rng = np.random.default_rng(0)
    widths = {"attn_q": 32, "attn_k": 16, "attn_v": 16, "attn_output": 32}
    extra = {
        f"blk.{layer}.{part}.bias": rng.normal(size=width).astype(np.float32)
        for layer in range(LAYERS)
        for part, width in widths.items()
    }
    write_gguf(tmp_path / "m.gguf", extra=extra)
    assert gguf_config(tmp_path / "m.gguf")["attention_bias"] is True
    with open_gguf(tmp_path / "m.gguf") as tensors:
        found = tensors.read("model.layers.1.self_attn.k_proj.bias")
        stored = extra["blk.1.attn_k.bias"]
        # Neighbours in the file are half a head apart here.
        np.testing.assert_array_equal(found[:HEAD], [*stored[:HEAD:2], *stored[1:HEAD:2]])
        plain = tensors.read("model.layers.1.self_attn.o_proj.bias")
        np.testing.assert_array_equal(plain, extra["blk.1.attn_output.bias"])


def test_header_is_what_the_package_reads(tiny):
    reader, header = GGUFReader(tiny), read_header(tiny)
    fields = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    assert dict(header.fields) == fields
    for tensor in reader.tensors:
        entry = header.tensors[tensor.name]
        place = (entry.offset, entry.size, entry.kind)
        assert place == (tensor.data_offset, tensor.n_bytes, tensor.tensor_type)
        assert entry.shape == tuple(reversed(tensor.shape.tolist()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_config_is_that_of_transformers(tmp_path, architecture):
    tied = architecture != "qwen2"
    write_gguf(tmp_path / "m.gguf", architecture, tied=tied)
    config = gguf_config(tmp_path / "m.gguf")
    reference = AutoConfig.from_pretrained(tmp_path, gguf_file="m.gguf").to_dict()
    ours = AutoConfig.for_model(**config).to_dict()
    assert ours["rms_norm_eps"] == 1e-5  # theirs is float32's 9.99999975e-06
    assert np.float32(ours["rms_norm_eps"]) == np.float32(reference["rms_norm_eps"])
    unlike = {"rms_norm_eps", "architectures", "head_dim", "_name_or_path"}
    for name in set(reference) - unlike:
        assert ours[name] == reference[name], name
    assert (config["head_dim"], config["tie_word_embeddings"]) == (HEAD, tied)
    assert config["vocab_size"] == len(TOKENS)
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    decoder = DecoderConfig.from_hf(config)
    assert (decoder.family, decoder.head_width, decoder.rope.theta) == (architecture, HEAD, 5e4)


@pytest.mark.parametrize(
    ("factor", "low", "high", "original", "width"),
    [(8.0, 1.0, 4.0, 8192, 128), (32.0, 1.0, 4.0, 8192, 64), (8.0, 1.0, 8.0, 4096, 128)],
)
def test_llama3_scaling_is_found_in_its_factors(tmp_path, factor, low, high, original, width):
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
    reference = LlamaConfig(head_dim=width, rope_parameters=scaling | {"rope_theta": 500_000.0})
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](reference, torch.device("cpu"))
    plain = 500_000.0 ** -(np.arange(0, width, 2) / width)
    factors = (plain / scaled.numpy()).astype(np.float32)
    factors[np.isclose(factors, 1.0, rtol=1e-6)] = 1.0  # llama.cpp writes ones and the factor
    factors[np.isclose(factors, factor, rtol=1e-6)] = factor
    path = tmp_path / "m.gguf"
    sizes = {"attention__key_length": width, "attention__value_length": width}
    sizes |= {"rope__dimension_count": width, "rope__freq_base": 500_000.0}
    write_gguf(path, extra={"rope_freqs.weight": factors}, **sizes)
    assert gguf_config(path)["rope_scaling"] == scaling
    write_gguf(path, extra={"rope_freqs.weight": factors[::-1].copy()}, **sizes)
    with pytest.raises(InputError, match="no scaling of the kind llama3"):
        gguf_config(path)


def test_other_rope_scalings(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, extra={"rope_freqs.weight": np.ones(HEAD // 2, np.float32)})
    assert "rope_scaling" not in gguf_config(path)
    write_gguf(path, rope__scaling__type="linear", rope__scaling__factor=2.0)
    assert gguf_config(path)["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    write_gguf(path, rope__scaling__type="yarn", rope__scaling__factor=4.0)
    with pytest.raises(InputError, match="'yarn'; expected none, linear"):
        gguf_config(path)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"expert_count": 8}, "expert_count is 8"),
        ({"attention__sliding_window": 16}, "sliding_window is 16"),
        ({"attention__causal": False}, "attention.causal is False"),
        ({"rope__dimension_count": 4}, "rotated on 4"),
        ({"attention__value_length": 4}, "4 for values"),
        ({"attention__head_count": [4, 2]}, "head_count is a list of 2"),
        ({"attention__layer_norm_rms_epsilon": float("nan")}, "epsilon is nan"),
        ({"block_count": 0}, "block_count is 0"),
    ],
)
def test_what_the_decoder_has_not_is_refused(tmp_path, fields, says):
    write_gguf(tmp_path / "m.gguf", **fields)
    with pytest.raises(InputError, match=says):
        gguf_config(tmp_path / "m.gguf")


def test_another_architecture(tmp_path):
    write_gguf(tmp_path / "m.gguf", "gemma2")
    for read in (gguf_config, lambda path: open_gguf(path).__enter__()):
        with pytest.raises(InputError, match="'gemma2'; expected one of llama, qwen2, qwen3"):
            read(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    "name",
    ["token_embd.weight", "output_norm.weight", "blk.1.attn_k.weight", "blk.0.attn_v.bias"],
)
def test_a_missing_tensor(tmp_path, name):
    write_gguf(tmp_path / "m.gguf", "qwen2", drop=(name,))
    with pytest.raises(InputError, match=f"{name}' is missing"), open_gguf(tmp_path / "m.gguf"):
        pass


@pytest.mark.parametrize(
    "name", ["blk.0.ffn_gate_exps.weight", "blk.2.attn_q.weight", "extra", "blk.0.attn_norm.bias"]
)
def test_an_unknown_tensor(tmp_path, name):
    write_gguf(tmp_path / "m.gguf", extra={name: np.ones(32, np.float32)})
    with pytest.raises(InputError, match=f"{name}' is unknown"), open_gguf(tmp_path / "m.gguf"):
        pass


@pytest.mark.parametrize("key", ["block_count", "context_length", "attention.head_count"])
def test_missing_metadata(tmp_path, key):
    write_gguf(tmp_path / "m.gguf", drop=(f"llama.{key}",))
    with pytest.raises(InputError, match=f"the metadata lacks llama.{key}; expected a positive"):
        gguf_config(tmp_path / "m.gguf")


def test_a_quantisation_without_values(tmp_path):
    write_gguf(tmp_path / "m.gguf", extra={"output.weight": np.ones((8, 32), np.int8)})
    with (
        open_gguf(tmp_path / "m.gguf") as tensors,
        pytest.raises(InputError, match=r"'output.weight' is of the quantisation type I8"),
    ):
        tensors.read("lm_head.weight")


def test_every_shorter_file_is_refused(tiny, tmp_path):
    whole, path = tiny.read_bytes(), tmp_path / "cut.gguf"
    head = min(entry.offset for entry in read_header(tiny).tensors.values())
    # All lengths near the start, then strides through the metadata, then one a tensor.
    for length in {*range(80), *range(80, head, 97), *range(head, len(whole), 7000)}:
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"cut\.gguf"):
            read_header(path)


def test_a_false_number_of_layers_costs_no_memory(tiny, tmp_path):
    damaged = bytearray(tiny.read_bytes())
    key = b"llama.block_count"
    place = damaged.index(key) + len(key) + 4  # behind the type of the value
    damaged[place : place + 4] = struct.pack("<I", 300_000)
    path = tmp_path / "deep.gguf"
    path.write_bytes(damaged)
    tracemalloc.start()
    with (
        pytest.raises(InputError, match="is missing, of a model of 300000 layers"),
        open_gguf(path),
    ):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_head_is_read_or_refused(tiny, tmp_path, data):
    damaged = bytearray(tiny.read_bytes())
    head = min(entry.offset for entry in read_header(tiny).tensors.values())
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, head - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damaged)
    for read in (gguf_config, gguf_tokenizer, _read_all):
        try:
            read(path)
        except InputError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017


def _read_all(path):
    with open_gguf(path) as tensors:
        for name in tensors.shapes:
            tensors.read(name)


def test_other_files(tmp_path):
    path = tmp_path / "m.gguf"
    with pytest.raises(InputError, match="No such file"):
        read_header(path)
    for content, says in (
        (b"", "cannot be read"),
        (b"PK\x03\x04" + bytes(64), "expected a GGUF file"),
        (b"GGUF\x01\x00\x00\x00" + bytes(64), "version 1"),
        (b"GGUF\x00\x00\x00\x03" + bytes(64), "big-endian"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=says):
            read_header(path)
    write_gguf(path, drop=("tokenizer.ggml.merges",))
    with pytest.raises(InputError, match=r"lacks tokenizer\.ggml\.merges"):
        gguf_tokenizer(path)


def _cuts(tokenizer, text: str) -> list[str]:
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    return [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize(("pre", "other"), [("gpt-2", GPT2Tokenizer), ("qwen2", Qwen2Tokenizer)])
def test_cuts_and_merges_are_those_of_the_models_own_class(tmp_path, pre, other):
    write_gguf(tmp_path / "m.gguf", pre=pre)
    tokenizer = gguf_tokenizer(tmp_path / "m.gguf")
    merges = [tuple(merge.split()) for merge in MERGES]
    reference = other(vocab={token: i for i, token in enumerate(TOKENS)}, merges=merges)
    for text in varied_texts(400):
        assert _cuts(tokenizer, text) == _cuts(reference, text), repr(text)
        if "<" not in text:  # the reference does not know the special tokens
            assert tokenizer(text).input_ids == reference(text).input_ids, repr(text)


def test_llama3_cuts_and_whole_words(tmp_path):
    write_gguf(tmp_path / "m.gguf", pre="llama-bpe")
    tokenizer = gguf_tokenizer(tmp_path / "m.gguf")
    reference = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    for text in varied_texts(400):
        assert _cuts(tokenizer, text) == _cuts(reference, text), repr(text)
    # "hexe" is a token that no merge leads to.
    assert tokenizer("hexe").input_ids == [TOKENS.index("hexe")]
    write_gguf(tmp_path / "m.gguf", pre="gpt-2")
    assert len(gguf_tokenizer(tmp_path / "m.gguf")("hexe").input_ids) == 3


def test_smollm_cuts_digits_first(tiny):
    tokenizer = gguf_tokenizer(tiny)
    for text, ids in (
        (" 12", ["Ġ", "1", "2"]),
        ("  1", ["ĠĠ", "1"]),
        ("   1", ["ĠĠĠ", "1"]),
        ("\n\n 1", ["ĊĊĠ", "1"]),
        ("hello wo", ["hello", "Ġwo"]),
        ("   hello", ["ĠĠ", "Ġ", "hello"]),
    ):
        assert tokenizer.tokenize(text) == ids


def test_special_tokens_and_template(tiny):
    tokenizer = gguf_tokenizer(tiny)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, None)
    assert tokenizer.model_max_length == 96
    ids = tokenizer("<|im_start|>hello<think><|im_end|>").input_ids
    assert ids == [1, TOKENS.index("hello"), 3, 2]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hello<think>"
    assert tokenizer.chat_template == TEMPLATE
    shown = tokenizer.apply_chat_template(
        CONVERSATION[:1], tokenize=False, add_generation_prompt=True
    )
    expected = "<|im_start|>user\nTell me  of 12 things.<|im_end|>\n<|im_start|>assistant\n"
    assert shown == expected
    for text in varied_texts(300):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_frame_of_bos_and_eos(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, pre="llama-bpe", drop=("tokenizer.ggml.add_bos_token",))
    tokenizer, hello = gguf_tokenizer(path), TOKENS.index("hello")
    assert tokenizer("hello").input_ids == [1, hello]
    assert tokenizer("hello", add_special_tokens=False).input_ids == [hello]
    assert tokenizer("hello", "hello").input_ids == [1, hello, 1, hello]
    tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again("hello").input_ids == [1, hello]
    names = ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.bos_token_id")
    write_gguf(path, pre="llama-bpe", drop=names)
    with pytest.raises(InputError, match="add_bos_token is set, but"):
        gguf_tokenizer(path)


def test_other_tokenizers_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "m.gguf"
    write_gguf(path, pre="tekken")
    with pytest.raises(InputError, match="'tekken'; expected one of gpt-2"):
        gguf_tokenizer(path)
    monkeypatch.setattr("tiny_gguf.MERGES", ["h e", "he xx"])
    write_gguf(path)
    with pytest.raises(InputError, match="merges does not fit"):
        gguf_tokenizer(path)
    monkeypatch.setattr("tiny_gguf.MERGES", ["h e", "hell"])
    write_gguf(path)
    with pytest.raises(InputError, match="merges holds 'hell'; expected two tokens"):
        gguf_tokenizer(path)
    monkeypatch.setattr("tiny_gguf.TOKENS", [*TOKENS[:-1], TOKENS[7]])
    write_gguf(path)
    with pytest.raises(InputError, match="twice"):
        gguf_tokenizer(path)


def test_no_torch_is_needed(tiny):
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from jaxalign.models.gguf_config import gguf_config\n"
        "from jaxalign.models.gguf_tokenizer import gguf_tokenizer\n"
        "from jaxalign.models.weights.gguf import open_gguf\n"
        "path = Path(sys.argv[1])\n"
        "with open_gguf(path) as tensors:\n"
        "    total = sum(tensors.read(name).size for name in tensors.shapes)\n"
        "ids = gguf_tokenizer(path)('hello').input_ids\n"
        "print(total > 0, gguf_config(path)['model_type'], len(ids))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tiny)],
        env=os.environ | {"USE_TORCH": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "True llama 1\n", done.stderr


@pytest.mark.slow
def test_smollm2_tokens(smollm2):
    tokenizer = gguf_tokenizer(smollm2)
    reference = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    texts = varied_texts(2000)
    chat = {"tokenize": False, "add_generation_prompt": True}
    for start in range(3):
        shown = tokenizer.apply_chat_template(CONVERSATION[start:], **chat)
        assert shown == reference.apply_chat_template(CONVERSATION[start:], **chat)
        texts.append(shown)
    plain = [text for text in texts if not _shows_the_cut(text)]
    assert len(plain) >= 1000
    for text in plain:
        assert tokenizer(text).input_ids == reference(text).input_ids, repr(text)
    # transformers overlooks tokenizer.ggml.pre 'smollm'. llama.cpp and the model's own
    # tokenizer.json cut off each digit first.
    backend = reference.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)]
    )
    for text in texts:
        ids = tokenizer(text).input_ids
        assert ids == backend.encode(text).ids, repr(text)
        for skip in (False, True):
            shown = tokenizer.decode(ids, skip_special_tokens=skip)
            assert shown == reference.decode(ids, skip_special_tokens=skip)


def _shows_the_cut(text: str) -> bool:
    """Whether digits on their own can matter: behind two whitespaces, or beyond ASCII."""
    return bool(re.search(r"\s\s\d", text)) or any(c.isnumeric() and not c.isascii() for c in text)


@pytest.mark.slow
def test_smollm2_tensors(smollm2):
    config = gguf_config(smollm2)
    reference = AutoConfig.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    for name in ("hidden_size", "head_dim", "vocab_size", "num_key_value_heads", "eos_token_id"):
        assert config[name] == getattr(reference, name)
    model = AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    )
    _assert_same_tensors(smollm2, model)
