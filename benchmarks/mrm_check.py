"""Whether another side of `python -m benchmarks mrm` computes what jaxalign computes."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import harness
from benchmarks.mrm_reference import Reference
from benchmarks.mrm_torch import Start
from jaxalign.mrm import train
from jaxalign.mrm.objective import meta_objective


def check_training(
    world: Any, table: jax.Array, pairs: Any, side: Any
) -> tuple[float, float | None]:
    """Largest relative error of the objective, its gradients and the parameters.

    After one epoch from the same parameters in the same order with the same masks, which the
    authors' code cannot be given: theirs is compared at the parameters that jaxalign ends at.

    Returns:
        The error, and the seconds of the side's first epoch, compilation included.
    """
    config = world.config
    drawn = jax.jit(train.draw_epoch, static_argnums=(2, 3))
    _, masks, order = drawn(world.state.key, pairs, config, world.shape.given)
    state, _ = jax.jit(train.take_steps, static_argnums=5)(
        world.state, table, pairs, masks, order, config
    )
    members = order[: config.users_per_batch]
    ours = _ours(state.params, table, pairs, masks, members, config)
    device = world.given[0].device
    theirs_masks = tuple(torch.tensor(np.array(m) > 0, device=device) for m in masks)
    theirs_order = torch.tensor(np.array(order), device=device).long()
    if isinstance(side, Reference):
        kernel, weight = state.params["base"]["layer0"]["kernel"], state.params["weight_init"]
        start = Start(*(torch.tensor(np.array(x), device=device) for x in (kernel.T, weight)))
        users = theirs_order[: config.users_per_batch].tolist()
        objective, (weight, kernel) = side.objective(
            start, [_user(world, u, theirs_masks) for u in users]
        )
        return _worst(ours, [objective, kernel, weight]), None
    began = time.perf_counter()
    harness.wait(side.epoch(theirs_masks, theirs_order))
    first = time.perf_counter() - began
    kept, parameters = side.parameters, [p.detach().clone() for p in side.parameters]
    side.parameters = [p.requires_grad_() for p in parameters]
    objective = side.objective(theirs_order[: config.users_per_batch], theirs_masks)
    objective.backward()
    side.parameters = kept
    found = [objective.detach(), parameters[0].grad, parameters[1].grad]
    learned = [state.params["base"]["layer0"]["kernel"].T, state.params["weight_init"]]
    return max(_worst(ours, found), _worst(learned, [p.detach() for p in parameters])), first


def _ours(
    params: Any, table: jax.Array, pairs: Any, masks: Any, members: jax.Array, config: Any
) -> list[jax.Array]:
    """Objective and gradients of kernel [K, E] and weight [K]."""
    d = table[members] if table.ndim == 3 else (
        table[pairs.chosen[members]] - table[pairs.rejected[members]]
    )  # fmt: skip
    batch = {"differences": d, "support_mask": masks[0][members], "query_mask": masks[1][members]}
    function = jax.jit(jax.value_and_grad(meta_objective, has_aux=True), static_argnums=2)
    (objective, _), gradient = function(params, batch, config)
    return [objective, gradient["base"]["layer0"]["kernel"].T, gradient["weight_init"]]


def _user(world: Any, user: int, masks: Any) -> dict[str, torch.Tensor]:
    """A user's pairs as the authors' batches name them."""
    return {
        f"{name}_{side}": world.given[index][user][masks[part][user]]
        for part, name in enumerate(("train", "val"))
        for index, side in enumerate(("chosen", "rejected"))
    }


def _worst(ours: Any, theirs: Any) -> float:
    errors = []
    for mine, other in zip(ours, theirs, strict=True):
        exact = np.asarray(jnp.asarray(mine), np.float64)
        found = other.cpu().numpy().astype(np.float64)
        errors.append(np.abs(found - exact).max() / max(np.abs(exact).max(), 1e-30))
    return float(max(errors))
