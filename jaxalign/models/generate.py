"""Completions of a language model: one compiled program from prompts to last token."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.models import families
from jaxalign.models.buckets import bucket_length
from jaxalign.models.decoder import Adapters, Caches
from jaxalign.models.generate_checks import check
from jaxalign.models.global_arrays import place_rows, place_whole, row_parts
from jaxalign.models.layers import each_layer
from jaxalign.models.params import Array, Params
from jaxalign.models.sampling import (
    Sampling,
    SamplingParams,
    StaticSampling,
    sample_token,
    split_sampling,
)


class Generated(NamedTuple):
    """What `generate` sampled.

    Attributes:
        tokens: [B, M] int32, M = `max_tokens`; `pad_id` behind the end of a completion.
        lengths: [B] int32, tokens of each completion, its stop token included.
        logprobs: [B, M], at least float32. Log-probability of each token under the distribution
            that it was sampled from: temperature, top-k, top-p, suppressed ids and minimum length
            included. At temperature 0 as in `sampling.sample_token`. 0 behind the end.
        stopped: [B] bool, whether the completion ended with a stop id.
        steps: scalar int32, how many tokens were decoded before all rows had ended.
    """

    tokens: jax.Array
    lengths: jax.Array
    logprobs: jax.Array
    stopped: jax.Array
    steps: jax.Array


class PolicyMixture(NamedTuple):
    """Policies that sample each token together: log pi = sum_c w_c log pi_c, normalised.

    Attributes:
        weights: [B, C] of the A adapters in `rows` first, then of `others`; any finite numbers.
        rows: [B, A] int32, the adapters of the stack that take part in each row; -1 is the model
            without an adapter, so that a reference policy can be a column. None if every row mixes
            its own adapter (`rows` of `generate`) with `others`; then A is 1.
        others: (config, params) of further models with the same vocabulary, without adapters.

    Source: Shi et al. 2024, https://arxiv.org/abs/2406.18853 (MOD, for reverse KL).
    """

    weights: Array | None
    rows: Array | None = None
    others: tuple[tuple[families.Config, Params], ...] = ()


class GenerationArguments(TypedDict, total=False):
    """What `generate`, `generate_texts` and `stream` take to let other policies answer.

    Attributes:
        adapters, rows, combine, prefix, prefix_lengths, prefix_starts: as in `generate`.
    """

    adapters: Adapters
    rows: Array | None
    combine: PolicyMixture | None
    prefix: Array | None
    prefix_lengths: Array | None
    prefix_starts: Array | None


class DecodeSpec(NamedTuple):
    """The static part of decoding: changing it compiles a new program.

    Attributes:
        configs: of the model and of those mixed with it.
        adapters_per_row: A, how many adapters each row of the first model has.
        slots: M, most tokens of a completion, padded to a bucket.
        sampling: how tokens are sampled.
    """

    configs: tuple[families.Config, ...]
    adapters_per_row: int
    slots: int
    sampling: StaticSampling


class DecodeInputs(NamedTuple):
    """The arrays that stay the same from the first token to the last.

    Attributes:
        params: of each of `DecodeSpec.configs`.
        adapters: of the first model, scaled; or None.
        rows: [A * B] int32, which adapter of a stack each row has, adapters outermost; [B, A]
            floats, by which each row weighs the adapters of a stack; or None.
        weights: [B, C] of a mixture, or None.
        keys: [B] random keys, one per row; or one key, folded with the row's number.
        sampling: sampling settings that are data.
    """

    params: tuple[Params, ...]
    adapters: Adapters
    rows: Array | None
    weights: Array | None
    keys: jax.Array
    sampling: SamplingParams


class Prompt(NamedTuple):
    """Prompts of a batch.

    Attributes:
        tokens: [B, T] int, padding on the right.
        lengths: [B] int32, tokens of each prompt.
        prefix: [B, Q, D] soft tokens, or None.
        prefix_lengths: [B] int32, soft tokens of each row; None if all rows have Q.
        prefix_starts: [B] int32, tokens of each prompt before its soft tokens; None for 0.
    """

    tokens: Array
    lengths: Array
    prefix: Array | None = None
    prefix_lengths: Array | None = None
    prefix_starts: Array | None = None


class DecodeState(NamedTuple):
    """The state of decoding after `step` tokens.

    Attributes:
        step: scalar int32.
        caches: one per model; of unstacked layers a tuple of one per layer.
        starts: [B] int32, cache slot of the last token that was sampled.
        ended: [B] bool.
        stopped, lengths, tokens, logprobs: as in `Generated`, M slots.
    """

    step: jax.Array
    caches: tuple[Caches, ...]
    starts: jax.Array
    ended: jax.Array
    stopped: jax.Array
    lengths: jax.Array
    tokens: jax.Array
    logprobs: jax.Array


def generate(
    config: families.Config,
    params: Params,
    tokens: Array,
    lengths: Array,
    key: jax.Array,
    settings: Sampling,
    *,
    prefix: Array | None = None,
    prefix_lengths: Array | None = None,
    prefix_starts: Array | None = None,
    adapters: Adapters = None,
    rows: Array | None = None,
    combine: PolicyMixture | None = None,
) -> Generated:
    """Sample a completion for each prompt of a batch.

    Rows, prompts and completions are padded to buckets, so that there is at most one compilation
    per bucket.

    Args:
        config: sizes and switches of the model; static. Stacked layers are copied out of their
            stack at every token, unstacked ones (`families.unstack_layers`) are not: on a GPU a
            third of the memory traffic.
        params: parameters of the model.
        tokens: [B, T] int, padding on the right.
        lengths: [B] int32. A row without tokens and without prefix gives an empty completion.
        key: one random key, which is folded with the row's number; or [B] keys, one per row. A
            completion depends on its key and prompt alone, not on the other rows of the batch.
        settings: how tokens are sampled.
        prefix: [B, Q, D] soft tokens, placed directly before the tokens of each row, or where
            `prefix_starts` says.
        prefix_lengths: [B] int32, soft tokens of each row; None if all rows have Q.
        prefix_starts: [B] int32, tokens of each row that stand before its soft tokens; None for 0.
        adapters: a scaled adapter, or a stack of them (`jaxalign.models.lora`).
        rows: [B] int32, which adapter of a stack each row has, -1 for none; or [B, A] floats, by
            which each row weighs the updates of all A adapters.
        combine: further policies that sample together with this one.

    Returns:
        Tokens, lengths and log-probabilities.

    Raises:
        InputError: the sizes do not fit each other, or the context of the model.

    Example:
        >>> import jax, numpy as np
        >>> from jaxalign.models import Sampling, families
        >>> from jaxalign.models.decoder_config import DecoderConfig
        >>> from jaxalign.models.generate import generate
        >>> config = DecoderConfig(
        ...     family="llama", vocab_size=11, width=8, layers=1, heads=2, kv_heads=1,
        ...     head_width=4, hidden=16, positions=32,
        ... )
        >>> params = families.init(jax.random.key(0), config)
        >>> tokens, lengths = np.asarray([[1, 2, 3], [4, 0, 0]]), np.asarray([3, 1])
        >>> settings = Sampling(max_tokens=4, temperature=0.0)
        >>> found = generate(config, params, tokens, lengths, jax.random.key(1), settings)
        >>> found.tokens.shape, found.lengths.tolist()
        ((2, 4), [4, 4])
    """
    batch = np.shape(tokens)[0]
    prompt = Prompt(tokens, lengths, prefix, prefix_lengths, prefix_starts)
    spec, inputs, prompt = prepare_decode(
        config,
        params,
        prompt,
        key,
        settings,
        adapters=adapters,
        rows=rows,
        combine=combine,
    )
    own, *others = inputs.params
    others, rest = place_whole((others, inputs._replace(params=())), params)
    prompt = place_rows(prompt, params)
    found: Generated = decode_jit(spec, rest._replace(params=(own, *others)), prompt)
    if (batch, settings.max_tokens) == found.tokens.shape:
        return found
    rows_and_slots = (slice(batch), slice(settings.max_tokens))
    return Generated(
        tokens=found.tokens[rows_and_slots],
        lengths=found.lengths[:batch],
        logprobs=found.logprobs[rows_and_slots],
        stopped=found.stopped[:batch],
        steps=found.steps,
    )


def prepare_decode(
    config: families.Config,
    params: Params,
    prompt: Prompt,
    key: jax.Array,
    settings: Sampling,
    *,
    adapters: Adapters = None,
    rows: Array | None = None,
    combine: PolicyMixture | None = None,
) -> tuple[DecodeSpec, DecodeInputs, Prompt]:
    """Check and pad the arguments of `generate`, and split them for compilation."""
    combine = combine or PolicyMixture(None)
    check(config, prompt, key, settings, adapters, rows, combine)
    batch, length = np.shape(prompt.tokens)
    parts = row_parts(params)
    padded = -(-_bucket(batch) // parts) * parts  # every device gets as many rows
    static, sampled = split_sampling(settings, batch, padded, config.vocab_size)
    adapters_per_row, weights = 1, combine.weights
    if combine.rows is not None:
        adapters_per_row, rows = np.shape(combine.rows)[1], combine.rows
    if rows is not None and np.ndim(rows) == 2 and combine.rows is None:
        rows = _padded(rows, (padded, np.shape(rows)[1]), np.float32)
    elif rows is not None:  # adapters outermost, as `_logits` folds them
        rows = _padded(
            jnp.reshape(rows, (batch, adapters_per_row)), (padded, adapters_per_row), np.int32
        ).T.reshape(-1)
    if weights is not None:
        weights = _padded(weights, (padded, np.shape(weights)[1]), np.float32)
    spec = DecodeSpec(
        configs=(config, *(other for other, _ in combine.others)),
        adapters_per_row=adapters_per_row,
        slots=bucket_length(settings.max_tokens, max(settings.max_tokens, config.positions)),
        sampling=static,
    )
    inputs = DecodeInputs(
        params=(params, *(other for _, other in combine.others)),
        adapters=adapters,
        rows=rows,
        weights=weights,
        keys=key if key.ndim == 0 or batch == padded else key[np.arange(padded) % batch],
        sampling=sampled,
    )
    prefix, firsts, begins, soft = prompt.prefix, prompt.prefix_lengths, prompt.prefix_starts, 0
    if prefix is not None:
        soft = np.shape(prefix)[1]
        firsts = _padded(np.full(batch, soft) if firsts is None else firsts, (padded,), np.int32)
        prefix = _padded(prefix, (padded, *np.shape(prefix)[1:]))
        begins = None if begins is None else _padded(begins, (padded,), np.int32)
    shape = (padded, bucket_length(max(length, 1), max(length, config.positions - soft)))
    tokens = _padded(prompt.tokens, shape, np.int32)
    return (
        spec,
        inputs,
        Prompt(tokens, _padded(prompt.lengths, (padded,), np.int32), prefix, firsts, begins),
    )


def prefill(spec: DecodeSpec, inputs: DecodeInputs, prompt: Prompt) -> DecodeState:
    """Read the prompts and sample the first token of each completion; `spec` is static."""
    batch, length = prompt.tokens.shape
    soft = 0 if prompt.prefix is None else prompt.prefix.shape[1]
    totals = prompt.lengths
    if prompt.prefix_lengths is not None:
        totals = totals + prompt.prefix_lengths
    caches: tuple[Caches, ...] = tuple(
        families.new_cache(
            config, batch * (1 if number else spec.adapters_per_row), soft + length + spec.slots - 1
        )
        for number, config in enumerate(spec.configs)
    )
    embed_inputs = partial(prompt_embeddings, prompt)
    logits, caches = _logits(spec, inputs, caches, embed_inputs, jnp.maximum(totals, 1), None)
    state = DecodeState(
        step=jnp.zeros((), jnp.int32),
        caches=caches,
        starts=jnp.maximum(totals, 1) - 1,
        ended=totals == 0,
        stopped=jnp.zeros(batch, bool),
        lengths=jnp.zeros(batch, jnp.int32),
        tokens=jnp.full((batch, spec.slots), inputs.sampling.pad_id, jnp.int32),
        logprobs=jnp.zeros((batch, spec.slots), logits.dtype),
    )
    return _sample_step(spec, inputs, state, logits)


def prompt_embeddings(prompt: Prompt, config: families.Config, params: Params) -> jax.Array:
    """Return soft tokens and words as embeddings [B, Q + T, D], without a gap, zeros behind."""
    embeddings = families.embed(config, params, jnp.asarray(prompt.tokens))
    totals = prompt.lengths[:, None]
    place = jnp.arange(embeddings.shape[1], dtype=jnp.int32)[None, :]
    if prompt.prefix is not None and prompt.prefix_lengths is not None:
        soft, firsts = prompt.prefix.shape[1], prompt.prefix_lengths[:, None]
        embeddings = jnp.concatenate([prompt.prefix.astype(embeddings.dtype), embeddings], axis=1)
        totals = totals + firsts
        place = jnp.arange(embeddings.shape[1], dtype=jnp.int32)[None, :]
        begin = 0 if prompt.prefix_starts is None else prompt.prefix_starts[:, None]
        behind = jnp.where(place < begin + firsts, place - begin, place + soft - firsts)
        source = jnp.where(place < begin, place + soft, behind)
        embeddings = jnp.take_along_axis(embeddings, source[:, :, None], axis=1, mode="clip")
    # Padding may hold ids outside the table, and NaN would pass every mask.
    return jnp.where((place < totals)[:, :, None], embeddings, 0)


def decode_until(
    spec: DecodeSpec, inputs: DecodeInputs, state: DecodeState, until: Array | np.integer
) -> DecodeState:
    """Sample until every row has ended or has `until` tokens; `spec` is static.

    Args:
        spec: static part of decoding.
        inputs: arrays that stay the same.
        state: of `prefill`, or of this function.
        until: scalar int32.
    """
    inputs = unstack_adapters(spec, inputs)  # once, and not at every token

    def going(state: DecodeState) -> jax.Array:
        return (state.step < until) & ~jnp.all(state.ended)

    return jax.lax.while_loop(going, partial(decode_step, spec, inputs), state)


def unstack_adapters(spec: DecodeSpec, inputs: DecodeInputs) -> DecodeInputs:
    """Return inputs whose adapters are one tree per layer where the model's parameters are."""
    config = spec.configs[0]
    if not config.unstacked or inputs.adapters is None:
        return inputs
    return inputs._replace(adapters=each_layer(config.layers, inputs.adapters))


def decode_step(spec: DecodeSpec, inputs: DecodeInputs, state: DecodeState) -> DecodeState:
    """Return the state with one more token in each row that has not ended; `spec` is static."""
    last = jax.lax.dynamic_slice_in_dim(state.tokens, state.step - 1, 1, axis=1)

    def embed_inputs(config: families.Config, params: Params) -> jax.Array:
        return families.embed(config, params, last)

    logits, caches = _logits(spec, inputs, state.caches, embed_inputs, None, state.starts)
    return _sample_step(spec, inputs, state._replace(caches=caches), logits)


def decode(spec: DecodeSpec, inputs: DecodeInputs, prompt: Prompt) -> Generated:
    """Return completions of prompts, M = `spec.slots`; the pure function behind `generate`."""
    state = decode_until(spec, inputs, prefill(spec, inputs, prompt), inputs.sampling.max_tokens)
    return Generated(state.tokens, state.lengths, state.logprobs, state.stopped, state.step)


decode_jit = jax.jit(decode, static_argnums=0)


def _logits(
    spec: DecodeSpec,
    inputs: DecodeInputs,
    caches: tuple[Caches, ...],
    embed_inputs: Callable[[families.Config, Params], jax.Array],
    lengths: jax.Array | None,
    starts: jax.Array | None,
) -> tuple[jax.Array, tuple[Caches, ...]]:
    """Logits after each row's last token [B, V], of all policies together, and their caches.

    A row's adapters stand below each other in the batch, [A * B], with one cache for all.
    """
    found, kept = [], []
    for number, (config, params) in enumerate(zip(spec.configs, inputs.params, strict=True)):
        adapters_per_row = 1 if number else spec.adapters_per_row
        embeddings = embed_inputs(config, params)
        hidden, cache = families.forward(
            config,
            params,
            embeddings=jnp.tile(embeddings, (adapters_per_row, 1, 1)),
            lengths=None if lengths is None else jnp.tile(lengths, adapters_per_row),
            cache=caches[number],
            starts=None if starts is None else jnp.tile(starts, adapters_per_row),
            adapters=None if number else inputs.adapters,
            rows=None if number else inputs.rows,
        )
        if lengths is None:
            hidden = hidden[:, 0]
        else:
            ends = jnp.tile(lengths, adapters_per_row)[:, None, None] - 1
            hidden = jnp.take_along_axis(hidden, ends, axis=1)[:, 0]
        found.append(families.logits(params, hidden).reshape(adapters_per_row, len(embeddings), -1))
        kept.append(cache)
    logits = found[0][0]
    if inputs.weights is not None:
        # What normalises each policy is one number a row: the softmax to come removes it.
        logits = jnp.einsum(
            "BC,CBV->BV",
            inputs.weights.astype(logits.dtype),
            jnp.concatenate(found),
            precision="highest",
        )
    return logits, tuple(kept)


def _sample_step(
    spec: DecodeSpec, inputs: DecodeInputs, state: DecodeState, logits: jax.Array
) -> DecodeState:
    """The state with one more token in each row that has not ended."""
    sampling, step = inputs.sampling, state.step
    barred = sampling.suppressed | (sampling.stop & (step < sampling.min_tokens))
    logits = jnp.where(barred[None, :], -jnp.inf, logits)
    rows = inputs.keys
    if rows.ndim == 0:
        rows = jax.vmap(partial(jax.random.fold_in, rows))(jnp.arange(len(logits), dtype=jnp.int32))
    keys = jax.vmap(jax.random.fold_in, (0, None))(rows, step)
    one = partial(sample_token, static=spec.sampling)
    token, logprob = jax.vmap(one)(keys, logits, sampling.temperature, sampling.top_p)
    token = jnp.where(state.ended, sampling.pad_id, token)
    logprob = jnp.where(state.ended, 0, logprob)
    last = ~state.ended & sampling.stop[token]
    return DecodeState(
        step=step + 1,
        caches=state.caches,
        # A row that has ended writes its last slot over and over.
        starts=state.starts + ~state.ended,
        ended=state.ended | last,
        stopped=state.stopped | last,
        lengths=state.lengths + ~state.ended,
        tokens=jax.lax.dynamic_update_slice_in_dim(state.tokens, token[:, None], step, axis=1),
        logprobs=jax.lax.dynamic_update_slice_in_dim(
            state.logprobs, logprob[:, None], step, axis=1
        ),
    )


def _bucket(rows: int) -> int:
    """Padded rows: every number to 8, then four steps an octave or more."""
    step = 1 << max(0, (rows - 1).bit_length() - 3)
    return -(-rows // step) * step


def _padded(values: Array, shape: tuple[int, ...], dtype: type | None = None) -> Array:
    """Values with zeros behind them up to a shape; on the device where they are there already."""
    library = jnp if isinstance(values, jax.Array) else np
    values = library.asarray(values, dtype)
    widths = [(0, size - found) for size, found in zip(shape, values.shape, strict=True)]
    return library.pad(values, widths) if any(after for _, after in widths) else values
