"""LoRe: rewards in a low-rank space, theta_u = V w_u, with w_u fitted from a few choices.

Source: Bose, Xiong, Chi, Du, Xiao, Fazel, "LoRe: Personalizing LLMs via Low-Rank Reward Modeling",
arXiv 2504.14439: weights on the simplex (softmax), basis and weights by Adam on the Bradley-Terry
loss, new users by Adam on their weights alone, the basis pulled towards a reference reward. The
signed form is added here: w_u ~ N(mean, I), mean ~ N(0, I) and a ridge on V, everything by MAP, so
that a dislike can be expressed and a new user with few choices stays near the mean.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxalign.config_fields import checks_fields
from jaxalign.data.batching import Pairs
from jaxalign.mrm import bayes, newton
from jaxalign.mrm.base import Params
from jaxalign.mrm.baselines import simplex
from jaxalign.mrm.baselines.common import Buckets, one_for_all
from jaxalign.mrm.config import check_range
from jaxalign.mrm.diverged import all_finite, training_diverged
from jaxalign.mrm.registry import Candidate, Fitted, WeightsMethod, register
from jaxalign.mrm.support_query import TrainingData, differences
from jaxalign.train.blas import one_blas_thread

SPREADS = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
@checks_fields
class LoReConfig:
    """Low-rank reward modelling.

    Attributes:
        link: how a user weighs the basis rewards: "signed" weights with a Gaussian prior around
            their mean, or "softmax" weights on the simplex as published.
        ranks: numbers of basis rewards that validation chooses from, each at least 1.
        steps: Adam steps on the basis and the users' weights together, at least 1.
        learning_rate: learning rate of these steps, above 0.
        decays: regularisation strengths that validation chooses from, each at least 0: the ridge
            on the basis ("signed"), or the pull of every basis reward towards one Bradley-Terry
            model ("softmax").
        few_shot_rate: learning rate of the Adam steps that fit a new user's softmax weights.
        few_shot_steps: number of these steps, at least 1.
    """

    link: Literal["signed", "softmax"] = "signed"
    ranks: tuple[int, ...] = (2, 4, 8, 16)
    steps: int = 300
    learning_rate: float = 0.03
    decays: tuple[float, ...] = (1e-3, 1e-4)
    few_shot_rate: float = 0.1
    few_shot_steps: int = 500

    def __post_init__(self) -> None:
        check_range(self, "ranks steps few_shot_steps", 1)
        check_range(self, "learning_rate few_shot_rate", 0, above=True)
        check_range(self, "decays", 0)


# 500 steps of rate 0.5 are the authors'; they choose the pull towards one reward, too.
LORE_PUBLISHED = LoReConfig(
    link="softmax", ranks=(2, 4, 8), steps=500, learning_rate=0.5, decays=(1e-2, 1e-3)
)


def rewards(params: Params, features: jax.Array) -> jax.Array:
    """Basis rewards [I, K] of features [I, D]."""
    return features @ params["basis"]


# Signed weights -------------------------------------------------------------------------------


def map_objective(
    params: Params,
    features: jax.Array,
    buckets: Buckets,
    ridge: jax.Array,
) -> jax.Array:
    """Minus the log posterior of basis, mean and users, per choice.

    sum_up softplus(-<V (mean + z_u), d_up>) + 1/2 sum_u |z_u|^2 + 1/2 |mean|^2, over the number of
    choices, and ridge / 2 |V|^2.

    Args:
        params: `basis` [D, K], `mean` [K], `users`: for each bucket z [U, K].
        features: [I, D].
        buckets: the choices.
        ridge: of the basis.

    Returns:
        Scalar.
    """
    items = rewards(params, features)
    # Without a prior on the mean there is no least: it grows for ever along a basis reward that
    # shrinks, which makes what all users share free of the ridge.
    loss, count = 0.5 * jnp.sum(params["mean"] ** 2), jnp.zeros((), items.dtype)
    for z, pairs in zip(params["users"], buckets, strict=True):
        weights = params["mean"][None] + z
        margins = jnp.einsum("UPK,UK->UP", differences(items, pairs), weights)
        loss += jnp.sum(pairs.weight * jax.nn.softplus(-margins)) + 0.5 * jnp.sum(z * z)
        count += jnp.sum(pairs.weight)
    return loss / jnp.maximum(count, 1) + 0.5 * ridge * jnp.sum(params["basis"] ** 2)


@functools.partial(jax.jit, static_argnames=("steps",))
def fit_signed(
    start: Params,
    features: jax.Array,
    buckets: Buckets,
    ridge: jax.Array,
    learning_rate: jax.Array,
    steps: int,
) -> Params:
    """The least of `map_objective` that Adam finds from `start`, its rate falling to 0 in `steps`.

    Returns:
        `basis` [D, K] and `mean` [K]: what new users are fitted with.
    """
    optimiser = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    def step(carry: tuple, _: None) -> tuple:
        params, state = carry
        gradient = jax.grad(map_objective)(params, features, buckets, ridge)
        updates, state = optimiser.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (start, optimiser.init(start)), None, length=steps)
    return {"basis": params["basis"], "mean": params["mean"]}


def map_weights(
    mean: jax.Array, spread: jax.Array, base: jax.Array, weight: jax.Array
) -> jax.Array:
    """New users' weights [U, K] under w ~ N(mean, spread^2 I), by MAP.

    Args:
        mean: [K].
        spread: standard deviation; 0 is no adaptation.
        base: [U, P, K] basis rewards, chosen minus rejected.
        weight: [U, P] of the choices; a user without any gets the mean.
    """
    prior = bayes.Prior(mean, spread**2 * jnp.eye(mean.shape[0], dtype=mean.dtype))
    return newton.modes(prior, base, weight)


@jax.jit
def _signed_probability(
    fitted: Params, spread: jax.Array, features: jax.Array, support: Pairs, query: Pairs
) -> jax.Array:
    items = rewards(fitted, features)
    known = differences(items, support)
    weights = map_weights(fitted["mean"], spread, known, support.weight)
    wanted = differences(items, query)
    return jax.nn.sigmoid(jnp.einsum("UQK,UK->UQ", wanted, weights))


def start_signed(key: jax.Array, theta: jax.Array, rank: int, users: list[int]) -> Params:
    """Everybody at one Bradley-Terry model theta [D], the basis random beside it."""
    noise = jax.random.normal(key, (len(theta), rank), theta.dtype)
    basis = theta[:, None] / rank + 0.1 * noise
    return {
        "basis": basis,
        "mean": jnp.ones(rank, theta.dtype),
        "users": tuple(jnp.zeros((count, rank), theta.dtype) for count in users),
    }


# Both links -----------------------------------------------------------------------------------


@one_blas_thread
def fit_lore(features: jax.Array, buckets: Buckets, config: LoReConfig, seed: int) -> Fitted:
    """Bases of every rank and decay: {rank: {number of the decay: arrays}}.

    Args:
        features: [I, D].
        buckets: choices of the training users.
        config: link, ranks, decays, steps.
        seed: of the basis that training starts from.

    Returns:
        "basis" [D, K] and "mean" [K] where weights are signed; "basis" [1, D, K] and "log_weights"
        [1, K] where they lie on the simplex.

    Raises:
        InputError: training diverged, with the rank and the decay.
    """
    users = [len(part.weight) for part in buckets]
    dtype = features.dtype
    theta, square = one_for_all(features, buckets, jnp.asarray(1e-4, dtype))
    rate = jnp.asarray(config.learning_rate, dtype)
    fitted: Fitted = {}
    for rank in config.ranks:
        key = jax.random.key(seed)
        fitted[f"{rank}"] = {}
        for place, decay in enumerate(config.decays):
            if config.link == "signed":
                start = start_signed(key, theta, rank, users)
                one = fit_signed(start, features, buckets, decay * square, rate, config.steps)
            else:
                one = _fit_simplex(key, theta, features, buckets, decay, rank, config)
            if not all_finite(one):
                where = f"one of {config.steps} steps (rank {rank}, decay {decay:g})"
                remedy = f"lower learning_rate ({config.learning_rate:g})"
                raise training_diverged("lore", where, remedy)
            fitted[f"{rank}"][f"{place}"] = jax.tree.map(np.asarray, one)
    return fitted


def _fit_simplex(
    key: jax.Array, theta: jax.Array, features: jax.Array, buckets: Buckets,
    decay: float, rank: int, config: LoReConfig,
) -> Params:  # fmt: skip
    """As published: random basis and weights; the basis may be pulled towards one reward."""
    basis_key, *keys = jax.random.split(key, 1 + len(buckets))
    basis = jax.random.normal(basis_key, (len(theta), rank), theta.dtype)
    logits = tuple(
        jax.random.normal(one, (len(pairs.weight), rank), theta.dtype)
        for one, pairs in zip(keys, buckets, strict=True)
    )
    centre = {"basis": jnp.broadcast_to(theta[:, None], basis.shape)}
    kept = simplex.fit_population(
        {"basis": basis}, centre, logits, features, buckets,
        jnp.asarray(decay, theta.dtype), jnp.asarray(config.learning_rate, theta.dtype),
        rewards, config.steps, 1,
    )  # fmt: skip
    return {"basis": kept["params"]["basis"], "log_weights": kept["log_weights"]}


_map_weights = jax.jit(map_weights)


@register("lore_published", LORE_PUBLISHED)
@register("lore", LoReConfig())
class LoRe(WeightsMethod[LoReConfig]):
    """Low-rank rewards; validation chooses rank and decay.

    With signed weights it also chooses the spread of the prior, 0 (no adaptation) included. As
    published, on the simplex, the few-shot steps are as many as they are.
    """

    def fit(self, data: TrainingData, seed: int) -> Fitted:
        """Return bases of every rank and decay, see `fit_lore`."""
        return fit_lore(data.inputs(self.inputs), data.buckets, self.settings, seed)

    def candidates(self, fitted: Fitted) -> list[Candidate]:
        """Return every rank and decay, with every spread where weights are signed."""
        settings = self.settings
        grid = [{"rank": int(rank), "decay": d} for rank in fitted for d in settings.decays]
        if settings.link == "softmax":
            return [{**one, "steps": settings.few_shot_steps} for one in grid]
        return [{**one, "spread": spread} for one in grid for spread in (0.0, *SPREADS)]

    @one_blas_thread
    def predict(
        self, fitted: Fitted, candidates: Sequence[Candidate], features: jax.Array,
        support: Pairs, query: Pairs,
    ) -> np.ndarray:  # fmt: skip
        """Return probabilities [C, U, Q]."""
        one = self._signed if self.settings.link == "signed" else self._simplex
        return np.stack([one(fitted, c, features, support, query) for c in candidates])

    def _signed(
        self, fitted: Fitted, candidate: Candidate, features: jax.Array,
        support: Pairs, query: Pairs,
    ) -> np.ndarray:  # fmt: skip
        params = self._params(fitted, candidate)
        spread = jnp.asarray(candidate["spread"], features.dtype)
        return np.asarray(_signed_probability(params, spread, features, support, query))

    def _simplex(
        self, fitted: Fitted, candidate: Candidate, features: jax.Array,
        support: Pairs, query: Pairs,
    ) -> np.ndarray:  # fmt: skip
        params = self._params(fitted, candidate)
        items = rewards({"basis": params["basis"][0]}, features)
        rate = jnp.asarray(self.settings.few_shot_rate, features.dtype)
        start, steps = params["log_weights"][0], (candidate["steps"],)
        found = simplex.user_probabilities(items, start, support, query, rate, steps)
        return np.asarray(found[0])

    def _params(self, fitted: Fitted, candidate: Candidate) -> Params:
        place = self.settings.decays.index(candidate["decay"])
        return fitted[f"{candidate['rank']}"][f"{place}"]

    def save(self, fitted: Fitted, candidate: Candidate) -> tuple[Fitted, Candidate]:
        """Return the basis of the chosen rank and decay alone."""
        place = self.settings.decays.index(candidate["decay"])
        one = {f"{place}": self._params(fitted, candidate)}
        return {f"{candidate['rank']}": one}, candidate

    def base(self, fitted: Fitted, candidate: Candidate, features: jax.Array) -> jax.Array:
        """Return the basis rewards [..., K]."""
        basis = self._params(fitted, candidate)["basis"]
        return features @ (basis if self.settings.link == "signed" else basis[0])

    @one_blas_thread
    def infer(
        self, fitted: Fitted, candidate: Candidate, differences: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, None]:
        """Return users' weights: the MAP of signed ones, few-shot steps for those of a simplex."""
        params = self._params(fitted, candidate)
        if self.settings.link == "signed":
            spread = jnp.asarray(candidate["spread"], differences.dtype)
            return _map_weights(params["mean"], spread, differences, mask), None
        rate = jnp.asarray(self.settings.few_shot_rate, differences.dtype)
        start, steps = params["log_weights"][0], candidate["steps"]
        return simplex.user_weights(start, differences, mask, rate, steps), None
