"""Entries of `jaxalign.mrm`."""

import jax.numpy as jnp
import numpy as np
import reference_numpy as ref
from edge_table import Entry, empty, refusals
from scipy.optimize import minimize
from scipy.special import expit, softmax

from jaxalign import mrm

U, P, E = 2, 3, 2
MEAN = np.array([0.5, -0.25])
COV = np.array([[1.0, 0.25], [0.25, 2.0]])
PAIRS = np.array([
    [[1.0, -0.5], [0.25, 2.0], [0.0, 0.0]],
    [[-1.5, 0.5], [0.75, 0.25], [0.0, 0.0]],
])  # fmt: skip
MASK = np.array([[1.0, 0.5, 0.0], [1.0, 1.0, 0.0]])
QUERY = np.array([[1.0, 0.5], [-0.5, 0.25], [2.0, 1.0]])
CONFIG = mrm.MRMConfig(hidden_sizes=(), link="signed", inner_lr=0.25, eval_steps=2)
CHOICES = refusals("differences", "1, 1, 0", "U P E", "1, 2, 3, 2", "mask", "1, 2")
QUESTIONS = {
    name: refusals(name, "2, 1", "P E", "1, 3, 2") for name in ("differences", "candidates")
}


def each_user(function):
    """A function of one user's live choices [P, E] and weights [P], for all users."""

    def of_all(differences, mask, **rest):
        found = [
            function(d[m > 0], m[m > 0], **rest) for d, m in zip(differences, mask, strict=True)
        ]
        return tuple(np.stack(column) for column in zip(*found, strict=True))

    return of_all


def reference_posterior(differences, mask):
    if not len(mask):
        return np.zeros((0, E)), np.zeros((0, E, E))
    return each_user(lambda d, m: ref.posterior(MEAN, COV, d, m))(differences, mask)


def reference_predict(support, support_mask, query):
    if not len(query):
        return np.zeros((0, query.shape[1]))
    found = reference_posterior(support, support_mask)
    return np.stack([
        ref.predict_quadrature(*one, q, order=200) for *one, q in zip(*found, query, strict=True)
    ])  # fmt: skip


def reference_sites(differences, mask):
    found = np.zeros((len(mask), P)), np.zeros((len(mask), P))
    for user, (d, m) in enumerate(zip(differences, mask, strict=True)):
        precision, shift, _ = ref.sites_of(MEAN, COV, d[m > 0], m[m > 0])
        found[0][user, m > 0], found[1][user, m > 0] = precision, shift
    live = np.where(mask[..., None] > 0, differences, 0)
    return live, mask, *found


def reference_adapt(differences, mask):
    rows = [
        ref.adam_torch(
            lambda w, d=d[m > 0], m=m[m > 0]: -(m * expit(-d @ w)) @ d / m.sum(),
            [0.25, -0.5], 0.25, 2,
        )
        for d, m in zip(differences, mask, strict=True)
    ]  # fmt: skip
    return np.reshape(rows, (-1, E))


def reference_bradley_terry(differences, mask):
    d, m = differences[mask > 0], mask[mask > 0]
    if not len(d):
        return np.zeros(E)
    unit = np.abs(d).max()
    w, d = m / m.sum(), d / unit
    ridge = 0.25 * (w @ (d * d).sum(1))

    def loss(theta):
        return w @ np.logaddexp(0, -d @ theta) + ridge / 2 * theta @ theta

    return minimize(loss, np.zeros(E), method="BFGS", options={"gtol": 1e-10}).x / unit


def reference_probability(mean, cov, differences):
    return ref.predict_quadrature(mean, cov, differences, order=200)


def reference_information(mean, cov, candidates):
    def entropy(p):
        return -p * np.log(p) - (1 - p) * np.log1p(-p)

    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    weights = weights / weights.sum()
    rows = []
    for d in candidates:
        x = d @ mean + np.sqrt(max(d @ cov @ d, 0)) * nodes
        each = np.logaddexp(0, -np.abs(x)) + np.abs(x) * expit(-np.abs(x))
        rows.append(entropy(weights @ expit(x)) - weights @ each)
    return np.array(rows)


def reference_rpo(losses):
    return ref.rpo(losses, 0.5, 0.5)


def reference_gains(mean, cov, values):
    beyond = values - values[0]
    gain, sd = beyond @ mean, np.sqrt(np.einsum("ck,kj,cj->c", beyond, cov, beyond))
    erf = np.vectorize(__import__("math").erf)
    scaled = np.divide(gain, sd, out=np.zeros_like(gain), where=sd > 0)
    return gain, sd, 0.5 * (1 + erf(scaled / np.sqrt(2)))


def prior():
    return mrm.Prior(jnp.asarray(MEAN), jnp.asarray(COV))


def params(hidden=False):
    base = {"layer0": {"kernel": jnp.array([[1.0, 0.5], [0.25, -1.0]])}} if hidden else {}
    return {"base": base, "weight_init": jnp.array([0.25, -0.5])}


_EXTREME = "margins of 1e8 standard deviations have no quadrature to compare with"

MRM = {
    "posterior": Entry(
        lambda differences, mask: mrm.posterior(prior(), differences, mask),
        {"differences": PAIRS, "mask": MASK}, reference_posterior, "differences", "mask",
        ("differences", "mask"), CHOICES, {"scale 1e8": _EXTREME}, tolerance=1e-4,
    ),
    "infer_beliefs": Entry(
        lambda differences, mask: mrm.infer_beliefs(prior(), differences, mask),
        {"differences": PAIRS, "mask": MASK}, reference_sites, "differences", "mask",
        ("differences", "mask"), CHOICES,
        {"scale 1e8": _EXTREME, "scale 1e-8": "margins that do not vary determine no site"},
        tolerance=1e-3,
    ),
    "predict": Entry(
        lambda support, support_mask, query: mrm.predict(prior(), support, support_mask, query),
        {"support": PAIRS, "support_mask": MASK, "query": np.stack([QUERY, -QUERY])},
        reference_predict, "support", "support_mask", ("support", "support_mask", "query"),
        refusals("support", "1, 1, 0", "U P E", "1, 2, 3, 2", "support_mask", "1, 2"),
        {"scale 1e8": _EXTREME}, tolerance=1e-4,
    ),
    "bradley_terry": Entry(
        lambda differences, mask: mrm.bradley_terry(differences, mask, l2=0.25),
        {"differences": PAIRS, "mask": MASK}, reference_bradley_terry, "differences", "mask",
        ("differences", "mask"),
        {
            **CHOICES,
            "wrong rank": "differences: found shape [1, 2, 3, 2], expected [N0, N1, E]; give an "
            "array of 3 axes.",
        },
        tolerance=1e-4,
    ),
    "adapt": Entry(
        lambda differences, mask: mrm.adapt(params(), differences, mask, CONFIG),
        {"differences": PAIRS, "mask": MASK}, reference_adapt, "differences", "mask",
        ("differences", "mask"),
        {**CHOICES, "wrong rank": CHOICES["wrong rank"].replace("U, P, E", "U, P, K")},
        {"scale 1e-8": "gradients as small as Adam's eps of 1e-8: see tests/mrm"},
        tolerance=1e-4,
    ),
    "choice_probability": Entry(
        mrm.choice_probability, {"mean": MEAN, "cov": COV, "differences": QUERY},
        reference_probability, "differences", rows=("differences",),
        refused=QUESTIONS["differences"], typed=("differences",),
        skipped={"scale 1e8": _EXTREME},
    ),
    "information": Entry(
        mrm.information, {"mean": MEAN, "cov": COV, "candidates": QUERY}, reference_information,
        "candidates", rows=("candidates",), refused=QUESTIONS["candidates"],
        typed=("candidates",), skipped={"scale 1e8": _EXTREME}, tolerance=1e-4, least=1e-12,
    ),
    "next_pair": Entry(
        mrm.next_pair, {"mean": MEAN, "cov": COV, "candidates": QUERY},
        lambda mean, cov, candidates: np.array(
            np.argmax(reference_information(mean, cov, candidates)) if len(candidates) else -1
        ),
        "candidates", rows=("candidates",), refused=QUESTIONS["candidates"],
        typed=("candidates",), skipped={"scale 1e8": _EXTREME, "scale 1e-8": "no information"},
    ),
    "rpo": Entry(
        lambda losses: mrm.rpo(losses, 0.5, 0.5), {"losses": np.array([0.25, 1.5, 0.75, 2.0])},
        reference_rpo, "losses", rows=("losses",),
        refused={**refusals("losses", "3", "U", "1, 4"), **empty("losses", "0", "U", "U")},
    ),
    "score": Entry(
        mrm.score, {"weights": np.array([[1.0, -0.5], [0.25, 2.0]]), "base": PAIRS},
        lambda weights, base: np.einsum("uk,upk->up", weights, base), "base",
        rows=("weights", "base"), refused=refusals("base", "1, 2, 1", "", ""),
        skipped={"wrong rank": "leading axes broadcast", "zero rows": "see below"},
    ),
    "effective_weights": Entry(
        lambda weights: mrm.effective_weights(weights, mrm.MRMConfig(link="softmax")),
        {"weights": np.array([[1.0, -0.5], [0.25, 2.0]])}, lambda weights: softmax(weights, axis=1),
        "weights", rows=("weights",), refused=refusals("weights", "1, 1", "", ""),
        skipped={"wrong rank": "any leading axes", "zero rows": "any leading axes"},
    ),
    "base_rewards": Entry(
        lambda features: mrm.base_rewards(
            params(True), features, mrm.MRMConfig(hidden_sizes=(2,), input_scale=0.5)
        ),
        {"features": QUERY},
        lambda features: 0.5 * features @ np.array([[1.0, 0.5], [0.25, -1.0]]), "features",
        rows=("features",), refused=refusals("features", "2, 1", "", ""),
        skipped={"wrong rank": "any leading axes"},
    ),
    "expected_gains": Entry(
        mrm.expected_gains, {"mean": MEAN, "cov": COV, "values": QUERY}, reference_gains, "values",
        rows=("values",), typed=("values",),
        refused={
            **refusals("values", "2, 1", "C K", "1, 3, 2"),
            **empty("values", "0, 2", "C K", "C"),
        },
    ),
    "best_option": Entry(
        lambda mean, sd: mrm.best_option(mrm.Gains(mean, sd, None), 0.5),
        {"mean": np.array([0.0, 1.0, 0.75]), "sd": np.array([0.0, 1.5, 0.25])},
        lambda mean, sd: np.argmax(mean - 0.5 * sd), "mean", rows=("mean", "sd"),
        scaled=("mean", "sd"),
        refused={
            **refusals("gains.mean", "2", "C", "1, 3"), **empty("gains.mean", "0", "C", "C"),
        },
    ),
    "posterior_cov": Entry(
        mrm.posterior_cov,
        {"prior_cov": COV, "rows": QUERY, "precision": np.array([1.0, 0.5, 2.0])},
        lambda prior_cov, rows, precision: np.linalg.inv(
            np.linalg.inv(prior_cov) + rows.T @ np.diag(precision) @ rows
        ),
        "rows", rows=("rows", "precision"), typed=("rows",),
        refused=refusals("rows", "2, 1", "P K", "1, 3, 2"),
    ),
    "rescaled": Entry(
        lambda mean: mrm.rescaled(mrm.Prior(mean, COV), 2.0, 4.0), {"mean": MEAN},
        lambda mean: (mean / 4, COV / 8), "mean",
        refused=refusals("prior.mean", "1", "E", "1, 2"),
        skipped={"zero rows": "one user", "one row": "one user"},
    ),
}  # fmt: skip
