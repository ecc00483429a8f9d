"""GPO: a transformer that reads a user's choices in its context and predicts the next ones.

Source: Zhao, Dang, Grover, "Group Preference Optimization: Few-Shot Alignment of Large Language
Models", arXiv 2310.11523. Context points (x, y) and target points (x, 0) pass through one
transformer without positions; all attend to the context only: a neural process. Here a point is a
pair of answers and its choice, +1 for the first; the paper's points are single answers with a
group's preference. A new user costs one pass.

Added here: a learned first context point, as the context may be empty; predictions are half the
difference of the two orders of the pair, so that swapping the answers swaps the probabilities.
"""

import functools
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxalign.config_fields import checks_fields
from jaxalign.data.batching import Pairs
from jaxalign.errors import InputError
from jaxalign.mrm.baselines import episodes
from jaxalign.mrm.baselines.episodes import EpisodeConfig, EpisodeMethod, Params
from jaxalign.mrm.config import check_range
from jaxalign.mrm.registry import register

_norm = functools.partial(nn.LayerNorm, epsilon=1e-5)


@dataclass(frozen=True)
@checks_fields
class GPOConfig(EpisodeConfig):
    """Group preference optimisation.

    Attributes:
        width: width of the tokens, a multiple of `heads`.
        heads: number of attention heads, at least 1.
        feed_forward: hidden width of the feed-forward layers and of the head, at least 1.
        layers: number of transformer layers, at least 1; 2 suffice for the data sets tried here.
    """

    width: int = 32
    heads: int = 2
    feed_forward: int = 64
    layers: int = 2
    most_query: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "width heads feed_forward layers", 1)
        if self.width % self.heads:
            raise InputError(
                f"GPO width is {self.width}; expected a multiple of its {self.heads} heads."
            )


class _Layer(nn.Module):
    """A post-norm transformer layer; everything attends to the first S points."""

    config: GPOConfig

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        """Points [T, D] -> [T, D], with what to add to the attention to the first S [S]."""
        config = self.config
        size = config.width // config.heads
        query, key, value = (
            nn.DenseGeneral((config.heads, size), name=name) for name in ("query", "key", "value")
        )
        context = x[: bias.shape[0]]
        scores = jnp.einsum("TNH,SNH->NTS", query(x), key(context)) * size**-0.5
        attention = jax.nn.softmax(scores + bias[None, None, :], axis=-1)
        seen = jnp.einsum("NTS,SNH->TNH", attention, value(context))
        x = _norm(name="norm_attention")(
            x + nn.DenseGeneral(config.width, axis=(-2, -1), name="out")(seen)
        )
        inner = nn.relu(nn.Dense(config.feed_forward, name="up")(x))
        return _norm(name="norm_feed_forward")(x + nn.Dense(config.width, name="down")(inner))


class GPONetwork(nn.Module):
    """The transformer, for one user whose pairs point into a table of items [N, D]."""

    config: GPOConfig

    def setup(self) -> None:
        """The layers; those that read items run over the table once, for all users."""
        config = self.config
        point = nn.initializers.normal(1.0)
        self.first = nn.Dense(config.width)
        self.second = nn.Dense(config.width, use_bias=False)
        self.choice = self.param("choice", point, (config.width,))
        self.embed_out = nn.Dense(config.width)
        self.start = self.param("start", point, (config.width,))
        self.layers = [_Layer(config) for _ in range(config.layers)]
        self.head_hidden = nn.Dense(config.feed_forward)
        self.head_out = nn.Dense(1)

    def __call__(self, table: jax.Array, support: Pairs, query: Pairs) -> jax.Array:
        """Logits [Q] that chosen wins, as the pair is shown: chosen first."""
        first, second = self.first(table), self.second(table)
        context = first[support.chosen] + second[support.rejected] + self.choice[None, :]
        targets = first[query.chosen] + second[query.rejected]
        points = self.embed_out(nn.relu(jnp.concatenate([context, targets])))
        x = jnp.concatenate([self.start[None, :], points])
        weight = support.weight.astype(x.dtype)
        bias = episodes.attention_bias(jnp.concatenate([jnp.ones((1,), x.dtype), weight]))
        for layer in self.layers:
            x = layer(x, bias)
        return self.head_out(nn.relu(self.head_hidden(x[bias.shape[0] :])))[:, 0]


def swapped(pairs: Pairs, where: bool | jax.Array) -> Pairs:
    """Pairs with their two answers in the other order where `where` is true."""
    return pairs._replace(
        chosen=jnp.where(where, pairs.rejected, pairs.chosen),
        rejected=jnp.where(where, pairs.chosen, pairs.rejected),
    )


def choice_loss(
    model: GPONetwork,
    params: Params,
    key: jax.Array,
    table: jax.Array,
    support: Pairs,
    query: Pairs,
    done: jax.Array,
) -> jax.Array:
    """Mean negative log-likelihood of a batch's query choices.

    Each target is shown in one order, drawn at random. The loss is convex in the logit, so this
    bounds that of the prediction, which averages both orders, from above, at half the work.

    Args:
        model: the network.
        params: its parameters.
        key: of the orders.
        table: items [N, D].
        support: [B, S] context points.
        query: [B, Q] target points.
        done: share of training that is done; not used.

    Source:
        arXiv 2310.11523, equation 2, with a Bernoulli for the choice.
    """
    turned = jax.random.bernoulli(key, 0.5, query.chosen.shape)

    def one(support: Pairs, shown: Pairs) -> jax.Array:
        logits: Any = model.apply({"params": params}, table, support, shown)
        return logits

    logits = jax.vmap(one)(support, swapped(query, turned))
    return episodes.mean_choice_loss(jnp.where(turned, -logits, logits), query)


def probability(
    model: GPONetwork, params: Params, table: jax.Array, support: Pairs, query: Pairs
) -> jax.Array:
    """Probability [Q] that chosen wins for one user, from both orders of each pair.

    Args:
        model: the network.
        params: its parameters.
        table: items [N, D].
        support: [S] the user's choices.
        query: [Q] what to predict.
    """
    other = swapped(query, True)
    both = Pairs(*(jnp.concatenate(arrays) for arrays in zip(query, other, strict=True)))
    logits: Any = model.apply({"params": params}, table, support, both)
    forward, backward = jnp.split(logits, 2)
    return jax.nn.sigmoid(0.5 * (forward - backward))


@register("gpo", GPOConfig())
class GPO(EpisodeMethod[GPOConfig]):
    """A transformer with the user's choices in its context."""

    @property
    def network(self) -> episodes.EpisodeNetwork:
        """The network that the settings describe, with its loss."""
        return episodes.EpisodeNetwork(GPONetwork(self.settings), choice_loss, probability)
