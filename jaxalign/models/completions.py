"""Log-probabilities of given completions, as `generate` counts them; for training and judging."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.kernels.token_logprob import token_logprob
from jaxalign.models import families
from jaxalign.models.buckets import bucket_length
from jaxalign.models.decoder import Adapters, unembedding
from jaxalign.models.global_arrays import place_rows
from jaxalign.models.language import LanguageModel
from jaxalign.models.params import Array, Params
from jaxalign.models.sampling import Sampling


class SamplingDistribution(NamedTuple):
    """The distribution that completions were sampled from, relative to the model's own.

    Attributes:
        min_tokens: static, tokens before a stop id could be sampled.
        temperature: scalar above 0.
        early: [V] bool, ids that could not be sampled among the first `min_tokens` tokens.
        later: [V] bool, ids that could not be sampled after them.
    """

    min_tokens: int
    temperature: Array
    early: Array
    later: Array


class CompletionBatch(NamedTuple):
    """Prompts and their completions; padding on the right.

    Attributes:
        prompts: [B, T] int.
        prompt_lengths: [B] int32.
        completions: [B, M] int.
        completion_lengths: [B] int32, the stop token included.
    """

    prompts: Array
    prompt_lengths: Array
    completions: Array
    completion_lengths: Array

    @property
    def mask(self) -> jax.Array:
        """[B, M] bool, set on the tokens of the completions."""
        slots = jnp.arange(self.completions.shape[1], dtype=jnp.int32)
        return slots[None, :] < self.completion_lengths[:, None]


def sampling_distribution(settings: Sampling, vocab_size: int) -> SamplingDistribution:
    """The distribution of settings with one temperature above 0, and without top-k or top-p.

    Args:
        settings: that the completions were sampled with.
        vocab_size: V.

    Example:
        >>> from jaxalign.models import Sampling
        >>> from jaxalign.models.completions import sampling_distribution
        >>> settings = Sampling(min_tokens=2, stop_ids=(0,), suppressed_ids=(3,))
        >>> distribution = sampling_distribution(settings, 4)
        >>> distribution.early.tolist(), distribution.later.tolist()
        ([True, False, False, True], [False, False, False, True])
    """
    later = np.zeros(vocab_size, bool)
    later[list(settings.suppressed_ids)] = True
    early = later.copy()
    early[list(settings.stop_ids)] = True
    return SamplingDistribution(
        settings.min_tokens, np.asarray(settings.temperature, np.float32), early, later
    )


def completion_states(
    config: families.Config,
    params: Params,
    batch: CompletionBatch,
    *,
    prefix: jax.Array | None = None,
    adapters: Adapters = None,
    rows: jax.Array | None = None,
    adapter_dropout: float = 0.0,
    dropout_key: jax.Array | None = None,
    sharding: jax.sharding.Sharding | None = None,
) -> jax.Array:
    """Hidden states before each token of given completions, from which those tokens are predicted.

    Args:
        config: of the model; static.
        params: of the model.
        batch: prompts and completions.
        prefix: [B, Q, D] soft tokens before the prompts.
        adapters: as in `generate`.
        rows: as in `generate`.
        adapter_dropout: as in `families.forward`.
        dropout_key: as in `families.forward`.
        sharding: of the rows over devices.

    Returns:
        [B, M, D] in `config.dtype`; without meaning behind the end of a completion.
    """
    tokens, starts = _joined(batch), batch.prompt_lengths
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
        lengths=starts + batch.completion_lengths,
        adapters=adapters,
        rows=rows,
        adapter_dropout=adapter_dropout,
        dropout_key=dropout_key,
    )
    slots = jnp.arange(batch.completions.shape[1], dtype=jnp.int32)[None, :]
    before = jnp.clip(starts[:, None] - 1 + slots, 0, embeddings.shape[1] - 1)
    return jnp.take_along_axis(hidden, before[:, :, None], axis=1)


def state_logprobs(
    states: jax.Array, table: jax.Array, batch: CompletionBatch, distribution: SamplingDistribution
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of the completions' tokens, and entropies at these places.

    Args:
        states: [B, M, D] of `completion_states`.
        table: [V, D], the unembedding.
        batch: prompts and completions.
        distribution: that the completions were sampled from; its arrays may be traced.

    Returns:
        Two of [B, M], at least float32, 0 behind the end of a completion.
    """
    table = table.astype(states.dtype)
    # Behind the end may stand an id that could not be sampled: its -inf would pass no mask.
    # The barrier keeps the compiler from working the id out itself: it takes seconds, and says so.
    early = jax.lax.optimization_barrier(jnp.asarray(distribution.early))
    tokens = jnp.where(batch.mask, batch.completions, jnp.argmin(early).astype(jnp.int32))
    ranges = (
        (slice(distribution.min_tokens), distribution.early),
        (slice(distribution.min_tokens, None), distribution.later),
    )
    parts = [
        token_logprob(
            states[:, where], table, tokens[:, where],
            temperature=distribution.temperature, suppressed=barred,
        )
        for where, barred in ranges
    ]  # fmt: skip
    logprob, entropy = (jnp.concatenate(pair, axis=1) for pair in zip(*parts, strict=True))
    return jnp.where(batch.mask, logprob, 0), jnp.where(batch.mask, entropy, 0)


def completion_logprobs(
    config: families.Config,
    params: Params,
    batch: CompletionBatch,
    distribution: SamplingDistribution,
    *,
    prefix: jax.Array | None = None,
    adapters: Adapters = None,
    rows: jax.Array | None = None,
    adapter_dropout: float = 0.0,
    dropout_key: jax.Array | None = None,
    sharding: jax.sharding.Sharding | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities and entropies of given completions.

    Args:
        config: of the model; static.
        params: of the model.
        batch: prompts and completions.
        distribution: that the completions were sampled from.
        prefix, adapters, rows, adapter_dropout, dropout_key, sharding: as in `completion_states`.

    Returns:
        Two of [B, M], at least float32, 0 behind the end of a completion.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxalign.models import Sampling, families
        >>> from jaxalign.models.completions import CompletionBatch, completion_logprobs
        >>> from jaxalign.models.completions import sampling_distribution
        >>> from jaxalign.models.gpt2 import GPT2Config
        >>> config = GPT2Config(vocab_size=7, width=4, layers=1, heads=1, hidden=4, positions=8)
        >>> params = families.init(jax.random.key(0), config)
        >>> batch = CompletionBatch(
        ...     prompts=jnp.asarray([[1, 2]]), prompt_lengths=jnp.asarray([2]),
        ...     completions=jnp.asarray([[3, 4, 0]]), completion_lengths=jnp.asarray([2]),
        ... )
        >>> distribution = sampling_distribution(Sampling(), config.vocab_size)
        >>> logprobs, entropies = completion_logprobs(config, params, batch, distribution)
        >>> logprobs.shape, float(logprobs[0, 2])
        ((1, 3), 0.0)
    """
    states = completion_states(
        config,
        params,
        batch,
        prefix=prefix,
        adapters=adapters,
        rows=rows,
        adapter_dropout=adapter_dropout,
        dropout_key=dropout_key,
        sharding=sharding,
    )
    return state_logprobs(states, unembedding(params), batch, distribution)


def reference_logprobs(
    model: LanguageModel, batch: CompletionBatch, settings: Sampling
) -> jax.Array:
    """Log-probabilities of given completions under the model alone, as `generate` counts them.

    Args:
        model: without adapters.
        batch: prompts and completions, on the host.
        settings: temperature above 0, no top-k or top-p.

    Returns:
        [B, M], at least float32, 0 behind the end.
    """
    distribution = sampling_distribution(settings, model.config.vocab_size)
    length = batch.prompts.shape[1]
    room = model.config.positions - batch.completions.shape[1]
    width = bucket_length(length, max(length, room))
    host = CompletionBatch(*map(np.asarray, batch))
    host = host._replace(prompts=np.pad(host.prompts, ((0, 0), (0, width - length))))
    return _reference(
        model.config,
        distribution.min_tokens,
        model.params,
        place_rows(host, model.params),
        distribution[1:],
    )


@partial(jax.jit, static_argnums=(0, 1))
def _reference(
    config: families.Config,
    min_tokens: int,
    params: Params,
    batch: CompletionBatch,
    distribution: tuple[Array, Array, Array],
) -> jax.Array:
    return completion_logprobs(
        config, params, batch, SamplingDistribution(min_tokens, *distribution)
    )[0]


def _joined(batch: CompletionBatch) -> jax.Array:
    """[B, T + M], each completion directly behind its prompt, 0 behind that."""
    prompts, tokens = jnp.asarray(batch.prompts), jnp.asarray(batch.completions)
    room = prompts.shape[1] + tokens.shape[1]
    place = jnp.arange(room, dtype=jnp.int32)[None, :]
    slot = place - batch.prompt_lengths[:, None]
    prompt = jnp.take_along_axis(prompts, jnp.minimum(place, prompts.shape[1] - 1), axis=1)
    answer = jnp.take_along_axis(tokens, jnp.clip(slot, 0, tokens.shape[1] - 1), axis=1)
    inside = slot < batch.completion_lengths[:, None]
    return jnp.where(slot < 0, prompt, jnp.where(inside, answer, 0)).astype(jnp.int32)
