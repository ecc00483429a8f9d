"""P-TTT: a reward model whose fast weights take one rank-1 step for each choice of a user.

Source: personalised test-time training of reward models (P-TTT, 2026; no public implementation).
In the paper each support pair updates the down-projection W of every sixth MLP of the backbone, by
W += eta v (k+ - k-)^T with eta = 0.5, where k is what enters W at the last token, and the model is
trained through that update. A new user costs one sum over the choices and no gradient.

Here the backbone is frozen, and its features pass through one MLP block of that kind. The reward is
linear in W, so that a user is a vector of weights on the block's hidden units.

Added here: episodes of 0 to `most_support` choices, as a new user has none; the rate falls with
their number by a learned factor, as a sum grows without bound; v starts as the head, for which the
update is a gradient step of the Bradley-Terry loss.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxalign.config_fields import checks_fields
from jaxalign.data.batching import Pairs
from jaxalign.mrm.baselines.episodes import (
    EpisodeConfig,
    EpisodeMethod,
    EpisodeNetwork,
    Params,
    Scaling,
    mean_choice_loss,
)
from jaxalign.mrm.config import check_range
from jaxalign.mrm.registry import Candidate, Fitted, WeightsMethod, register

_START = -2.0  # of the saturation before softplus: 8 choices about halve the rate


@dataclass(frozen=True)
@checks_fields
class PTTTConfig(EpisodeConfig):
    """Personalised test-time training.

    Attributes:
        hidden: hidden units H of the MLP block, whose differences are the keys, at least 1.
        width: rows M of the fast weights, at least 1.
        rate: eta, the rate of the update for one choice, above 0; 0.5 as published.
    """

    hidden: int = 128
    width: int = 16
    rate: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "hidden width", 1)
        check_range(self, "rate", 0, above=True)


def fast_weights(
    slow: jax.Array,
    value: jax.Array,
    keys: jax.Array,
    weight: jax.Array,
    rate: float,
    saturation: jax.Array,
) -> jax.Array:
    """Return the weights of one user after a rank-1 step for each choice.

    W = W_0 + eta / (1 + c n) * sum_p w_p v (k+_p - k-_p)^T, with n = sum_p w_p.

    Args:
        slow: W_0 [M, H], the weights of a user without choices.
        value: v [M].
        keys: [P, H] k+ - k- of each choice.
        weight: w [P] of the choices; 0 in padding.
        rate: eta.
        saturation: c, 0 or more; at 0 the update is the published one.

    Returns:
        W [M, H].

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm.baselines.pttt import fast_weights
        >>> slow, value, one = jnp.zeros((1, 2)), jnp.ones(1), jnp.ones(1)
        >>> fast_weights(slow, value, jnp.array([[1.0, -2.0]]), one, 0.5, jnp.zeros(())).tolist()
        [[0.5, -1.0]]
    """
    step = rate / (1 + saturation * jnp.sum(weight))
    return slow + step * jnp.outer(value, weight @ keys)


def base_rewards(params: Params, items: jax.Array) -> jax.Array:
    """Return base rewards [..., 1 + H] of items [..., D]: the skip connection's, then the keys.

    Args:
        params: `skip` [D], `up` [D, H], `up_bias` [H].
        items: scaled features.
    """
    hidden = params["up"].shape[1]
    above = items @ params["up"]
    keys = jax.nn.gelu(above + jnp.broadcast_to(params["up_bias"], above.shape)) * hidden**-0.5
    return jnp.concatenate([(items @ params["skip"])[..., None], keys], axis=-1)


def user_weights(
    params: Params, differences: jax.Array, weight: jax.Array, rate: float
) -> jax.Array:
    """Return one user's weights [1 + H] on the base rewards: 1, then what the head reads of W.

    Args:
        params: `down` [M, H], `value` [M], `head` [M] and `saturation`, a scalar before softplus.
        differences: [P, 1 + H] base rewards of the user's choices, chosen minus rejected.
        weight: [P] of the choices.
        rate: eta.
    """
    saturation, keys = jax.nn.softplus(params["saturation"]), differences[:, 1:]
    fast = fast_weights(params["down"], params["value"], keys, weight, rate, saturation)
    return jnp.concatenate([jnp.ones((1,), fast.dtype), params["head"] @ fast])


@dataclass(frozen=True)
class PTTTNetwork:
    """The MLP block with its head, for one user whose pairs point into a table of items [N, D]."""

    config: PTTTConfig

    def init(
        self, key: jax.Array, table: jax.Array, support: Pairs, query: Pairs
    ) -> dict[str, Params]:
        """Return `params` to train from; of the arrays only the width of the table is read."""
        hidden, width, size = self.config.hidden, self.config.width, table.shape[1]
        skip_key, up_key = jax.random.split(key)
        even = jnp.full((width,), width**-0.5)
        params = {
            "skip": jax.random.normal(skip_key, (size,)) * size**-0.5,
            "up": jax.random.normal(up_key, (size, hidden)) * size**-0.5,
            "up_bias": jnp.zeros((hidden,)),
            "down": jnp.zeros((width, hidden)),
            "value": even,
            "head": even,
            "saturation": jnp.full((), _START),
        }
        return {"params": params}

    def logits(self, params: Params, table: jax.Array, support: Pairs, query: Pairs) -> jax.Array:
        """Return logits [Q] that chosen beats rejected."""
        base = base_rewards(params, table)
        known = base[support.chosen] - base[support.rejected]
        weight = support.weight.astype(base.dtype)
        weights = user_weights(params, known, weight, self.config.rate)
        return (base[query.chosen] - base[query.rejected]) @ weights


def choice_loss(
    model: PTTTNetwork,
    params: Params,
    key: jax.Array,
    table: jax.Array,
    support: Pairs,
    query: Pairs,
    done: jax.Array,
) -> jax.Array:
    """Mean negative log-likelihood of a batch's query choices, after the update.

    Args:
        model: the network.
        params: its parameters, to be differentiated through the update.
        key: not used.
        table: items [N, D].
        support: [B, S] choices that each user's fast weights are updated with.
        query: [B, Q] choices to predict.
        done: share of training that is done; not used.
    """
    logits = jax.vmap(model.logits, in_axes=(None, None, 0, 0))(params, table, support, query)
    return mean_choice_loss(logits, query)


def probability(
    model: PTTTNetwork, params: Params, table: jax.Array, support: Pairs, query: Pairs
) -> jax.Array:
    """Probability [Q] that chosen wins for one user.

    Args:
        model: the network.
        params: its parameters.
        table: items [N, D].
        support: [S] the user's choices.
        query: [Q] what to predict.
    """
    return jax.nn.sigmoid(model.logits(params, table, support, query))


@register("pttt", PTTTConfig())
class PTTT(EpisodeMethod[PTTTConfig], WeightsMethod[PTTTConfig]):
    """Fast weights that each of the user's choices updates, trained through the update."""

    @property
    def network(self) -> EpisodeNetwork:
        """The network that the settings describe, with its loss."""
        return EpisodeNetwork(PTTTNetwork(self.settings), choice_loss, probability)

    def base(self, fitted: Fitted, candidate: Candidate, features: jax.Array) -> jax.Array:
        """Return base rewards [..., 1 + H] of features [..., D]."""
        return base_rewards(_snapshot(fitted, candidate), Scaling(**fitted["scaling"])(features))

    def infer(
        self, fitted: Fitted, candidate: Candidate, differences: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, None]:
        """Return users' weights [U, 1 + H] after the update."""
        known = mask if candidate["adapt"] else jnp.zeros_like(mask)
        params, rate = _snapshot(fitted, candidate), self.settings.rate
        weights = jax.vmap(user_weights, in_axes=(None, 0, 0, None))
        return weights(params, differences, known, rate), None


def _snapshot(fitted: Fitted, candidate: Candidate) -> Params:
    params: Params = jax.tree.map(lambda leaf: leaf[candidate["snapshot"]], fitted["params"])
    return params
