"""MOC's rules of combination on two bandits with known fronts (see `benchmarks.bandits`).

All rules, with the similarity as a ratio and as a distance, then the default rule by the number of
rows that share a preference, with advantages whitened over the step as the trainer does.
"""

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import harness

RULES = ("linear", "minnorm", "two", "blend", "gate", "similarity")
FORMS = ("ratio", "distance")
COLOURS = {
    "linear": "#999999",
    "minnorm": "#000000",
    "two": "#E69F00",
    "blend": "#0072B2",
    "gate": "#009E73",
    "similarity": "#CC79A7",
}
MARKERS = dict(zip(RULES, "vXDosP", strict=True))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--actions", type=int, default=64, help="drawn a step, in all")
    parser.add_argument("--rows", nargs="*", type=int, default=[4, 8, 16, 32, 64], help="a group")


def run(arguments: argparse.Namespace) -> int:
    """Every rule and form on both bandits, then the default rule by rows of a group."""
    from benchmarks.bandits import BANDITS, RATE, attainable, figures, solve
    from jaxalign.metrics.pareto import hypervolume
    from jaxalign.moc.combination import CombineConfig

    console, start = Console(stderr=True, highlight=False), time.perf_counter()
    size = {"steps": arguments.steps, "seeds": arguments.seeds}
    rules, rows = [], []
    for bandit in BANDITS:
        for config in _configs():
            points = solve(bandit, config, rows=arguments.actions, **size)
            rules.append({"bandit": bandit, **asdict(config), **figures(bandit, points)})
            console.print(f"{bandit}, {config.rule}, {config.form}")
        for count in arguments.rows:
            for others in (False, True):
                groups = max(arguments.actions // count, 1)
                shape = {"rows": count, "groups": groups, "others": others, "whitened": True}
                points = solve(bandit, CombineConfig(), **shape, **size)
                rows.append({"bandit": bandit, **shape, **figures(bandit, points)})
                console.print(f"{bandit}, {groups} groups of {count}, others {others}")
    result = {
        "benchmark": "moc_bandits",
        "machine": harness.machine(),
        "units": "expected rewards at 11 preferences; hypervolume over (0, 0); slack: by how much "
        "both rewards could be raised at once, at the worst preference; mean and sd over seeds",
        "settings": {**size, "actions": arguments.actions, "rate": RATE},
        "attainable": {name: hypervolume(attainable(name), np.zeros(2)) for name in BANDITS},
        "rules": rules,
        "rows": rows,
        "seconds": time.perf_counter() - start,
    }
    text = _rule_table(rules) + "\n" + _row_table(rows)
    harness.write(arguments.out, result, text)
    _plot(rules, rows, arguments.out / "fronts.png")
    print(text)
    return 0


def _configs() -> list[Any]:
    """Every rule in every form; the linear one knows no similarity."""
    from jaxalign.moc.combination import CombineConfig

    return [
        CombineConfig(rule, form)
        for rule in RULES
        for form in FORMS[: 1 if rule == "linear" else 2]
    ]


def _rule_table(rules: list[dict[str, Any]]) -> str:
    header = ["bandit, rule, form", "MSE(R, p)", "hypervolume", "least", "corner error"]
    header += ["regret", "non-dominated", "slack", "at (.5, .5)"]
    lines = []
    for row in rules:
        form = "" if row["rule"] == "linear" else f", {row['form']}"
        middle = row["points"][5]
        lines.append([f"{row['bandit']}, {row['rule']}{form}", *_shown(row)])
        lines[-1].append(f"({middle[0]:.2f}, {middle[1]:.2f})")
    return harness.table(header, lines)


def _row_table(rows: list[dict[str, Any]]) -> str:
    header = ["bandit, groups x rows, slope at the mean of", "MSE(R, p)", "hypervolume", "least"]
    header += ["corner error", "regret", "non-dominated", "slack"]
    lines = [
        [
            f"{row['bandit']}, {row['groups']} x {row['rows']}, "
            f"{'the others' if row['others'] else 'all'}",
            *_shown(row),
        ]
        for row in rows
    ]
    return harness.table(header, lines)


def _shown(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['mse']['mean']:.4f}",
        f"{row['hypervolume']['mean']:.3f}",
        f"{row['hypervolume']['least']:.3f}",
        f"{row['corner_error']['mean']:.3f}",
        f"{row['regret']['mean']:.3f}",
        f"{row['nondominated']['mean']:.2f}",
        f"{row['slack']['mean']:.3f}",
    ]


def _plot(rules: list[dict[str, Any]], rows: list[dict[str, Any]], path: Path) -> None:
    """A line of panels a bandit: the fronts in either form, and what small groups cost."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bandits = list(dict.fromkeys(row["bandit"] for row in rules))
    figure = Figure(figsize=(14.5, 9.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for line, bandit in zip(figure.subplots(len(bandits), 3), bandits, strict=True):
        for axes, form in zip(line, FORMS, strict=False):
            shown = [row for row in rules if row["bandit"] == bandit]
            shown = [row for row in shown if row["form"] == form or row["rule"] == "linear"]
            _draw_fronts(axes, bandit, form, shown)
        _draw_rows(line[2], [row for row in rows if row["bandit"] == bandit])
    figure.suptitle("Expected rewards of one policy at 11 preferences, mean of the seeds")
    aside = path.with_name(f".{path.name}.part")
    figure.savefig(aside, format="png")
    aside.replace(path)


def _draw_fronts(axes: Any, bandit: str, form: str, rules: list[dict[str, Any]]) -> None:
    from benchmarks.bandits import attainable

    axes.plot(*attainable(bandit).T, color="0.8", linewidth=5, zorder=0, label="attainable")
    for row in rules:
        axes.plot(
            *np.asarray(row["points"]).T,
            color=COLOURS[row["rule"]],
            marker=MARKERS[row["rule"]],
            markersize=6,
            linewidth=1,
            alpha=0.85,
            label=f"{row['rule']}, {row['hypervolume']['mean']:.3f}",
        )
    words = {"ratio": "in ratio form", "distance": "as a distance"}
    axes.set_title(f"{bandit}: similarity {words[form]}", fontsize=11)
    axes.set(xlabel="wood", ylabel="fish", xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), aspect="equal")
    place = "upper right" if bandit == "segment" else "lower left"
    axes.legend(title="rule, hypervolume", frameon=False, fontsize=9, loc=place)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_rows(axes: Any, rows: list[dict[str, Any]]) -> None:
    for others, colour in ((False, "#D55E00"), (True, "#0072B2")):
        some = [row for row in rows if row["others"] is others]
        mean, sd = (np.array([row["hypervolume"][key] for row in some]) for key in ("mean", "sd"))
        axes.errorbar(
            range(len(some)),
            mean,
            yerr=sd,
            marker="o",
            color=colour,
            label=f"slope at the mean of {'the others' if others else 'all'}",
        )
    ticks = [f"{row['groups']} x {row['rows']}" for row in some]
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set(xlabel="groups x rows of a step", ylabel="hypervolume")
    axes.set_title(f"{rows[0]['bandit']}: blend in ratio form, whitened, by rows", fontsize=11)
    place = "lower right" if rows[0]["bandit"] == "segment" else "lower left"
    axes.legend(frameon=False, fontsize=9, loc=place)
    axes.spines[["top", "right"]].set_visible(False)
