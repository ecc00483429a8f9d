"""PALM on the shipped demo answers: every size beside uniform, random and k-center weights."""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import harness

FIGURES = ("additive_sd", "share_lost", "mean_lost")
PRESET = Path(__file__).parents[1] / "configs/palm/demo.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="prompt splits")
    parser.add_argument("--sizes", type=int, default=10)
    parser.add_argument("--draws", type=int, default=20, help="of random and k-center weights")
    parser.add_argument("--seconds", type=float, default=2.0, help="for choosing one size")


def run(arguments: argparse.Namespace) -> int:
    """Chooses on half of the prompts, judges on the others, a seed at a time."""
    from jaxalign.commands.palm import demo_candidates
    from jaxalign.config import load_config
    from jaxalign.experiments.palm.plots import plot_sizes
    from jaxalign.experiments.palm.statistics import compare_sizes, smallest
    from jaxalign.palm import search
    from jaxalign.palm.candidates import split_prompts
    from jaxalign.palm.closed_form import candidate_oracle, candidate_scale
    from jaxalign.palm.config import BuildConfig

    config = load_config(BuildConfig, PRESET, [])
    candidates = demo_candidates(config.rewards)
    settings = replace(config.palm, time_limit=arguments.seconds)
    console = Console(stderr=True, highlight=False)
    seeds: list[list[dict[str, Any]]] = []
    for seed in arguments.seeds:
        first, second = split_prompts(candidates, config.certify_share, seed)
        scale = candidate_scale(first, config)
        oracle, evaluator = (
            candidate_oracle(part, scale, config.price) for part in (first, second)
        )
        judged = compare_sizes(
            oracle,
            evaluator,
            settings,
            search(oracle, settings),
            arguments.sizes,
            arguments.draws,
            config.draws,
            config.level,
            partial(_say, console, seed),
        )
        seeds.append(judged)
        rows = _averaged(seeds)
        result = {
            "benchmark": "palm_portfolio",
            "machine": harness.machine(),
            "rewards": list(config.rewards),
            "prompts": {"chosen_on": len(first.prompts), "certified_on": len(second.prompts)},
            "beta": config.price,
            "floor_sd": settings.floor,
            "seeds": arguments.seeds[: len(seeds)],
            "smallest_under_5_percent": {
                name: smallest(rows, name) for name in ("share_lost", "mean_lost")
            },
            "behind": _behind(seeds),
            "rows": rows,
            "by_seed": seeds,
        }
        harness.write(arguments.out, result, _table(result))
    plot_sizes(rows, arguments.out / "sizes.png")
    print(_table(result))
    return 0


def _say(console: Console, seed: int, text: str) -> None:
    console.print(f"seed {seed}: {text}")


def _averaged(seeds: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Means over seeds, of the bands' edges too."""
    rows = []
    for together in zip(*seeds, strict=True):
        first = together[0]
        keep = {"method": first["method"], "size": first["size"]}
        figures = [name for name in first if name.startswith(FIGURES)]
        rows.append(keep | {n: float(np.mean([row[n] for row in together])) for n in figures})
    return rows


def _behind(seeds: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Where PALM, chosen for a figure, is worse in it than a baseline, by seed and size."""
    found = []
    for number, rows in enumerate(seeds):
        for figure, method in (("additive_sd", "palm, additive"), ("share_lost", "palm, share")):
            ours = {row["size"]: row[figure] for row in rows if row["method"] == method}
            found += [
                {
                    "seed": number, "figure": figure, "method": row["method"], "size": row["size"],
                    "ours": ours[row["size"]], "theirs": row[figure],
                }
                for row in rows
                if not row["method"].startswith("palm") and row[figure] < ours[row["size"]]
            ]  # fmt: skip
    return found


def _table(result: dict[str, Any]) -> str:
    rows = result["rows"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    found = {(row["method"], row["size"]): row for row in rows}
    lines = []
    for size in sorted({row["size"] for row in rows}):
        cells = [str(size)]
        for method in methods:
            row = found[method, size]
            band = ""
            if "additive_sd_high" in row:
                band = f" ({row['additive_sd_low']:.3f}..{row['additive_sd_high']:.3f})"
            cells.append(
                f"{row['additive_sd']:.3f}{band} / {100 * row['share_lost']:.0f} / "
                f"{100 * row['mean_lost']:.1f}"
            )
        lines.append(cells)
    named = result["smallest_under_5_percent"]
    words = {"share_lost": "the worst user", "mean_lost": "all users together"}
    said = "; ".join(f"{words[name]}: {size or 'none of these'}" for name, size in named.items())
    return (
        harness.table(["members", *methods], lines)
        + "\nOn held-out prompts, means over seeds: worst gap in standard deviations (95 % band) / "
        "worst user's share of the improvement lost in % / all users' share lost in %.\n"
        f"Smallest size that loses less than 5 % of the improvement: {said}.\n"
        f"PALM behind a baseline: {len(result['behind'])} of the compared sizes and seeds.\n"
    )
