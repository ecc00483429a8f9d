"""Meta-training of MRM: an epoch is one scan, epochs are scanned too, seeds and sweeps batched."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxalign.data.batching import Pairs
from jaxalign.data.splits import redraw
from jaxalign.mrm.base import Params, init, is_linear
from jaxalign.mrm.config import MRMConfig
from jaxalign.mrm.objective import Batch, meta_objective


class TrainState(NamedTuple):
    """Everything that changes in training, and so everything that a resume needs.

    Attributes:
        params: as from `mrm.init`.
        optimiser: state of the outer optimiser.
        population: [U] last known query loss of every user.
        key: random key of the epochs to come.
    """

    params: Params
    optimiser: Any
    population: jax.Array
    key: jax.Array


def _steps_per_epoch(users: int, config: MRMConfig) -> int:
    return -(-users // min(config.users_per_batch, users))


def make_optimiser(config: MRMConfig, users: int) -> optax.GradientTransformation:
    """Adam behind a global-norm clip, rate linear from 0 over the warm-up, then half a cosine."""
    total = _steps_per_epoch(users, config) * config.epochs
    rising = int(total * config.warmup)

    def schedule(count: jax.Array) -> jax.Array:
        # optax's own asks whether the peak is 0, which a swept, traced rate cannot answer.
        done = (count - rising) / max(total - rising, 1)
        falling = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0.0, 1.0)))
        return config.outer_lr * jnp.where(count < rising, count / max(rising, 1), falling)

    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.adam(schedule))


def start(key: jax.Array, config: MRMConfig, feature_dim: int, users: int) -> TrainState:
    """The state before the first epoch."""
    init_key, key = jax.random.split(key)
    params = init(init_key, config, feature_dim)
    optimiser = make_optimiser(config, users).init(params)
    return TrainState(params, optimiser, jnp.full((users,), jnp.log(2.0), jnp.float32), key)


def _batch(features: jax.Array, pairs: Pairs, masks: tuple, users: jax.Array, config: MRMConfig):
    chosen, rejected = pairs.chosen[users], pairs.rejected[users]
    batch: Batch = {"support_mask": masks[0][users], "query_mask": masks[1][users]}
    if features.shape[0] <= chosen.size:
        # Fewer items than pairs: phi of every item once is less work than of every pair.
        return {**batch, "items": features, "chosen": chosen, "rejected": rejected}
    if is_linear(config):
        return {**batch, "differences": features[chosen] - features[rejected]}
    return {**batch, "chosen": features[chosen], "rejected": features[rejected]}


def epoch(
    state: TrainState,
    features: jax.Array,
    pairs: Pairs,
    config: MRMConfig,
    most_groups: int | None = None,
) -> tuple[TrainState, jax.Array]:
    """One pass over all users in a fresh order with fresh support and query choices.

    Args:
        state: as from `start`.
        features: [I, E].
        pairs: [U, P] training choices.
        config: the recipe.
        most_groups: bound on the groups of one user, see `redraw`.

    Returns:
        The new state and the mean query loss of the epoch.
    """
    users = pairs.chosen.shape[0]
    optimiser = make_optimiser(config, users)
    key, draw_key, order_key = jax.random.split(state.key, 3)
    masks = redraw(draw_key, pairs.group, pairs.weight, config.query_share, most_groups)
    order = jax.random.permutation(order_key, users)

    def step(state: TrainState, members: jax.Array) -> tuple[TrainState, jax.Array]:
        batch = _batch(features, pairs, masks, members, config)
        if config.rpo_scope == "population":
            others = jnp.delete(state.population, members, assume_unique_indices=True)
            batch["population"] = others
        objective = jax.grad(meta_objective, has_aux=True)
        gradient, (losses, _) = objective(state.params, batch, config)
        updates, optimiser_state = optimiser.update(gradient, state.optimiser, state.params)
        population = state.population.at[members].set(losses.astype(state.population.dtype))
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, optimiser_state, population, state.key), jnp.mean(losses)

    size = min(config.users_per_batch, users)
    full = users // size
    state, losses = jax.lax.scan(
        step, state._replace(key=key), order[: full * size].reshape(full, size)
    )
    if users % size:
        state, last = step(state, order[full * size :])
        losses = jnp.append(losses, last)
    return state, jnp.mean(losses)


def epochs(
    states: TrainState,
    features: jax.Array,
    pairs: Pairs,
    config: MRMConfig,
    count: int,
    most_groups: int | None = None,
    sweep: dict[str, jax.Array] | None = None,
) -> tuple[TrainState, jax.Array]:
    """`count` epochs for every seed (and hyper-parameter) at once.

    Args:
        states: stacked on a leading axis [S].
        features: [I, E].
        pairs: [U, P].
        config: what all share.
        count: epochs.
        most_groups: bound on the groups of one user, see `redraw`.
        sweep: name of a numeric field of the config -> its values [S], one for each state.

    Returns:
        States and mean losses [S, count].
    """
    sweep = sweep or {}

    def one(state: TrainState, values: dict[str, Any]) -> tuple[TrainState, jax.Array]:
        mine = dataclasses.replace(config, **values)
        return jax.lax.scan(
            lambda carry, _: epoch(carry, features, pairs, mine, most_groups),
            state,
            None,
            length=count,
        )

    return jax.vmap(one)(states, sweep)


def start_many(
    keys: jax.Array,
    config: MRMConfig,
    feature_dim: int,
    users: int,
    sweep: dict[str, jax.Array] | None = None,
) -> TrainState:
    """States of `epochs` [S] from keys [S]."""

    def one(key: jax.Array, values: dict[str, Any]) -> TrainState:
        return start(key, dataclasses.replace(config, **values), feature_dim, users)

    return jax.vmap(one)(keys, sweep or {})
