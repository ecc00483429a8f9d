"""Parity with the authors' PyTorch implementation, and with exact posteriors, float64."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
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


@pytest.mark.parametrize(
    ("name", "off"), [("sd1", (0.006, 0.05, 0.003)), ("sd4", (0.025, 0.2, 0.035))]
)
def test_posteriors_are_near_the_exact_ones(name, off, x64):
    """In standard deviations of the posterior; as a share of its covariance; in probability."""
    exact = golden(f"bayes/{name}")
    prior = mrm.Prior(jnp.asarray(exact["prior_mean"]), jnp.asarray(exact["prior_cov"]))
    weight = exact["mask"].astype(np.float64)
    mean, cov = mrm.posterior(prior, exact["differences"], weight)
    probability = jax.vmap(mrm.choice_probability)(mean, cov, exact["query"])
    spread = np.sqrt(np.einsum("uii->ui", exact["posterior_cov"]))
    assert np.max(abs(mean - exact["posterior_mean"]) / spread) < off[0]
    size = np.linalg.norm(exact["posterior_cov"], axis=(1, 2))
    assert np.max(np.linalg.norm(cov - exact["posterior_cov"], axis=(1, 2)) / size) < off[1]
    assert np.max(abs(probability - exact["query_probability"])) < off[2]
    nobody = weight.sum(axis=1) == 0
    assert nobody.sum() == 1
    np.testing.assert_allclose(mean[nobody], exact["posterior_mean"][nobody], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(cov[nobody], exact["posterior_cov"][nobody], rtol=1e-9)
