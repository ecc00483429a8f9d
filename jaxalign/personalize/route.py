"""Routing of users to members of a portfolio, by the posterior mean of their weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxalign.errors import InputError
from jaxalign.palm import Portfolio, best_member, coordinates
from jaxalign.personalize.protect import constrain, floors
from jaxalign.personalize.utility import LOGITS, Array, Utility, expect_utility
from jaxalign.rewards.reward_scale import RewardIds

_HIGHEST = jax.lax.Precision.HIGHEST
# Users whose draws are compared at once.
_USERS = 64


class Routes(NamedTuple):
    """The member that serves each user.

    Attributes:
        member: [...] int, number of the member; 0 is the reference policy.
        value: [...] <w, R> - beta KL of that member at the mean, in units of utility.
        price: [...] beta / |w|_1, the price of a nat of KL for the user, in units of reward;
            infinite for weights of zero.
        near_zero: [...] bool, whether inferred weights are too small to have a direction; such
            users are served by the population's member.
        beyond: [...] bool, whether the weights are larger than the portfolio was built for.
    """

    member: NDArray[np.int32]
    value: Array
    price: Array
    near_zero: NDArray[np.bool_]
    beyond: NDArray[np.bool_]


class Confidence(NamedTuple):
    """Probability [...] that the chosen member is the best one, and its Monte-Carlo error."""

    probability: Array
    error: Array


@dataclass(frozen=True)
class Router:
    """A portfolio, and what is needed to route users to its members.

    A user's value of a policy is f = <w, R> - beta KL with unnormalised weights; dividing by their
    size would only change beta to beta / |w|_1. A portfolio that was built at a price b over the
    unit ball therefore serves weights up to |w|_1 = beta / b.

    Attributes:
        portfolio: portfolio over the simplex or the signed ball, whose rewards are standardised;
            member 0 is the reference.
        reward_ids: names and scale of its rewards; they must be those of the portfolio, where the
            portfolio states its scale.
        beta: price of one nat of KL, in units of utility.
        population: utility of a user without choices.
        protected: names of rewards whose weights have a floor, and the floors, 0 or more.
        near_zero: share of the radius, from 0 to below 1, under which inferred weights count as
            having no direction.
        units: units of weights and beta.

    Example:
        >>> import numpy as np
        >>> from jaxalign.palm import ClosedForm, PalmConfig
        >>> from jaxalign.personalize import Router, build_signed, known
        >>> from jaxalign.rewards import RewardIds
        >>> rewards = np.random.default_rng(0).normal(size=(4, 3, 2))  # standardised
        >>> oracle = ClosedForm(rewards, None, beta=0.25, reward_range=None)
        >>> ids = RewardIds(("kind", "brief"), "0" * 64)
        >>> portfolio = build_signed(oracle, PalmConfig(size=3, stop_delta=0.1))
        >>> router = Router(portfolio, ids, beta=1.0, population=known([1.0, 0.0], ids))
        >>> router.radius  # serves weights whose sizes sum to at most 4
        4.0
        >>> routes = router.route(known([[2.0, -1.0], [0.0, 0.0]], ids))
        >>> routes.price.tolist(), routes.beyond.tolist()
        ([0.333..., inf], [False, False])
    """

    portfolio: Portfolio
    reward_ids: RewardIds
    beta: float
    population: Utility
    protected: Mapping[str, float] = field(default_factory=dict)
    near_zero: float = 0.01
    units: str = LOGITS

    def __post_init__(self) -> None:
        size = len(self.portfolio.spread)
        if len(self.reward_ids.names) != size:
            raise InputError(
                f"reward_ids: found {len(self.reward_ids.names)} names, expected {size}, one per "
                "reward of the portfolio."
            )
        scale = self.portfolio.scale
        if scale is not None:
            self.reward_ids.expect(scale.ids, "portfolio")
            width = (scale.high - scale.low) / scale.std
            if not np.allclose(width, 1, rtol=1e-6):
                raise InputError(
                    f"portfolio: found rewards whose level is {width[0]:.3g} standard deviations "
                    "wide, expected standardised rewards as utilities are about; route with "
                    "`jaxalign palm route`, or build it on standardised rewards."
                )
        for name, value in (("beta", self.beta), ("portfolio.beta", self.portfolio.beta)):
            if not (value > 0 and np.isfinite(value)):
                raise InputError(
                    f"{name}: found {value}, expected above 0; without a price on KL the size of "
                    "weights says nothing."
                )
        if not 0 <= self.near_zero < 1:
            raise InputError(f"near_zero: found {self.near_zero}, expected 0 or more, below 1.")
        population = expect_utility(self.population, self.reward_ids, self.units)
        if population.mean.ndim != 1:
            raise InputError(
                f"population: found {population.mean.shape}, expected one vector of weights."
            )
        if self._least[np.isfinite(self._least)].sum() >= self.radius:
            raise InputError(
                f"protected: found floors that reach the radius {self.radius:.3g} of the "
                "portfolio, expected less; build it at a lower price of KL."
            )

    @property
    def radius(self) -> float:
        """|w|_1 at which a user's price of KL is the one that the portfolio was built at."""
        return self.beta / self.portfolio.beta

    @cached_property
    def values(self) -> NDArray[np.float64]:
        """Members [M, K + 1] as (R, -beta KL): the value of w is their product with (w, 1)."""
        members = self.portfolio.members
        return coordinates("signed", members.rewards, members.kl, self.beta)

    @cached_property
    def _least(self) -> NDArray[np.float64]:
        return floors(self.protected, self.reward_ids)

    @cached_property
    def population_member(self) -> int:
        """The member that serves a user of whom nothing is known."""
        return int(self._best(self.weights(self.population)[None])[0])

    def weights(self, utility: Utility) -> Array:
        """Return the weights [..., K] that users are routed by: means, raised to the floors.

        Raises:
            InputError: a `Target`, other rewards, another scale, or other units.
        """
        utility = expect_utility(utility, self.reward_ids, self.units)
        return constrain(utility.mean, self._least)

    def _best(self, weights: Array) -> NDArray[np.int32]:
        users = jnp.asarray(np.concatenate([weights, np.ones_like(weights[:, :1])], axis=1))
        return np.asarray(best_member(users, jnp.asarray(self.values, users.dtype))[1])

    def route(self, utility: Utility) -> Routes:
        """Return the member that is best for the mean of each user's weights; no model is called.

        f is linear in w, so the mean maximises expected utility. f keeps the size of the weights,
        so that a vector near zero is not blown up into an extreme preference: if it was inferred
        from choices, the user gets the population's member. Known weights get the best member
        whatever their size, and are therefore never served below the reference.

        Args:
            utility: utility of one user, or of users on leading axes.

        Returns:
            Routes.

        Raises:
            InputError: as `weights`.
        """
        weights = self.weights(utility)
        flat = weights.reshape(-1, weights.shape[-1])
        size = np.abs(flat).sum(axis=1)
        inferred = utility.cov.reshape(len(flat), -1).any(axis=1)
        near = (size < self.near_zero * self.radius) & inferred
        member = np.where(near, self.population_member, self._best(flat)).astype(np.int32)
        chosen = self.values[member]
        value = np.einsum("UK,UK->U", flat, chosen[:, :-1]) + chosen[:, -1]
        with np.errstate(divide="ignore", over="ignore"):  # nothing wanted: an infinite price
            price = self.beta / size
        beyond = size > self.radius * (1 + 1e-6)
        shape = weights.shape[:-1]
        return Routes(
            member.reshape(shape),
            value.reshape(shape),
            price.reshape(shape),
            near.reshape(shape),
            beyond.reshape(shape),
        )

    def confidence(
        self, utility: Utility, member: NDArray[np.int32], key: jax.Array, draws: int = 1024
    ) -> Confidence:
        """Return how probable it is that the member chosen for a user is the best one.

        Args:
            utility: utility of one user, or of users on leading axes.
            member: [...] as `route` returned it.
            key: random key of the draws, whose standard normal part all users share.
            draws: draws of the weights per user, raised to the floors as the mean is.

        Returns:
            Confidence: probability [...], and its Monte-Carlo standard error [...].

        Raises:
            InputError: as `weights`, a member that does not exist, or fewer than 2 draws.
        """
        self.weights(utility)
        member = np.asarray(member)
        if member.shape != utility.mean.shape[:-1]:
            raise InputError(
                f"member: found shape {member.shape}, expected {utility.mean.shape[:-1]}."
            )
        if draws < 2 or (member < 0).any() or (member >= len(self.values)).any():
            raise InputError(
                f"member, draws: found {member.min()} to {member.max()} and {draws}, expected "
                f"members 0 to {len(self.values) - 1} and at least 2 draws."
            )
        mean = jnp.asarray(utility.mean.reshape(-1, utility.mean.shape[-1]))
        roots = _roots(utility.cov.reshape(len(mean), *utility.cov.shape[-2:]))
        share = share_best(
            jax.random.normal(key, (draws, mean.shape[1]), mean.dtype),
            mean,
            jnp.asarray(roots, mean.dtype),
            jnp.asarray(self._least, mean.dtype),
            jnp.asarray(self.values, mean.dtype),
            jnp.asarray(member.reshape(-1), jnp.int32),
        )
        probability = np.asarray(share).reshape(member.shape)
        # By Laplace's rule, so that a share of 0 or 1 keeps an error.
        smooth = (probability * draws + 1) / (draws + 2)
        return Confidence(probability, np.sqrt(smooth * (1 - smooth) / draws))


def _roots(cov: Array) -> Array:
    """L [U, K, K] with L L^T = cov, of any rank."""
    values, vectors = np.linalg.eigh(cov)
    return vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]


@jax.jit
def share_best(
    noise: jax.Array,
    mean: jax.Array,
    roots: jax.Array,
    least: jax.Array,
    values: jax.Array,
    member: jax.Array,
) -> jax.Array:
    """Return the share of draws of each user's weights for which a given member is the best.

    Args:
        noise: [S, K] standard normal, the same for all users.
        mean: [U, K].
        roots: [U, K, K] L with L L^T the covariance.
        least: [K] floors, -inf for none.
        values: [M, K + 1] members as (R, -beta KL).
        member: [U] int32.

    Returns:
        [U] in [0, 1]; draws are held for a chunk of users at a time.
    """

    def one_user(mean: jax.Array, root: jax.Array, member: jax.Array) -> jax.Array:
        spread = jnp.matmul(noise, root.T, precision=_HIGHEST)
        weights = jnp.maximum(mean[None] + spread, least[None])
        scores = jnp.matmul(weights, values[:, :-1].T, precision=_HIGHEST)
        best = jnp.argmax(scores + values[None, :, -1], axis=1)
        return jnp.mean(best == member, dtype=mean.dtype)

    users, wide = len(mean), min(_USERS, len(mean))

    def chunks(array: jax.Array) -> jax.Array:
        padded = jnp.pad(array, [(0, -users % wide)] + [(0, 0)] * (array.ndim - 1))
        return padded.reshape(-1, wide, *array.shape[1:])

    parts = chunks(mean), chunks(roots), chunks(member)
    return jax.lax.map(lambda part: jax.vmap(one_user)(*part), parts).reshape(-1)[:users]
