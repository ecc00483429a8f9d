"""What is known of the optimum V(w) between solved weights, without another oracle call.

V is convex and linear along rays, so a mixture of solved weights is worth at most the mixture of
their values: U(w) = min {sum a_k V_k : sum a_k w_k = w, a >= 0}, the lower convex hull of the
points (w_k, V_k). Its facets are linear functions y, and U(w) = max over facets of <y, w>: U is the
value of the best of a pool of hypothetical policies.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, HalfspaceIntersection, QhullError

from jaxalign.arrays import Sizes, check_numpy
from jaxalign.palm.domain import Floats

# Facets whose weights are closer to dependent than this take Qhull's plane instead of their own.
_CONDITION = 1e10
# Facets that lie above solved points and have less than this share of the domain are rounding.
_SLIVER = 1e-9
# Values are at most 1 here, so that a steeper facet is less than 1e-6 wide: a side of the hull that
# is vertical but for rounding. What lies next to it bounds V there as well, up to that width.
_STEEPEST = 1e7


def upper_facets(weights: Floats, values: Floats) -> Floats:
    """Return linear functions whose largest is the least upper bound of V between solved weights.

    Args:
        weights: [n, D] solved weights, every corner of the domain among them, last coordinate
            affine in the others (as in `palm.corners`).
        values: [n] upper bounds of V there: of exact oracles, V itself.

    Returns:
        [Y, D], with U(w) = max over rows of <y, w>.

    Raises:
        InputError: shapes that disagree, no weight, NaN or infinity.

    Source: optimistic linear support (Roijers, Whiteson, Oliehoek, JAIR 2015), as one hull.

    Example:
        >>> import numpy as np
        >>> from jaxalign.palm import upper_facets
        >>> solved = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
        >>> facets = upper_facets(solved, np.array([1.0, 1.0, 0.75]))
        >>> round(float((facets @ [0.75, 0.25]).max()), 6)  # halfway between 1 and 0.75
        0.875
    """
    sizes = Sizes()
    weights = check_numpy("weights", weights, "n D", sizes)
    values = check_numpy("values", values, "n", sizes)
    size = weights.shape[1]
    if size == 1:
        return np.array([[values.min()]])
    # Qhull's precision is that of the largest coordinate: values are as large as weights.
    scale = float(np.abs(values).max()) or 1.0
    values = values / scale
    # A point far above the middle gives the hull full dimension and touches no lower facet.
    height = values.max() + 1 + np.ptp(values)
    apex = np.append(weights[:, :-1].mean(axis=0), height)
    points = np.concatenate([np.column_stack([weights[:, :-1], values]), apex[None]])
    try:
        hull = ConvexHull(points, qhull_options="Qt")
    except QhullError:
        # From some eighty policies of five signed rewards on, its precision may not do. Joggled, it
        # cuts the domain otherwise here and there: mixtures of solved weights are bounds as well.
        hull = ConvexHull(points, qhull_options="QJ")
    lower = (hull.simplices < len(weights)).all(axis=1) & (hull.equations[:, -2] < -1e-12)
    vertices = hull.simplices[lower]
    facets = _through(weights, values, vertices, hull.equations[lower])
    counts = _supporting(facets, weights, values, vertices)
    counts &= np.abs(facets).max(axis=1) < _STEEPEST
    functions = np.unique(facets[counts], axis=0)
    # A facet that Qhull merged away can leave the bound a rounding too low at its corners.
    missing = np.max(values - np.max(weights @ functions.T, axis=1), initial=0.0)
    return (functions + missing * _constant(weights)) * scale


def _through(weights: Floats, values: Floats, vertices: np.ndarray, planes: Floats) -> Floats:
    """Linear functions [F, D] with the values of facets' vertices [F, D], or on their planes."""
    slopes, offsets = -planes[:, :-2] / planes[:, -2:-1], -planes[:, -1:] / planes[:, -2:-1]
    # slope x + offset in the coordinates' own terms: the constant is linear in them.
    functions = np.pad(slopes, [(0, 0), (0, 1)]) + offsets * _constant(weights)[None]
    sound = np.linalg.cond(weights[vertices]) < _CONDITION
    chosen = vertices[sound]
    functions[sound] = np.linalg.solve(weights[chosen], values[chosen][..., None])[..., 0]
    return functions


def _supporting(
    facets: Floats, weights: Floats, values: Floats, vertices: np.ndarray
) -> NDArray[np.bool_]:
    """Whether facets [F, D] lie below every solved point, or cover a part that counts.

    A joggled hull has slivers, whose planes are nearly vertical: far too high away from them.
    """
    above = np.max(facets @ weights.T - values[None], axis=1)
    volume = np.abs(np.linalg.det(weights[vertices]))
    return (above <= _SLIVER * (1 + np.ptp(values))) | (volume > _SLIVER * volume.sum())


def _constant(weights: Floats) -> Floats:
    """The linear function [D] that is 1 on the whole domain: of ones on the simplex."""
    return np.asarray(np.linalg.lstsq(weights, np.ones(len(weights)))[0], np.float64)


def tie_points(policies: Floats, corners: Floats) -> Floats:
    """Return the weights where policies tie as best, and the domain's corners.

    A convex function less the best of the policies is largest at one of these points: between
    them the best policy does not change, and the difference is convex.

    Args:
        policies: [M, D].
        corners: [N, D] of the domain.

    Returns:
        [W, D]; a sample of the domain should Qhull fail on degenerate policies.

    Raises:
        InputError: shapes that disagree, no policy, NaN or infinity.

    Source: corner weights (Roijers, Whiteson, Oliehoek, JAIR 2015).

    Example:
        >>> import numpy as np
        >>> from jaxalign.palm import tie_points
        >>> tie_points(np.array([[1.0, 0.0], [0.0, 1.0]]), np.eye(2))
        array([[0. , 1. ],
               [0.5, 0.5],
               [1. , 0. ]])
    """
    sizes = Sizes()
    corners = check_numpy("corners", corners, "N D", sizes)
    policies = check_numpy("policies", policies, "M D", sizes)
    if corners.shape[1] == 1:
        return corners
    policies = policies / (float(np.abs(policies @ corners.T).max()) or 1.0)
    design = np.column_stack([corners[:, :-1], np.ones(len(corners))])
    last = np.linalg.lstsq(design, corners[:, -1])[0]
    slopes = policies[:, :-1] + policies[:, -1:] * last[None, :-1]
    offsets = policies[:, -1] * last[-1]
    top = (policies @ corners.T).max() + 1
    below = np.column_stack([slopes, -np.ones(len(policies)), offsets])
    cover = np.append(np.zeros(corners.shape[1] - 1), [1.0, -top])
    planes = _facets(corners[:, :-1])
    sides = np.column_stack([planes[:, :-1], np.zeros(len(planes)), planes[:, -1]])
    middle = corners[:, :-1].mean(axis=0)
    inside = np.append(middle, (top + np.max(slopes @ middle + offsets)) / 2)
    try:
        found = HalfspaceIntersection(np.concatenate([below, cover[None], sides]), inside)
        points = found.intersections
    except QhullError:
        mixtures = np.random.default_rng(0).dirichlet(np.full(len(corners), 0.5), 4096)
        return np.concatenate([corners, mixtures @ corners])
    points = points[np.isfinite(points).all(axis=1) & (points[:, -1] < top - 0.5)]
    points = points[:, :-1]
    ties = np.column_stack([points, points @ last[:-1] + last[-1]])
    return np.unique(np.round(np.concatenate([corners, ties]), 13), axis=0)


def _facets(points: Floats) -> Floats:
    """Planes [F, d + 1] of the hull of points [N, d], <n, x> + o <= 0 inside."""
    if points.shape[1] == 1:
        return np.array([[1.0, -points.max()], [-1.0, points.min()]])
    return np.unique(ConvexHull(points).equations, axis=0)
