"""The right answers behind soft tokens: their next-token loss, or the scores of all labels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxalign.data.histories import Histories
from jaxalign.data.sequences import Sequences
from jaxalign.errors import InputError
from jaxalign.kernels.token_logprob import token_logprob
from jaxalign.models import families
from jaxalign.models.attention import Cache
from jaxalign.models.buckets import bucket_length
from jaxalign.models.decoder import unembedding
from jaxalign.models.language import LanguageModel
from jaxalign.models.params import Params
from jaxalign.pplug.answers import (
    LabelTokens,
    PromptInputs,
    answer_states,
    label_logprobs,
    label_tokens,
)
from jaxalign.pplug.config import Place, TextConfig
from jaxalign.pplug.prompt_cache import PromptCache, chosen_past, distinct, read_prompts
from jaxalign.pplug.rows import assistant_turn, tokenize_samples
from jaxalign.progress import track


def answer_losses(
    model: LanguageModel,
    text: TextConfig,
    histories: Histories,
    questions: Sequence[str],
    prefixes: np.ndarray | None = None,
    place: Place = "before",
    read: PromptCache | None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> NDArray[np.float64]:
    """Return the next-token loss of the right answer to each question, stop token included.

    Args:
        model: The language model.
        text: Template and length limits.
        histories: N samples with outputs.
        questions: N texts to ask, such as the samples' inputs.
        prefixes: [N, Q, D] soft tokens beside the prompts, or None.
        place: Where the soft tokens stand, as in `PersonaConfig`.
        read: Prompts that the model has read, with the place `after`; None reads them each time.
        batch_size: Number of rows per batch.
        progress: Show a bar on standard error if it takes more than a few seconds.

    Returns:
        [N] mean loss per token of each answer, in nats.

    Raises:
        InputError: As `tokenize_samples`, or a loss is not finite.
    """
    prompts, targets = tokenize_samples(model, text, histories, questions)
    tokenized = _Tokenized(model, text, prompts, prefixes, place, read, batch_size, progress)
    slots = bucket_length(int(targets.lengths.max()), model.config.positions)
    found = np.zeros(len(prompts))
    for rows, filled, inputs in tokenized.batches("losses of the right answers"):
        answers, lengths = targets.padded(filled, slots)
        sums = _summed_losses(model.config, model.params, inputs, answers, lengths)
        found[rows] = np.asarray(sums, np.float64)[: len(rows)] / targets.lengths[rows]
    return _checked(model, found)


def label_scores(
    model: LanguageModel,
    text: TextConfig,
    histories: Histories,
    questions: Sequence[str],
    prefixes: np.ndarray | None = None,
    place: Place = "before",
    read: PromptCache | None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> NDArray[np.float64]:
    """Return the log-probability of each label of the task among all of them: [N, K].

    Args:
        model, text, questions, prefixes, place, read, batch_size, progress: As in
            `answer_losses`.
        histories: N samples; their outputs are ignored.

    Raises:
        InputError: As `label_tokens`, or a score is not finite.
    """
    rules = histories.rules
    labels = label_tokens(model, rules.labels, rules.name)
    stated = [replace(one, output=rules.labels[0]) for one in histories.samples]
    prompts, _ = tokenize_samples(model, text, replace(histories, samples=tuple(stated)), questions)
    first, own = np.arange(len(prompts)), np.arange(len(prompts))
    if prefixes is None:  # the same question twice has the same answer
        first, own = distinct(prompts)
        prompts = Sequences.of(
            [
                prompts.tokens[prompts.starts[row] : prompts.starts[row + 1]].tolist()
                for row in first
            ]
        )
    tokenized = _Tokenized(model, text, prompts, prefixes, place, read, batch_size, progress)
    found = np.zeros((len(first), len(rules.labels)))
    for rows, _, inputs in tokenized.batches("scoring labels"):
        scores = _label_logprobs(model.config, model.params, inputs, labels)
        found[rows] = np.asarray(scores, np.float64)[: len(rows)]
    return _checked(model, found[own])


@dataclass(frozen=True)
class _Tokenized:
    """Prompts and soft tokens in batches of few shapes."""

    model: LanguageModel
    text: TextConfig
    prompts: Sequences
    soft: np.ndarray | None
    place: Place
    read: PromptCache | None
    batch_size: int
    progress: bool

    def batches(self, title: str) -> Iterator[tuple[np.ndarray, np.ndarray, PromptInputs]]:
        """Yield the rows of each batch, the same filled up to its size, and their prompts."""
        config, prompts = self.model.config, self.prompts
        behind = self.place == "after" and self.soft is not None
        cache: Cache | None = None
        numbers = np.zeros(len(prompts), np.int32)
        turn: tuple[int, ...] = ()
        if behind:
            turn = assistant_turn(self.model, self.text)
        if behind and self.read is not None:
            cache, numbers = self.read.read(prompts)
        order = np.argsort(-prompts.lengths, kind="stable")
        size = min(self.batch_size, len(order))
        parts = [order[first : first + size] for first in range(0, len(order), size)]
        for rows in track(title, parts, len(order), len, self.progress):
            filled = np.full(size, rows[-1])
            filled[: len(rows)] = rows
            widest = int(prompts.lengths[rows].max())
            width = bucket_length(widest, max(widest, config.positions))
            if cache is not None:  # one program: what is not computed again needs no bucket
                width = cache.key.shape[3]
            tokens, lengths = prompts.padded(filled, width)
            past = None
            if cache is not None:
                past = _chosen(cache, numbers[filled], width)
            elif behind:
                past = _read(config, self.model.params, tokens, lengths)
            soft = None if self.soft is None else self.soft[filled]
            yield (
                rows,
                filled,
                PromptInputs(tokens, lengths, soft, np.asarray(turn, np.int32), past),
            )


def _checked(model: LanguageModel, found: NDArray[np.float64]) -> NDArray[np.float64]:
    if not np.isfinite(found).all():
        raise InputError(
            f"{model.name} in {model.config.dtype} gives losses that are not finite: its weights "
            "or the plug are broken."
        )
    return found


_read = jax.jit(read_prompts, static_argnums=0)
_chosen = jax.jit(chosen_past, static_argnums=2)


@partial(jax.jit, static_argnums=0)
def _label_logprobs(
    config: families.Config, params: Params, inputs: PromptInputs, labels: LabelTokens
) -> jax.Array:
    return label_logprobs(config, params, inputs, labels)


@partial(jax.jit, static_argnums=0)
def _summed_losses(
    config: families.Config,
    params: Params,
    inputs: PromptInputs,
    completions: np.ndarray,
    lengths: np.ndarray,
) -> jax.Array:
    """Return the loss of each answer [B] in nats."""
    states = answer_states(config, params, inputs, completions, lengths)
    logprob, _ = token_logprob(states, unembedding(params), completions)
    mask = jnp.arange(completions.shape[1], dtype=jnp.int32)[None, :] < lengths[:, None]
    return -jnp.sum(jnp.where(mask, logprob, 0), axis=1)
