"""Asking a user well: which pair to show next, and what one more choice says.

A user's state holds the choices so far by what they have in common under the prior, [N, N], so that
one more choice costs a few Newton steps of that size and gives what a refit from all would.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import InputError
from jaxalign.mrm.bayes import Prior
from jaxalign.train.blas import one_blas_thread

ROOM = 32
"""Choices that a fresh belief has room for; `update_belief` doubles it when they are made."""
_MOST_STEPS = 100
_HALVINGS = 0.5 ** np.arange(24.0)
# A sum at these nodes integrates what falls off as exp(-|x|) and has poles at i pi, times a normal
# density, to 1e-8: whatever the normal.
_NODES = np.arange(-27.0, 28.0)
_STEP = 0.75
_PROBIT = 1.7


class Belief(NamedTuple):
    """What is known of one user after the choices so far; N is the room for them.

    Attributes:
        mean: [E] the most probable weights.
        cov: [E, E] inverse Hessian there.
        kernel_vectors: [N, E] the prior's covariance times each choice's difference.
        gram: [N, N] covariance of the choices' margins under the prior.
        prior_margin: [N] their margins under the prior's mean.
        weight: [N] 0 where there is no choice yet.
        dual_coef: [N] mean = prior mean + kernel_vectors^T dual_coef.
        num_choices: int32, choices so far.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm import Prior, init_belief
        >>> belief = init_belief(Prior(jnp.zeros(2), jnp.eye(2)))
        >>> belief.num_choices.item(), belief.mean.tolist()
        (0, [0.0, 0.0])
    """

    mean: jax.Array
    cov: jax.Array
    kernel_vectors: jax.Array
    gram: jax.Array
    prior_margin: jax.Array
    weight: jax.Array
    dual_coef: jax.Array
    num_choices: jax.Array


def init_belief(prior: Prior, room: int = ROOM) -> Belief:
    """The state of a user of whom no choice is known; stacked leaf by leaf, that of many users.

    Args:
        prior: mean [E], cov [E, E] of any rank; of a loaded model,
            `mrm.Prior(*model.population())`.
        room: choices that there is room for at first.

    Raises:
        InputError: a prior without spread, from which choices teach nothing.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm import Prior, init_belief
        >>> belief = init_belief(Prior(jnp.zeros(2), jnp.eye(2)), room=4)
        >>> belief.gram.shape, belief.cov.tolist()
        ((4, 4), [[1.0, 0.0], [0.0, 1.0]])
    """
    dtype = jnp.promote_types(jnp.result_type(*prior), jnp.float32)
    mean, cov = (jnp.asarray(part, dtype) for part in prior)
    if not bool(jnp.any(jnp.diagonal(cov) > 0)):
        raise InputError(
            "the prior has no spread, so that no choice can change what is known of a user: give "
            "one of mrm.fit_prior, or of a model of kind 'bayes'"
        )
    row = jnp.zeros(room, dtype)
    kernel_vectors, gram = jnp.zeros((room, len(mean)), dtype), jnp.zeros((room, room), dtype)
    return Belief(mean, cov, kernel_vectors, gram, row, row, row, jnp.zeros((), jnp.int32))


def update_belief(
    prior: Prior, belief: Belief, difference: jax.Array, weight: float | jax.Array = 1.0
) -> Belief:
    """What is known after one more choice: the same as fitting all choices anew.

    >>> import jax.numpy as jnp
    >>> from jaxalign import mrm
    >>> prior = mrm.Prior(jnp.zeros(2), jnp.eye(2))
    >>> pairs = jnp.array([[0.1, 0.0], [2.0, 1.0], [0.0, 0.3]])
    >>> belief = mrm.init_belief(prior)
    >>> best = int(mrm.next_pair(belief.mean, belief.cov, pairs))
    >>> best
    1
    >>> belief = mrm.update_belief(prior, belief, -pairs[best])  # the second answer was chosen
    >>> bool(belief.mean[0] < 0)
    True

    Args:
        prior: as given to `init_belief`.
        belief: of one user; or of U users, every leaf with a leading axis.
        difference: [E] or [U, E], chosen minus rejected.
        weight: scalar or [U]; 1/2 for each order of a tie, 0 for no choice of this user.

    Returns:
        The new belief, of twice the room if it was full (which compiles anew).

    Raises:
        InputError: sizes that disagree, NaN or infinity.
    """
    dtype, many = belief.mean.dtype, belief.num_choices.shape
    found, weights = np.asarray(difference, dtype), np.asarray(weight, dtype)
    if found.shape != belief.mean.shape or weights.shape not in ((), many):
        raise InputError(
            f"a choice has shape {found.shape} and weight {weights.shape}, expected "
            f"{belief.mean.shape} and {many or 'a number'}: chosen minus rejected, as the belief"
        )
    if not (np.isfinite(found).all() and np.isfinite(weights).all() and (weights >= 0).all()):
        raise InputError(
            "a choice holds NaN, infinity or a negative weight: compute its features again"
        )
    if np.asarray(belief.num_choices).max() == belief.weight.shape[-1]:
        belief = _widened(belief)
    update = _update_each if many else _update
    return update(prior, belief, found, np.broadcast_to(weights, many))


def updated_belief(
    prior: Prior, belief: Belief, difference: jax.Array, weight: jax.Array
) -> Belief:
    """`update_belief` of one user as a pure function, for `jit`, `vmap` and `scan`.

    Newton's method for the mode of a Gaussian process classifier (Rasmussen and Williams 2006,
    algorithm 3.1), damped, from the last mode until it no longer moves.

    Args:
        prior: mean [E], cov [E, E].
        belief: with room for one more choice.
        difference: [E] chosen minus rejected.
        weight: scalar, 0 for no choice.
    """
    prior = Prior(*(part.astype(belief.mean.dtype) for part in prior))
    place = jnp.arange(len(belief.weight)) == belief.num_choices
    projected = prior.cov @ difference
    row = jnp.where(place, difference @ projected, belief.kernel_vectors @ difference)
    gram = jnp.where(place[None, :], row[:, None], belief.gram)
    gram = jnp.where(place[:, None], row[None, :], gram)
    kernel_vectors = jnp.where(place[:, None], projected[None, :], belief.kernel_vectors)
    prior_margin = jnp.where(place, difference @ prior.mean, belief.prior_margin)
    weights = jnp.where(place, weight, belief.weight)
    dual_coef = _settled(jnp.where(place, 0, belief.dual_coef), prior_margin, gram, weights)
    margin = prior_margin + gram @ dual_coef
    lower, root = _factor(gram, _curvature(margin, weights))
    half = jax.scipy.linalg.solve_triangular(lower, root[:, None] * kernel_vectors, lower=True)
    return Belief(
        prior.mean + dual_coef @ kernel_vectors,
        prior.cov - half.T @ half,
        kernel_vectors,
        gram,
        prior_margin,
        weights,
        dual_coef,
        belief.num_choices + (weight > 0).astype(jnp.int32),
    )


_update = jax.jit(updated_belief)
_update_many = jax.jit(jax.vmap(updated_belief, in_axes=(None, 0, 0, 0)))


@one_blas_thread
def _update_each(
    prior: Prior, beliefs: Belief, differences: np.ndarray, weights: np.ndarray
) -> Belief:
    return jax.block_until_ready(_update_many(prior, beliefs, differences, weights))


def _widened(belief: Belief) -> Belief:
    """The same belief with twice the room."""
    rows = belief.weight.shape[-1]

    def pad(array: jax.Array, axes: int) -> jax.Array:
        """Zeros behind the rows, which are the axis `axes` from the end."""
        width = [(0, 0)] * array.ndim
        width[array.ndim - axes] = (0, rows)
        return jnp.pad(array, width)

    return belief._replace(
        kernel_vectors=pad(belief.kernel_vectors, 2),
        gram=pad(pad(belief.gram, 2), 1),
        prior_margin=pad(belief.prior_margin, 1),
        weight=pad(belief.weight, 1),
        dual_coef=pad(belief.dual_coef, 1),
    )


def _curvature(margin: jax.Array, weight: jax.Array) -> jax.Array:
    return weight * jax.nn.sigmoid(margin) * jax.nn.sigmoid(-margin)


def _factor(gram: jax.Array, curvature: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cholesky factor of I + W^1/2 G W^1/2, and the diagonal of W^1/2."""
    root = jnp.sqrt(curvature)
    inner = root[:, None] * gram * root[None, :]
    # What rounding may have taken away, so that the factor exists at any scale of the features.
    floor = jnp.finfo(gram.dtype).eps * jnp.trace(inner)
    return jnp.linalg.cholesky(inner + (1 + floor) * jnp.eye(len(gram), dtype=gram.dtype)), root


def _settled(
    dual_coef: jax.Array, prior_margin: jax.Array, gram: jax.Array, weight: jax.Array
) -> jax.Array:
    """The dual_coef [N] of the mode, by Newton steps from a given one."""
    sizes = jnp.asarray(np.append(_HALVINGS, 0.0), gram.dtype)
    enough = 10 * jnp.finfo(gram.dtype).eps

    def loss(dual_coef: jax.Array, shift: jax.Array) -> jax.Array:
        return jnp.sum(weight * jax.nn.softplus(-prior_margin - shift)) + 0.5 * dual_coef @ shift

    def going(carry: tuple) -> jax.Array:
        _, decrement, steps = carry
        return (decrement > enough) & (steps < _MOST_STEPS)

    def step(carry: tuple) -> tuple:
        dual_coef, _, steps = carry
        shift = gram @ dual_coef
        push = weight * jax.nn.sigmoid(-prior_margin - shift)
        curvature = _curvature(prior_margin + shift, weight)
        lower, root = _factor(gram, curvature)
        target = curvature * shift + push
        inner = jax.scipy.linalg.cho_solve((lower, True), root * (gram @ target))
        direction = target - root * inner - dual_coef
        along = gram @ direction
        losses = jax.vmap(lambda t: loss(dual_coef + t * direction, shift + t * along))(sizes)
        # Near the mode rounding cannot tell a step from none: the largest that ties with the best.
        least = jnp.min(losses)
        tied = losses <= least + 4 * jnp.finfo(gram.dtype).eps * jnp.abs(least)
        size = sizes[jnp.argmax(tied)]
        decrement = jnp.where(size > 0, (push - dual_coef) @ along, 0)
        return dual_coef + size * direction, decrement, steps + 1

    start = (dual_coef, jnp.full((), jnp.inf, gram.dtype), jnp.zeros((), jnp.int32))
    settled: jax.Array = jax.lax.while_loop(going, step, start)[0]
    return settled


def next_pair(
    mean: jax.Array, cov: jax.Array, candidates: jax.Array, excluded: jax.Array | None = None
) -> jax.Array:
    """The pair whose answer tells most about one user's weights; `vmap` for many users.

    Args:
        mean: [E] of the user's weights, as of a `Belief`, `posterior` or `adapt_users`.
        cov: [E, E].
        candidates: [P, E] differences of the two answers of each pair, in either order.
        excluded: [P] bool, pairs that may not be returned; none by default.

    Returns:
        Its number, int32: the first of several alike; -1 if none is left to ask.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm import next_pair
        >>> mean, cov = jnp.zeros(2), jnp.diag(jnp.array([4.0, 1.0]))
        >>> pairs = jnp.array([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]])
        >>> choose = jax.jit(next_pair)
        >>> choose(mean, cov, pairs).item()
        1
        >>> choose(mean, cov, pairs, jnp.array([False, True, False])).item()
        2
    """
    gain = information(mean, cov, candidates)
    if excluded is None:
        return jnp.argmax(gain).astype(jnp.int32)
    best = jnp.argmax(jnp.where(excluded, -1, gain)).astype(jnp.int32)
    return jnp.where(jnp.all(excluded), -1, best)


def information(mean: jax.Array, cov: jax.Array, candidates: jax.Array) -> jax.Array:
    """Mutual information of each pair's answer and the user's weights, in nats.

    H(E[sigmoid(x)]) - E[H(sigmoid(x))] with x = <theta, d> normal (BALD: Houlsby et al. 2011, arXiv
    1112.5745), the logistic's own integrals in place of their probit approximation.

    Args:
        mean: [E] of one user's weights.
        cov: [E, E].
        candidates: [P, E].

    Returns:
        [P] from 0 to log 2; the same for a pair and its reverse.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm import information
        >>> pairs = jnp.array([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
        >>> nats = jax.jit(information)(jnp.zeros(2), jnp.eye(2), pairs)
        >>> [f"{value:.2f}" for value in nats]
        ['0.00', '0.09', '0.33']
    """
    dtype = jnp.promote_types(jnp.result_type(mean, cov, candidates), jnp.float32)
    candidates, mean, cov = (part.astype(dtype) for part in (candidates, mean, cov))
    variance = jnp.sum((candidates @ cov) * candidates, axis=-1)
    return _answer_information(jnp.abs(candidates @ mean), variance)


def _answer_information(margin: jax.Array, variance: jax.Array) -> jax.Array:
    """Of answers [P] with normal logits of mean `margin` [P], not negative, and a variance [P].

    What is summed at the nodes falls off as exp(-|x|) times the normal's density, so the nodes lie
    about the peak of that, as far apart as the narrower of the two allows.
    """
    tiny = jnp.finfo(margin.dtype).tiny
    spread = jnp.sqrt(jnp.maximum(variance, tiny))
    step = _STEP * jnp.minimum(spread, 1)
    # x - margin, and x: apart, or a narrow normal would be lost beside its mean.
    away = jnp.maximum(-spread * spread, -margin)[:, None] + step[:, None] * _nodes(margin)
    x = margin[:, None] + away
    scale = step / (spread * jnp.sqrt(2 * jnp.pi).astype(margin.dtype))
    density = scale[:, None] * jnp.exp(-0.5 * (away / spread[:, None]) ** 2)
    size = jnp.abs(x)
    noise = jnp.sum(density * (jax.nn.softplus(-size) + size * jax.nn.sigmoid(-size)), axis=-1)
    # The less probable answer: a normal's tail exactly, and at the nodes what the logistic differs.
    tail = jax.scipy.special.ndtr(-margin / jnp.sqrt(_PROBIT**2 + spread * spread))
    rest = jax.nn.sigmoid(-x) - jax.scipy.special.ndtr(-x / _PROBIT)
    rare = jnp.clip(tail + jnp.sum(density * rest, axis=-1), tiny, 0.5)
    entropy = -rare * jnp.log(rare) - (1 - rare) * jnp.log1p(-rare)
    return jnp.maximum(entropy - noise, 0)


def _nodes(like: jax.Array) -> jax.Array:
    return jnp.asarray(_NODES, like.dtype)[None, :]
