"""One completion as it is sampled, piece by piece."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from jaxalign.models.chat import Chat, check_finite, prompt_ids, text_of, with_stops
from jaxalign.models.decoder import Adapters
from jaxalign.models.generate import PolicyMixture, Prompt, decode_until, prefill, prepare_decode
from jaxalign.models.params import Array
from jaxalign.models.sampling import Sampling

if TYPE_CHECKING:
    from jaxalign.models.language import LanguageModel

_BLOCK = 8  # tokens between two looks: enough to hide the host, little enough to read along
_UNFINISHED = "\ufffd"

_prefill = jax.jit(prefill, static_argnums=0)
_decode_until = jax.jit(decode_until, static_argnums=0, donate_argnums=2)


class StreamedPiece(NamedTuple):
    """What was sampled since the piece before.

    Attributes:
        text: of whole characters; it may be empty in the last piece.
        tokens: sampled so far, with those of earlier pieces and the stop token.
        stopped: whether the completion ended here with a stop id.
    """

    text: str
    tokens: int
    stopped: bool


def stream(
    model: "LanguageModel",
    prompt: str | Chat,
    settings: Sampling,
    key: jax.Array,
    *,
    adapters: Adapters = None,
    rows: Array | None = None,
    combine: PolicyMixture | None = None,
    prefix: Array | None = None,
    prefix_lengths: Array | None = None,
    prefix_starts: Array | None = None,
) -> Iterator[StreamedPiece]:
    """Yield the pieces of one completion; their joined texts are what `generate_texts` returns.

    Args:
        model: from `load_language_model`.
        prompt: a plain text, or a chat.
        settings: how tokens are sampled; the model's own stop ids are added to these.
        key: random key.
        adapters, rows, combine, prefix, prefix_lengths, prefix_starts: as in `generate`, for a
            batch of one.

    Yields:
        Pieces of about eight tokens each, as soon as they are sampled.

    Raises:
        InputError: as `generate_texts`.
    """
    soft = 0
    if prefix is not None:
        soft = prefix.shape[1] if prefix_lengths is None else int(prefix_lengths[0])
    ids = prompt_ids(model, prompt, settings.max_tokens + soft)
    tokens, lengths = np.asarray([ids], np.int32), np.asarray([len(ids)], np.int32)
    spec, inputs, prepared = prepare_decode(
        model.config,
        model.params,
        Prompt(tokens, lengths, prefix, prefix_lengths, prefix_starts),
        jax.random.fold_in(key, 0)[None],  # the first prompt's, as in generate_texts
        with_stops(model, settings),
        adapters=adapters,
        rows=rows,
        combine=combine,
    )
    state = _prefill(spec, inputs, prepared)
    sent, until = 0, 1
    while True:
        length, ended = int(state.lengths[0]), bool(state.ended[0])
        check_finite(model, np.asarray(state.logprobs)[0, :length])
        text = text_of(model, np.asarray(state.tokens)[0, :length])
        last = ended or length >= settings.max_tokens
        ready = len(text) if last else whole_characters(text)
        if ready > sent or last:
            yield StreamedPiece(text[sent:ready], length, bool(state.stopped[0]))
            sent = ready
        if last:
            return
        until = min(until + _BLOCK, settings.max_tokens)
        state = _decode_until(spec, inputs, state, np.int32(until))


def whole_characters(text: str) -> int:
    """Return how much of a text can be sent: a character whose bytes are not all there waits.

    Example:
        >>> from jaxalign.models.stream import whole_characters
        >>> whole_characters("a cat\ufffd")
        5
    """
    return len(text.rstrip(_UNFINISHED))
