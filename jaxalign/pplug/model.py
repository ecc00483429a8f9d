"""A frozen language model with a persona plug: what is trained, and what stands before a prompt."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxalign.data.histories import Histories
from jaxalign.kernels.token_logprob import token_logprob
from jaxalign.models import embed, families
from jaxalign.models.buckets import bucket_length
from jaxalign.models.completions import CompletionBatch, completion_states
from jaxalign.models.decoder import unembedding
from jaxalign.models.embed import Encoder
from jaxalign.models.encoder import EncoderConfig, Pooling
from jaxalign.models.language import LanguageModel
from jaxalign.pplug.aggregate import aggregate, init, rescaled, task_token
from jaxalign.pplug.config import PersonaConfig, TextConfig
from jaxalign.pplug.rows import Told, check_encoder, slots_of, told
from jaxalign.pplug.store import HistoryStore
from jaxalign.progress import track
from jaxalign.train.mesh import batch_sharding, gathered
from jaxalign.train.step import Batch, Sums

Tree = dict[str, Any]
_MEASURED = 256  # samples that a fresh persona's length is measured on
_PART = 64  # samples whose tokens are made together


@dataclass(frozen=True, eq=False)
class PPlug:
    """A language model that is told who asks.

    Attributes:
        model: the language model, frozen.
        encoder: of histories, frozen; the input encoder began as its copy.
        persona: what stands before a prompt.
        text: what is read of questions and histories.
        trained: {"encoder": of inputs, "persona": as from `aggregate.init`}, as far as the
            persona needs them; float32.
    """

    model: LanguageModel
    encoder: Encoder
    persona: PersonaConfig
    text: TextConfig
    trained: Tree = field(repr=False)


class Plan(NamedTuple):
    """What is compiled in.

    Attributes:
        decoder: config of the language model.
        encoder: config of the input encoder.
        pooling, normalise: how its vector is made.
        persona: what stands before a prompt.
        drop: the largest share of a history that a thinned sample lacks.
    """

    decoder: families.Config
    encoder: EncoderConfig
    pooling: Pooling
    normalise: bool
    persona: PersonaConfig
    drop: float


def start(
    key: jax.Array,
    model: LanguageModel,
    encoder: Encoder,
    persona: PersonaConfig,
    text: TextConfig,
    histories: Histories,
    store: HistoryStore | None = None,
) -> PPlug:
    """A fresh plug, whose soft tokens are as long as the model's own embeddings on average.

    Args:
        key: random key.
        model: what it is for.
        encoder: of the BERT family.
        persona: what stands before a prompt.
        text: what is read of the data.
        histories: some of the data, on which lengths are measured.
        store: of the encoder's vectors; None where the persona is not made of histories.

    Raises:
        InputError: an encoder of another kind, broken embeddings, or no store where one is needed.
    """
    check_encoder(encoder)
    norm = embedding_norm(model.params["embed"]["table"])
    trained = fresh(key, encoder, persona, model.config.width, norm)
    plug = PPlug(model, encoder, persona, text, trained)
    if persona.source == "none":
        return plug
    part = histories.take(np.arange(len(histories))[:: max(1, len(histories) // _MEASURED)])
    personas = prefixes(plug, part, store)[:, int(persona.task) :]
    if persona.source == "history":
        personas = personas[part.lengths > 0]  # the others have the null persona
    if len(personas):
        trained["persona"] = rescaled(trained["persona"], jnp.asarray(personas), norm)
    return plug


def fresh(
    key: jax.Array, encoder: Encoder, persona: PersonaConfig, width: int, norm: float
) -> Tree:
    """What `PPlug.trained` is at first, the persona's length measured on random items.

    Args:
        key: random key.
        encoder: whose copy reads inputs.
        persona: says which parts there are.
        width: D.
        norm: mean length of the language model's token embeddings.
    """
    params = _init(key, persona, encoder.config.width, width, norm)
    if not persona.task:
        del params["task"]
    if persona.source == "none":
        params = {"task": params["task"]}
    if not persona.asks:
        return {"persona": params}
    copy = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), encoder.params)
    return {"encoder": copy, "persona": params}


def embedding_norm(table: Any) -> float:
    """Mean length of token embeddings [V, D]."""
    wide = jnp.asarray(table).astype(jnp.promote_types(table.dtype, jnp.float32))
    return float(jnp.mean(jnp.linalg.norm(wide, axis=1)))


def plan(plug: PPlug, drop: float = 0.0) -> Plan:
    """What is static of a plug."""
    config, encoder = plug.encoder.config, plug.encoder
    assert isinstance(config, EncoderConfig)
    return Plan(plug.model.config, config, encoder.pooling, encoder.normalise, plug.persona, drop)


def prefix(plan: Plan, trained: Mapping[str, Any], batch: Batch, mask: Any = None) -> jax.Array:
    """Soft tokens before each prompt of a batch: the task token, then the persona.

    Args:
        plan: static.
        trained: as in `PPlug`.
        batch: `lengths` [B], whose values do not matter, and what `Told.arrays` gives.
        mask: [B, n] bool in place of the batch's.

    Returns:
        [B, Q, D], at least float32.
    """
    config, params = plan.persona, trained["persona"]
    parts = []
    if config.task:
        parts.append(jnp.tile(task_token(params)[None], (len(batch["lengths"]), 1, 1)))
    if config.source != "none":
        parts.append(_personas(plan, trained, batch, mask))
    return jnp.concatenate(parts, axis=1)


def prefixes(
    plug: PPlug, histories: Histories, store: HistoryStore | None = None, progress: bool = False
) -> np.ndarray:
    """Soft tokens before the prompt of each sample.

    Args:
        plug: whose.
        histories: N samples.
        store: of the encoder's vectors, which those of new items are added to.
        progress: show a bar on stderr when it takes more than a few seconds.

    Returns:
        [N, Q, D] float32.

    Raises:
        InputError: as `told`.
    """
    read = told(plug.encoder, plug.persona, plug.text, histories, store, progress)
    compiled = partial(_prefix, plan(plug))
    count = len(histories)
    slots = slots_of(read.counts)
    parts = np.arange(-(-count // _PART) * _PART).reshape(-1, _PART)
    parts = np.where(parts < count, parts, -1)
    found = []
    for rows in track(
        "making personas", parts, count, lambda rows: int((rows >= 0).sum()), progress
    ):
        batch = read.arrays(rows, _width(read, rows), slots)
        batch["lengths"] = np.zeros(len(rows), np.int32)
        found.append(np.asarray(compiled(plug.trained, batch), np.float32)[rows >= 0])
    return np.concatenate(found)


def loss(
    plan: Plan,
    mesh: Mesh,
    trained: Mapping[str, Any],
    frozen: Mapping[str, Any],
    batch: Batch,
    key: jax.Array | None,
) -> Sums:
    """Negative log-probability of the answers of a batch, summed.

    Args:
        plan: static.
        mesh: where parameters and rows lie.
        trained: as in `PPlug`.
        frozen: parameters of the language model.
        batch: `prompts` [B, T], `lengths` [B], `answers` [B, M] and `ends` [B], int32; what
            `Told.arrays` gives; `thinned` [B] bool, whose histories lack items while training.
        key: of what they lack; None leaves histories whole.

    Returns:
        `loss` in nats and `weight`, the answers' tokens, both [] and at least float32.
    """
    mask = batch.get("mask")
    if key is not None and mask is not None:
        keys = jax.random.split(key, len(mask))
        less = jax.vmap(partial(thinned, share=plan.drop))(keys, mask)
        mask = jnp.where(batch["thinned"][:, None], less, mask)
    tables = {
        name: {**frozen[name], "table": gathered(frozen[name]["table"], mesh)}
        for name in ("embed", "unembed")
        if name in frozen
    }
    params = {**frozen, **tables}
    answers = CompletionBatch(batch["prompts"], batch["lengths"], batch["answers"], batch["ends"])
    states = completion_states(
        plan.decoder,
        params,
        answers,
        prefix=prefix(plan, trained, batch, mask),
        sharding=batch_sharding(mesh),
    )
    logprob, _ = token_logprob(states, unembedding(params), answers.completions)
    return {
        "loss": -jnp.sum(jnp.where(answers.mask, logprob, 0)),
        "weight": jnp.sum(answers.mask, dtype=logprob.dtype),
    }


def thinned(key: jax.Array, mask: jax.Array, share: float) -> jax.Array:
    """A history without int(n U(0, share)) + 1 of its n items, drawn at random.

    Args:
        key: random key.
        mask: [n] bool, set on items; with two or fewer all stay.
        share: the largest that goes.

    Returns:
        [n] bool.

    Source: rucliujn/PPlug @ 6f9f283.
    """
    count, (many, which) = jnp.sum(mask), jax.random.split(key)
    away = jnp.floor(count * jax.random.uniform(many, (), jnp.float32, 0, share)) + 1
    drawn = jnp.where(mask, jax.random.uniform(which, mask.shape, jnp.float32), jnp.inf)
    rank = jnp.argsort(jnp.argsort(drawn))
    return jnp.where(count > 2, mask & (rank >= away), mask)


def _personas(plan: Plan, trained: Mapping[str, Any], batch: Batch, mask: Any) -> jax.Array:
    """[B, S, D]."""
    config, rows = plan.persona, len(batch["lengths"])
    if config.asks:
        tokens, lengths = batch["queries"], batch["query_lengths"]
        real = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :] < lengths[:, None]
        queries = embed.forward(
            plan.encoder, plan.pooling, plan.normalise, trained["encoder"], tokens, real
        )
    else:
        queries = jnp.zeros((rows, plan.encoder.width), jnp.float32)
    if config.source == "input":
        items, mask = queries[:, None], jnp.ones((rows, 1), bool)
    else:
        items, mask = batch["items"], batch["mask"] if mask is None else mask
    one = partial(aggregate, config=config)
    return jax.vmap(one, (None, 0, 0, 0))(trained["persona"], queries, items, mask)


_init = jax.jit(init, static_argnums=(1, 2, 3, 4))
_prefix = jax.jit(prefix, static_argnums=0)


def _width(read: Told, rows: np.ndarray) -> int:
    """A bucket that holds the queries of some samples."""
    if read.queries is None:
        return 1
    return bucket_length(int(read.queries.lengths[rows[rows >= 0]].max()), read.positions)
