"""Learning to infer a user from a few choices: episodes of random size, trained in one scan.

Shared by the baselines that are trained once and need no gradient for a new user. Their networks,
Linen modules or not, read a table of items [N, D] and one user's support [S] and query [Q], whose
numbers point into the table.
"""

import functools
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxalign.config import on_resume
from jaxalign.config_fields import checks_fields
from jaxalign.data.batching import Pairs
from jaxalign.data.splits import redraw
from jaxalign.mrm.base import Params
from jaxalign.mrm.config import check_range
from jaxalign.mrm.diverged import all_finite, training_diverged
from jaxalign.mrm.registry import Candidate, Fitted, UserRewardMethod
from jaxalign.mrm.snapshots import snapshot_moments
from jaxalign.mrm.support_query import TrainingData

# model, params, key, table, support [B, S], query [B, Q], share of training done -> scalar
Loss = Callable[[Any, Params, jax.Array, jax.Array, Pairs, Pairs, jax.Array], jax.Array]
# model, params, table, support [S], query [Q] -> probability [Q] that chosen wins
Probability = Callable[[Any, Params, jax.Array, Pairs, Pairs], jax.Array]
_USERS_AT_ONCE = 128
_ABSENT = -1e30  # not infinity: a row of nothing but padding must not be 0/0


@dataclass(frozen=True)
@checks_fields
class EpisodeConfig:
    """Training on episodes: random cuts of a user's choices into support and query.

    Attributes:
        learning_rate: peak learning rate of AdamW, above 0; it warms up over 5 % of the steps and
            then follows half a cosine.
        weight_decay: weight decay of AdamW on kernels, at least 0.
        users_per_batch: users per step, at least 1.
        epochs: passes over the training users, at least 1; more for small populations. A run that
            is resumed with more trains anew.
        snapshots: parameter snapshots at evenly spaced epochs, at least 1; validation chooses one.
        most_support: largest number of support choices of a training episode, at least 1; set it
            to about the number of choices that users will have.
        most_query: largest number of query choices of a training episode, at least 1; memory grows
            with it.
        query_share: share of a user's groups whose choices are the query, between 0 and 1.
    """

    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    users_per_batch: int = 50
    epochs: int = on_resume("more", 100)
    snapshots: int = 10
    most_support: int = 20
    most_query: int = 40
    query_share: float = 0.5

    def __post_init__(self) -> None:
        check_range(self, "users_per_batch epochs snapshots most_support most_query", 1)
        check_range(self, "learning_rate", 0, above=True)
        check_range(self, "weight_decay", 0)
        check_range(self, "query_share", 0, 1)


class Scaling(NamedTuple):
    """Features as the networks see them: centred, of mean square 1 an entry.

    Attributes:
        mean: [D].
        scale: scalar.
    """

    mean: jax.Array
    scale: jax.Array

    def __call__(self, features: jax.Array) -> jax.Array:
        """Scaled features [I, D], at least float32."""
        wide = features.astype(jnp.promote_types(features.dtype, jnp.float32))
        return (wide - jnp.asarray(self.mean)[None, :]) * self.scale


def fit_scaling(features: jax.Array) -> Scaling:
    """The scaling of item features [I, D]; one factor for all columns keeps their proportions."""
    wide = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    mean = jnp.mean(wide, axis=0)
    square = jnp.mean(jnp.square(wide - mean[None, :]))
    return Scaling(mean, jax.lax.rsqrt(jnp.maximum(square, 1e-20)))


def attention_bias(weight: jax.Array) -> jax.Array:
    """What to add to the attention paid to choices of weight [S]: half a choice counts half."""
    return jnp.where(weight > 0, jnp.log(jnp.where(weight > 0, weight, 1.0)), _ABSENT)


def mean_choice_loss(logits: jax.Array, query: Pairs) -> jax.Array:
    """Mean negative log-likelihood of query choices [B, Q] from the logits that chosen wins."""
    losses = jax.nn.softplus(-logits)
    return jnp.sum(query.weight * losses) / choice_count(query)


def choice_count(pairs: Pairs) -> jax.Array:
    """Number of choices [B, Q], each counted by its weight; 1 where there are none."""
    total = jnp.sum(pairs.weight)
    return jnp.where(total > 0, total, 1.0)


# Episodes -------------------------------------------------------------------------------------


def draw(
    key: jax.Array, pairs: Pairs, config: EpisodeConfig, most_groups: int | None = None
) -> tuple[Pairs, Pairs]:
    """Support and query of each user: disjoint, of different groups where there are two or more.

    The number of support choices is uniform from 0 to `most_support`, so that one network serves
    a user with none as well as one with many.

    Args:
        key: random key.
        pairs: [U, P].
        config: `most_support` S, `most_query` Q and `query_share`.
        most_groups: bound on the groups of one user, see `redraw`.

    Returns:
        Pairs [U, min(S, P)] and [U, min(Q, P)]; weight 0 where there are fewer.
    """
    group_key, lot_key, size_key = jax.random.split(key, 3)
    may_show, may_ask = redraw(
        group_key, pairs.group, pairs.weight, config.query_share, most_groups
    )
    users, width = pairs.weight.shape
    most_shown, most_query = min(config.most_support, width), min(config.most_query, width)
    size = jax.random.randint(size_key, (users, 1), 0, most_shown + 1)
    lot = jax.random.uniform(lot_key, (users, width))
    order = jnp.argsort(jnp.where(may_show > 0, lot, 2.0), axis=1)
    shown = jnp.where(jnp.argsort(order, axis=1) < size, may_show, 0)
    # A user with one group has it on both sides: what is not support is query.
    query = jnp.where(shown > 0, 0, may_ask)
    unseen = jnp.argsort(jnp.where(query > 0, lot, 2.0), axis=1)
    return (
        _columns(pairs._replace(weight=shown), order[:, :most_shown]),
        _columns(pairs._replace(weight=query), unseen[:, :most_query]),
    )


def _columns(pairs: Pairs, columns: jax.Array) -> Pairs:
    return Pairs(*(jnp.take_along_axis(array, columns, axis=1) for array in pairs))


def localise(features: jax.Array, *parts: Pairs) -> tuple[jax.Array, tuple[Pairs, ...]]:
    """The items that pairs name as a table of their own, where that is the smaller one.

    A network's first layer runs over the table once: with few items that is far less work than
    over the pairs, and with many items the table holds only those at hand.

    Args:
        features: [I, D].
        parts: pairs, [U, .] each.

    Returns:
        A table [N, D], and the pairs renumbered to it.
    """
    numbers = [array for part in parts for array in (part.chosen, part.rejected)]
    if features.shape[0] <= sum(array.size for array in numbers):
        return features, parts
    starts = np.cumsum([0, *(array.size for array in numbers[:-1])])
    fresh = [
        jnp.arange(start, start + array.size, dtype=jnp.int32).reshape(array.shape)
        for start, array in zip(starts.tolist(), numbers, strict=True)
    ]
    renumbered = tuple(
        part._replace(chosen=one, rejected=two)
        for part, one, two in zip(parts, fresh[::2], fresh[1::2], strict=True)
    )
    return features[jnp.concatenate([array.reshape(-1) for array in numbers])], renumbered


class Network(Protocol):
    """What is trained: its recipe, and where its parameters start. It is hashable."""

    @property
    def config(self) -> EpisodeConfig:
        """The recipe."""

    def init(self, key: jax.Array, table: jax.Array, support: Pairs, query: Pairs, /) -> Any:
        """Return {"params": ...} for a table of items [N, D] and one user's pairs."""


# Training -------------------------------------------------------------------------------------


def fit(model: Network, loss: Loss, features: jax.Array, pairs: Pairs, seed: int) -> Fitted:
    """Train a network on episodes of the training users.

    Args:
        model: its `config` is the recipe.
        loss: of a batch of episodes.
        features: [I, D].
        pairs: [U, P].
        seed: of the parameters, the order of users and the episodes.

    Returns:
        `params`, leaves [T, ...], at the snapshots; `scaling` of the features; `losses` [epochs].

    Raises:
        InputError: training diverged, with the step and its users.
    """
    most_groups = int(pairs.group.max()) + 1
    trained = _train(model, loss, features, pairs, jax.random.key(seed), most_groups)
    params, losses, scaling, bad = jax.device_get(trained)
    if not all_finite((params, losses)):
        # The last step may be the one after which only the parameters are not finite.
        step = losses.size if bad.step < 0 else int(bad.step) + 1
        where = f"step {step} of {losses.size}"
        users = [] if bad.step < 0 else bad.users.tolist()
        remedy = f"lower learning_rate ({model.config.learning_rate:g})"
        raise training_diverged(type(model).__name__, where, remedy, users)
    return {"params": params, "scaling": scaling._asdict(), "losses": losses.mean(axis=1)}


class _FirstBad(NamedTuple):
    """The first step whose loss is not finite, -1 for none, and its users [B]."""

    step: jax.Array
    users: jax.Array


@functools.partial(jax.jit, static_argnames=("model", "loss", "most_groups"))
def _train(
    model: Any, loss: Loss, features: jax.Array, pairs: Pairs, key: jax.Array, most_groups: int
) -> tuple[Params, jax.Array, Scaling, _FirstBad]:
    """Snapshots, the losses [epochs, steps], the scaling, and where training diverged."""
    config: EpisodeConfig = model.config
    users = pairs.weight.shape[0]
    size = min(config.users_per_batch, users)
    steps = users // size
    total = steps * config.epochs
    scaling = fit_scaling(features)
    scaled = scaling(features)
    optimiser = _optimiser(config, total)

    def step(carry: tuple, members: jax.Array) -> tuple[tuple, jax.Array]:
        params, state, key, count, bad = carry
        key, draw_key, loss_key = jax.random.split(key, 3)
        mine = Pairs(*(array[members] for array in pairs))
        table, (support, query) = localise(scaled, *draw(draw_key, mine, config, most_groups))
        value, gradient = jax.value_and_grad(
            lambda params: loss(model, params, loss_key, table, support, query, count / total)
        )(params)
        updates, state = optimiser.update(gradient, state, params)
        first = (bad.step < 0) & ~jnp.isfinite(value)
        bad = _FirstBad(jnp.where(first, count, bad.step), jnp.where(first, members, bad.users))
        return (optax.apply_updates(params, updates), state, key, count + 1, bad), value

    def epoch(_: jax.Array, carry: tuple[tuple, jax.Array]) -> tuple[tuple, jax.Array]:
        (params, state, key, count, bad), losses = carry
        key, order_key = jax.random.split(key)
        # Users beyond the last full batch have their turn in another epoch's order.
        order = jax.random.permutation(order_key, users)[: steps * size].reshape(steps, size)
        carried, values = jax.lax.scan(step, (params, state, key, count, bad), order)
        return carried, losses.at[count // steps].set(values)

    def span(
        carry: tuple[tuple, jax.Array], length: jax.Array
    ) -> tuple[tuple[tuple, jax.Array], Params]:
        carry = jax.lax.fori_loop(0, length, epoch, carry)
        return carry, carry[0][0]

    init_key, key = jax.random.split(key)
    one = Pairs(*(jnp.zeros((1,), array.dtype) for array in pairs))
    params = model.init(init_key, scaled[:1], one, one)["params"]
    none = _FirstBad(jnp.full((), -1, jnp.int32), jnp.zeros((size,), jnp.int32))
    start = (params, optimiser.init(params), key, jnp.zeros((), jnp.int32), none)
    lengths = jnp.diff(jnp.asarray(snapshot_moments(config.epochs, config.snapshots)), prepend=0)
    losses = jnp.zeros((config.epochs, steps), scaled.dtype)
    ((*_, bad), losses), kept = jax.lax.scan(span, (start, losses), lengths)
    return kept, losses, scaling, bad


def _optimiser(config: EpisodeConfig, total: int) -> optax.GradientTransformation:
    rising = max(math.ceil(0.05 * total), 1)
    rate = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, rising, total + 1)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(rate, b2=0.99, weight_decay=config.weight_decay, mask=_kernels),
    )


def _kernels(params: Params) -> Params:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


# Predicting -----------------------------------------------------------------------------------


Config = TypeVar("Config", bound=EpisodeConfig)


class EpisodeNetwork(NamedTuple):
    """A network, its loss, and the probability that it gives."""

    model: Network
    loss: Loss
    probability: Probability


class EpisodeMethod(UserRewardMethod[Config]):
    """A network as a method; validation chooses the snapshot, and whether choices are read."""

    @property
    @abstractmethod
    def network(self) -> EpisodeNetwork:
        """The network that the settings describe, with its loss."""

    def fit(self, data: TrainingData, seed: int) -> Fitted:
        """Return `params`, leaves [T, ...], `scaling` and `losses`, see `episodes.fit`."""
        model, loss, _ = self.network
        return fit(model, loss, data.inputs(self.inputs), data.pairs, seed)

    def candidates(self, fitted: Fitted) -> list[Candidate]:
        """Return every snapshot, with and without adaptation."""
        snapshots = len(jax.tree.leaves(fitted["params"])[0])
        return [
            {"snapshot": i, "adapt": adapt} for i in range(snapshots) for adapt in (True, False)
        ]

    def predict(
        self, fitted: Fitted, candidates: Sequence[Candidate], features: jax.Array,
        support: Pairs, query: Pairs,
    ) -> np.ndarray:  # fmt: skip
        """Return probabilities [C, U, Q]."""
        scaling = Scaling(**fitted["scaling"])
        model, _, probability = self.network
        rows = []
        for candidate in candidates:
            place = candidate["snapshot"]
            params = jax.tree.map(lambda leaf, i=place: leaf[i], fitted["params"])
            weight = support.weight if candidate["adapt"] else jnp.zeros_like(support.weight)
            both = (support._replace(weight=weight), query)
            found = _probabilities(model, probability, params, scaling, features, both)
            rows.append(np.asarray(found))
        return np.stack(rows)

    def save(self, fitted: Fitted, candidate: Candidate) -> tuple[Fitted, Candidate]:
        """Return the parameters of the chosen snapshot alone."""
        place = candidate["snapshot"]
        params = jax.tree.map(lambda leaf: leaf[place : place + 1], fitted["params"])
        return {"params": params, "scaling": fitted["scaling"]}, {**candidate, "snapshot": 0}


@functools.partial(jax.jit, static_argnames=("model", "probability"))
def _probabilities(
    model: Network,
    probability: Probability,
    params: Params,
    scaling: Scaling,
    features: jax.Array,
    both: tuple[Pairs, Pairs],
) -> jax.Array:
    """Probabilities [U, Q], a bounded number of users at a time."""

    def one(user: tuple[Pairs, Pairs]) -> jax.Array:
        table, (support, query) = localise(scaled, *user)
        return probability(model, params, table, support, query)

    scaled = scaling(features)
    return jax.lax.map(one, both, batch_size=_USERS_AT_ONCE)
