"""Hierarchical Bayes where the truth is known: estimates, likelihood and intervals by value."""

import numpy as np
import pytest
from scipy.special import expit, ndtr

from benchmarks import mrm_calibration
from jaxalign.mrm.logistic_normal import SCALES, SHARES, choice_mass, tilt_by_choice

WORLDS = [world for world in mrm_calibration.WORLDS if world[1] <= 8]


def test_a_population_is_found_and_its_users_are_as_sure_as_they_should_be():
    row = mrm_calibration.judged(("E 5, sd 2", 5, 2, 20, "flat", 0), 0, 600, 300)
    assert row["variance"] == pytest.approx(1, abs=0.15)
    assert row["mean"] == pytest.approx(1, abs=0.15)
    assert abs(row["excess_nll"]) < 0.004
    for name in ("cover_weights", "cover_margins"):
        assert all(0.92 < share < 0.98 for share in row[name].values()), row[name]


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS[:8], ids=[world[0] for world in WORLDS[:8]])
def test_populations_of_every_size_of_logits(world):
    row = mrm_calibration.judged(world, 0, 1500, 1000)
    assert row["variance"] == pytest.approx(1, abs=0.1)
    assert row["mean"] == pytest.approx(1, abs=0.1)
    assert row["excess_nll"] < 0.002
    for name in ("cover_weights", "cover_margins"):
        # Of 5,000 weights or more, a share is known to 0.0036.
        assert all(0.9264 < share < 0.9736 for share in row[name].values()), row[name]


def test_the_mixture_of_probits_is_the_logistic_function():
    x = np.linspace(-60, 60, 200_001)
    assert np.abs(ndtr(SCALES * x[:, None]) @ SHARES - expit(x)).max() < 2.2e-9
    assert SHARES.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("variance", [1e-4, 0.3, 4.0, 64.0, 900.0])
@pytest.mark.parametrize("mean", [-60.0, -9.0, -1.0, 0.0, 4.0, 30.0])
def test_moments_of_a_choice_are_quadrature_far_into_the_tails(mean, variance, x64):
    """The error is relative: what is improbable is told as well."""
    deviation = np.sqrt(variance)
    x = np.linspace(
        mean - 14 * deviation,
        mean + variance * expit(-mean - variance / 2) + 14 * deviation,
        400_001,
    )
    inner = -((x - mean) ** 2) / (2 * variance) - np.logaddexp(0, -x)
    density = np.exp(inner - inner.max())
    mass = density.sum()
    first = density @ x / mass
    second = density @ (x - first) ** 2 / mass
    log_mass = inner.max() + np.log(mass * (x[1] - x[0])) - 0.5 * np.log(2 * np.pi * variance)
    found = tilt_by_choice(np.float64(mean), np.float64(variance))
    assert float(found.log_mass) == pytest.approx(log_mass, abs=2e-6)
    tilted_mean = float(mean + variance * found.gradient)
    assert tilted_mean == pytest.approx(first, abs=1e-4 * deviation)
    left = 1 + variance * float(found.curvature)
    assert left == pytest.approx(second / variance, rel=1e-4)
    assert float(choice_mass(np.float64(mean), np.float64(variance))) == pytest.approx(
        np.exp(log_mass), rel=1e-5
    )
