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


def most_probable(mean, cov, differences, weights):
    """Most probable weights [E] of one user.

    Maximum of sum_p weights_p log sigmoid(<theta, d_p>) + log N(theta; mean [E], cov [E, E]) for
    differences [P, E] and weights [P]. Nothing moves outside the range of cov. Weight 0 is padding;
    a tie is the rows d and -d with weight 1/2 each.
    """
    root = root_of(cov)
    return np.asarray(mean, np.float64) + root @ _mode(mean, root, differences, weights)[0]


_GRID = np.linspace(-14.0, 14.0, 561)


def tilted_moments(mean, variance):
    """Log mass, mean and variance of sigmoid(x) N(x; mean, variance), by a sum over a wide grid."""
    # The tilted mean lies between the two.
    deviation, middle = np.sqrt(variance), mean + variance * sigmoid(-mean) / 2
    half = variance * sigmoid(-mean) / 2
    x = middle + (deviation + half / 14.0) * _GRID
    log_density = -((x - mean) ** 2) / (2 * variance) - softplus(-x)
    most = log_density.max()
    density = np.exp(log_density - most)
    mass = density.sum()
    first = density @ x / mass
    second = density @ (x - first) ** 2 / mass
    log_mass = most + np.log(mass * (x[1] - x[0])) - np.log(2 * np.pi * variance) / 2
    return log_mass, first, second


def sites_of(mean, cov, differences, weights):
    """Sites of expectation propagation, one row after the other until none changes.

    Returns precision [P], shift [P], and the log evidence. A row of weight w contributes w times
    its site; min(2 w, 1) of its site is taken out where it is renewed.
    """
    root = root_of(cov)
    design = np.asarray(differences, np.float64) @ root
    offset = np.asarray(differences, np.float64) @ mean
    precision, shift = np.zeros(len(design)), np.zeros(len(design))

    def margin(row):
        inverse = np.linalg.inv(np.eye(len(root.T)) + (design.T * (weights * precision)) @ design)
        z = inverse @ design.T @ (weights * (shift - precision * offset))
        return offset[row] + design[row] @ z, design[row] @ inverse @ design[row]

    def without(row):
        m, v = margin(row)
        part = min(2 * weights[row], 1.0)
        left = 1 - part * precision[row] * v
        return (m - part * shift[row] * v) / left, v / left

    rows = np.flatnonzero((weights > 0) & (np.sum(design**2, axis=1) > 0))
    for _ in range(400):
        before = np.concatenate([precision, shift])
        for row in rows:
            m, v = without(row)
            _, first, second = tilted_moments(m, v)
            precision[row], shift[row] = 1 / second - 1 / v, first / second - m / v
        if np.max(np.abs(np.concatenate([precision, shift]) - before), initial=0) < 1e-12:
            break
    inner = np.eye(len(root.T)) + (design.T * (weights * precision)) @ design
    target = design.T @ (weights * (shift - precision * offset))
    total = target @ np.linalg.solve(inner, target) / 2 - np.linalg.slogdet(inner)[1] / 2
    total += weights @ (shift * offset - precision * offset**2 / 2)
    for row in rows:
        m, v = without(row)
        log_mass, lam, eta = tilted_moments(m, v)[0], precision[row], shift[row]
        own = (m * eta + eta**2 * v / 2 - lam * m**2 / 2) / (1 + lam * v) - np.log1p(lam * v) / 2
        total += weights[row] * (log_mass - own)
    return precision, shift, total


def posterior(mean, cov, differences, weights):
    """Mean [E] and covariance [E, E] of one user's weights by expectation propagation.

    For differences [P, E] and weights [P]. Nothing moves outside the range of cov.
    """
    differences, weights = np.asarray(differences, np.float64), np.asarray(weights, np.float64)
    root, mean = root_of(cov), np.asarray(mean, np.float64)
    precision, shift, _ = sites_of(mean, cov, differences, weights)
    design = differences @ root
    inverse = np.linalg.inv(np.eye(len(root.T)) + (design.T * (weights * precision)) @ design)
    z = inverse @ design.T @ (weights * (shift - precision * (differences @ mean)))
    return mean + root @ z, root @ inverse @ root.T


def evidence(mean, cov, differences, weights):
    """Log evidence of all users by expectation propagation, [U, P, E] and [U, P]: scalar."""
    pairs = zip(differences, np.asarray(weights, np.float64), strict=True)
    return float(sum(sites_of(mean, cov, d, w)[2] for d, w in pairs))


def em_step(mean, cov, differences, weights):
    """One EM iteration over differences [U, P, E], weights [U, P].

    New mean [E]: mean of the users' means. New cov [E, E]: mean of their covariances plus the mean
    outer product of mean - new mean.
    """
    found = [posterior(mean, cov, d, w) for d, w in zip(differences, weights, strict=True)]
    means, covs = (np.stack(column) for column in zip(*found, strict=True))
    return means.mean(0), covs.mean(0) + np.cov(means.T, bias=True).reshape(cov.shape)


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


@functools.lru_cache
def _hermite(order):
    nodes, weights = scipy.special.roots_hermitenorm(order)
    return nodes, weights / weights.sum()


def predict_quadrature(mean, cov, differences, order=1000):
    """P(chosen wins) under N(mean [E], cov [E, E]) for [Q, E] by Gauss-Hermite quadrature: [Q].

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
