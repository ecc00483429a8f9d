"""Answers of a language model: one compiled program from the prompts to the last token drawn."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.models import families
from jaxalign.models.buckets import bucket_length
from jaxalign.models.decoder import Adapters
from jaxalign.models.generate_checks import check
from jaxalign.models.sampling import Dials, Rule, Sampling, draw, program

Params = Mapping[str, Any]


class Generated(NamedTuple):
    """What was drawn.

    Attributes:
        tokens: [B, M] int32, M = `max_tokens`; `pad_id` behind the end of an answer.
        lengths: [B] int32 tokens of each answer, its stop token included.
        logprobs: [B, M], at least float32: of each token under the distribution it was drawn
            from, temperature, top-k, top-p, suppression and minimum length included; at
            temperature 0 as `sampling.draw` says; 0 behind the end.
        stopped: [B] bool, whether the answer ended with a stop id.
        steps: scalar int32, how many tokens were decoded before every row had ended.
    """

    tokens: jax.Array
    lengths: jax.Array
    logprobs: jax.Array
    stopped: jax.Array
    steps: jax.Array


class Mixture(NamedTuple):
    """Several policies that draw each token together: log pi = sum_c w_c log pi_c, normalised.

    Attributes:
        weights: [B, C] of the A adapters in `rows` first, then of `others`; any finite numbers.
        rows: [B, A] int32, the adapters of the stack that stand beside each other in each row;
            -1 is the model without one, so that a reference policy is one of the columns. None
            for every row's own one (`rows` of `generate`), A = 1.
        others: (config, params) of models with the same vocabulary, without adapters.

    Source: Shi et al. 2024, https://arxiv.org/abs/2406.18853 (MOD, for reverse KL).
    """

    weights: Any
    rows: Any = None
    others: tuple[tuple[families.Config, Params], ...] = ()


class Plan(NamedTuple):
    """What is compiled in.

    Attributes:
        configs: of the model and those mixed with it.
        fold: A, how many adapters each row of the first model has.
        slots: M, the most tokens that may be drawn.
        rule: how they are drawn.
        apart: whether the loop has a copy of each layer's parameters beside the stack.
    """

    configs: tuple[families.Config, ...]
    fold: int
    slots: int
    rule: Rule
    apart: bool


class Job(NamedTuple):
    """What stays the same from the first token to the last.

    Attributes:
        params: of each of `Plan.configs`.
        adapters, rows: of the first model, [A * B] where each row has A adapters.
        weights: [B, C] of a mixture, or None.
        keys: [B], one a row; or one, folded with the row's number.
        dials: settings that are data.
    """

    params: tuple[Params, ...]
    adapters: Any
    rows: Any
    weights: Any
    keys: jax.Array
    dials: Dials


class Prompt(NamedTuple):
    """What the answers follow.

    Attributes:
        tokens: [B, T] int, padding on the right.
        lengths: [B] int32.
        prefix: [B, Q, D] soft tokens before them, or None.
        prefix_lengths: [B] int32, or None where all have Q.
    """

    tokens: Any
    lengths: Any
    prefix: Any = None
    prefix_lengths: Any = None


class State(NamedTuple):
    """Where a run stands, after `step` tokens.

    Attributes:
        step: scalar int32.
        caches: one for each model; with `Plan.apart`, of each its layers'.
        starts: [B] int32, the slot of the last token drawn.
        ended: [B] bool.
        stopped, lengths, tokens, logprobs: as in `Generated`, M slots.
    """

    step: jax.Array
    caches: tuple[Any, ...]
    starts: jax.Array
    ended: jax.Array
    stopped: jax.Array
    lengths: jax.Array
    tokens: jax.Array
    logprobs: jax.Array


def generate(
    config: families.Config,
    params: Params,
    tokens: Any,
    lengths: Any,
    key: jax.Array,
    settings: Sampling,
    *,
    prefix: Any = None,
    prefix_lengths: Any = None,
    adapters: Adapters = None,
    rows: Any = None,
    combine: Mixture | None = None,
    apart: bool | None = None,
) -> Generated:
    """Draws an answer to each prompt of a batch.

    Rows, prompts and answers are padded to buckets: there is at most one compilation for each.

    Args:
        config: static.
        params: of the model.
        tokens: [B, T] int, padding on the right.
        lengths: [B] int32; a row without tokens and without prefix gives an empty answer.
        key: one key, folded with the row's number; or [B] keys, one a row. What a row draws
            depends on its key and prompt alone, not on the rows beside it.
        settings: how tokens are drawn.
        prefix: [B, Q, D] soft tokens, in line before each row's tokens.
        prefix_lengths: [B] int32 soft tokens of each row; None where all have Q.
        adapters: one scaled adapter, or a stack of them (`jaxalign.models.lora`).
        rows: [B] int32, which adapter of a stack each row has; -1 for none.
        combine: further policies that draw together with this one.
        apart: copy each layer's parameters out of their stack before the loop, where a step would
            copy them again for every token: as much memory again as the parameters take, for a
            third of the traffic. None does so on a GPU only.

    Returns:
        Tokens, lengths and log-probabilities.

    Raises:
        InputError: where sizes do not fit each other, or the context.
    """
    batch = np.shape(tokens)[0]
    prompt = Prompt(tokens, lengths, prefix, prefix_lengths)
    plan, job, prompt = prepare(
        config,
        params,
        prompt,
        key,
        settings,
        adapters=adapters,
        rows=rows,
        combine=combine,
        apart=apart,
    )
    found: Generated = run(plan, job, prompt)
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


def prepare(
    config: families.Config,
    params: Params,
    prompt: Prompt,
    key: jax.Array,
    settings: Sampling,
    *,
    adapters: Adapters = None,
    rows: Any = None,
    combine: Mixture | None = None,
    apart: bool | None = None,
) -> tuple[Plan, Job, Prompt]:
    """Arguments of `generate`, checked, padded to their buckets, and split for compilation."""
    combine = combine or Mixture(None)
    check(config, prompt, key, settings, adapters, rows, combine)
    batch, length = np.shape(prompt.tokens)
    padded = _bucket(batch)
    rule, dials = program(settings, batch, padded, config.vocab_size)
    fold, weights = 1, combine.weights
    if combine.rows is not None:
        fold, rows = np.shape(combine.rows)[1], combine.rows
    if rows is not None:  # adapters outermost, as `_logits` folds them
        rows = _padded(jnp.reshape(rows, (batch, fold)), (padded, fold), np.int32).T.reshape(-1)
    if weights is not None:
        weights = _padded(weights, (padded, np.shape(weights)[1]), np.float32)
    plan = Plan(
        configs=(config, *(other for other, _ in combine.others)),
        fold=fold,
        slots=bucket_length(settings.max_tokens, max(settings.max_tokens, config.positions)),
        rule=rule,
        apart=jax.default_backend() == "gpu" if apart is None else apart,
    )
    job = Job(
        params=(params, *(other for _, other in combine.others)),
        adapters=adapters,
        rows=rows,
        weights=weights,
        keys=key if key.ndim == 0 or batch == padded else key[np.arange(padded) % batch],
        dials=dials,
    )
    prefix, firsts, soft = prompt.prefix, prompt.prefix_lengths, 0
    if prefix is not None:
        soft = np.shape(prefix)[1]
        firsts = _padded(np.full(batch, soft) if firsts is None else firsts, (padded,), np.int32)
        prefix = _padded(prefix, (padded, *np.shape(prefix)[1:]))
    shape = (padded, bucket_length(max(length, 1), max(length, config.positions - soft)))
    tokens = _padded(prompt.tokens, shape, np.int32)
    return plan, job, Prompt(tokens, _padded(prompt.lengths, (padded,), np.int32), prefix, firsts)


def begin(plan: Plan, job: Job, prompt: Prompt) -> State:
    """Reads the prompts and draws the first token of each answer; plan is static."""
    batch, length = prompt.tokens.shape
    soft = 0 if prompt.prefix is None else prompt.prefix.shape[1]
    totals = prompt.lengths
    if prompt.prefix is not None:
        totals = totals + prompt.prefix_lengths
    caches: tuple[Any, ...] = tuple(
        families.new_cache(
            config, batch * (1 if number else plan.fold), soft + length + plan.slots - 1
        )
        for number, config in enumerate(plan.configs)
    )
    inputs = partial(_in_line, prompt)
    logits, caches = _logits(plan, job, caches, inputs, jnp.maximum(totals, 1), None)
    if plan.apart:
        pairs = zip(plan.configs, caches, strict=True)
        caches = tuple(families.layers_apart(config, cache) for config, cache in pairs)
    state = State(
        step=jnp.zeros((), jnp.int32),
        caches=caches,
        starts=jnp.maximum(totals, 1) - 1,
        ended=totals == 0,
        stopped=jnp.zeros(batch, bool),
        lengths=jnp.zeros(batch, jnp.int32),
        tokens=jnp.full((batch, plan.slots), job.dials.pad_id, jnp.int32),
        logprobs=jnp.zeros((batch, plan.slots), logits.dtype),
    )
    return _drawn(plan, job, state, logits)


def advance(plan: Plan, job: Job, state: State, until: jax.Array) -> State:
    """Draws on until every row has ended or has `until` tokens (scalar int32); plan is static."""
    if plan.apart:
        plan, job = _layers_apart(plan, job)

    def going(state: State) -> jax.Array:
        return (state.step < until) & ~jnp.all(state.ended)

    def once(state: State) -> State:
        last = jax.lax.dynamic_slice_in_dim(state.tokens, state.step - 1, 1, axis=1)

        def inputs(config: families.Config, params: Params) -> jax.Array:
            return families.embed(config, params, last)

        logits, caches = _logits(plan, job, state.caches, inputs, None, state.starts)
        return _drawn(plan, job, state._replace(caches=caches), logits)

    return jax.lax.while_loop(going, once, state)


def decode(plan: Plan, job: Job, prompt: Prompt) -> Generated:
    """From prompts to answers, M = `plan.slots`; the pure function behind `generate`."""
    state = advance(plan, job, begin(plan, job, prompt), job.dials.max_tokens)
    return Generated(state.tokens, state.lengths, state.logprobs, state.stopped, state.step)


run = jax.jit(decode, static_argnums=0)


def _layers_apart(plan: Plan, job: Job) -> tuple[Plan, Job]:
    """Models and adapters with one tree a layer: what the loop reads, cut before it begins."""
    pairs = zip(plan.configs, job.params, strict=True)
    models = [families.apart(config, params) for config, params in pairs]
    adapters = job.adapters
    if adapters is not None:
        adapters = families.layers_apart(plan.configs[0], adapters)
    plan = plan._replace(configs=tuple(config for config, _ in models))
    return plan, job._replace(params=tuple(params for _, params in models), adapters=adapters)


def _logits(
    plan: Plan,
    job: Job,
    caches: tuple[Any, ...],
    inputs: Callable[[families.Config, Params], jax.Array],
    lengths: jax.Array | None,
    starts: jax.Array | None,
) -> tuple[jax.Array, tuple[Any, ...]]:
    """Logits after each row's last token [B, V], of all policies together, and their caches.

    A row's adapters stand below each other in the batch, [A * B], with one cache for all.
    """
    found, kept = [], []
    for number, (config, params) in enumerate(zip(plan.configs, job.params, strict=True)):
        fold = 1 if number else plan.fold
        embeddings = inputs(config, params)
        hidden, cache = families.forward(
            config,
            params,
            embeddings=jnp.tile(embeddings, (fold, 1, 1)),
            lengths=None if lengths is None else jnp.tile(lengths, fold),
            cache=caches[number],
            starts=None if starts is None else jnp.tile(starts, fold),
            adapters=None if number else job.adapters,
            rows=None if number else job.rows,
        )
        assert cache is not None
        if lengths is None:
            hidden = hidden[:, 0]
        else:
            ends = jnp.tile(lengths, fold)[:, None, None] - 1
            hidden = jnp.take_along_axis(hidden, ends, axis=1)[:, 0]
        found.append(families.logits(params, hidden).reshape(fold, len(embeddings), -1))
        kept.append(cache)
    logits = found[0][0]
    if job.weights is not None:
        # What normalises each policy is one number a row: the softmax to come removes it.
        logits = jnp.einsum(
            "BC,CBV->BV",
            job.weights.astype(logits.dtype),
            jnp.concatenate(found),
            precision="highest",
        )
    return logits, tuple(kept)


def _drawn(plan: Plan, job: Job, state: State, logits: jax.Array) -> State:
    """The state with one more token of each row that has not ended."""
    dials, step = job.dials, state.step
    barred = dials.suppressed | (dials.stop & (step < dials.min_tokens))
    logits = jnp.where(barred[None, :], -jnp.inf, logits)
    rows = job.keys
    if rows.ndim == 0:
        rows = jax.vmap(partial(jax.random.fold_in, rows))(jnp.arange(len(logits), dtype=jnp.int32))
    keys = jax.vmap(jax.random.fold_in, (0, None))(rows, step)
    one = partial(draw, rule=plan.rule)
    token, logprob = jax.vmap(one)(keys, logits, dials.temperature, dials.top_p)
    token = jnp.where(state.ended, dials.pad_id, token)
    logprob = jnp.where(state.ended, 0, logprob)
    last = ~state.ended & dials.stop[token]
    return State(
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


def _in_line(prompt: Prompt, config: families.Config, params: Params) -> jax.Array:
    """Embeddings of prefix and tokens [B, Q + T, D], a row's own without a gap, zeros behind."""
    embeddings = families.embed(config, params, jnp.asarray(prompt.tokens))
    totals = prompt.lengths[:, None]
    place = jnp.arange(embeddings.shape[1], dtype=jnp.int32)[None, :]
    if prompt.prefix is not None:
        soft, firsts = prompt.prefix.shape[1], prompt.prefix_lengths[:, None]
        embeddings = jnp.concatenate([prompt.prefix.astype(embeddings.dtype), embeddings], axis=1)
        totals = totals + firsts
        place = jnp.arange(embeddings.shape[1], dtype=jnp.int32)[None, :]
        source = jnp.where(place < firsts, place, place + soft - firsts)
        embeddings = jnp.take_along_axis(embeddings, source[:, :, None], axis=1, mode="clip")
    # Padding may hold ids outside the table, and NaN would pass every mask.
    return jnp.where((place < totals)[:, :, None], embeddings, 0)


def _bucket(rows: int) -> int:
    """Padded rows: every number to 8, then four steps an octave or more."""
    step = 1 << max(0, (rows - 1).bit_length() - 3)
    return -(-rows // step) * step


def _padded(values: Any, shape: tuple[int, ...], dtype: Any = None) -> Any:
    """Values with zeros behind them up to a shape; on the device where they are there already."""
    library = jnp if isinstance(values, jax.Array) else np
    values = library.asarray(values, dtype)
    widths = [(0, size - found) for size, found in zip(shape, values.shape, strict=True)]
    return library.pad(values, widths) if any(after for _, after in widths) else values
