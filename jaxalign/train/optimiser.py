"""AdamW with a warm-up and a schedule, its statistics in float32 whatever the parameters are."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxalign.errors import InputError
from jaxalign.models.params import PyTree

_UNDECAYED = ("bias", "scale")


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW and its rate over the steps.

    Attributes:
        rate: the highest learning rate.
        schedule: how the rate goes from there to the last step.
        warmup: share of the steps in which the rate rises to its highest.
        last: share of the highest rate that the last step has; `constant` ignores it.
        clip_norm: the global norm that gradients are cut to; null for none.
        weight_decay: of matrices and tables; norms and biases have none.
        b1: decay of the mean of gradients.
        b2: decay of the mean of their squares.
        eps: added to the root of the latter.
    """

    rate: float = 1e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.03
    last: float = 0.0
    clip_norm: float | None = 1.0
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        ranges = {
            "rate": self.rate > 0,
            "warmup": 0 <= self.warmup <= 1,
            "last": 0 <= self.last <= 1,
            "clip_norm": self.clip_norm is None or self.clip_norm > 0,
            "weight_decay": self.weight_decay >= 0,
            "b1": 0 <= self.b1 < 1,
            "b2": 0 <= self.b2 < 1,
            "eps": self.eps > 0,
        }
        for name, fits in ranges.items():
            if not fits:
                raise InputError(
                    f"the optimiser's {name} is {getattr(self, name)}; expected a positive rate, "
                    "eps and clip_norm, a weight_decay of at least 0, warmup and last in [0, 1], "
                    "b1 and b2 in [0, 1)."
                )


class TrainState(NamedTuple):
    """All that a step changes.

    Attributes:
        params: what is trained, a nested dict.
        moments: state of the optimiser, at least float32.
        step: [] int32 steps taken.
        key: random key of the run; step t draws from its t-th fold.
    """

    params: PyTree
    moments: PyTree
    step: jax.Array
    key: jax.Array


def rate_at(config: OptimiserConfig, steps: int, step: jax.Array) -> jax.Array:
    """Learning rate of a step.

    Args:
        config: highest rate and schedule.
        steps: how many there are in all.
        step: [] int steps taken so far.

    Returns:
        [] float32: (step + 1) / warm-up steps of the highest rate, then along the schedule, which
        reaches `last` one step after the last.
    """
    rising = round(config.warmup * steps)
    count = jnp.asarray(step, jnp.float32)
    done = jnp.clip((count - rising) / max(steps - rising, 1), 0.0, 1.0)
    falling = {
        "cosine": config.last + (1 - config.last) * 0.5 * (1 + jnp.cos(jnp.pi * done)),
        "linear": 1 - (1 - config.last) * done,
        "constant": jnp.ones_like(done),
    }[config.schedule]
    return config.rate * jnp.where(count < rising, (count + 1) / max(rising, 1), falling)


def decayed(params: PyTree) -> PyTree:
    """A tree of bools: which leaves weight decay acts on."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in _UNDECAYED, params)


def start(key: jax.Array, params: PyTree, config: OptimiserConfig) -> TrainState:
    """The state before the first step; its moments lie where the parameters do."""
    return TrainState(params, _adamw(config).init(_wide(params)), jnp.zeros((), jnp.int32), key)


def apply(
    state: TrainState, gradient: PyTree, config: OptimiserConfig, steps: int
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update.

    Parameters in bfloat16 are rounded up or down at random, in proportion: to the nearest, most
    updates of a late schedule would be lost.

    Args:
        state: before.
        gradient: as `state.params`, at least float32.
        config: static.
        steps: static, how many there are in all.

    Returns:
        The state after, and `gradient_norm` (before clipping) and `rate`.

    Source: Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101.
    """
    params = _wide(state.params)
    updates, moments = _adamw(config).update(gradient, state.moments, params)
    rate = rate_at(config, steps, state.step)
    exact = jax.tree.map(lambda p, u: p - rate.astype(p.dtype) * u, params, updates)
    key = jax.random.fold_in(state.key, state.step)
    rounded = _rounded(jax.random.fold_in(key, 0), exact, state.params)
    metrics = {"gradient_norm": optax.tree.norm(gradient), "rate": rate}
    return TrainState(rounded, moments, state.step + 1, state.key), metrics


def _adamw(config: OptimiserConfig) -> optax.GradientTransformation:
    """AdamW's direction, to go against, for a rate of 1."""
    clip = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    return optax.chain(
        *clip,
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(config.weight_decay, decayed),
    )


def _wide(params: PyTree) -> PyTree:
    return jax.tree.map(
        lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), params
    )


def _rounded(key: jax.Array, exact: PyTree, like: PyTree) -> PyTree:
    leaves, structure = jax.tree.flatten(exact)
    kinds = [leaf.dtype for leaf in jax.tree.leaves(like)]
    rounded = [
        _at_random(jax.random.fold_in(key, number), leaf)
        if kind == jnp.bfloat16
        else leaf.astype(kind)
        for number, (leaf, kind) in enumerate(zip(leaves, kinds, strict=True))
    ]
    return jax.tree.unflatten(structure, rounded)


def _at_random(key: jax.Array, values: jax.Array) -> jax.Array:
    """float32 to bfloat16, up with the probability of what is cut off."""
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    noise = jax.random.bits(key, values.shape, jnp.uint16).astype(jnp.uint32)
    kept = (bits + noise) & jnp.uint32(0xFFFF0000)
    return jax.lax.bitcast_convert_type(kept, jnp.float32).astype(jnp.bfloat16)
