"""The tokenizer of SentencePiece that GGUF files of Llama 2, Mistral and TinyLlama carry."""

from typing import TYPE_CHECKING, cast

from jaxalign.errors import InputError
from jaxalign.models.weights.gguf_header import Header

if TYPE_CHECKING:
    import tokenizers

_NORMAL = 1
_SPACE = "\u2581"


def sentencepiece_backend(
    header: Header, tokens: list[str], types: list[int], unknown: str
) -> "tokenizers.Tokenizer":
    """Byte-pair encoding with the merges in the order of the scores of what they make.

    Characters outside the vocabulary become their bytes, where it has these.

    Args:
        header: of the GGUF file.
        tokens: [V] the vocabulary.
        types: [V] of llama.cpp: normal, unknown, control, user defined, unused, byte.
        unknown: token of what even bytes cannot express.

    Raises:
        InputError: the file has no score for each token.

    Source: llama.cpp, src/llama-vocab.cpp (llm_tokenizer_spm); transformers, generate_merges.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = _scores(header, len(tokens))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    parts = {token for token, kind in zip(tokens, types, strict=True) if kind == _NORMAL}
    merges = [
        (-scores[vocabulary[token]], len(token[:cut]), vocabulary[token], token[:cut], token[cut:])
        for token in parts
        for cut in range(1, len(token))
        if token[:cut] in parts and token[cut:] in parts
    ]
    ordered = [(first, second) for *_, first, second in sorted(merges)]
    model = models.BPE(
        vocabulary, ordered, unk_token=unknown, fuse_unk=True, byte_fallback="<0x00>" in vocabulary
    )
    backend = Tokenizer(model)
    prefixed = header.fields.get("tokenizer.ggml.add_space_prefix", True)
    before = [normalizers.Prepend(_SPACE)] if prefixed else []
    backend.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", _SPACE)])
    behind = [decoders.Strip(" ", 1, 0)] if prefixed else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *behind]
    )
    return backend


def _scores(header: Header, count: int) -> list[float]:
    scores = header.fields.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != count:
        raise InputError(
            f"{header.path}: tokenizer.ggml.scores does not hold a number for each of the {count} "
            "tokens: convert or download the model again."
        )
    return [float(cast(float, score)) for score in scores]
