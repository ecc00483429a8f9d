"""The point of least norm in a convex hull, known by the Gram matrix of its corners."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.arrays import check_array

EXACT_UP_TO = 8
"""Most corners whose faces are enumerated: 2^R - 1 small systems, all solved at once."""


def min_norm(gram: jax.Array) -> jax.Array:
    """Return the weights c on the simplex of least |sum_i c_i g_i|^2 = c^T G c; `vmap` for more.

    For up to 8 vectors every face of the simplex is solved and the best kept: the minimum lies
    inside one whose vectors are affinely independent. Of equally good faces the one with more
    vectors is taken. Beyond 8 vectors, an active-set method finds the face. Both are exact up to
    rounding.

    Args:
        gram: [R, R], the Gram matrix g_i . g_j.

    Returns:
        [R], at least float32, non-negative, sum 1; NaN where a traced matrix is not finite.

    Raises:
        InputError: no square matrix, or a concrete value that is not finite.

    Source: Desideri, Multiple-gradient descent algorithm (2012); Sener and Koltun (arXiv
    1810.04650), equation 3.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.moc import min_norm
        >>> vectors = jnp.array([[1.0, 0.0], [0.0, 2.0]])
        >>> [round(c, 3) for c in min_norm(vectors @ vectors.T).tolist()]
        [0.8, 0.2]
    """
    return _least(check_array("gram", gram, "R R"))


@jax.jit
def _least(gram: jax.Array) -> jax.Array:
    finite = jnp.all(jnp.isfinite(gram))
    gram = _scaled(gram)
    found = _active_set(gram) if gram.shape[-1] > EXACT_UP_TO else _best_face(gram)
    # Weights made of NaN would hide that the gradients are no numbers.
    return jnp.where(finite, found, jnp.nan)


def _best_face(gram: jax.Array) -> jax.Array:
    faces = jnp.asarray(_faces(len(gram)))
    found = jax.vmap(_face_minimum, in_axes=(None, 0))(gram, faces)
    # First: where all are equally good, the weights are equal too.
    found = jnp.concatenate([jnp.full((1, len(gram)), 1 / len(gram), gram.dtype), found])
    value = jnp.einsum("FR,RS,FS->F", found, gram, found, precision="highest")
    # Rounding in a nearly singular face may overflow; the corners themselves never do.
    return found[jnp.argmin(jnp.where(jnp.isfinite(value), value, jnp.inf))]


def _active_set(gram: jax.Array) -> jax.Array:
    """[R] weights of the least norm, by the active-set method for non-negative least squares.

    The y >= 0 of least y^T (G + 1 1^T) y / 2 - sum(y) is a multiple of the weights: with s the
    sum of y, G y = (1 - s) 1 + mu, and mu >= 0 vanishes where y does not. A pass either drops a
    vector that would get a negative weight, or takes in the one of steepest descent. A vector that
    takes part depends on none of the others that do, so that every system has one solution.

    The matrix is scaled, so that the largest entry of its diagonal is 1 or 0.

    Source: Lawson and Hanson, Solving Least Squares Problems (1974), chapter 23, algorithm NNLS.
    """
    size, dtype = len(gram), gram.dtype
    least = 8 * jnp.finfo(dtype).eps
    system = gram + 1
    identity = jnp.eye(size, dtype=dtype)

    def unfinished(state: tuple[jax.Array, ...]) -> jax.Array:
        return ~state[-1]

    def step(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        current, active, banned, passes, _ = state
        inside = active[:, None] & active[None, :]
        solved = jnp.linalg.solve(jnp.where(inside, system, identity), active.astype(dtype))
        solved = jnp.where(jnp.all(jnp.isfinite(solved)), solved, 0)
        negative = active & (solved <= 0)

        # How far `current` can go towards the solution until a weight is zero, which is dropped.
        gap = jnp.where(negative, current - solved, 1)
        share = jnp.where(negative, current / jnp.where(gap > 0, gap, 1), jnp.inf)
        shrunk = current + jnp.min(share) * (solved - current)
        kept = active & (share > jnp.min(share)) & (shrunk > 0)

        slope = 1 - jnp.matmul(system, solved, precision="highest")
        # A vector that rounding drops as soon as it is taken in stays out until another is.
        open_to = ~active & ~banned & (slope > least)
        entering = jnp.argmax(jnp.where(open_to, slope, -jnp.inf))
        grown = active.at[entering].set(True)

        dropping = jnp.any(negative)
        current = jnp.where(dropping, jnp.where(kept, shrunk, 0), solved)
        banned = jnp.where(dropping, banned | (active & (current <= 0)), False)
        active = jnp.where(dropping, kept, jnp.where(jnp.any(open_to), grown, active))
        done = ~dropping & ~jnp.any(open_to)
        return current, active, banned, passes + 1, done | (passes >= 8 * size)

    first = jnp.arange(size) == jnp.argmin(jnp.diagonal(gram))
    nothing = jnp.zeros(size, dtype)
    state: tuple[jax.Array, ...] = (
        nothing,
        first,
        jnp.zeros(size, bool),
        jnp.int32(0),
        jnp.bool_(False),
    )
    found = jax.lax.while_loop(unfinished, step, state)[0]
    found = found / jnp.sum(found)
    equal = jnp.full(size, 1 / size, dtype)
    better = _squared_norm(gram, found) < _squared_norm(gram, equal)
    return jnp.where(better, found, equal)


def _squared_norm(gram: jax.Array, weights: jax.Array) -> jax.Array:
    return jnp.einsum("R,RS,S->", weights, gram, weights, precision="highest")


def _scaled(gram: jax.Array) -> jax.Array:
    """The matrix with a largest diagonal entry of 1; all zero if any entry is not finite."""
    gram = gram.astype(jnp.promote_types(gram.dtype, jnp.float32))
    gram = jnp.where(jnp.all(jnp.isfinite(gram)), gram, 0)
    scale = jnp.max(jnp.diagonal(gram))
    return gram / jnp.where(scale > 0, scale, 1)


def _faces(corners: int) -> np.ndarray:
    """[2^R - 1, R] bool, the non-empty faces, large ones first."""
    chosen = [face for size in range(corners, 0, -1) for face in combinations(range(corners), size)]
    return np.array([[corner in face for corner in range(corners)] for face in chosen])


def _face_minimum(gram: jax.Array, face: jax.Array) -> jax.Array:
    """[R] weights of the least norm in the affine hull of a face, brought back to the simplex.

    With first corner k and edges e_i = g_i - g_k, the minimum over a of |g_k + sum_i a_i e_i|^2
    solves E a = b for the Gram matrix E of the edges. An edge that depends on those before it is
    left out: a smaller face then holds the same point. Elimination is written out, not a solver's
    call, since R is small and E positive definite: no pivots are sought.
    """
    corners = len(gram)
    index = np.arange(corners)
    first = jnp.argmax(face)
    edge = face & (index != first)
    row = gram[first]
    edges = gram - row[:, None] - row[None, :] + row[first]
    edges = jnp.where(edge[:, None] & edge[None, :], edges, jnp.eye(corners, dtype=gram.dtype))
    system = jnp.concatenate([edges, jnp.where(edge, row[first] - row, 0)[:, None]], axis=1)
    largest = jnp.max(jnp.where(face, jnp.diagonal(gram), 0))
    least = 8 * jnp.finfo(gram.dtype).eps * largest
    used = []
    for i in range(corners):
        used.append(system[i, i] > least)
        pivot_row = jnp.where(used[i], system[i] / jnp.where(used[i], system[i, i], 1), 0)
        others = jnp.where(index == i, 0, system[:, i])
        system = (system - others[:, None] * pivot_row[None, :]).at[i].set(pivot_row)
    weights = jnp.where(edge & jnp.stack(used), system[:, -1], 0)
    weights = weights.at[first].set(1 - jnp.sum(weights))
    weights = jnp.maximum(weights, 0)
    return weights / jnp.sum(weights)
