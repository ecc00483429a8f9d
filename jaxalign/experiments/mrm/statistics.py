"""The numbers of a run's report: every method in every regime against one model for all."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from jaxalign.experiments.mrm.adaptation import Decision
from jaxalign.experiments.mrm.config import GLOBAL_MODELS, MRMRunConfig, method_of
from jaxalign.experiments.mrm.data import ExperimentData
from jaxalign.experiments.mrm.fits import FittedMethod
from jaxalign.experiments.mrm.folds import JudgedRegime, Predictions
from jaxalign.experiments.mrm.gates import gate_figures
from jaxalign.metrics import users
from jaxalign.mrm.registry import Candidate
from jaxalign.mrm.support_query import SupportQueryData
from jaxalign.version import __version__

Report = dict[str, Any]
"""What report.json holds, keyed `<regime>.<method>.<figure>`."""


@dataclass(frozen=True)
class NewUsers:
    """All that the new-user regime gives.

    Attributes:
        fits: name -> fit with its chosen candidates; "bt" is among them.
        test: the test users' choices.
        dropped: {"validation": n, "test": n} users with too few choices.
        selected: name of the method to save.
        predictions: for the test users, by name.
        curves: name -> (shots -> probabilities).
        controls: name -> predictions from swapped support choices, and from another user's.
        ceiling: predictions of `bayes` from all the choices that a test user has on the support
            side, and how many that is on average; None without `bayes`.
        decisions: name -> whether the method adapts, and why.
        through: name of a method that adapts -> form of its gate -> [S, U] whom it adapts to.
    """

    fits: dict[str, FittedMethod]
    test: SupportQueryData
    dropped: dict[str, int]
    selected: str
    predictions: Predictions
    curves: dict[str, dict[int, np.ndarray]]
    controls: Predictions
    ceiling: tuple[np.ndarray, float] | None
    decisions: dict[str, Decision]
    through: dict[str, dict[str, np.ndarray]]


def _plain(value: object) -> Any:
    """JSON without NaN: what could not be measured is null."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value


def selected_method(config: MRMRunConfig, losses: dict[str, float]) -> str:
    """Return the method to save: the config's, or the one with the least validation loss.

    Args:
        config: of the run.
        losses: name of a method -> validation loss; those that score known items alone are left
            out.
    """
    if config.select != "validation":
        return config.select
    able = {n: v for n, v in losses.items() if "new_items" in method_of(config, n).capabilities}
    return min(able, key=lambda name: able[name])


def _described(fit: FittedMethod) -> list[Candidate]:
    """Chosen candidates in terms that mean something outside the run, one per fit."""
    return [fit.method.describe(*one) for one in zip(fit.fitted, fit.candidates, strict=True)]


def _decided(new_users: NewUsers, name: str) -> dict[str, object]:
    """What the test of a method's adaptation saw, and the levels of its gates, one per fit."""
    decision, fit = new_users.decisions[name], new_users.fits[name]
    found = {} if decision.test is None else decision.test._asdict()
    found |= {"adapts": decision.adapts, "tested_on": decision.tested_on}
    if not decision.adapts:
        return {**found, "gates": []}
    gates = [asdict(gate) for gate in fit.gates]
    chosen = {"gates": gates, "gates_chosen_on": fit.gated_on}
    return {**found, "harmed_on_validation": fit.harmed, **chosen}


def _judge(
    predictions: Predictions,
    mask: np.ndarray,
    chosen: np.ndarray,
    rejected: np.ndarray,
    draws: int,
) -> dict[str, dict[str, float]]:
    plain, best = (_one_fit(predictions[name][0], mask) for name in GLOBAL_MODELS)
    judged = {}
    for name, (adapted, unadapted) in predictions.items():
        judged[name] = users.judge(
            adapted, unadapted, plain, mask, chosen=chosen, rejected=rejected, draws=draws
        )
        judged[name] |= _gain("gain_best", adapted, best, mask, draws)
    return judged


def _one_fit(probability: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return [U, Q] of the first fit of [U, Q] or [S, U, Q]."""
    return probability.reshape(-1, *mask.shape)[0]


def _gain(
    name: str, probability: np.ndarray, baseline: np.ndarray, mask: np.ndarray, draws: int
) -> dict[str, float]:
    """Return the gain in accuracy over a baseline [U, Q], with its 95 % interval over users."""
    found = users.paired_bootstrap(0, probability, baseline, mask, draws=draws)
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}


def _controls(new_users: NewUsers, mask: np.ndarray, draws: int) -> dict[str, dict[str, float]]:
    """Return, for each method, figures of its predictions from support choices that are wrong.

    "swap_flipped" is the share of predictions that flip when every support choice is made the other
    way round, "gain_other" the gain over `bt` with the support choices of another user.
    """
    plain = _one_fit(new_users.predictions["bt"][0], mask)
    return {
        name: {"swap_flipped": users.flipped(swapped, new_users.predictions[name][0], mask)}
        | _gain("gain_other", other, plain, mask, draws)
        for name, (swapped, other) in new_users.controls.items()
    }


def assemble(
    config: MRMRunConfig,
    data: ExperimentData,
    new_users: NewUsers,
    folds: dict[str, JudgedRegime],
) -> Report:
    """Every figure of the run, keyed `<regime>.<method>.<figure>`.

    Args:
        config: of the run.
        data: its data.
        new_users: predictions on known items.
        folds: predictions on held-out items, pooled over folds; empty without folds.
    """
    query = new_users.test.query.padded
    mask, items = query.weight > 0, (query.chosen, query.rejected)
    report: Report = {
        "format": 1,
        "version": __version__,
        "source": data.choices.source,
        "notes": list(data.choices.notes),
        "seeds": config.seeds,
        "select": config.select,
        "selected": {"new_users": new_users.selected},
        "settings": {name: _described(fit) for name, fit in new_users.fits.items()},
        "validation_nll": {name: fit.loss for name, fit in new_users.fits.items()},
        "adaptation_settings": asdict(config.adaptation),
        "adaptation": {n: _decided(new_users, n) for n in new_users.decisions},
        "users": {
            "train": len(data.split.train),
            "validation": len(data.split.validation) - new_users.dropped["validation"],
            "test": int(mask.any(1).sum()),
            "dropped": new_users.dropped,
        },
        "new_users": _judge(new_users.predictions, mask, *items, config.draws),
    }
    for name, figures in _controls(new_users, mask, config.draws).items():
        report["new_users"][name] |= figures
    baseline = _one_fit(new_users.predictions["bt"][0], mask)
    for name, through in new_users.through.items():
        figures = gate_figures(new_users.predictions[name], baseline, mask, through)
        report["new_users"][name] |= figures
    for where, part in folds.items():
        report[where] = _judge(
            part.predictions, part.mask, part.chosen, part.rejected, config.draws
        )
        report["selected"][where] = selected_method(config, part.losses)
    report["shots"] = _shots(new_users, mask, config)
    if new_users.ceiling is not None:
        probability, shots = new_users.ceiling
        report["ceiling"] = {"accuracy": users.accuracy(probability, mask), "choices": shots}
    return _plain(report)


def _shots(
    new_users: NewUsers, mask: np.ndarray, config: MRMRunConfig
) -> dict[str, list[list[float]]]:
    baseline = new_users.predictions["bt"][0][0]
    floor = users.accuracy(baseline, mask)
    shots: dict[str, list[list[float]]] = {}
    for name, curve in new_users.curves.items():
        shots[name] = []
        for count, probability in curve.items():
            interval = users.paired_bootstrap(0, probability, baseline, mask, draws=config.draws)
            accuracy = floor + interval.mean
            low, high = floor + interval.low, floor + interval.high
            shots[name].append([count, accuracy, low, high])
    return shots
