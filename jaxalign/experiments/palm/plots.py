"""Pictures of a portfolio: who is routed where, and what its size costs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import ListedColormap

from jaxalign.metrics.plots import blank, save_png
from jaxalign.palm.portfolio import Portfolio

# Okabe and Ito's, told apart by colour-blind readers, and lighter ones after them; grey first, for
# the reference.
_COLOURS = (
    "#BBBBBB", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442",
    "#7A4EAB", "#8C564B", "#17BECF", "#9ACD32", "#F4A6B7", "#4B6A88", "#C7B446", "#6B8E6B",
)  # fmt: skip
_WIDE, _HIGH = 900, 780
_METHODS = {
    "palm, additive": ("#0072B2", "o", "-"),
    "palm, share": ("#009E73", "s", "-"),
    "uniform": ("#D55E00", "^", "--"),
    "k_center": ("#CC79A7", "D", "--"),
    "random": ("#888888", "v", "--"),
}


def plot_regions(portfolio: Portfolio, names: Sequence[str], path: Path) -> None:
    """Draw which member every user of three rewards is routed to, on the triangle of weights.

    Args:
        portfolio: of 3 rewards on the simplex.
        names: [3] of the rewards.
        path: PNG file to write.
    """
    right, up = np.meshgrid(
        (np.arange(_WIDE) + 0.5) / _WIDE, (np.arange(_HIGH) + 0.5) / _HIGH * np.sqrt(0.75)
    )
    third = up / np.sqrt(0.75)
    second = right - third / 2
    weights = np.stack([1 - second - third, second, third], axis=-1)
    inside = (weights >= 0).all(axis=-1)
    member = np.full(inside.shape, np.nan)
    member[inside] = portfolio.route(weights[inside])[1]
    figure = blank(7.4, 6.2, dpi=130)
    axes = figure.subplots()
    colours = [_COLOURS[i % len(_COLOURS)] for i in range(len(portfolio.members))]
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
            place[0], place[1] + shift[1], name, ha="center", fontsize=12,
            va="bottom" if shift[1] > 0 else "top",
        )  # fmt: skip
    solved = _place(portfolio.members.payload["weight"][1:])
    axes.scatter(
        solved[:, 0], solved[:, 1], color="black", s=26, zorder=3, edgecolors="white", linewidths=1
    )
    for number, point in enumerate(solved, 1):
        axes.annotate(str(number), point, (4, 4), textcoords="offset points", fontsize=10)
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.set_ylim(-0.09, 0.96)
    reference = " (grey: the reference)" if (member == 0).any() else ""
    axes.set_title(f"Who is routed to which member{reference}; dots: weights they were solved for")
    save_png(figure, path)


def plot_sizes(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw worst gap and share lost by size, a line a method, on other prompts.

    Args:
        rows: of `compare_sizes`.
        path: PNG file to write.
    """
    figure = blank(12.0, 4.6, dpi=130)
    panels = figure.subplots(1, 3)
    shown = (
        ("additive_sd", "worst gap (standard deviations)", 1.0),
        ("share_lost", "worst user's share of improvement lost (%)", 100.0),
        ("mean_lost", "all users' share of improvement lost (%)", 100.0),
    )
    for axes, (figure_name, label, factor) in zip(panels, shown, strict=True):
        for method, (colour, marker, line) in _METHODS.items():
            found = [row for row in rows if row["method"] == method]
            sizes = [row["size"] for row in found]
            values = [factor * row[figure_name] for row in found]
            axes.plot(sizes, values, line, color=colour, marker=marker, label=_label(method))
            if found and f"{figure_name}_low" in found[0]:
                ends = [
                    [factor * row[f"{figure_name}_{e}"] for row in found] for e in ("low", "high")
                ]
                axes.fill_between(sizes, *ends, color=colour, alpha=0.15, linewidth=0)
        if factor == 100:
            axes.axhline(5, color="black", linestyle=":", linewidth=1)
        axes.set_xlabel("members, the free reference not counted")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.set_xticks(sorted({row["size"] for row in rows}))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9", linewidth=0.8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle("On prompts that nothing was chosen on (shaded: band for all users at once)")
    save_png(figure, path)


def _label(method: str) -> str:
    words = {"palm, additive": "PALM, least gap", "palm, share": "PALM, least share lost"}
    return words.get(method, method.replace("_", "-"))


def _place(weights: np.ndarray) -> np.ndarray:
    """Points [n, 2] of weights [n, 3]: the rewards left, right and on top."""
    return np.stack([weights[:, 1] + weights[:, 2] / 2, weights[:, 2] * np.sqrt(0.75)], axis=1)
