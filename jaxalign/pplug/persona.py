"""The persona: soft tokens made from a user's history and the present input by exact attention.

The attention weights of a user's items sum to 1, so the second matrix product of the projection
commutes with the sum: sum_i w_i (W2 g(W1 h_i + b1) + b2) = W2 (sum_i w_i g(W1 h_i + b1)) + b2.
The D x D product runs once per user instead of once per item.

Source: arXiv 2409.11901, sections 3.2 and 3.3. The order of the sums is ours.
"""

import math
from collections.abc import Mapping
from functools import partial
from itertools import accumulate
from typing import TypedDict

import jax
import jax.numpy as jnp

from jaxalign.arrays import (
    Sizes,
    check_array,
    check_count,
    check_mask,
    check_number,
    check_scalar,
    check_whole,
)
from jaxalign.errors import InputError
from jaxalign.padding import kept
from jaxalign.pplug.config import PersonaConfig

_INIT_ITEMS = 256  # random items on which the length of a fresh persona is measured


class DenseParams(TypedDict):
    """Parameters of a linear layer: kernel [in, out] and bias [out], or one of each per token."""

    kernel: jax.Array
    bias: jax.Array


class ProjectionParams(TypedDict):
    """Parameters of Proj, two linear layers, and the constant [] that scales their output."""

    inner: DenseParams
    head: DenseParams
    scale: jax.Array


class TaskParams(ProjectionParams):
    """Parameters of the task token: its vector [E] and a projection of its own."""

    vector: jax.Array


class PersonaParams(TypedDict, total=False):
    """Parameters of a persona; a part that the config does not use is absent.

    Attributes:
        project: projection of the items.
        task: the task token.
        null: [S, D] persona of an empty history.
        queries: [S, E] offset of each token's query, with more than one token.
        sharpness: [S] logarithm of each token's factor of the cosines, where it is learned.
        recency: [S] exponent of each token's decay with age, where it is learned.
    """

    project: ProjectionParams
    task: TaskParams
    null: jax.Array
    queries: jax.Array
    sharpness: jax.Array
    recency: jax.Array


def init_persona(
    key: jax.Array,
    config: PersonaConfig,
    encoder_width: int,
    model_width: int,
    embedding_norm: float,
) -> PersonaParams:
    """Return fresh parameters whose tokens are as long as the language model's embeddings.

    The persona's length is measured on items of random direction; `rescale_persona` measures it on
    real ones. No gradient reaches the two `scale` constants.

    Args:
        key: Random key.
        config: Shape of the persona.
        encoder_width: E, the width of the item vectors.
        model_width: D, the width of the language model.
        embedding_norm: Mean Euclidean length of the language model's token embeddings.

    Returns:
        The parameters, float32.

    Raises:
        InputError: `embedding_norm` is not positive and finite, or a width is no whole number.

    Source: arXiv 2409.11901, section 3.3; initialisation of github rucliujn/PPlug @ 6f9f283.

    Example:
        >>> import jax
        >>> from jaxalign.pplug import PersonaConfig, init_persona
        >>> init = jax.jit(init_persona, static_argnums=(1, 2, 3, 4))
        >>> params = init(jax.random.key(0), PersonaConfig(), 3, 8, 2.0)
        >>> sorted(params), params["null"].shape
        (['null', 'project', 'task'], (1, 8))
    """
    encoder_width = check_count("encoder_width", encoder_width)
    model_width = check_count("model_width", model_width)
    embedding_norm = check_scalar("embedding_norm", embedding_norm)
    if not 0 < embedding_norm < float("inf"):
        raise InputError(
            f"the model's mean embedding norm is {embedding_norm}; expected a positive number: its "
            "embeddings are broken."
        )
    tokens = config.tokens
    project, task, rest = jax.random.split(key, 3)
    shapes = {
        "vector": (encoder_width,),
        "null": (tokens, model_width),
        "queries": (tokens, encoder_width),
        "items": (_INIT_ITEMS, encoder_width),
    }
    drawn = _uniform(rest, shapes)
    params: PersonaParams = {
        "project": _init_projection(project, encoder_width, model_width, tokens),
        "task": {
            **_init_projection(task, encoder_width, model_width, 1),
            "vector": (drawn["vector"] + 1) / 2,
        },
        "null": drawn["null"],
    }
    if tokens > 1:
        # As long as an item, so that the tokens attend to different items from the start.
        params["queries"] = _normalised(drawn["queries"])
    if config.temperature == "learned":
        params["sharpness"] = jnp.full((tokens,), jnp.log(config.sharpness), jnp.float32)
    if config.recency:
        params["recency"] = jnp.zeros((tokens,), jnp.float32)
    params["task"]["scale"] = embedding_norm / _mean_length(task_token(params))
    hidden = _hidden(params["project"], _normalised(drawn["items"]))
    pooled = jnp.tile(hidden[:, None, :], (1, tokens, 1))
    personas = jax.vmap(partial(_project_pooled, params["project"]))(pooled)
    return rescale_persona(params, personas, embedding_norm)


def rescale_persona(
    params: PersonaParams, personas: jax.Array, embedding_norm: float
) -> PersonaParams:
    """Return parameters whose personas, and the null persona, have a given mean length.

    Args:
        params: Parameters from `init_persona`, before training.
        personas: [..., S, D] personas that `params` give to users with a history.
        embedding_norm: The mean length to have.

    Returns:
        The parameters with another scale of the projection and another null persona.

    Raises:
        InputError: no persona, a concrete value that is not finite, or a length that is not above
            0.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxalign.pplug import PersonaConfig, init_persona, rescale_persona
        >>> init = jax.jit(init_persona, static_argnums=(1, 2, 3, 4))
        >>> params = init(jax.random.key(0), PersonaConfig(), 3, 8, 2.0)
        >>> longer = jax.jit(rescale_persona)(params, jnp.ones((1, 4)), 6.0)
        >>> round(float(longer["project"]["scale"] / params["project"]["scale"]), 3)
        3.0
    """
    check_number("embedding_norm", embedding_norm, 0, above=True)
    personas = check_array("personas", personas, "... S D")
    if not personas.size:
        raise InputError("personas: found no persona, expected one or more; correct it.")
    length = _mean_length(personas)
    if not isinstance(length, jax.core.Tracer) and not length > 0:
        raise InputError(
            "personas: found personas of length 0, which no scale lengthens; expected longer ones: "
            "correct them."
        )
    project = params["project"]
    scale = project["scale"] * (embedding_norm / length)
    null = params["null"] * (embedding_norm / (scale * _mean_length(params["null"])))
    return {
        **params,
        "project": {**project, "scale": scale.astype(project["scale"].dtype)},
        "null": null.astype(params["null"].dtype),
    }


def aggregate(
    params: PersonaParams,
    query: jax.Array,
    history: jax.Array,
    mask: jax.Array,
    config: PersonaConfig,
) -> jax.Array:
    """Return the persona of one user for one input; use `jax.vmap` for several users.

    P = sum_i w_i Proj(h_i) with w = softmax_i(x . h_i), over all items of the history. The order
    of the items does not matter unless the config weighs them by age.

    Args:
        params: Parameters from `init_persona`.
        query: [E] vector x of the input.
        history: [n, E] vectors h of the items, oldest first; padding may hold any value.
        mask: [n] bool, true for items and false for padding.
        config: Static settings.

    Returns:
        [S, D] soft tokens, at least float32; the null persona if no item is set in `mask`.

    Raises:
        InputError: shapes that disagree, or a concrete value that is not finite where it counts.

    Source: arXiv 2409.11901, equations 3 to 5.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxalign.pplug import PersonaConfig, aggregate, init_persona
        >>> init = jax.jit(init_persona, static_argnums=(1, 2, 3, 4))
        >>> params = init(jax.random.key(0), PersonaConfig(), 3, 8, 2.0)
        >>> persona = jax.jit(aggregate, static_argnums=4)
        >>> query, history, mask = jnp.ones(3), jnp.eye(3), jnp.array([True, True, False])
        >>> first = persona(params, query, history, mask, PersonaConfig())
        >>> second = persona(params, query, history.at[2].set(9.0), mask, PersonaConfig())
        >>> first.shape, bool((first == second).all())  # padding has no influence
        ((1, 8), True)
    """
    sizes = Sizes()
    live = check_mask("mask", mask, "n", empty="n")
    query = check_array("query", query, "E", sizes)
    history = check_array("history", history, "n E", sizes, mask=live, empty="n")
    check_mask("mask", live, "n", sizes, empty="n")
    if not len(history):
        return _null_persona(params)
    return _attended(params, query, history, live > 0, config)


@partial(jax.jit, static_argnames="config")
def _attended(
    params: PersonaParams,
    query: jax.Array,
    history: jax.Array,
    mask: jax.Array,
    config: PersonaConfig,
) -> jax.Array:
    """`aggregate` of an item or more, without its checks."""
    # The double where keeps what stands in padding out of the gradient too.
    items = jnp.where(mask[:, None], history.astype(_wide(params["project"])), 0)
    products = jnp.einsum("SE,nE->Sn", _token_queries(params, query), items, precision="highest")
    logits = _logits(params, products, _ages(mask), config)
    logits = jnp.where(mask[None, :], logits, jnp.finfo(logits.dtype).min)
    weights = jnp.where(mask[None, :], jax.nn.softmax(logits, axis=1), 0)
    pooled = jnp.matmul(weights, _hidden(params["project"], items), precision="highest")
    personas = _project_pooled(params["project"], pooled)
    return jnp.where(jnp.any(mask), personas, _null_persona(params))


def aggregate_flat(
    params: PersonaParams,
    queries: jax.Array,
    items: jax.Array,
    segments: jax.Array,
    config: PersonaConfig,
) -> jax.Array:
    """Return the personas of many users whose items stand in one array, without padding between.

    Args:
        params: Parameters from `init_persona`.
        queries: [B, E] vectors of the inputs.
        items: [N, E] vectors of all items, those of one user together, oldest first.
        segments: [N] int, the user of each item; any number outside [0, B) marks padding.
        config: Static settings.

    Returns:
        [B, S, D] personas, equal to those that `aggregate` gives one by one.

    Raises:
        InputError: shapes that disagree, or a concrete value that is not finite where it counts.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxalign.pplug import PersonaConfig, aggregate_flat, init_persona
        >>> init = jax.jit(init_persona, static_argnums=(1, 2, 3, 4))
        >>> params = init(jax.random.key(0), PersonaConfig(), 3, 8, 2.0)
        >>> personas = jax.jit(aggregate_flat, static_argnums=4)
        >>> segments = jnp.array([0, 0, 1])  # two items of the first user, one of the second
        >>> personas(params, jnp.ones((2, 3)), jnp.eye(3), segments, PersonaConfig()).shape
        (2, 1, 8)
    """
    sizes = Sizes()
    queries = check_array("queries", queries, "B E", sizes)
    users = len(queries)
    segments = check_whole("segments", segments, "N", sizes, empty="N")
    real = (segments >= 0) & (segments < users)
    items = check_array("items", items, "N E", sizes, empty="N", finite=False)
    check_array("items", kept(real, items), "N E", sizes, empty="N")
    return _attended_flat(params, queries, items, jnp.where(real, segments, users), config)


@partial(jax.jit, static_argnames="config")
def _attended_flat(
    params: PersonaParams,
    queries: jax.Array,
    items: jax.Array,
    own: jax.Array,
    config: PersonaConfig,
) -> jax.Array:
    """`aggregate_flat` without its checks; `own` [N] is the user of each item, B of padding."""
    users = len(queries)
    real = own < users
    # What is past the end is dropped by segment sums.
    place = jnp.minimum(own, users - 1)
    items = jnp.where(real[:, None], items.astype(_wide(params["project"])), 0)
    item_queries = _token_queries(params, queries)[place]
    numbers = jnp.arange(len(items), dtype=jnp.int32)
    ages = jax.ops.segment_max(numbers, own, users)[place] - numbers
    products = jnp.einsum("nSE,nE->Sn", item_queries, items, precision="highest")
    logits = _logits(params, products, ages, config).T
    peaks = jax.lax.stop_gradient(jax.ops.segment_max(logits, own, users))[place]
    parts = jnp.where(real[:, None], jnp.exp(jnp.where(real[:, None], logits - peaks, 0)), 0)
    totals = jax.ops.segment_sum(parts, own, users)
    hidden = _hidden(params["project"], items)
    pooled = jax.ops.segment_sum(parts[:, :, None] * hidden[:, None, :], own, users)
    some = totals > 0
    pooled = pooled / jnp.where(some, totals, 1)[:, :, None]
    personas = jax.vmap(partial(_project_pooled, params["project"]))(pooled)
    return jnp.where(some[:, :, None], personas, _null_persona(params)[None])


def task_token(params: PersonaParams) -> jax.Array:
    """Return the soft token I that all users of a task share: [1, D], at least float32.

    Source: arXiv 2409.11901, section 3.3.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxalign.pplug import PersonaConfig, init_persona, task_token
        >>> init = jax.jit(init_persona, static_argnums=(1, 2, 3, 4))
        >>> params = init(jax.random.key(0), PersonaConfig(), 3, 8, 2.0)
        >>> round(float(jnp.linalg.norm(jax.jit(task_token)(params))), 4)
        2.0
    """
    task = params["task"]
    vector = task["vector"].astype(_wide(task))
    return _project_pooled(task, _hidden(task, vector[None]))


def _logits(
    params: PersonaParams, products: jax.Array, ages: jax.Array, config: PersonaConfig
) -> jax.Array:
    """Return the attention logits [S, n] from <query, item> [S, n] and the items' ages [n]."""
    wide = products.dtype
    if config.mean:
        logits = jnp.zeros_like(products)
    elif "sharpness" in params:
        logits = products * jnp.exp(params["sharpness"].astype(wide))[:, None]
    else:
        logits = products * jnp.asarray(config.sharpness, wide)
    if "recency" in params:
        # An item with `a` newer ones after it has the weight (1 + a)^-r.
        old = jnp.log1p(jnp.maximum(ages, 0).astype(wide))
        logits = logits - params["recency"].astype(wide)[:, None] * old[None, :]
    return logits


def _token_queries(params: PersonaParams, query: jax.Array) -> jax.Array:
    """Return the query of each token: [..., E] -> [..., S, E]."""
    query = query.astype(_wide(params["project"]))[..., None, :]
    if "queries" not in params:
        return query
    offsets = params["queries"].astype(query.dtype)
    return query + offsets.reshape((1,) * (query.ndim - 2) + offsets.shape)


def _ages(mask: jax.Array) -> jax.Array:
    """Return how many items follow each: mask [n] -> [n] int32."""
    count = jnp.cumsum(mask.astype(jnp.int32))
    return count[-1:] - count


def _hidden(projection: ProjectionParams, items: jax.Array) -> jax.Array:
    """Return g(W1 h + b1): [n, E] -> [n, D]."""
    inner = projection["inner"]
    raised = jnp.matmul(items, inner["kernel"], precision="highest") + inner["bias"][None, :]
    return jax.nn.gelu(raised, approximate=False)


def _project_pooled(projection: ProjectionParams, pooled: jax.Array) -> jax.Array:
    """Return W2 p + b2, with a matrix per token, scaled: [S, D] -> [S, D]."""
    head, scale = projection["head"], jax.lax.stop_gradient(projection["scale"])
    raised = jnp.einsum("SI,SID->SD", pooled, head["kernel"], precision="highest")
    return (raised + head["bias"]) * scale


def _null_persona(params: PersonaParams) -> jax.Array:
    scale = jax.lax.stop_gradient(params["project"]["scale"])
    return (params["null"] * scale).astype(_wide(params["project"]))


def _wide(projection: ProjectionParams) -> jnp.dtype:
    return jnp.promote_types(projection["inner"]["kernel"].dtype, jnp.float32)


def _mean_length(tokens: jax.Array) -> jax.Array:
    """Return the mean Euclidean length of tokens [..., D]."""
    return jnp.mean(jnp.linalg.norm(tokens, axis=-1))


def _normalised(vectors: jax.Array) -> jax.Array:
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)


def _init_projection(key: jax.Array, inputs: int, width: int, tokens: int) -> ProjectionParams:
    """Return two layers initialised as torch's Linear: uniform within 1/sqrt(inputs)."""
    drawn = _uniform(
        key,
        {
            "inner kernel": (inputs, width),
            "inner bias": (width,),
            "head kernel": (tokens, width, width),
            "head bias": (tokens, width),
        },
    )
    inner, head = inputs**-0.5, width**-0.5
    return {
        "inner": {"kernel": drawn["inner kernel"] * inner, "bias": drawn["inner bias"] * inner},
        "head": {"kernel": drawn["head kernel"] * head, "bias": drawn["head bias"] * head},
        "scale": jnp.ones((), jnp.float32),
    }


def _uniform(key: jax.Array, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, jax.Array]:
    """Return arrays uniform in [-1, 1), drawn at once because each draw is slow to compile."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    flat = jax.random.uniform(key, (sum(sizes),), jnp.float32, -1, 1)
    parts = jnp.split(flat, list(accumulate(sizes))[:-1])
    return {
        name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
