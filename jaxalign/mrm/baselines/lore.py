"""LoRe: rewards in a low-rank space, theta_u = V w_u, with w_u fitted from a few choices.

Source: Bose, Xiong, Chi, Du, Xiao, Fazel, "LoRe: Personalizing LLMs via Low-Rank Reward Modeling",
arXiv 2504.14439: weights on the simplex (softmax), basis and weights by Adam on the Bradley-Terry
loss, new users by Adam on their weights alone, the basis pulled towards a reference reward. The
signed form is ours: w_u ~ N(mean, I), mean ~ N(0, I) and a ridge on V, everything by MAP, so that
a dislike can be expressed and a new user with few choices stays near the mean.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxalign.data.batching import Pairs
from jaxalign.mrm import bayes
from jaxalign.mrm.baselines import simplex
from jaxalign.mrm.baselines.common import Buckets, one_for_all, reward_differences
from jaxalign.mrm.baselines.config import LoReConfig
from jaxalign.mrm.methods import Fitted, Method, Setting, as_buckets
from jaxalign.train.blas import one_blas_thread

Params = dict[str, Any]
SPREADS = (0.5, 1.0, 2.0)


def rewards(params: Params, features: jax.Array) -> jax.Array:
    """Basis rewards [I, K] of features [I, D]."""
    return features @ params["basis"]


# Signed weights -------------------------------------------------------------------------------


def map_objective(
    params: Params,
    features: jax.Array,
    buckets: Buckets,
    ridge: jax.Array,
) -> jax.Array:
    """Minus the log posterior of basis, mean and users, per choice.

    sum_up softplus(-<V (mean + z_u), d_up>) + 1/2 sum_u |z_u|^2 + 1/2 |mean|^2, over the number of
    choices, and ridge / 2 |V|^2.

    Args:
        params: `basis` [D, K], `mean` [K], `users`: for each bucket z [U, K].
        features: [I, D].
        buckets: the choices.
        ridge: of the basis.

    Returns:
        Scalar.
    """
    items = rewards(params, features)
    # Without a prior on the mean there is no least: it grows for ever along a basis reward that
    # shrinks, which makes what all users share free of the ridge.
    loss, count = 0.5 * jnp.sum(params["mean"] ** 2), jnp.zeros((), items.dtype)
    for z, pairs in zip(params["users"], buckets, strict=True):
        weights = params["mean"][None] + z
        margins = jnp.einsum("UPK,UK->UP", reward_differences(items, pairs), weights)
        loss += jnp.sum(pairs.weight * jax.nn.softplus(-margins)) + 0.5 * jnp.sum(z * z)
        count += jnp.sum(pairs.weight)
    return loss / jnp.maximum(count, 1) + 0.5 * ridge * jnp.sum(params["basis"] ** 2)


@functools.partial(jax.jit, static_argnames=("steps",))
def fit_signed(
    start: Params,
    features: jax.Array,
    buckets: Buckets,
    ridge: jax.Array,
    learning_rate: jax.Array,
    steps: int,
) -> Params:
    """The least of `map_objective` that Adam finds from `start`, its rate falling to 0 in `steps`.

    Returns:
        `basis` [D, K] and `mean` [K]: what new users are fitted with.
    """
    optimiser = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    def step(carry: tuple, _: None) -> tuple:
        params, state = carry
        gradient = jax.grad(map_objective)(params, features, buckets, ridge)
        updates, state = optimiser.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (start, optimiser.init(start)), None, length=steps)
    return {"basis": params["basis"], "mean": params["mean"]}


def map_weights(
    mean: jax.Array, spread: jax.Array, base: jax.Array, weight: jax.Array
) -> jax.Array:
    """New users' weights [U, K] under w ~ N(mean, spread^2 I), by MAP.

    Args:
        mean: [K].
        spread: standard deviation; 0 is no adaptation.
        base: [U, P, K] basis rewards, chosen minus rejected.
        weight: [U, P] of the choices; a user without any gets the mean.
    """
    prior = bayes.Prior(mean, spread**2 * jnp.eye(mean.shape[0], dtype=mean.dtype))
    return bayes.posterior(prior, base, weight)[0]


@jax.jit
def _signed_probability(
    fitted: Params, spread: jax.Array, features: jax.Array, support: Pairs, query: Pairs
) -> jax.Array:
    items = rewards(fitted, features)
    given = reward_differences(items, support)
    weights = map_weights(fitted["mean"], spread, given, support.weight)
    asked = reward_differences(items, query)
    return jax.nn.sigmoid(jnp.einsum("UQK,UK->UQ", asked, weights))


def start_signed(key: jax.Array, theta: jax.Array, rank: int, users: list[int]) -> Params:
    """Everybody at one Bradley-Terry model theta [D], the basis random beside it."""
    noise = jax.random.normal(key, (len(theta), rank), theta.dtype)
    basis = theta[:, None] / rank + 0.1 * noise
    return {
        "basis": basis,
        "mean": jnp.ones(rank, theta.dtype),
        "users": tuple(jnp.zeros((count, rank), theta.dtype) for count in users),
    }


# Both links -----------------------------------------------------------------------------------


@one_blas_thread
def fit_lore(features: jax.Array, pairs: Pairs | Buckets, config: LoReConfig, seed: int) -> Fitted:
    """Bases of every rank and decay: {rank: {number of the decay: arrays}}.

    Args:
        features: [I, D].
        pairs: choices of the training users, [U, P] or in buckets.
        config: link, ranks, decays, steps.
        seed: of the basis that training starts from.

    Returns:
        "basis" [D, K] and "mean" [K] where weights are signed; "basis" [1, D, K] and "log_weights"
        [1, K] where they lie on the simplex.
    """
    buckets = as_buckets(pairs)
    users = [len(part.weight) for part in buckets]
    dtype = features.dtype
    theta, square = one_for_all(features, buckets, jnp.asarray(1e-4, dtype))
    rate = jnp.asarray(config.learning_rate, dtype)
    fitted: Fitted = {}
    for rank in config.ranks:
        key = jax.random.key(seed)
        fitted[f"{rank}"] = {}
        for place, decay in enumerate(config.decays):
            if config.link == "signed":
                start = start_signed(key, theta, rank, users)
                one = fit_signed(start, features, buckets, decay * square, rate, config.steps)
            else:
                one = _fit_simplex(key, theta, features, buckets, decay, rank, config)
            fitted[f"{rank}"][f"{place}"] = jax.tree.map(np.asarray, one)
    return fitted


def _fit_simplex(
    key: jax.Array, theta: jax.Array, features: jax.Array, buckets: Buckets,
    decay: float, rank: int, config: LoReConfig,
) -> Params:  # fmt: skip
    """As published: random basis and weights; the basis may be pulled towards one reward."""
    basis_key, *keys = jax.random.split(key, 1 + len(buckets))
    basis = jax.random.normal(basis_key, (len(theta), rank), theta.dtype)
    logits = tuple(
        jax.random.normal(one, (len(pairs.weight), rank), theta.dtype)
        for one, pairs in zip(keys, buckets, strict=True)
    )
    centre = {"basis": jnp.broadcast_to(theta[:, None], basis.shape)}
    kept = simplex.fit_population(
        {"basis": basis}, centre, logits, features, buckets,
        jnp.asarray(decay, theta.dtype), jnp.asarray(config.learning_rate, theta.dtype),
        rewards, config.steps, 1,
    )  # fmt: skip
    return {"basis": kept["params"]["basis"], "log_weights": kept["log_weights"]}


@one_blas_thread
def _predict(
    config: LoReConfig,
    fitted: Fitted,
    settings: list[Setting],
    features: jax.Array,
    support: Pairs,
    query: Pairs,
) -> np.ndarray:
    one = _one_signed if config.link == "signed" else _one_simplex
    return np.stack([one(config, fitted, s, features, support, query) for s in settings])


def _one_signed(
    config: LoReConfig, fitted: Fitted, setting: Setting, features: jax.Array,
    support: Pairs, query: Pairs,
) -> np.ndarray:  # fmt: skip
    params = fitted[f"{setting['rank']}"][f"{config.decays.index(setting['decay'])}"]
    spread = jnp.asarray(setting["spread"], features.dtype)
    return np.asarray(_signed_probability(params, spread, features, support, query))


def _one_simplex(
    config: LoReConfig, fitted: Fitted, setting: Setting, features: jax.Array,
    support: Pairs, query: Pairs,
) -> np.ndarray:  # fmt: skip
    params = fitted[f"{setting['rank']}"][f"{config.decays.index(setting['decay'])}"]
    items = rewards({"basis": params["basis"][0]}, features)
    rate = jnp.asarray(config.few_shot_rate, features.dtype)
    steps = (setting["steps"],)
    start = params["log_weights"][0]
    return np.asarray(simplex.user_probabilities(items, start, support, query, rate, steps)[0])


def lore_method(config: LoReConfig) -> Method:
    """LoRe, with rank and decay chosen; signed weights also with the prior's spread, 0 included.

    As published, the few-shot steps are as many as they are.
    """

    def settings(fitted: Fitted) -> list[Setting]:
        grid = [{"rank": int(rank), "decay": decay} for rank in fitted for decay in config.decays]
        if config.link == "softmax":
            return [{**one, "steps": config.few_shot_steps} for one in grid]
        return [{**one, "spread": spread} for one in grid for spread in (0.0, *SPREADS)]

    none = {"spread": 0.0} if config.link == "signed" else {"steps": 0}
    return Method(functools.partial(_predict, config), settings, lambda s: {**s, **none})
