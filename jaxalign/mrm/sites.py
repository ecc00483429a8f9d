"""What a user's choices say, in a form that is exact and small: one normal term per choice."""

from typing import NamedTuple

import numpy as np

from jaxalign.arrays import Sizes, check_array, check_mask
from jaxalign.data.batching import Array


class Sites(NamedTuple):
    """Normal terms exp(shift f - precision f^2 / 2) of the margins f = <theta, d> of choices.

    Attributes:
        precision: [..., P], at least 0; 0 for padding.
        shift: [..., P] precision times mean.
    """

    precision: Array
    shift: Array


def posterior_cov(prior_cov: np.ndarray, rows: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Return the covariance [K, K] of a user's weights from the sites of the user's choices.

    (S^-1 + sum_p precision_p d_p d_p^T)^-1, without an inverse of the prior's covariance S, which
    may be of any rank.

    Args:
        prior_cov: [K, K] S.
        rows: [P, K] differences d of the choices.
        precision: [P], 0 or more.

    Raises:
        InputError: shapes that disagree, a negative precision, NaN or infinity.

    Example:
        >>> import numpy as np
        >>> from jaxalign.mrm.sites import posterior_cov
        >>> posterior_cov(np.eye(2), np.array([[1.0, 0.0]]), np.array([3.0])).tolist()
        [[0.25, 0.0], [0.0, 1.0]]
    """
    sizes = Sizes()
    check_array("prior_cov", prior_cov, "K K", sizes)
    check_array("rows", rows, "P K", sizes, empty="P")
    check_mask("precision", precision, "P", sizes, empty="P")
    cov, rows = np.asarray(prior_cov, np.float64), np.asarray(rows, np.float64)
    gained = rows.T @ (np.asarray(precision, np.float64)[:, None] * rows)
    found = np.linalg.solve(np.eye(len(cov)) + cov @ gained, cov)
    return 0.5 * (found + found.T)
