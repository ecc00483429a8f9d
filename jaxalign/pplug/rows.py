"""Questions, answers and histories as padded arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from jaxalign.data.completions import CompletionConfig, completions_from_columns, is_chat
from jaxalign.data.files import Origin
from jaxalign.data.histories import Histories
from jaxalign.data.sequences import Sequences, pad_flat
from jaxalign.errors import InputError
from jaxalign.models.embed import Encoder
from jaxalign.models.encoder import EncoderConfig
from jaxalign.models.language import LanguageModel
from jaxalign.pplug.config import PersonaConfig, TextConfig
from jaxalign.pplug.store import HistoryStore, encoding

Arrays = dict[str, np.ndarray]
_SMALLEST, _LARGEST = 16, 512  # buckets of histories; longer ones have multiples of the largest
_ANY_LENGTH = 2**30  # tokens of a row; both of its parts are cut by themselves
_LINE = "\n"  # between a plain question and its answer


@dataclass(frozen=True, eq=False)
class Told:
    """What personas are made of, for N samples.

    Attributes:
        queries: tokens of the inputs as the input encoder reads them; None where it reads none.
        items: rows in the store plus 1 of each sample's items, the oldest first, and where each
            sample's begin, [N + 1]; None where histories are not looked at.
        store: where the items' vectors are.
        positions: the most tokens that the input encoder reads.
    """

    queries: Sequences | None
    items: tuple[np.ndarray, np.ndarray] | None
    store: HistoryStore | None
    positions: int

    @property
    def counts(self) -> np.ndarray:
        """[N] int64 items of each history that are looked at; empty without histories."""
        return np.zeros(0, np.int64) if self.items is None else np.diff(self.items[1])

    def arrays(self, rows: np.ndarray, width: int, slots: int) -> Arrays:
        """Some samples as arrays.

        Args:
            rows: [B] samples, -1 for none.
            width: that holds every one of their queries; T is that, or less where no query at all
                is as long.
            slots: n, of items.

        Returns:
            `queries` [B, T] int32 and `query_lengths` [B] int32; `items` [B, n, E] float16 and
            `mask` [B, n] bool; those that the persona needs.
        """
        found: Arrays = {}
        if self.queries is not None:
            width = min(width, self.positions, enough(self.queries))
            found["queries"], found["query_lengths"] = self.queries.padded(rows, width)
        if self.items is not None and self.store is not None:
            places = pad_flat(*self.items, rows, slots)
            found["items"], found["mask"] = self.store.read(places - 1), places > 0
        return found


def told(
    encoder: Encoder,
    persona: PersonaConfig,
    text: TextConfig,
    histories: Histories,
    store: HistoryStore | None,
    progress: bool = False,
) -> Told:
    """Tokenises the inputs and encodes those items that are not in the store yet.

    Raises:
        InputError: an encoder that is not of the BERT family, or no store where there has to be
            one.
    """
    check_encoder(encoder)
    queries = items = None
    if persona.asks:
        ids = [
            encoding.ids
            for encoding in encoder.tokenizer.encode_batch(histories.query_texts(text.query_prefix))
        ]
        queries = Sequences.of([_shortened(row, text.prompt_tokens) for row in ids])
    if persona.source == "history":
        if store is None:
            raise InputError("no history store is given, which personas of histories need.")
        items = _items(encoder, text, histories, store, progress)
    return Told(queries, items, store, encoder.config.positions)


def check_encoder(encoder: Encoder) -> None:
    """Refuses encoders whose copy cannot be trained here."""
    if not isinstance(encoder.config, EncoderConfig):
        raise InputError(
            f"{encoder.name} is a decoder; a persona plug needs an encoder of the BERT family, "
            "such as BAAI/bge-base-en-v1.5."
        )


def prompts(model: LanguageModel, text: TextConfig, questions: Sequence[str]) -> list[Any]:
    """Questions as the language model is asked them, with a persona or without.

    Args:
        model: who is asked.
        text: how.
        questions: N of them, such as the inputs of samples.

    Returns:
        N texts or chats, as `models.chat.generate_texts` takes them.
    """
    chat = is_chat(model.tokenizer, text.template)
    short = [_cut(question, model.tokenizer, text.prompt_tokens) for question in questions]
    if chat:
        return [[{"role": "user", "content": question}] for question in short]
    return [question + _LINE for question in short]


def enough(sequences: Sequences) -> int:
    """A width that holds each of some sequences."""
    return -(-int(sequences.lengths.max()) // 8) * 8  # what matrix units like


def slots_of(counts: np.ndarray) -> int:
    """n, the padded length of histories whose lengths are `counts`."""
    most = int(counts.max(initial=1))
    if most > _LARGEST:
        return -(-most // _LARGEST) * _LARGEST
    return max(_SMALLEST, 1 << (most - 1).bit_length())


def learned(
    model: LanguageModel, text: TextConfig, histories: Histories, questions: Sequence[str]
) -> tuple[Sequences, Sequences]:
    """Prompts and answers of all samples as the language model reads them.

    Args:
        model: whose tokenizer and template count.
        text: limits.
        histories: N samples with outputs.
        questions: N texts to ask in place of the samples' own inputs, or these.

    Raises:
        InputError: an output is missing or empty.
    """
    if len(questions) != len(histories):
        raise InputError(
            f"found {len(questions)} prompts for {len(histories)} samples; expected one for each."
        )
    short = [_cut(question, model.tokenizer, text.prompt_tokens) for question in questions]
    chat = is_chat(model.tokenizer, text.template)
    found = completions_from_columns(
        {
            "prompt": short if chat else [question + _LINE for question in short],
            "completion": list(histories.outputs),
        },
        model.tokenizer,
        CompletionConfig(_ANY_LENGTH, template=text.template),
        Origin(histories.source),
    )
    if found.dropped:
        raise InputError(
            f"{histories.source}: {found.dropped} prompts have no tokens for {model.name}, with "
            "which answers cannot begin; write some text."
        )
    starts, tokens = found.sequences.starts, found.sequences.tokens
    asked, said = [], []
    for first, last in pairwise(starts.tolist()):
        begin = first + int(np.argmax(found.learned[first:last]))
        asked.append(tokens[first:begin].tolist())
        said.append(tokens[begin : min(last, begin + text.answer_tokens)].tolist())
    return Sequences.of(asked), Sequences.of(said)


def _items(
    encoder: Encoder,
    text: TextConfig,
    histories: Histories,
    store: HistoryStore,
    progress: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """`Told.items` of the newest items of each sample."""
    kept = [sample.profile[-text.max_items :] for sample in histories.samples]
    used = sorted({place for profile in kept for place in profile})
    texts = histories.item_texts(text.labels) if used else []
    rows = np.full(len(histories.items), -1, np.int64)
    rows[used] = store.add([texts[place] for place in used], encoding(encoder), progress)
    starts = np.cumsum([0, *(len(profile) for profile in kept)], dtype=np.int64)
    places = np.fromiter((p for profile in kept for p in profile), np.int64, int(starts[-1]))
    return rows[places] + 1, starts


def _cut(text: str, tokenizer: Any, most: int) -> str:
    """A text without its end, where it has more tokens than `most`."""
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    return text if len(tokens) <= most else str(tokenizer.decode(tokens[:most])).rstrip("\ufffd")


def _shortened(ids: Sequence[int], most: int) -> list[int]:
    """Ids of a text without its end, the last special token kept."""
    return list(ids) if len(ids) <= most else [*ids[: most - 1], ids[-1]]
