"""Guarantees for each kind of users: worst cases over their weights, by linear programs."""

from dataclasses import dataclass

import numpy as np

from jaxalign.palm import Policies, coordinates, worst_gap
from jaxalign.palm.domain import Floats, extend
from jaxalign.palm.gaps import share_of, worst_ratio
from jaxalign.personalize.protect import floors
from jaxalign.personalize.route import Router


@dataclass(frozen=True)
class Bound:
    """Worst gaps of one kind of users.

    Attributes:
        additive: worst gap to the best policy for the user, in units of utility.
        additive_sd: the same in standard deviations of the rewards under the reference, weighted.
        share_lost: worst share of the improvement over the reference that is lost, of users who
            can improve by at least the portfolio's floor.
        weight: [K] weights at which the additive gap occurs.
    """

    additive: float
    additive_sd: float
    share_lost: float
    weight: Floats


@dataclass(frozen=True)
class Guarantee:
    """Guarantee for one kind of users, on the prompts that the portfolio was built on.

    Attributes:
        who: "simplex", "signed", "near_zero", "protected" or "beyond".
        words: which users these are, and what the guarantee is about.
        pool: bound relative to the best policy that was solved; None if there is no guarantee.
        optimum: bound against the unknown optimum; None where no upper bound of it is known.
        below_reference: largest amount by which such a user can be served below the reference
            policy, in units of utility.
    """

    who: str
    words: str
    pool: Bound | None
    optimum: Bound | None
    below_reference: float

    def as_dict(self) -> dict[str, object]:
        """Return the guarantee ready for JSON."""

        def plain(bound: Bound | None) -> dict[str, object] | None:
            if bound is None:
                return None
            return {**vars(bound), "weight": bound.weight.tolist()}

        shown = {"pool": plain(self.pool), "optimum": plain(self.optimum)}
        return {**vars(self), **shown}


def guarantees(router: Router) -> tuple[Guarantee, ...]:
    """Return the guarantee for each kind of users, for the weights that they are routed by.

    Users whose weights were inferred are served as if the mean were their true weights. For the
    true weights there is no guarantee, only a probability (`Router.confidence`).

    Args:
        router: a portfolio and its routing.

    Returns:
        One guarantee per kind: simplex, signed, near_zero, protected (if any reward is), beyond.

    Example:
        >>> import numpy as np
        >>> from jaxalign.palm import ClosedForm, PalmConfig
        >>> from jaxalign.personalize import Router, build_signed, guarantees, known
        >>> from jaxalign.rewards import RewardIds
        >>> rewards = np.random.default_rng(0).normal(size=(4, 3, 2))  # standardised
        >>> oracle = ClosedForm(rewards, None, beta=0.25, reward_range=None)
        >>> ids = RewardIds(("kind", "brief"), "0" * 64)
        >>> portfolio = build_signed(oracle, PalmConfig(size=3, stop_delta=0.1))
        >>> router = Router(portfolio, ids, beta=1.0, population=known([1.0, 0.0], ids))
        >>> found = {guarantee.who: guarantee for guarantee in guarantees(router)}
        >>> list(found), found["signed"].below_reference
        (['simplex', 'signed', 'near_zero', 'beyond'], 0.0)
    """
    size, radius = len(router.portfolio.spread), router.radius
    likes, signed = np.eye(size) * radius, np.concatenate([np.eye(size), -np.eye(size)]) * radius
    covered = router.portfolio.config.weights == "signed"
    # Over the simplex the optimum is bounded for one size of weights only.
    positive = np.concatenate([likes, np.zeros((1, size))]) if covered else likes
    limit = f"at most {radius:.3g}" if covered else f"exactly {radius:.3g}"
    members, near = router.values, router.near_zero * radius
    ours = members[[router.population_member]]
    small = extend("signed", signed * router.near_zero)
    found = [
        Guarantee(
            "simplex",
            f"likes only, sizes that sum to {limit}",
            *_both(router, positive, members, optimum=True),
            0.0,
        ),
        Guarantee(
            "signed",
            f"likes and dislikes, sizes that sum to at most {radius:.3g}",
            *_both(router, signed, members, optimum=covered),
            0.0,
        ),
        Guarantee(
            "near_zero",
            f"inferred weights whose sizes sum to less than {near:.3g}: the population's member",
            *_both(router, signed * router.near_zero, ours, optimum=covered),
            max(worst_gap(members[:1], ours, corners=small).value, 0.0),
        ),
        Guarantee(
            "beyond",
            f"sizes that sum to more than {radius:.3g}: the best member all the same",
            None,
            None,
            0.0,
        ),
    ]
    if router.protected:
        words = f"{', '.join(router.protected)} at the floor or above, whatever the user's own "
        words += "weight there: the gap is that of the weights routed on"
        bounds = _both(router, _protected(router), members, optimum=covered)
        found.insert(3, Guarantee("protected", words, *bounds, 0.0))
    return tuple(found)


def _protected(router: Router) -> Floats:
    """Corners [N, K] of the weights of size up to the radius that respect the floors."""
    least = floors(router.protected, router.reward_ids)
    held = np.isfinite(least)
    base = np.where(held, least, 0.0)
    room = router.radius - base.sum()
    steps = np.concatenate(
        [np.eye(len(base)), -np.eye(len(base))[~held], np.zeros_like(base)[None]]
    )
    return base[None] + room * steps


def _both(
    router: Router, weights: Floats, members: Floats, optimum: bool
) -> tuple[Bound, Bound | None]:
    """Bounds against the pool and the optimum over the hull of some weights [N, K]."""
    portfolio = router.portfolio
    policies: Policies = portfolio.pool
    pool = coordinates("signed", policies.rewards, policies.kl, router.beta)
    pool = np.concatenate([router.values[:1], pool])
    against = _bound(router, pool, members, weights)
    if portfolio.facets is None or not optimum:
        return against, None
    facets = portfolio.facets
    # radius * U(w / radius): the linear part stays, the constant grows.
    last = facets[:, -1:] * router.radius if facets.shape[1] == pool.shape[1] else 0 * facets[:, :1]
    linear = facets[:, : weights.shape[1]]
    return against, _bound(router, np.concatenate([linear, last], axis=1), members, weights)


def _bound(router: Router, pool: Floats, members: Floats, weights: Floats) -> Bound:
    corners, spread = extend("signed", weights), router.portfolio.spread
    at_pool, at_members, at_reference = (x @ corners.T for x in (pool, members, router.values[:1]))
    # Weights of zero count with the least spread that the size would have.
    unit = np.abs(weights) @ spread
    unit = np.where(unit > 0, unit, np.abs(weights).sum(axis=1).max() * spread.min())
    floor = router.portfolio.config.floor
    share = worst_ratio(at_pool, at_members, at_pool - at_reference, corners, floor * unit)
    additive = worst_gap(pool, members, corners=corners)
    in_sd = worst_ratio(at_pool, at_members, np.broadcast_to(unit, at_pool.shape), corners)
    return Bound(
        max(additive.value, 0.0),
        max(in_sd.value, 0.0),
        max(share_of(share).value, 0.0),
        additive.weight[:-1],
    )
