"""VPL, GPO and P-TTT at a small size, with random pairs and parameters."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data.batching import Pairs
from jaxalign.mrm.baselines import gpo, pttt, vpl
from jaxalign.mrm.baselines.gpo import GPOConfig, GPONetwork
from jaxalign.mrm.baselines.pttt import PTTTConfig, PTTTNetwork
from jaxalign.mrm.baselines.vpl import VPLConfig, VPLNetwork

ITEMS, WIDTH = 9, 5
SMALL_VPL = VPLConfig(latent=3, hidden=6, draws=4)
SMALL_GPO = GPOConfig(width=8, heads=2, feed_forward=12, layers=2)
SMALL_PTTT = PTTTConfig(hidden=7, width=3)
MODELS = {
    "vpl": (VPLNetwork(SMALL_VPL), vpl.probability),
    "gpo": (GPONetwork(SMALL_GPO), gpo.probability),
    "pttt": (PTTTNetwork(SMALL_PTTT), pttt.probability),
}
NETWORKS = {
    "vpl": (VPLNetwork, VPLConfig, vpl.negative_elbo),
    "gpo": (GPONetwork, GPOConfig, gpo.choice_loss),
    "pttt": (PTTTNetwork, PTTTConfig, pttt.choice_loss),
}


def some_pairs(rng, *shape, weights=(1.0,)):
    chosen = rng.integers(0, ITEMS, shape)
    rejected = (chosen + rng.integers(1, ITEMS, shape)) % ITEMS
    weight = rng.choice(weights, shape)
    arrays = (chosen.astype(np.int32), rejected.astype(np.int32), weight, np.zeros(shape, np.int32))
    return Pairs(*map(jnp.asarray, arrays))


def some_params(model, seed):
    """Parameters of a trained scale, biases included, so that nothing hides behind zeros."""
    rng = np.random.default_rng(seed)
    pair = some_pairs(rng, 1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, WIDTH)), pair, pair)
    params = shapes["params"]
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.6, leaf.shape)), params)
