"""VPL: a variational latent of a user, inferred from a set of annotated pairs.

Source: Poddar, Wan, Ivison, Gupta, Jaques, "Personalizing Reinforcement Learning from Human
Feedback with Variational Preference Learning", arXiv 2408.10075. An encoder q(z | pairs) reads a
user's pairs, one reward r(e, z) serves all users, choices are Bradley-Terry in it, and both are
trained on the evidence lower bound. A new user costs one pass of the encoder and no gradient.

Added here: episodes of 0 to `most_support` choices, where the authors always show as many; without
choices q is the prior N(0, I); the pooled pairs are scaled by log(1 + their number), as an average
does not say how many there were; predictions average over a few draws of z.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxalign.config_fields import checks_fields
from jaxalign.data.batching import Pairs
from jaxalign.mrm.baselines import episodes
from jaxalign.mrm.baselines.episodes import EpisodeConfig, EpisodeMethod, Params
from jaxalign.mrm.config import check_range
from jaxalign.mrm.registry import register


@dataclass(frozen=True)
@checks_fields
class VPLConfig(EpisodeConfig):
    """Variational preference learning.

    Attributes:
        latent: width Z of a user's latent, at least 1.
        hidden: hidden width H of the encoder and of the reward network, at least 1.
        kl_weight: weight of the KL divergence in the evidence lower bound after annealing, at
            least 0; 1 is the bound itself, less lets the latent carry more of the user.
        kl_anneal: share of training over which `kl_weight` rises from 0, between 0 and 1.
        draws: samples of the latent that a prediction averages over, at least 0; 0 uses the mean
            of the latent.
    """

    latent: int = 16
    hidden: int = 64
    kl_weight: float = 0.003
    kl_anneal: float = 0.5
    draws: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "latent hidden", 1)
        check_range(self, "kl_weight draws", 0)
        check_range(self, "kl_anneal", 0, 1)


class VPLNetwork(nn.Module):
    """Encoder and reward, for one user whose pairs point into a table of items [N, D]."""

    config: VPLConfig

    def setup(self) -> None:
        """The layers; those that read items run over the table once, for all users."""
        hidden, latent = self.config.hidden, self.config.latent
        self.pair_chosen = nn.Dense(hidden)
        self.pair_rejected = nn.Dense(hidden, use_bias=False)
        self.pair_hidden = nn.Dense(hidden)
        self.pair_out = nn.Dense(hidden)
        self.query, self.key, self.value = (nn.Dense(hidden) for _ in range(3))
        self.mean = nn.Dense(latent)
        self.log_var = nn.Dense(latent)
        self.reward_item = nn.Dense(hidden)
        self.reward_latent = nn.Dense(hidden, use_bias=False)
        self.reward_hidden = nn.Dense(hidden)
        self.reward_out = nn.Dense(1, use_bias=False)

    def posterior(self, table: jax.Array, support: Pairs) -> tuple[jax.Array, jax.Array]:
        """Mean and log variance [Z] of the latent given pairs [S]: a set, so in any order.

        Each pair attends to all, and the results are averaged; a choice of weight 1/2 counts half
        in both.
        """
        x = self.pair_chosen(table)[support.chosen] + self.pair_rejected(table)[support.rejected]
        x = self.pair_hidden(nn.leaky_relu(x, 0.2))
        x = self.pair_out(nn.leaky_relu(x, 0.2))
        weight = support.weight.astype(x.dtype)
        total = jnp.sum(weight)
        scores = self.query(x) @ self.key(x).T * x.shape[-1] ** -0.5
        bias = episodes.attention_bias(weight)
        seen = jax.nn.softmax(scores + bias[None, :], axis=-1) @ self.value(x)
        pooled = weight @ seen * (jnp.log1p(total) / jnp.maximum(total, 1e-6))
        zero = jnp.zeros((self.config.latent,), x.dtype)
        known = total > 0
        return (
            jnp.where(known, self.mean(pooled), zero),
            jnp.where(known, self.log_var(pooled), zero),
        )

    def margins(self, table: jax.Array, z: jax.Array, query: Pairs) -> jax.Array:
        """Reward of chosen minus reward of rejected [Q] for a user with latent [Z]."""
        # Only the first layer is the same for all users; the others run on the query items.
        x = self.reward_item(table)[jnp.concatenate([query.chosen, query.rejected])]
        x = self.reward_hidden(nn.leaky_relu(x + self.reward_latent(z)[None, :], 0.2))
        chosen, rejected = jnp.split(self.reward_out(nn.leaky_relu(x, 0.2))[:, 0], 2)
        return chosen - rejected

    def __call__(self, table: jax.Array, support: Pairs, query: Pairs) -> jax.Array:
        """Logits [Q] that chosen beats rejected, at the mean of the latent."""
        return self.margins(table, self.posterior(table, support)[0], query)


def _posterior(model: VPLNetwork, params: Params, table: jax.Array, support: Pairs) -> Any:
    return model.apply({"params": params}, table, support, method=VPLNetwork.posterior)


def _margins(
    model: VPLNetwork, params: Params, table: jax.Array, z: jax.Array, query: Pairs
) -> Any:
    return model.apply({"params": params}, table, z, query, method=VPLNetwork.margins)


def divergence(mean: jax.Array, log_var: jax.Array) -> jax.Array:
    """Kullback-Leibler divergence of N(mean, diag exp(log_var)) [Z] from N(0, I)."""
    return 0.5 * jnp.sum(jnp.square(mean) + jnp.exp(log_var) - 1.0 - log_var)


def negative_elbo(
    model: VPLNetwork,
    params: Params,
    key: jax.Array,
    table: jax.Array,
    support: Pairs,
    query: Pairs,
    done: jax.Array,
) -> jax.Array:
    """Negative evidence lower bound of a batch of users, per query choice.

    Args:
        model: the network.
        params: its parameters.
        key: of the draws of z, one a user.
        table: items [N, D].
        support: [B, S] what the encoder reads.
        query: [B, Q] what z has to explain.
        done: share of training that is done, for the annealing.

    Returns:
        Scalar: (sum of query losses + weight * sum of users' divergences) / number of choices.

    Source:
        arXiv 2408.10075, the bound of section 4; -log sigma of the reward's difference.
    """
    config = model.config

    def one(key: jax.Array, support: Pairs, query: Pairs) -> tuple[jax.Array, jax.Array]:
        mean, log_var = _posterior(model, params, table, support)
        z = mean + jnp.exp(0.5 * log_var) * jax.random.normal(key, mean.shape, mean.dtype)
        margin = _margins(model, params, table, z, query)
        return jnp.sum(query.weight * jax.nn.softplus(-margin)), divergence(mean, log_var)

    keys = jax.random.split(key, support.weight.shape[0])
    losses, divergences = jax.vmap(one)(keys, support, query)
    rising = jnp.minimum(done / max(config.kl_anneal, 1e-6), 1.0)
    bound = jnp.sum(losses) + config.kl_weight * rising * jnp.sum(divergences)
    return bound / episodes.choice_count(query)


def probability(
    model: VPLNetwork, params: Params, table: jax.Array, support: Pairs, query: Pairs
) -> jax.Array:
    """Probability [Q] that chosen wins for one user, averaged over fixed draws of the latent.

    Args:
        model: the network.
        params: its parameters.
        table: items [N, D].
        support: [S] the user's choices.
        query: [Q] what to predict.
    """
    config = model.config
    mean, log_var = _posterior(model, params, table, support)
    # The same draws for all users: predictions do not depend on the other users of a batch.
    noise = jax.random.normal(
        jax.random.key(0), (max(config.draws, 1), config.latent), mean.dtype
    ) * (config.draws > 0)
    draws = mean[None, :] + jnp.exp(0.5 * log_var)[None, :] * noise
    margin = jax.vmap(lambda z: _margins(model, params, table, z, query))(draws)
    return jnp.mean(jax.nn.sigmoid(margin), axis=0)


@register("vpl", VPLConfig())
class VPL(EpisodeMethod[VPLConfig]):
    """A variational latent of a user, inferred from the user's choices in one pass."""

    @property
    def network(self) -> episodes.EpisodeNetwork:
        """The network that the settings describe, with its loss."""
        return episodes.EpisodeNetwork(VPLNetwork(self.settings), negative_elbo, probability)
