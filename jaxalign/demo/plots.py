"""The pictures of the demo's report."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxalign.demo.portfolio import PortfolioStage
from jaxalign.demo.statistics import TARGETS
from jaxalign.demo.study import SHOTS, DemoData, Design, Study
from jaxalign.experiments.moc.plots import plot_control
from jaxalign.experiments.mrm.plots import plot_reliability
from jaxalign.metrics import reliability
from jaxalign.personalize import known
from jaxalign.rewards.rules import TRAITS
from jaxalign.runs.plots import new_figure, save_png, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"named": "#0072B2", "learned": "#D55E00"}
MARKERS = {"named": "o", "learned": "s"}
# In matplotlib's tab20, full colours first, its greys left out.
_PLACES = [place for place in (*range(0, 20, 2), *range(1, 20, 2)) if place not in (14, 15)]


def draw(
    out: Path,
    report: dict[str, Any],
    plan: Design,
    worlds: dict[str, DemoData],
    studies: dict[str, dict[str, Study]],
    stage: PortfolioStage,
) -> list[str]:
    """Write all pictures to `out`; returns their names."""
    written = {"gap.png": plot_gap(report["populations"])}
    written["choices_seen.png"] = plot_curves(report["populations"])
    true = worlds["friendly"].people.weights[plan.test]
    written["weights.png"] = plot_weights(studies["friendly"], true)
    written["portfolio.png"] = plot_portfolio(stage)
    for name, figure in written.items():
        save_png(figure, out / name)
    query = worlds["friendly"].query["test"]
    mask = np.ones(query.chosen.shape, bool)
    shown = {
        "true weights": reliability(query.probability, mask),
        **{k: reliability(s.adapted, mask) for k, s in studies["friendly"].items()},
    }
    plot_reliability(shown, out / "reliability.png")
    plot_control(report["conditioned"]["evaluation"], out / "preference.png")
    return [*written, "reliability.png", "preference.png"]


def plot_gap(populations: dict[str, Any]) -> "Figure":
    """Share of the gap closed, with intervals, a row a population and kind of rewards."""
    figure = new_figure(8.6, 2.9, dpi=140)
    axes = figure.subplots()
    rows = [(name, kind) for name in populations for kind in TARGETS]
    for place, (name, kind) in enumerate(rows):
        found = populations[name][kind]
        if found["share"] is None:
            continue
        value, low, high = (100 * found[key] for key in ("share", "share_low", "share_high"))
        axes.barh(place, value, height=0.62, color=COLOURS[kind], alpha=0.85)
        axes.plot([low, high], [place, place], color="black", linewidth=1.6)
        axes.text(max(high, 0) + 1.5, place, f"{value:.0f} %", va="center")
        if name == "friendly":
            least = 100 * TARGETS[kind]
            axes.plot([least, least], [place - 0.42, place + 0.42], color="black", linestyle=":")
    axes.set_yticks(range(len(rows)), [f"{name}, {kind} rewards" for name, kind in rows])
    axes.invert_yaxis()
    axes.set_xlim(right=max(104.0, axes.get_xlim()[1]))
    axes.set_xlabel("share of the gap closed (%); 0: one model for all, 100: true taste known")
    axes.set_title(f"Simulated users, {SHOTS} choices each (line: 95 % interval; dotted: target)")
    tidy(axes, "x")
    return figure


def plot_curves(populations: dict[str, Any]) -> "Figure":
    """Accuracy against the number of choices seen, a panel a population."""
    figure = new_figure(10.6, 4.2, dpi=140)
    panels = figure.subplots(1, len(populations), sharey=True, squeeze=False)[0]
    for axes, (name, found) in zip(panels, populations.items(), strict=True):
        for kind, colour in COLOURS.items():
            shots, value, low, high = np.asarray(found[kind]["curve"], float).T
            x = np.log2(1 + shots)
            axes.fill_between(x, 100 * low, 100 * high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(x, 100 * value, color=colour, marker=MARKERS[kind], label=f"{kind} rewards")
            axes.axhline(
                100 * found[kind]["one_model"],
                color=colour,
                linestyle=":",
                linewidth=1.4,
                label=f"one model for all, {kind}",
            )
            axes.set_xticks(x, [f"{shot:g}" for shot in shots])
        axes.axhline(
            100 * found["true_accuracy"], color="black", linestyle="--", label="true taste known"
        )
        axes.set_title(f"{name} population")
        axes.set_xlabel("choices seen of an unseen user")
        tidy(axes, "y")
    panels[0].set_ylabel("expected accuracy (%),\nheld-out prompts")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


def plot_weights(studies: dict[str, Study], true: np.ndarray) -> "Figure":
    """Inferred against true weights, a panel a trait, a row a kind of rewards."""
    names = list(TRAITS)
    figure = new_figure(2.3 * len(names), 5.0, dpi=140)
    grid = figure.subplots(len(studies), len(names), sharex=True, sharey="row", squeeze=False)
    for axes, name in zip(grid[0], names, strict=True):
        axes.set_title(name)
    for row, (kind, study) in zip(grid, studies.items(), strict=True):
        for place, axes in enumerate(row):
            axes.axhline(0, color="0.8", linewidth=0.8)
            axes.axvline(0, color="0.8", linewidth=0.8)
            axes.scatter(
                true[:, place], study.mean[:, place], s=9, color=COLOURS[kind], alpha=0.6,
                linewidths=0,
            )  # fmt: skip
            low, high = true.min(), true.max()
            axes.plot([low, high], [low, high], color="0.45", linewidth=0.9, linestyle="--")
            axes.spines[["top", "right"]].set_visible(False)
        word = "inferred" if kind == "named" else "projected"
        row[0].set_ylabel(f"{word} weight\n({kind} rewards)")
        reach = 1.15 * max(float(np.abs(study.mean).max()), 1e-6)
        row[0].set_ylim(-reach, reach)
    figure.supxlabel("true weight of a simulated user (dashed: equal)", fontsize=11)
    return figure


def plot_portfolio(stage: PortfolioStage) -> "Figure":
    """Who is served by which member: regions and users in a plane of weights, and their shares."""
    figure = new_figure(12.0, 4.6, dpi=140)
    plane, bars = figure.subplots(1, 2, width_ratios=[1.0, 1.15])
    palette = np.asarray([_member_colour(i) for i in range(len(stage.router.values))])
    _regions(plane, stage, palette)
    usage = stage.report["true_weights"]["usage"], stage.report["inferred"]["usage"]
    count = len(palette)
    places = np.arange(count)
    for offset, share, alpha in zip((-0.19, 0.19), usage, (1.0, 0.45), strict=True):
        bars.barh(places + offset, 100 * np.asarray(share), 0.36, color=palette, alpha=alpha)
    bars.set_yticks(places, [_member_words(stage, member) for member in range(count)], fontsize=9)
    bars.invert_yaxis()
    bars.set_xlabel(f"share of users (%); pale: test users by {SHOTS} choices")
    bars.set_title("Members: what each favours (+), avoids (−)")
    tidy(bars, "x")
    return figure


def _regions(axes: "Axes", stage: PortfolioStage, palette: np.ndarray) -> None:
    """The plane through the mean in which users' weights vary most, coloured by member."""
    weights, router = stage.weights, stage.router
    middle = weights.mean(axis=0)
    _, _, ways = np.linalg.svd(weights - middle[None], full_matrices=False)
    ways *= np.sign(ways[np.arange(len(ways)), np.argmax(np.abs(ways), axis=1)])[:, None]
    at = (weights - middle[None]) @ ways[:2].T
    low, high = at.min(axis=0) - 0.3, at.max(axis=0) + 0.3
    x, y = (np.linspace(low[i], high[i], 160) for i in range(2))
    grid = np.stack(np.meshgrid(x, y), axis=-1)
    shown = router.route(known(middle + grid @ ways[:2], router.reward_ids)).member
    extent = (float(low[0]), float(high[0]), float(low[1]), float(high[1]))
    axes.imshow(
        palette[shown], origin="lower", extent=extent, aspect="auto", alpha=0.3,
        interpolation="nearest",
    )  # fmt: skip
    colours = palette[stage.member]
    axes.scatter(at[:, 0], at[:, 1], s=11, color=colours, edgecolors="white", linewidths=0.25)
    axes.set_xlabel(f"more {_signed_words(ways[0], 3)}")
    axes.set_ylabel(f"more {_signed_words(ways[1], 3)}")
    axes.set_title(f"{len(weights)} users, coloured by member; behind: the regions\nin this plane")
    axes.spines[["top", "right"]].set_visible(False)


def _signed_words(weights: np.ndarray, count: int) -> str:
    """The largest weights in words: "+warmth −brevity"."""
    names = list(TRAITS)
    order = np.argsort(-np.abs(weights))[:count]
    return " ".join(f"{'+' if weights[i] > 0 else '−'}{names[i]}" for i in order if weights[i])


def _member_words(stage: PortfolioStage, member: int) -> str:
    solved = stage.router.portfolio.members.payload["weight"][member]
    kept = np.where(np.abs(solved) > 0.1 * np.abs(solved).max(), solved, 0.0)
    return _signed_words(kept, 3) or "the reference policy"


def _member_colour(member: int) -> tuple[float, ...]:
    """A colour a member; the reference, member 0, is grey."""
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    if member == 0:
        return to_rgb("0.55")
    return to_rgb(colormaps["tab20"](_PLACES[(member - 1) % len(_PLACES)]))
