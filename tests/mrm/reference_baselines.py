"""Independent reference for the classical peers: NumPy float64 and SciPy, plain loops, no JAX.

From the formulas of the papers: a choice of u between items x (chosen) and y (rejected), of weight
w, has log-likelihood w log sigma(r_u(x) - r_u(y)). Letters: U users, P pairs, I items, D features,
K components, basis rewards or prototypes. A user's choices: a list of (chosen, rejected, weight).
"""

import numpy as np
import scipy.optimize
from scipy.special import expit, log_expit, logsumexp
from scipy.special import softmax as simplex_point


def log_likelihood(rewards, choices):
    """Of one user's choices under rewards [I] of all items."""
    return sum(w * log_expit(rewards[x] - rewards[y]) for x, y, w in choices)


def minimum(objective, start):
    """Where a smooth function is least, by BFGS on numerical gradients polished by Newton-CG."""
    found = scipy.optimize.minimize(objective, start, method="BFGS", options={"gtol": 1e-9})
    return found.x


# Mixture of Bradley-Terry models.


def responsibilities(share, theta, items, choices):
    """P(component | choices) [K] of one user."""
    joint = [
        np.log(share[k]) + log_likelihood(items @ theta[k], choices) for k in range(len(share))
    ]
    return np.exp(np.array(joint) - logsumexp(joint))


def mixture_probability(share, theta, items, choices, query):
    """P(x over y) for each (x, y) asked, components weighed by their posterior."""
    gamma = responsibilities(share, theta, items, choices)
    return [
        sum(g * expit((items[x] - items[y]) @ t) for g, t in zip(gamma, theta, strict=True))
        for x, y in query
    ]


def em_step(share, theta, items, users, l2):
    """E-step, then the M-step to its end: shares with one user more in each, ridge regressions."""
    gamma = np.array([responsibilities(share, theta, items, choices) for choices in users])
    sizes = 1 + gamma[[i for i, choices in enumerate(users) if choices]].sum(0)
    new = []
    for k in range(len(share)):
        total = sum(g[k] * w for g, c in zip(gamma, users, strict=True) for _, _, w in c)

        def loss(t, k=k, total=total):
            fit = sum(
                g[k] * log_likelihood(items @ t, c) for g, c in zip(gamma, users, strict=True)
            )
            return -fit / total + 0.5 * l2 * t @ t

        new.append(minimum(loss, theta[k]))
    return sizes / sizes.sum(), np.array(new)


# LoRe, arXiv 2504.14439.


def lore_loss(basis, logits, items, users):
    """Mean over users of the mean Bradley-Terry loss, r_u = (items V) softmax(logits_u)."""
    losses = []
    for raw, choices in zip(logits, users, strict=True):
        if choices:
            rewards = items @ basis @ simplex_point(raw)
            total = sum(w for _, _, w in choices)
            losses.append(-log_likelihood(rewards, choices) / total)
    return np.mean(losses)


def lore_log_posterior(basis, mean, z, items, users, ridge):
    """Minus the log posterior a choice: w_u = mean + z_u, mean and z_u ~ N(0, I), a ridge on V."""
    value, count = 0.5 * mean @ mean, 0.0
    for deviation, choices in zip(z, users, strict=True):
        value -= log_likelihood(items @ basis @ (mean + deviation), choices)
        value += 0.5 * deviation @ deviation
        count += sum(w for _, _, w in choices)
    return value / count + 0.5 * ridge * np.sum(basis**2)


def lore_weights(basis, mean, spread, items, choices):
    """MAP weights [K] of a new user, w ~ N(mean, spread^2 I)."""

    def loss(w):
        away = (w - mean) / spread
        return -log_likelihood(items @ basis @ w, choices) + 0.5 * away @ away

    return minimum(loss, mean)


def simplex_weights(rewards_of, count, choices):
    """Weights [K] on the simplex of the greatest likelihood; `rewards_of(w)` gives [I]."""
    found = scipy.optimize.minimize(
        lambda w: -log_likelihood(rewards_of(w), choices),
        np.full(count, 1 / count),
        bounds=[(0, 1)] * count,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    return found.x


# PAL, arXiv 2406.08469.


def pal_rewards(into, prototypes, weights, items):
    """-|f(x) - a|^2 [I] with the ideal point a = sum_k w_k p_k."""
    ideal = sum(w * p for w, p in zip(weights, prototypes, strict=True))
    return np.array([-np.sum((x @ into - ideal) ** 2) for x in items])


# Nearest neighbours.


def own_theta(theta, variance, items, choices):
    """MAP [D] of a user whose weights are N(theta, variance I)."""

    def loss(t):
        return -log_likelihood(items @ t, choices) + 0.5 * np.sum((t - theta) ** 2) / variance

    return minimum(loss, theta)


def neighbours_probability(theta, others, items, choices, query, by, count, share, variance):
    """P(x over y) for each (x, y): theta plus `share` of the mean deviation of the nearest."""
    if by == "agreement":
        near = [log_likelihood(items @ other, choices) for other in others]
    else:
        mine = own_theta(theta, variance, items, choices)
        near = [
            np.corrcoef(items @ (other - theta), items @ (mine - theta))[0, 1] for other in others
        ]
    nearest = np.argsort(near)[::-1][:count]
    served = theta + share * (np.mean([others[i] for i in nearest], axis=0) - theta)
    return [expit((items[x] - items[y]) @ served) for x, y in query]
