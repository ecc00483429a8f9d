"""The report of a run for people: a page with tables, and plots."""

from pathlib import Path

import numpy as np

from jaxalign.experiments.mrm import plots
from jaxalign.experiments.mrm.statistics import NewUsers, Report
from jaxalign.experiments.mrm.tables import adaptation_table, gate_table, markdown_tables
from jaxalign.files import write_text
from jaxalign.metrics import users
from jaxalign.progress import counted


def markdown(report: Report) -> str:
    """Return the report in Markdown."""
    by = "Validation chose" if report["select"] == "validation" else "The settings chose"
    chosen = ", ".join(f"{where}: {name}" for where, name in report["selected"].items())
    people = report["users"]
    ceiling: list[str] = []
    if "ceiling" in report:
        top = report["ceiling"]
        ceiling = [
            f"Ceiling: `bayes` reaches {top['accuracy']:.1%} on known items from all choices "
            f"that a test user has, {top['choices']:.0f} choices on average.",
            "",
        ]
    lines = [
        f"# User reward models on {Path(report['source']).name}",
        "",
        f"{counted(people['train'], 'training user')}, "
        f"{counted(people['validation'], 'validation user')}, "
        f"{counted(people['test'], 'test user')}; {counted(report['seeds'], 'seed')}. "
        "Users dropped because they have too few choices: "
        f"{people['dropped']['validation']} validation, {people['dropped']['test']} test.",
        "",
        f"**{by}** {chosen}.",
        "",
        "Gain is over one Bradley-Terry model for all, in points of mean user accuracy, with the "
        "95 % interval of a paired bootstrap over users. `item_ids`, a control, reads no text.",
        "",
        *ceiling,
        markdown_tables({r: report[r] for r in table_regimes(report)}),
        *_adaptation(report),
        "",
        "![gains](gains.png)",
        "![shots](shots.png)",
        "![users](user_gains.png)",
        "![reliability](reliability.png)",
    ]
    return "\n".join(lines) + "\n"


def _adaptation(report: Report) -> list[str]:
    """Lines on which methods adapt, and on what their gates do."""
    lines = [
        "",
        "**Whether to adapt.** A method adapts if a one-sided paired t-test over users says that "
        "its log-likelihood is better than without adaptation, or than that of one model for all "
        "where that is better.",
        "",
        adaptation_table(report["adaptation"]),
    ]
    table, settings = gate_table(report["new_users"]), report["adaptation_settings"]
    if not table:
        return lines
    return [
        *lines,
        f"**Whom to adapt to.** A gate is set where more than {settings['tolerated_harm']:.0%} of "
        "the validation users are predicted worse with adaptation. Users whose expected gain is "
        "then below a level are left alone: served the population's model. The gate sees their "
        "support choices, or the very pairs that are to be ranked, without labels. The level keeps "
        f"{settings['kept_gain']:.0%} of the gain in log-likelihood; where more than "
        f"{settings['most_harmed']:.0%} of the users may then be harmed, it is raised until the "
        "95 % limit of their share is that, as long as "
        f"{settings['least_kept_gain']:.0%} of the gain is kept. A random gate leaves as many "
        "alone.",
        "",
        table,
    ]


def table_regimes(report: Report) -> list[str]:
    """Return the regimes that the report has, in order."""
    return [r for r in ("new_users", "new_items", "new_users_new_items") if r in report]


def write_pages(out: Path, report: Report, new_users: NewUsers) -> None:
    """Write plots and report.md."""
    regimes = {r: report[r] for r in table_regimes(report)}
    mask = new_users.test.query.padded.weight > 0
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
