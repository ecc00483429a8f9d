"""Retrieval as LaMP does it: a user's items that resemble the question, written into the prompt."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from jaxalign.data import lamp
from jaxalign.data.histories import Histories
from jaxalign.errors import InputError
from jaxalign.models.embed import Encoder, encode_unkept
from jaxalign.models.language import LanguageModel
from jaxalign.pplug.config import TextConfig
from jaxalign.pplug.rows import Tokenizer, shorten
from jaxalign.pplug.store import HistoryStore, encode_with

Places = tuple[int, ...]
Retriever = Literal["bm25", "encoder"]

_QUESTION_SHARE = 0.6  # of a prompt's tokens, which a long question keeps at first


def retrieve_items(
    histories: Histories,
    retriever: Retriever,
    count: int,
    text: TextConfig,
    encoder: Encoder,
    store: HistoryStore,
    progress: bool = False,
) -> tuple[Places, ...]:
    """Return the items of each sample's own history that are closest to its question.

    Args:
        histories: N samples.
        retriever: `bm25` matches words, `encoder` compares vectors.
        count: Largest number of items per sample.
        text: Which parts of items and questions the encoder reads.
        encoder: The history encoder.
        store: Store of the encoder's vectors; vectors of new items are added.
        progress: Show bars on standard error if it takes more than a few seconds.

    Returns:
        Places in `histories.items` for each of the N samples, best first.
    """
    if retriever == "bm25":
        return rank_by_bm25(histories, count)
    used = sorted({place for sample in histories.samples for place in sample.profile})
    texts = histories.item_texts(text.labels, text.item)
    rows = np.full(len(texts), -1, np.int64)
    rows[used] = store.add([texts[place] for place in used], encode_with(encoder), progress)
    queries = encode_unkept(encoder, histories.query_texts(text.query_prefix), progress)
    return rank_by_cosine(histories, queries, lambda own: store.read(rows[own]), count)


def build_questions(
    histories: Histories, chosen: Sequence[Places] | None, text: TextConfig, model: LanguageModel
) -> list[str]:
    """Return the question of each sample, with the items chosen for it in front.

    Args:
        histories: N samples.
        chosen: Places in `histories.items` for each sample, best first, as from
            `retrieve_items`; None for the plain inputs.
        text: Length limit of a question, `text.prompt_tokens`.
        model: The language model, whose tokenizer counts.
    """
    if chosen is None:
        return [sample.input for sample in histories.samples]
    return [
        prompt_with_items(
            histories.rules,
            sample.input,
            [histories.items[place].fields for place in places],
            model.tokenizer,
            text.prompt_tokens,
        )
        for sample, places in zip(histories.samples, chosen, strict=True)
    ]


def bm25(query: str, texts: Sequence[str]) -> NDArray[np.float64]:
    """Return how well each text matches a query, by BM25 with rank_bm25's k1 = 1.5 and b = 0.75.

    Words are separated by white space, as in LaMP's code.

    Args:
        query: The words to search for.
        texts: n texts.

    Returns:
        [n] float64 scores, larger is better; zeros if no text has a word.

    Source: Robertson and Zaragoza 2009; LaMP-Benchmark/LaMP @ 38c9d4d.

    Example:
        >>> from jaxalign.pplug.retrieval import bm25
        >>> bm25("storm", ["a storm at sea", "the vote", "a match"]).argmax()
        np.int64(0)
    """
    words = [text.split() for text in texts]
    if not any(words):
        return np.zeros(len(texts))
    from rank_bm25 import BM25Okapi  # only this baseline needs it

    return np.asarray(BM25Okapi(words).get_scores(query.split()), np.float64)


def rank_by_bm25(histories: Histories, count: int) -> tuple[Places, ...]:
    """Return the items of each sample's own history that match its question best.

    Args:
        histories: N samples.
        count: Largest number of items per sample.

    Returns:
        Places in `histories.items` for each sample, best first; of equal ones the latest first.

    Raises:
        InputError: `count` is below 1.
    """
    texts = histories.item_texts()
    found = []
    for sample in histories.samples:
        query = lamp.retrieval_query(histories.rules, sample.input)
        scores = bm25(query, [texts[place] for place in sample.profile])
        found.append(_best(scores, sample.profile, count))
    return tuple(found)


def rank_by_cosine(
    histories: Histories,
    queries: np.ndarray,
    read_items: Callable[[NDArray[np.int64]], np.ndarray],
    count: int,
) -> tuple[Places, ...]:
    """Return the items of each sample's own history with the greatest cosine to its question.

    Args:
        histories: N samples.
        queries: [N, E] vectors of `histories.query_texts()`.
        read_items: From places in `histories.items` [n] to the vectors [n, E] of these items. It is
            called for one history at a time, so that the vectors may exceed the memory.
        count: Largest number of items per sample.

    Returns:
        As `rank_by_bm25`.

    Raises:
        InputError: The shapes do not fit, or `count` is below 1.
    """
    if len(queries) != len(histories):
        raise InputError(
            f"vectors of questions: found {len(queries)}, expected {len(histories)}, one for each "
            "sample."
        )
    found = []
    for sample, query in zip(histories.samples, queries, strict=True):
        own = np.asarray(read_items(np.array(sample.profile, np.int64)), np.float64)
        if own.shape != (len(sample.profile), *query.shape):
            raise InputError(
                f"vectors of questions {query.shape} and items {own.shape} do not fit, expected "
                f"{len(sample.profile)} items of one width with the question."
            )
        norms = np.maximum(np.linalg.norm(own, axis=1), np.finfo(np.float64).tiny)
        found.append(_best(own @ np.asarray(query, np.float64) / norms, sample.profile, count))
    return tuple(found)


def prompt_with_items(
    task: str | lamp.Task,
    question: str,
    items: Sequence[Mapping[str, str]],
    tokenizer: Tokenizer,
    max_tokens: int,
) -> str:
    """Return a question with items of the user in front of it, in LaMP's words.

    The items share what the question leaves, at least two fifths of the tokens; an item that needs
    less than its share passes the rest on to the next. A question that is left too little room
    loses its end. If not even one word of each item fits, the question stands alone.

    Args:
        task: A name in `jaxalign.data.lamp.TASKS`, or a task.
        question: The input.
        items: Fields of k items, best first.
        tokenizer: The tokenizer that counts and cuts.
        max_tokens: Length limit of the prompt in tokens. It holds as far as joined texts have as
            many tokens as their parts.

    Source: LaMP-Benchmark/LaMP @ 38c9d4d, which counts the special tokens of every part too.

    Example:
        >>> from types import SimpleNamespace
        >>> from jaxalign.pplug.retrieval import prompt_with_items
        >>> words = SimpleNamespace(
        ...     encode=lambda text, add_special_tokens: text.split(), decode=" ".join
        ... )
        >>> prompt_with_items("LaMP_7", "a tweet", [{"text": "hello there"}], words, 40)
        '"hello there"  are written by a person. Following the given patterns a tweet'
    """
    spec = lamp.task(task)
    length = len(_tokens(question, tokenizer))
    frame = len(_tokens(spec.frame.format(items="", input=""), tokenizer))
    for tenths in range(round(10 * _QUESTION_SHARE), -1, -1):
        room = max_tokens - min(length, tenths * max_tokens // 10) - frame - 2 * (len(items) - 1)
        joined = _joined_items(spec, items, tokenizer, room) if items else None
        if joined is not None:
            return shorten(_framed(spec, question, joined), tokenizer, max_tokens)
    return shorten(question, tokenizer, max_tokens)


def _best(scores: np.ndarray, profile: Places, count: int) -> Places:
    if count < 1:
        raise InputError(f"the number of items to retrieve is {count}; expected at least 1.")
    order = np.argsort(scores, kind="stable")[::-1][:count]
    return tuple(profile[int(rank)] for rank in order)


def _joined_items(
    spec: lamp.Task, items: Sequence[Mapping[str, str]], tokenizer: Tokenizer, room: int
) -> str | None:
    """Return the items, each cut to its share of the room; None if one has no token of its own."""
    share, spare, parts = room // len(items), 0, []
    for fields in items:
        around = len(_tokens(spec.item.format(**{**fields, spec.cut: ""}), tokenizer))
        left = share + spare - around
        if left < 1:
            return None
        text = shorten(fields[spec.cut], tokenizer, left)
        spare = left - len(_tokens(text, tokenizer))
        parts.append(spec.item.format(**{**fields, spec.cut: text}))
    return ", and ".join(parts)


def _framed(spec: lamp.Task, question: str, items: str) -> str:
    if spec.frame:
        return spec.frame.format(items=items, input=question)
    # LaMP_1 names the author's other papers right after the word, before the paper's own title.
    before, word, after = question.partition("title")
    return f"{before}{word}, and {items}{after}"


def _tokens(text: str, tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)
