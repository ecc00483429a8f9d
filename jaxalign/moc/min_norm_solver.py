"""The point of least norm in a convex hull, known by the Gram matrix of its corners."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np

EXACT_UP_TO = 8
"""Most corners whose faces are enumerated: 2^R - 1 small systems, all solved at once."""


@jax.jit
def min_norm(gram: jax.Array) -> jax.Array:
    """Return the weights c on the simplex of least |sum_i c_i g_i|^2 = c^T G c; `vmap` for more.

    Exact for up to 8 vectors: the minimum lies inside a face of the simplex whose vectors are
    affinely independent, so every face is solved and the best kept. Beyond, `frank_wolfe`. Of
    equally good faces the one with more vectors is taken.

    Args:
        gram: [R, R], the Gram matrix g_i . g_j.

    Returns:
        [R], at least float32, non-negative, sum 1; equal weights where the matrix is not finite.

    Source: Desideri, Multiple-gradient descent algorithm (2012); Sener and Koltun (arXiv
    1810.04650), equation 3.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.moc import min_norm
        >>> vectors = jnp.array([[1.0, 0.0], [0.0, 2.0]])
        >>> [round(c, 3) for c in min_norm(vectors @ vectors.T).tolist()]
        [0.8, 0.2]
    """
    if gram.shape[-1] > EXACT_UP_TO:
        return frank_wolfe(gram)
    gram = _scaled(gram)
    faces = jnp.asarray(_faces(len(gram)))
    found = jax.vmap(_face_minimum, in_axes=(None, 0))(gram, faces)
    # First: where all are equally good, the weights are equal too.
    found = jnp.concatenate([jnp.full((1, len(gram)), 1 / len(gram), gram.dtype), found])
    value = jnp.einsum("FR,RS,FS->F", found, gram, found, precision="highest")
    # Rounding in a nearly singular face may overflow; the corners themselves never do.
    return found[jnp.argmin(jnp.where(jnp.isfinite(value), value, jnp.inf))]


@jax.jit(static_argnames="steps")
def frank_wolfe(gram: jax.Array, steps: int = 1000) -> jax.Array:
    """Return the weights of `min_norm` by pairwise Frank-Wolfe steps, for any number of vectors.

    Every step moves weight from the worst vector that has some to the best one, by line search.
    Unlike plain Frank-Wolfe steps, pairwise steps converge linearly.

    Args:
        gram: [R, R], the Gram matrix g_i . g_j.
        steps: 20 to 50 for each vector leave a gap of a few roundings.

    Returns:
        [R], at least float32, non-negative, sum 1; equal weights where the matrix is not finite.

    Source: Lacoste-Julien and Jaggi (arXiv 1511.05932), algorithm 2.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.moc import frank_wolfe
        >>> [round(c, 3) for c in frank_wolfe(jnp.diag(jnp.array([1.0, 4.0]))).tolist()]
        [0.8, 0.2]
    """
    gram = _scaled(gram)
    start = jnp.full(len(gram), 1 / len(gram), gram.dtype)

    def step(_: int, weights: jax.Array) -> jax.Array:
        slope = jnp.matmul(gram, weights, precision="highest")
        best = jnp.argmin(slope)
        worst = jnp.argmax(jnp.where(weights > 0, slope, -jnp.inf))
        curvature = gram[best, best] + gram[worst, worst] - 2 * gram[best, worst]
        curvature = jnp.maximum(curvature, jnp.finfo(gram.dtype).tiny)
        moved = jnp.minimum((slope[worst] - slope[best]) / curvature, weights[worst])
        # Set, not subtracted: a corner that is left has weight 0 and not a rounding of it.
        left = jnp.where(moved < weights[worst], weights[worst] - moved, 0)
        new = weights.at[worst].set(left).at[best].add(moved)
        return jnp.where(best == worst, weights, new)

    weights = jax.lax.fori_loop(0, steps, step, start)
    return weights / jnp.sum(weights)


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
