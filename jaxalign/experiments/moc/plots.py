"""Plots of a report: the fronts of all policies, and preference against achieved reward."""

from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxalign.experiments.moc.statistics import MocEvaluationReport, PointReport
from jaxalign.metrics import pareto
from jaxalign.progress import counted
from jaxalign.runs.plots import escape, legend_below, new_figure, save_png, series_style, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANELS_PER_ROW, _LEGEND_COLUMNS = 3, 5


def plot_front(report: MocEvaluationReport, path: Path) -> None:
    """Draw the rewards that each policy achieves, one panel for each pair of rewards.

    With two rewards, the staircase of the points that no other dominates is drawn as well, and the
    corner that the hypervolume is measured from. Hollow marks are held-out preferences.

    Args:
        report: from `evaluation_report`.
        path: PNG file to write.
    """
    names = report["rewards"]
    pairs = list(combinations(range(len(names)), 2))
    across = min(len(pairs), _PANELS_PER_ROW)
    down = -(-len(pairs) // across)
    figure = new_figure(
        6.6 if across == 1 else 4.3 * across, (5.4 if across == 1 else 4.2) * down, dpi=130
    )
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for axes, (right, up) in zip(panels, pairs, strict=False):
        for place, (name, policy) in enumerate(report["policies"].items()):
            _points(axes, policy["points"], (right, up), place, name)
            if len(names) == 2:
                _staircase(axes, policy["points"], report["reference_point"], place)
        if len(names) == 2:
            axes.plot(*report["reference_point"], "+", color="0.3", markersize=10)
        axes.set_xlabel(f"{escape(names[right])} (level)")
        axes.set_ylabel(f"{escape(names[up])} (level)")
        tidy(axes)
    for axes in panels[len(pairs) :]:
        axes.set_visible(False)
    legend_below(figure, panels[0], min(len(report["policies"]), _LEGEND_COLUMNS))
    held = any(not point["seen"] for one in report["policies"].values() for point in one["points"])
    lines = [
        "Achieved rewards, one mark for each preference",
        f"mean of {counted(report['prompts'], 'prompt')} ± standard error",
    ]
    notes = [
        *(["hollow: held-out preferences"] if held else []),
        *(["+: reference point of hypervolume"] if len(names) == 2 else []),
    ]
    lines += ["; ".join(notes)] if notes else []
    figure.suptitle("\n".join(lines), fontsize=10)
    save_png(figure, path)


def plot_control(report: MocEvaluationReport, path: Path) -> None:
    """Draw the achieved level of each reward against its share in the preference.

    Args:
        report: from `evaluation_report`.
        path: PNG file to write.
    """
    names = report["rewards"]
    across = min(len(names), _PANELS_PER_ROW)
    down = -(-len(names) // across)
    figure = new_figure(4.3 * across, 4.2 * down, dpi=130)
    panels = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    for objective, axes in enumerate(panels[: len(names)]):
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, zorder=0)
        for place, (name, policy) in enumerate(report["policies"].items()):
            points = policy["points"]
            shares = np.array([point["preference"][objective] for point in points])
            achieved = np.array([point["achieved_rewards"][objective] for point in points])
            order = np.argsort(shares, kind="stable")
            if len(names) == 2 and len(shares) > 1:
                color = series_style(place)["color"]
                axes.plot(shares[order], achieved[order], color=color, linewidth=1)
            _marks(axes, (shares, achieved), points, place, name)
        axes.set_xlabel(f"share of {escape(names[objective])} in the preference")
        axes.set_ylabel("achieved level")
        axes.set_title(escape(names[objective]), fontsize=11)
        tidy(axes)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    legend_below(figure, panels[0], min(len(report["policies"]), _LEGEND_COLUMNS))
    figure.suptitle("Requested preference and achieved reward (grey: equal)", fontsize=11)
    save_png(figure, path)


def _points(
    axes: "Axes", points: list[PointReport], pair: tuple[int, int], place: int, name: str
) -> None:
    values = np.array([point["achieved_rewards"] for point in points])[:, pair].T
    errors = np.array([point["stderr"] for point in points])[:, pair].T
    axes.errorbar(
        values[0],
        values[1],
        xerr=errors[0],
        yerr=errors[1],
        fmt="none",
        ecolor=series_style(place)["color"],
        elinewidth=0.7,
        alpha=0.5,
    )
    _marks(axes, (values[0], values[1]), points, place, name)


def _marks(
    axes: "Axes",
    values: tuple[np.ndarray, np.ndarray],
    points: list[PointReport],
    place: int,
    name: str,
) -> None:
    """One mark a preference: filled where it was seen, hollow where it was held out."""
    style = series_style(place)
    # The first policy is what the report is about: baselines do not cover it.
    order = 3.5 if place == 0 else 3
    seen = np.array([point["seen"] for point in points])
    for shown, label, face, edge in (
        (seen, escape(name), style["color"], "white"),
        (~seen, None, "white", style["color"]),
    ):
        axes.plot(
            values[0][shown], values[1][shown], linestyle="", marker=style["marker"],
            color=style["color"], markersize=6.5, markerfacecolor=face, markeredgecolor=edge,
            markeredgewidth=1.0 if label else 1.5, label=label, zorder=order,
        )  # fmt: skip


def _staircase(axes: "Axes", points: list[PointReport], reference: list[float], place: int) -> None:
    """The edge of what the points dominate, down to the reference point."""
    achieved = np.array([point["achieved_rewards"] for point in points])
    front = achieved[pareto.nondominated(achieved) & (achieved > np.array(reference)[None]).all(1)]
    if not len(front):
        return
    front = front[np.argsort(front[:, 0])]
    right = np.concatenate([[reference[0]], np.repeat(front[:, 0], 2)])
    up = np.concatenate([np.repeat(front[:, 1], 2), [reference[1]]])
    axes.plot(right, up, color=series_style(place)["color"], linewidth=1, alpha=0.7)
