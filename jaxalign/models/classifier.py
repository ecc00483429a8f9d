"""Sequence classifiers and reward models: text, or prompt and answer, to logits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxalign.data.chat_template import render_chat
from jaxalign.data.messages import Conversation, as_messages
from jaxalign.errors import InputError
from jaxalign.models import encoder, families
from jaxalign.models.adapted import classifier_settings, open_weights, read_settings
from jaxalign.models.buckets import by_length, default_tokens, padded
from jaxalign.models.encoder import EncoderConfig, EncoderModule
from jaxalign.models.global_arrays import place_rows, row_parts, row_sharding, to_host
from jaxalign.models.heads import PooledHead, ValueHead, last_token
from jaxalign.models.hf_config import (
    JsonObject,
    first_architecture,
    optional_id,
    optional_text,
    size,
)
from jaxalign.models.language import load_tokenizer
from jaxalign.models.layers import check_layers
from jaxalign.models.params import Array, Params, leaf, subtree
from jaxalign.models.resolve import resolve
from jaxalign.models.tokenizer import TokenizedTexts, Tokenizer, check_tokens, warn_truncated
from jaxalign.models.weights.classifier import layout
from jaxalign.models.weights.layout import check_params
from jaxalign.models.weights.load import Shardings, abstract_params, load_params

Config = families.Config | EncoderConfig
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
        name: as given to the loader.
        sha256: of the weights.
    """

    config: Config
    params: Params = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)
    labels: tuple[str, ...]
    problem_type: str | None
    max_length: int
    pad_id: int | None
    name: str
    sha256: str

    def __post_init__(self) -> None:
        """Refuse parameters that are not those of the config and the labels."""
        if not isinstance(self.config, EncoderConfig):
            check_layers(self.config.unstacked, self.params)
        check_params(self.params, layout(self.config, len(self.labels)))


def load_classifier(
    name: str,
    dtype: str = "float32",
    shardings: Shardings | None = None,
    sha256: str | None = None,
) -> Classifier:
    """A sequence classifier of transformers: Llama, Mistral, Qwen2, Qwen3, GPT-2, BERT, DistilBERT.

    Args:
        name: a folder, a safetensors file or a name, as `resolve` takes it; also the folder of an
            adapter that TRL or peft trained for the task SEQ_CLS.
        dtype: of parameters and compute; the head computes in at least float32.
        shardings: from the tree of shapes to a tree of shardings alike; None for one device.
        sha256: what the weights must hash to.

    Raises:
        InputError: where the model cannot be found, is no such classifier, or is broken.
    """
    model = resolve(name, sha256)
    source = str(model.folder / "config.json")
    if model.weights[0].suffix == ".gguf":
        raise InputError(
            f"{model.weights[0]}: a GGUF file holds a language model; expected a classifier or a "
            "reward model: give its folder with config.json and safetensors."
        )
    settings = classifier_settings(read_settings(model), model)
    config, labels = read_config(settings, dtype, source)
    tokenizer, table = load_tokenizer(model.tokenizer_folder), layout(config, len(labels))
    places = None if shardings is None else shardings(abstract_params(table, dtype))
    pad_id = optional_id(settings, "pad_token_id", source)
    with open_weights(model, table, dtype) as tensors:
        params = load_params(tensors, table, dtype, places)
    return Classifier(
        config=config,
        params=params,
        tokenizer=tokenizer,
        labels=labels,
        problem_type=optional_text(settings, "problem_type", source),
        max_length=min(config.positions, int(tokenizer.model_max_length)),
        # The config that the classifier was trained with is not in the folder of an adapter.
        pad_id=tokenizer.pad_token_id if pad_id is None and model.adapters else pad_id,
        name=name,
        sha256=model.sha256,
    )


def read_config(
    settings: JsonObject, dtype: str = "float32", source: str = "config.json"
) -> tuple[Config, tuple[str, ...]]:
    """The trunk and the labels that a Hugging Face config describes.

    Args:
        settings: the parsed config.json.
        dtype: of the compute.
        source: what to call the config in messages.

    Raises:
        InputError: for another architecture, or a field that is missing or wrong.
    """
    architecture = first_architecture(settings) or "ForSequenceClassification"
    if not architecture.endswith("ForSequenceClassification"):
        raise InputError(
            f"{source}: architectures names {architecture!r}; expected a model "
            "...ForSequenceClassification: name a classifier or a reward model, or train one with "
            "`jaxalign reward train`."
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
    """Return the logits of texts, or of completions of prompts.

    Pairs, of which either part may be a `Conversation`, and lone conversations are written in the
    chat template if the tokenizer has one; otherwise they are texts, and the two of a pair are
    joined as the tokenizer joins pairs. Texts above the model's limit are truncated on the right,
    and a line on standard error says how many. Rows are sorted into batches by length.

    Args:
        classifier: from `load_classifier`.
        texts: N texts, or N pairs of prompt and completion.
        batch_tokens: tokens of one batch, padding included; None to suit the backend.

    Returns:
        [N, labels] float32 (float64 for a classifier in float64).

    Raises:
        InputError: the texts are no strings or pairs, one has no tokens, the model lacks a token,
            or logits are not finite.
    """
    if batch_tokens is not None and batch_tokens < 1:
        raise InputError(f"batch_tokens is {batch_tokens}; expected a positive whole number.")
    return classify_tokens(classifier, *tokenize(classifier, texts), batch_tokens)


def classify_tokens(
    classifier: Classifier,
    ids: Sequence[list[int]],
    types: Sequence[list[int]] | None = None,
    batch_tokens: int | None = None,
) -> np.ndarray:
    """Return the logits of texts that are tokens, as `classify` does.

    Args:
        classifier: from `load_classifier`.
        ids: N texts, of `tokenize`.
        types: N of `tokenize`; None for models that read none.
        batch_tokens: tokens of one batch, padding included; None to suit the backend.

    Returns:
        [N, labels] float32 (float64 for a classifier in float64).

    Raises:
        InputError: logits are not finite.
    """
    wide = np.promote_types(jnp.dtype(classifier.config.dtype), np.float32)
    result = np.empty((len(ids), len(classifier.labels)), wide)
    parts = row_parts(classifier.params)
    tokens = batch_tokens or parts * default_tokens(_ACCELERATOR_BATCH_TOKENS)
    for rows, shape in by_length([len(row) for row in ids], classifier.max_length, tokens):
        shape = -(-shape[0] // parts) * parts, shape[1]  # every device gets as many rows
        lengths = np.ones(shape[0], np.int32)  # an empty row is one token of number 0
        lengths[: len(rows)] = [len(ids[row]) for row in rows]
        batch = (
            padded([ids[row] for row in rows], shape),
            lengths,
            None if types is None else padded([types[row] for row in rows], shape),
        )
        logits = _forward(
            classifier.config,
            classifier.params,
            *place_rows(batch, classifier.params),
            rows=row_sharding(classifier.params),
        )
        result[rows] = np.asarray(to_host(logits), wide)[: len(rows)]
    if not np.isfinite(result).all():
        raise InputError(
            f"{classifier.name} in {classifier.config.dtype} gives logits that are not finite: "
            "load it with dtype float32, and if it is already, its weights are broken."
        )
    return result


def forward(
    config: Config,
    params: Params,
    tokens: Array | None,
    lengths: Array,
    types: Array | None = None,
    *,
    embeddings: Array | None = None,
    rows: NamedSharding | None = None,
) -> jax.Array:
    """Logits of a padded batch, as a pure function.

    Args:
        config: static.
        params: of the trunk, and `head` beside them.
        tokens: [B, T] int, padding on the right; or
        embeddings: [B, T, D] in their place.
        lengths: [B] int32, at least 1.
        types: [B, T] int, which of two texts a token belongs to, for BERT; None for 0.
        rows: where the rows lie, of `global_arrays.row_sharding`; static, None on one device.

    Returns:
        [B, labels], at least float32.
    """
    if rows is not None and tokens is not None:
        embeddings = _pinned_embeddings(config, params, tokens, rows)
        tokens = None
    # A reward must not depend on whether the backend rounds float32 products to TF32.
    with jax.default_matmul_precision("highest" if config.dtype == "float32" else "default"):
        if isinstance(config, EncoderConfig):
            inputs = tokens if embeddings is None else embeddings
            columns = 0 if inputs is None else inputs.shape[1]
            mask = jnp.arange(columns, dtype=jnp.int32)[None, :] < lengths[:, None]
            states = EncoderModule(config).apply(
                {"params": params}, tokens, mask, embeddings=embeddings, types=types
            )
            vectors = cast(jax.Array, states)[:, 0]
        else:
            hidden, _ = families.forward(config, params, tokens, lengths, embeddings=embeddings)
            vectors = last_token(hidden, lengths)
        head = subtree(params, "head")
        labels = leaf(head, *(("score", "kernel") if "score" in head else ("kernel",))).shape[-1]
        return cast(jax.Array, head_module(config, labels).apply({"params": head}, vectors))


_forward = jax.jit(forward, static_argnums=0, static_argnames="rows")


def _pinned_embeddings(
    config: Config, params: Params, tokens: Array, rows: NamedSharding
) -> jax.Array:
    """Embeddings [B, T, D], shared out by rows.

    Where parameters are cut, the compiler would else cut the states by width, and put the whole
    batch on every device.
    """
    name, part = ("embeddings", "word") if isinstance(config, EncoderConfig) else ("embed", "table")
    whole = NamedSharding(rows.mesh, PartitionSpec())
    table = jax.lax.with_sharding_constraint(leaf(params, name, part), whole)
    gathered = {**params, name: {**subtree(params, name), part: table}}
    tokens = jnp.asarray(tokens)
    if isinstance(config, EncoderConfig):
        found = encoder.embed(gathered, tokens)
    else:
        found = families.embed(config, gathered, tokens)
    return jax.lax.with_sharding_constraint(found, rows)


def head_module(config: Config, labels: int) -> ValueHead | PooledHead:
    """The Linen module of a classifier's head, as transformers has it for the trunk's family."""
    if isinstance(config, EncoderConfig):
        return PooledHead(labels, "tanh" if config.token_types else "relu")
    return ValueHead(labels, bias=False)


def _labels(settings: JsonObject, source: str) -> tuple[str, ...]:
    names = settings.get("id2label")
    if names is None:  # transformers leaves the field out where there are two
        return tuple(f"LABEL_{i}" for i in range(size(settings, "num_labels", source, 2)))
    try:
        if not isinstance(names, Mapping):
            raise TypeError(names)
        numbered = {int(number): str(label) for number, label in names.items()}
        return tuple(numbered[number] for number in range(len(numbered) or 1))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{source}: id2label is {names!r}; expected a name for each number from 0."
        ) from error


def tokenize(
    classifier: Classifier,
    texts: Sequence[str] | Sequence[tuple[str, str]],
    names: Sequence[str] | None = None,
) -> tuple[list[list[int]], list[list[int]] | None]:
    """Return the token ids of texts, and for pairs of texts in BERT their types.

    Args:
        classifier: from `load_classifier`.
        texts: as of `classify`.
        names: [N] what messages call each text; None for its number.

    Raises:
        InputError: as `classify`, before anything is computed.
    """
    paired = _check_texts(texts)
    if not texts:
        return [], None
    names = names or [f"texts[{number}]" for number in range(len(texts))]
    tokenizer = classifier.tokenizer
    encode = partial(tokenizer, truncation=True, max_length=classifier.max_length)
    if tokenizer.chat_template and (paired or all(isinstance(t, Conversation) for t in texts)):
        # The template writes the special tokens itself.
        chats = [
            (*as_messages(text[0], "user"), *as_messages(text[1], "assistant"))
            if isinstance(text, tuple)
            else as_messages(text, "user")
            for text in texts
        ]
        found = encode(
            [render_chat(tokenizer, *pair) for pair in zip(chats, names, strict=True)],
            add_special_tokens=False,
        )
    elif paired:
        found = encode(*(list(column) for column in zip(*texts, strict=True)))
    else:
        found = encode(list(map(str, texts)))
    warn_truncated(_count_truncated(found), len(texts), classifier.max_length, classifier.name)
    ids = found["input_ids"]
    for name, row in zip(names, ids, strict=True):
        if not isinstance(classifier.config, EncoderConfig):
            # transformers' decoders read the last token that is not padding.
            while len(row) > 1 and row[-1] == classifier.pad_id:
                row.pop()
        check_tokens(row, classifier.config.vocab_size, name, classifier.name)
    typed = isinstance(classifier.config, EncoderConfig) and classifier.config.token_types > 1
    return ids, found.get("token_type_ids") if typed else None


def _count_truncated(found: TokenizedTexts) -> int:
    return sum(bool(encoding.overflowing) for encoding in found.encodings or ())


def _check_texts(texts: Sequence[str] | Sequence[tuple[str, str]]) -> bool:
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
