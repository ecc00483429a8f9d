"""Plots of a portfolio: the member of every user, and what a portfolio's size costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from jaxalign.experiments.palm.statistics import Measure, SizeRow
from jaxalign.palm.portfolio import Portfolio
from jaxalign.runs.plots import PALETTE, REGIONS, escape, legend_below, new_figure, save_png, tidy

_WIDE, _HIGH = 900, 780
_METHODS = {
    "palm, additive": ("PALM, least gap", PALETTE[0], "o", "-"),
    "palm, share": ("PALM, least share lost", PALETTE[2], "s", "-"),
    "uniform": ("uniform", PALETTE[1], "^", "--"),
    "k_center": ("k-center", PALETTE[3], "D", "--"),
    "random": ("random", PALETTE[7], "v", "--"),
}
_PANELS: tuple[tuple[Measure, str, float], ...] = (
    ("additive_sd", "worst gap (standard deviations)", 1.0),
    ("share_lost", "worst user's share of improvement lost (%)", 100.0),
    ("mean_lost", "all users' share of improvement lost (%)", 100.0),
)


def plot_regions(portfolio: Portfolio, names: Sequence[str], path: Path) -> None:
    """Draw the member of every user of three rewards, on the triangle of weights.

    Args:
        portfolio: portfolio of 3 rewards on the simplex.
        names: [3] names of the rewards.
        path: PNG file to write.
    """
    from matplotlib.colors import ListedColormap

    right, up = np.meshgrid(
        (np.arange(_WIDE) + 0.5) / _WIDE, (np.arange(_HIGH) + 0.5) / _HIGH * np.sqrt(0.75)
    )
    third = up / np.sqrt(0.75)
    second = right - third / 2
    weights = np.stack([1 - second - third, second, third], axis=-1)
    inside = (weights >= 0).all(axis=-1)
    member = np.full(inside.shape, np.nan)
    member[inside] = portfolio.route(weights[inside])[1]
    figure = new_figure(7.4, 6.2, dpi=130)
    axes = figure.subplots()
    colours = [REGIONS[i % len(REGIONS)] for i in range(len(portfolio.members))]
    axes.imshow(
        member,
        origin="lower",
        extent=(0, 1, 0, float(np.sqrt(0.75))),
        interpolation="nearest",
        cmap=ListedColormap(colours),
        vmin=-0.5,
        vmax=len(colours) - 0.5,
    )
    corner = _place(np.eye(3))
    axes.plot(corner[[0, 1, 2, 0], 0], corner[[0, 1, 2, 0], 1], color="black", linewidth=1.2)
    for place, name, shift in zip(corner, names, ((0, -0.03), (0, -0.03), (0, 0.02)), strict=True):
        axes.text(
            place[0], place[1] + shift[1], escape(name), ha="center", fontsize=12,
            va="bottom" if shift[1] > 0 else "top",
        )  # fmt: skip
    for number in range(1, len(colours)):
        served = weights[member == number]
        if len(served):  # regions are convex: their means lie inside
            axes.annotate(
                str(number), _place(served.mean(axis=0, keepdims=True))[0], fontsize=10,
                ha="center", va="center", bbox={"boxstyle": "circle", "fc": "white", "lw": 0.5},
            )  # fmt: skip
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.set_ylim(-0.09, 0.96)
    reference = " (grey: the reference)" if (member == 0).any() else ""
    axes.set_title(f"Member of every user{reference}, by its number in the report")
    save_png(figure, path)


def plot_sizes(rows: Sequence[SizeRow], path: Path) -> None:
    """Draw worst gap and share lost by size, one line per method, on other prompts.

    Args:
        rows: rows of `compare_sizes`.
        path: PNG file to write.
    """
    figure = new_figure(12.0, 4.6, dpi=130)
    panels = figure.subplots(1, 3)
    for axes, (name, label, factor) in zip(panels, _PANELS, strict=True):
        for method, (words, colour, marker, line) in _METHODS.items():
            found = [row for row in rows if row["method"] == method]
            sizes = [row["size"] for row in found]
            values = [factor * row[name] for row in found]
            axes.plot(sizes, values, line, color=colour, marker=marker, label=words)
            if found and f"{name}_low" in found[0]:
                ends: list[Mapping[str, float]] = [cast(Mapping[str, float], row) for row in found]
                low, high = (
                    [factor * row[f"{name}_{end}"] for row in ends] for end in ("low", "high")
                )
                axes.fill_between(sizes, low, high, color=colour, alpha=0.15, linewidth=0)
        if factor == 100:
            axes.axhline(5, color="black", linestyle=":", linewidth=1)
        axes.set_xlabel("members, the free reference not counted")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.set_xticks(sorted({row["size"] for row in rows}))
        tidy(axes, "y")
    legend_below(figure, panels[0], 5)
    figure.suptitle("On prompts that nothing was chosen on (shaded: band for all users at once)")
    save_png(figure, path)


def _place(weights: np.ndarray) -> np.ndarray:
    """Points [n, 2] of weights [n, 3]: the rewards left, right and on top."""
    return np.stack([weights[:, 1] + weights[:, 2] / 2, weights[:, 2] * np.sqrt(0.75)], axis=1)
