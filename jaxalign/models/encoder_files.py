"""What an encoder's folder says besides weights: its tokenizer and its pooling."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

from jaxalign.errors import InputError
from jaxalign.models.encoder import POOLINGS, Pooling
from jaxalign.models.hf_config import read_config_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_POOLING_FIELDS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}


def load_tokenizer(folder: Path, max_length: int, lower: bool = False) -> "Tokenizer":
    """A `tokenizers.Tokenizer` that truncates to a length and does not pad.

    Args:
        folder: holds tokenizer.json, or BERT's vocab.txt (tokenizer_config.json beside it is read).
        max_length: tokens of a text, special tokens included.
        lower: lower the case before the tokenizer's own rules.

    Raises:
        InputError: where there is no tokenizer, or it cannot be read.
    """
    from tokenizers import Tokenizer, normalizers

    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise InputError(f"{path}: not a tokenizer ({error}): download it again.") from error
    else:
        tokenizer = _from_vocabulary(folder)
    if lower:
        own = [tokenizer.normalizer] if tokenizer.normalizer is not None else []
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return tokenizer


def _from_vocabulary(folder: Path) -> "Tokenizer":
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    path = folder / "vocab.txt"
    if not path.is_file():
        raise InputError(f"{folder}: found no tokenizer; expected tokenizer.json or vocab.txt.")
    words = path.read_text("utf-8").split("\n")
    vocabulary = {word.rstrip("\r"): index for index, word in enumerate(words) if word}
    for special in ("[UNK]", "[CLS]", "[SEP]"):
        if special not in vocabulary:
            raise InputError(f"{path}: {special} is missing; expected a vocabulary of BERT.")
    settings = read_config_json(folder / "tokenizer_config.json", required=False)
    strip = settings.get("strip_accents")
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
        strip_accents=None if strip is None else bool(strip),
        lowercase=bool(settings.get("do_lower_case", True)),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    marks = [(mark, vocabulary[mark]) for mark in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, marks)
    return tokenizer


def load_pooling(folder: Path) -> tuple[Pooling, bool]:
    """Pooling and normalise from the files of sentence-transformers; else mean and length 1.

    Args:
        folder: may hold modules.json and the pooling module's config.json.

    Raises:
        InputError: for a module or a pooling that is not supported.
    """
    source = folder / "modules.json"
    modules = _read_modules(source)
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    unknown = set(kinds) - {"Transformer", "Pooling", "Normalize"}
    if unknown:
        raise InputError(
            f"{source}: module {min(unknown)} is not supported; expected Transformer, Pooling and "
            "Normalize only."
        )
    place = modules[kinds.index("Pooling")].get("path") if "Pooling" in kinds else None
    source = folder / str(place or "1_Pooling") / "config.json"
    config = read_config_json(source, required=place is not None)
    normalise = "Normalize" in kinds if modules else True
    if not config:
        return "mean", normalise
    on = [name for name, value in config.items() if name.startswith("pooling_mode_") and value]
    named = [_POOLING_FIELDS.get(name, name) for name in on] or [str(config.get("pooling_mode"))]
    if len(named) > 1 or named[0] not in POOLINGS:
        raise InputError(
            f"{source}: pooling {', '.join(named)} is not supported; expected one of "
            f"{', '.join(POOLINGS)}."
        )
    return cast(Pooling, named[0]), normalise


def _read_modules(path: Path) -> list[dict[str, object]]:
    """The modules of an encoder of sentence-transformers; empty where the file is missing."""
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: is not JSON ({error}): download the model again.") from error
    if not isinstance(content, list) or not all(isinstance(module, dict) for module in content):
        raise InputError(f"{path}: expected a JSON list of modules: download the model again.")
    return content
