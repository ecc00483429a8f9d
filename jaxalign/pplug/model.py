"""A frozen language model with a persona plug: trained parameters and soft prefixes."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxalign.arrays import check_count
from jaxalign.data.histories import Histories
from jaxalign.errors import InputError
from jaxalign.models import embed, families
from jaxalign.models.buckets import bucket_length
from jaxalign.models.embed import Encoder
from jaxalign.models.encoder import EncoderConfig, Pooling
from jaxalign.models.language import LanguageModel
from jaxalign.models.params import Params, leaf
from jaxalign.pplug.config import PersonaConfig, TextConfig
from jaxalign.pplug.persona import (
    PersonaParams,
    aggregate,
    init_persona,
    rescale_persona,
    task_token,
)
from jaxalign.pplug.rows import (
    PersonaInputs,
    encoder_config,
    items_centre,
    padded_length,
    prepare_persona_inputs,
)
from jaxalign.pplug.store import HistoryStore, VectorStore
from jaxalign.progress import track
from jaxalign.train.mesh import gathered
from jaxalign.train.step import Batch

_INIT_SAMPLES = 256  # samples on which the length of a fresh persona is measured
_BATCH = 64  # samples whose soft tokens are computed together


class PlugParams(TypedDict, total=False):
    """Trained parameters, float32; a part that the persona does not use is absent.

    Attributes:
        encoder: Parameters of the input encoder, which start as a copy of the history encoder's.
        persona: Parameters of the persona and of the task token.
    """

    encoder: Params
    persona: PersonaParams


@dataclass(frozen=True, eq=False)
class PPlug:
    """A frozen language model and the trained parameters that condition it on the user.

    Attributes:
        model: The language model, frozen.
        encoder: The history encoder, frozen; the input encoder starts as its copy.
        persona: Settings of the soft tokens beside a prompt.
        text: Which parts of questions and histories are read.
        trained: The trained parameters.
        centre: [E] mean vector of the training items, with `persona.centred`; otherwise None.
    """

    model: LanguageModel
    encoder: Encoder
    persona: PersonaConfig
    text: TextConfig
    trained: PlugParams = field(repr=False)
    centre: np.ndarray | None = field(default=None, repr=False)


class PrefixSpec(NamedTuple):
    """Static settings that are compiled into the prefix and the loss.

    Attributes:
        decoder: Config of the language model.
        encoder: Config of the input encoder.
        pooling, normalise: How the input encoder makes one vector of its states.
        persona: Settings of the soft tokens.
        drop: Largest share of a history that `drop_items` leaves out.
    """

    decoder: families.Config
    encoder: EncoderConfig
    pooling: Pooling
    normalise: bool
    persona: PersonaConfig
    drop: float


def init_plug(
    key: jax.Array,
    model: LanguageModel,
    encoder: Encoder,
    persona: PersonaConfig,
    text: TextConfig,
    histories: Histories,
    store: HistoryStore | None = None,
    progress: bool = False,
) -> PPlug:
    """Return a fresh plug whose soft tokens are on average as long as the model's embeddings.

    Args:
        key: Random key.
        model: The language model to condition.
        encoder: The history encoder, of the BERT family.
        persona: Settings of the soft tokens.
        text: Which parts of the data are read.
        histories: Samples of the data, on which the length of the personas and the mean vector of
            the items are measured.
        store: Store of the encoder's vectors; None if the persona is not made of histories.
        progress: Show a bar on standard error if encoding takes more than a few seconds.

    Returns:
        The plug; `histories` are not kept.

    Raises:
        InputError: The encoder is of another kind, the embeddings are broken, or a store is needed
            and missing, or no sample has an item although `persona.centre` needs some.

    Source: arXiv 2409.11901, section 3.3. The paper scales by the constant 539.97 of its model.
    """
    norm = embedding_norm(leaf(model.params, "embed", "table"))
    trained = init_trained(key, encoder, persona, model.config.width, norm)
    plug = PPlug(model, encoder, persona, text, trained)
    if persona.source == "none":
        return plug
    if persona.centred:
        inputs = prepare_persona_inputs(
            encoder, replace(persona, mean=True), text, histories, store, progress
        )
        plug = replace(plug, centre=items_centre(inputs))
    part = histories.take(np.arange(len(histories))[:: max(1, len(histories) // _INIT_SAMPLES)])
    personas = prefixes(plug, part, store, progress)[:, int(persona.task) :]
    if persona.source == "history":
        personas = personas[part.lengths > 0]  # the others have the null persona
    if len(personas):
        trained["persona"] = rescale_persona(trained["persona"], jnp.asarray(personas), norm)
    return plug


def init_trained(
    key: jax.Array, encoder: Encoder, persona: PersonaConfig, width: int, norm: float
) -> PlugParams:
    """Return fresh trained parameters, the persona's length measured on random items.

    Args:
        key: Random key.
        encoder: The history encoder, whose copy becomes the input encoder.
        persona: Settings of the soft tokens, which decide the parts that are present.
        width: D, the width of the language model.
        norm: Mean Euclidean length of the language model's token embeddings.
    """
    params = _init_persona(key, persona, encoder_config(encoder).width, width, norm)
    if not persona.task:
        del params["task"]
    if persona.source == "none":
        params = {"task": params["task"]}
    if not persona.uses_input:
        return {"persona": params}
    copy = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), encoder.params)
    return {"encoder": copy, "persona": params}


def embedding_norm(table: jax.Array | np.ndarray) -> float:
    """Return the mean Euclidean length of token embeddings [V, D].

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.pplug.model import embedding_norm
        >>> embedding_norm(jnp.array([[3.0, 4.0], [0.0, 1.0]]))
        3.0
    """
    wide = jnp.asarray(table).astype(jnp.promote_types(table.dtype, jnp.float32))
    return float(jnp.mean(jnp.linalg.norm(wide, axis=1)))


def prefix_spec(plug: PPlug, drop: float = 0.0) -> PrefixSpec:
    """Return the static settings of a plug.

    Args:
        plug: The plug.
        drop: Largest share of a history that `drop_items` leaves out while training.
    """
    encoder = plug.encoder
    return PrefixSpec(
        plug.model.config,
        encoder_config(encoder),
        encoder.pooling,
        encoder.normalise,
        plug.persona,
        drop,
    )


def prefix(
    spec: PrefixSpec, trained: PlugParams, batch: Batch, mask: jax.Array | None = None
) -> jax.Array:
    """Return the soft tokens beside each prompt of a batch: the task token, then the persona.

    Args:
        spec: Static settings.
        trained: The trained parameters.
        batch: `prompt_lengths` [B], of which only the shape is used, and the arrays of
            `PersonaInputs.arrays`.
        mask: [B, n] bool items to use instead of the batch's `mask`.

    Returns:
        [B, Q, D] soft tokens, at least float32.
    """
    config, params = spec.persona, trained["persona"]
    parts = []
    if config.task:
        rows = len(batch["prompt_lengths"])
        parts.append(jnp.tile(task_token(params)[None], (rows, 1, 1)))
    if config.source != "none":
        parts.append(_personas(spec, trained, batch, mask))
    return jnp.concatenate(parts, axis=1)


def prefixes(
    plug: PPlug,
    histories: Histories,
    store: VectorStore | None = None,
    progress: bool = False,
    batch_size: int = _BATCH,
) -> np.ndarray:
    """Return the soft tokens before the prompt of each sample.

    Args:
        plug: The plug.
        histories: N samples.
        store: Store of the encoder's vectors; vectors of new items are added.
        progress: Show a bar on standard error if it takes more than a few seconds.
        batch_size: Samples that are computed together; fewer are filled up to as many.

    Returns:
        [N, Q, D] float32.

    Raises:
        InputError: As `prepare_persona_inputs`, or a batch of no samples.
    """
    batch_size = check_count("batch_size", batch_size)
    if not len(histories):
        raise InputError(f"{histories.source} holds no sample, expected one or more; give some.")
    inputs = prepare_persona_inputs(
        plug.encoder, plug.persona, plug.text, histories, store, progress, plug.centre
    )
    compiled = partial(_prefix, prefix_spec(plug))
    count = len(histories)
    slots = padded_length(inputs.counts)
    parts = np.arange(-(-count // batch_size) * batch_size).reshape(-1, batch_size)
    parts = np.where(parts < count, parts, -1)
    found = []
    for rows in track(
        "making personas", parts, count, lambda rows: int((rows >= 0).sum()), progress
    ):
        batch = inputs.arrays(rows, _query_width(inputs, rows), slots)
        batch["prompt_lengths"] = np.zeros(len(rows), np.int32)
        found.append(np.asarray(compiled(plug.trained, batch), np.float32)[rows >= 0])
    return np.concatenate(found)


def thinned_prefix(
    spec: PrefixSpec, trained: PlugParams, batch: Batch, key: jax.Array | None
) -> jax.Array:
    """Return `prefix`, the copies of a batch without some of their items.

    Args:
        spec: Static settings.
        trained: The trained parameters.
        batch: As in `jaxalign.pplug.answers.answer_loss`.
        key: Random key of the items that are left out; None keeps all histories whole.
    """
    mask = batch.get("mask")
    if key is not None and mask is not None:
        keys = jax.random.split(key, len(mask))
        less = jax.vmap(partial(drop_items, share=spec.drop))(keys, mask)
        mask = jnp.where(batch["is_copy"][:, None], less, mask)
    return prefix(spec, trained, batch, mask)


def gathered_tables(
    frozen: Mapping[str, Mapping[str, jax.Array]], mesh: Mesh
) -> Mapping[str, Mapping[str, jax.Array]]:
    """Return the frozen parameters with whole embedding tables on every device."""
    tables = {
        name: {**frozen[name], "table": gathered(frozen[name]["table"], mesh)}
        for name in ("embed", "unembed")
        if name in frozen
    }
    return {**frozen, **tables}


def drop_items(key: jax.Array, mask: jax.Array, share: float) -> jax.Array:
    """Return a history without int(n U(0, share)) + 1 of its n items, drawn at random.

    Args:
        key: Random key.
        mask: [n] bool, true for items; a history of two or fewer items keeps all of them.
        share: Largest share of the items that is left out.

    Returns:
        [n] bool mask of the items that are kept.

    Source: github rucliujn/PPlug @ 6f9f283.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxalign.pplug.model import drop_items
        >>> mask = jnp.array([True, True, True, False])
        >>> int(drop_items(jax.random.key(0), mask, 0.3).sum())  # one of three items is dropped
        2
        >>> int(drop_items(jax.random.key(0), mask.at[0].set(False), 0.3).sum())
        2
    """
    count, (many, which) = jnp.sum(mask), jax.random.split(key)
    away = jnp.floor(count * jax.random.uniform(many, (), jnp.float32, 0, share)) + 1
    drawn = jnp.where(mask, jax.random.uniform(which, mask.shape, jnp.float32), jnp.inf)
    rank = jnp.argsort(jnp.argsort(drawn))
    return jnp.where(count > 2, mask & (rank >= away), mask)


def _personas(
    spec: PrefixSpec, trained: PlugParams, batch: Batch, mask: jax.Array | None
) -> jax.Array:
    """Return the personas [B, S, D]."""
    config, rows = spec.persona, len(batch["prompt_lengths"])
    if config.uses_input:
        tokens, lengths = batch["queries"], batch["query_lengths"]
        real = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :] < lengths[:, None]
        queries = embed.forward(
            spec.encoder,
            spec.pooling,
            spec.normalise,
            trained["encoder"],
            tokens,
            real,
        )
    else:
        queries = jnp.zeros((rows, spec.encoder.width), jnp.float32)
    if config.source == "input":
        items, mask = queries[:, None], jnp.ones((rows, 1), bool)
    else:
        items, mask = batch["items"], batch["mask"] if mask is None else mask
    one = partial(aggregate, config=config)
    return jax.vmap(one, (None, 0, 0, 0))(trained["persona"], queries, items, mask)


_init_persona = jax.jit(init_persona, static_argnums=(1, 2, 3, 4))
_prefix = jax.jit(prefix, static_argnums=0)


def _query_width(inputs: PersonaInputs, rows: np.ndarray) -> int:
    """Return a bucket that holds the queries of some samples."""
    if inputs.queries is None:
        return 1
    return bucket_length(int(inputs.queries.lengths[rows[rows >= 0]].max()), inputs.positions)
