"""Several processes of one command over loopback, and the folders that two runs have left."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import own_process
from safetensors.numpy import load_file

from jaxalign.runs.log import TIMING

DEADLINE = 240  # seconds that a test waits for a process on a busy machine


def moc_config(steps, prompt_tokens, mesh):
    """A config of a tiny `moc train`, but for its rewards."""
    return {
        "prompts": {"template": "plain"},
        "reference_answers": 256,
        "moc": {
            "steps": steps, "groups": 2, "rows": 4, "prompt_tokens": prompt_tokens,
            "answer_tokens": 4, "temperature": 1.0, "epochs": 1, "micro_batches": 1,
            # Adam divides a gradient by its own size, so that an entry of which hardly more than
            # rounding is left moves as far as the others; with a large eps it moves in proportion.
            "optimiser": {"rate": 1e-4, "eps": 1.0},
            "trunk": {
                "lora": {"rank": 2}, "weights": "float32", "compute": "float32", "remat": None,
                # One device has its layers apart, whose ratios are rounded otherwise.
                "unstack_layers": False, "mesh": mesh,
            },
        },
    }  # fmt: skip


def start(arguments, processes=2, change=lambda number, words: words):
    """Start a command once per process, each with one device; returns what runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for number in range(processes):
        joining = (
            *("--distributed.coordinator", f"127.0.0.1:{port}"),
            *("--distributed.processes", str(processes)),
            *("--distributed.process", str(number)),
        )
        words = [sys.executable, "-m", "jaxalign.cli", *map(str, arguments), *joining]
        # A file: a pipe that nobody reads fills up.
        log = Path(arguments[-1]).parent / f"log{number}-{port}"
        with log.open("wb") as file:
            running = subprocess.Popen(
                change(number, words), stdout=file, stderr=file, env=own_process.torchless()
            )
        started.append((running, log))
    return started


def finish(started, wanted=0):
    """Wait for every process; returns what each has printed."""
    texts = []
    for running, log in started:
        code = running.wait(timeout=DEADLINE)
        texts.append(log.read_text(errors="replace"))
        assert code == wanted, texts[-1][-3000:]
    return texts


def one(arguments):
    """Run a command in one process."""
    words = [sys.executable, "-m", "jaxalign.cli", *map(str, arguments)]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=DEADLINE, check=False,
        env=own_process.torchless(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def kill(started, number, metrics, lines):
    """Kill one process when the metrics have some lines; returns seconds until the others leave."""
    end = time.monotonic() + DEADLINE
    while not metrics.exists() or metrics.read_text().count("\n") < lines:
        assert time.monotonic() < end
        time.sleep(0.05)
    started[number][0].kill()
    start, codes = time.monotonic(), []
    for place, (running, _) in enumerate(started):
        code = running.wait(timeout=DEADLINE)
        codes += [code] if place != number else []
    return time.monotonic() - start, codes


def worst(first, second):
    """Largest relative difference of any tensor or metric that two runs have left."""
    found = []
    for path in sorted(first.rglob("*.safetensors")):
        if "state" in path.relative_to(first).parts:
            continue
        own, other = load_file(path), load_file(second / path.relative_to(first))
        assert own.keys() == other.keys()
        for name, value in own.items():
            scale = max(float(np.abs(other[name]).max()), 1e-6)
            found.append(float(np.abs(value.astype(np.float64) - other[name]).max()) / scale)
    assert found
    for own, other in zip(_metrics(first), _metrics(second), strict=True):
        assert own.keys() == other.keys()
        found += [abs(own[name] - other[name]) / max(abs(other[name]), 1e-3) for name in own]
    return max(found)


def _metrics(folder):
    rows = []
    for path in sorted(folder.rglob("metrics.jsonl")):
        rows += [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: row[name] for name in row if name not in TIMING} for row in rows]


def environment(devices=1):
    """Settings of processes with some virtual devices each."""
    flags = os.environ.get("XLA_FLAGS", "")
    return f"{flags} --xla_force_host_platform_device_count={devices}"
