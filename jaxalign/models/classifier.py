"""Sequence classifiers and reward models: text, or prompt and answer, to logits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import InputError
from jaxalign.models import families
from jaxalign.models.buckets import by_length, default_tokens, padded
from jaxalign.models.decoder_config import size
from jaxalign.models.encoder import EncoderConfig, EncoderModule
from jaxalign.models.encoder_files import read_json
from jaxalign.models.heads import PooledHead, ValueHead, last_token
from jaxalign.models.language import check_tokens, load_tokenizer
from jaxalign.models.resolve import resolve
from jaxalign.models.weights.classifier import layout
from jaxalign.models.weights.load import abstract_params, load_params
from jaxalign.models.weights.safetensors import open_tensors

Config = families.Config | EncoderConfig
Tree = dict[str, Any]
_ACCELERATOR_BATCH_TOKENS = 32_768


@dataclass(frozen=True, eq=False)
class Classifier:
    """A loaded sequence classifier; made by `load_classifier`.

    Attributes:
        config: of the trunk; a decoder's counts as tied, since it has no unembedding.
        params: of the trunk, and `head` beside them.
        tokenizer: of transformers.
        labels: names of the logits, in order.
        problem_type: regression, single_label_classification, multi_label_classification or, where
            the model does not say, None.
        max_length: tokens of a text, special tokens included.
        pad_id: token that ends no text; None for none.
        name: as it was asked for.
        sha256: of the weights.
    """

    config: Config
    params: Tree = field(repr=False)
    tokenizer: Any = field(repr=False)
    labels: tuple[str, ...]
    problem_type: str | None
    max_length: int
    pad_id: int | None
    name: str
    sha256: str


def load_classifier(
    name: str,
    dtype: str = "float32",
    shardings: Callable[[Tree], Tree] | None = None,
    sha256: str | None = None,
) -> Classifier:
    """A sequence classifier of transformers: Llama, Mistral, Qwen2, Qwen3, GPT-2, BERT, DistilBERT.

    Args:
        name: a folder, a safetensors file or a name, as `resolve` takes it.
        dtype: of parameters and compute; the head computes in at least float32.
        shardings: from the tree of shapes to a tree of shardings alike; None for one device.
        sha256: what the weights must hash to.

    Raises:
        InputError: where the model cannot be found, is no such classifier, or is broken.
    """
    model = resolve(name, sha256)
    source = str(model.folder / "config.json")
    settings = read_json(model.folder / "config.json", required=True)
    config, labels = read_config(settings, dtype, source)
    tokenizer, table = load_tokenizer(model.folder), layout(config, len(labels))
    places = None if shardings is None else shardings(abstract_params(table, dtype))
    with open_tensors(model.weights) as tensors:
        params = load_params(tensors, table, dtype, places)
    return Classifier(
        config=config,
        params=params,
        tokenizer=tokenizer,
        labels=labels,
        problem_type=settings.get("problem_type"),
        max_length=min(config.positions, int(tokenizer.model_max_length)),
        pad_id=settings.get("pad_token_id"),
        name=name,
        sha256=model.sha256,
    )


def read_config(
    settings: Mapping[str, Any], dtype: str = "float32", source: str = "config.json"
) -> tuple[Config, tuple[str, ...]]:
    """The trunk and the labels that a Hugging Face config describes.

    Args:
        settings: the parsed config.json.
        dtype: of the compute.
        source: what to call the config in messages.

    Raises:
        InputError: for another architecture, or a field that is missing or wrong.
    """
    architectures = settings.get("architectures") or ["ForSequenceClassification"]
    if not str(architectures[0]).endswith("ForSequenceClassification"):
        raise InputError(
            f"{source}: architectures names {architectures[0]!r}; expected a model "
            "...ForSequenceClassification: choose a classifier or a reward model."
        )
    labels = _labels(settings, source)
    if settings.get("model_type") in ("bert", "distilbert"):
        return EncoderConfig.from_hf(settings, dtype, source), labels
    return replace(families.config_from_hf(settings, dtype, source), tied=True), labels


def classify(
    classifier: Classifier,
    texts: Sequence[str] | Sequence[tuple[str, str]],
    batch_tokens: int | None = None,
) -> np.ndarray:
    """Logits of texts, or of answers to prompts.

    A pair becomes a conversation where the tokenizer has a chat template; else its two texts
    follow each other as the tokenizer joins them. Longer ones than the model's limit are truncated
    on the right, which is said once. Rows are sorted into batches by length.

    Args:
        classifier: from `load_classifier`.
        texts: N texts, or N pairs of prompt and answer.
        batch_tokens: tokens of one batch, padding included; None to suit the backend.

    Returns:
        [N, labels] float32 (float64 for a classifier in float64).

    Raises:
        InputError: for texts that are no strings or pairs, one without tokens, a token that the
            model lacks, or logits that are not finite.
    """
    if batch_tokens is not None and batch_tokens < 1:
        raise InputError(f"batch_tokens is {batch_tokens}; expected a positive whole number.")
    ids, types = tokenize(classifier, texts)
    wide = np.promote_types(jnp.dtype(classifier.config.dtype), np.float32)
    result = np.empty((len(ids), len(classifier.labels)), wide)
    tokens = batch_tokens or default_tokens(_ACCELERATOR_BATCH_TOKENS)
    for rows, shape in by_length([len(row) for row in ids], classifier.max_length, tokens):
        lengths = np.ones(shape[0], np.int32)  # an empty row is one token of number 0
        lengths[: len(rows)] = [len(ids[row]) for row in rows]
        logits = _forward(
            classifier.config,
            classifier.params,
            padded([ids[row] for row in rows], shape),
            lengths,
            None if types is None else padded([types[row] for row in rows], shape),
        )
        result[rows] = np.asarray(logits, wide)[: len(rows)]
    if not np.isfinite(result).all():
        raise InputError(
            f"{classifier.name} in {classifier.config.dtype} gives logits that are not finite: "
            "load it with dtype float32, and if it is already, its weights are broken."
        )
    return result


def forward(
    config: Config,
    params: Mapping[str, Any],
    tokens: jax.Array | None,
    lengths: jax.Array,
    types: jax.Array | None = None,
    *,
    embeddings: jax.Array | None = None,
) -> jax.Array:
    """Logits of a padded batch, as a pure function.

    Args:
        config: static.
        params: of the trunk, and `head` beside them.
        tokens: [B, T] int, padding on the right; or
        embeddings: [B, T, D] in their place.
        lengths: [B] int32, at least 1.
        types: [B, T] int, which of two texts a token belongs to, for BERT; None for 0.

    Returns:
        [B, labels], at least float32.
    """
    # A reward must not depend on whether the backend rounds float32 products to TF32.
    with jax.default_matmul_precision("highest" if config.dtype == "float32" else "default"):
        states: Any
        if isinstance(config, EncoderConfig):
            inputs: Any = tokens if embeddings is None else embeddings
            mask = jnp.arange(inputs.shape[1], dtype=jnp.int32)[None, :] < lengths[:, None]
            states = EncoderModule(config).apply(
                {"params": params}, tokens, mask, embeddings=embeddings, types=types
            )
            vectors = states[:, 0]
        else:
            states, _ = families.forward(config, params, tokens, lengths, embeddings=embeddings)
            vectors = last_token(states, lengths)
        head = params["head"]
        labels = head.get("score", head)["kernel"].shape[-1]
        logits: Any = head_module(config, labels).apply({"params": head}, vectors)
        return logits


_forward = jax.jit(forward, static_argnums=0)


def head_module(config: Config, labels: int) -> ValueHead | PooledHead:
    """The Linen module of a classifier's head, as transformers has it for the trunk's family."""
    if isinstance(config, EncoderConfig):
        return PooledHead(labels, "tanh" if config.token_types else "relu")
    return ValueHead(labels, bias=False)


def _labels(settings: Mapping[str, Any], source: str) -> tuple[str, ...]:
    names = settings.get("id2label")
    if names is None:  # transformers leaves the field out where there are two
        return tuple(f"LABEL_{i}" for i in range(size(settings, "num_labels", source, 2)))
    try:
        numbered = {int(number): str(label) for number, label in names.items()}
        return tuple(numbered[number] for number in range(len(numbered) or 1))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{source}: id2label is {names!r}; expected a name for each number from 0."
        ) from error


def tokenize(
    classifier: Classifier, texts: Sequence[str] | Sequence[tuple[str, str]]
) -> tuple[list[list[int]], list[list[int]] | None]:
    """Token ids, and for a pair of texts in BERT their types."""
    paired = _check_texts(texts)
    if not texts:
        return [], None
    tokenizer, columns, special = classifier.tokenizer, [list(texts)], True
    if paired:
        columns = [list(column) for column in zip(*texts, strict=True)]
        if tokenizer.chat_template:
            # The template writes the special tokens itself.
            columns, special = [[_conversation(tokenizer, *pair) for pair in texts]], False
    limit = {"truncation": True, "max_length": classifier.max_length}
    found = tokenizer(*columns, add_special_tokens=special, padding=False, **limit)
    _say_truncated(classifier, found)
    ids = found["input_ids"]
    for number, row in enumerate(ids):
        if not isinstance(classifier.config, EncoderConfig):
            # transformers' decoders read the last token that is not padding.
            while len(row) > 1 and row[-1] == classifier.pad_id:
                row.pop()
        check_tokens(row, classifier.config.vocab_size, f"texts[{number}]", classifier.name)
    typed = isinstance(classifier.config, EncoderConfig) and classifier.config.token_types > 1
    return ids, found.get("token_type_ids") if typed else None


def _conversation(tokenizer: Any, prompt: str, answer: str) -> str:
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return tokenizer.apply_chat_template(turns, tokenize=False)


def _say_truncated(classifier: Classifier, found: Any) -> None:
    truncated = sum(bool(encoding.overflowing) for encoding in found.encodings or ())
    if truncated:
        from rich.console import Console

        Console(stderr=True).print(
            f"{truncated} of {len(found['input_ids'])} texts were longer than "
            f"{classifier.max_length} tokens, the limit of {classifier.name}, and were truncated.",
            highlight=False,
        )


def _check_texts(texts: Sequence[Any]) -> bool:
    """Whether they are pairs."""
    if isinstance(texts, str):
        raise InputError("texts is one string; expected a list of them.")
    paired = len(texts) > 0 and not isinstance(texts[0], str)
    for number, item in enumerate(texts):
        parts = item if paired else (item,)
        right = isinstance(parts, list | tuple) and len(parts) == 1 + paired
        if not right or not all(isinstance(part, str) for part in parts):
            raise InputError(
                f"texts[{number}] is {item!r:.80}; expected "
                f"{'a pair of prompt and answer, as the first is' if paired else 'a string'}."
            )
    return paired
