"""Metrics of distributions over labels, against scikit-learn-like counts by hand."""

import numpy as np
import pytest
from scipy.special import log_softmax

from jaxalign.errors import InputError
from jaxalign.metrics.labels import label_calibration_error, macro_f1, score_labels

RNG = np.random.default_rng(0)
TABLE = log_softmax(RNG.normal(size=(200, 5)), axis=1)
RIGHT = RNG.integers(0, 5, 200)
VALUES = np.array([1.0, 2.0, 3.0, 4.0, 7.0])


def test_each_estimate_has_the_least_expected_error():
    found = score_labels(TABLE, RIGHT, VALUES)
    chances = np.exp(TABLE)
    distances = np.abs(VALUES[None, :] - VALUES[:, None])
    np.testing.assert_array_equal(found.median, (chances @ distances).argmin(axis=1))
    np.testing.assert_array_equal(found.likeliest, chances.argmax(axis=1))
    np.testing.assert_allclose(found.mean, (chances * VALUES).sum(axis=1))
    np.testing.assert_allclose(found.loss, [-TABLE[n, g] for n, g in enumerate(RIGHT)])
    np.testing.assert_allclose(found.distance, np.abs(VALUES[found.median] - VALUES[RIGHT]))
    np.testing.assert_allclose(found.squared, (found.mean - VALUES[RIGHT]) ** 2)


def test_choices_have_no_distances():
    found = score_labels(TABLE, RIGHT, None)
    assert (found.mean, found.distance, found.squared) == (None, None, None)


def test_macro_f1_is_the_mean_over_labels():
    found = TABLE.argmax(axis=1)
    expected = []
    for label in range(6):  # the last one occurs nowhere
        hits = ((found == label) & (label == RIGHT)).sum()
        said, true = (found == label).sum(), (label == RIGHT).sum()
        expected.append(2 * hits / (said + true) if said + true else 0)
    assert macro_f1(found, RIGHT, 6) == pytest.approx(np.mean(expected))


def test_calibration_is_exact_where_chances_are_met():
    table = np.log(np.tile([[0.75, 0.25]], (4, 1)))
    assert label_calibration_error(table, [0, 0, 0, 1]) == pytest.approx(0)
    assert label_calibration_error(table, [0, 0, 0, 0]) == pytest.approx(0.25)


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(InputError, match="expected \\[N, K\\] and"):
        score_labels(TABLE, RIGHT[:5], None)
    with pytest.raises(InputError, match="labels outside 0 to 4"):
        score_labels(TABLE, np.full(200, 5), None)
    with pytest.raises(InputError, match="not finite"):
        score_labels(np.full((1, 2), np.nan), [0], None)
