"""The loop closes: people with hidden tastes talk to `jaxalign serve`, and it learns from them.

Simulated people ask over HTTP on loopback, rate what they are served or choose between two answers,
and are judged on held-out prompts, by the true utility of what is served. The
answers were drawn once and are replayed; server, store, posterior and strategy are the real ones.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from scipy.stats import binomtest

from benchmarks import harness
from benchmarks.docs_pages import replaced
from benchmarks.loop_heuristics import HEURISTICS, served_positions
from benchmarks.loop_http import Served, Talk, replay, running
from benchmarks.loop_people import LoopData, draw_loop_data
from jaxalign.demo.answers import read_answers
from jaxalign.demo.study import HELD_OUT
from jaxalign.errors import InputError
from jaxalign.metrics.bootstrap import mean_interval
from jaxalign.progress import Progress
from jaxalign.serve.config import LIKELY

CHECKPOINTS = (0, 1, 2, 5, 10, 20, 40)
FEEDBACK = ("thumbs", "pairs", "both")
SAMPLES = 8
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
SOME = 10
"""Feedbacks from which the service should help."""
WORSE_AT_MOST = 0.1
"""Share of validation people who may be worse off than with the plain answer."""
LABELS = {
    "oracle": "oracle: knows the taste",
    "best_of": "`best_of`",
    "auto": f"`auto`, at {LIKELY:g}",
    "auto_chosen": "`auto`, as validation chose",
    "shuffled": "`best_of`, another person's feedback",
    "blend": "0.3/0.7 blend after 3 interactions",
    "shared_bandit": "Beta bandit, one for all",
    "own_bandit": "Beta bandit per person",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--people", type=int, default=100, help="who are judged")
    parser.add_argument("--validation", type=int, default=20, help="people who choose auto's rule")
    parser.add_argument("--prompts", type=int, default=6, help="held out, on which is judged")
    parser.add_argument("--checkpoints", nargs="+", type=int, default=list(CHECKPOINTS))
    parser.add_argument(
        "--populations", nargs="+", choices=("friendly", "misspecified"), default=["friendly"]
    )
    parser.add_argument("--feedback", nargs="+", choices=FEEDBACK, default=list(FEEDBACK))
    parser.add_argument("--page", type=Path, help="whose table is renewed, such as docs/serve.md")


def run(arguments: argparse.Namespace) -> int:
    """Let every population give every kind of feedback, written down one by one.

    Raises:
        InputError: no people, or more prompts than there are.
    """
    _check(arguments)
    settings = {
        name: getattr(arguments, name)
        for name in ("seed", "people", "validation", "prompts", "checkpoints")
    }
    result: dict[str, Any] = {
        "benchmark": "loop",
        "machine": harness.machine(),
        "units": "gain: true utility of the served answer less that of the first draw, in logits "
        "of a choice, mean over held-out prompts, then over people, with its 95 % interval over "
        "people; worse: share of people whose mean gain is below 0, with its 95 % Wilson interval; "
        "thresholds: of the probability from which `auto` serves another answer than the first",
        "settings": {**settings, "samples": SAMPLES},
        "rows": [],
    }
    for population in arguments.populations:
        asyncio.run(_population(population, arguments, result))
    if arguments.page is not None:
        page = arguments.page.read_text("utf-8")
        page = replaced(page, "loop", summary(result["rows"]))
        arguments.page.write_text(page, "utf-8")
    print(_table(result["rows"]))
    return 0


def _check(arguments: argparse.Namespace) -> None:
    prompts = len(read_answers().prompts)
    held_out = round(HELD_OUT * prompts)
    points = arguments.checkpoints = sorted(set(arguments.checkpoints))
    for name, least in (("people", 2), ("validation", 1), ("prompts", 1)):
        if getattr(arguments, name) < least:
            raise InputError(
                f"--{name}: found {getattr(arguments, name)}, expected {least} or more."
            )
    if arguments.prompts > held_out:
        raise InputError(
            f"--prompts: found {arguments.prompts}, expected {held_out} or fewer, which are held "
            "out."
        )
    if points[0] < 0 or points[-1] > prompts - held_out:
        raise InputError(
            f"--checkpoints: found {points}, expected 0 to {prompts - held_out} feedbacks, each on "
            "a prompt of its own."
        )


# Measured -------------------------------------------------------------------------------------


async def _population(
    population: str, arguments: argparse.Namespace, result: dict[str, Any]
) -> None:
    progress = Progress()
    points = tuple(arguments.checkpoints)
    users = arguments.people + arguments.validation
    data = draw_loop_data(population, users, points[-1], arguments.prompts, SAMPLES, arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with replay(data) as engine:
            found: dict[str, tuple[Served, list[float], float]] = {}
            async with _service(folder, engine, "best_of") as (address, _):
                for feedback in arguments.feedback:
                    async with httpx.AsyncClient(base_url=address, timeout=120) as client:
                        talk, begun = Talk(data, client, feedback), time.perf_counter()
                        with progress.waiting(f"{population} people, {feedback}"):
                            served = await talk.all_people(range(users), points)
                        found[feedback] = served, talk.seconds, time.perf_counter() - begun
            # The same database, another process: the posteriors are made from the events anew.
            differ = {}
            async with _service(folder, engine, "auto") as (address, _):
                for feedback, (served, *_) in found.items():
                    async with httpx.AsyncClient(base_url=address, timeout=120) as client:
                        talk = Talk(data, client, feedback)
                        differ[feedback] = await _differing(talk, served, arguments.people)
    for feedback, (served, seconds, wall) in found.items():
        row = _row(data, served, feedback, points, arguments.people, arguments.seed)
        row["requests"] = {
            "count": len(seconds),
            "median_ms": 1000 * float(np.median(seconds)),
            "wall_s": wall,
        }
        row["auto_over_http"] = {"asked": arguments.people, "differ": differ[feedback]}
        result["rows"].append({"population": population, "feedback": feedback, **row})
        harness.write(arguments.out, result, _table(result["rows"]))
        plot(result["rows"], arguments.out / "loop.png")


def _service(
    folder: Path, engine: str, strategy: str
) -> AbstractAsyncContextManager[tuple[str, int]]:
    return running(folder, engine, SAMPLES, "--strategy", strategy)


async def _differing(talk: Talk, served: Served, people: int) -> int:
    """Return how many people `auto` serves another answer than `thresholded` says."""
    judged = talk.data.judged
    prompts = [int(judged[person % len(judged)]) for person in range(people)]
    found = await asyncio.gather(
        *(talk.served(person, prompt) for person, prompt in enumerate(prompts))
    )
    expected = thresholded(served, LIKELY)[-1]
    rows = np.arange(people)
    places = np.array([place for place, _ in found])
    return int(np.count_nonzero(places != expected[rows, rows % len(judged)]))


def thresholded(served: Served, threshold: float) -> np.ndarray:
    """Return what `auto` serves where `best_of` served this, [C, U, H]."""
    sure = np.nan_to_num(served.probability, nan=0.0) >= threshold
    return np.where(sure, served.position, 0)


def gain(data: LoopData, position: np.ndarray) -> np.ndarray:
    """Return the true gain [C, U] over the first draw, from positions [C, U, H]."""
    true = data.judged_utility()
    worth = np.take_along_axis(true[None], position[..., None], axis=-1)[..., 0]
    return (worth - true[None, :, :, 0]).mean(axis=-1)


def choose_threshold(gains: Mapping[float, np.ndarray], points: tuple[int, ...]) -> float:
    """Return the threshold of the largest mean gain of those that leave few people worse off.

    Args:
        gains: threshold -> [C, U] of validation people.
        points: the checkpoints [C]; people may be worse off before the tenth feedback, or before
            the last one where there are fewer.
    """
    late = np.array(points) >= min(SOME, points[-1])
    harm = {one: float((found[late] < 0).mean(axis=1).max()) for one, found in gains.items()}
    safe = [one for one in gains if harm[one] < WORSE_AT_MOST] or [min(harm, key=harm.__getitem__)]
    return max(safe, key=lambda one: float(gains[one].mean()))


def _row(
    data: LoopData, served: Served, feedback: str, points: tuple[int, ...], people: int, seed: int
) -> dict[str, Any]:
    """Gains of the people who are judged; the others choose the threshold."""
    by_threshold = {one: gain(data, thresholded(served, one)) for one in THRESHOLDS}
    validation = {one: found[:, people:] for one, found in by_threshold.items()}
    chosen = choose_threshold(validation, points)
    # Each person gets the feedback of the next one in a random cycle.
    cycle = np.random.default_rng([seed, 9]).permutation(people)
    other = np.arange(len(data.utility))
    other[cycle] = np.roll(cycle, 1)
    best = np.argmax(data.judged_utility(), axis=-1)
    ways = {
        "oracle": gain(data, np.broadcast_to(best, served.position.shape)),
        "best_of": gain(data, served.position),
        "auto": by_threshold[LIKELY],
        "auto_chosen": by_threshold[chosen],
        "shuffled": gain(data, served.position[:, other]),
    }
    for name in HEURISTICS:
        ways[name] = gain(data, served_positions(data, name, feedback, points, seed))
    judged = {name: found[:, :people] for name, found in ways.items()}
    return {
        "people": people,
        "feedbacks": list(points),
        "gain": {name: [_mean(one) for one in found] for name, found in judged.items()},
        "worse": {name: [_share(one < 0) for one in found] for name, found in judged.items()},
        "chosen_threshold": chosen,
        "thresholds": {
            str(one): {
                "validation_gain": found[:, people:].mean(axis=1).tolist(),
                "validation_worse": (found[:, people:] < 0).mean(axis=1).tolist(),
                "gain": found[:, :people].mean(axis=1).tolist(),
                "worse": (found[:, :people] < 0).mean(axis=1).tolist(),
            }
            for one, found in by_threshold.items()
        },
    }


def _mean(values: np.ndarray) -> list[float]:
    return list(mean_interval(0, values)[:3])


def _share(hits: np.ndarray) -> list[float]:
    found = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    return [float(hits.mean()), float(found.low), float(found.high)]


# Written --------------------------------------------------------------------------------------


def _table(rows: list[Mapping[str, Any]]) -> str:
    points = rows[0]["feedbacks"] if rows else []
    header = ["true gain over the plain answer, logits, after feedbacks:", *map(str, points)]
    header.append("worse off than plain after the last, % of people")
    lines = []
    for row in rows:
        name = f"{row['population']}, {row['feedback']}"
        for way, label in LABELS.items():
            chosen = f" {row['chosen_threshold']:g}" if way == "auto_chosen" else ""
            cells = [*map(_cell, row["gain"][way]), _percent(row["worse"][way][-1])]
            lines.append([f"{name}, {label}{chosen}", *cells])
    return harness.table(header, lines)


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of the docs: every way after about 10 feedbacks, and whom it harms."""
    number = max(point for point in rows[0]["feedbacks"] if point <= SOME)
    kinds = list(dict.fromkeys(row["feedback"] for row in rows))
    header = [f"true gain over the plain answer after {number} feedbacks, logits"]
    for kind in kinds:
        header += [kind, "worse off, %"]
    lines = []
    for population in dict.fromkeys(row["population"] for row in rows):
        found = {row["feedback"]: row for row in rows if row["population"] == population}
        for way, label in LABELS.items():
            cells = []
            for kind in kinds:
                place = found[kind]["feedbacks"].index(number)
                cells += [_cell(found[kind]["gain"][way][place])]
                cells += [_percent(found[kind]["worse"][way][place])]
            lines.append([f"{population} people, {label}", *cells])
    return harness.table(header, lines)


def _cell(interval: Sequence[float]) -> str:
    mean, low, high = interval
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"


def _percent(interval: Sequence[float]) -> str:
    share, low, high = (100 * part for part in interval)
    return f"{share:.0f} ({low:.0f} to {high:.0f})"


def plot(rows: list[Mapping[str, Any]], path: Path) -> None:
    """Draw the gain against the number of feedbacks, a panel for each population and feedback."""
    from jaxalign.runs.plots import draw_curve, legend_below, new_figure, save_png, tidy

    across = min(len(rows), len(FEEDBACK))
    down = -(-len(rows) // across)
    columns = across + across // 2
    legend = 0.2 + 0.22 * -(-len(LABELS) // columns)
    figure = new_figure(4.2 * across, 3.4 * down + legend, dpi=110)
    panels = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    for axes, row in zip(panels, rows, strict=False):
        ticks = np.arange(len(row["feedbacks"]))
        for place, (way, label) in enumerate(LABELS.items()):
            if way == "auto_chosen":  # it would hide the curve of the default
                continue
            mean, low, high = np.array(row["gain"][way]).T
            draw_curve(axes, ticks, mean, (low, high), label.replace("`", ""), place)
        axes.axhline(0, color="0.4", linewidth=1, linestyle=":")
        axes.set_xticks(ticks, [str(number) for number in row["feedbacks"]])
        axes.set_title(f"{row['population']} people, {row['feedback']}", fontsize=10)
        axes.set_xlabel("feedbacks of each person")
        axes.set_ylabel("true gain over plain, logits")
        tidy(axes)
    for axes in panels[len(rows) :]:
        axes.set_axis_off()
    legend_below(figure, panels[0], columns)
    save_png(figure, path)
