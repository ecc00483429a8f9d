"""Prompts in and completions out as text, through a model's tokenizer and chat template."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.arrays import Sizes, check_array
from jaxalign.data.chat_template import Message, render_chat
from jaxalign.errors import InputError
from jaxalign.models.buckets import bucket_length, padded
from jaxalign.models.decoder import Adapters
from jaxalign.models.generate import Generated, PolicyMixture, generate
from jaxalign.models.generate_checks import check_lengths
from jaxalign.models.global_arrays import to_host
from jaxalign.models.params import Array
from jaxalign.models.sampling import Sampling
from jaxalign.models.tokenizer import check_text
from jaxalign.progress import track

if TYPE_CHECKING:
    from jaxalign.models.language import LanguageModel

Chat = Sequence[Message]
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>")


@dataclass(frozen=True, eq=False)
class Completion:
    """The completion of one prompt.

    Attributes:
        text: without special tokens.
        tokens: [n] int32, the stop token included.
        logprobs: [n], as in `Generated`.
        prompt_tokens: tokens of the prompt.
        stopped: whether the completion ended with a stop id, and not at `max_tokens`.
    """

    text: str
    tokens: np.ndarray = field(repr=False)
    logprobs: np.ndarray = field(repr=False)
    prompt_tokens: int
    stopped: bool


def generate_texts(
    model: "LanguageModel",
    prompts: Sequence[str | Chat],
    settings: Sampling,
    key: jax.Array,
    *,
    adapters: Adapters = None,
    rows: Sequence[int] | Array | None = None,
    combine: PolicyMixture | None = None,
    prefix: Array | None = None,
    prefix_lengths: Array | None = None,
    prefix_starts: Array | None = None,
    places: Sequence[int] | None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> list[Completion]:
    """Return a completion of each prompt.

    Args:
        model: from `load_language_model`.
        prompts: X of them, each a plain text, or a chat: messages {"role", "content"} that go
            through the model's template.
        settings: how tokens are sampled; the model's own stop ids are added to these.
        key: random key. A completion depends on its prompt and its place in the list, not on the
            batch.
        adapters, rows, combine, prefix, prefix_lengths, prefix_starts: as in `generate`, for all X
            prompts.
        places: [X] of the prompts in the list, where they are some of a longer one; None for 0 to
            X - 1.
        batch_size: most prompts at once.
        progress: show a bar on standard error if the call takes more than a few seconds.

    Returns:
        X completions, in order.

    Raises:
        InputError: a prompt is no text or longer than the context has room for, the template
            refuses a chat, an argument has another number of entries than there are prompts, a
            prefix of another shape or that is not finite, or the model's logits are not finite.
    """
    if isinstance(prompts, str) or batch_size < 1:
        raise InputError(
            f"prompts are {type(prompts).__name__}, batch_size {batch_size}; expected a list of "
            "prompts and a positive number."
        )
    check_lengths(len(prompts), {"places": places, "prefix_lengths": prefix_lengths})
    soft = np.zeros(len(prompts), int)
    if prefix is not None:
        sizes = Sizes(X=(len(prompts), "the prompts"))
        if prefix_lengths is not None:
            soft += np.asarray(prefix_lengths)
        live = None if prefix_lengths is None else jnp.asarray(soft > 0)
        check_array("prefix", prefix, "X S D", sizes, mask=live, empty="X S")
        soft += np.shape(prefix)[1] if prefix_lengths is None else 0
    ids = [
        prompt_ids(model, prompt, settings.max_tokens + int(soft[row]), f"prompt {row}")
        for row, prompt in enumerate(prompts)
    ]
    own = np.arange(len(ids)) if places is None else np.asarray(places)
    keys = jax.vmap(partial(jax.random.fold_in, key))(own)
    completions: dict[int, Completion] = {}
    batches = complete_tokens(
        model,
        ids,
        settings,
        keys,
        adapters=adapters,
        rows=rows,
        combine=combine,
        prefix=prefix,
        prefix_lengths=prefix_lengths,
        prefix_starts=prefix_starts,
        batch_size=batch_size,
    )
    for batch in track("answering", batches, len(ids), len, progress):
        completions |= batch
    return [completions[row] for row in range(len(ids))]


def room_for_prompts(
    model: "LanguageModel", answer_tokens: int, least: int, field: str, soft: int = 1
) -> int:
    """Return how many tokens a prompt may have beside an answer and soft tokens.

    Args:
        model: whose context it is.
        answer_tokens: most tokens of an answer.
        least: tokens that a prompt has at least.
        field: name of the setting of `answer_tokens`, for messages.
        soft: number of soft tokens.

    Raises:
        InputError: the answer leaves no room.
    """
    room = model.config.positions - answer_tokens - soft
    if room < least:
        raise InputError(
            f"{field}: found {answer_tokens}, expected less than the context of {model.name}, "
            f"{model.config.positions} tokens, with room for the prompt; lower it."
        )
    return room


def complete_tokens(
    model: "LanguageModel",
    ids: Sequence[Sequence[int]],
    settings: Sampling,
    keys: jax.Array,
    *,
    adapters: Adapters = None,
    rows: Sequence[int] | Array | None = None,
    combine: PolicyMixture | None = None,
    prefix: Array | None = None,
    prefix_lengths: Array | None = None,
    prefix_starts: Array | None = None,
    batch_size: int = 16,
    part: slice = slice(None),
) -> Iterator[dict[int, Completion]]:
    """Yield batches of completions of prompts that are tokens, by the number of the prompt.

    Args:
        model: from `load_language_model`.
        ids: X prompts, of `prompt_ids`.
        settings: how tokens are sampled; the model's own stop ids are added to these.
        keys: [X] random keys. A completion depends on its prompt and key, not on the batch.
        adapters, rows, combine, prefix, prefix_lengths, prefix_starts: as in `generate`, for all X
            prompts.
        batch_size: most prompts at once.
        part: which of the batches are completed, of the order in which all would be: all of them,
            or every second one, say, where two processes share them.

    Yields:
        Completions, those of the longest prompts first.

    Raises:
        InputError: an argument has another number of entries than there are prompts, or the
            model's logits are not finite.
    """
    given = {
        "keys": keys,
        "rows": rows,
        "combine.weights": None if combine is None else combine.weights,
        "combine.rows": None if combine is None else combine.rows,
        "prefix": prefix,
        "prefix_lengths": prefix_lengths,
        "prefix_starts": prefix_starts,
    }
    of_rows = {"temperature": settings.temperature, "top_p": settings.top_p}
    check_lengths(
        len(ids),
        given | {name: np.asarray(value) for name, value in of_rows.items() if np.ndim(value)},
    )
    settings = with_stops(model, settings)
    room = model.config.positions - (0 if prefix is None else np.shape(prefix)[1])
    # The longest come first: a machine too small fails at once.
    order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
    for first in range(0, len(order), batch_size)[part]:
        batch = order[first : first + batch_size]
        # A last batch that is not full is filled up: one compilation fewer.
        filled = batch + batch[-1:] * (min(batch_size, len(ids)) - len(batch))
        found = generate(
            model.config,
            model.params,
            *_table([ids[row] for row in filled], room),
            keys[np.asarray(filled)],
            _of_rows(settings, filled),
            prefix=_take(prefix, filled),
            prefix_lengths=_take(prefix_lengths, filled),
            prefix_starts=_take(prefix_starts, filled),
            adapters=adapters,
            rows=_take(rows, filled),
            combine=combine
            and combine._replace(
                weights=_take(combine.weights, filled), rows=_take(combine.rows, filled)
            ),
        )
        host: Generated = jax.device_get(to_host(found))
        yield {row: _answer(model, host, n, len(ids[row])) for n, row in enumerate(batch)}


def prompt_ids(
    model: "LanguageModel", prompt: str | Chat, reserved: int = 0, name: str = "the prompt"
) -> list[int]:
    """Return the token ids of a prompt that the model can answer.

    Args:
        model: whose tokenizer and template to use.
        prompt: as in `tokenize_prompt`.
        reserved: tokens of the context that are needed for other things.
        name: what to call the prompt in messages.

    Raises:
        InputError: the prompt is something else, or longer than the context has room for.
    """
    ids = tokenize_prompt(model, prompt, name)
    if len(ids) + reserved > model.config.positions:
        raise InputError(
            f"{name} has {len(ids)} tokens, and {reserved} more are reserved for the answer and "
            f"soft tokens; the context of {model.name} has {model.config.positions}: shorten the "
            "prompt, or lower max_tokens (option --max-tokens)."
        )
    return ids


def tokenize_prompt(
    model: "LanguageModel", prompt: str | Chat, name: str = "the prompt"
) -> list[int]:
    """Return the token ids of a prompt, at least one, however long it is.

    Args:
        model: whose tokenizer and template to use.
        prompt: a plain text, tokenised with the tokenizer's own special tokens; or a chat, put
            through the template up to where the completion begins.
        name: what to call the prompt in messages.

    Raises:
        InputError: the prompt is something else, or the template refuses it.
    """
    tokenizer = model.tokenizer
    if isinstance(prompt, str):
        check_text(prompt, name)
        ids = list(tokenizer(prompt)["input_ids"])
    else:
        ids = list(
            tokenizer(_templated(model, prompt, name), add_special_tokens=False)["input_ids"]
        )
    if not ids:
        first = [tokenizer.bos_token_id, tokenizer.eos_token_id, *stop_ids(model)]
        known = [value for value in first if value is not None]
        if not known:
            raise InputError(
                f"{name} is empty, and the tokenizer of {model.name} has no token to begin with: "
                "write some text."
            )
        ids = known[:1]
    return ids


def stop_ids(model: "LanguageModel") -> tuple[int, ...]:
    """Return the ids that end a completion: of tokenizer and configs, and known turn ends."""
    added = model.tokenizer.get_added_vocab()
    found: list[object] = [model.tokenizer.eos_token_id]
    for config in (model.hf_config, model.generation):
        listed = config.get("eos_token_id")
        found += listed if isinstance(listed, list | tuple) else [listed]
    found += [added[name] for name in _TURN_ENDS if name in added]
    ids = {value for value in found if isinstance(value, int)}
    return tuple(sorted(value for value in ids if value < model.config.vocab_size))


def with_stops(model: "LanguageModel", settings: Sampling) -> Sampling:
    """Return the settings with the model's own stop ids added."""
    return replace(settings, stop_ids=tuple(sorted({*settings.stop_ids, *stop_ids(model)})))


def text_of(model: "LanguageModel", tokens: Sequence[int] | np.ndarray) -> str:
    """Return tokens [n] as text, without special tokens; incomplete bytes show as U+FFFD."""
    # A clean-up of spaces would change what was drawn.
    text: str = model.tokenizer.decode(
        list(map(int, tokens)), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text


def check_finite(model: "LanguageModel", logprobs: np.ndarray) -> None:
    """Refuse tokens that were sampled from logits that are not finite.

    Raises:
        InputError: a log-probability is not finite.
    """
    if not np.isfinite(logprobs).all():
        raise InputError(
            f"{model.name} in {model.config.dtype} gives logits that are not finite: load it with "
            "dtype float32, and if it is already, its weights or an adapter are broken."
        )


def _templated(model: "LanguageModel", chat: Chat, name: str) -> str:
    sound = isinstance(chat, Sequence) and len(chat) > 0
    if not sound or not all(isinstance(turn, Mapping) and "role" in turn for turn in chat):
        raise InputError(
            f"{name} is {type(chat).__name__}; expected a text, or a list of messages with role "
            "and content."
        )
    for turn in chat:
        check_text(turn.get("content"), f"a message's content in {name}")
    return render_chat(model.tokenizer, chat, name, answer_next=True)


def _answer(model: "LanguageModel", found: Generated, place: int, prompt_tokens: int) -> Completion:
    length = int(found.lengths[place])
    tokens = np.asarray(found.tokens[place, :length])
    logprobs = np.asarray(found.logprobs[place, :length])
    check_finite(model, logprobs)
    stopped = bool(found.stopped[place])
    return Completion(text_of(model, tokens), tokens, logprobs, prompt_tokens, stopped)


def _table(ids: Sequence[Sequence[int]], room: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [B, T] padded on the right, not beyond the room where all prompts fit; lengths [B]."""
    lengths = np.asarray([len(row) for row in ids], np.int32)
    longest = int(lengths.max())
    return padded(ids, (len(ids), bucket_length(longest, max(longest, room)))), lengths


def _take(values: Sequence[int] | Array | None, rows: Sequence[int]) -> np.ndarray | None:
    return None if values is None else np.asarray(values)[np.asarray(rows)]


def _of_rows(settings: Sampling, rows: Sequence[int]) -> Sampling:
    """The settings of some rows, where temperature or top_p are given by row."""

    def of_rows(value: float | Sequence[float]) -> float | Sequence[float]:
        return [float(np.asarray(value)[row]) for row in rows] if np.ndim(value) else value

    return replace(
        settings, temperature=of_rows(settings.temperature), top_p=of_rows(settings.top_p)
    )
