"""Fisher information of the simulated feedback, from which numbers of choices are taken."""

import numpy as np
import pytest

from benchmarks import mrm_feedback


def test_one_edge_has_the_information_of_a_choice():
    margin = np.array([-2.0, 0.0, 1.3])
    chance = 1 / (1 + np.exp(-margin))
    found = mrm_feedback._information(margin, np.zeros(1))
    np.testing.assert_allclose(found, chance * (1 - chance), rtol=1e-12)
    finer = mrm_feedback._information(margin, np.array([-1.0, 0.0, 1.0]))
    assert (finer > found).all()
    # An infinitely fine scale has the information of the logistic itself, 1/3.
    finest = mrm_feedback._information(np.zeros(1), np.linspace(-20, 20, 4001))
    assert finest[0] == pytest.approx(1 / 3, abs=1e-4)
