"""What all plots share: one palette, one way to show an interval, and PNG files in one step.

Nothing here touches pyplot's global state, and matplotlib loads with the first figure. The colours
are those of Okabe and Ito, which colour-blind readers can distinguish, followed by lighter ones for
plots of many regions.
"""

from collections.abc import Sized
from os import PathLike
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from numpy.typing import ArrayLike

from jaxalign.errors import InputError
from jaxalign.files import write_aside

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#888888",
)  # fmt: skip
"""Colours of series, in their order."""
REGIONS = (
    "#BBBBBB", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442",
    "#7A4EAB", "#8C564B", "#17BECF", "#9ACD32", "#F4A6B7", "#4B6A88", "#C7B446", "#6B8E6B",
)  # fmt: skip
"""Colours of areas, grey first for a reference."""
_MARKERS = "osD^vPX*"
_LINES = ("-", "--", "-.")


class SeriesStyle(TypedDict):
    """How one series is drawn: keyword arguments of `Axes.plot`."""

    color: str
    marker: str
    linestyle: str


def series_style(place: int) -> SeriesStyle:
    """Return colour, marker and line style of a series by its place in the legend.

    Example:
        >>> from jaxalign.runs.plots import series_style
        >>> series_style(0)
        {'color': '#0072B2', 'marker': 'o', 'linestyle': '-'}
    """
    return {
        "color": PALETTE[place % len(PALETTE)],
        "marker": _MARKERS[place % len(_MARKERS)],
        "linestyle": _LINES[place // len(PALETTE) % len(_LINES)],
    }


def new_figure(width: float, height: float, dpi: int = 150) -> "Figure":
    """Return an empty figure of width x height inches, outside pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: "Axes", grid: str = "both") -> None:
    """Draw a light grid behind the data, and no spines at the top and right.

    Args:
        axes: to change.
        grid: "x", "y" or "both".
    """
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="0.9", linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def legend_right(axes: "Axes") -> None:
    """Place the legend to the right of the axes, without a frame."""
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)


def legend_below(figure: "Figure", axes: "Axes", columns: int) -> None:
    """Place the legend of one of several panels below them all, without a frame.

    Args:
        figure: with all panels.
        axes: the panel whose legend it is.
        columns: of the legend; fewer where they are wider than the figure.
    """
    handles, labels = axes.get_legend_handles_labels()
    for number in range(columns, 0, -1):
        legend = figure.legend(
            handles, labels, loc="outside lower center", ncols=number, frameon=False
        )
        if number == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def draw_interval(
    axes: "Axes", place: float, low: float, high: float, color: str, outer: bool = False
) -> None:
    """Draw one horizontal interval: a thick bar, or a thin one with ends for a wider interval.

    Args:
        axes: to draw on.
        place: height of the bar, in data units.
        low: left end, in data units.
        high: right end, in data units.
        color: of the bar.
        outer: draw the thin bar.
    """
    if outer:
        axes.plot([low, high], [place, place], color=color, linewidth=1, marker="|", markersize=7)
    else:
        axes.plot([low, high], [place, place], color=color, linewidth=3.5, solid_capstyle="butt")


def draw_curve(
    axes: "Axes",
    x: ArrayLike,
    value: ArrayLike,
    ends: tuple[ArrayLike, ArrayLike] | None,
    label: str,
    place: int,
) -> None:
    """Draw a series with an interval at each point.

    Args:
        axes: to draw on.
        x: [n] positions.
        value: [n] heights.
        ends: lower and upper ends [n] of the intervals; None for none.
        label: name in the legend.
        place: of the series in the legend, for its style.
    """
    errors = None
    if ends is not None:
        middle = np.asarray(value, np.float64)
        low, high = (np.asarray(end, np.float64) for end in ends)
        # Rounding may put an end on the wrong side of the value, which errorbar refuses.
        errors = np.maximum([middle - low, high - middle], 0)
    axes.errorbar(
        np.asarray(x), np.asarray(value), yerr=errors, label=escape(label), linewidth=1.6,
        elinewidth=1, markersize=6, **series_style(place),
    )  # fmt: skip


def escape(text: str) -> str:
    """Return a text in which matplotlib reads no formula."""
    return str(text).replace("$", r"\$")


def refuse_empty(values: Sized) -> None:
    """Refuse to draw nothing.

    Raises:
        InputError: there are no values.
    """
    if len(values) == 0:
        raise InputError("plot: nothing to draw; expected at least one method with values.")


def save_png(figure: "Figure", path: str | PathLike[str]) -> None:
    """Write a figure as PNG in one step; an older file is replaced."""
    with write_aside(path) as aside:
        figure.savefig(aside, format="png")
