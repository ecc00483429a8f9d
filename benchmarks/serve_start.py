"""From an empty environment to the first answer of `jaxalign serve`, downloads included.

A new virtual environment, `pip install '.[serve]'` without pip's cache, `jaxalign serve` with empty
caches of models and programs, and the first request of docs/serve.md, one after the other.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks import harness
from benchmarks.loop_http import started
from jaxalign.errors import InputError
from jaxalign.progress import Progress

ROOT = Path(__file__).parents[1]
LIMIT_SECONDS = 180.0
REQUEST = {
    "model": "auto",
    "messages": [{"role": "user", "content": "How can I sleep better?"}],
    "user": "ann",
}
"""As docs/serve.md has it: as many tokens as the service draws where none are stated."""
STAGES = {
    "environment": "a new virtual environment",
    "install": "pip install '.[serve]'",
    "start": "`jaxalign serve` until it prints its address, the model downloaded",
    "answer": "the first request until its answer",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--python", default=sys.executable, help="that makes the environment")


def run(arguments: argparse.Namespace) -> int:
    """Measure every stage once, and write the result.

    Raises:
        InputError: a stage that fails.
    """
    result: dict[str, Any] = {
        "benchmark": "serve_start",
        "machine": harness.machine(),
        "units": "seconds, one run; pip without its cache, empty caches of models and programs",
        "limit": LIMIT_SECONDS,
    }
    with tempfile.TemporaryDirectory() as name:
        result |= asyncio.run(_measured(Path(name), arguments.python))
    table = summary(result)
    harness.write(arguments.out, result, table)
    print(table)
    return 0


async def _measured(folder: Path, python: str) -> dict[str, Any]:
    progress, seconds = Progress(), dict[str, float]()
    # What the child processes of this one find: no cache of pip, of models or of programs.
    for name in ("JAXALIGN_CACHE", "XDG_CACHE_HOME", "HF_HOME"):
        os.environ[name] = str(folder / name.lower())
    for name in ("PYTHONPATH", "JAX_COMPILATION_CACHE_DIR"):
        os.environ.pop(name, None)

    def stage(name: str, *words: str | Path) -> None:
        progress.say(STAGES[name])
        before = time.perf_counter()
        done = subprocess.run([*map(str, words)], capture_output=True, text=True, cwd=folder)
        if done.returncode:
            raise InputError(f"{STAGES[name]} failed: {done.stderr[-1000:]}")
        seconds[name] = time.perf_counter() - before

    programs = folder / "venv" / "bin"
    stage("environment", python, "-m", "venv", folder / "venv")
    stage("install", programs / "pip", "install", "-q", "--no-cache-dir", f"{ROOT}[serve]")
    progress.say(STAGES["start"])
    before = time.perf_counter()
    command = [str(programs / "jaxalign"), "serve", "--port", "0"]
    command += ["--database", f"sqlite:///{folder}/service.sqlite"]
    async with started(command, folder / "log") as (address, _):
        seconds["start"] = time.perf_counter() - before
        progress.say(STAGES["answer"])
        before = time.perf_counter()
        async with httpx.AsyncClient(base_url=address, timeout=600) as client:
            response = await client.post("/v1/chat/completions", json=REQUEST)
        seconds["answer"] = time.perf_counter() - before
        if response.status_code != httpx.codes.OK:
            raise InputError(f"the first request: status {response.status_code}, {response.text}")
        reply = response.json()
    return {
        "seconds": seconds,
        "to_first_answer": sum(seconds.values()),
        "tokens": reply["usage"]["completion_tokens"],
        "answer": reply["choices"][0]["message"]["content"],
    }


def summary(result: dict[str, Any]) -> str:
    """Return the table of a result."""
    lines = [[STAGES[name], f"{found:.0f}"] for name, found in result["seconds"].items()]
    lines.append(["together", f"{result['to_first_answer']:.0f}"])
    return harness.table(["from an empty environment to the first answer", "seconds"], lines)
