"""Two bandits whose Pareto fronts are known, and the policies that MOC's rules train on them.

One softmax policy, linear in the preference, is trained by a rule and judged by its exact expected
rewards at 11 preferences. On `segment` the front is the simplex itself, so being close to the
preference never costs anything; on `both` an action serves both objectives, and it does.
"""

from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.metrics.pareto import hypervolume, nondominated
from jaxalign.moc.combination import (
    CombineConfig,
    combine,
    similarity_direction,
    similarity_directions,
    similarity_error,
)
from jaxalign.moc.ppo import whiten

SEGMENT = ((1.0, 0.0), (0.0, 1.0), (0.2, 0.2))
BANDITS = {"segment": SEGMENT, "both": (*SEGMENT, (0.8, 0.8))}
"""Rewards [A, 2] of wood, fish and idle, and of an action that serves both."""
PREFERENCES = np.stack([np.linspace(1, 0, 11), np.linspace(0, 1, 11)], axis=1)
RATE = 0.3
_WEIGHTS = np.stack([np.linspace(0, 1, 500), np.linspace(1, 0, 500)], axis=1)  # never a tie


def solve(
    bandit: str,
    config: CombineConfig,
    *,
    rows: int = 64,
    groups: int = 1,
    others: bool = False,
    whitened: bool = False,
    steps: int = 3000,
    seeds: int = 8,
) -> np.ndarray:
    """Expected rewards [seeds, 11, 2] of policies trained from as many seeds.

    Args:
        bandit: name among `BANDITS`.
        config: rule of combination.
        rows: actions drawn for one preference.
        groups: preferences of a step.
        others: take an action's direction at the mean of the others (`similarity_directions`), not
            at the mean of the whole group.
        whitened: advantages are brought to unit variance over the step, the similarity's by their
            spread, as in training a model.
        steps: of ascent.
        seeds: trained at once.
    """
    rewards = jnp.asarray(BANDITS[bandit], jnp.float32)
    keys = jax.random.split(jax.random.key(0), seeds)
    one = partial(_train, rewards, config, rows, groups, others, whitened, steps)
    return np.asarray(jax.jit(jax.vmap(one))(keys), np.float64)


def _train(
    rewards: jax.Array,
    config: CombineConfig,
    rows: int,
    groups: int,
    others: bool,
    whitened: bool,
    steps: int,
    key: jax.Array,
) -> jax.Array:
    """Expected rewards [11, 2] of the policy that one seed ends with."""

    def step(theta: jax.Array, at: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        progress, preferences, noise = at
        log_policies = jax.vmap(partial(_log_policy, theta))(preferences)
        actions = jnp.argmax(log_policies[:, None] + noise, axis=2)
        group = jax.vmap(partial(_advantages, config=config, others=others))
        advantages, similarity, error = group(rewards[actions], preferences)
        if whitened:
            mask = jnp.ones(similarity.shape, bool)
            spread = jnp.sqrt(jnp.mean(advantages**2)) + 1e-8
            advantages = jax.vmap(lambda one: whiten(one, mask), 2, 2)(advantages)
            similarity = whiten(similarity, mask, divide=False) / spread

        def combined(own: jax.Array, close: jax.Array, told: jax.Array, error: jax.Array):
            weights = combine(
                -own.T, -close, config, preference=told, error=error, progress=progress
            )
            return own @ weights + (1 - jnp.sum(weights)) * close

        climbed = jax.vmap(combined)(advantages, similarity, preferences, error)

        def objective(theta: jax.Array) -> jax.Array:
            log_policies = jax.vmap(partial(_log_policy, theta))(preferences)
            return jnp.mean(climbed * jnp.take_along_axis(log_policies, actions, axis=1))

        return theta + RATE * jax.grad(objective)(theta), None

    progress = jnp.arange(steps, dtype=jnp.float32) / steps
    for_preferences, for_actions = jax.random.split(key)
    second = jax.random.uniform(for_preferences, (steps, groups))
    preferences = jnp.stack([1 - second, second], axis=2)
    noise = jax.random.gumbel(for_actions, (steps, groups, rows, len(rewards)))
    start = jnp.zeros((len(rewards), 3), jnp.float32)
    theta, _ = jax.lax.scan(step, start, (progress, preferences, noise))
    told = jnp.asarray(PREFERENCES, jnp.float32)
    return jax.vmap(lambda preference: jnp.exp(_log_policy(theta, preference)) @ rewards)(told)


def _log_policy(theta: jax.Array, preference: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(theta @ jnp.append(preference, 1.0))


def _advantages(
    drawn: jax.Array, preference: jax.Array, config: CombineConfig, others: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of the objectives [rows, 2] and the similarity [rows] in one group, and the error []."""
    mean = jnp.mean(drawn, axis=0)
    advantages = drawn - mean[None]
    error = similarity_error(mean, preference, config.form)
    if not others:
        return advantages, advantages @ similarity_direction(mean, preference, config.form), error
    slopes = similarity_directions(drawn, preference, config.form)
    similarity = jnp.sum(slopes * advantages, axis=1)
    return advantages, similarity - jnp.mean(similarity), error


def figures(bandit: str, points: np.ndarray) -> dict[str, Any]:
    """What is judged, as mean and standard deviation over seeds; and the mean points [11, 2].

    Args:
        bandit: name among `BANDITS`.
        points: [seeds, 11, 2] expected rewards at `PREFERENCES`.
    """
    actions = np.asarray(BANDITS[bandit])
    ends = [0, -1]
    best = (_WEIGHTS @ actions.T).max(axis=1)
    by_seed = {
        "mse": ((points - PREFERENCES) ** 2).mean(axis=(1, 2)),
        "hypervolume": np.array([hypervolume(each, np.zeros(2)) for each in points]),
        "corner_error": np.abs(points - PREFERENCES)[:, ends].mean(axis=(1, 2)),
        "regret": np.mean(best - (points @ _WEIGHTS.T).max(axis=1), axis=1),
        "nondominated": np.array([nondominated(each).mean() for each in points]),
        # The support function less the point's value, at the weight that is kindest to it.
        "slack": (best - points @ _WEIGHTS.T).min(axis=2).max(axis=1),
    }
    summary = {
        name: {
            "mean": float(values.mean()),
            "sd": float(values.std()),
            "least": float(values.min()),
            "most": float(values.max()),
        }
        for name, values in by_seed.items()
    }
    return {**summary, "points": points.mean(axis=0).round(4).tolist()}


def attainable(bandit: str) -> np.ndarray:
    """Many points [n, 2] of the front: the chain of the actions that some weights hold best."""
    actions = np.asarray(BANDITS[bandit])
    corners = actions[np.unique((_WEIGHTS @ actions.T).argmax(axis=1))]
    corners = corners[np.argsort(-corners[:, 0])]
    share = np.linspace(0, 1, 2001)[:, None]
    return np.concatenate([(1 - share) * one + share * other for one, other in pairwise(corners)])
