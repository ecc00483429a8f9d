"""Parity with the authors' PyTorch implementation, float64."""

import json

import chex
import jax
import jax.numpy as jnp
import pytest
from golden_numbers import golden

from jaxalign import mrm

CASES = ["k2_hard_tail", "k2_one_step", "k8_bias_ten_steps", "k8_five_steps", "two_layers_bias"]


def _load(case):
    arrays = golden(f"mrm/{case}")
    hyper = json.loads(str(arrays["hyper"]))
    hyper["hidden_sizes"] = tuple(hyper["hidden_sizes"])
    config = mrm.MRMConfig(**hyper, eval_steps=hyper["inner_steps"])
    base = {}
    for index in range(len(config.hidden_sizes)):
        base[f"layer{index}"] = {"kernel": jnp.asarray(arrays[f"layer{index}_kernel"])}
        if config.use_bias:
            base[f"layer{index}"]["bias"] = jnp.asarray(arrays[f"layer{index}_bias"])
    params = {"base": base, "weight_init": jnp.asarray(arrays["weight_init"])}
    names = ("chosen", "rejected", "support_mask", "query_mask")
    return arrays, config, params, {name: jnp.asarray(arrays[name]) for name in names}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", ["features", "differences"])
def test_meta_objective_and_gradients(case, form, x64):
    arrays, config, params, batch = _load(case)
    if form == "differences":
        batch["differences"] = batch.pop("chosen") - batch.pop("rejected")
    grad_fn = jax.jit(jax.value_and_grad(mrm.meta_objective, has_aux=True), static_argnums=2)
    (objective, (losses, weights)), gradient = grad_fn(params, batch, config)
    tolerance = {"rtol": 1e-10, "atol": 1e-13}
    chex.assert_trees_all_close(weights, arrays["adapted_weights_train"], **tolerance)
    chex.assert_trees_all_close(losses, arrays["query_losses"], **tolerance)
    chex.assert_trees_all_close(objective, arrays["objective"], **tolerance)
    chex.assert_trees_all_close(gradient["weight_init"], arrays["grad_weight_init"], **tolerance)
    for name, layer in gradient["base"].items():
        for leaf, value in layer.items():
            chex.assert_trees_all_close(value, arrays[f"grad_{name}_{leaf}"], **tolerance)


@pytest.mark.parametrize("case", CASES)
def test_evaluation_adam(case, x64):
    arrays, config, params, batch = _load(case)
    base = mrm.base_rewards(params, batch["chosen"]) - mrm.base_rewards(params, batch["rejected"])
    weights = mrm.adapt(params, base, batch["support_mask"], config)
    chex.assert_trees_all_close(weights, arrays["adapted_weights_eval"], rtol=1e-10, atol=1e-13)
