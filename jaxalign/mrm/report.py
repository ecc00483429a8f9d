"""The report of a run: report.json, a table, plots."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxalign.files import write_json, write_text
from jaxalign.metrics import plots, table, users
from jaxalign.mrm.config import RunConfig
from jaxalign.mrm.experiment import World
from jaxalign.mrm.fits import SELECTABLE, Fit
from jaxalign.version import __version__

if TYPE_CHECKING:
    from jaxalign.mrm.run import NewUsers


def _plain(value: Any) -> Any:
    """JSON without NaN: what could not be measured is null."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value


def _settings(fit: Fit) -> list[dict[str, Any]]:
    """Chosen settings in words that mean something outside the run."""
    described = []
    for fitted, setting in zip(fit.fitted, fit.settings, strict=True):
        plain = dict(setting)
        if "em" in plain:
            plain["em_step"] = int(fitted["step"][plain.pop("em")])
        described.append(plain)
    return described


def _judge(
    predictions: dict[str, tuple[np.ndarray, np.ndarray]],
    mask: np.ndarray,
    chosen: np.ndarray,
    rejected: np.ndarray,
    draws: int,
) -> dict[str, Any]:
    baseline = np.atleast_3d(predictions["bt"][0])
    baseline = baseline.reshape(-1, *mask.shape)[0]
    judged = {}
    for name, (adapted, unadapted) in predictions.items():
        judged[name] = users.judge(
            adapted, unadapted, baseline, mask, chosen=chosen, rejected=rejected, draws=draws
        )
    return judged


def assemble(
    config: RunConfig, world: World, new_users: "NewUsers", folds: dict[str, Any]
) -> dict[str, Any]:
    """Every figure of the run, keyed `<regime>.<method>.<figure>`.

    Args:
        config: of the run.
        world: its data.
        new_users: predictions on known items.
        folds: predictions on held-out items, pooled over folds; empty without folds.
    """
    query = new_users.test.query
    mask = np.asarray(query.weight) > 0
    items = (np.asarray(query.chosen), np.asarray(query.rejected))
    report: dict[str, Any] = {
        "format": 1,
        "version": __version__,
        "source": world.choices.source,
        "seeds": config.seeds,
        "selected": {"new_users": new_users.selected},
        "settings": {name: _settings(fit) for name, fit in new_users.fits.items()},
        "validation_nll": {name: fit.loss for name, fit in new_users.fits.items()},
        "users": {
            "train": len(world.split.train),
            "validation": len(world.split.validation) - new_users.dropped["validation"],
            "test": int(mask.any(1).sum()),
            "dropped": new_users.dropped,
        },
        "new_users": _judge(new_users.predictions, mask, *items, config.draws),
    }
    for where in ("new_items", "new_users_new_items"):
        if not folds:
            continue
        part = folds[where]
        report[where] = _judge(
            part["predictions"], part["mask"], part["chosen"], part["rejected"], config.draws
        )
        losses = {name: loss for name, loss in part["losses"].items() if name in SELECTABLE}
        report["selected"][where] = min(losses, key=lambda name: losses[name])
    report["shots"] = _shots(new_users, mask, config)
    if new_users.ceiling is not None:
        probability, shots = new_users.ceiling
        report["ceiling"] = {"accuracy": users.accuracy(probability, mask), "choices": shots}
    return _plain(report)


def _shots(new_users: "NewUsers", mask: np.ndarray, config: RunConfig) -> dict[str, Any]:
    baseline = new_users.predictions["bt"][0][0]
    floor = users.accuracy(baseline, mask)
    shots: dict[str, Any] = {}
    for name, curve in new_users.curves.items():
        shots[name] = []
        for count, probability in curve.items():
            interval = users.paired_bootstrap(0, probability, baseline, mask, draws=config.draws)
            accuracy = floor + interval.mean
            low, high = floor + interval.low, floor + interval.high
            shots[name].append([count, accuracy, low, high])
    return shots


def markdown(report: dict[str, Any]) -> str:
    """The report for people, in Markdown."""
    chosen = ", ".join(f"{where}: {name}" for where, name in report["selected"].items())
    people = report["users"]
    ceiling: list[str] = []
    if "ceiling" in report:
        top = report["ceiling"]
        ceiling = [
            f"Ceiling: `bayes` reaches {top['accuracy']:.1%} on known items from all that there is "
            f"of a test user, {top['choices']:.0f} choices on average.",
            "",
        ]
    lines = [
        f"# User reward models on {Path(report['source']).name}",
        "",
        f"{people['train']} training users, {people['validation']} validation users, "
        f"{people['test']} test users; {report['seeds']} seeds. "
        f"Users dropped for want of choices: {people['dropped']['validation']} validation, "
        f"{people['dropped']['test']} test.",
        "",
        f"**Validation chose** {chosen}.",
        "",
        "Gain is over one Bradley-Terry model for all, in points of mean user accuracy, with the "
        "95 % interval of a paired bootstrap over users. `item_ids`, a control, reads no text.",
        "",
        *ceiling,
        table.markdown_table({r: report[r] for r in table_regimes(report)}),
        "",
        "![gains](gains.png)",
        "![shots](shots.png)",
        "![users](user_gains.png)",
        "![reliability](reliability.png)",
    ]
    return "\n".join(lines) + "\n"


def table_regimes(report: dict[str, Any]) -> list[str]:
    """The regimes that the report has, in order."""
    return [r for r in ("new_users", "new_items", "new_users_new_items") if r in report]


def write(out: Path, report: dict[str, Any], new_users: "NewUsers") -> None:
    """Write plots, report.md and, last and so as proof of a whole run, report.json."""
    regimes = {r: report[r] for r in table_regimes(report)}
    mask = np.asarray(new_users.test.query.weight) > 0
    baseline = new_users.predictions["bt"][0]
    plots.plot_gains(regimes, out / "gains.png")
    curves = {name: [tuple(point) for point in points] for name, points in report["shots"].items()}
    plots.plot_shots(curves, out / "shots.png")
    gains = {
        name: users.user_gain(adapted, np.broadcast_to(baseline, adapted.shape), mask)
        for name, (adapted, _) in new_users.predictions.items()
        if name != "bt"
    }
    plots.plot_user_gains(
        {name: gain[np.isfinite(gain)] for name, gain in gains.items()}, out / "user_gains.png"
    )
    shown = {
        name: users.reliability(adapted, mask)
        for name, (adapted, _) in new_users.predictions.items()
    }
    plots.plot_reliability(shown, out / "reliability.png")
    write_text(out / "report.md", markdown(report))
    write_json(out / "report.json", report)
