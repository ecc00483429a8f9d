"""Meta-training of MRM: an epoch is one scan, epochs are scanned too, seeds and sweeps batched."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxalign.backend import program_backend
from jaxalign.data.batching import Pairs
from jaxalign.data.splits import redraw
from jaxalign.errors import InputError
from jaxalign.files import write_json
from jaxalign.mrm.base import Params, init, is_linear
from jaxalign.mrm.config import MRMConfig
from jaxalign.mrm.diverged import all_finite, training_diverged
from jaxalign.mrm.few_kernels import staged_gradient
from jaxalign.mrm.flat_adam import (
    finish_flat,
    flatten,
    start_flat,
    step_rates,
    take_flat_step,
    unflatten,
)
from jaxalign.mrm.objective import Batch, meta_objective_unchecked
from jaxalign.mrm.snapshots import snapshot_moments
from jaxalign.runs.stop import stop_request
from jaxalign.train.checkpoint import load_state, save_state

Tree = TypeVar("Tree")
Masks = tuple[jax.Array, jax.Array]
"""Support and query weights of pairs."""
Sweep = dict[str, jax.Array]
"""Name of a numeric field of the config -> its values, one for each state."""


# Steps of a turn of the loop, which starts kernels of its own: on paper, 8 for a step on a GPU.
_UNROLL = 3
_whole_gradient = jax.grad(meta_objective_unchecked, has_aux=True)


class MetaTrainState(NamedTuple):
    """Everything that changes in training, and so everything that a resume needs.

    Attributes:
        params: as from `mrm.init`.
        optimiser: state of the outer optimiser.
        population: [U] last known query loss of every user.
        key: random key of the epochs to come.
    """

    params: Params
    optimiser: optax.OptState
    population: jax.Array
    key: jax.Array


def steps_per_epoch(users: int, config: MRMConfig) -> int:
    """Outer steps of an epoch; the last takes what is left of the users."""
    return -(-users // min(config.users_per_batch, users))


def make_schedule(config: MRMConfig, users: int) -> optax.Schedule:
    """A rate that is linear from 0 over the warm-up, then half a cosine."""
    total = steps_per_epoch(users, config) * config.epochs
    rising = int(total * config.warmup)

    def schedule(count: jax.Array) -> jax.Array:
        # optax's own asks whether the peak is 0, which a swept, traced rate cannot answer.
        done = (count - rising) / max(total - rising, 1)
        falling = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0.0, 1.0)))
        return config.outer_lr * jnp.where(count < rising, count / max(rising, 1), falling)

    return schedule


def make_optimiser(config: MRMConfig, users: int) -> optax.GradientTransformation:
    """Adam behind a global-norm clip, at the rates of `make_schedule`."""
    adam = optax.adam(make_schedule(config, users))
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adam)


def init_state(key: jax.Array, config: MRMConfig, feature_dim: int, users: int) -> MetaTrainState:
    """The state before the first epoch."""
    init_key, key = jax.random.split(key)
    params = init(init_key, config, feature_dim)
    optimiser = make_optimiser(config, users).init(params)
    return MetaTrainState(params, optimiser, jnp.full((users,), jnp.log(2.0), jnp.float32), key)


def item_table(features: jax.Array, pairs: Pairs, config: MRMConfig) -> jax.Array:
    """What epochs read: the items' features, or every pair's difference where that is less work.

    Differences are taken once here, and an epoch then reads each once and the features not at all;
    they are kept only where they need no more memory than the features.

    Args:
        features: [I, E].
        pairs: [U, P] training choices.
        config: the recipe.

    Returns:
        `features`, or differences [U, P, E], chosen minus rejected.
    """
    items, users = features.shape[0], pairs.chosen.shape[0]
    batch = min(config.users_per_batch, users) * pairs.chosen.shape[1]
    if not is_linear(config) or items <= batch or items < pairs.chosen.size:
        return features
    return features[pairs.chosen] - features[pairs.rejected]


def _batch(table: jax.Array, pairs: Pairs, masks: Masks, users: jax.Array, config: MRMConfig):
    """The batch of some users, whose masks are given."""
    batch: Batch = {"support_mask": masks[0], "query_mask": masks[1]}
    if table.ndim == 3:
        return {**batch, "differences": table[users]}
    chosen, rejected = pairs.chosen[users], pairs.rejected[users]
    if table.shape[0] <= chosen.size:
        # Fewer items than pairs: phi of every item once is less work than of every pair.
        return {**batch, "items": table, "chosen": chosen, "rejected": rejected}
    if is_linear(config):
        return {**batch, "differences": table[chosen] - table[rejected]}
    return {**batch, "chosen": table[chosen], "rejected": table[rejected]}


def take_steps(
    state: MetaTrainState,
    table: jax.Array,
    pairs: Pairs,
    masks: Masks,
    order: jax.Array,
    config: MRMConfig,
    first: int | jax.Array = 0,
) -> tuple[MetaTrainState, jax.Array]:
    """One outer step for every `users_per_batch` users of an order.

    Args:
        state: as from `init_state`; its `population` says how many users an epoch has.
        table: [I, E] or [U, P, E], see `item_table`.
        pairs: [U, P] training choices.
        masks: support and query [U, P], as from `redraw`.
        order: [N] int users, rows of `pairs`.
        config: the recipe.
        first: number in the population of the first row of `pairs`.

    Returns:
        The new state and the mean query loss of each step [ceil(N / users_per_batch)].
    """
    everyone = state.population.shape[0]

    def batch_of(population: jax.Array, members: jax.Array, masks: Masks) -> Batch:
        batch = _batch(table, pairs, masks, members, config)
        if config.rpo_scope == "population":
            others = jnp.delete(population, first + members, assume_unique_indices=True)
            batch["population"] = others
        return batch

    if program_backend() != "cpu":
        return _take_flat_steps(state, batch_of, masks, order, config, first)
    optimiser = make_optimiser(config, everyone)

    def step(state: MetaTrainState, members: jax.Array) -> tuple[MetaTrainState, jax.Array]:
        own = (masks[0][members], masks[1][members])
        batch = batch_of(state.population, members, own)
        gradient, (losses, _) = _whole_gradient(state.params, batch, config)
        updates, optimiser_state = optimiser.update(gradient, state.optimiser, state.params)
        population = state.population.at[first + members].set(losses.astype(jnp.float32))
        params = optax.apply_updates(state.params, updates)
        return MetaTrainState(params, optimiser_state, population, state.key), jnp.mean(losses)

    users = order.shape[0]
    size = min(config.users_per_batch, everyone)
    full = users // size
    state, losses = jax.lax.scan(step, state, order[: full * size].reshape(full, size))
    if users % size:
        state, last = step(state, order[full * size :])
        losses = jnp.append(losses, last)
    return state, losses


def _take_flat_steps(
    state: MetaTrainState,
    batch_of: Callable[[jax.Array, jax.Array, Masks], Batch],
    masks: Masks,
    order: jax.Array,
    config: MRMConfig,
    first: int | jax.Array,
) -> tuple[MetaTrainState, jax.Array]:
    """`take_steps` in few kernels: parameters in one vector, all that can be before the steps."""
    users, everyone = order.shape[0], state.population.shape[0]
    size = min(config.users_per_batch, everyone)
    steps, full = -(-users // size), users // size

    def step(carry: tuple, inputs: tuple) -> tuple[tuple, jax.Array]:
        (flat, population), (members, masks, rates) = carry, inputs
        batch = batch_of(population, members, (masks[:, 0], masks[:, 1]))
        params = unflatten(flat.params, state.params)
        if config.inner_steps > 1:  # in parts, it would take the inner steps twice
            gradient, (losses, _) = _whole_gradient(params, batch, config)
        else:
            gradient, losses = staged_gradient(params, batch, config)
        losses = losses.astype(jnp.float32)
        if config.rpo_scope == "population":
            population = population.at[first + members].set(losses)
        flat = take_flat_step(flat, flatten(gradient), rates, config.clip_norm)
        return (flat, population), losses

    def batches(values: jax.Array) -> jax.Array:
        return values[: full * size].reshape(full, size, *values.shape[1:])

    rates = step_rates(make_schedule(config, everyone), state.optimiser, steps)
    own = jnp.stack([mask[order] for mask in masks], axis=1)
    carry = start_flat(state.params, state.optimiser), state.population
    inputs = batches(order), batches(own), jax.tree.map(lambda rate: rate[:full], rates)
    carry, losses = jax.lax.scan(step, carry, inputs, unroll=min(_UNROLL, full))
    means, losses = jnp.mean(losses, axis=1), losses.ravel()
    if users % size:
        last = jax.tree.map(lambda rate: rate[-1], rates)
        carry, rest = step(carry, (order[full * size :], own[full * size :], last))
        means, losses = jnp.append(means, jnp.mean(rest)), jnp.append(losses, rest)
    params, optimiser = finish_flat(carry[0], state.params, state.optimiser, steps)
    population = state.population.at[first + order].set(losses)
    return MetaTrainState(params, optimiser, population, state.key), means


def epoch(
    state: MetaTrainState,
    table: jax.Array,
    pairs: Pairs,
    config: MRMConfig,
    most_groups: int | None = None,
) -> tuple[MetaTrainState, jax.Array]:
    """One pass over all users in a fresh order with fresh support and query choices.

    Args:
        state: as from `init_state`.
        table: [I, E] or [U, P, E], see `item_table`.
        pairs: [U, P] training choices.
        config: the recipe.
        most_groups: bound on the groups of one user, see `redraw`.

    Returns:
        The new state and the mean query loss of the epoch.
    """
    key, masks, order = draw_epoch(state.key, pairs, config, most_groups)
    state, losses = take_steps(state._replace(key=key), table, pairs, masks, order, config)
    return state, jnp.mean(losses)


def draw_epoch(
    key: jax.Array, pairs: Pairs, config: MRMConfig, most_groups: int | None = None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array], jax.Array]:
    """The key after an epoch, and what the epoch draws: support and query masks, order of users."""
    key, draw_key, order_key = jax.random.split(key, 3)
    masks = redraw(draw_key, pairs.group, pairs.weight, config.query_share, most_groups)
    return key, masks, jax.random.permutation(order_key, pairs.weight.shape[0])


def epochs(
    states: MetaTrainState,
    table: jax.Array,
    pairs: Pairs,
    config: MRMConfig,
    count: int,
    most_groups: int | None = None,
    sweep: Sweep | None = None,
) -> tuple[MetaTrainState, jax.Array]:
    """`count` epochs for every seed (and hyper-parameter) at once.

    Args:
        states: stacked on a leading axis [S].
        table: [I, E] or [U, P, E], see `item_table`.
        pairs: [U, P].
        config: what all share.
        count: epochs.
        most_groups: bound on the groups of one user, see `redraw`.
        sweep: name of a numeric field of the config -> its values [S], one for each state.

    Returns:
        States and mean losses [S, count].
    """
    sweep = sweep or {}

    def one(state: MetaTrainState, values: dict[str, Any]) -> tuple[MetaTrainState, jax.Array]:
        mine = dataclasses.replace(config, **values)
        return jax.lax.scan(
            lambda carry, _: epoch(carry, table, pairs, mine, most_groups),
            state,
            None,
            length=count,
        )

    if states.population.shape[0] > 1:
        return jax.vmap(one)(states, sweep)
    # XLA on a CPU takes three times as long for a batch of one matmul as for the matmul.
    alone = one(*jax.tree.map(lambda leaf: leaf[0], (states, sweep)))
    return jax.tree.map(lambda leaf: leaf[None], alone)


def init_states(
    keys: jax.Array,
    config: MRMConfig,
    feature_dim: int,
    users: int,
    sweep: Sweep | None = None,
) -> MetaTrainState:
    """States of `epochs` [S] from keys [S]."""

    def one(key: jax.Array, values: dict[str, Any]) -> MetaTrainState:
        return init_state(key, dataclasses.replace(config, **values), feature_dim, users)

    return jax.vmap(one)(keys, sweep or {})


run_epochs = jax.jit(epochs, static_argnums=(3, 4, 5))


def fit_mrm(
    features: jax.Array,
    pairs: Pairs,
    config: MRMConfig,
    seeds: Sequence[int],
    checkpoint: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
    start: Params | None = None,
    moments: tuple[int, ...] = (),
) -> Params:
    """MRM trained from all `seeds` at once, with its parameters at `config.snapshots` moments.

    Args:
        features: [I, D].
        pairs: [U, P].
        config: the recipe.
        seeds: one model for each.
        checkpoint: a folder where the state is kept after every snapshot, to resume from.
        say: receives a line of progress after each.
        start: parameters that every seed starts from; None for fresh ones.
        moments: the epochs after which parameters are kept, such as those of another fit; evenly
            spaced ones unless given.

    Returns:
        `params`, every leaf [T, seeds, ...] at T moments, `moments` [T] the epochs before each, and
        `losses` [seeds, epochs]. A run that was made longer has more than `config.snapshots`.

    Raises:
        InputError: training diverged (with the epoch, the step and its users; the state of the
            snapshot before is on disk), or a state or start of other shapes.
    """
    keys = jax.vmap(jax.random.key)(jnp.asarray(list(seeds)))
    states = init_states(keys, config, features.shape[1], pairs.chosen.shape[0])
    if start is not None:
        states = states._replace(params=_started(states.params, start))
    cuts = moments or _snapshot_epochs(config, checkpoint)
    most_groups = int(pairs.group.max()) + 1
    table = item_table(features, pairs, config)
    kept, losses = [], []
    for first, last in itertools.pairwise((0, *cuts)):
        path, span = checkpoint and checkpoint / f"{last:06d}", last - first
        shape = (states, jnp.zeros((len(seeds), span)))
        with stop_request():
            if path and path.exists():
                saved = load_state(path, shape)
            else:
                saved = run_epochs(states, table, pairs, config, span, most_groups)
                if not all_finite((saved[0].params, saved[1])):
                    training = (table, pairs, config, most_groups)
                    raise _diverged(states, saved, training, first, checkpoint)
                if path:
                    save_state(path, saved)
                loss = float(saved[1][:, -1].mean())
                say(f"  epoch {last} of {config.epochs}, query loss {loss:.4f}")
        states = saved[0]
        kept.append(jax.device_get(states.params))
        losses.append(np.asarray(saved[1]))
    params = jax.tree.map(lambda *leaves: np.stack(leaves), *kept)
    losses_of_all = np.concatenate(losses, axis=1)
    return {"params": params, "moments": np.asarray(cuts, np.int32), "losses": losses_of_all}


def remedy(config: MRMConfig) -> str:
    """Return what to do about a training that diverged."""
    return f"lower outer_lr ({config.outer_lr:g}) or inner_lr ({config.inner_lr:g})"


def _diverged(
    before: MetaTrainState,
    after: tuple[MetaTrainState, jax.Array],
    training: tuple[jax.Array, Pairs, MRMConfig, int],
    first: int,
    checkpoint: Path | None,
) -> InputError:
    """The error of a span of epochs that diverged: its steps are taken again, to name the first.

    Args:
        before: the good states that the span began with [S].
        after: the states [S] and losses [S, span] that it ended with.
        training: table, pairs, config and `most_groups`, as of `run_epochs`.
        first: epochs before the span.
        checkpoint: where states are kept.
    """
    table, pairs, config, most_groups = training
    states, losses = after
    seed = next(s for s in range(len(losses)) if not all_finite(_of_seed((states, losses), s)))
    epochs, state = f"of {config.epochs}", _of_seed(before, seed)
    last = "no state is kept"
    if checkpoint is not None and first:
        last = f"the state of epoch {first} is kept"
    for number in range(losses.shape[1]):
        key, masks, order = draw_epoch(state.key, pairs, config, most_groups)
        state, steps = _take_steps(state._replace(key=key), table, pairs, masks, order, config)
        if all_finite((state.params, steps)):
            continue
        finite = np.isfinite(steps)
        step = len(steps) - 1 if finite.all() else int(np.argmin(finite))
        size = min(config.users_per_batch, len(order))
        users = np.asarray(order)[step * size : (step + 1) * size].tolist()
        where = f"epoch {first + number + 1} {epochs}, step {step + 1} of {len(steps)}"
        return training_diverged("mrm", where, remedy(config), users, last)
    where = f"one of the epochs {first + 1} to {first + losses.shape[1]} {epochs}"
    return training_diverged("mrm", where, remedy(config), kept=last)


def _of_seed(tree: Tree, seed: int) -> Tree:
    return jax.tree.map(lambda leaf: leaf[seed], tree)


_take_steps = jax.jit(take_steps, static_argnames="config")


def _started(fresh: Params, start: Params) -> Params:
    """The parameters of an earlier fit in place of fresh ones, for every seed."""
    shapes = [[leaf.shape[1:] for leaf in jax.tree.leaves(fresh)]]
    shapes += [[leaf.shape for leaf in jax.tree.leaves(start)]]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"the earlier run's parameters are of the shapes {shapes[1]}; expected {shapes[0]}: "
            "set hidden_sizes, use_bias and learn_inner_lr as in that run."
        )
    return jax.tree.map(lambda new, old: jnp.broadcast_to(old, new.shape), fresh, start)


def _snapshot_epochs(config: MRMConfig, checkpoint: Path | None) -> tuple[int, ...]:
    """The epochs after which the parameters are kept.

    Those of a run that is made longer are the old ones, and as many again, evenly spaced, behind.
    """
    plan = None if checkpoint is None else checkpoint / "epochs.json"
    kept: list[int] = []
    if plan is not None and plan.exists():
        kept = json.loads(plan.read_text())["snapshots"]
    start = kept[-1] if kept else 0
    if config.epochs == start:
        return tuple(kept)
    later = snapshot_moments(config.epochs - start, config.snapshots)
    cuts = [*kept, *(start + moment for moment in later)]
    if plan is not None:
        write_json(plan, {"snapshots": cuts})
    return tuple(cuts)


def one_seed(fitted: Params, seed: int) -> Params:
    """The fitted arrays of one seed of `fit_mrm`."""
    params = jax.tree.map(lambda leaf: leaf[:, seed], fitted["params"])
    return {**fitted, "params": params, "losses": fitted["losses"][seed]}
