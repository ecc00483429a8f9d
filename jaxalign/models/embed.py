"""Texts to vectors: an encoder with its tokenizer, each distinct text encoded once and kept.

An encoder is one of the BERT family, or the trunk of a decoder, a reward model's for instance: its
vector is the state of the last token, and it reads a `Conversation` in its own chat template.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxalign.data.chat_template import render_chat
from jaxalign.data.messages import Conversation
from jaxalign.errors import InputError
from jaxalign.files import cache_folder, expand_user
from jaxalign.models import encoder as bert
from jaxalign.models import families
from jaxalign.models.adapted import classifier_settings, open_weights, read_settings
from jaxalign.models.buckets import by_length, default_tokens, padded
from jaxalign.models.classifier import Classifier, load_classifier
from jaxalign.models.embed_cache import EmbeddingCache, text_key
from jaxalign.models.encoder import POOLINGS, EncoderConfig, Pooling
from jaxalign.models.encoder_files import load_pooling, load_tokenizer
from jaxalign.models.hf_config import JsonObject, first_architecture, read_config_json, size
from jaxalign.models.language import LanguageModel, load_language_model
from jaxalign.models.params import Params
from jaxalign.models.resolve import resolve
from jaxalign.models.tokenizer import Tokenizer, check_text, check_tokens, warn_truncated
from jaxalign.models.weights import encoder as weights
from jaxalign.models.weights.load import load_params
from jaxalign.progress import track

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers import Tokenizer as RustTokenizer

_ACCELERATOR_BATCH_TOKENS = 65_536
_FEW = 32  # texts of a call, such as answers to rank, that have shapes of their own


@dataclass(frozen=True, eq=False)
class Encoder:
    """A loaded encoder; made by `load_encoder`.

    Attributes:
        config: sizes and dtype; a decoder's where the encoder is one.
        params: nested dict of arrays, layers stacked.
        tokenizer: a `tokenizers.Tokenizer` that truncates to `max_length`; a decoder's is the
            tokenizer of transformers.
        pooling: the model's own choice, the default of `encode`.
        normalise: likewise, whether vectors have length 1.
        max_length: tokens of a text, special tokens included.
        name: as given to the loader.
        sha256: of the weights.
        identity: hash of all that a vector depends on besides the text, pooling and normalise.
    """

    config: EncoderConfig | families.Config
    params: Params = field(repr=False)
    tokenizer: "RustTokenizer | Tokenizer" = field(repr=False)
    pooling: Pooling
    normalise: bool
    max_length: int
    name: str
    sha256: str
    identity: str


@dataclass(frozen=True)
class EncodeStats:
    """What one call did, over distinct texts.

    Attributes:
        encoded: texts that went through the encoder.
        cached: texts that were on disk.
        truncated: of the encoded, those longer than the encoder's limit.
    """

    encoded: int
    cached: int
    truncated: int


def load_encoder(name: str, dtype: DTypeLike = "float32", sha256: str | None = None) -> Encoder:
    """An encoder of the BERT family or the trunk of a decoder, ready for `encode`.

    Args:
        name: a folder, a safetensors file or a name, as `resolve` takes it.
        dtype: of parameters and compute: float32, bfloat16, float16 or (with x64 on) float64.
        sha256: what the weights must hash to.

    Raises:
        InputError: where the model cannot be found, is of no family here, or is broken.
    """
    dtype = _checked_dtype(dtype)
    model = resolve(name, sha256)
    source = model.folder / "config.json"
    gguf = model.weights[0].suffix == ".gguf"
    found = classifier_settings(read_settings(model), model)
    if gguf or found.get("model_type") in (*families.FAMILIES, "gpt2"):
        return _load_trunk(name, dtype, sha256, found)
    config = EncoderConfig.from_hf(found, dtype, str(source))
    pooling, normalise = load_pooling(model.folder)
    source = model.folder / "sentence_bert_config.json"
    settings = read_config_json(source, required=False)
    limit = min(size(settings, "max_seq_length", str(source), config.positions), config.positions)
    tokenizer = load_tokenizer(model.tokenizer_folder, limit, bool(settings.get("do_lower_case")))
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise InputError(
            f"{model.folder}: the tokenizer has {tokenizer.get_vocab_size()} entries, the encoder "
            f"{config.vocab_size}: check that the two belong together."
        )
    parts = [asdict(config), model.sha256, tokenizer.to_str()]
    identity = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    table = weights.layout(config)
    with open_weights(model, table, dtype) as tensors:
        params = load_params(tensors, table, dtype)
    return Encoder(
        config, params, tokenizer, pooling, normalise, limit, name, model.sha256, identity
    )


def _load_trunk(name: str, dtype: str, sha256: str | None, settings: JsonObject) -> Encoder:
    """The trunk of a causal language model, or of a reward model, whose head is left aside."""
    scored = first_architecture(settings).endswith("ForSequenceClassification")
    model: Classifier | LanguageModel
    if scored:
        model = load_classifier(name, dtype, sha256=sha256)
    else:  # one pass over each text: nothing would repay what unstacked layers take to compile
        model = load_language_model(name, dtype, sha256=sha256, unstack_layers=False)
    tokenizer, config = model.tokenizer, model.config
    serialised = tokenizer.backend_tokenizer.to_str()
    parts = [asdict(config), model.sha256, serialised, tokenizer.chat_template]
    identity = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    limit = min(config.positions, int(tokenizer.model_max_length))
    return Encoder(
        config, model.params, tokenizer, "last", False, limit, name, model.sha256, identity
    )


def encode(
    encoder: Encoder,
    texts: Sequence[str],
    pooling: Pooling | None = None,
    normalise: bool | None = None,
    cache_dir: str | Path | None = None,
    batch_tokens: int | None = None,
    progress: bool = True,
) -> np.ndarray:
    """One vector a text; a text seen before, in this call or on disk, is not encoded again.

    Args:
        encoder: from `load_encoder`.
        texts: N texts; longer ones than the encoder's limit are truncated, which is said once. A
            decoder reads a `Conversation` in its chat template, where it has one.
        pooling: `mean`, `cls` or `last`; None for the model's own.
        normalise: whether vectors have length 1; None for the model's own.
        cache_dir: folder of kept vectors; None for `embeddings` in jaxalign's cache. Batches
            that were finished before an interrupt are kept.
        batch_tokens: tokens of one batch, padding included; None to suit the backend.
        progress: show a bar on stderr when it takes more than a few seconds.

    Returns:
        [N, E] float32.

    Raises:
        InputError: for another pooling, a text that is no valid string, a cache that cannot be
            used, or vectors that are not finite (none of that batch is kept).
    """
    options = (pooling, normalise, cache_dir, batch_tokens, progress)
    return encode_with_stats(encoder, texts, *options)[0]


def encode_with_stats(
    encoder: Encoder,
    texts: Sequence[str],
    pooling: Pooling | None = None,
    normalise: bool | None = None,
    cache_dir: str | Path | None = None,
    batch_tokens: int | None = None,
    progress: bool = True,
) -> tuple[np.ndarray, EncodeStats]:
    """`encode`, and the counts of what it did."""
    pooling = encoder.pooling if pooling is None else pooling
    normalise = encoder.normalise if normalise is None else bool(normalise)
    _check_arguments(texts, pooling, batch_tokens)
    settings = json.dumps([encoder.identity, pooling, normalise])
    read = [_as_read(encoder, text) for text in texts]
    keys = [text_key(text, f"{settings} chat" if chat else settings) for text, chat in read]
    distinct = dict(zip(keys, read, strict=True))
    folder = expand_user(cache_dir) if cache_dir else cache_folder() / "embeddings"
    with closing(EmbeddingCache(folder)) as cache:
        vectors = cache.read(list(distinct), encoder.config.width)
        absent = [key for key in distinct if key not in vectors]
        ids, truncated = _tokenize(encoder, [distinct[key] for key in absent])
        for rows, done in _batches(encoder, ids, pooling, normalise, batch_tokens, progress):
            batch_keys = [absent[row] for row in rows]
            cache.write(batch_keys, done)
            vectors.update(zip(batch_keys, done, strict=True))
    result = np.empty((len(keys), encoder.config.width), np.float32)
    for row, key in enumerate(keys):
        result[row] = vectors[key]
    return result, EncodeStats(len(absent), len(distinct) - len(absent), truncated)


def encode_unkept(
    encoder: Encoder, texts: Sequence[str], progress: bool = True, pooling: Pooling | None = None
) -> np.ndarray:
    """What `encode` gives, for a caller who keeps the vectors or needs them once.

    Nothing is looked up or kept, and a text that comes twice is encoded twice.

    Args:
        encoder, texts, progress, pooling: as in `encode`.

    Returns:
        [N, E] float32.

    Raises:
        InputError: as in `encode`.
    """
    pooling = encoder.pooling if pooling is None else pooling
    _check_arguments(texts, pooling, None)
    ids, _ = _tokenize(encoder, [_as_read(encoder, text) for text in texts])
    result = np.empty((len(ids), encoder.config.width), np.float32)
    options = (pooling, encoder.normalise, None, progress)
    for rows, done in _batches(encoder, ids, *options):
        result[rows] = done
    return result


def _batches(
    encoder: Encoder,
    ids: Sequence[Sequence[int]],
    pooling: Pooling,
    normalise: bool,
    batch_tokens: int | None,
    progress: bool,
) -> Iterator[tuple[Sequence[int], np.ndarray]]:
    """Encodes rows of similar length together: their numbers [n], and their vectors [n, E]."""
    tokens = batch_tokens or default_tokens(_ACCELERATOR_BATCH_TOKENS)
    lengths = [len(row) for row in ids]
    batches = list(by_length(lengths, encoder.max_length, tokens, len(ids) <= _FEW))
    run = partial(_forward, encoder.config, pooling, normalise)
    for rows, shape in track(
        "encoding texts", batches, len(ids), lambda batch: len(batch[0]), progress
    ):
        done = _run(run, encoder.params, [ids[row] for row in rows], shape)
        if not np.isfinite(done).all():
            raise InputError(
                f"{encoder.name} in {encoder.config.dtype} gives vectors that are not finite: "
                "load it with dtype float32, and if it is already, its weights are broken."
            )
        yield rows, done


def forward(
    config: EncoderConfig | families.Config,
    pooling: Pooling,
    normalise: bool,
    params: Params,
    tokens: jax.Array,
    mask: jax.Array,
) -> jax.Array:
    """Vectors of a padded batch, as a pure function.

    Args:
        config, pooling, normalise: static.
        params: of the encoder.
        tokens: [B, T] int.
        mask: [B, T], nonzero where there is a token.

    Returns:
        [B, E], at least float32.
    """
    # A cached vector must not depend on whether the backend rounds float32 products to TF32.
    with jax.default_matmul_precision("highest" if config.dtype == "float32" else "default"):
        if isinstance(config, EncoderConfig):
            states = bert.EncoderModule(config).apply({"params": params}, tokens, mask)
            hidden = cast(jax.Array, states)
        else:
            lengths = jnp.sum(mask.astype(jnp.int32), axis=1)
            hidden, _ = families.forward(config, params, tokens, lengths)
        vectors = bert.pool(hidden, mask, pooling)
        return bert.normalise(vectors) if normalise else vectors


_forward = jax.jit(forward, static_argnums=(0, 1, 2))


def _run(
    run: Callable[..., jax.Array],
    params: Params,
    ids: Sequence[Sequence[int]],
    shape: tuple[int, int],
) -> np.ndarray:
    """Pads a batch [n, lengths] to its shape (B, T), runs it and drops the padding: [n, E]."""
    lengths = np.zeros(shape[0], np.int32)
    lengths[: len(ids)] = [len(values) for values in ids]
    mask = np.arange(shape[1])[None, :] < lengths[:, None]
    vectors = run(params, jnp.asarray(padded(ids, shape)), jnp.asarray(mask))
    return np.asarray(vectors, dtype=np.float32)[: len(ids)]


def _as_read(encoder: Encoder, text: str) -> tuple[str, bool]:
    """What the tokenizer is given, and whether that is a filled-in chat template."""
    if isinstance(encoder.config, EncoderConfig) or not isinstance(text, Conversation):
        return text, False
    tokenizer = cast(Tokenizer, encoder.tokenizer)
    if not tokenizer.chat_template:
        return text, False
    return render_chat(tokenizer, text.messages, f"the text {text[:40]!r}"), True


def _tokenize(encoder: Encoder, texts: Sequence[tuple[str, bool]]) -> tuple[list[list[int]], int]:
    """Token ids of what `_as_read` gave, and how many texts were truncated."""
    if isinstance(encoder.config, EncoderConfig):
        encodings = text_encodings(encoder, [text for text, _ in texts])
        truncated = sum(bool(encoding.overflowing) for encoding in encodings)
        ids = [encoding.ids for encoding in encodings]
    else:
        ids, truncated = _decoder_ids(encoder, texts)
    warn_truncated(truncated, len(texts), encoder.max_length, encoder.name)
    return ids, truncated


def text_encodings(encoder: Encoder, texts: Sequence[str]) -> "list[Encoding]":
    """Return the encodings of texts by the tokenizer of an encoder of the BERT family.

    Args:
        encoder: from `load_encoder`; not the trunk of a decoder.
        texts: N texts.

    Returns:
        N encodings, with `ids` of at most `encoder.max_length` tokens.
    """
    return cast("RustTokenizer", encoder.tokenizer).encode_batch(list(texts))


def _decoder_ids(
    encoder: Encoder, texts: Sequence[tuple[str, bool]]
) -> tuple[list[list[int]], int]:
    tokenizer, ids, truncated = cast(Tokenizer, encoder.tokenizer), [], 0
    for text, chat in texts:
        # The template writes the special tokens itself.
        row = tokenizer(text, add_special_tokens=not chat)["input_ids"]
        truncated += len(row) > encoder.max_length
        ids.append(row[: encoder.max_length])
        check_tokens(row, encoder.config.vocab_size, f"the text {text[:40]!r}", encoder.name)
    return ids, truncated


def _check_arguments(texts: Sequence[str], pooling: str, batch_tokens: int | None) -> None:
    if pooling not in POOLINGS:
        raise InputError(f"pooling is {pooling!r}; expected one of {', '.join(POOLINGS)}.")
    if batch_tokens is not None and batch_tokens < 1:
        raise InputError(f"batch_tokens is {batch_tokens}; expected a positive whole number.")
    if isinstance(texts, str):
        raise InputError("texts is one string; expected a list of them.")
    for row, text in enumerate(texts):
        check_text(text, f"texts[{row}]")


def _checked_dtype(dtype: DTypeLike) -> str:
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise InputError(f"dtype is {dtype!r}; expected float32, bfloat16, float16 or float64.")
    return found.name
