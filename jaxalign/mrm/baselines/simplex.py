"""Users as convex combinations of K shared rewards: what published LoRe and PAL have in common.

r_u(x) = sum_k w_uk phi_k(x) with w_u on the simplex, w_u = softmax(logits). The two differ in phi:
linear in LoRe; in PAL minus the squared distance to a prototype (see `pal.rewards`).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxalign.data.batching import Pairs
from jaxalign.mrm.config import MRMConfig
from jaxalign.mrm.inner import adapt_path, bradley_terry_loss
from jaxalign.mrm.snapshots import snapshot_moments
from jaxalign.mrm.support_query import differences

Params = dict[str, jax.Array]
Rewards = Callable[[Params, jax.Array], jax.Array]

_LINK = MRMConfig(link="softmax")


def population_loss(
    rewards: jax.Array, logits: tuple[jax.Array, ...], buckets: tuple[Pairs, ...]
) -> jax.Array:
    """Mean over users of each one's mean Bradley-Terry loss.

    Args:
        rewards: [I, K] of all items.
        logits: for each bucket [U, K], each user's weights before the softmax.
        buckets: their choices [U, P].

    Returns:
        Scalar; users without choices do not count.
    """
    total, count = jnp.zeros((), rewards.dtype), jnp.zeros((), rewards.dtype)
    for raw, pairs in zip(logits, buckets, strict=True):
        margins = jnp.einsum(
            "UPK,UK->UP", differences(rewards, pairs), jax.nn.softmax(raw, axis=-1)
        )
        losses = jax.vmap(bradley_terry_loss)(margins, pairs.weight)
        total, count = total + jnp.sum(losses), count + jnp.sum(jnp.any(pairs.weight > 0, axis=1))
    return total / jnp.maximum(count, 1)


@functools.partial(jax.jit, static_argnames=("rewards", "steps", "snapshots"))
def fit_population(
    start: Params,
    centre: Params,
    logits: tuple[jax.Array, ...],
    features: jax.Array,
    buckets: tuple[Pairs, ...],
    decay: jax.Array,
    learning_rate: jax.Array,
    rewards: Rewards,
    steps: int,
    snapshots: int,
) -> dict[str, Any]:
    """Shared rewards and all users' weights together, by full-batch Adam.

    Args:
        start: parameters of `rewards`.
        centre: what they are pulled to, of the same shapes.
        logits: for each bucket [U, K], where the users' weights start.
        features: [I, D].
        buckets: choices of the users.
        decay: of the squared distance to `centre`.
        learning_rate: of Adam.
        rewards: parameters, features -> [I, K].
        steps: of Adam.
        snapshots: number of moments kept, see `snapshot_moments`.

    Returns:
        {"params": every leaf [T, ...] at the T moments, "log_weights": [T, K] log of the mean
        weights of users with choices}: where a new user starts from.
    """
    optimiser = optax.adam(learning_rate)

    def objective(trained: tuple[Params, tuple[jax.Array, ...]]) -> jax.Array:
        params, raw = trained
        away = sum(jnp.sum((params[name] - centre[name]) ** 2) for name in params)
        return population_loss(rewards(params, features), raw, buckets) + decay * away

    def step(_: jax.Array, carry: tuple) -> tuple:
        trained, state = carry
        updates, state = optimiser.update(jax.grad(objective)(trained), state)
        return optax.apply_updates(trained, updates), state

    def span(carry: tuple, length: jax.Array) -> tuple:
        carry = jax.lax.fori_loop(0, length, step, carry)
        (params, raw), _ = carry
        return carry, {"params": params, "log_weights": _mean_log_weights(raw, buckets)}

    trained = (start, logits)
    kept: dict[str, Any]
    lengths = jnp.diff(jnp.asarray(snapshot_moments(steps, snapshots)), prepend=0)
    _, kept = jax.lax.scan(span, (trained, optimiser.init(trained)), lengths)
    return kept


def _mean_log_weights(logits: tuple[jax.Array, ...], buckets: tuple[Pairs, ...]) -> jax.Array:
    weights = jax.nn.softmax(jnp.concatenate(logits), axis=-1)
    active = jnp.concatenate([jnp.any(pairs.weight > 0, axis=1) for pairs in buckets])
    share = active.astype(weights.dtype) / jnp.maximum(jnp.sum(active), 1)
    # A component that no user has must stay within a new user's reach.
    mean = jnp.einsum("U,UK->K", share, weights)
    return jnp.log(jnp.maximum(mean, 1e-3))


@functools.partial(jax.jit, static_argnames="steps")
def user_probabilities(
    rewards: jax.Array,
    log_weights: jax.Array,
    support: Pairs,
    query: Pairs,
    rate: jax.Array,
    steps: tuple[int, ...],
) -> jax.Array:
    """Probabilities [C, U, Q] after so many Adam steps on new users' weights.

    Args:
        rewards: [I, K].
        log_weights: [K] where users start.
        support: [U, P] choices to fit on.
        query: [U, Q] choices to predict.
        rate: of Adam, full-batch.
        steps: C numbers of steps; 0 is no adaptation.
    """
    known = differences(rewards, support)
    rates = jnp.full((max(steps),), rate, known.dtype)
    path = adapt_path({"weight_init": log_weights}, known, support.weight, _LINK, rates, "torch")
    weights = jax.nn.softmax(path[:, jnp.asarray(steps)], axis=-1)
    wanted = differences(rewards, query)
    return jax.nn.sigmoid(jnp.einsum("UCK,UQK->CUQ", weights, wanted))


@functools.partial(jax.jit, static_argnames="steps")
def user_weights(
    log_weights: jax.Array, known: jax.Array, mask: jax.Array, rate: jax.Array, steps: int
) -> jax.Array:
    """New users' weights [U, K] on the simplex after `steps` Adam steps on their choices.

    Args:
        log_weights: [K] where users start.
        known: [U, P, K] rewards of their choices, chosen minus rejected.
        mask: [U, P] weights of the choices.
        rate: of Adam, full-batch.
        steps: number of steps; 0 is no adaptation.
    """
    rates = jnp.full((steps,), rate, known.dtype)
    path = adapt_path({"weight_init": log_weights}, known, mask, _LINK, rates, "torch")
    return jax.nn.softmax(path[:, -1], axis=-1)
