"""A population's prior, and what ten actively selected comparisons say about a new user."""

import numpy as np

from jaxalign import mrm

rng = np.random.default_rng(0)
weights = rng.normal([1.0, 0.5, 0.0, -0.5], 0.7, size=(201, 4))  # 200 users and a new one
pairs = rng.normal(size=(201, 60, 4))  # differences of 4 named rewards between two answers
chosen = rng.random((201, 60)) < 1 / (1 + np.exp(-np.einsum("UPK,UK->UP", pairs, weights)))
signed = np.where(chosen[..., None], pairs, -pairs)  # chosen minus rejected

prior = mrm.fit_prior(signed[:200], np.ones((200, 60)))
print("population mean:    ", np.round(np.asarray(prior.mean), 2))

belief, seen = mrm.init_belief(prior), np.zeros(60, bool)
for _ in range(10):
    mean, cov = mrm.belief_moments(prior, belief)
    row = int(mrm.next_pair(mean, cov, pairs[200], seen))  # the most informative
    belief = mrm.update_belief(prior, belief, signed[200, row])
    seen[row] = True
mean, cov = mrm.belief_moments(prior, belief)
spread = np.sqrt(np.diag(cov))
print("user after 10 choices:", np.round(np.asarray(mean), 2), "+-", np.round(spread, 2))
print("the user's weights:   ", np.round(weights[200], 2))
