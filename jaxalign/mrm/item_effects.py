"""Effects of known items, shared by all users: b_i ~ N(0, tau^2) beside what features explain.

The margin of a choice is <theta, x_c - x_r> + b_c - b_r. The effect of an item that training has
not seen is zero. Both parts are found together by penalised logistic regression. Every product with
the Hessian goes through the items' scores, so that a step costs the table of features and the
counted pairs, and no matrix of all items or of all choices times features is built.
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data.batching import Pairs

_HALVINGS = (1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.0)
_NEWTON_STEPS = 20
_MOST_PRODUCTS = 500
"""Products with the Hessian per Newton step, at most."""


class CountedPairs(NamedTuple):
    """Choices of all users, counted by pair of items.

    Attributes:
        first: [N] int32, number of an item.
        second: [N] int32.
        wins: [N] how often the first was chosen.
        losses: [N] how often the second was.
    """

    first: jax.Array
    second: jax.Array
    wins: jax.Array
    losses: jax.Array


class OneModel(NamedTuple):
    """One model for all users: weights [D] of the features, effects [I] of the items."""

    theta: jax.Array
    effects: jax.Array


def count_pairs(buckets: Iterable[Pairs], items: int) -> CountedPairs:
    """Return the choices of all users, counted by pair of items.

    The likelihood of a model for all users depends on these counts alone.

    Args:
        buckets: choices [U, P] of users.
        items: number of items I.

    Example:
        >>> import numpy as np
        >>> from jaxalign.data.batching import Pairs
        >>> from jaxalign.mrm.item_effects import count_pairs
        >>> chosen, rejected = np.array([[0, 1, 0]]), np.array([[1, 0, 1]])
        >>> found = count_pairs([Pairs(chosen, rejected, np.ones((1, 3)), 0 * chosen)], items=2)
        >>> found.first.tolist(), found.wins.tolist(), found.losses.tolist()
        ([0], [2.0], [1.0])
    """
    parts = [[np.asarray(a).ravel() for a in (p.chosen, p.rejected, p.weight)] for p in buckets]
    chosen, rejected, weight = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    real = (weight > 0) & (chosen != rejected)
    chosen, rejected, weight = chosen[real], rejected[real], weight[real].astype(np.float64)
    low, high = np.minimum(chosen, rejected), np.maximum(chosen, rejected)
    names, place = np.unique(low.astype(np.int64) * items + high, return_inverse=True)
    wins, losses = (
        np.bincount(place, np.where(side, weight, 0), len(names)).astype(np.float32)
        for side in (chosen == low, chosen == high)
    )
    first, second = (numbers.astype(np.int32) for numbers in np.divmod(names, items))
    # A power of two, so that data with a few pairs less are of the same shape, compiled once.
    padding = (0, _power_of_two(len(names)) - len(names))
    return CountedPairs(*(jnp.asarray(np.pad(a, padding)) for a in (first, second, wins, losses)))


def _power_of_two(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()


def fit_one_model(
    features: jax.Array, pairs: CountedPairs, l2: float | jax.Array, tau: float | jax.Array
) -> OneModel:
    """Return one Bradley-Terry model for all users, with an effect of every item.

    Minimises the sum over choices of softplus(-margin), plus n l2 s / 2 |theta|^2 +
    |b|^2 / (2 tau^2), with n the number of choices and s the mean squared norm of the
    differences, so that the ridge is that of `bradley_terry`. Newton steps, each solved by
    conjugate gradients.

    Args:
        features: [I, D].
        pairs: choices, counted.
        l2: ridge.
        tau: standard deviation of the effects, in logits; 0 for none.

    Returns:
        OneModel; an item without choices has the effect 0.

    Source: Bradley and Terry 1952; a random effect of each item, as in item-response models.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm.item_effects import CountedPairs, fit_one_model
        >>> pairs = CountedPairs(*(jnp.array([n]) for n in (0, 1, 9.0, 1.0)))
        >>> model = fit_one_model(jnp.zeros((3, 2)), pairs, l2=0.1, tau=1.0)
        >>> [f"{effect:.2f}" for effect in model.effects]
        ['0.77', '-0.77', '0.00']
    """
    dtype = jnp.promote_types(features.dtype, jnp.float32)
    count = (pairs.wins + pairs.losses).astype(dtype)
    norms = _pair_norms(features.astype(dtype), pairs)
    ridge = l2 * jnp.sum(count * norms)
    table = features.astype(dtype) / jnp.sqrt(jnp.maximum(ridge, jnp.finfo(dtype).tiny))
    found = _minimise(table, jnp.asarray(tau, dtype), pairs)
    scale = jnp.sqrt(jnp.maximum(ridge, jnp.finfo(dtype).tiny))
    return OneModel(found.theta / scale, tau * found.effects)


def _pair_norms(features: jax.Array, pairs: CountedPairs) -> jax.Array:
    """Squared norms [N] of the pairs' differences, column by column."""

    def add(total: jax.Array, column: jax.Array) -> tuple[jax.Array, None]:
        return total + (column[pairs.first] - column[pairs.second]) ** 2, None

    return jax.lax.scan(add, jnp.zeros(len(pairs.first), features.dtype), features.T)[0]


def _margins(at: OneModel, table: jax.Array, tau: jax.Array, pairs: CountedPairs) -> jax.Array:
    scores = table @ at.theta + tau * at.effects
    return scores[pairs.first] - scores[pairs.second]


def _pull_back(
    values: jax.Array, table: jax.Array, tau: jax.Array, pairs: CountedPairs
) -> OneModel:
    """Transpose of `_margins`: what a value [N] of each pair says of both parts."""
    scores = jnp.zeros(len(table), table.dtype).at[pairs.first].add(values)
    scores = scores.at[pairs.second].add(-values)
    return OneModel(table.T @ scores, tau * scores)


def _near_diagonal(
    curvature: jax.Array, table: jax.Array, tau: jax.Array, pairs: CountedPairs
) -> OneModel:
    """About the diagonal of the Hessian, as the preconditioner of conjugate gradients.

    The features' part takes the two items of a pair as independent: the variance of each column
    over the items, by how much they count. The sum over pairs would read every pair once a column.
    """
    degree = jnp.zeros(len(table), table.dtype).at[pairs.first].add(curvature)
    degree = degree.at[pairs.second].add(curvature)
    total = jnp.maximum(jnp.sum(degree), jnp.finfo(table.dtype).tiny)
    columns = degree @ (table - (degree @ table / total)[None]) ** 2
    return OneModel(1 + columns, 1 + tau**2 * degree)


def _minimise(table: jax.Array, tau: jax.Array, pairs: CountedPairs) -> OneModel:
    """Damped Newton in units where both penalties are |.|^2 / 2."""
    dtype = table.dtype
    wins, losses = pairs.wins.astype(dtype), pairs.losses.astype(dtype)
    sizes = jnp.asarray(_HALVINGS, dtype)
    enough = jnp.finfo(dtype).eps ** 0.75

    def loss(margins: jax.Array, at: OneModel) -> jax.Array:
        choices = wins * jax.nn.softplus(-margins) + losses * jax.nn.softplus(margins)
        return jnp.sum(choices) + 0.5 * (at.theta @ at.theta + at.effects @ at.effects)

    def step(carry: tuple) -> tuple:
        at, steps, _ = carry
        margins = _margins(at, table, tau, pairs)
        push = losses * jax.nn.sigmoid(margins) - wins * jax.nn.sigmoid(-margins)
        gradient = jax.tree.map(jnp.add, at, _pull_back(push, table, tau, pairs))
        curvature = (wins + losses) * jax.nn.sigmoid(margins) * jax.nn.sigmoid(-margins)
        diagonal = _near_diagonal(curvature, table, tau, pairs)

        def hessian(vector: OneModel) -> OneModel:
            bent = curvature * _margins(vector, table, tau, pairs)
            return jax.tree.map(jnp.add, vector, _pull_back(bent, table, tau, pairs))

        direction, _ = jax.scipy.sparse.linalg.cg(
            hessian, gradient, tol=enough, maxiter=_MOST_PRODUCTS,
            M=lambda vector: jax.tree.map(jnp.divide, vector, diagonal),
        )  # fmt: skip
        along = _margins(direction, table, tau, pairs)
        losses_at = jax.vmap(
            lambda t: loss(margins - t * along, jax.tree.map(lambda a, d: a - t * d, at, direction))
        )(sizes)
        # Near the minimum rounding cannot tell a step from none: the largest that ties.
        least = jnp.min(losses_at)
        size = sizes[jnp.argmax(losses_at <= least + 4 * jnp.finfo(dtype).eps * jnp.abs(least))]
        moved = jnp.max(jnp.abs(size * along), initial=0.0)
        return jax.tree.map(lambda a, d: a - size * d, at, direction), steps + 1, moved

    def going(carry: tuple) -> jax.Array:
        return (carry[2] > 10 * enough) & (carry[1] < _NEWTON_STEPS)

    start = OneModel(jnp.zeros(table.shape[1], dtype), jnp.zeros(len(table), dtype))
    far = jnp.full((), jnp.inf, dtype)
    found: OneModel = jax.lax.while_loop(going, step, (start, jnp.zeros((), jnp.int32), far))[0]
    return found
