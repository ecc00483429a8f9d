"""Questions, answers and histories as padded arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from jaxalign.data.chat_template import choose_template, render_chat
from jaxalign.data.columns import Origin
from jaxalign.data.completions import CompletionConfig, completions_from_columns
from jaxalign.data.histories import Histories
from jaxalign.data.sequences import Sequences, pad_flat
from jaxalign.errors import InputError
from jaxalign.models.chat import Chat, tokenize_prompt
from jaxalign.models.embed import Encoder, text_encodings
from jaxalign.models.encoder import EncoderConfig
from jaxalign.models.language import LanguageModel
from jaxalign.models.tokenizer import Tokenizer
from jaxalign.pplug.config import PersonaConfig, Place, TextConfig
from jaxalign.pplug.store import VectorStore, encode_with

Arrays = dict[str, np.ndarray]
_SMALLEST, _LARGEST = 16, 512  # buckets of histories; longer ones have multiples of the largest
_ANY_LENGTH = 2**30  # tokens of a row; both of its parts are cut by themselves
_READ = 65_536  # vectors of the store that are read together
_LINE = "\n"  # between a plain question and its answer


@dataclass(frozen=True, eq=False)
class PersonaInputs:
    """The inputs from which personas are computed, for N samples.

    Attributes:
        queries: Tokens of the questions as the input encoder reads them; None if the persona does
            not depend on the question.
        items: Rows in the store plus 1 of each sample's items, oldest first, and [N + 1] offsets
            of the samples in it; None if the persona does not depend on histories.
        store: Store of the items' vectors.
        positions: Most tokens that the input encoder reads.
        centre: [E] vector that is subtracted from the items' vectors, or None.
    """

    queries: Sequences | None
    items: tuple[np.ndarray, np.ndarray] | None
    store: VectorStore | None
    positions: int
    centre: np.ndarray | None = None

    @property
    def counts(self) -> np.ndarray:
        """[N] int64 number of items per sample; empty without histories."""
        return np.zeros(0, np.int64) if self.items is None else np.diff(self.items[1])

    def arrays(self, rows: np.ndarray, width: int, slots: int) -> Arrays:
        """Return the inputs of some samples as padded arrays.

        Args:
            rows: [B] samples, -1 for an empty row.
            width: Width that holds all of their queries; T is that, or less if no query at all is
                as long.
            slots: Padded number n of items.

        Returns:
            `queries` [B, T] int32 and `query_lengths` [B] int32; `items` [B, n, E] float16, float32
            if they are centred, and `mask` [B, n] bool; only those that the persona needs.
        """
        found: Arrays = {}
        if self.queries is not None:
            width = min(width, self.positions, int(self.queries.lengths.max()))
            found["queries"], found["query_lengths"] = self.queries.padded(rows, width)
        if self.items is not None and self.store is not None:
            places = pad_flat(*self.items, rows, slots)
            items = self.store.read(places - 1)
            if self.centre is not None:
                items = items.astype(np.float32) - self.centre
            found["items"], found["mask"] = items, places > 0
        return found


def prepare_persona_inputs(
    encoder: Encoder,
    persona: PersonaConfig,
    text: TextConfig,
    histories: Histories,
    store: VectorStore | None,
    progress: bool = False,
    centre: np.ndarray | None = None,
) -> PersonaInputs:
    """Tokenize the questions, and encode the items that are not in the store yet.

    Args:
        encoder: The history encoder.
        persona: Settings of the soft tokens, which decide what is needed.
        text: Which parts of questions and histories are read.
        histories: N samples.
        store: Store of the encoder's vectors; vectors of new items are added.
        progress: Show a bar on standard error if it takes more than a few seconds.
        centre: [E] vector to subtract from the items' vectors, or None.

    Raises:
        InputError: The encoder is not of the BERT family, or a store is needed and missing.
    """
    config = encoder_config(encoder)
    queries = items = None
    if persona.uses_input:
        texts = histories.query_texts(text.query_prefix)
        ids = [encoding.ids for encoding in text_encodings(encoder, texts)]
        queries = Sequences.of([_shortened(row, text.prompt_tokens) for row in ids])
    if persona.source == "history":
        if store is None:
            raise InputError("no history store is given, which personas of histories need.")
        items = _items(encoder, text, histories, store, progress)
    return PersonaInputs(queries, items, store, config.positions, centre)


def items_centre(inputs: PersonaInputs) -> np.ndarray:
    """Return the mean vector [E] float32 of all items, counted as often as samples hold them.

    Args:
        inputs: Inputs of the training samples, with items and a store.
    """
    if inputs.items is None or inputs.store is None or not len(inputs.items[0]):
        raise InputError(
            "persona.centre is true, and no training sample has a history, whose mean vector it "
            "needs; expected items: give histories, or set persona.centre to false."
        )
    rows, counts = np.unique(inputs.items[0] - 1, return_counts=True)
    total = np.zeros(inputs.store.width)
    for first in range(0, len(rows), _READ):  # a store may exceed the memory
        part = slice(first, first + _READ)
        total += counts[part] @ inputs.store.read(rows[part]).astype(np.float64)
    return (total / counts.sum()).astype(np.float32)


def encoder_config(encoder: Encoder) -> EncoderConfig:
    """Return the config of an encoder whose copy can be trained here.

    Raises:
        InputError: The encoder is not of the BERT family.
    """
    if not isinstance(encoder.config, EncoderConfig):
        raise InputError(
            f"{encoder.name} is a decoder; a persona plug needs an encoder of the BERT family, "
            "such as BAAI/bge-base-en-v1.5."
        )
    return encoder.config


def format_prompts(
    model: LanguageModel, text: TextConfig, questions: Sequence[str]
) -> list[str | Chat]:
    """Return questions as the language model reads them, with a persona or without.

    Args:
        model: The language model.
        text: Template and length limit.
        questions: N questions, such as the inputs of samples.

    Returns:
        N texts or chats for `jaxalign.models.chat.generate_texts`.

    Example:
        >>> from types import SimpleNamespace
        >>> from jaxalign.pplug import TextConfig, format_prompts
        >>> words = SimpleNamespace(
        ...     encode=lambda text, add_special_tokens: text.split(), decode=" ".join
        ... )
        >>> text = TextConfig(prompt_tokens=2, template="plain")
        >>> prompts = format_prompts(SimpleNamespace(tokenizer=words), text, ["red green blue"])
        >>> prompts[0].split()
        ['red', 'green']
    """
    short = [shorten(question, model.tokenizer, text.prompt_tokens) for question in questions]
    if choose_template(model.tokenizer, text.template):
        return [[{"role": "user", "content": question}] for question in short]
    return [question + _LINE for question in short]


def assistant_turn(model: LanguageModel, text: TextConfig) -> tuple[int, ...]:
    """Return the tokens that open the assistant's turn at the end of every prompt.

    They are empty for plain prompts, and for templates that write nothing before an answer.

    Args:
        model: The language model, whose tokenizer and template are used.
        text: The choice of the template.
    """
    if not choose_template(model.tokenizer, text.template):
        return ()
    turn: Chat = [{"role": "user", "content": "a"}]
    where = f"the chat template of {model.name}"
    closed = render_chat(model.tokenizer, turn, where)
    opened = render_chat(model.tokenizer, turn, where, answer_next=True)
    ids = [
        list(model.tokenizer([t], add_special_tokens=False)["input_ids"][0])
        for t in (closed, opened)
    ]
    same = opened.startswith(closed) and ids[1][: len(ids[0])] == ids[0]
    return tuple(ids[1][len(ids[0]) :]) if same else ()


def soft_starts(
    model: LanguageModel, text: TextConfig, prompts: Sequence[str | Chat], place: Place
) -> np.ndarray | None:
    """Return how many tokens of each prompt stand before its soft tokens.

    Args:
        model: The language model.
        text: The choice of the template.
        prompts: N prompts, as from `format_prompts`.
        place: Where the soft tokens stand, as in `PersonaConfig`.

    Returns:
        [N] int32 for `generate_texts`; None for soft tokens before the prompts.
    """
    if place == "before":
        return None
    turn = len(assistant_turn(model, text))
    lengths = [len(tokenize_prompt(model, prompt)) for prompt in prompts]
    return np.array([length - turn for length in lengths], np.int32)


def padded_length(counts: np.ndarray) -> int:
    """Return the padded number of items n of histories with `counts` items.

    Buckets are powers of 2 from 16 to 512, then multiples of 512, so that few programs are
    compiled.

    Example:
        >>> import numpy as np
        >>> from jaxalign.pplug.rows import padded_length
        >>> [padded_length(np.array([count])) for count in (3, 17, 513)]
        [16, 32, 1024]
    """
    most = int(counts.max(initial=1))
    if most > _LARGEST:
        return -(-most // _LARGEST) * _LARGEST
    return max(_SMALLEST, 1 << (most - 1).bit_length())


def tokenize_samples(
    model: LanguageModel, text: TextConfig, histories: Histories, questions: Sequence[str]
) -> tuple[Sequences, Sequences]:
    """Return the prompts and the right answers of all samples as the language model reads them.

    Args:
        model: The language model, whose tokenizer and template are used.
        text: Template and length limits.
        histories: N samples with outputs.
        questions: N questions, such as the samples' own inputs.

    Returns:
        The tokens of the N prompts, and those of the N answers with their stop token.

    Raises:
        InputError: An output is missing or empty, or a prompt has no tokens.
    """
    if len(questions) != len(histories):
        raise InputError(
            f"found {len(questions)} prompts for {len(histories)} samples; expected one for each."
        )
    short = [shorten(question, model.tokenizer, text.prompt_tokens) for question in questions]
    chat = choose_template(model.tokenizer, text.template)
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
    prompts, answers = [], []
    for first, last in pairwise(starts.tolist()):
        begin = first + int(np.argmax(found.learned[first:last]))
        prompts.append(tokens[first:begin].tolist())
        answers.append(tokens[begin : min(last, begin + text.answer_tokens)].tolist())
    return Sequences.of(prompts), Sequences.of(answers)


def shorten(text: str, tokenizer: Tokenizer, limit: int) -> str:
    """Return a text without its end if it has more than `limit` tokens."""
    tokens = tokenizer.encode(text, add_special_tokens=False)
    return text if len(tokens) <= limit else tokenizer.decode(tokens[:limit]).rstrip("\ufffd")


def _items(
    encoder: Encoder, text: TextConfig, histories: Histories, store: VectorStore, progress: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return `PersonaInputs.items` of the newest items of each sample."""
    kept = [sample.profile[-text.max_items :] for sample in histories.samples]
    used = sorted({place for profile in kept for place in profile})
    texts = histories.item_texts(text.labels, text.item) if used else []
    rows = np.full(len(histories.items), -1, np.int64)
    rows[used] = store.add([texts[place] for place in used], encode_with(encoder), progress)
    starts = np.cumsum([0, *(len(profile) for profile in kept)], dtype=np.int64)
    places = np.fromiter((p for profile in kept for p in profile), np.int64, int(starts[-1]))
    return rows[places] + 1, starts


def _shortened(ids: Sequence[int], most: int) -> list[int]:
    """Return the ids of a text without its end, the last special token kept."""
    return list(ids) if len(ids) <= most else [*ids[: most - 1], ids[-1]]
