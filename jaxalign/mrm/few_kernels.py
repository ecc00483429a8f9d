"""The gradient of MRM's meta-objective in few kernels, for accelerators.

A step of MRM is so small that a GPU spends it on starting kernels. The chain rule is therefore cut
where XLA can make one kernel of each part: base rewards, query losses, and the gradient of each
user's loss, of which `rpo` weighs the users. The numbers are those of `jax.grad`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.mrm.base import Params
from jaxalign.mrm.config import MRMConfig
from jaxalign.mrm.objective import Batch, differences_of, l2_penalty, query_losses, rpo

_FEW = 8  # users whose ranks are compared one by one


def staged_gradient(params: Params, batch: Batch, config: MRMConfig) -> tuple[Params, jax.Array]:
    """The gradient of `meta_objective_unchecked`, and the losses [U] on the query pairs.

    Args:
        params: as from `init`.
        batch: as of `meta_objective`.
        config: the model.
    """
    rest = {name: value for name, value in params.items() if name != "base"}

    def base_of(own: Params) -> jax.Array:
        return differences_of({**params, "base": own}, batch, config)

    def losses_of(rest: Params, base: jax.Array) -> jax.Array:
        return query_losses({**params, **rest}, base, batch, config)[0]

    base, pull = jax.vjp(base_of, params["base"])
    # Behind a barrier, XLA computes what is small again in place of keeping it in memory.
    losses = jax.lax.optimization_barrier(losses_of(rest, base))
    base = jax.lax.optimization_barrier(base)
    slopes = rpo_slopes(losses, config, batch.get("population"))

    def weighted(rest: Params, base: jax.Array) -> jax.Array:
        return jnp.sum(slopes * losses_of(rest, base))

    of_rest, of_base = jax.grad(weighted, (0, 1))(rest, base)
    (of_own,) = pull(of_base)
    if not isinstance(config.l2, float) or config.l2 > 0:  # a traced value is always added
        of_penalty: Any = jax.grad(l2_penalty)(params["base"], config)
        of_own = jax.tree.map(jnp.add, of_own, of_penalty)
    return {"base": of_own, **of_rest}, losses


def rpo_slopes(
    losses: jax.Array, config: MRMConfig, population: jax.Array | None = None
) -> jax.Array:
    """The gradient of `rpo` in the losses [U]; that of few users has no sort and no sum.

    Args:
        losses: [U].
        config: tail and softness.
        population: [N] as of `rpo`.
    """
    if population is None and len(losses) <= _FEW:
        return _few_slopes(losses, config.rpo_tail, config.rpo_gamma)
    slopes: jax.Array = jax.grad(rpo)(losses, config.rpo_tail, config.rpo_gamma, population)
    return slopes


def _few_slopes(losses: jax.Array, tail: float, gamma: float) -> jax.Array:
    """Slopes of `rpo`: d_u = s_u + a_u - v_u (a_1 + a_2 + ...).

    s = sigmoid((L - tau) / gamma), a = s (1 - s) L / gamma, tau = v_1 L_1 + v_2 L_2 + ...
    """
    each = list(losses)
    shares = _quantile_shares(each, 1.0 - tail)
    tau = sum(share * loss for share, loss in zip(shares, each, strict=True))
    soft_gamma = jnp.where(gamma > 0, gamma, 1.0)
    soft = [jax.nn.sigmoid((loss - tau) / soft_gamma) for loss in each]
    steep = [s * (1 - s) * loss / soft_gamma for s, loss in zip(soft, each, strict=True)]
    total = sum(steep)
    slopes = jnp.zeros_like(losses)
    for user, loss in enumerate(each):
        softly = soft[user] + steep[user] - shares[user] * total
        slope = jnp.where(gamma > 0, softly, (loss > tau).astype(losses.dtype))
        # A kernel that computes a row of its own cannot join scalars to an array.
        slopes = jnp.where(jnp.arange(len(each)) == user, slope, slopes)
    return slopes


def _quantile_shares(values: list[jax.Array], share: float) -> list[jax.Array]:
    """What `jnp.quantile` weighs each of a few scalars by."""
    place = jnp.asarray(share * (len(values) - 1), values[0].dtype)
    low = jnp.floor(place)
    shares = []
    for number, value in enumerate(values):
        # Of equal values, the first is the lower.
        before = [other <= value for other in values[:number]]
        before += [other < value for other in values[number + 1 :]]
        rank = sum((one.astype(place.dtype) for one in before), jnp.zeros_like(value))
        at_low = jnp.where(rank == low, 1 - (place - low), 0)
        shares.append(at_low + jnp.where(rank == low + 1, place - low, 0))
    return shares
