"""The robust personalisation objective and the meta-objective (arXiv 2601.18731)."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.arrays import Sizes, check_array, check_mask, check_number
from jaxalign.errors import InputError
from jaxalign.mrm.base import (
    Params,
    base_differences,
    base_rewards,
    effective_weights,
    is_linear,
)
from jaxalign.mrm.config import MRMConfig
from jaxalign.mrm.inner import adapted, bradley_terry_loss
from jaxalign.padding import kept

Batch = dict[str, Any]


def rpo(
    losses: jax.Array, tail: float, gamma: float, population: jax.Array | None = None
) -> jax.Array:
    """Robust personalisation objective: users with a higher loss weigh more.

    tau = quantile(losses, 1 - tail); sum of sigmoid((L - tau) / gamma) * L, the gradient going
    through the weights too; for gamma <= 0 the sum of the losses above tau, the mask detached.

    Args:
        losses: [U] one loss a user.
        tail: rho, share of users in the hard tail, in (0, 1].
        gamma: softness.
        population: [N] last known losses of the users who are not in the batch; tau is then the
            quantile over both.

    Returns:
        Scalar, a sum over users as published.

    Raises:
        InputError: no users, a concrete loss that is not finite, or a tail outside [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm import rpo
        >>> losses = jnp.array([0.1, 0.2, 0.9])
        >>> round(rpo(losses, tail=0.5, gamma=0.0).item(), 2)  # above the median
        0.9
    """
    check_number("tail", tail, 0, 1)
    losses = check_array("losses", losses, "U")
    if population is not None:
        population = check_array("population", population, "N", empty="N")
    pool = losses if population is None else jnp.concatenate([losses, population])
    tau = jnp.quantile(pool, 1.0 - tail)
    hard = jax.lax.stop_gradient((losses > tau).astype(losses.dtype))
    # Both forms under one `where`, so that gamma can be a swept, traced number.
    soft = jax.nn.sigmoid((losses - tau) / jnp.where(gamma > 0, gamma, 1.0))
    return jnp.sum(jnp.where(gamma > 0, soft, hard) * losses)


def differences_of(params: Params, batch: Batch, config: MRMConfig) -> jax.Array:
    """Differences of base rewards [U, P, K] of a batch of any form, see `meta_objective`."""
    if "items" in batch:
        base = base_rewards(params, batch["items"], config)
        return base[batch["chosen"]] - base[batch["rejected"]]
    if "differences" not in batch:
        return base_differences(params, batch["chosen"], batch["rejected"], config)
    if not is_linear(config):
        raise ValueError(
            "a batch of feature differences needs a linear base: give chosen, rejected"
        )
    zero = jnp.zeros_like(batch["differences"])
    return base_differences(params, batch["differences"], zero, config)


def _checked(batch: Batch) -> Batch:
    """The batch with 0 in the features of pairs that neither mask counts."""
    sizes = Sizes()
    names = ("support_mask", "query_mask")
    features = ("differences",) if "differences" in batch else ("chosen", "rejected")
    if missing := [name for name in (*names, *features) if name not in batch]:
        raise InputError(
            f"batch: lacks {', '.join(missing)}; expected support_mask, query_mask, and either "
            "chosen and rejected or differences."
        )
    masks = [check_mask(f'batch["{name}"]', batch[name], "U P", sizes) for name in names]
    either = jnp.maximum(*masks)
    checked = {**batch, **dict(zip(names, masks, strict=True))}
    if "items" in batch:
        checked["items"] = check_array('batch["items"]', batch["items"], "I E")
    else:
        for name in ("chosen", "rejected", "differences"):
            if name in batch:
                values = check_array(f'batch["{name}"]', batch[name], "U P E", sizes, mask=either)
                checked[name] = kept(either, values)
    return checked


def meta_objective(
    params: Params, batch: Batch, config: MRMConfig
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The outer loss: adapt on support pairs, judge on query pairs, weigh users by `rpo`.

    Args:
        params: as from `init`.
        batch: `chosen`, `rejected` [U, P, E] features, or `differences` [U, P, E] of the two when
            the base is linear, or `items` [I, E] with `chosen`, `rejected` [U, P] as numbers into
            them (least work where few items meet in many pairs); `support_mask`, `query_mask`
            [U, P] bool or weights; optionally `population` [N], see `rpo`.
        config: the model.

    Returns:
        The objective, and (losses [U] on the query pairs, adapted raw weights [U, K]).

    Raises:
        InputError: a missing entry, shapes that disagree, a negative weight, or a concrete value
            that is not finite where one of the masks is above 0.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm import MRMConfig, meta_objective
        >>> config = MRMConfig(hidden_sizes=(), link="signed", inner_lr=0.1)
        >>> params = {"base": {}, "weight_init": jnp.zeros(2)}
        >>> chosen, rejected = jnp.ones((1, 2, 2)), jnp.zeros((1, 2, 2))
        >>> masks = {"support_mask": jnp.array([[1, 0]]), "query_mask": jnp.array([[0, 1]])}
        >>> batch = {"chosen": chosen, "rejected": rejected, **masks}
        >>> step = jax.jit(meta_objective, static_argnames="config")
        >>> _, (losses, weights) = step(params, batch, config=config)
        >>> bool((weights > 0).all()), bool(losses[0] < jnp.log(2.0))
        (True, True)
    """
    return meta_objective_unchecked(params, _checked(batch), config)


def meta_objective_unchecked(
    params: Params, batch: Batch, config: MRMConfig
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """`meta_objective` without its checks, for the trainers, whose padding is finite.

    Args:
        params: as from `init`.
        batch: as of `meta_objective`.
        config: the model.
    """
    base = differences_of(params, batch, config)
    losses, weights = query_losses(params, base, batch, config)
    objective = rpo(losses, config.rpo_tail, config.rpo_gamma, batch.get("population"))
    if not isinstance(config.l2, float) or config.l2 > 0:  # a traced value is always added
        objective = objective + l2_penalty(params["base"], config)
    return objective, (losses, weights)


def query_losses(
    params: Params, base: jax.Array, batch: Batch, config: MRMConfig
) -> tuple[jax.Array, jax.Array]:
    """Losses [U] on the query pairs, and the weights [U, K] adapted on the support pairs.

    Args:
        params: as from `init`.
        base: [U, P, K] base rewards, chosen minus rejected.
        batch: has `support_mask` and `query_mask` [U, P].
        config: the model.
    """
    weights = adapted(params, base, batch["support_mask"], config, "higher")
    margins = jnp.einsum("UK,UPK->UP", effective_weights(weights, config), base)
    return jax.vmap(bradley_terry_loss)(margins, batch["query_mask"]), weights


def l2_penalty(base: Params, config: MRMConfig) -> jax.Array:
    """What the kernels of the base network add to the objective."""
    squares = [jnp.sum(layer["kernel"] ** 2) for layer in base.values()]
    return config.l2 * jnp.asarray(sum(squares))
