"""How benchmarks measure: interleaved rounds, compile time apart, the machine written down."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

Side = Callable[[], Any]
CEILINGS = "JAXALIGN_BENCHMARK_CEILINGS"  # names a JSON file: dtype -> as from `ceilings`
NO_CLAIM = (
    "Measured on a CPU at a small size: this shows that the benchmark runs and says nothing about "
    "speed on an accelerator."
)


@dataclass(frozen=True)
class Timing:
    """Seconds of one side.

    Attributes:
        first: of the first call, compilation included.
        best, low, median, high: of a call in the rounds after it, the fastest and the quartiles.
        calls: made in all rounds.
        again: programs that JAX made after the first call; unless it is 0, the times are wrong.
    """

    first: float
    best: float
    low: float
    median: float
    high: float
    calls: int
    again: int = 0


def measure(
    sides: Mapping[str, Side],
    rounds: int = 9,
    seconds: float = 0.2,
    limit: float = 60.0,
    firsts: Mapping[str, float] | None = None,
) -> dict[str, Timing]:
    """Times several ways of doing the same, one after the other in every round.

    What else the machine does then falls on all sides alike.

    Args:
        sides: by name; a call does all the work and returns when it is done (`wait` helps).
        rounds: in each, a side is called for `seconds`; its time is the mean.
        seconds: least time of a side in a round.
        limit: after so many seconds no new round begins, once three are done.
        firsts: seconds of first calls that were made before, such as those that were compared.

    Returns:
        A timing a side, in the order of `sides`.
    """
    first, pace, programs = dict(firsts or {}), {}, _programs()
    again = dict.fromkeys(sides, 0)
    for name, call in sides.items():
        if name not in first:
            first[name] = _elapsed(call, 1)
        made = len(programs)
        pace[name] = _elapsed(call, 1)  # warm: also what the number of calls is set by
        again[name] += len(programs) - made
    calls = {name: max(1, round(seconds / max(pace[name], 1e-9))) for name in sides}
    times: dict[str, list[float]] = {name: [] for name in sides}
    start = time.perf_counter()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - start > limit:
            break
        # Every other round backwards, so that no side always follows the same one.
        for name in list(sides)[:: 1 if done % 2 == 0 else -1]:
            made = len(programs)
            times[name].append(_elapsed(sides[name], calls[name]) / calls[name])
            again[name] += len(programs) - made
    return {name: _timing(first[name], times[name], calls[name], again[name]) for name in sides}


def started(benchmark: str, dtype: str, claim: str = NO_CLAIM) -> dict[str, Any]:
    """A result without rows: machine, ceilings, and what may be claimed where no accelerator is."""
    import jax

    return {
        "benchmark": benchmark,
        "claim": claim if jax.default_backend() == "cpu" else None,
        "dtype": dtype,
        "machine": machine(),
        "ceilings": ceilings(dtype),
        "rows": [],
        "failed": [],
    }


def empty_result(benchmark: str, units: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A result without rows: machine, units of its figures, and settings."""
    return {
        "benchmark": benchmark,
        "machine": machine(),
        "units": units,
        "settings": dict(settings),
        "rows": [],
    }


def attempt(
    result: dict[str, Any],
    name: str,
    job: Callable[[], dict[str, Any] | None],
    out: Path,
    table: Callable[[dict[str, Any]], str],
) -> bool:
    """Does a job, adds the row that it returns, frees the device and writes all that is known.

    Returns:
        Whether the job went through. What fails (memory of either library, sides that are not
        equal) is named in the result, and other jobs can go on.
    """
    import jax

    print(f"{name} ...", file=sys.stderr, flush=True)
    try:
        row = job()
    except (RuntimeError, MemoryError) as error:
        failed(result, name, error)
        return False
    else:
        if row is not None:
            result["rows"].append(row)
        return True
    finally:
        jax.clear_caches()
        if "torch" in sys.modules:
            import torch

            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        write(out, result, table(result))


def failed(result: dict[str, Any], name: str, error: BaseException) -> None:
    """Names what failed in a result, with the first line of the error's words."""
    result["failed"].append({"name": name, "why": str(error).split("\n")[0]})


def timed(call: Side) -> tuple[Any, float]:
    """What a call returns, and the seconds that it takes."""
    start = time.perf_counter()
    found = call()
    return found, time.perf_counter() - start


def wait(value: Any) -> Any:
    """The value, once the device has finished it: JAX and torch return before that."""
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
    import jax

    return jax.block_until_ready(value)


def whole(mesh: Any) -> Any:
    """The sharding of arrays that every device of a mesh has whole.

    What a step takes must lie as what it gives back: or the second call compiles once more.
    """
    from jax.sharding import NamedSharding, PartitionSpec

    return NamedSharding(mesh, PartitionSpec())


def machine() -> dict[str, Any]:
    """What the figures were measured on: processor, cores, accelerators, versions, commit."""
    import jax

    names = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers", "peft")
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    found = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "devices": sorted({device.device_kind for device in jax.devices()}),
        "device_count": jax.device_count(),
        "load_before": os.getloadavg()[0],
        "versions": versions,
        "commit": _commit(),
        "command": " ".join(["python -m benchmarks", *map(_portable, sys.argv[1:])]),
        "date": time.strftime("%Y-%m-%d"),
    }
    if "torch" in sys.modules:
        import torch

        found["torch_threads"] = torch.get_num_threads()
    return found


def ceilings(dtype: str = "float32", rounds: int = 15) -> dict[str, Any]:
    """What a device can do at most: matmul FLOP/s, bytes/s of copy and read, seconds of a launch.

    The fastest of all rounds: what else the machine does must not lower a ceiling. Rows of
    `python -m benchmarks all` share those that it measured first.
    """
    if CEILINGS in os.environ:
        known: dict[str, Any] = json.loads(Path(os.environ[CEILINGS]).read_text(encoding="utf-8"))
        if dtype in known:
            return dict(known[dtype])
    import jax
    import jax.numpy as jnp

    accelerated = jax.default_backend() != "cpu"
    width = 8192 if accelerated else 2048
    square = jnp.ones((width, width), dtype)
    count = (1 << 30 if accelerated else 1 << 28) // jnp.dtype(dtype).itemsize
    long = jnp.ones(count, dtype)
    product = jax.jit(lambda a: a @ a)
    copy = jax.jit(lambda a: a + jnp.asarray(1, a.dtype))
    small = jax.jit(lambda a: a + jnp.asarray(1, a.dtype))
    dot = jnp.ones(8, dtype)
    # A copy on a CPU also takes new pages: what only reads may be faster.
    read = jax.jit(lambda rows, vector: rows @ vector)
    rows, vector = long.reshape(-1, 4096), jnp.ones(4096, dtype)
    timed = measure(
        {
            "matmul": lambda: wait(product(square)),
            "copy": lambda: wait(copy(long)),
            "read": lambda: wait(read(rows, vector)),
            "launch": lambda: wait(small(dot)),
        },
        rounds=rounds,
        seconds=0.1,
    )
    return {
        "matmul_flops": 2 * width**3 / timed["matmul"].best,
        "copy_bytes": 2 * long.nbytes / timed["copy"].best,
        "read_bytes": long.nbytes / timed["read"].best,
        "launch_seconds": timed["launch"].best,
        "dtype": dtype,
    }


def row(name: str, timings: Mapping[str, Timing], ours: str, **facts: Any) -> dict[str, Any]:
    """One line of a result: what was measured, the timings of all sides and the ratios to ours."""
    base = timings[ours].median
    return {
        "name": name,
        "ours": ours,
        **facts,
        "seconds": {side: asdict(timing) for side, timing in timings.items()},
        "times_as_fast": {s: t.median / base for s, t in timings.items() if s != ours},
    }


def write(out: Path, result: Mapping[str, Any], table: str) -> None:
    """`result.json` and `table.md` in a folder, each written aside and renamed."""
    out.mkdir(parents=True, exist_ok=True)
    for name, text in (("result.json", json.dumps(result, indent=1) + "\n"), ("table.md", table)):
        aside = out / f".{name}.part"
        aside.write_text(text, encoding="utf-8")
        aside.replace(out / name)


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, first column to the left, the rest to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def shown(seconds: float) -> str:
    """A time with three digits and its unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size or unit == "us":
            return f"{seconds / size:.3g} {unit}"
    raise AssertionError


def _elapsed(call: Side, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - start


@cache
def _programs() -> list[float]:
    """Grows by one whenever JAX makes a program, compiled or out of its cache."""
    import jax

    seen: list[float] = []

    def record(event: str, seconds: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(record)
    return seen


def _timing(first: float, times: list[float], calls: int, again: int) -> Timing:
    low, median, high = (
        statistics.quantiles(times, n=4, method="inclusive") if times[1:] else 3 * times
    )
    return Timing(first, min(times), low, median, high, calls * len(times), again)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str:
    folder = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=folder, capture_output=True, text=True
        )
    except OSError:
        return "unknown"
    return found.stdout.strip() or "unknown"


def _portable(word: str) -> str:
    """A word of a command line, a path of this machine by its last part alone."""
    return Path(word).name if Path(word).is_absolute() else word
