"""Asking a user well: which pair to show next."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.arrays import Sizes, check_array, check_mask
from jaxalign.mrm.bayes import check_user_pairs
from jaxalign.padding import kept

# A sum at these nodes integrates what falls off as exp(-|x|) and has poles at i pi, times a normal
# density, to 1e-8: whatever the normal.
_NODES = np.arange(-27.0, 28.0)
_STEP = 0.75
_PROBIT = 1.7


def next_pair(
    mean: jax.Array, cov: jax.Array, candidates: jax.Array, excluded: jax.Array | None = None
) -> jax.Array:
    """The pair whose answer tells most about one user's weights; `vmap` for many users.

    Args:
        mean: [E] of the user's weights, as of a `Belief`, `posterior` or `adapt_users`.
        cov: [E, E].
        candidates: [P, E] differences of the two answers of each pair, in either order.
        excluded: [P] bool, pairs that may not be returned; none by default. Where it is set,
            candidates may hold any value.

    Returns:
        Its number, int32: the first of several alike; -1 if none is left. Under `jit`, a candidate
        whose information is NaN is never returned.

    Raises:
        InputError: shapes that disagree, or a concrete value that is not finite.

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
    pairs = check_array("candidates", candidates, "P E", empty="P", finite=False)
    open_pairs = jnp.ones(len(pairs), pairs.dtype)
    if excluded is not None:
        sizes = Sizes(P=(len(pairs), "candidates"))
        open_pairs -= check_mask("excluded", excluded, "P", sizes, empty="P")
    pairs = kept(open_pairs, pairs)
    mean, cov, pairs = check_user_pairs(mean, cov, pairs, "candidates")
    return _next_pair(mean, cov, pairs, open_pairs)


@jax.jit
def _next_pair(
    mean: jax.Array, cov: jax.Array, candidates: jax.Array, open_pairs: jax.Array
) -> jax.Array:
    gain = _information(mean, cov, kept(open_pairs, candidates))
    eligible = (open_pairs > 0) & ~jnp.isnan(gain)
    # One place more, so that no candidates at all have an answer too.
    best = jnp.argmax(jnp.append(jnp.where(eligible, gain, -1), -1.0)).astype(jnp.int32)
    return jnp.where(jnp.any(eligible), best, -1)


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

    Raises:
        InputError: shapes that disagree, or a concrete value that is not finite.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm import information
        >>> pairs = jnp.array([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
        >>> nats = jax.jit(information)(jnp.zeros(2), jnp.eye(2), pairs)
        >>> [f"{value:.2f}" for value in nats]
        ['0.00', '0.09', '0.33']
    """
    return _information(*check_user_pairs(mean, cov, candidates, "candidates"))


@jax.jit
def _information(mean: jax.Array, cov: jax.Array, candidates: jax.Array) -> jax.Array:
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
