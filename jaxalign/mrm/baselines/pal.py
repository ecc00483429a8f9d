"""PAL: a latent space where a user prefers what lies near their ideal point.

Source: Chen, Chen, Rege, Vinayak, "PAL: Pluralistic Alignment Framework for Learning from
Heterogeneous Preferences", arXiv 2406.08469, form A (fixed prototypes): user u has the ideal point
a_u = sum_k w_uk p_k, w_u on the simplex, and u's reward of x is -|f(x) - a_u|^2. Here f is linear
(the paper's may be a network) and the loss is logistic. A new user's weights are fitted with f and
the prototypes fixed.

As the weights sum to one, |f - sum_k w_k p_k|^2 = sum_k w_k |f - p_k|^2 - c(w), where c(w) does not
depend on x and cancels in differences: PAL is a convex combination of K rewards, one a prototype.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data.batching import Pairs
from jaxalign.mrm.baselines import simplex
from jaxalign.mrm.baselines.common import Buckets
from jaxalign.mrm.baselines.config import PALConfig
from jaxalign.mrm.methods import Fitted, Method, Setting, as_buckets


def rewards(params: simplex.Params, features: jax.Array) -> jax.Array:
    """Minus the squared distances [I, K] of items to prototypes.

    Args:
        params: `map` [D, d], `prototypes` [K, d].
        features: [I, D].
    """
    latent = features @ params["map"]
    apart = latent[:, None, :] - params["prototypes"][None, :, :]
    return -jnp.sum(apart * apart, axis=-1)


def _start(
    key: jax.Array, features: jax.Array, buckets: Buckets, count: int, width: int
) -> tuple[simplex.Params, tuple[jax.Array, ...]]:
    map_key, prototype_key, *keys = jax.random.split(key, 2 + len(buckets))
    size, dtype = features.shape[1], features.dtype
    spread = jnp.sqrt(jnp.mean(jnp.sum(features * features, axis=1)))
    shape = (size, width)
    start = {
        # Items then have unit mean squared norm in the latent space, prototypes too.
        "map": jax.random.normal(map_key, shape, dtype) / jnp.sqrt(width) / spread,
        "prototypes": jax.random.normal(prototype_key, (count, width), dtype) / np.sqrt(width),
    }
    logits = tuple(
        jax.random.normal(one, (len(pairs.weight), count), dtype)
        for one, pairs in zip(keys, buckets, strict=True)
    )
    return start, logits


def fit_pal(features: jax.Array, pairs: Pairs | Buckets, config: PALConfig, seed: int) -> Fitted:
    """Maps and prototypes of every number of prototypes, at the snapshots T.

    Args:
        features: [I, D].
        pairs: choices of the training users, [U, P] or in buckets.
        config: numbers of prototypes, width of the latent space, steps.
        seed: of all that training starts from.

    Returns:
        {number: {"map" [T, D, d], "prototypes" [T, K, d], "log_weights" [T, K]}}.
    """
    buckets, dtype = as_buckets(pairs), features.dtype
    fitted: Fitted = {}
    for count in config.prototypes:
        start, logits = _start(jax.random.key(seed), features, buckets, count, config.width)
        kept = simplex.fit_population(
            start, jax.tree.map(jnp.zeros_like, start), logits, features, buckets,
            jnp.asarray(config.decay, dtype), jnp.asarray(config.learning_rate, dtype),
            rewards, config.steps, config.snapshots,
        )  # fmt: skip
        one = {**kept["params"], "log_weights": kept["log_weights"]}
        fitted[f"{count}"] = jax.tree.map(np.asarray, one)
    return fitted


_items = jax.jit(rewards)


def _predict(
    config: PALConfig,
    fitted: Fitted,
    settings: list[Setting],
    features: jax.Array,
    support: Pairs,
    query: Pairs,
) -> np.ndarray:
    rate = jnp.asarray(config.few_shot_rate, features.dtype)
    steps = tuple(sorted({setting["steps"] for setting in settings}))
    cached: dict[tuple, np.ndarray] = {}
    rows = []
    for setting in settings:
        key = (setting["prototypes"], setting["snapshot"])
        if key not in cached:
            one = {name: leaf[key[1]] for name, leaf in fitted[f"{key[0]}"].items()}
            start = one.pop("log_weights")
            items = _items(one, features)
            path = simplex.user_probabilities(items, start, support, query, rate, steps)
            cached[key] = np.asarray(path)
        rows.append(cached[key][steps.index(setting["steps"])])
    return np.stack(rows)


def pal_method(config: PALConfig) -> Method:
    """PAL, with the number of prototypes, the moment of training and the few-shot steps chosen."""

    def settings(fitted: Fitted) -> list[Setting]:
        return [
            {"prototypes": int(count), "snapshot": snapshot, "steps": steps}
            for count in fitted
            for snapshot in range(config.snapshots)
            for steps in (0, *config.few_shot_steps)
        ]

    return Method(functools.partial(_predict, config), settings, lambda s: {**s, "steps": 0})
