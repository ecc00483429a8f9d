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
from jaxalign.pplug.tokenized import check_room
from jaxalign.progress import track


@dataclass(frozen=True)
class ScoredSamples:
    """Samples whose answers a language model scores, with or without soft tokens.

    Attributes:
        model: The language model.
        text: Template and length limits.
        histories: N samples.
        questions: N prompts, such as the samples' inputs.
        soft: [N, Q, D] soft tokens beside the prompts, or None.
        place: Where the soft tokens stand, as in `PersonaConfig`.
        prompt_cache: Prompts that the model has read, with the place `after`; None reads them each
            time.
        batch_size: Number of rows per batch.
        progress: Show a bar on standard error if it takes more than a few seconds.
    """

    model: LanguageModel
    text: TextConfig
    histories: Histories
    questions: Sequence[str]
    soft: np.ndarray | None = None
    place: Place = "before"
    prompt_cache: PromptCache | None = None
    batch_size: int = 16
    progress: bool = True

    @property
    def prefix_length(self) -> int:
        """Number Q of soft tokens beside a prompt."""
        return 0 if self.soft is None else int(self.soft.shape[1])

    @property
    def room(self) -> int:
        """Tokens of the context that are left for a prompt and its answer."""
        return self.model.config.positions - self.prefix_length

    def batches(
        self, title: str, prompts: Sequences, rows: np.ndarray, slots: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, PromptInputs]]:
        """Yield the rows of each batch, the same filled up to its size, and their prompts.

        Args:
            title: What is being done.
            prompts: Tokens of the N prompts.
            rows: Numbers of the samples to go through.
            slots: Tokens of an answer, padding included.
        """
        config = self.model.config
        room = self.room - slots
        behind = self.place == "after" and self.soft is not None
        cache: Cache | None = None
        numbers = np.zeros(len(prompts), np.int32)
        turn: tuple[int, ...] = ()
        if behind:
            turn = assistant_turn(self.model, self.text)
        if behind and self.prompt_cache is not None:
            cache, numbers = self.prompt_cache.read(prompts)
        order = rows[np.argsort(-prompts.lengths[rows], kind="stable")]
        size = min(self.batch_size, len(order))
        parts = [order[first : first + size] for first in range(0, len(order), size)]
        for part in track(title, parts, len(order), len, self.progress):
            filled = np.full(size, part[-1])
            filled[: len(part)] = part
            widest = int(prompts.lengths[part].max())
            width = bucket_length(widest, max(widest, room))
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
                part,
                filled,
                PromptInputs(tokens, lengths, soft, np.asarray(turn, np.int32), past),
            )


def answer_losses(samples: ScoredSamples) -> NDArray[np.float64]:
    """Return the mean loss of each right answer in nats per token, stop token included: [N].

    Args:
        samples: N samples with outputs.

    Raises:
        InputError: As `tokenize_samples`, a prompt is too long, or a loss is not finite.
    """
    model = samples.model
    prompts, targets = tokenize_samples(model, samples.text, samples.histories, samples.questions)
    longest = int(targets.lengths.max())
    check_room(model, samples.histories, prompts, samples.prefix_length, longest)
    slots = bucket_length(longest, max(longest, samples.room - int(prompts.lengths.max())))
    found = np.zeros(len(prompts))
    every = np.arange(len(prompts))
    batches = samples.batches("losses of the right answers", prompts, every, slots)
    for rows, filled, inputs in batches:
        answers, lengths = targets.padded(filled, slots)
        sums = _summed_losses(model.config, model.params, inputs, answers, lengths)
        found[rows] = np.asarray(sums, np.float64)[: len(rows)] / targets.lengths[rows]
    return _checked(model, found)


def label_scores(samples: ScoredSamples) -> NDArray[np.float64]:
    """Return the log-probability of each label of the task among all of them: [N, K].

    Args:
        samples: N samples; their outputs are ignored.

    Raises:
        InputError: As `label_tokens`, a prompt is too long, or a score is not finite.
    """
    model, histories = samples.model, samples.histories
    rules = histories.rules
    labels = label_tokens(model, rules.labels, rules.name)
    # The tokens of the prompts alone are used, whatever the answers are.
    stated = tuple(replace(one, output=rules.labels[0]) for one in histories.samples)
    histories = replace(histories, samples=stated)
    prompts, _ = tokenize_samples(model, samples.text, histories, samples.questions)
    check_room(model, samples.histories, prompts, samples.prefix_length, int(max(labels.lengths)))
    every = np.arange(len(prompts))
    first, number = every, every
    if samples.soft is None:  # the same prompt has the same scores
        first, number = distinct(prompts)
    found = np.zeros((len(prompts), len(rules.labels)))
    slots = np.shape(labels.tokens)[1]
    for rows, _, inputs in samples.batches("scoring labels", prompts, first, slots):
        scores = _label_logprobs(model.config, model.params, inputs, labels)
        found[rows] = np.asarray(scores, np.float64)[: len(rows)]
    return _checked(model, found[first[number]])


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
