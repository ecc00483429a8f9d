"""Files of users whose posteriors are given, for tests of what reads them."""

import numpy as np

from jaxalign.runs.user_store import AboutUsers, UserRecord, create_users


def sites_of(prior_cov, cov):
    """Rows [K, K] and precisions [K] of choices that lead from one covariance to another."""
    gained = np.linalg.inv(cov) - np.linalg.inv(prior_cov)
    precision, rows = np.linalg.eigh(gained)
    assert precision.min() > -1e-9
    return rows.T, np.maximum(precision, 0)


def posterior_users(model, prior_cov, names, means, covs, ids=None):
    """Users of a model of `bayes` in memory, with means [U, K] and covariances [U, K, K]."""
    size = len(prior_cov)
    rewards, scale = ((), "") if ids is None else (tuple(ids.names), ids.digest)
    users = create_users(AboutUsers(model, "bayes", size, size + 4, rewards, scale))
    for name, mean, cov in zip(names, means, covs, strict=True):
        rows, precision = sites_of(prior_cov, cov)
        columns = [np.ones(size), np.arange(size), precision, 0 * precision]
        rows = np.concatenate([rows, np.stack(columns, 1)], 1)
        users.put([UserRecord(name, 9, np.nan, np.asarray(mean, np.float32), rows)])
    return users
