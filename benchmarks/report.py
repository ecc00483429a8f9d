"""Renders the newest results of `python -m benchmarks all` into docs/benchmarks.md, and a plot."""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness, summary
from benchmarks.docs_pages import ROOT, SPEED_PAGE, replaced
from benchmarks.summary import Line

RESULTS = ROOT / "benchmarks" / "results"
PLOT = "speed.png"
NOTHING = (
    "No result has been committed yet: `python -m benchmarks all --device gpu` measures, and "
    "`python -m benchmarks report` writes what it found here.\n"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.set_defaults(out=RESULTS)
    parser.add_argument("--page", type=Path, default=SPEED_PAGE, help="where the table goes")


def run(arguments: argparse.Namespace) -> int:
    """Draws a plot beside each device's newest result and writes the table into the docs."""
    found = newest(arguments.out)
    for path, result in found.items():
        plot([*summary.lines(result)], path.with_name(PLOT))
    text = arguments.page.read_text(encoding="utf-8")
    part = rendered(found, arguments.page.parent)
    aside = arguments.page.with_suffix(".part")
    aside.write_text(replaced(text, "speed", part), encoding="utf-8")
    aside.replace(arguments.page)
    print(part)
    return 0


def newest(results: Path) -> dict[Path, dict[str, Any]]:
    """The last full result of each device in `results`/<device>/<date>.json; accelerators first."""
    found = {}
    for folder in sorted(path for path in results.iterdir() if path.is_dir()):
        dated = sorted(folder.glob("[0-9]*-[0-9][0-9].json"))
        if dated:
            found[dated[-1]] = json.loads(dated[-1].read_text(encoding="utf-8"))
    return dict(sorted(found.items(), key=lambda pair: pair[1]["device"] == "cpu"))


def rendered(results: Mapping[Path, Mapping[str, Any]], folder: Path) -> str:
    """The part of the page: for each device what it is, the table, and where jaxalign is slower."""
    parts = [
        _device(result, Path(os.path.relpath(path, folder))) for path, result in results.items()
    ]
    return "\n".join(parts) if parts else NOTHING


def _device(result: Mapping[str, Any], path: Path) -> str:
    machine = result["rows"]["ceilings"]["result"]["machine"]
    ceilings = result["rows"]["ceilings"]["result"]["ceilings"]
    most = max(found["matmul_flops"] for found in ceilings.values())
    copied = max(found["copy_bytes"] for found in ceilings.values())
    place = machine["processor"] if result["device"] == "cpu" else ", ".join(machine["devices"])
    versions = ", ".join(
        f"{name} {version}" for name, version in sorted(result["versions"].items())
    )
    found = [*summary.lines(result)]
    text = [
        f"**{place}**, {machine['cores']} CPU cores, {machine['date']}; {versions}. Measured "
        f"ceilings: {most / 1e12:.3g} TFLOP/s in matrix products, {copied / 1e9:,.3g} GB/s "
        "copied.\n",
        table(found),
        _behind(found),
    ]
    if failed := [*summary.failures(result)]:
        text.append("Not measured: " + "; ".join(f"{name} ({why})" for name, why in failed) + ".\n")
    text.append(
        "![Times as fast as torch, and share of the ceiling]"
        f"({path.with_name(PLOT).as_posix()})\n\nFrom [{path.name}]({path.as_posix()}): medians "
        "of interleaved rounds, compilation not counted.\n"
    )
    return "\n".join(text)


def table(found: Sequence[Line]) -> str:
    """One line per comparison; a speed-up below 1 is bold, as jaxalign is slower there."""
    goals = any(line.met is not None for line in found)
    header = ["", "jaxalign", "speed-up over the fastest alternative"]
    header += ["speed-up over untuned torch", "share of the binding ceiling"]
    rows = []
    for line in found:
        unit = f" / {line.unit}" if line.unit else ""
        share = "" if line.share is None else f"{line.share:.0%} of {line.ceiling}"
        cells = [line.name, harness.shown(line.seconds) + unit, _times(line.best)]
        cells += [_times(line.plain), share]
        rows.append([*cells, _goal(line.met)] if goals else cells)
    return harness.table([*header, "goal"] if goals else header, rows)


def _times(side: tuple[str, float] | None) -> str:
    if side is None:
        return ""
    text = f"{side[1]:.3g} x ({side[0]})"
    return f"**{text}**" if side[1] < 1 else text


def _goal(met: bool | None) -> str:
    return {None: "", True: "met", False: "**missed**"}[met]


def _behind(found: Sequence[Line]) -> str:
    behind = [line.name for line in found if line.best and line.best[1] < 1]
    missed = [line.name for line in found if line.met is False]
    text = f"Slower than the fastest alternative: {', '.join(behind) or 'none of these rows'}."
    return text + (f" Goals missed: {', '.join(missed)}." if missed else "") + "\n"


def plot(found: Sequence[Line], path: Path) -> None:
    """Bars: times as fast as the best other and as untuned torch, and shares of the ceilings."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [line for line in found if line.best is not None][::-1]
    height = 1.2 + 0.42 * len(shown)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10, height), sharey=True, width_ratios=(2, 1), layout="constrained"
    )
    for shift, colour, label, pick in (
        (0.2, "#0072B2", "the best other", lambda line: line.best),
        (-0.2, "#999999", "untuned torch", lambda line: line.plain),
    ):
        pairs = [(place, pick(line)[1]) for place, line in enumerate(shown) if pick(line)]
        places, ratios = zip(*pairs, strict=True) if pairs else ((), ())
        bars = left.barh(
            [place + shift for place in places], ratios, 0.38, color=colour, label=label
        )
        left.bar_label(bars, [f"{ratio:.3g}" for ratio in ratios], padding=3, fontsize=8)
    left.set_xscale("log")
    left.axvline(1, color="black", linewidth=1)
    left.margins(x=0.15)
    left.set_yticks(range(len(shown)), [line.name for line in shown])
    left.set_xlabel("times as fast (log scale)")
    left.legend(loc="lower right", fontsize=8)
    shares = [100 * (line.share or 0) for line in shown]
    bars = right.barh(range(len(shown)), shares, 0.6, color="#009E73")
    names = [line.ceiling if line.share is not None else "" for line in shown]
    right.bar_label(bars, names, padding=3, fontsize=8)
    right.set_xlim(0, 130)
    right.set_xticks((0, 25, 50, 75, 100))
    right.axvline(100, color="black", linewidth=1)
    right.set_xlabel("share of the ceiling that binds, %")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    figure.savefig(aside, format="png", dpi=120)
    plt.close(figure)
    aside.replace(path)
