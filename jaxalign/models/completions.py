"""Log-probabilities of given answers, as `generate` counts them: what training and judging read."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.kernels.token_logprob import token_logprob
from jaxalign.models import families
from jaxalign.models.buckets import bucket_length
from jaxalign.models.decoder import Adapters, unembedding
from jaxalign.models.language import LanguageModel
from jaxalign.models.sampling import Sampling


class SamplingDistribution(NamedTuple):
    """The distribution that answers were drawn from, next to the model's own.

    Attributes:
        least: static, tokens before a stop id could be drawn.
        temperature: scalar.
        early, later: [V] bool, ids that could not be drawn: among the first `least` tokens, and
            among the others.
    """

    least: int
    temperature: Any
    early: Any
    later: Any


class CompletionBatch(NamedTuple):
    """Answers and the prompts that they follow; padding on the right.

    Attributes:
        prompts: [B, T] int.
        prompt_lengths: [B] int32.
        completions: [B, M] int.
        completion_lengths: [B] int32, the stop token included.
    """

    prompts: Any
    prompt_lengths: Any
    completions: Any
    completion_lengths: Any

    @property
    def mask(self) -> jax.Array:
        """[B, M] bool, set on the tokens of the answers."""
        slots = jnp.arange(self.completions.shape[1], dtype=jnp.int32)
        return slots[None, :] < self.completion_lengths[:, None]


def sampling_distribution(settings: Sampling, vocab_size: int) -> SamplingDistribution:
    """What settings with one temperature above 0, and without top-k or top-p, draw from."""
    later = np.zeros(vocab_size, bool)
    later[list(settings.suppressed_ids)] = True
    early = later.copy()
    early[list(settings.stop_ids)] = True
    return SamplingDistribution(
        settings.min_tokens, np.asarray(settings.temperature, np.float32), early, later
    )


def completion_states(
    config: families.Config,
    params: Mapping[str, Any],
    answers: CompletionBatch,
    *,
    prefix: jax.Array | None = None,
    adapters: Adapters = None,
    rows: jax.Array | None = None,
    adapter_dropout: float = 0.0,
    dropout_key: jax.Array | None = None,
    sharding: jax.sharding.Sharding | None = None,
) -> jax.Array:
    """The states before each token of given answers.

    Args:
        config: static.
        params: of the model.
        answers: prompts and answers.
        prefix: [B, Q, D] soft tokens before the prompts.
        adapters, rows: as in `generate`.
        adapter_dropout, dropout_key: as in `families.forward`.
        sharding: of the rows over devices.

    Returns:
        [B, M, D] in `config.dtype`; without meaning behind the end of an answer.
    """
    tokens, starts = _joined(answers), answers.prompt_lengths
    embeddings = families.embed(config, params, tokens)
    if prefix is not None:
        embeddings = jnp.concatenate([prefix.astype(embeddings.dtype), embeddings], axis=1)
        starts = starts + prefix.shape[1]
    if sharding is not None:
        embeddings = jax.lax.with_sharding_constraint(embeddings, sharding)
    hidden, _ = families.forward(
        config,
        params,
        embeddings=embeddings,
        lengths=starts + answers.completion_lengths,
        adapters=adapters,
        rows=rows,
        adapter_dropout=adapter_dropout,
        dropout_key=dropout_key,
    )
    slots = jnp.arange(answers.completions.shape[1], dtype=jnp.int32)[None, :]
    before = jnp.clip(starts[:, None] - 1 + slots, 0, embeddings.shape[1] - 1)
    return jnp.take_along_axis(hidden, before[:, :, None], axis=1)


def state_logprobs(
    states: jax.Array, table: jax.Array, answers: CompletionBatch, drawn: SamplingDistribution
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of the answers' tokens, and entropies of what they were drawn from.

    Args:
        states: [B, M, D] of `completion_states`.
        table: [V, D], the unembedding.
        answers: prompts and answers.
        drawn: the distribution; a temperature and bars that are arrays may be traced.

    Returns:
        Two of [B, M], at least float32, 0 behind the end of an answer.
    """
    table = table.astype(states.dtype)
    # Behind the end may stand an id that could not be drawn: its -inf would pass no mask.
    # The barrier keeps the compiler from working the id out itself: it takes seconds, and says so.
    early = jax.lax.optimization_barrier(jnp.asarray(drawn.early))
    tokens = jnp.where(answers.mask, answers.completions, jnp.argmin(early).astype(jnp.int32))
    ranges = (slice(drawn.least), drawn.early), (slice(drawn.least, None), drawn.later)
    parts = [
        token_logprob(
            states[:, where], table, tokens[:, where],
            temperature=drawn.temperature, suppressed=barred,
        )
        for where, barred in ranges
    ]  # fmt: skip
    logprob, entropy = (jnp.concatenate(pair, axis=1) for pair in zip(*parts, strict=True))
    return jnp.where(answers.mask, logprob, 0), jnp.where(answers.mask, entropy, 0)


def completion_logprobs(
    config: families.Config,
    params: Mapping[str, Any],
    answers: CompletionBatch,
    drawn: SamplingDistribution,
    **arguments: Any,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities and entropies [B, M]; arguments as in `completion_states`."""
    states = completion_states(config, params, answers, **arguments)
    return state_logprobs(states, unembedding(params), answers, drawn)


def reference_logprobs(
    model: LanguageModel,
    tokens: np.ndarray,
    lengths: np.ndarray,
    answers: np.ndarray,
    ends: np.ndarray,
    settings: Sampling,
) -> jax.Array:
    """Log-probabilities of given answers under the model alone, as `generate` counts them.

    Args:
        model: without adapters.
        tokens: [B, T] prompts, padding on the right.
        lengths: [B].
        answers: [B, M].
        ends: [B], tokens of each answer.
        settings: temperature above 0, no top-k or top-p.

    Returns:
        [B, M], at least float32, 0 behind the end.
    """
    drawn = sampling_distribution(settings, model.config.vocab_size)
    width = bucket_length(tokens.shape[1], max(tokens.shape[1], model.config.positions))
    prompts = np.pad(tokens, ((0, 0), (0, width - tokens.shape[1])))
    given = CompletionBatch(prompts, np.asarray(lengths), np.asarray(answers), np.asarray(ends))
    return _reference(model.config, drawn.least, model.params, given, drawn[1:])


@partial(jax.jit, static_argnums=(0, 1))
def _reference(
    config: families.Config, least: int, params: Any, given: CompletionBatch, drawn: tuple[Any, ...]
) -> jax.Array:
    return completion_logprobs(config, params, given, SamplingDistribution(least, *drawn))[0]


def _joined(answers: CompletionBatch) -> jax.Array:
    """[B, T + M], each answer right behind its prompt, 0 behind that."""
    prompts, tokens = jnp.asarray(answers.prompts), jnp.asarray(answers.completions)
    room = prompts.shape[1] + tokens.shape[1]
    place = jnp.arange(room, dtype=jnp.int32)[None, :]
    slot = place - answers.prompt_lengths[:, None]
    prompt = jnp.take_along_axis(prompts, jnp.minimum(place, prompts.shape[1] - 1), axis=1)
    answer = jnp.take_along_axis(tokens, jnp.clip(slot, 0, tokens.shape[1] - 1), axis=1)
    inside = slot < answers.completion_lengths[:, None]
    return jnp.where(slot < 0, prompt, jnp.where(inside, answer, 0)).astype(jnp.int32)
