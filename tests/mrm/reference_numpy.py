"""Independent reference for `jaxalign.mrm`: NumPy float64 and SciPy, plain loops, no JAX.

Letters: U users, P pairs of a user, E embedding, K base reward functions, Q questions, N pairs.
"""

import functools

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.special

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


def softplus(x):
    """Elementwise log(1 + exp(x))."""
    return np.logaddexp(0.0, x)


sigmoid = scipy.special.expit


# Hierarchical Bradley-Terry.


def root_of(cov):
    """Root L [E, R] of a positive semidefinite cov [E, E], L @ L.T = cov, R its numerical rank."""
    cov = np.asarray(cov, np.float64)
    values, vectors = np.linalg.eigh((cov + cov.T) / 2)
    tolerance = len(cov) * np.finfo(np.float64).eps * np.abs(values).max()
    if values.min() < -100 * tolerance:
        raise ValueError(f"cov is not positive semidefinite: eigenvalue {values.min()}")
    keep = values > tolerance
    return vectors[:, keep] * np.sqrt(values[keep])


def _mode(mean, root, differences, weights):
    """Whitened MAP z [R] (theta = mean + root @ z), negative log posterior, Hessian [R, R]."""
    mean, differences = np.asarray(mean, np.float64), np.asarray(differences, np.float64)
    weights = np.asarray(weights, np.float64)
    design, offset = differences @ root, differences @ mean

    def value(z):
        return weights @ softplus(-(offset + design @ z)) + z @ z / 2

    def gradient(z):
        return z - design.T @ (weights * sigmoid(-(offset + design @ z)))

    def hessian(z):
        margin = offset + design @ z
        curvature = weights * sigmoid(margin) * sigmoid(-margin)
        return np.eye(len(z)) + (design.T * curvature) @ design

    # Newton with a line search; once the value cannot resolve the descent, full steps, down to a
    # gradient of 1e-12 or, where the sums are too large for that, until rounding stops them.
    z, previous = np.zeros(root.shape[1]), np.inf
    for _ in range(500):
        slope = gradient(z)
        size = np.linalg.norm(slope)
        step = -scipy.linalg.solve(hessian(z), slope, assume_a="pos")
        start, decrement, length = value(z), -(slope @ step), 1.0
        if size <= 1e-12 or (size >= previous and decrement < 1e-18 * (1.0 + abs(start))):
            return z, start, hessian(z)
        if decrement > 1e-10 * (1.0 + abs(start)):
            while value(z + length * step) > start - 1e-4 * length * decrement:
                length /= 2
                if length < 1e-15:
                    raise RuntimeError("no MAP: the line search found no descent")
        else:
            previous = size
        z = z + length * step
    raise RuntimeError(f"no MAP: gradient norm {size}")


def posterior(mean, cov, differences, weights):
    """Laplace posterior of one user: MAP [E] and covariance [E, E].

    MAP of sum_p weights_p log sigmoid(<theta, d_p>) + log N(theta; mean [E], cov [E, E]) for
    differences [P, E] and weights [P]; the covariance is the inverse Hessian there. Nothing moves
    outside the range of cov. Weight 0 is padding; a tie is the rows d and -d with weight 1/2 each.
    """
    root = root_of(cov)
    z, _, hessian = _mode(mean, root, differences, weights)
    half = scipy.linalg.solve_triangular(np.linalg.cholesky(hessian), root.T, lower=True)
    return np.asarray(mean, np.float64) + root @ z, half.T @ half


def evidence(mean, cov, differences, weights):
    """Laplace log evidence of all users, differences [U, P, E], weights [U, P]: scalar."""
    root, total = root_of(cov), 0.0
    for user_differences, user_weights in zip(differences, weights, strict=True):
        _, value, hessian = _mode(mean, root, user_differences, user_weights)
        total -= value + np.linalg.slogdet(hessian)[1] / 2
    return float(total)


def em_step(mean, cov, differences, weights):
    """One EM iteration with a Laplace E-step over differences [U, P, E], weights [U, P].

    New mean [E]: mean of the MAPs. New cov [E, E]: mean posterior covariance plus the mean outer
    product of MAP - new mean.
    """
    maps, covs = [], []
    for user_differences, user_weights in zip(differences, weights, strict=True):
        user_map, user_cov = posterior(mean, cov, user_differences, user_weights)
        maps.append(user_map)
        covs.append(user_cov)
    new_mean = sum(maps) / len(maps)
    new_cov = sum(covs) / len(covs)
    for user_map in maps:
        new_cov = new_cov + np.outer(user_map - new_mean, user_map - new_mean) / len(maps)
    return new_mean, new_cov


def truncate(cov, rank):
    """Best approximation of cov [E, E] by a positive semidefinite matrix of the given rank."""
    values, vectors = np.linalg.eigh((cov + cov.T) / 2)
    result = np.zeros_like(cov, dtype=np.float64)
    for index in np.argsort(values)[::-1][:rank]:
        result += max(values[index], 0.0) * np.outer(vectors[:, index], vectors[:, index])
    return result


def _margin(mean, cov, differences):
    """Mean and variance of <theta, d>, theta ~ N(mean, cov), differences [Q, E]: [Q], [Q]."""
    return differences @ mean, np.clip(
        np.einsum("qe,ef,qf->q", differences, cov, differences), 0, None
    )


def predict_probit(mean, cov, differences):
    """MacKay's approximation of P(chosen wins) under N(mean [E], cov [E, E]) for [Q, E]: [Q]."""
    m, s2 = _margin(mean, cov, differences)
    return sigmoid(m / np.sqrt(1.0 + np.pi * s2 / 8.0))


@functools.lru_cache
def _hermite(order):
    nodes, weights = scipy.special.roots_hermitenorm(order)
    return nodes, weights / weights.sum()


def predict_quadrature(mean, cov, differences, order=1000):
    """The logistic-normal integral behind `predict_probit` by Gauss-Hermite quadrature: [Q].

    At order 1000 good to 1e-12 for a margin's standard deviation up to 6 and to 1e-7 up to 10.
    """
    m, s2 = _margin(mean, cov, differences)
    nodes, weights = _hermite(order)
    return sigmoid(m[:, None] + np.sqrt(s2)[:, None] * nodes) @ weights


def bradley_terry(differences, weights, l2):
    """Minimiser [E] of sum_n w_n softplus(-<d_n, theta>) + l2/2 |theta|^2, w = weights / their sum.

    Differences [N, E], weights [N]; l2 > 0 unless the minimiser exists without it.
    """
    differences = np.asarray(differences, np.float64)
    weights = np.asarray(weights, np.float64) / np.sum(weights)

    def value(theta):
        return weights @ softplus(-(differences @ theta)) + l2 / 2 * theta @ theta

    def gradient(theta):
        return l2 * theta - differences.T @ (weights * sigmoid(-(differences @ theta)))

    def hessian(theta):
        p = sigmoid(differences @ theta)
        return l2 * np.eye(len(theta)) + (differences.T * (weights * p * (1 - p))) @ differences

    theta = np.zeros(differences.shape[1])
    theta = scipy.optimize.minimize(
        value, theta, jac=gradient, hess=hessian, method="trust-exact", options={"gtol": 1e-7}
    ).x
    for _ in range(5):  # polish: the value cannot resolve what the gradient can
        theta = theta - np.linalg.solve(hessian(theta), gradient(theta))
    if not np.linalg.norm(gradient(theta)) <= 1e-10:
        raise RuntimeError(f"no minimiser: gradient norm {np.linalg.norm(gradient(theta))}")
    return theta


# Meta reward modelling.


def adam_torch(grad_fn, w0, lr, steps):
    """Torch's Adam, eps after the bias correction: w [K] after `steps` from w0 [K]."""
    w = np.array(w0, np.float64)
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t in range(1, steps + 1):
        g = grad_fn(w)
        m, v = BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g * g
        m_hat, v_hat = m / (1 - BETA1**t), v / (1 - BETA2**t)
        w = w - lr * m_hat / (np.sqrt(v_hat) + EPS)
    return w


def adam_higher(grad_fn, w0, lr, steps):
    """Adam of `higher`, eps before the bias correction: w [K] after `steps` from w0 [K]."""
    w = np.array(w0, np.float64)
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t in range(1, steps + 1):
        g = grad_fn(w)
        m, v = BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g * g
        w = w - lr * np.sqrt(1 - BETA2**t) / (1 - BETA1**t) * m / (np.sqrt(v) + EPS)
    return w


def base_rewards(embeddings, layers, input_scale):
    """Base rewards [..., K] of embeddings [..., E]; layers [(kernel, bias or None), ...]."""
    x = input_scale * np.asarray(embeddings, np.float64)
    for kernel, bias in layers:
        x = x @ kernel
        if bias is not None:
            x = x + bias
    return x


def mixture(w, signed=False):
    """Weights of the base functions [K]: softmax of w [K], or w itself when signed."""
    return w if signed else scipy.special.softmax(w)


def pair_loss(w, features, signed=False):
    """Mean Bradley-Terry loss of one user; features [P, K] are phi(chosen) - phi(rejected).

    Zero without pairs, so that such a user stays at the start.
    """
    if len(features) == 0:
        return 0.0
    return sum(softplus(-(f @ mixture(w, signed))) for f in features) / len(features)


def pair_gradient(w, features, signed=False):
    """Gradient [K] of `pair_loss` in w."""
    if len(features) == 0:
        return np.zeros_like(w)
    n = mixture(w, signed)
    jacobian = np.eye(len(w)) if signed else np.diag(n) - np.outer(n, n)
    return jacobian @ sum(-sigmoid(-(f @ n)) * f for f in features) / len(features)


def rpo(losses, tail, gamma):
    """Robust personalisation objective of losses [U]: scalar; gamma <= 0 is the hard tail."""
    ordered = np.sort(np.asarray(losses, np.float64))
    position = (1.0 - tail) * (len(ordered) - 1)
    low = int(np.floor(position))
    high = min(low + 1, len(ordered) - 1)
    tau = ordered[low] + (position - low) * (ordered[high] - ordered[low])
    if gamma <= 0:
        return float(ordered[ordered > tau].sum())
    return float(sum(sigmoid((loss - tau) / gamma) * loss for loss in ordered))


def mrm_meta(chosen, rejected, support_mask, query_mask, layers, weight_init, hyper):
    """One meta-training step, forward only, by loops over users.

    chosen, rejected [U, P, E]; masks [U, P] bool; weight_init [K]; hyper: inner_steps, inner_lr,
    rpo_gamma, rpo_tail, input_scale and optionally signed (weights as they are, no softmax).
    Returns adapted_train [U, K] (`adam_higher`), adapted_eval [U, K] (`adam_torch`; both before the
    softmax, on the support pairs), losses [U] (query pairs, at adapted_train), objective (scalar).
    """
    signed = hyper.get("signed", False)
    train, evaluation, losses = [], [], []
    for user in range(len(chosen)):
        features = base_rewards(chosen[user], layers, hyper["input_scale"]) - base_rewards(
            rejected[user], layers, hyper["input_scale"]
        )
        support, query = features[support_mask[user]], features[query_mask[user]]
        grad_fn = functools.partial(pair_gradient, features=support, signed=signed)
        inner = (grad_fn, weight_init, hyper["inner_lr"], hyper["inner_steps"])
        train.append(adam_higher(*inner))
        evaluation.append(adam_torch(*inner))
        losses.append(pair_loss(train[-1], query, signed))
    return {
        "adapted_train": np.array(train),
        "adapted_eval": np.array(evaluation),
        "losses": np.array(losses),
        "objective": rpo(losses, hyper["rpo_tail"], hyper["rpo_gamma"]),
    }
