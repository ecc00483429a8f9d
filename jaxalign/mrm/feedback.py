"""One likelihood for all that users say of answers: choices, ties, strengths, thumbs and stars.

With f = <theta_u, phi> of an answer, a choice is an ordered logit in the difference of two f, a
rating one in s_u (f - b_u): people use a scale differently, and the level b_u and the spread s_u of
each come from a population, as theta_u does. The level is one more direction of the normal
posterior; the spread lies on a grid, weighted by its evidence.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.arrays import Sizes, check_array, check_mask, check_whole
from jaxalign.errors import InputError
from jaxalign.mrm import ep
from jaxalign.mrm.bayes import Prior, check_choices, check_prior, factor, moments
from jaxalign.mrm.ordered import tilt_by_band
from jaxalign.padding import kept
from jaxalign.train.blas import one_blas_thread

LOWEST, HIGHEST, _FIRST = 0, 1, 2
"""Numbers of the edges -inf and inf, and of the first threshold."""

_STEPS = np.linspace(-2.4, 2.4, 9)
_MASS = np.exp(-0.5 * _STEPS**2)
# The ends of a grid take variance; without this, EM would shrink that of the spreads step by step.
SPREAD_NODES = _STEPS / np.sqrt(_MASS @ _STEPS**2 / _MASS.sum())
"""The grid of log spreads, in standard deviations of the population's."""


class Feedback(NamedTuple):
    """What users said, one row a choice or a rating; U users, padded to P rows.

    Attributes:
        vectors: [U, P, E] features of a rated answer, measured from a typical answer's; of a
            choice, those of the chosen answer minus those of the rejected one.
        rating: [U, P] bool, whether the row is a rating.
        lower: [U, P] int32 edge below the stated level, see `Levels`.
        upper: [U, P] int32 edge above it.
        weight: [U, P] how often the row counts, 0 for padding.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm.feedback import Feedback, Levels
        >>> levels = Levels(ratings=(5,))
        >>> lower, upper = levels.rating(0, jnp.array([[4, 0]]))  # five stars, and one star
        >>> rated = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
        >>> Feedback(rated, jnp.ones((1, 2), bool), lower, upper, jnp.ones((1, 2))).upper.tolist()
        [[1, 4]]
    """

    vectors: jax.Array
    rating: jax.Array
    lower: jax.Array
    upper: jax.Array
    weight: jax.Array


@dataclass(frozen=True)
class Levels:
    """The levels of choices and of each scale of ratings.

    Edges are numbered: -inf, inf, those between the strengths of a choice, that below a tie, and
    those between the levels of each scale.

    Attributes:
        ties: whether a choice may be a tie.
        strengths: S, steps that the chosen answer may be ahead, 1 where they are not stated.
        ratings: number of levels of each scale, 2 or more; a thumb has 2.

    Example:
        >>> from jaxalign.mrm.feedback import Levels
        >>> Levels(ties=True, strengths=3, ratings=(2, 5)).thresholds
        8
    """

    ties: bool = False
    strengths: int = 1
    ratings: tuple[int, ...] = ()

    @property
    def thresholds(self) -> int:
        """T, free thresholds: edges of choices are symmetric, and start at 0 without ties."""
        return int(self.ties) + self.strengths - 1 + sum(levels - 1 for levels in self.ratings)

    def choice(self, strength: np.ndarray | None, tie: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the edges of choices: lower and upper, int32 of the shape of `tie`.

        Args:
            strength: steps that the chosen answer is ahead, from 1 to S; 0 where not stated.
            tie: bool.
        """
        tie = np.asarray(tie)
        steps = np.zeros(tie.shape, np.int32) if strength is None else np.asarray(strength)
        top = (steps == 0) | (steps >= self.strengths)
        lower = np.where(tie, _FIRST + self.strengths, _FIRST + np.maximum(steps, 1) - 1)
        upper = np.where(tie, _FIRST, np.where(top, HIGHEST, _FIRST + steps))
        return lower.astype(np.int32), upper.astype(np.int32)

    def rating(self, scale: int, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the edges of ratings: lower and upper, int32 of the shape of `level`.

        Args:
            scale: number of the scale.
            level: whole numbers from 0, the lowest.
        """
        level, count = np.asarray(level), self.ratings[scale]
        first = _FIRST + self.strengths + 1 + sum(n - 1 for n in self.ratings[:scale])
        lower = np.where(level == 0, LOWEST, first + level - 1)
        upper = np.where(level == count - 1, HIGHEST, first + level)
        return lower.astype(np.int32), upper.astype(np.int32)

    def edges(self, thresholds: jax.Array) -> jax.Array:
        """Return all edges [2 + S + 1 + ...] of the free thresholds [T]."""
        ends = jnp.array([-jnp.inf, jnp.inf], thresholds.dtype)
        return jnp.concatenate([ends, jnp.asarray(self.matrix, thresholds.dtype) @ thresholds])

    @property
    def num_edges(self) -> int:
        """Number of edges, the infinite ones among them."""
        return _FIRST + self.strengths + 1 + sum(levels - 1 for levels in self.ratings)

    @property
    def matrix(self) -> np.ndarray:
        """Edges but the infinite ones [K] as linear in the thresholds [T]: [K, T]."""
        free, ties, steps = self.thresholds, int(self.ties), self.strengths
        found = np.zeros((self.num_edges - _FIRST, free))
        first = 1 - ties
        found[first:steps, : steps - first] = np.eye(steps - first)
        if ties:
            found[steps, 0] = -1
        rest = free - (steps - first)
        found[steps + 1 :, free - rest :] = np.eye(rest)
        return found

    @property
    def gaps(self) -> np.ndarray:
        """What must stay positive of the thresholds, [G, T]: differences of neighbours."""
        choices = int(self.ties) + self.strengths - 1
        lengths = [n - 1 for n in self.ratings]
        blocks = [np.eye(choices) - np.eye(choices, k=-1)]
        blocks += [(np.eye(n) - np.eye(n, k=-1))[1:] for n in lengths]
        found = np.zeros((sum(map(len, blocks)), self.thresholds))
        row = column = 0
        for block in blocks:
            found[row : row + len(block), column : column + block.shape[1]] = block
            row, column = row + len(block), column + block.shape[1]
        return found


def check_feedback(
    feedback: Feedback, edges: int, sizes: Sizes, name: str = "feedback"
) -> Feedback:
    """Return feedback as arrays, with 0 in the vectors of rows that do not count.

    Args:
        feedback: of U users.
        edges: number of edges that there are, see `Levels`.
        sizes: of the call's dimensions so far, see `jaxalign.arrays`.
        name: of the argument.

    Raises:
        InputError: shapes that disagree, a negative weight, or NaN, infinity or an edge that there
            is not where the weight is above 0.
    """
    names = (f"{name}.vectors", f"{name}.weight")
    vectors, weight = check_choices(feedback.vectors, feedback.weight, "U P", sizes, names)
    rating = check_mask(f"{name}.rating", feedback.rating, "U P", sizes, empty="U P") > 0
    ends = []
    for side, value in (("lower", feedback.lower), ("upper", feedback.upper)):
        end = check_whole(f"{name}.{side}", value, "U P", sizes, empty="U P")
        wrong = (weight > 0) & ((end < 0) | (end >= edges))
        if not isinstance(wrong, jax.core.Tracer) and bool(wrong.any()):
            user, row = np.argwhere(wrong)[0]
            raise InputError(
                f"{name}.{side}[{user}, {row}] is {end[user, row]}; expected the number of an edge "
                f"below {edges}, as of `Levels`: correct it."
            )
        ends.append(end)
    return Feedback(vectors, rating, ends[0], ends[1], weight)


class FeedbackPrior(NamedTuple):
    """What is known of a user before any feedback, and what all users share.

    Attributes:
        weights: theta ~ N(mean [E], cov [E, E]).
        edges: as of `Levels.edges`.
        level_sd: standard deviation of the levels b, whose mean is 0.
        log_spread: mean of the logarithm of the spreads s.
        log_spread_sd: its standard deviation.
    """

    weights: Prior
    edges: jax.Array
    level_sd: jax.Array
    log_spread: jax.Array
    log_spread_sd: jax.Array


def check_feedback_prior(prior: FeedbackPrior, sizes: Sizes | None = None) -> FeedbackPrior:
    """Return a prior as arrays of at least float32.

    Args:
        prior: of the population.
        sizes: of the call's dimensions so far, see `jaxalign.arrays`.

    Raises:
        InputError: another shape, NaN, a number that is infinite but for the two first edges, or a
            negative standard deviation.
    """
    edges = check_array("prior.edges", prior.edges, "edges", finite=False)
    check_array("prior.edges beyond -infinity and infinity", edges[_FIRST:], "edges", empty="edges")
    for name in ("level_sd", "log_spread_sd"):
        check_mask(f"prior.{name}", getattr(prior, name), "")
    return FeedbackPrior(
        check_prior(prior.weights, sizes),
        edges,
        *(check_array(f"prior.{name}", getattr(prior, name), "") for name in prior._fields[2:]),
    )


class FeedbackPosterior(NamedTuple):
    """What is known of users after their feedback.

    Attributes:
        mean: [U, E] of their weights.
        cov: [U, E, E].
        level: [U] mean of their levels b.
        spread: [U, G] probabilities of the spreads of the grid.
    """

    mean: jax.Array
    cov: jax.Array
    level: jax.Array
    spread: jax.Array


def spread_grid(prior: FeedbackPrior, rated: bool = True) -> tuple[jax.Array, jax.Array]:
    """Return the spreads [G] of the grid and the logarithms of their prior probabilities [G].

    Args:
        prior: of the population.
        rated: whether there are ratings; of choices alone the posterior is the same at any spread,
            so that one will do.
    """
    if not rated:
        return jnp.ones(1, prior.level_sd.dtype), jnp.zeros(1, prior.level_sd.dtype)
    nodes = jnp.asarray(SPREAD_NODES, prior.level_sd.dtype)
    log_mass = jnp.log(jnp.asarray(_MASS / _MASS.sum(), nodes.dtype))
    return jnp.exp(prior.log_spread + prior.log_spread_sd * nodes), log_mass


def augmented(prior: FeedbackPrior) -> tuple[jax.Array, jax.Array]:
    """Return mean [E + 1] and factor [E + 1, E + 1] of the weights with the level behind them."""
    mean, root = prior.weights.mean, factor(prior.weights.cov)
    size = len(mean)
    both = jnp.zeros((size + 1, size + 1), root.dtype).at[:size, :size].set(root)
    both = both.at[size, size].set(prior.level_sd.astype(root.dtype))
    return jnp.append(mean, jnp.zeros((), mean.dtype)), both


def rows_at(
    mean: jax.Array, root: jax.Array, feedback: Feedback, spread: jax.Array
) -> ep.ChoiceRows:
    """Return one user's rows [P] at a spread, their margins linear in the weights and the level."""
    return ep.rows_of(mean, root, _vectors_at(feedback, spread), feedback.weight)


def _vectors_at(feedback: Feedback, spread: jax.Array) -> jax.Array:
    """Vectors [P, E + 1] of which margins at a spread are products with the weights and level."""
    rating = feedback.rating
    by = jnp.where(rating, spread, 1)[:, None]
    level = jnp.where(rating, -1, 0)[:, None].astype(by.dtype)
    clean = kept(feedback.weight, feedback.vectors.astype(by.dtype))
    return by * jnp.concatenate([clean, level], axis=1)


def tilt_of(edges: jax.Array, feedback: Feedback) -> ep.Tilt:
    """Return the likelihood terms of one user's rows."""
    lower, upper = edges[feedback.lower], edges[feedback.upper]
    return lambda mean, variance: tilt_by_band(mean, variance, lower, upper)


def mixture(
    log_weight: jax.Array, means: jax.Array, covs: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return probabilities [G], mean [D] and covariance [D, D] of a mixture of G normals."""
    share = jax.nn.softmax(log_weight)
    mean = share @ means
    away = means - mean[None, :]
    cov = jnp.einsum("G,Gij->ij", share, covs)
    return share, mean, cov + jnp.einsum("G,Gi,Gj->ij", share, away, away)


@one_blas_thread
def feedback_posterior(prior: FeedbackPrior, feedback: Feedback) -> FeedbackPosterior:
    """Return what is known of U users from all their feedback, by expectation propagation.

    Args:
        prior: of the population, as from `fit_feedback`.
        feedback: of the users.

    Returns:
        Posterior moments, each user's level and spread integrated out.

    Raises:
        InputError: shapes that disagree, a negative weight, or NaN, infinity or an edge that the
            prior has not where the weight is above 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm import Feedback, FeedbackPrior, Levels, Prior, feedback_posterior
        >>> levels, one = Levels(ratings=(2,)), jnp.ones(())
        >>> edges = levels.edges(jnp.zeros(1))
        >>> prior = FeedbackPrior(Prior(jnp.zeros(2), jnp.eye(2)), edges, one, 0 * one, 0.3 * one)
        >>> up = levels.rating(0, jnp.ones((1, 1), int))  # a thumb up for an answer
        >>> liked = jnp.array([[[1.0, 0.0]]])
        >>> rows = Feedback(liked, jnp.ones((1, 1), bool), *up, jnp.ones((1, 1)))
        >>> found = feedback_posterior(prior, rows)
        >>> bool(found.mean[0, 0] > 0), bool(found.level[0] < 0)
        (True, True)
    """
    sizes = Sizes()
    prior = check_feedback_prior(prior, sizes)
    rows = check_feedback(feedback, len(prior.edges), sizes)
    found: FeedbackPosterior = jax.block_until_ready(_posteriors(prior, rows))
    return found


@jax.jit
def _posteriors(prior: FeedbackPrior, feedback: Feedback) -> FeedbackPosterior:
    return jax.vmap(functools.partial(user_posterior, prior))(feedback)


def user_posterior(prior: FeedbackPrior, rows: Feedback, rated: bool = True) -> FeedbackPosterior:
    """Return what is known of one user, whose rows and moments have no leading axis.

    Args:
        prior: of the population.
        rows: of the user.
        rated: as of `spread_grid`.
    """
    size = len(prior.weights.mean)
    log_weight, means, covs = _posterior_at_spreads(prior, rows, rated)
    share, center, cov = mixture(log_weight, means, covs)
    return FeedbackPosterior(center[:size], cov[:size, :size], center[size], share)


def _posterior_at_spreads(
    prior: FeedbackPrior, rows: Feedback, rated: bool = True
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log probability, up to a constant, mean and covariance at each spread, the level included."""
    mean, root = augmented(prior)
    spreads, log_mass = spread_grid(prior, rated)
    tilt = tilt_of(prior.edges, rows)

    def at(spread: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        scaled = rows_at(mean, root, rows, spread)
        sites = ep.converge(scaled, ep.no_sites(scaled), tilt)
        _, evidence, _ = ep.sweep(scaled, ep.gram_of(scaled), sites, tilt)
        after = ep.after_others(sites, evidence)
        return (evidence, *moments(mean, root, scaled, after))

    evidence, means, covs = jax.vmap(at)(spreads)
    return log_mass + evidence, means, covs


def user_log_likelihood(prior: FeedbackPrior, rows: Feedback, held_out: Feedback) -> jax.Array:
    """Return the log probability [Q] of each of one user's held-out rows, given the others.

    The weights, the level and the spread are integrated out, for each row by itself.

    Args:
        prior: of the population.
        rows: [P] that are known.
        held_out: [Q]; their weights say which of them count, and the others have 0.
    """
    log_weight, means, covs = _posterior_at_spreads(prior, rows)
    lower, upper = prior.edges[held_out.lower], prior.edges[held_out.upper]

    def at(spread: jax.Array, center: jax.Array, cov: jax.Array) -> jax.Array:
        vectors = _vectors_at(held_out, spread)
        variance = jnp.einsum("Qi,ij,Qj->Q", vectors, cov, vectors)
        return tilt_by_band(vectors @ center, variance, lower, upper).log_mass

    spreads, _ = spread_grid(prior)
    found = jax.vmap(at)(spreads, means, covs)
    log_share = jax.nn.log_softmax(log_weight)[:, None]
    return kept(held_out.weight, jax.nn.logsumexp(log_share + found, axis=0))
