"""Adam behind a global-norm clip over all parameters as one vector: few kernels on a GPU.

A GPU starts a kernel for every array of a tree and every counter. Here one kernel updates
parameters and moments, and what depends on the number of a step alone is computed for all steps
before the first. The numbers are those of `optax.adam` behind `optax.clip_by_global_norm`.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8

Tree = Any


class FlatState(NamedTuple):
    """Parameters, and means of gradients and of their squares, all [N]."""

    params: jax.Array
    mean: jax.Array
    square: jax.Array


class StepRates(NamedTuple):
    """What depends on the number of a step alone, [S] for S steps.

    Attributes:
        rate: learning rate.
        of_mean, of_square: the corrections of the two moments for their start at 0.
    """

    rate: jax.Array
    of_mean: jax.Array
    of_square: jax.Array


def flatten(tree: Tree) -> jax.Array:
    """All numbers of a tree [N]; matrices [E, K] are read as [K, E], as thin products read them."""
    return jnp.concatenate([leaf.T.ravel() for leaf in jax.tree.leaves(tree)])


def unflatten(vector: jax.Array, like: Tree) -> Tree:
    """The tree that `flatten` makes a vector [N] of, given one of the same shapes."""
    leaves, structure = jax.tree.flatten(like)
    ends = list(itertools.accumulate(leaf.size for leaf in leaves))[:-1]
    parts = jnp.split(vector, ends)
    shaped = [part.reshape(leaf.T.shape).T for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, shaped)


def start_flat(params: Tree, optimiser: optax.OptState) -> FlatState:
    """The vectors of parameters and of the state of `optax.chain(clip_by_global_norm, adam)`."""
    adam = optimiser[1][0]
    return FlatState(flatten(params), flatten(adam.mu), flatten(adam.nu))


def finish_flat(
    flat: FlatState, params: Tree, optimiser: optax.OptState, steps: int
) -> tuple[Tree, optax.OptState]:
    """Parameters and optax's state after `steps` steps, given those before them."""
    clip, (adam, schedule) = optimiser
    mean, square = (unflatten(vector, params) for vector in flat[1:])
    adam = adam._replace(count=adam.count + steps, mu=mean, nu=square)
    schedule = schedule._replace(count=schedule.count + steps)
    return unflatten(flat.params, params), (clip, (adam, schedule))


def step_rates(
    schedule: Callable[[jax.Array], jax.Array], optimiser: optax.OptState, steps: int
) -> StepRates:
    """What the next `steps` steps need to know of their numbers."""
    number = optimiser[1][0].count + jnp.arange(steps, dtype=jnp.int32)
    corrections = (1 - decay ** (number + 1) for decay in (_BETA1, _BETA2))
    return StepRates(schedule(number), *corrections)


def take_flat_step(
    flat: FlatState, gradient: jax.Array, rates: StepRates, clip_norm: float | jax.Array
) -> FlatState:
    """One step.

    Args:
        flat: before it.
        gradient: [N].
        rates: scalars.
        clip_norm: longest gradient.
    """
    norm = jnp.sqrt(jnp.sum(gradient**2))
    # Else each of the kernels behind would compute the gradient again.
    gradient, norm = jax.lax.optimization_barrier((gradient, norm))
    gradient = jnp.where(norm < clip_norm, gradient, gradient / norm * clip_norm)
    mean = (1 - _BETA1) * gradient + _BETA1 * flat.mean
    square = (1 - _BETA2) * gradient**2 + _BETA2 * flat.square
    root = jnp.sqrt(square / rates.of_square)
    params = flat.params - rates.rate * (mean / rates.of_mean / (root + _EPS))
    return FlatState(params, mean, square)
