"""The tokenizer and the chat template that a GGUF file carries."""

from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

from jaxalign.errors import InputError
from jaxalign.models.gguf_sentencepiece import sentencepiece_backend
from jaxalign.models.tokenizer import Tokenizer
from jaxalign.models.weights.gguf_header import Header, read_header

if TYPE_CHECKING:
    import tokenizers
    from tokenizers.pre_tokenizers import PreTokenizer

_CONTROL, _USER_DEFINED = 3, 4
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_SPM = "llama"  # as llama.cpp calls SentencePiece
_IDS = {"bos": 1, "eos": 2, "unk": 0}  # of SentencePiece, where the file is silent
_BESIDE = "put the model's own tokenizer.json beside the file, which is then read in its place"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
# By tokenizer.ggml.pre: how the text is cut before the merges.
_GPT2 = ("gpt-2", "default")
_SMOLLM = ("smollm",)
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
_QWEN2 = ("qwen2", "deepseek-r1-qwen")


class _Options(TypedDict, total=False):
    """Settings of a tokenizer that a file may leave out."""

    bos_token: str
    eos_token: str
    unk_token: str
    pad_token: str
    model_max_length: int
    chat_template: str


def gguf_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a GGUF file, without torch.

    Args:
        path: the .gguf file.

    Returns:
        A `transformers.PreTrainedTokenizerFast` with the special tokens, the rule about a leading
        bos token and the chat template of the file.

    Raises:
        InputError: for a file that is not whole or has no tokenizer, and for tokenizers other than
            SentencePiece's and the byte-level BPE of GPT-2, SmolLM, Llama 3 and Qwen2.

    Source: llama.cpp, src/llama-vocab.cpp (cuts by `tokenizer.ggml.pre`), and the tokenizer.json
    of those models.
    """
    from transformers import PreTrainedTokenizerFast

    header = read_header(path)
    kind = header.text("tokenizer.ggml.model")
    tokens = header.texts("tokenizer.ggml.tokens")
    types = _token_types(header, len(tokens))
    special = {
        f"{name}_token": _special(header, key, tokens, _IDS.get(name) if kind == _SPM else None)
        for name, key in _SPECIAL.items()
    }
    if len(set(tokens)) != len(tokens):
        twice = next(token for index, token in enumerate(tokens) if token in tokens[:index])
        raise InputError(f"{path}: tokenizer.ggml.tokens holds {twice!r} twice.")
    if kind == _SPM:
        backend = sentencepiece_backend(header, tokens, types, special["unk_token"] or tokens[0])
    elif kind == "gpt2":
        backend = _backend(header, tokens)
    else:
        raise InputError(
            f"{path}: tokenizer.ggml.model is {kind!r}; expected 'gpt2' (byte-level BPE) or "
            f"'{_SPM}' (SentencePiece): {_BESIDE}."
        )
    _add_tokens(backend, tokens, types)
    _frame(header, backend, special)
    named = {name: token for name, token in special.items() if token is not None}
    options = cast(_Options, named)
    length = header.fields.get(f"{header.text('general.architecture')}.context_length")
    if isinstance(length, int):
        options["model_max_length"] = length
    if "tokenizer.chat_template" in header.fields:
        options["chat_template"] = header.text("tokenizer.chat_template")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **options
    )
    return cast(Tokenizer, tokenizer)


def reads_tokenizer(path: Path) -> bool:
    """Whether the tokenizer in a GGUF file is of a kind that `gguf_tokenizer` builds."""
    fields = read_header(path).fields
    known = fields.get("tokenizer.ggml.pre", "default") in _GPT2 + _SMOLLM + _LLAMA3 + _QWEN2
    kind = fields.get("tokenizer.ggml.model")
    return kind == _SPM or (kind == "gpt2" and known)


def _backend(header: Header, tokens: list[str]) -> "tokenizers.Tokenizer":
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    pre = header.fields.get("tokenizer.ggml.pre", "default")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = _merges(header)
    try:
        # Llama 3 takes a whole word of the vocabulary as it is, whatever the merges say.
        model = models.BPE(vocabulary, merges, ignore_merges=pre in _LLAMA3)
    except Exception as error:  # the library raises plain Exception
        raise InputError(
            f"{header.path}: tokenizer.ggml.merges does not fit the tokens ({error}): "
            "convert or download the model again."
        ) from error
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Sequence(_cuts(header.path, pre))
    backend.decoder = decoders.ByteLevel()
    if pre in _QWEN2:
        backend.normalizer = normalizers.NFC()
    return backend


def _add_tokens(backend: "tokenizers.Tokenizer", tokens: list[str], types: list[int]) -> None:
    """Let the tokens of control and those defined by users stand whole, whatever is around them."""
    from tokenizers import AddedToken

    added = [
        AddedToken(token, normalized=False, special=kind == _CONTROL)
        for token, kind in zip(tokens, types, strict=True)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    backend.add_tokens(added)


def _merges(header: Header) -> list[tuple[str, str]]:
    pairs = []
    for merge in header.texts("tokenizer.ggml.merges"):
        first, space, second = merge.partition(" ")
        if not (first and space and second) or " " in second:
            raise InputError(
                f"{header.path}: tokenizer.ggml.merges holds {merge!r}; expected two tokens with "
                "a space between them."
            )
        pairs.append((first, second))
    return pairs


def _cuts(path: Path, pre: object) -> "list[PreTokenizer]":
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Split

    if pre in _GPT2:
        return [ByteLevel(add_prefix_space=False)]
    if pre in _SMOLLM:
        return [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    if pre not in _LLAMA3 + _QWEN2:
        expected = ", ".join(_GPT2 + _SMOLLM + _LLAMA3 + _QWEN2)
        raise InputError(
            f"{path}: tokenizer.ggml.pre is {pre!r}; expected one of {expected}: {_BESIDE}."
        )
    digits = r"\p{N}{1,3}" if pre in _LLAMA3 else r"\p{N}"
    pattern = Regex("|".join((_CONTRACTIONS, _WORDS, digits, _REST)))
    return [Split(pattern, "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]


def _token_types(header: Header, count: int) -> list[int]:
    types = header.fields.get("tokenizer.ggml.token_type", [1] * count)
    if not isinstance(types, list) or len(types) != count:
        raise InputError(
            f"{header.path}: tokenizer.ggml.token_type does not name a type for each of the "
            f"{count} tokens: convert or download the model again."
        )
    return [cast(int, kind) for kind in types]


def _frame(header: Header, backend: "tokenizers.Tokenizer", special: dict[str, str | None]) -> None:
    """The post-processor: bos before and eos behind a text, where the file wants them."""
    from tokenizers import processors

    # Without a word in the file, llama.cpp gives Llama 2 and 3 their bos and the others none.
    default = header.fields.get("tokenizer.ggml.pre") in _LLAMA3 or (
        header.fields.get("tokenizer.ggml.model") == _SPM
    )
    wanted = {
        "bos_token": header.fields.get("tokenizer.ggml.add_bos_token", default),
        "eos_token": header.fields.get("tokenizer.ggml.add_eos_token", False),
    }
    marks = {name: special[name] for name, on in wanted.items() if on}
    known = {name: token for name, token in marks.items() if token is not None}
    missing = marks.keys() - known.keys()
    if missing:
        raise InputError(
            f"{header.path}: tokenizer.ggml.add_{min(missing)} is set, but the file names no such "
            "token: convert or download the model again."
        )
    trim = processors.ByteLevel(trim_offsets=False)
    if not known:
        backend.post_processor = trim
        return
    before = [known["bos_token"]] if "bos_token" in known else []
    behind = [known["eos_token"]] if "eos_token" in known else []
    backend.post_processor = processors.Sequence(
        [
            trim,
            processors.TemplateProcessing(
                single=[*before, "$A", *behind],
                pair=[*before, "$A", *behind, *[f"{t}:1" for t in before], "$B:1"]
                + [f"{token}:1" for token in behind],
                special_tokens=[
                    (token, backend.token_to_id(token)) for token in {*before, *behind}
                ],
            ),
        ]
    )


def _special(
    header: Header, name: str, tokens: list[str], default: int | None = None
) -> str | None:
    key = f"tokenizer.ggml.{name}_token_id"
    index = header.fields.get(key, default)
    if index is None:
        return None
    if not isinstance(index, int) or not 0 <= index < len(tokens):
        raise InputError(
            f"{header.path}: {key} is {index!r}; expected one of the {len(tokens)} tokens."
        )
    return tokens[index]
