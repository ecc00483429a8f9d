"""What is known of one user: the choices so far, and what each of them says beside the others.

Mean and covariance of the user's weights follow from the two and the population's prior, so that
this is all that has to be kept of a user, and one more choice costs a few sweeps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.arrays import Sizes, check_array, check_numpy
from jaxalign.errors import InputError
from jaxalign.mrm import ep
from jaxalign.mrm.bayes import Prior, check_choices, check_prior, factor, moments
from jaxalign.padding import kept
from jaxalign.train.blas import one_blas_thread

ROOM = 32
"""Choices that a fresh belief has room for; `update_belief` doubles it when they are made."""


class Belief(NamedTuple):
    """What is known of one user after the choices so far; N is the room for them.

    Attributes:
        differences: [N, E] of each choice, chosen minus rejected.
        weight: [N] how often each counts, 0 where there is no choice yet.
        site_precision: [N] what each choice says of its margin, a normal exp(s f - p f^2 / 2).
        site_shift: [N].

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm import Prior, belief_moments, init_belief
        >>> prior = Prior(jnp.zeros(2), jnp.eye(2))
        >>> belief = init_belief(prior)
        >>> belief.num_choices.item(), belief_moments(prior, belief)[0].tolist()
        (0, [0.0, 0.0])
    """

    differences: jax.Array
    weight: jax.Array
    site_precision: jax.Array
    site_shift: jax.Array

    @property
    def num_choices(self) -> jax.Array:
        """Choices so far, int32."""
        return jnp.sum(self.weight > 0, axis=-1, dtype=jnp.int32)


def init_belief(prior: Prior, room: int = ROOM) -> Belief:
    """The state of a user of whom no choice is known; stacked leaf by leaf, that of many users.

    Args:
        prior: mean [E], cov [E, E] of any rank; of a loaded model, `model.prior()`.
        room: choices that there is room for at first.

    Raises:
        InputError: a prior without spread, from which choices teach nothing, or one that is not
            finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm import Prior, init_belief
        >>> init_belief(Prior(jnp.zeros(2), jnp.eye(2)), room=4).differences.shape
        (4, 2)
    """
    prior = check_prior(prior)
    dtype = jnp.result_type(*prior)
    if not bool(jnp.any(jnp.diagonal(prior.cov) > 0)):
        raise InputError(
            "the prior has no spread, so that no choice can change what is known of a user: give "
            "one of mrm.fit_prior, or of a model of kind 'bayes'"
        )
    row = jnp.zeros(room, dtype)
    return Belief(jnp.zeros((room, len(prior.mean)), dtype), row, row, row)


def infer_beliefs(prior: Prior, differences: jax.Array, mask: jax.Array) -> Belief:
    """What is known of U users from all their choices at once.

    Args:
        prior: mean [E], cov [E, E].
        differences: [U, P, E] chosen minus rejected.
        mask: [U, P] bool, or weights of 0 or more; where it is 0, differences may hold any value.

    Returns:
        A belief whose leaves have a leading axis U, with room for P choices.

    Raises:
        InputError: shapes that disagree, a negative weight, NaN or infinity; values are looked at
            only where they are concrete, so not under `jit`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm import Prior, infer_beliefs
        >>> prior, choices = Prior(jnp.zeros(2), jnp.eye(2)), jnp.ones((3, 4, 2))
        >>> jax.jit(infer_beliefs)(prior, choices, jnp.ones((3, 4))).site_shift.shape
        (3, 4)
    """
    sizes = Sizes()
    prior = check_prior(prior, sizes)
    names = ("differences", "mask")
    pairs, weight = check_choices(differences, mask, "U P", sizes, names)
    return _inferred(prior, pairs, weight)


@jax.jit
def _inferred(prior: Prior, differences: jax.Array, mask: jax.Array) -> Belief:
    root = factor(prior.cov)

    def one_user(d: jax.Array, m: jax.Array) -> Belief:
        rows = ep.rows_of(prior.mean, root, d, m)
        sites = ep.converge(rows, ep.no_sites(rows))
        shown = (kept(rows.weight, site) for site in sites)
        return Belief(d.astype(rows.weight.dtype), rows.weight, *shown)

    return jax.vmap(one_user)(differences, mask)


def belief_moments(prior: Prior, belief: Belief) -> tuple[jax.Array, jax.Array]:
    """Mean [E] and covariance [E, E] of one user's weights; use `vmap` for many users.

    Args:
        prior: as given to `init_belief`.
        belief: of one user.

    Raises:
        InputError: shapes that disagree, a negative weight, NaN or infinity; values are looked at
            only where they are concrete, so not under `jit`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm import Prior, belief_moments, init_belief, update_belief
        >>> prior = Prior(jnp.zeros(2), jnp.eye(2))
        >>> belief = update_belief(prior, init_belief(prior), jnp.array([1.0, 0.0]))
        >>> mean, cov = belief_moments(prior, belief)
        >>> bool(mean[0] > 0), bool(cov[0, 0] < 1)
        (True, True)
    """
    sizes = Sizes()
    prior = check_prior(prior, sizes)
    names = ("belief.differences", "belief.weight")
    pairs, weight = check_choices(belief.differences, belief.weight, "N", sizes, names)
    precision, shift = (
        kept(weight, check_array(f"belief.{name}", value, "N", sizes, mask=weight, empty="N"))
        for name, value in (
            ("site_precision", belief.site_precision), ("site_shift", belief.site_shift),
        )
    )  # fmt: skip
    return _moments(prior, pairs, weight, ep.Sites(precision, shift))


@jax.jit
def _moments(
    prior: Prior, pairs: jax.Array, weight: jax.Array, sites: ep.Sites
) -> tuple[jax.Array, jax.Array]:
    root = factor(prior.cov)
    return moments(prior.mean, root, ep.rows_of(prior.mean, root, pairs, weight), sites)


def update_belief(
    prior: Prior, belief: Belief, difference: jax.Array, weight: float | jax.Array = 1.0
) -> Belief:
    """What is known after one more choice: the same as fitting all choices anew.

    >>> import jax.numpy as jnp
    >>> from jaxalign import mrm
    >>> prior = mrm.Prior(jnp.zeros(2), jnp.eye(2))
    >>> pairs = jnp.array([[0.1, 0.0], [2.0, 1.0], [0.0, 0.3]])
    >>> belief = mrm.init_belief(prior)
    >>> best = int(mrm.next_pair(*mrm.belief_moments(prior, belief), pairs))
    >>> best
    1
    >>> belief = mrm.update_belief(prior, belief, -pairs[best])  # the second answer was chosen
    >>> bool(mrm.belief_moments(prior, belief)[0][0] < 0)
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
    dtype, many = belief.weight.dtype, belief.weight.shape[:-1]
    found, weights = (
        check_numpy(name, value, "...", finite=False).astype(dtype)
        for name, value in (("difference", difference), ("weight", weight))
    )
    expected = (*many, belief.differences.shape[-1])
    if found.shape != expected or weights.shape not in ((), many):
        raise InputError(
            f"a choice has shape {found.shape} and weight {weights.shape}, expected "
            f"{expected} and {many or 'a number'}: chosen minus rejected, as the belief"
        )
    if not (np.isfinite(found).all() and np.isfinite(weights).all() and (weights >= 0).all()):
        raise InputError(
            "a choice holds NaN, infinity or a negative weight: compute its features again"
        )
    if int(np.max(belief.num_choices)) == belief.weight.shape[-1]:
        belief = _widened(belief)
    update = _update_each if many else _update
    return update(prior, belief, found, np.broadcast_to(weights, many))


def updated_belief(
    prior: Prior, belief: Belief, difference: jax.Array, weight: jax.Array
) -> Belief:
    """`update_belief` of one user as a pure function, for `jit`, `vmap` and `scan`.

    The choice is a new row, and sweeps start from the sites so far until these no longer change.

    Args:
        prior: mean [E], cov [E, E].
        belief: with room for one more choice.
        difference: [E] chosen minus rejected.
        weight: scalar, 0 for no choice.
    """
    return _with_choice(prior, factor(prior.cov), belief, difference, weight)


def _with_choice(
    prior: Prior, root: jax.Array, belief: Belief, difference: jax.Array, weight: jax.Array
) -> Belief:
    dtype = belief.weight.dtype
    # Rows may have any order, so the first that is free.
    place = jnp.arange(len(belief.weight)) == jnp.argmax(belief.weight == 0)
    differences = jnp.where(place[:, None], difference[None, :].astype(dtype), belief.differences)
    weights = jnp.where(place, weight.astype(dtype), belief.weight)
    sites = ep.Sites(belief.site_precision, belief.site_shift)
    sites = jax.tree.map(lambda site: jnp.where(place, 0, site), sites)
    rows = ep.rows_of(prior.mean.astype(dtype), root.astype(dtype), differences, weights)
    return Belief(differences, weights, *ep.converge(rows, sites))


@jax.jit
def _update(prior: Prior, belief: Belief, difference: jax.Array, weight: jax.Array) -> Belief:
    return updated_belief(prior, belief, difference, weight)


@jax.jit
def _update_many(prior: Prior, beliefs: Belief, found: jax.Array, weights: jax.Array) -> Belief:
    root = factor(prior.cov)
    return jax.vmap(lambda *one: _with_choice(prior, root, *one))(beliefs, found, weights)


@one_blas_thread
def _update_each(prior: Prior, beliefs: Belief, found: np.ndarray, weights: np.ndarray) -> Belief:
    return jax.block_until_ready(_update_many(prior, beliefs, found, weights))


def _widened(belief: Belief) -> Belief:
    """The same belief with twice the room."""
    rows = belief.weight.shape[-1]

    def pad(array: jax.Array, axis: int) -> jax.Array:
        width = [(0, 0)] * array.ndim
        width[axis] = (0, rows)
        return jnp.pad(array, width)

    return Belief(pad(belief.differences, -2), *(pad(array, -1) for array in belief[1:]))
