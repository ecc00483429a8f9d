"""Plots of how methods fare, written as PNG.

Every method has its colour, marker and line style by its place in the mapping: pass the methods in
the same order to all plots. Points are percentage points throughout.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from jaxalign.experiments.mrm.tables import Regimes
from jaxalign.metrics.calibration import Reliability
from jaxalign.runs.plots import (
    draw_curve,
    draw_interval,
    escape,
    legend_right,
    new_figure,
    refuse_empty,
    save_png,
    series_style,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_gains(regimes: Regimes, path: str | os.PathLike[str]) -> None:
    """Draw each method's gain over one Bradley-Terry model with its interval, a panel a regime.

    Args:
      regimes: what is drawn. Where `judge` was given items, thin
        whiskers show the interval over users and items behind the one over users.
      path: PNG file to write; an old one is replaced in one step.

    Raises:
      InputError: there is nothing to draw.
    """
    methods = list(dict.fromkeys(name for row in regimes.values() for name in row))
    refuse_empty(methods)
    figure = new_figure(3.0 + 3.4 * len(regimes), 1.7 + 0.36 * len(methods))
    panels = figure.subplots(1, len(regimes), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (regime, row) in zip(panels, regimes.items(), strict=True):
        for name, result in row.items():
            _gain_row(axes, methods.index(name), result)
        axes.axvline(0, color="0.4", linewidth=1, zorder=0)
        axes.set_title(escape(regime), fontsize=11)
        tidy(axes, grid="x")
    panels[0].set_yticks(range(len(methods)), [escape(name) for name in methods])
    panels[0].set_ylim(len(methods) - 0.5, -0.5)
    figure.supxlabel("gain in user accuracy over one Bradley-Terry model (points)", fontsize=11)
    items = any("gain_items_low" in result for row in regimes.values() for result in row.values())
    figure.suptitle(
        "Gain over one model for all, 95 % intervals over users"
        + (" (thick) and over users and items (thin)" if items else "")
    )
    save_png(figure, path)


def _gain_row(axes: "Axes", place: int, result: Mapping[str, float]) -> None:
    color = series_style(place)["color"]
    if "gain_items_low" in result:
        ends = 100 * result["gain_items_low"], 100 * result["gain_items_high"]
        draw_interval(axes, place, *ends, color, outer=True)
    draw_interval(axes, place, 100 * result["gain_low"], 100 * result["gain_high"], color)
    # A disc for all: rows are named, and slim markers vanish on a thick bar.
    middle = [100 * result["gain"]]
    axes.plot(middle, [place], color=color, marker="o", markersize=7, markeredgecolor="white")


def plot_shots(
    curves: Mapping[str, Sequence[tuple[float, float, float, float]]],
    path: str | os.PathLike[str],
) -> None:
    """Draw accuracy against the number of choices a user has made, a line a method.

    Args:
      curves: {method: [(choices, accuracy, low, high), ...]}, accuracies as fractions; low and high
        are the ends of the interval of the gain over `bt`, set upon the accuracy of `bt`.
      path: PNG file to write; an old one is replaced in one step.

    Raises:
      InputError: there is nothing to draw.
    """
    refuse_empty(curves)
    figure = new_figure(8.6, 5.0)
    axes = figure.subplots()
    shots = sorted({point[0] for curve in curves.values() for point in curve})
    refuse_empty(shots)
    for place, (name, curve) in enumerate(curves.items()):
        points = np.asarray(sorted(curve), np.float64).reshape(-1, 4)
        value, low, high = 100 * points[:, 1:].T
        # Set side by side: intervals of eight methods on one spot cannot be distinguished.
        x = _shot_position(points[:, 0]) + 0.035 * (place - (len(curves) - 1) / 2)
        draw_curve(axes, x, value, (low, high), name, place)
    axes.set_xticks(_shot_position(np.asarray(shots)), [f"{shot:g}" for shot in shots])
    axes.set_xlabel("choices of a user (number, logarithmic)")
    axes.set_ylabel("user accuracy (%)")
    axes.set_title("Accuracy by number of choices, 95 % intervals of the gain over one model")
    tidy(axes, grid="y")
    legend_right(axes)
    save_png(figure, path)


def _shot_position(shots: np.ndarray) -> np.ndarray:
    # No choice at all is a point of interest too, and has no logarithm.
    return np.log2(1 + np.asarray(shots, np.float64))


def plot_user_gains(gains: Mapping[str, ArrayLike], path: str | os.PathLike[str]) -> None:
    """Draw the users' gains, sorted, a line a method: how many gain, how many lose, how much.

    Args:
      gains: {method: [U]}, as fractions (`users.user_gain`); NaN, users without pairs, is left out.
      path: PNG file to write; an old one is replaced in one step.

    Raises:
      InputError: there is nothing to draw.
    """
    refuse_empty(gains)
    figure = new_figure(8.6, 5.0)
    axes = figure.subplots()
    for place, (name, values) in enumerate(gains.items()):
        present = np.asarray(values, np.float64)
        present = np.sort(100 * present[~np.isnan(present)])
        refuse_empty(present)
        x = 100 * (np.arange(len(present)) + 0.5) / len(present)
        losing = 100 * float((present < 0).mean())
        axes.plot(
            x,
            present,
            label=f"{escape(name)} ({losing:.0f} % lose)",
            linewidth=1.6,
            # Staggered, that markers of lines close together do not hide one another.
            markevery=(place / len(gains) / 8, 1 / 8),
            markersize=6,
            **series_style(place),
        )
    axes.axhline(0, color="0.4", linewidth=1, zorder=0)
    axes.set_xlim(0, 100)
    axes.set_xlabel("users, from largest loss to largest gain (%)")
    axes.set_ylabel("gain in user accuracy (points)")
    axes.set_title("Who gains and who loses")
    tidy(axes, grid="y")
    legend_right(axes)
    save_png(figure, path)


def plot_reliability(
    tables: Mapping[str, Reliability],
    path: str | os.PathLike[str],
) -> None:
    """Draw observed against predicted probabilities, and how many predictions are how sure.

    Only probabilities of at least one half are drawn: tables count each pair in both orders, so the
    rest is their mirror image.

    Args:
      tables: {method: `users.reliability`}.
      path: PNG file to write; an old one is replaced in one step.

    Raises:
      InputError: there is nothing to draw.
    """
    refuse_empty(tables)
    figure = new_figure(11.0, 4.8)
    match, share = figure.subplots(1, 2)
    match.plot([50, 100], [50, 100], color="0.4", linewidth=1, zorder=0)
    for place, (name, table) in enumerate(tables.items()):
        shown = (table.counts > 0) & (table.centers >= 0.5)
        style = {"linewidth": 1.6, "markersize": 6, **series_style(place)}
        match.plot(100 * table.predicted[shown], 100 * table.observed[shown], **style)
        upper = table.centers >= 0.5
        counts = 100 * table.counts[upper] / table.counts[upper].sum()
        share.plot(100 * table.centers[upper], counts, label=escape(name), **style)
    match.set_xlabel("predicted probability (%)")
    match.set_ylabel("observed frequency (%)")
    match.set_title("Reliability (grey: perfect)")
    share.set_xlabel("predicted probability, bin centre (%)")
    share.set_ylabel("share of predictions (%)")
    share.set_title("How sure the predictions are")
    share.set_xlim(50, 100)
    share.set_ylim(bottom=0)
    for axes in (match, share):
        tidy(axes, grid="both")
    legend_right(share)
    save_png(figure, path)
