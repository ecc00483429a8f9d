"""Pictures of a report: fronts beside each other, and what was told against what was reached."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxalign.metrics import pareto
from jaxalign.metrics.plots import blank, save_png

# Okabe and Ito's, told apart by colour-blind readers.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#888888")
_MARKERS = "osD^vPX*"
_PANELS_A_ROW = 3


def plot_front(report: dict[str, Any], path: Path) -> None:
    """Draw the rewards that each speaker reaches, a panel a pair of objectives.

    Of two objectives the staircase of the points that no other dominates is drawn with them, and
    the corner that hypervolume is measured from. Hollow marks are held-out preferences.

    Args:
        report: of `moc.report`.
        path: PNG file to write.
    """
    names = report["rewards"]
    pairs = list(combinations(range(len(names)), 2))
    across = min(len(pairs), _PANELS_A_ROW)
    down = -(-len(pairs) // across)
    figure = blank(
        6.6 if across == 1 else 4.3 * across, (5.4 if across == 1 else 4.2) * down, dpi=130
    )
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for axes, (right, up) in zip(panels, pairs, strict=False):
        for place, (name, speaker) in enumerate(report["speakers"].items()):
            _points(axes, speaker["points"], (right, up), place, name)
            if len(names) == 2:
                _staircase(axes, speaker["points"], report["reference_point"], place)
        if len(names) == 2:
            axes.plot(*report["reference_point"], "+", color="0.3", markersize=10)
        axes.set_xlabel(f"{names[right]} (level)")
        axes.set_ylabel(f"{names[up]} (level)")
        _tidy(axes)
    for axes in panels[len(pairs) :]:
        axes.set_visible(False)
    _legend(figure, panels[0], len(report["speakers"]))
    held = any(not point["seen"] for one in report["speakers"].values() for point in one["points"])
    lines = [
        "Rewards reached, a mark a preference",
        f"mean of {report['prompts']} prompts ± standard error",
    ]
    notes = [
        *(["hollow: held-out preferences"] if held else []),
        *(["+: reference point of hypervolume"] if len(names) == 2 else []),
    ]
    lines += ["; ".join(notes)] if notes else []
    figure.suptitle("\n".join(lines), fontsize=10)
    save_png(figure, path)


def plot_control(report: dict[str, Any], path: Path) -> None:
    """Draw the level reached of each objective against the share of it that was told.

    Args:
        report: of `moc.report`.
        path: PNG file to write.
    """
    names = report["rewards"]
    across = min(len(names), _PANELS_A_ROW)
    down = -(-len(names) // across)
    figure = blank(4.3 * across, 4.2 * down, dpi=130)
    panels = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    for objective, axes in enumerate(panels[: len(names)]):
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, zorder=0)
        for place, (name, speaker) in enumerate(report["speakers"].items()):
            told = np.array([point["told"][objective] for point in speaker["points"]])
            reached = np.array([point["reached"][objective] for point in speaker["points"]])
            order = np.argsort(told, kind="stable")
            if len(names) == 2 and len(told) > 1:
                axes.plot(told[order], reached[order], color=_COLOURS[place % 8], linewidth=1)
            _marks(axes, (told, reached), speaker["points"], place, name)
        axes.set_xlabel(f"share of {names[objective]} told")
        axes.set_ylabel("level reached")
        axes.set_title(names[objective], fontsize=11)
        _tidy(axes)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    _legend(figure, panels[0], len(report["speakers"]))
    figure.suptitle("What was told and what was reached (grey: equal)", fontsize=11)
    save_png(figure, path)


def _points(
    axes: Axes, points: list[dict[str, Any]], pair: tuple[int, int], place: int, name: str
) -> None:
    values = np.array([point["reached"] for point in points])[:, pair].T
    errors = np.array([point["stderr"] for point in points])[:, pair].T
    axes.errorbar(
        values[0],
        values[1],
        xerr=errors[0],
        yerr=errors[1],
        fmt="none",
        ecolor=_COLOURS[place % 8],
        elinewidth=0.7,
        alpha=0.5,
    )
    _marks(axes, (values[0], values[1]), points, place, name)


def _marks(
    axes: Axes,
    values: tuple[np.ndarray, np.ndarray],
    points: list[dict[str, Any]],
    place: int,
    name: str,
) -> None:
    """One mark a preference: filled where it was seen, hollow where it was held out."""
    colour = _COLOURS[place % 8]
    seen = np.array([point["seen"] for point in points])
    style: dict[str, Any] = {
        "linestyle": "",
        "marker": _MARKERS[place % 8],
        "color": colour,
        "markersize": 6.5,
        # The first speaker is what the page is about: baselines do not cover it.
        "zorder": 3.5 if place == 0 else 3,
    }
    axes.plot(values[0][seen], values[1][seen], label=name, markeredgecolor="white", **style)
    axes.plot(
        values[0][~seen], values[1][~seen], markerfacecolor="white", markeredgewidth=1.5, **style
    )


def _staircase(
    axes: Axes, points: list[dict[str, Any]], reference: list[float], place: int
) -> None:
    """The edge of what the points dominate, down to the reference point."""
    reached = np.array([point["reached"] for point in points])
    front = reached[pareto.nondominated(reached) & (reached > np.array(reference)[None]).all(1)]
    if not len(front):
        return
    front = front[np.argsort(front[:, 0])]
    right = np.concatenate([[reference[0]], np.repeat(front[:, 0], 2)])
    up = np.concatenate([np.repeat(front[:, 1], 2), [reference[1]]])
    axes.plot(right, up, color=_COLOURS[place % 8], linewidth=1, alpha=0.7)


def _legend(figure: Figure, axes: Axes, count: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(count, 5), frameon=False)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
