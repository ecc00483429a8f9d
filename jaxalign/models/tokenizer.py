"""What models need of a tokenizer of transformers, and checks of what goes in and comes out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from jaxalign.errors import InputError
from jaxalign.progress import stderr_console


class TokenizedTexts(Protocol):
    """Token ids of texts, such as a `transformers.BatchEncoding`."""

    @property
    def encodings(self) -> Sequence["EncodedText"] | None:
        """One entry per text, from the Rust library underneath."""

    def __getitem__(self, key: str, /) -> list:
        """`input_ids`: ids [n] of one text, or a list of them."""

    def get(self, key: str, /) -> list | None:
        """Another entry, such as `token_type_ids`."""


class EncodedText(Protocol):
    """One text of `TokenizedTexts`."""

    @property
    def overflowing(self) -> Sequence[object]:
        """What truncation cut off."""


class Tokenizer(Protocol):
    """The part of `transformers.PreTrainedTokenizerBase` that is used here."""

    bos_token_id: int | None
    eos_token: str | None
    eos_token_id: int | None
    pad_token: str | None
    pad_token_id: int | None
    chat_template: str | dict[str, str] | None
    model_max_length: int

    @property
    def backend_tokenizer(self) -> "SerialisedTokenizer":
        """The tokenizer of the Rust library underneath."""

    def __len__(self) -> int:
        """Return the number of entries, added tokens included."""

    def __call__(
        self,
        text: str | list[str],
        text_pair: str | list[str] | None = None,
        *,
        add_special_tokens: bool = True,
        truncation: bool = False,
        max_length: int | None = None,
    ) -> TokenizedTexts:
        """Return the token ids of one text or of many."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of one text."""

    def decode(
        self,
        token_ids: Sequence[int],
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """Return the text of token ids."""

    def apply_chat_template(
        self,
        conversation: list[dict[str, str]],
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
    ) -> str:
        """Return a conversation as one text."""

    def get_added_vocab(self) -> dict[str, int]:
        """Return the ids of tokens that were added to the vocabulary."""

    def save_pretrained(self, save_directory: str | Path) -> object:
        """Write the files of the tokenizer into a folder."""


class SerialisedTokenizer(Protocol):
    """The part of `tokenizers.Tokenizer` that identifies a tokenizer."""

    def to_str(self) -> str:
        """Return the tokenizer as JSON."""


def check_text(text: object, name: str) -> None:
    """Refuse what is not a text that can be encoded.

    Args:
        text: a string of valid Unicode.
        name: what to call it in messages.

    Raises:
        InputError: it is something else, or holds half of a surrogate pair.
    """
    if not isinstance(text, str):
        raise InputError(f"{name} is {type(text).__name__}; expected a string.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name} is not valid Unicode ({error.reason} at character {error.start}): read the "
            "file it came from as UTF-8."
        ) from error


def check_tokens(ids: Sequence[int], vocabulary: int, text: str, model: str) -> None:
    """Refuse a text that a model cannot read.

    Args:
        ids: token ids of the text.
        vocabulary: number of tokens of the model.
        text: what to call the text in messages.
        model: what to call the model in messages.

    Raises:
        InputError: the text has no tokens, or one outside the vocabulary.

    Example:
        >>> from jaxalign.models.tokenizer import check_tokens
        >>> check_tokens([1, 9], 8, "the prompt", "a tiny model")
        Traceback (most recent call last):
        jaxalign.errors.InputError: the prompt has token 9, but a tiny model only 8: ...
    """
    if not ids:
        raise InputError(f"{text} has no tokens; expected some text.")
    if max(ids) >= vocabulary:
        raise InputError(
            f"{text} has token {max(ids)}, but {model} only {vocabulary}: check that model and "
            "tokenizer belong together."
        )


def warn_truncated(truncated: int, total: int, limit: int, model: str) -> None:
    """Print one line on standard error if texts were truncated.

    Args:
        truncated: number of truncated texts.
        total: number of all texts.
        limit: longest text that the model reads, tokens.
        model: what to call the model.
    """
    if truncated:
        stderr_console().print(
            f"{truncated} of {total} texts were longer than {limit} tokens, the limit of {model}, "
            "and were truncated."
        )
