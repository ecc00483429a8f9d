"""Mixture of C Bradley-Terry models: a user belongs to one of C tastes, and choices tell which.

Source: EM for mixtures (Dempster, Laird, Rubin 1977) of logistic choice models, one class a person
(Train 2008, "EM algorithms for nonparametric estimation of mixing distributions"); for rewards of
several groups of people, MaxMin-RLHF (Chakraborty et al. 2024, arXiv 2402.08925), whose hard
assignment is soft here.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.config_fields import checks_fields
from jaxalign.data.batching import Pairs
from jaxalign.mrm.baselines.common import Buckets, flat, one_for_all
from jaxalign.mrm.config import check_range
from jaxalign.mrm.registry import Candidate, Fitted, UserRewardMethod, register
from jaxalign.mrm.support_query import TrainingData, differences
from jaxalign.train.blas import one_blas_thread

# Of steps: the metric bounds the curvature, so that the best is mostly beyond 1.
_SIZES = (4.0, 2.0, 1.5, 1.0, 0.5, 0.25, 0.0)


@dataclass(frozen=True)
@checks_fields
class MixtureConfig:
    """Mixture of Bradley-Terry models, by EM.

    Attributes:
        components: numbers of mixture components that validation chooses from, each at least 1.
        em_steps: EM iterations, at least 1, each with one quasi-Newton step per component.
        l2: ridge on every component, relative to the mean squared feature difference, above 0.
        clustering_steps: k-means iterations over the users' scores, from which EM starts, at
            least 1.
    """

    components: tuple[int, ...] = (2, 4, 8, 16)
    em_steps: int = 30
    l2: float = 1e-4
    clustering_steps: int = 10

    def __post_init__(self) -> None:
        check_range(self, "components em_steps clustering_steps", 1)
        check_range(self, "l2", 0, above=True)


class MixtureModel(NamedTuple):
    """Shares and tastes: log_share [C], theta [C, D]."""

    log_share: jax.Array
    theta: jax.Array


def posterior(log_share: jax.Array, margins: jax.Array, weight: jax.Array) -> jax.Array:
    """Probability [C] that one user is of each component, after choices.

    Args:
        log_share: [C] of the components.
        margins: [P, C] reward of the chosen minus reward of the rejected, under each.
        weight: [P]; a user without choices gets the shares.
    """
    evidence = -jnp.einsum("P,PC->C", weight, jax.nn.softplus(-margins))
    return jax.nn.softmax(log_share + evidence)


def climb(
    theta: jax.Array, items: tuple[jax.Array, Pairs], weight: jax.Array, metric: jax.Array,
    l2: jax.Array,
) -> jax.Array:  # fmt: skip
    """One step of ridge logistic regression in a fixed metric, never uphill.

    Lowers sum weight softplus(-<theta, d>) / sum weight + l2 / 2 |theta|^2. The metric stands for
    the Hessian, whose bound S / 4 + l2 I it is, S the second moment of all differences (Böhning and
    Lindsay 1988): factored once, where Newton's would cost a product of all differences with
    themselves at every step of every component.

    Args:
        theta: [D].
        items: features [I, D] and all choices [N].
        weight: [N].
        metric: [D, D] lower Cholesky factor.
        l2: ridge.

    Returns:
        [D].
    """
    features, pairs = items
    share = weight / jnp.maximum(jnp.sum(weight), jnp.finfo(weight.dtype).tiny)

    def margins(direction: jax.Array) -> jax.Array:
        rewards = features @ direction
        return rewards[pairs.chosen] - rewards[pairs.rejected]

    now, back = jax.vjp(margins, theta)
    (pull,) = back(share * jax.nn.sigmoid(-now))
    direction = jax.scipy.linalg.cho_solve((metric, True), l2 * theta - pull)
    along = margins(direction)
    sizes = jnp.asarray(_SIZES, theta.dtype)

    def loss(size: jax.Array) -> jax.Array:
        moved = theta - size * direction
        fit = jnp.sum(share * jax.nn.softplus(size * along - now))
        return fit + 0.5 * l2 * jnp.sum(moved * moved)

    return theta - sizes[jnp.argmin(jax.lax.map(loss, sizes))] * direction


def cluster(key: jax.Array, points: jax.Array, count: int, steps: int) -> jax.Array:
    """Cluster number [U] of points [U, D]: k-means from k-means++ seeds.

    Source: Arthur and Vassilvitskii 2007.
    """

    def squared(centre: jax.Array) -> jax.Array:
        return jnp.sum((points - centre[None, :]) ** 2, axis=1)

    def seed(nearest: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        odds = jnp.log(nearest + jnp.finfo(points.dtype).tiny)
        centre = points[jax.random.categorical(key, odds)]
        return jnp.minimum(nearest, squared(centre)), centre

    anywhere = jnp.ones(len(points), points.dtype)
    first, key = jax.random.split(key)
    start = points[jax.random.categorical(first, anywhere)]
    _, others = jax.lax.scan(seed, squared(start), jax.random.split(key, count - 1))
    centres = jnp.concatenate([start[None, :], others])

    def step(centres: jax.Array, _: None) -> tuple[jax.Array, None]:
        member = jax.nn.one_hot(jnp.argmin(jax.vmap(squared)(centres), axis=0), count)
        member = member.astype(points.dtype)
        size = jnp.sum(member, axis=0)[:, None]
        means = member.T @ points / jnp.maximum(size, 1)
        return jnp.where(size > 0, means, centres), None

    centres, _ = jax.lax.scan(step, centres, None, length=steps)
    return jnp.argmin(jax.vmap(squared)(centres), axis=0)


def _scores(theta: jax.Array, d: jax.Array, weight: jax.Array) -> jax.Array:
    """Where one user's choices pull the common theta [D], in standard deviations."""
    pull = (weight * jax.nn.sigmoid(-(d @ theta))) @ d
    total = jnp.sum(weight)
    return pull / jnp.sqrt(jnp.where(total > 0, total, 1))


def em(
    theta: jax.Array, belief: tuple[jax.Array, ...], features: jax.Array, buckets: Buckets,
    l2: jax.Array, steps: int,
) -> MixtureModel:  # fmt: skip
    """EM from a first belief of who is of which component.

    Args:
        theta: [C, D] where the components start.
        belief: for each bucket [U, C] responsibilities.
        features: [I, D].
        buckets: choices.
        l2: ridge of every component.
        steps: T; each is an M-step (one step of every component's regression) and an E-step.

    Returns:
        The mixture after T M-steps.
    """
    d, weight = flat(features, buckets)
    total = jnp.sum(weight)
    second = d.T @ (weight[:, None] * d) / jnp.where(total > 0, total, 1)
    metric = jnp.linalg.cholesky(0.25 * second + l2 * jnp.eye(d.shape[1], dtype=d.dtype))
    flattened = Pairs(*(jnp.concatenate(part) for part in zip(*map(_rows, buckets), strict=True)))
    active = [jnp.any(pairs.weight > 0, axis=1).astype(d.dtype) for pairs in buckets]

    def m_step(theta: jax.Array, belief: tuple[jax.Array, ...]) -> MixtureModel:
        per_pair = [
            jnp.repeat(share, pairs.weight.shape[1], axis=0)
            for share, pairs in zip(belief, buckets, strict=True)
        ]
        mine = jnp.concatenate(per_pair).T * weight[None, :]
        items = (features, flattened)
        theta = jax.vmap(climb, (0, None, 0, None, None))(theta, items, mine, metric, l2)
        size = sum(a @ share for a, share in zip(active, belief, strict=True))
        # One user more in each: a component that lost all of its users can win some back.
        return MixtureModel(jnp.log((size + 1) / jnp.sum(size + 1)), theta)

    def step(carry: tuple, _: None) -> tuple:
        mixture = m_step(*carry)
        rewards = features @ mixture.theta.T
        belief = tuple(
            jax.vmap(posterior, (None, 0, 0))(
                mixture.log_share, differences(rewards, pairs), pairs.weight
            )
            for pairs in buckets
        )
        return (mixture.theta, belief), mixture.log_share

    shares: jax.Array
    (theta, _), shares = jax.lax.scan(step, (theta, belief), None, length=steps)
    return MixtureModel(shares[-1], theta)


def _rows(pairs: Pairs) -> list[jax.Array]:
    return [array.reshape(-1) for array in pairs]


@functools.partial(jax.jit, static_argnames=("count", "config"))
def _fit(
    key: jax.Array, theta: jax.Array, l2: jax.Array, features: jax.Array, buckets: Buckets,
    count: int, config: MixtureConfig,
) -> MixtureModel:  # fmt: skip
    points = jnp.concatenate(
        [
            jax.vmap(_scores, (None, 0, 0))(theta, differences(features, pairs), pairs.weight)
            for pairs in buckets
        ]
    )
    member = jax.nn.one_hot(
        cluster(key, points, count, config.clustering_steps), count, dtype=features.dtype
    )
    ends = np.cumsum([len(pairs.weight) for pairs in buckets])[:-1].tolist()
    start = jnp.broadcast_to(theta, (count, len(theta)))
    belief = tuple(jnp.split(member, ends))
    return em(start, belief, features, buckets, l2, config.em_steps)


@one_blas_thread
def fit_mixture(features: jax.Array, buckets: Buckets, config: MixtureConfig, seed: int) -> Fitted:
    """Mixtures of every number of components: {number: {"log_share" [C], "theta" [C, D]}}.

    Args:
        features: [I, D].
        buckets: choices of the training users.
        config: numbers of components, steps, ridge.
        seed: of the clustering that EM starts from.
    """
    theta, square = one_for_all(features, buckets, jnp.asarray(config.l2, features.dtype))
    l2 = config.l2 * square
    fitted = {}
    for count in config.components:
        key = jax.random.key(seed)
        mixture = _fit(key, theta, l2, features, buckets, count, config)
        fitted[f"{count}"] = jax.tree.map(np.asarray, mixture._asdict())
    return fitted


@jax.jit
def _probability(
    mixture: MixtureModel, features: jax.Array, support: Pairs, query: Pairs
) -> jax.Array:
    rewards = features @ mixture.theta.T
    known, wanted = differences(rewards, support), differences(rewards, query)
    belief = jax.vmap(posterior, (None, 0, 0))(mixture.log_share, known, support.weight)
    return jnp.einsum("UQC,UC->UQ", jax.nn.sigmoid(wanted), belief)


@register("mixture", MixtureConfig())
class BradleyTerryMixture(UserRewardMethod[MixtureConfig]):
    """A mixture of Bradley-Terry models; choices say which component a user belongs to."""

    def fit(self, data: TrainingData, seed: int) -> Fitted:
        """Return mixtures of every number of components, see `fit_mixture`."""
        return fit_mixture(data.inputs(self.inputs), data.buckets, self.settings, seed)

    def candidates(self, fitted: Fitted) -> list[Candidate]:
        """Return every number of components, with and without adaptation."""
        return [
            {"components": int(count), "adapt": adapt}
            for count in fitted
            for adapt in (True, False)
        ]

    def predict(
        self, fitted: Fitted, candidates: Sequence[Candidate], features: jax.Array,
        support: Pairs, query: Pairs,
    ) -> np.ndarray:  # fmt: skip
        """Return probabilities [C, U, Q], averaged over the components."""
        rows = []
        for candidate in candidates:
            weight = support.weight if candidate["adapt"] else jnp.zeros_like(support.weight)
            mixture = MixtureModel(**fitted[f"{candidate['components']}"])
            known = support._replace(weight=weight)
            rows.append(np.asarray(_probability(mixture, features, known, query)))
        return np.stack(rows)

    def save(self, fitted: Fitted, candidate: Candidate) -> tuple[Fitted, Candidate]:
        """Return the mixture of the chosen number of components alone."""
        name = f"{candidate['components']}"
        return {name: fitted[name]}, candidate
