"""Tilted moments of an ordered logit against quadrature in float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_expit

from jaxalign.mrm import ep
from jaxalign.mrm.logistic_normal import tilt_by_choice
from jaxalign.mrm.ordered import tilt_by_band

INF = np.inf
tilt = jax.jit(tilt_by_band)


def mass(*band):
    """Probability of a level, the margin integrated out."""
    return jnp.exp(tilt_by_band(*band).log_mass)


def by_quadrature(mean, variance, lower, upper):
    """Log mass and its two derivatives in the mean, of one band, on a fine grid."""
    # sigmoid(x - l) - sigmoid(x - u) = sigmoid(x - l) sigmoid(u - x) (1 - exp(l - u)).
    spread = np.sqrt(variance)
    x = mean + spread * np.linspace(-40, 40, 400_001)
    log = log_expit(x - lower) if np.isfinite(lower) else np.zeros_like(x)
    if np.isfinite(upper):
        log = log + log_expit(upper - x)
    if np.isfinite(lower) and np.isfinite(upper):
        log = log + np.log(-np.expm1(lower - upper))
    log = log - 0.5 * ((x - mean) / spread) ** 2
    top = log.max()
    weight = np.exp(log - top)
    total = weight.sum()
    step = (x[1] - x[0]) / (spread * np.sqrt(2 * np.pi))
    tilted = (weight * x).sum() / total
    second = (weight * (x - tilted) ** 2).sum() / total
    gradient = (tilted - mean) / variance
    return top + np.log(total * step), gradient, (second - variance) / variance**2


@pytest.mark.parametrize(
    ("lower", "upper"), [(0.0, INF), (-INF, 0.7), (-0.4, 0.4), (1.0, 2.5), (-6.0, -5.9)]
)
@pytest.mark.parametrize("mean", [-12.0, -1.3, 0.2, 4.0, 20.0])
@pytest.mark.parametrize("variance", [0.05, 1.0, 9.0])
def test_a_band_has_the_moments_of_quadrature(x64, lower, upper, mean, variance):
    found = tilt(*map(jnp.float64, (mean, variance, lower, upper)))
    expected = by_quadrature(mean, variance, lower, upper)
    # The mixture of probits is true to 2e-9, and a difference of two has that beside its width.
    chex.assert_trees_all_close(tuple(map(float, found)), expected, atol=3e-6, rtol=3e-6)


def test_the_band_above_zero_is_a_choice():
    mean, variance = jnp.linspace(-30, 30, 13), jnp.full(13, 2.0)
    found = tilt(mean, variance, jnp.zeros(13), jnp.full(13, INF))
    chex.assert_trees_all_close(found, tilt_by_choice(mean, variance), rtol=1e-6, atol=1e-7)


def test_levels_sum_to_one_and_mirror_images_are_as_probable():
    thresholds = np.array([-INF, -2.0, -0.3, 0.3, 1.5, INF], np.float32)
    mean, variance = jnp.float32(0.8), jnp.full(5, 3.0)
    levels = mass(jnp.full(5, mean), variance, thresholds[:-1], thresholds[1:])
    assert float(jnp.sum(levels)) == pytest.approx(1, abs=1e-6)
    mirrored = mass(jnp.full(5, -mean), variance, -thresholds[1:], -thresholds[:-1])
    chex.assert_trees_all_close(levels, mirrored, rtol=1e-6)
    certain = mass(mean, jnp.float32(0), thresholds[2], thresholds[3])
    assert float(certain) == pytest.approx(expit(1.1) - expit(0.5), abs=1e-6)


def test_float32_stays_finite_where_a_level_is_out_of_reach():
    mean = jnp.array([-1e4, -60.0, 60.0, 1e4])
    found = tilt(mean, jnp.full(4, 0.5), jnp.full(4, -0.5), jnp.full(4, 0.5))
    assert all(bool(jnp.isfinite(part).all()) for part in found)
    assert bool((found.curvature <= 0).all())


def test_sites_that_wait_for_a_number_depend_on_it_in_both_parts():
    """What LAPACK factors depends on the precision alone, what follows on the shift."""
    sites = ep.Sites(jnp.ones(2), jnp.ones(2))
    chex.assert_trees_all_equal(ep.after_others(sites, jnp.float32(3.0)), sites)
    waited = ep.after_others(sites, jnp.float32(np.nan))
    assert all(bool(jnp.isnan(part).all()) for part in waited)
