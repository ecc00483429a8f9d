"""Scalarised rewards: the tilted optimum of every weight vector, and the best policy of every user.

For rewards r [X, C, R], reference log-probabilities [X, C] and weights [W, R] the optimum of each
weight is pi_ref exp(<w, r> / beta) normalised; only its sums are wanted, never [W, X, C].
"""

from jaxalign.kernels.scalarize.api import BACKENDS, best_member, tilt, tilt_means

__all__ = ["BACKENDS", "best_member", "tilt", "tilt_means"]
