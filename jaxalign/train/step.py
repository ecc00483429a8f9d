"""One training step: micro-batches added up, then one update, in one program."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from jaxalign.models.params import PyTree
from jaxalign.train import optimiser
from jaxalign.train.optimiser import OptimiserConfig, TrainState

Batch = Mapping[str, jax.Array]
Sums = dict[str, jax.Array]
# loss(params, frozen, micro-batch, key or None) -> sums over the micro-batch: `loss`, which is
# differentiated, `weight`, which it is divided by, and others to report.
Loss = Callable[[PyTree, PyTree, Batch, jax.Array | None], Sums]


def gradient(
    loss: Loss, params: PyTree, frozen: PyTree, batch: Batch, key: jax.Array
) -> tuple[PyTree, Sums]:
    """Gradient of the mean loss of a batch that is too large to hold at once.

    Sums are divided once, by the weight of all micro-batches, so the result is that of one large
    batch however the weight is spread over them.

    Args:
        loss: of one micro-batch.
        params: what is differentiated.
        frozen: what else the loss needs of the model.
        batch: arrays [M, ...] of M micro-batches.
        key: of dropout, folded for each micro-batch.

    Returns:
        The gradient, at least float32, and means: every sum over the weight, and `weight` itself.
    """

    def total(params: PyTree, micro: Batch, own: jax.Array) -> tuple[jax.Array, Sums]:
        sums = loss(params, frozen, micro, own)
        return sums["loss"], sums

    def add(carry: tuple[PyTree, Sums], place: tuple[jax.Array, Batch]) -> tuple[PyTree, None]:
        number, micro = place
        gradients, sums = jax.grad(total, has_aux=True)(
            params, micro, jax.random.fold_in(key, number)
        )
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), carry, (gradients, sums)), None

    micros = len(jax.tree.leaves(batch)[0])
    first = jax.tree.map(lambda leaf: leaf[0], batch)
    _, shapes = jax.eval_shape(total, params, first, key)
    zeros = (
        jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), params
        ),
        jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes),
    )
    numbers = jnp.arange(micros, dtype=jnp.uint32)
    (gradients, sums), _ = jax.lax.scan(add, zeros, (numbers, dict(batch)))
    whole = jnp.maximum(sums["weight"], 1)
    return jax.tree.map(lambda leaf: leaf / whole.astype(leaf.dtype), gradients), means(sums)


def means(sums: Sums) -> Sums:
    """Every sum over the weight; `weight` itself stays.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.train.step import means
        >>> found = means({"loss": jnp.array(6.0), "weight": jnp.array(3.0)})
        >>> float(found["loss"]), float(found["weight"])
        (2.0, 3.0)
    """
    whole = jnp.maximum(sums["weight"], 1)
    return {name: value if name == "weight" else value / whole for name, value in sums.items()}


def make_step(
    loss: Loss, config: OptimiserConfig, steps: int, rates: Mapping[str, float] | None = None
) -> Callable[[TrainState, PyTree, Batch], tuple[TrainState, Sums]]:
    """The pure step of a run of `steps`: (state, frozen, batch [M, ...]) -> (state, metrics).

    Jit it with the state donated. The metrics are the means of `gradient`, and those of
    `optimiser.apply`, which also says what `rates` are.
    """

    def step(state: TrainState, frozen: PyTree, batch: Batch) -> tuple[TrainState, Sums]:
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), 1)
        gradients, metrics = gradient(loss, state.params, frozen, batch, key)
        state, more = optimiser.apply(state, gradients, config, steps, rates)
        return state, metrics | more

    return step


def make_judge(loss: Loss) -> Callable[[PyTree, PyTree, Batch], Sums]:
    """(params, frozen, batch [M, ...]) -> sums over the batch, without dropout."""

    def judge(params: PyTree, frozen: PyTree, batch: Batch) -> Sums:
        def one(micro: Batch) -> Sums:
            return loss(params, frozen, micro, None)

        return {name: value.sum(axis=0) for name, value in jax.lax.map(one, dict(batch)).items()}

    return judge
