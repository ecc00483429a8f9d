"""A million rows of 100,000 users, half of them stars: seconds and memory of train and of adapt.

The rows are simulated and written to a file first. `jaxalign mrm train` reads the file, fits the
population by the method `bayes` and judges it; `jaxalign mrm adapt` then adapts every user. Each is
a process of its own, whose peak memory is that of the operating system's account.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import harness

ITEMS, SIZE, ROWS = 20_000, 8, 10  # answers, features, rows per user
THRESHOLDS = (-2.0, -0.7, 0.6, 1.9)  # of five stars
TRAIN = (
    "--methods bayes --select bayes --seeds 1 --shots 0 5 --split.item_folds 0 "
    "--split.min_support 2 --split.min_query 1 --adaptation.folds 0 --bayes.em_steps 12 "
    "--bayes.pseudo_users 100 --bayes.strengths 1 --bayes.temperatures 1"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--users", type=int, default=100_000)


def run(arguments: argparse.Namespace) -> int:
    """Writes the rows, and measures both commands, each written down when it has ended."""
    console = Console(stderr=True)
    result = harness.empty_result(
        "mrm_million",
        "seconds of the wall clock and of all processors, peak resident memory in GiB",
        {"users": arguments.users, "rows": arguments.users * ROWS, "train": TRAIN},
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        console.print(f"writing {arguments.users * ROWS:,} rows ...", highlight=False)
        write_rows(folder, arguments.users)
        data, features, out = (folder / n for n in ("rows.jsonl", "features.npz", "run"))
        result["settings"]["file_bytes"] = data.stat().st_size
        commands = {
            "train": f"train --data {data} --features.path {features} --out {out} {TRAIN}",
            "adapt": f"adapt --model {out} --data {data} --features {features} --skip-accuracy",
        }
        for name, command in commands.items():
            console.print(f"jaxalign mrm {name} ...", highlight=False)
            result["rows"].append({"command": name, **measured(["mrm", *command.split()])})
            harness.write(arguments.out, result, _table(result["rows"]))
    print(_table(result["rows"]))
    return 0


def write_rows(folder: Path, users: int) -> None:
    """Write rows.jsonl, the rows of users mixed, and features.npz of the answers."""
    rng = np.random.default_rng(0)
    items = rng.standard_normal((ITEMS, SIZE)).astype(np.float32)
    texts = [f"answer {number} " + "lorem ipsum dolor sit amet " * 5 for number in range(ITEMS)]
    np.savez(folder / "features.npz", features=items, ids=np.array(texts))
    theta = np.r_[0.8, np.zeros(SIZE - 1)] + 0.7 * rng.standard_normal((users, SIZE))
    level, spread = 0.7 * rng.standard_normal(users), np.exp(0.3 * rng.standard_normal(users))
    user = rng.permutation(np.repeat(np.arange(users), ROWS))
    one = rng.integers(ITEMS, size=len(user))
    two = (one + rng.integers(1, ITEMS, size=len(user))) % ITEMS
    rating, noise = rng.random(len(user)) < 0.5, rng.logistic(size=len(user))
    first, second = (np.einsum("NE,NE->N", items[side], theta[user]) for side in (one, two))
    wins = noise < first - second
    stars = 1 + np.searchsorted(THRESHOLDS, spread[user] * (first - level[user]) + noise)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for row, who in enumerate(user):
            answers = (texts[one[row]], texts[two[row]])
            if rating[row]:
                row_fields = {"answer": answers[0], "rating": int(stars[row]), "scale": [1, 5]}
            else:
                chosen, rejected = answers if wins[row] else answers[::-1]
                row_fields = {"chosen": chosen, "rejected": rejected}
            file.write(json.dumps({"user": f"user{who:06d}", **row_fields}) + "\n")


def measured(arguments: list[str]) -> dict[str, float]:
    """Return seconds, processor seconds and peak memory of a command of jaxalign."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "jaxalign.cli", *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"jaxalign {arguments[0]} {arguments[1]}: failed, see above.")
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_gib": usage.ru_maxrss / 2**20,
    }


def _table(rows: list[dict[str, Any]]) -> str:
    header = ["command", "seconds", "processor seconds", "peak memory, GiB"]
    lines = [
        [r["command"], f"{r['seconds']:.0f}", f"{r['cpu_seconds']:.0f}", f"{r['peak_gib']:.2f}"]
        for r in rows
    ]
    return harness.table(header, lines)
