"""The report of a run: report.json, a table, plots."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.experiments.mrm.statistics import NewUsers
from jaxalign.files import write_json, write_text
from jaxalign.metrics import plots, table, users


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


def write(out: Path, report: dict[str, Any], new_users: NewUsers) -> None:
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
