"""What one more row of a user costs: median milliseconds of `mrm.observe`, by rows and features.

Each time is that of a call on a user's state after so many rows, the answer waited for. Calls are
on new rows, 20 one after the other, and then from the same state again. A long state is made by
repeating the blocks of a shorter one, and every block is swept again before anything is timed.
"""

import argparse
import statistics
import time
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import harness

SIZES, ROWS = (5, 128), (10, 100, 200, 1_000, 10_000)
KINDS = ("choices", "any kind")
_SHORT = 320  # rows that are observed one by one
_IN_A_ROW = 20  # calls on new rows, so that a state of 10 rows is not timed at 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--calls", type=int, default=100)


def run(arguments: argparse.Namespace) -> int:
    """Times every size, kind and number of rows, written down one by one."""
    console = Console(stderr=True)
    result = harness.empty_result(
        "mrm_observe",
        "milliseconds of a call, median and 90 % quantile",
        {"calls": arguments.calls},
    )
    for size in arguments.sizes:
        for kind in arguments.kinds:
            for rows in arguments.rows:
                console.print(f"E {size}, {kind}, {rows} rows ...", highlight=False)
                found = timed(size, kind, rows, arguments.calls)
                result["rows"].append({"size": size, "kind": kind, "rows": rows, **found})
                harness.write(arguments.out, result, _table(result["rows"]))
    print(_table(result["rows"]))
    return 0


def timed(size: int, kind: str, rows: int, calls: int) -> dict[str, float]:
    """Return quantiles of the milliseconds of one more row after `rows`."""
    rng = np.random.default_rng([size, rows])
    drawn = _drawn_rows(rng, size, kind)
    first = belief = _state(drawn, size, kind, rows)
    for _ in range(_IN_A_ROW):  # every program that is needed
        belief = _observe(belief, next(drawn))
    taken = []
    for number in range(calls):
        row = next(drawn)
        belief = belief if number % _IN_A_ROW else first
        start = time.perf_counter()
        belief = _observe(belief, row)
        taken.append(1e3 * (time.perf_counter() - start))
    return {"median": statistics.median(taken), "high": float(np.quantile(taken, 0.9))}


def _observe(belief: Any, row: tuple) -> Any:
    from jaxalign import mrm

    return mrm.observe(belief, *row)


def _levels(kind: str) -> Any:
    from jaxalign.mrm import Levels

    return Levels(ties=True, strengths=2, ratings=(2, 5)) if kind == "any kind" else Levels()


def _prior(size: int, kind: str) -> Any:
    import jax.numpy as jnp

    from jaxalign.mrm import FeedbackPrior, Prior

    weights = Prior(jnp.zeros(size), jnp.eye(size) / size)
    if kind == "choices":
        return weights
    edges = _levels(kind).edges(jnp.array([0.4, 1.5, 0.3, -2.0, -0.7, 0.6, 1.9]))
    return FeedbackPrior(weights, edges, *map(jnp.float32, (0.8, 0.0, 0.4)))


def _drawn_rows(rng: np.random.Generator, size: int, kind: str) -> Any:
    """Arguments of `observe` behind the belief, one row after the other."""
    theta, levels = rng.standard_normal(size) / np.sqrt(size), _levels(kind)
    cuts = (np.array([0.3]), np.array([-2.0, -0.7, 0.6, 1.9]))
    while True:
        vector = rng.standard_normal(size).astype(np.float32)
        utility = vector @ theta + rng.logistic()
        which = int(rng.integers(3)) if kind == "any kind" else 0
        if which:
            level = np.searchsorted(cuts[which - 1], utility)
            lower, upper = levels.rating(which - 1, level)
        else:
            vector = vector if utility > 0 else -vector
            tie = kind == "any kind" and abs(utility) < 0.4
            lower, upper = levels.choice(np.array(0), np.array(tie))
        yield vector, int(lower), int(upper), which > 0


def _state(drawn: Any, size: int, kind: str, rows: int) -> Any:
    """The state after `rows` rows."""
    from jaxalign import mrm
    from jaxalign.mrm.feedback_belief import KEPT_PER_FEATURE, LEAST_KEPT, most_live

    belief = mrm.init_feedback_belief(_prior(size, kind))
    for _ in range(min(rows, _SHORT)):
        belief = _observe(belief, next(drawn))
    if rows <= _SHORT:
        return belief
    times = rows // _SHORT
    most = max(KEPT_PER_FEATURE * len(belief.mean), LEAST_KEPT)
    blocks = (belief.blocks * times)[-(most // len(belief.blocks[0].known)) :]
    belief = belief._replace(
        precision=times * belief.precision, shift=times * belief.shift,
        evidence=times * belief.evidence, blocks=blocks, num_rows=times * _SHORT,
    )  # fmt: skip
    in_turn = most_live(len(belief.mean)) - 2  # beside the newest block and the one before
    for _ in range(2 * len(blocks) // in_turn + 1):
        belief = _observe(belief, next(drawn))
    return belief


def _table(rows: list[dict[str, Any]]) -> str:
    header = ["features", "kind", "rows", "median, ms", "90 %, ms"]
    lines = [
        [
            f"{row['size']}", row["kind"], f"{row['rows']:,}",
            f"{row['median']:.2f}", f"{row['high']:.2f}",
        ]
        for row in rows
    ]  # fmt: skip
    return harness.table(header, lines)
