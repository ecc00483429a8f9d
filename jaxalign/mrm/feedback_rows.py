"""Rows of a table, ratings among them, as the one likelihood of `feedback` takes them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data.batching import Pairs
from jaxalign.data.preferences import RowDetails
from jaxalign.data.ratings import scale_levels
from jaxalign.mrm.bayes import Prior, rescaled
from jaxalign.mrm.chunks import in_chunks
from jaxalign.mrm.feedback import (
    Feedback,
    FeedbackPrior,
    Levels,
    user_log_likelihood,
    user_posterior,
)
from jaxalign.mrm.feedback_population import FeedbackPopulation
from jaxalign.mrm.logistic_normal import choice_mass
from jaxalign.mrm.registry import Candidate, Inferred

_MOST_STRENGTHS = 5
"""Steps that are distinguished; a choice that is further ahead counts as one of these."""
_USERS_AT_ONCE = 64
Scales = Sequence[tuple[float, float]]
Arrays = Mapping[str, jax.Array]
Found = TypeVar("Found")


def levels_of(scales: Scales, details: Sequence[RowDetails]) -> Levels:
    """Return the levels, from the scales of ratings, and the strengths and ties that there are.

    Args:
        scales: lowest and highest rating of each scale.
        details: of the users, in buckets.
    """
    steps = [int(np.where(part.scale < 0, part.level, 0).max(initial=1)) for part in details]
    strengths = min(max(steps, default=1), _MOST_STRENGTHS)
    ties = any(bool((_ties(part) & (part.weight > 0)).any()) for part in details)
    return Levels(ties, strengths, tuple(scale_levels(*scale) for scale in scales))


def _ties(details: RowDetails) -> np.ndarray:
    """Which rows [U, P] are ties; of one, both orders stand there with half its weight."""
    return (np.asarray(details.scale) < 0) & (np.asarray(details.level) < 0)


def vectors_of(features: jax.Array, pairs: Pairs, details: RowDetails) -> jax.Array:
    """Return features [U, P, D] of rated items, and differences, chosen minus rejected.

    Args:
        features: [I, D] of the items, measured from a typical one's.
        pairs: [U, P]; a rated item stands on both sides.
        details: [U, P].
    """
    other = jnp.where((jnp.asarray(details.scale) < 0)[..., None], features[pairs.rejected], 0)
    return features[pairs.chosen] - other


def feedback_of(
    levels: Levels, vectors: jax.Array, details: RowDetails, implicit: float = 1.0
) -> Feedback:
    """Return rows [U, P] as feedback.

    Args:
        levels: of choices and ratings.
        vectors: [U, P, D] as from `vectors_of`.
        details: [U, P].
        implicit: how often an implicit choice counts, 0 or more.
    """
    scale, level = np.asarray(details.scale), np.asarray(details.level)
    # Where training had no ties, one is half a choice for either side.
    steps = np.where(scale < 0, level, 0).clip(0)
    lower, upper = levels.choice(steps, _ties(details) & levels.ties)
    for number in range(len(levels.ratings)):
        mine = scale == number
        ends = levels.rating(number, np.where(mine, level, 0))
        lower, upper = np.where(mine, ends[0], lower), np.where(mine, ends[1], upper)
    weight = np.asarray(details.weight) * np.where(details.implicit, np.float32(implicit), 1)
    rows = (scale >= 0, lower, upper, weight.astype(np.float32))
    return Feedback(vectors, *map(jnp.asarray, rows))


def population_arrays(found: FeedbackPopulation) -> dict[str, np.ndarray]:
    """Return a population as named arrays; `prior_from` reads them."""
    arrays = {**found._asdict(), **found.weights._asdict()}
    return {name: np.asarray(value) for name, value in arrays.items() if name != "weights"}


def population_from(arrays: Arrays) -> FeedbackPopulation:
    """Return the population of named arrays."""
    rest = ("thresholds", "level_sd", "log_spread", "log_spread_sd")
    weights = Prior(jnp.asarray(arrays["mean"]), jnp.asarray(arrays["cov"]))
    return FeedbackPopulation(weights, *(jnp.asarray(arrays[name]) for name in rest))


def prior_from(arrays: Arrays, levels: Levels, candidate: Candidate) -> FeedbackPrior:
    """Return the population of named arrays at the strength and temperature of a candidate.

    The temperature is that of choices: the spreads make up for it, so that the probabilities of
    ratings stay.
    """
    found, heat = population_from(arrays), candidate["temperature"]
    return found._replace(
        weights=rescaled(found.weights, candidate["strength"], heat),
        level_sd=found.level_sd / heat,
        log_spread=found.log_spread + jnp.log(heat),
    ).prior(levels)


@jax.jit
def inferred(prior: FeedbackPrior, rows: Feedback) -> Inferred:
    """Return what is known of the weights of U users, some of them at a time."""

    def one_user(own: Feedback, rated: bool) -> Inferred:
        found = user_posterior(prior, own, rated)
        return Inferred(found.mean, found.cov)

    return _each_user(one_user, rows)


@jax.jit
def probabilities(prior: FeedbackPrior, rows: Feedback, query: jax.Array) -> jax.Array:
    """Return the probability [U, Q] that the chosen item of each query pair is chosen, if either.

    Args:
        prior: of the population.
        rows: feedback [U, P] of the users.
        query: [U, Q, D] differences.
    """

    def one_user(own: Feedback, pairs: jax.Array, rated: bool) -> jax.Array:
        found = user_posterior(prior, own, rated)
        variance = jnp.einsum("Qi,ij,Qj->Q", pairs, found.cov, pairs)
        # Edge 2 lies above ties; it is 0 where there are none.
        won, lost = (
            choice_mass(side * (pairs @ found.mean) - prior.edges[2], variance) for side in (1, -1)
        )
        return won / (won + lost)

    return _each_user(one_user, rows, query)


@jax.jit
def log_likelihood(prior: FeedbackPrior, rows: Feedback, held_out: Feedback) -> jax.Array:
    """Return the log probability [U, Q] of each held-out row, see `user_log_likelihood`.

    Args:
        prior: of the population.
        rows: feedback [U, P] that is known of the users.
        held_out: feedback [U, Q].
    """

    def one_user(own: Feedback, other: Feedback, rated: bool) -> jax.Array:
        return user_log_likelihood(prior, own, other)

    return _each_user(one_user, rows, held_out)


def _each_user(
    one_user: Callable[..., Found], rows: Feedback, *more: Feedback | jax.Array
) -> Found:
    """Call a function with the rows of each of U users, and whether the user may have ratings.

    Users without ratings go together, so that few of them are taken for users with some.
    """
    rater = jnp.any(rows.rating & (rows.weight > 0), axis=1)
    order = jnp.argsort(rater)
    chunks = in_chunks(
        jax.tree.map(lambda leaf: leaf[order], (rater, rows, *more)),
        min(_USERS_AT_ONCE, len(rater)),
    )

    def one_chunk(chunk: tuple) -> Found:
        raters, *inputs = chunk
        sides = [jax.vmap(functools.partial(one_user, rated=rated)) for rated in (True, False)]
        found: Found = jax.lax.cond(jnp.any(raters), *sides, *inputs)
        return found

    back = jnp.argsort(order)
    every: Found = jax.tree.map(
        lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[back], jax.lax.map(one_chunk, chunks)
    )
    return every
