"""What gates do to test users: whom they leave alone, and what that is worth."""

import numpy as np

from jaxalign.experiments.mrm.adaptation import ReferencePairs
from jaxalign.experiments.mrm.fits import FittedMethod
from jaxalign.metrics import users
from jaxalign.metrics.harm import harmed_users
from jaxalign.mrm.adaptation import expected_gain, gated
from jaxalign.mrm.support_query import SupportQueryData

FORMS = ("support", "pairs")


def let_through(
    fit: FittedMethod,
    test: SupportQueryData,
    reference: ReferencePairs,
    predictions: tuple[np.ndarray, np.ndarray],
) -> dict[str, np.ndarray]:
    """Return [S, U] whom each fit's gate adapts to, for each of `FORMS`.

    Args:
        fit: with its gates.
        test: the users.
        reference: pairs that the support is judged on.
        predictions: [S, U, Q] with and without the support choices.
    """
    weight = np.asarray(test.query.padded.weight)
    expected = (reference.expected(fit, test), expected_gain(*predictions, weight))
    levels = ([getattr(gate, form) for gate in fit.gates] for form in FORMS)
    return {
        form: gain >= np.asarray(level)[:, None]
        for form, gain, level in zip(FORMS, expected, levels, strict=True)
    }


def gate_figures(
    predictions: tuple[np.ndarray, np.ndarray],
    baseline: np.ndarray,
    mask: np.ndarray,
    through: dict[str, np.ndarray],
) -> dict[str, float]:
    """Return the figures of a method behind each form of its gate, beside a random gate.

    The random gate leaves as many users alone. Its figures are expectations over all draws.

    Args:
        predictions: [S, U, Q] with and without the support choices.
        baseline: [U, Q] of one model for all users.
        mask: [U, Q] the pairs that are judged.
        through: form -> [S, U] whom the gate lets through.

    Returns:
        For each form `gate_<form>_left_alone`, `_gain`, `_harmed`, `_harm_floor`, `_harm_excess`,
        `_nll`, `_random_gain` and `_random_harmed`; shares are fractions.
    """
    adapted, unadapted = predictions
    judged = mask.any(-1)

    def gain(probability: np.ndarray) -> float:
        return users.accuracy(probability, mask) - users.accuracy(baseline, mask)

    def harm(probability: np.ndarray) -> float:
        return float(np.nanmean(harmed_users(probability, unadapted, mask)))

    with_it, without, all_harmed = gain(adapted), gain(unadapted), harm(adapted)
    figures: dict[str, float] = {}
    for form, kept in through.items():
        served = gated(adapted, unadapted, kept)
        alone = float(1 - kept[:, judged].mean())
        harmed, floor = harm(served), users.harm_floor(served, unadapted, mask)
        found = {
            "left_alone": alone,
            "gain": gain(served),
            "harmed": harmed,
            "harm_floor": floor,
            "harm_excess": harmed - floor,
            "nll": users.nll(served, mask),
            "random_gain": (1 - alone) * with_it + alone * without,
            "random_harmed": (1 - alone) * all_harmed,
        }
        figures |= {f"gate_{form}_{name}": value for name, value in found.items()}
    return figures
