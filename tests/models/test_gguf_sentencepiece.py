"""SentencePiece tokenizers in GGUF files, against llama.cpp's algorithm and transformers."""

from itertools import pairwise

import numpy as np
import pytest
import tiny_lms
import transformers
from tiny_gguf import varied_texts, write_gguf
from transformers.tokenization_utils_base import generate_merges

from jaxalign.errors import InputError
from jaxalign.models import load_language_model, save_language_model
from jaxalign.models.gguf_tokenizer import gguf_tokenizer

NORMAL, UNKNOWN, CONTROL, DEFINED, BYTE = 1, 2, 3, 4, 6
SPACE = "\u2581"


def made_pieces():
    """Of a model such as Llama 2: what is longer was merged later, and has a lower score."""
    pieces = {"<unk>": (0.0, UNKNOWN), "<s>": (0.0, CONTROL), "</s>": (0.0, CONTROL)}
    pieces |= {f"<0x{byte:02X}>": (0.0, BYTE) for byte in range(256)}
    pieces["<user>"] = (0.0, DEFINED)
    letters = [SPACE, *"ehlowé世"]
    words = ["he", "ll", "llo", "hello", f"{SPACE}w", f"{SPACE}he", SPACE * 2]
    order = np.random.default_rng(4).permutation(len(words))
    # Merges come before letters, in an order in which what is made of two may come first.
    pieces |= {words[index]: (-float(rank), NORMAL) for rank, index in enumerate(order)}
    pieces |= {letter: (-100.0 - rank, NORMAL) for rank, letter in enumerate(letters)}
    return pieces


PIECES = made_pieces()


def by_scores(text):
    """llama.cpp's llm_tokenizer_spm: the pair with the best score is joined, the leftmost first."""
    names = list(PIECES)
    symbols = list(SPACE + text.replace(" ", SPACE)) if text else []
    while True:
        pairs = [
            (-PIECES[a + b][0], place)
            for place, (a, b) in enumerate(pairwise(symbols))
            if PIECES.get(a + b, (0, 0))[1] == NORMAL
        ]
        if not pairs:
            break
        place = min(pairs)[1]
        symbols[place : place + 2] = ["".join(symbols[place : place + 2])]
    found = []
    for symbol in symbols:
        whole = PIECES.get(symbol, (0, 0))[1] == NORMAL
        parts = [symbol] if whole else [f"<0x{byte:02X}>" for byte in symbol.encode()]
        found += [names.index(part) for part in parts]
    return found


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    place = tmp_path_factory.mktemp("spm") / "m.gguf"
    write_gguf(place, pieces=PIECES)
    return place


def test_ids_are_those_of_llama_cpp(path):
    tokenizer = gguf_tokenizer(path)
    texts = [text for text in varied_texts(300) if "<" not in text]
    texts += ["hello world", " hello  hellohello", "to 12.12 on", "世é\n"]
    for text in texts:
        ids = tokenizer(text).input_ids
        assert ids == [1, *by_scores(text)], repr(text)
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    ids = tokenizer("a</s>b<user>").input_ids
    assert (2 in ids, 259 in ids) == (True, True)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == (
        "<s>", "</s>", "<unk>",
    )  # fmt: skip


def test_ids_are_those_of_transformers(path):
    """As its class of Llama 2 reads the same vocabulary; before a space that adds no second one."""
    vocabulary = {token: number for number, token in enumerate(PIECES)}
    scores = {token: score for token, (score, kind) in PIECES.items() if kind == NORMAL}
    parts = {token: vocabulary[token] for token in scores}
    merges = generate_merges(parts, scores)
    reference = transformers.LlamaTokenizer(vocab=vocabulary, merges=merges)
    tokenizer = gguf_tokenizer(path)
    for text in varied_texts(300):
        if "<" not in text and not text.startswith((" ", SPACE)):
            expected = reference(text, add_special_tokens=False).input_ids
            found = tokenizer(text, add_special_tokens=False).input_ids
            assert found == expected, repr(text)


def test_a_model_with_it_loads_and_is_written(path, tmp_path):
    model = load_language_model(str(path))
    save_language_model(tmp_path / "out", model)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("hello world", "  12 é🎉"):
        assert again(text).input_ids == model.tokenizer(text).input_ids


def test_what_it_lacks_is_named(tmp_path):
    write_gguf(tmp_path / "m.gguf", pieces=PIECES, drop=("tokenizer.ggml.scores",))
    with pytest.raises(InputError, match=r"tokenizer\.ggml\.scores does not hold a number for"):
        gguf_tokenizer(tmp_path / "m.gguf")


@pytest.mark.parametrize("whole", [True, False])
def test_a_tokenizer_beside_a_file_is_read_in_place_of_one_that_is_not(whole, tmp_path):
    write_gguf(tmp_path / "m.gguf", pre="tekken")
    with pytest.raises(InputError, match=r"'tekken'.*put the model's own tokenizer\.json beside"):
        load_language_model(str(tmp_path / "m.gguf"))
    tiny_lms.tokenizer().save_pretrained(tmp_path)
    if not whole:
        for path in tmp_path.glob("*.j*"):
            if path.name != "tokenizer.json":
                path.unlink()
    for name in (tmp_path, tmp_path / "m.gguf"):
        tokenizer = load_language_model(str(name)).tokenizer
        assert tokenizer("the thing").input_ids == tiny_lms.tokenizer()("the thing").input_ids
    write_gguf(tmp_path / "m.gguf")  # its own can be read
    tokenizer = load_language_model(str(tmp_path)).tokenizer
    assert tokenizer("the thing").input_ids != tiny_lms.tokenizer()("the thing").input_ids
