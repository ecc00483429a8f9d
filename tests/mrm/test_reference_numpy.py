"""The NumPy reference against the authors' numbers, finite differences, and brute force."""

import json

import numpy as np
import pytest
import reference_numpy as ref
import scipy.integrate
import scipy.optimize
import simulate
import torch
from golden_numbers import golden

NAMES = ["k2_hard_tail", "k2_one_step", "k8_bias_ten_steps", "k8_five_steps", "two_layers_bias"]


def step_of_the_authors(name):
    arrays = golden(f"mrm/{name}")
    hyper = json.loads(str(arrays.pop("hyper")))
    layers = [
        (arrays[f"layer{i}_kernel"], arrays.get(f"layer{i}_bias"))
        for i in range(len(hyper["hidden_sizes"]))
    ]
    keys = ["chosen", "rejected", "support_mask", "query_mask"]
    return arrays, (*(arrays[k] for k in keys), layers, arrays["weight_init"], hyper)


def prior(rng, dim, scale=1.0):
    root = rng.standard_normal((dim, dim))
    return rng.standard_normal(dim), scale * (root @ root.T / dim + 0.1 * np.eye(dim))


def slopes(function, point, step=1e-5):
    """Central differences of a scalar function at point [E]: [E]."""
    shifts = step * np.eye(len(point))
    return np.array([(function(point + s) - function(point - s)) / (2 * step) for s in shifts])


# The authors' numbers.


@pytest.mark.parametrize("name", NAMES)
def test_meta_step_matches_the_authors(name):
    arrays, inputs = step_of_the_authors(name)
    out = ref.mrm_meta(*inputs)
    close = {"rtol": 1e-10, "atol": 1e-14}
    np.testing.assert_allclose(out["adapted_train"], arrays["adapted_weights_train"], **close)
    np.testing.assert_allclose(out["adapted_eval"], arrays["adapted_weights_eval"], **close)
    np.testing.assert_allclose(out["losses"], arrays["query_losses"], **close)
    np.testing.assert_allclose(out["objective"], arrays["objective"], **close)


@pytest.mark.parametrize("name", NAMES)
def test_authors_gradient_matches_differences_of_the_objective(name):
    arrays, (chosen, rejected, support, query, layers, start, hyper) = step_of_the_authors(name)

    def objective(layers, start):
        inputs = (chosen, rejected, support, query, layers, start, hyper)
        return ref.mrm_meta(*inputs)["objective"]

    numeric = slopes(lambda w: objective(layers, w), start, 1e-6)
    np.testing.assert_allclose(numeric, arrays["grad_weight_init"], rtol=1e-5, atol=1e-8)

    rng = np.random.default_rng(0)
    directions = [[rng.standard_normal(k.shape) for k, _ in layers] for _ in range(3)]
    for direction in directions:
        numeric = slopes(
            lambda t, direction=direction: objective(
                [(k + t[0] * d, b) for (k, b), d in zip(layers, direction, strict=True)], start
            ),
            np.zeros(1),
            1e-6,
        )[0]
        exact = sum(np.sum(arrays[f"grad_layer{i}_kernel"] * d) for i, d in enumerate(direction))
        np.testing.assert_allclose(numeric, exact, rtol=1e-5, atol=1e-7)


# Meta reward modelling without goldens.


@pytest.mark.parametrize("signed", [False, True])
def test_pair_gradient(signed):
    rng = np.random.default_rng(1)
    w, features = rng.standard_normal(5), rng.standard_normal((7, 5))
    numeric = slopes(lambda x: ref.pair_loss(x, features, signed), w)
    np.testing.assert_allclose(ref.pair_gradient(w, features, signed), numeric, atol=1e-9)


def test_adams():
    rng = np.random.default_rng(2)
    w, target = rng.standard_normal(4), rng.standard_normal(4)
    parameter = torch.nn.Parameter(torch.tensor(w))
    optimizer = torch.optim.Adam([parameter], lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        ((parameter - torch.tensor(target)) ** 2).sum().backward()
        optimizer.step()
    ours = ref.adam_torch(lambda x: 2 * (x - target), w, 0.1, 20)
    np.testing.assert_allclose(ours, parameter.detach().numpy(), rtol=1e-12)
    # One step by hand; the two differ by where eps is, visible when the gradient is about eps.
    g, root = 1e-8, np.sqrt(1e-3)
    np.testing.assert_allclose(ref.adam_torch(lambda x: g + 0 * x, w, 0.1, 1), w - 0.05, rtol=1e-9)
    higher = 0.1 * root * g / (root * g + 1e-8)
    np.testing.assert_allclose(
        ref.adam_higher(lambda x: g + 0 * x, w, 0.1, 1), w - higher, rtol=1e-9
    )
    for adam in (ref.adam_torch, ref.adam_higher):
        np.testing.assert_array_equal(adam(np.zeros_like, w, 0.1, 3), w)


def test_meta_step_without_support_pairs_or_signed():
    rng = np.random.default_rng(3)
    chosen, rejected = rng.standard_normal((2, 3, 4, 6))
    layers, start = [(rng.standard_normal((6, 2)), None)], np.array([0.3, -0.2])
    query = np.ones((3, 4), bool)
    support = query & (np.arange(3) > 0)[:, None]
    hyper = {"inner_steps": 2, "inner_lr": 0.1, "rpo_gamma": 0.5, "rpo_tail": 0.5}
    hyper |= {"input_scale": 1.0, "signed": True}
    out = ref.mrm_meta(chosen, rejected, support, query, layers, start, hyper)
    np.testing.assert_array_equal(out["adapted_train"][0], start)
    margin = (chosen[0] - rejected[0]) @ layers[0][0] @ start
    np.testing.assert_allclose(out["losses"][0], np.log1p(np.exp(-margin)).mean())
    assert not np.allclose(out["adapted_train"][1], start)


def test_rpo():
    losses = np.random.default_rng(4).random(11)
    for tail in (0.0, 0.25, 0.5, 1.0):
        tau = np.quantile(losses, 1 - tail)
        soft = np.sum(losses / (1 + np.exp(-(losses - tau) / 0.3)))
        np.testing.assert_allclose(ref.rpo(losses, tail, 0.3), soft)
        np.testing.assert_allclose(ref.rpo(losses, tail, 0.0), losses[losses > tau].sum())
    np.testing.assert_allclose(ref.rpo([0.7], 0.5, 0.5), 0.35)


# Hierarchical Bradley-Terry.


def test_most_probable_weights_are_stationary():
    rng = np.random.default_rng(5)
    mean, cov = prior(rng, 4)
    differences, weights = rng.standard_normal((9, 4)), rng.random(9)
    precision = np.linalg.inv(cov)

    def negative(theta):
        fit = np.sum(weights * np.log1p(np.exp(-(differences @ theta))))
        return fit + (theta - mean) @ precision @ (theta - mean) / 2

    theta = ref.most_probable(mean, cov, differences, weights)
    np.testing.assert_allclose(slopes(negative, theta), 0, atol=1e-8)
    other = scipy.optimize.minimize(negative, np.zeros(4), method="BFGS", options={"gtol": 1e-6}).x
    np.testing.assert_allclose(theta, other, atol=1e-5)


@pytest.mark.parametrize("deviation", [0.3, 1.0, 6.0, 15.0])
@pytest.mark.parametrize("mean", [-9.0, -1.0, 0.0, 4.0])
def test_tilted_moments_against_adaptive_integration(mean, deviation):
    def density(x, power):
        inner = -((x - mean) ** 2) / (2 * deviation**2) - np.logaddexp(0, -x)
        return x**power * np.exp(inner) / np.sqrt(2 * np.pi) / deviation

    low, high = mean - 14 * deviation, mean + 14 * deviation + deviation**2
    options = {"points": [0.0, mean, mean + deviation**2], "epsabs": 0, "limit": 500}
    mass, first, second = (
        scipy.integrate.quad(density, low, high, args=(power,), **options)[0] for power in range(3)
    )
    found = ref.tilted_moments(mean, deviation**2)
    expected = np.log(mass), first / mass, second / mass - (first / mass) ** 2
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("name", "off"), [("sd1", (0.005, 0.05)), ("sd4", (0.025, 0.25))])
def test_posterior_is_near_dense_quadrature(name, off):
    exact = golden(f"bayes/{name}")
    population = exact["prior_mean"], exact["prior_cov"]
    for user in range(len(exact["mask"])):
        choices = exact["differences"][user], exact["mask"][user].astype(float)
        mean, cov = ref.posterior(*population, *choices)
        spread = np.sqrt(np.diag(exact["posterior_cov"][user]))
        assert np.max(np.abs(mean - exact["posterior_mean"][user]) / spread) < off[0]
        size = np.linalg.norm(exact["posterior_cov"][user])
        assert np.linalg.norm(cov - exact["posterior_cov"][user]) / size < off[1]


def test_posterior_with_singular_covariance():
    rng = np.random.default_rng(6)
    mean, full = prior(rng, 5)
    differences, weights = rng.standard_normal((8, 5)), np.ones(8)
    low = ref.truncate(full, 2)
    theta, cov = ref.posterior(mean, low, differences, weights)
    near, near_cov = ref.posterior(mean, low + 1e-9 * np.eye(5), differences, weights)
    np.testing.assert_allclose(theta, near, atol=1e-7)
    np.testing.assert_allclose(cov, near_cov, atol=1e-7)
    outside = np.linalg.svd(low)[0][:, 2:]
    np.testing.assert_allclose(outside.T @ (theta - mean), 0, atol=1e-13)
    np.testing.assert_allclose(cov @ outside, 0, atol=1e-13)
    assert np.linalg.norm(theta - mean) > 0.1
    nothing, zero = ref.posterior(mean, np.zeros((5, 5)), differences, weights)
    np.testing.assert_array_equal(nothing, mean)
    np.testing.assert_array_equal(zero, np.zeros((5, 5)))


def test_posterior_with_padding_ties_and_no_choices():
    rng = np.random.default_rng(7)
    mean, cov = prior(rng, 3)
    differences = rng.standard_normal((4, 3))
    whole = ref.posterior(mean, cov, differences[:2], np.ones(2))
    junk = ref.posterior(mean, cov, differences, np.array([1.0, 1.0, 0.0, 0.0]))
    empty = ref.posterior(mean, cov, differences, np.zeros(4))
    for ours, expected in zip((*junk, *empty), (*whole, mean, cov), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-12)
    # Half of a tie each way is as good as exact: quadrature in the tie's own direction.
    tie = 2 * np.stack([differences[0], -differences[0]])
    theta, tie_cov = ref.posterior(np.zeros(3), cov, tie, np.array([0.5, 0.5]))
    np.testing.assert_allclose(theta, 0, atol=1e-12)
    pull = cov @ tie[0]
    variance = tie[0] @ pull
    x = np.linspace(-12, 12, 20001) * np.sqrt(variance)
    density = np.exp(-x * x / (2 * variance)) / np.cosh(x / 2)
    ratio = density @ x**2 / density.sum() / variance
    expected = cov - np.outer(pull, pull) * (1 - ratio) / variance
    np.testing.assert_allclose(tie_cov, expected, rtol=5e-3)


def test_most_probable_weights_where_undamped_newton_fails():
    rng = np.random.default_rng(8)
    mean, cov = prior(rng, 3, scale=1e3)
    differences = 20 * rng.standard_normal((30, 3))
    theta = ref.most_probable(30 * mean, cov, differences, np.ones(30))
    pull = differences.T @ (1 - ref.sigmoid(differences @ theta))
    np.testing.assert_allclose(np.linalg.solve(cov, theta - 30 * mean), pull, atol=1e-9)
    with pytest.raises(ValueError, match="semidefinite"):
        ref.posterior(mean, -cov, differences, np.ones(30))


def test_em_raises_the_evidence_and_nears_the_truth():
    mean, cov = np.array([1.0, -0.5, 0.0]), np.diag([1.0, 0.3, 0.05])
    differences, masks = simulate.bayes_users(np.random.default_rng(9), 30, 10, 3, mean, cov)
    weights = masks.astype(float)
    estimate = np.zeros(3), 4.0 * np.eye(3)
    values = [ref.evidence(*estimate, differences, weights)]
    for _ in range(3):
        estimate = ref.em_step(*estimate, differences, weights)
        values.append(ref.evidence(*estimate, differences, weights))
    assert np.all(np.diff(values) > 0)
    assert np.linalg.norm(estimate[0] - mean) < 0.8 * np.linalg.norm(mean)
    assert np.all(np.diff(np.diag(estimate[1])) < 0)


def test_evidence_against_quadrature_in_one_dimension():
    rng = np.random.default_rng(10)
    differences = 0.5 * rng.standard_normal((3, 6, 1))
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(80)
    theta = 0.4 + np.sqrt(0.7) * nodes
    exact = 0.0
    for d in differences:
        likelihood = ref.sigmoid(theta[:, None] * d[:, 0]).prod(1)
        exact += np.log(likelihood @ node_weights / np.sqrt(2 * np.pi))
    ours = ref.evidence(np.array([0.4]), np.array([[0.7]]), differences, np.ones((3, 6)))
    np.testing.assert_allclose(ours, exact, atol=1e-4)


def test_em_step_by_hand_and_without_data():
    rng = np.random.default_rng(11)
    mean, cov = prior(rng, 3)
    differences, masks = simulate.bayes_users(rng, 6, 5, 3, mean, cov)
    for ours, expected in zip(
        ref.em_step(mean, cov, differences, 0.0 * masks), (mean, cov), strict=True
    ):
        np.testing.assert_allclose(ours, expected, atol=1e-12)
    new_mean, new_cov = ref.em_step(mean, cov, differences, 1.0 * masks)
    each = [
        ref.posterior(mean, cov, d[m], np.ones(m.sum()))
        for d, m in zip(differences, masks, strict=True)
    ]
    maps = np.stack([m for m, _ in each])
    np.testing.assert_allclose(new_mean, maps.mean(0), atol=1e-12)
    expected = np.mean([c for _, c in each], 0) + np.cov(maps.T, bias=True)
    np.testing.assert_allclose(new_cov, expected, atol=1e-12)


def test_truncate():
    _, cov = prior(np.random.default_rng(12), 6)
    for rank in range(7):
        low = ref.truncate(cov, rank)
        assert np.linalg.matrix_rank(low) == rank
        u, s, vt = np.linalg.svd(cov)
        np.testing.assert_allclose(low, (u[:, :rank] * s[:rank]) @ vt[:rank], atol=1e-12)
    np.testing.assert_allclose(ref.truncate(cov, 9), cov, atol=1e-12)


def test_predictions():
    rng = np.random.default_rng(13)
    mean, cov = prior(rng, 4)
    questions = rng.standard_normal((5, 4))
    exact = ref.predict_quadrature(mean, cov, questions)
    draws = simulate.tastes(rng, 400_000, mean, cov)
    sampled = ref.sigmoid(draws @ questions.T)
    error = sampled.std(0) / np.sqrt(len(draws))
    assert np.all(np.abs(sampled.mean(0) - exact) < 4 * error)
    np.testing.assert_allclose(ref.predict_quadrature(mean, cov, -questions), 1 - exact, atol=1e-12)
    certain = ref.predict_quadrature(mean, 0 * cov, questions)
    np.testing.assert_allclose(certain, ref.sigmoid(questions @ mean), atol=1e-12)


@pytest.mark.parametrize(
    ("deviation", "atol"), [(0.5, 1e-12), (3.0, 1e-12), (6.0, 1e-12), (10, 1e-7)]
)
def test_quadrature_against_adaptive_integration(deviation, atol):
    def integrand(z):
        return ref.sigmoid(0.8 + deviation * z) * np.exp(-z * z / 2) / np.sqrt(2 * np.pi)

    points = [-0.8 / deviation]
    exact = scipy.integrate.quad(integrand, -12, 12, points=points, epsabs=1e-14, limit=400)[0]
    ours = ref.predict_quadrature(np.array([0.8]), np.array([[deviation**2]]), np.ones((1, 1)))
    np.testing.assert_allclose(ours, exact, atol=atol)


def test_bradley_terry():
    rng = np.random.default_rng(14)
    differences, weights = rng.standard_normal((50, 4)), rng.random(50)
    theta = ref.bradley_terry(differences, weights, 0.01)

    def objective(x):
        losses = np.log1p(np.exp(-(differences @ x)))
        return np.average(losses, weights=weights) + 0.005 * x @ x

    np.testing.assert_allclose(slopes(objective, theta), 0, atol=1e-9)
    np.testing.assert_allclose(ref.bradley_terry(differences, 7 * weights, 0.01), theta, atol=1e-9)
    # The most probable one under a prior of mean zero and precision l2 times the sum of weights.
    cov = np.eye(4) / (0.01 * weights.sum())
    np.testing.assert_allclose(
        ref.most_probable(np.zeros(4), cov, differences, weights), theta, atol=1e-8
    )


# The simulator.


def test_simulated_users():
    mean, cov = np.array([1.0, -0.5]), np.array([[1.0, 1.0], [1.0, 1.0]])
    differences, masks = simulate.bayes_users(np.random.default_rng(15), 3000, 12, 2, mean, cov)
    assert differences.shape == (3000, 12, 2)
    assert masks.shape == (3000, 12)
    counts = masks.sum(1)
    assert set(counts) == set(range(1, 13))
    assert np.all(differences[~masks] == 0)
    np.testing.assert_array_equal(masks, np.arange(12) < counts[:, None])
    theta = simulate.tastes(np.random.default_rng(15), 3000, mean, cov)
    np.testing.assert_allclose(theta.mean(0), mean, atol=0.1)
    np.testing.assert_allclose(np.cov(theta.T), cov, atol=0.15)
    # Given |margin|, the chosen side has the larger reward with probability sigmoid(|margin|).
    margin = np.einsum("upe,ue->up", differences, theta)[masks]
    expected = ref.sigmoid(np.abs(margin))
    deviation = np.sqrt(np.sum(expected * (1 - expected)))
    assert abs(np.sum(margin > 0) - expected.sum()) < 4 * deviation
