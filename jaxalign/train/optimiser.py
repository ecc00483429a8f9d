"""AdamW with a warm-up and a schedule, its statistics in float32 whatever the parameters are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxalign.config_fields import checks_fields
from jaxalign.errors import InputError
from jaxalign.models.params import PyTree
from jaxalign.train.failures import memory_refusal

_UNDECAYED = ("bias", "scale")


@dataclass(frozen=True)
@checks_fields
class OptimiserConfig:
    """AdamW and its learning rate over the steps.

    Attributes:
        rate: the highest learning rate, above 0. 1e-4 to 2e-4 suits LoRA adapters, 1e-5 to 5e-5
            full fine-tuning; lower it if the loss jumps or stops being finite.
        schedule: how the rate falls from its highest to the last step: along a `cosine`, on a
            line, or not at all.
        warmup: share of all steps, 0 to 1, in which the rate rises linearly to its highest. Raise
            it if the loss jumps in the first steps.
        last: rate that the schedule ends at, one step after the last one, as a share of the
            highest, 0 to 1; `constant` ignores it.
        clip_norm: largest global norm of a gradient, above 0; larger gradients are scaled down to
            it. null does not clip.
        weight_decay: decoupled weight decay of matrices and tables per unit of learning rate, 0 or
            more; norms and biases have none. 0 suits adapters, 0.01 to 0.1 full fine-tuning.
        b1: decay rate of the running mean of gradients, in [0, 1).
        b2: decay rate of the running mean of squared gradients, in [0, 1); 0.95 to 0.999.
        eps: added to the root of the mean of squared gradients, above 0.

    Example:
        >>> from jaxalign.train.optimiser import OptimiserConfig
        >>> OptimiserConfig(rate=2e-4, schedule="linear").clip_norm
        1.0
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
    """Return the learning rate of a step.

    Args:
        config: highest rate and schedule.
        steps: how many there are in all.
        step: [] int steps taken so far.

    Returns:
        [] float32: (step + 1) / warm-up steps of the highest rate, then along the schedule, which
        reaches `last` one step after the last.

    Example:
        >>> from jaxalign.train.optimiser import OptimiserConfig, rate_at
        >>> config = OptimiserConfig(rate=1.0, schedule="linear", warmup=0.5)
        >>> [float(rate_at(config, 4, step)) for step in range(4)]
        [0.5, 1.0, 1.0, 0.5]
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


def longer_run_note(config: OptimiserConfig) -> str:
    """Return what making a run longer changes, in one sentence for people."""
    if config.schedule == "constant" and not config.warmup:
        return "the rate is constant, so the result is that of a run of this length from the start"
    return (
        f"the warm-up and the {config.schedule} schedule now span the longer run, and the steps "
        "taken so far keep the rates of the shorter one: the result is not that of a run of this "
        "length from the start"
    )


def decayed(params: PyTree) -> PyTree:
    """Return a tree of bools: which leaves weight decay acts on.

    Example:
        >>> from jaxalign.train.optimiser import decayed
        >>> decayed({"query": {"kernel": 0.0, "bias": 0.0}})
        {'query': {'bias': False, 'kernel': True}}
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in _UNDECAYED, params)


def start(key: jax.Array, params: PyTree, config: OptimiserConfig) -> TrainState:
    """Return the state before the first step; its moments lie where the parameters do.

    Raises:
        InputError: the device has too little memory for it.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jaxalign.train import optimiser
        >>> config = optimiser.OptimiserConfig(rate=0.5, schedule="constant", warmup=0.0)
        >>> state = optimiser.start(jax.random.key(0), {"kernel": jnp.ones(1)}, config)
        >>> state, metrics = optimiser.apply(state, {"kernel": jnp.ones(1)}, config, steps=2)
        >>> int(state.step), round(float(state.params["kernel"][0]), 3)
        (1, 0.5)
    """
    with memory_refusal(lambda: "the optimiser's state"):
        moments = _adamw(config).init(_wide(params))
    return TrainState(params, moments, jnp.zeros((), jnp.int32), key)


def apply(
    state: TrainState,
    gradient: PyTree,
    config: OptimiserConfig,
    steps: int,
    rates: Mapping[str, float] | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Return the state after one update.

    Parameters in bfloat16 are rounded up or down at random, in proportion: to the nearest, most
    updates of a late schedule would be lost.

    Args:
        state: before.
        gradient: as `state.params`, at least float32.
        config: static.
        steps: static, how many there are in all.
        rates: static, the highest learning rates of top-level parts of the parameters that differ
            from the config's; None for none.

    Returns:
        The state after, and `gradient_norm` (before clipping) and `rate`.

    Source: Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101.
    """
    params = _wide(state.params)
    updates, moments = _adamw(config).update(gradient, state.moments, params)
    rate = rate_at(config, steps, state.step)
    own = {name: value / config.rate for name, value in (rates or {}).items()}

    def moved(path: tuple[jax.tree_util.DictKey, ...], p: jax.Array, u: jax.Array) -> jax.Array:
        factor = own.get(path[0].key, 1.0) if own else 1.0
        return p - (rate * factor).astype(p.dtype) * u

    exact = jax.tree_util.tree_map_with_path(moved, params, updates)
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
