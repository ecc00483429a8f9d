"""EM for a population of users: accelerated, with pseudo-users whose number held-out users choose.

Nothing here knows what a population is: a step of EM takes one, with the users' feedback and the
state of their posteriors, and returns the next population, the new state, and the objective of the
population that was given.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.mrm.config import BayesConfig

_LONGEST = 32.0
"""Longest step of the acceleration, in EM steps."""
_FOLDS, _JUDGING_STEPS = 5, 6


class WeightedRows(Protocol):
    """Feedback of some users, a NamedTuple of arrays; rows of weight 0 do not count."""

    @property
    def weight(self) -> jax.Array:
        """[U, P]."""

    def _replace(self, *, weight: jax.Array) -> Any: ...


Population = TypeVar("Population")
Sites = TypeVar("Sites")
Bucket = TypeVar("Bucket", bound=WeightedRows)
Tree = TypeVar("Tree")
Step = Callable[[Population, Sites], tuple[Population, Sites, jax.Array]]


def step_settings(config: BayesConfig) -> BayesConfig:
    """Return the settings that a step depends on, with defaults for the others.

    Fits with other limits then share its compilation.
    """
    return BayesConfig(sweeps=config.sweeps, user_chunk=config.user_chunk)


def accelerated(
    step: Step[Population, Sites],
    extrapolate: Callable[[Population, Population, Population], Population],
    start: Population,
    sites: Sites,
    config: BayesConfig,
) -> tuple[Population, int]:
    """Run EM until a cycle of three steps gains `config.least_gain` or less.

    Two steps give the direction and its curvature, and SQUAREM (Varadhan and Roland 2008) goes
    along both. Where that does not pay, the two steps count.

    Args:
        step: of EM.
        extrapolate: where three successive populations lead, see `squarem`.
        start: the first population.
        sites: of posteriors of which nothing is known yet.
        config: limits.

    Returns:
        The population, and the number of steps.
    """
    found, steps, last = start, 0, -math.inf
    while steps < config.em_steps:
        once, sites, _ = step(found, sites)
        twice, sites, plain = step(once, sites)
        ahead = extrapolate(found, once, twice)
        better, new_sites, value = step(ahead, sites)
        found, steps = twice, steps + 3
        if value >= plain:
            found, sites, plain = better, new_sites, value
        if abs(float(plain) - last) <= config.least_gain:
            break
        last = float(plain)
    return found, steps


def squarem(places: Sequence[Tree]) -> Tree:
    """Return where a SQUAREM step from three successive estimates, trees of arrays, leads."""
    start, once, twice = places
    forward = jax.tree.map(lambda a, b: b - a, start, once)
    bend = jax.tree.map(lambda a, b, c: c - 2 * b + a, start, once, twice)

    def norm(tree: Tree) -> jax.Array:
        return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))

    bent = norm(bend)
    length = jnp.where(bent > 0, norm(forward) / jnp.where(bent > 0, bent, 1), 1)
    length = jnp.clip(length, 1, _LONGEST)
    found: Tree = jax.tree.map(
        lambda at, r, v: at + 2 * length * r + length**2 * v, start, forward, bend
    )
    return found


def fit_pseudo_users(
    fit: Callable[[Population, tuple[Bucket, ...], float, BayesConfig], Population],
    judge: Callable[[Population, tuple[Bucket, ...], Sites], tuple[Population, Sites, jax.Array]],
    start: Population,
    buckets: tuple[Bucket, ...],
    sites: Sites,
    config: BayesConfig,
) -> tuple[Population, float]:
    """Fit a population, with the number of pseudo-users that held-out users prefer.

    Every fifth user is held out, and the numbers are tried from the greatest on, each from where
    the one before ended, until the held-out users' choices become less probable. All users are then
    fitted with the best.

    Args:
        fit: EM from a population, on some feedback, with a number of pseudo-users and limits.
        judge: a step without pseudo-users, whose objective is the log evidence.
        start: the first population.
        buckets: feedback of all users.
        sites: of posteriors of which nothing is known yet.
        config: the numbers, and limits.

    Returns:
        The population, and the number of pseudo-users.
    """
    numbers = sorted(config.pseudo_users, reverse=True)
    chosen, best = start, numbers[0]
    if len(numbers) > 1 and _active(buckets).sum() >= 2 * _FOLDS:
        seen, held_out = _hold_out(buckets)
        # Numbers differ by far more than the last steps of EM gain.
        steps = max(config.em_steps // 3, 1)
        rough = replace(config, em_steps=steps, least_gain=50 * config.least_gain)
        found, most = start, -math.inf
        for number in numbers:
            found = fit(found, seen, number, rough)
            after = sites
            for _ in range(_JUDGING_STEPS):
                _, after, value = judge(found, held_out, after)
            if not float(value) > most:
                break
            chosen, best, most = found, number, float(value)
    return fit(chosen, buckets, best, config), best


def _hold_out(
    buckets: tuple[Bucket, ...],
) -> tuple[tuple[Bucket, ...], tuple[Bucket, ...]]:
    """Return the users with every fifth left out, and with every fifth alone.

    Users with feedback are counted, through all buckets: a bucket may hold fewer than five. The
    others keep their place, with weight 0, so that all fits are of one shape.
    """
    active = _active(buckets)
    fifth = active & (np.cumsum(active) % _FOLDS == 0)
    ends = np.cumsum([len(bucket.weight) for bucket in buckets])
    held = np.split(fifth[:, None], ends[:-1])
    both = list(zip(buckets, held, strict=True))
    seen = tuple(b._replace(weight=jnp.where(h, 0, b.weight)) for b, h in both)
    return seen, tuple(b._replace(weight=jnp.where(h, b.weight, 0)) for b, h in both)


def _active(buckets: tuple[Bucket, ...]) -> np.ndarray:
    """Return [U] bool, bucket after bucket: which users have any feedback."""
    return np.concatenate([jnp.any(bucket.weight > 0, axis=1) for bucket in buckets])
