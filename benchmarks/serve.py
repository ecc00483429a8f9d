"""What `jaxalign serve` costs over loopback: latency and throughput, feedback, memory.

Upstream, an empty proxy (FastAPI and httpx) and the service are processes of their own; requests
alternate between them, so that a slow moment of the machine meets all of them. Run it on an idle
machine: on a busy one the 99th percentiles say nothing. `--parts` measures some parts; those of the
result in `--out` that are not measured again stay in it, with the commit that they are of.
"""

import argparse
import asyncio
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness
from benchmarks.docs_pages import replaced
from benchmarks.loop_http import MODEL, running, started
from benchmarks.serve_members import save_members
from benchmarks.serve_processes import DRAWS, WIDTH, wide_ids
from jaxalign.errors import InputError
from jaxalign.models import load_language_model
from jaxalign.personalize.saved import open_policies
from jaxalign.progress import Progress
from jaxalign.serve.reward_space import demo_space
from jaxalign.serve.store import events
from jaxalign.serve.store.database import open_database
from jaxalign.serve.store.events import Event, Limits

BASE = "SmolLM2-135M-Instruct"
"""Model of the portfolio, which draws nothing here: its members are names of the upstream."""
MESSAGES = [{"role": "user", "content": "How can I sleep better?"}]
SAMPLES = 4
CLIENTS = 64
ROWS = (10, 100, 1_000, 10_000)
"""Rows of a user before the feedback that is timed, of which there are no more per user."""
FEEDBACKS = 200
"""Rows of feedback that are timed at each number of rows."""
CHAT, FEEDBACK = "/v1/chat/completions", "/v1/feedback"
PARTS = ("latency", "feedback", "memory")
_OF_LATENCY = ("throughput", "cpu")  # measured with it
BEST_OF = ("--strategy", "best_of", "--least-probability", "0")
MEMORY_CLIENTS, MEMORY_USERS, LOOKS = 16, 200, 30
LIMITS = {
    "plain median": 4.0, "plain p99": 8.0, "throughput": 0.5, "best_of": 10.0, "feedback p99": 15.0,
}  # fmt: skip
"""What the service should reach: milliseconds, and the share of the proxy's throughput."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--requests", type=int, default=400, help="of each path, at one client")
    parser.add_argument("--seconds", type=float, default=6.0, help="of throughput, three times")
    parser.add_argument("--feedbacks", type=int, default=FEEDBACKS, help="at each number of rows")
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS), help="of a user")
    parser.add_argument("--memory", type=int, default=50_000, help="requests of the memory part")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--page", type=Path, help="whose table is renewed, such as docs/serve.md")


def run(arguments: argparse.Namespace) -> int:
    """Measure all, and write the result.

    Raises:
        InputError: too few requests for a 99th percentile, or no time.
    """
    for name, least in (("requests", 20), ("seconds", 0.1), ("feedbacks", 20), ("memory", 100)):
        if getattr(arguments, name) < least:
            raise InputError(f"--{name}: found {getattr(arguments, name)}, expected {least:g} or "
                             "more.")  # fmt: skip
    result = _known(arguments.out) | {
        "benchmark": "serve",
        "units": "milliseconds; over: less the median of the direct call, or of n draws and the "
        "rewards for best_of; throughput in requests a second; cpu of the server per request; "
        "memory in MB of resident pages",
        "limits": LIMITS,
    }
    machine = harness.machine()
    for part in arguments.parts:
        result.setdefault("machines", {})[part] = machine
    asyncio.run(_measure(arguments, result))
    table = summary(result)
    harness.write(arguments.out, result, table)
    if arguments.page is not None:
        page = arguments.page.read_text("utf-8")
        arguments.page.write_text(replaced(page, "serve", table), "utf-8")
    print(table)
    return 0


def _known(out: Path) -> dict[str, Any]:
    """The result that is there, of which some parts are measured again."""
    file = Path(out) / "result.json"
    found: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    return {name: found[name] for name in (*PARTS, *_OF_LATENCY, "machines") if name in found}


async def _measure(arguments: argparse.Namespace, result: dict[str, Any]) -> None:
    progress = Progress()
    module = [sys.executable, "-m", "benchmarks.serve_processes"]
    if "latency" in arguments.parts:
        await _requests(arguments, module, result, progress)
    if "feedback" in arguments.parts:
        with tempfile.TemporaryDirectory() as name:
            progress.say(f"feedback at {WIDTH} features")
            result["feedback"] = await _feedback(
                Path(name), module, arguments.rows, arguments.feedbacks, progress
            )
    if "memory" in arguments.parts:
        result["memory"] = await _memory(module, arguments.memory, progress)


async def _requests(
    arguments: argparse.Namespace, module: list[str], result: dict[str, Any], progress: Progress
) -> None:
    """Measure latency, throughput and CPU time."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        progress.say("starting the upstream, an empty proxy and the service")
        save_members(folder / "portfolio", load_language_model(BASE))
        members = open_policies(folder / "portfolio", None).names[1:]
        upstream, _ = await stack.enter_async_context(
            started([*module, "upstream", MODEL, *members], folder / "upstream.log")
        )
        url = f"{upstream}/v1"
        proxy, proxy_pid = await stack.enter_async_context(
            started([*module, "proxy", url], folder / "proxy.log")
        )
        best_of, _ = await stack.enter_async_context(running(folder, url, SAMPLES, *BEST_OF))
        other = folder / "member"
        other.mkdir()
        options = ["--strategy", "member", "--portfolio", str(folder / "portfolio")]
        service, pid = await stack.enter_async_context(running(other, url, SAMPLES, *options))
        paths = _paths(upstream, proxy, service, best_of)
        await _learn_once(service)
        await _learn_once(best_of)
        progress.say(f"latency of {', '.join(paths)}")
        result["latency"] = await _latency(paths, arguments.requests)
        progress.say(f"throughput of {CLIENTS} clients")
        rates, cpu = await _throughput(paths, arguments.seconds, proxy_pid, pid)
        result["throughput"], result["cpu"] = rates, cpu


# Requests -------------------------------------------------------------------------------------


class Client:
    """One connection that is kept: as little work as a client can have."""

    def __init__(self, address: str) -> None:
        self._host, self._port = address.removeprefix("http://").split(":")
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the body of the response.

        Raises:
            RuntimeError: a status other than 200.
        """
        return await self._send("POST", path, json.dumps(body).encode())

    async def get(self, path: str) -> dict[str, Any]:
        """Return the body of the response; as `post`."""
        return await self._send("GET", path, b"")

    async def _send(self, method: str, path: str, content: bytes) -> dict[str, Any]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, int(self._port))
        reader, writer = self._streams
        head = f"{method} {path} HTTP/1.1\r\nhost: {self._host}:{self._port}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        writer.write(head.encode() + content)
        try:
            answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.IncompleteReadError:  # the server closes what was idle for seconds
            self.close()
            return await self._send(method, path, content)
        length = re.search(r"content-length: *(\d+)", answer, re.IGNORECASE)
        found = await reader.readexactly(int(length[1]) if length else 0)
        if not answer.startswith("HTTP/1.1 200"):
            raise RuntimeError(f"{path}: {answer.splitlines()[0]}, {found[:500]!r}")
        parsed: dict[str, Any] = json.loads(found)
        return parsed

    def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _timed(call: Awaitable[object]) -> float:
    started_at = time.perf_counter()
    await call
    return 1000 * (time.perf_counter() - started_at)


# Measured -------------------------------------------------------------------------------------


def _paths(
    upstream: str, proxy: str, service: str, best_of: str
) -> dict[str, tuple[str, dict[str, Any]]]:
    """What is timed. `plain` and `member` are answered by one process, so that it is as warm."""
    plain = {"model": MODEL, "messages": MESSAGES}
    named = {**plain, "user": "ann"}
    return {
        "direct": (upstream, plain),
        "proxy": (proxy, plain),
        "plain": (service, plain),
        "plain, stored": (service, named),
        "member": (service, {**plain, "model": "auto"}),
        "member, stored": (service, {**named, "model": "auto"}),
        "direct, n": (upstream, {**plain, "n": SAMPLES}),
        "best_of": (best_of, {**named, "model": "auto"}),
    }


async def _learn_once(service: str) -> None:
    """Wait until the program of feedback, which the service compiles beside its start, is there."""
    client, user = Client(service), "warm"
    answer = await client.post(CHAT, {"model": MODEL, "messages": MESSAGES, "user": user})
    body = {"response_id": answer["jaxalign"]["answers"][0], "rating": "up", "user": user}
    await client.post(FEEDBACK, body)
    client.close()


async def _latency(
    paths: dict[str, tuple[str, dict[str, Any]]], requests: int
) -> dict[str, dict[str, float]]:
    """Median and 99th percentile at one client, requests in turn."""
    clients = {name: Client(address) for name, (address, _) in paths.items()}
    times: dict[str, list[float]] = {name: [] for name in paths}
    warm = requests // 10
    for number in range(warm + requests):
        for name, (_, body) in paths.items():
            took = await _timed(clients[name].post(CHAT, body))
            if number >= warm:
                times[name].append(took)
    for client in clients.values():
        client.close()
    found = {name: _quantiles(values) for name, values in times.items()}
    reading = _reading_ms()
    for name in ("proxy", "plain", "plain, stored", "member", "member, stored"):
        found[name] |= _over(times[name], found["direct"]["median"])
    found["best_of"] |= _over(times["best_of"], found["direct, n"]["median"] + reading)
    found["best_of"]["rewards"] = reading
    return found


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    return {"median": float(np.median(values)), "p99": float(np.quantile(values, 0.99))}


def _over(values: Sequence[float], base: float) -> dict[str, float]:
    return {f"over {name}": value - base for name, value in _quantiles(values).items()}


def _reading_ms() -> float:
    """Time to compute the rewards of the draws, in this process."""
    read = demo_space().read
    prompts = [MESSAGES[0]["content"]] * SAMPLES
    times = []
    for _ in range(50):
        started_at = time.perf_counter()
        read(prompts, DRAWS[:SAMPLES])
        times.append(1000 * (time.perf_counter() - started_at))
    return float(np.median(times))


async def _throughput(
    paths: dict[str, tuple[str, dict[str, Any]]], seconds: float, proxy: int, service: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Requests a second of 64 clients, and CPU time of the server per request, of three turns."""
    servers = {"proxy": proxy, "plain": service, "plain, stored": service}
    rates: dict[str, list[float]] = {name: [] for name in servers}
    cpu: dict[str, list[float]] = {name: [] for name in servers}
    for _ in range(3):
        for name, pid in servers.items():
            before = _cpu_ms(pid)
            count, rate = await _rate(*paths[name], seconds)
            rates[name].append(rate)
            cpu[name].append((_cpu_ms(pid) - before) / max(count, 1))
    medians = ({name: float(np.median(found[name])) for name in servers} for found in (rates, cpu))
    return next(medians), next(medians)


def _cpu_ms(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return 1000 * (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _rate(address: str, body: dict[str, Any], seconds: float) -> tuple[int, float]:
    end = time.perf_counter() + seconds

    async def ask() -> int:
        client, count = Client(address), 0
        while time.perf_counter() < end:
            await client.post(CHAT, body)
            count += 1
        client.close()
        return count

    started_at = time.perf_counter()
    counts = await asyncio.gather(*(ask() for _ in range(CLIENTS)))
    return sum(counts), sum(counts) / (time.perf_counter() - started_at)


async def _memory(module: list[str], requests: int, progress: Progress) -> dict[str, Any]:
    """Resident memory of the service while 16 clients send requests of 200 users."""
    done, started_at, series = 0, time.perf_counter(), []
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        upstream, _ = await stack.enter_async_context(
            started([*module, "upstream", MODEL], folder / "upstream.log")
        )
        service, pid = await stack.enter_async_context(
            running(folder, f"{upstream}/v1", SAMPLES, *BEST_OF)
        )
        await _learn_once(service)

        async def ask() -> None:
            nonlocal done
            client = Client(service)
            while done < requests:
                number, done = done, done + 1
                if number % max(requests // LOOKS, 1) == 0:
                    series.append((number, _resident_mb(pid)))
                    progress.say(f"memory: {number:,} of {requests:,} requests")
                user, model = f"user-{number % MEMORY_USERS}", "auto" if number % 2 else MODEL
                await client.post(CHAT, {"model": model, "messages": MESSAGES, "user": user})
            client.close()

        await asyncio.gather(*(ask() for _ in range(MEMORY_CLIENTS)))
        last = _resident_mb(pid)
    sent, half = series[len(series) // 2]
    return {
        "requests": requests, "first": series[0][1], "half": half, "last": last,
        "seconds": time.perf_counter() - started_at,
        "MB per 10,000 requests in the second half": 10_000 * (last - half) / (requests - sent),
        "series": series,
    }  # fmt: skip


def _resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found[1]) / 1000 if found else float("nan")


async def _feedback(
    folder: Path, module: list[str], rows: Sequence[int], feedbacks: int, progress: Progress
) -> dict[str, dict[str, float]]:
    """Time from a row of feedback to the posterior with it, at several numbers of rows."""
    database = f"sqlite:///{folder}/wide.sqlite"
    requests = _fill(database, rows, feedbacks)
    found: dict[str, dict[str, float]] = {}
    async with (
        started([*module, "upstream", MODEL], folder / "upstream.log") as (upstream, _),
        started([*module, "wide", f"{upstream}/v1", database], folder / "log") as (service, _),
    ):
        client = Client(service)
        for count, users in requests.items():
            progress.say(f"feedback of users with {count:,} rows")
            first, times = [], []
            for user, bodies in users.items():
                first.append(await _timed(client.get(f"/v1/user?id={user}")))
                for body in bodies:
                    times.append(await _timed(client.post(FEEDBACK, body)))
            found[str(count)] = {**_quantiles(times), "built anew": max(first)}
        client.close()
    return found


def _fill(
    database: str, sizes: Sequence[int], feedbacks: int
) -> dict[int, dict[str, list[dict[str, Any]]]]:
    """Write users with rows of feedback, and return their next feedback: by rows and user."""
    rng, opened = np.random.default_rng(0), open_database(database)
    requests: dict[int, dict[str, list[dict[str, Any]]]] = {}
    with opened._writer.connect() as connection, connection.begin():
        events.ensure_salt(connection)
        for rows in sizes:
            count = max(1, feedbacks // rows)
            for number in range(count):
                user, more = f"user-{rows}-{number}", feedbacks // count
                ids = []
                for place in range(rows + more):
                    event = _answers(user, rng) if place >= rows else _preferred(user, place, rng)
                    events.insert(connection, event, "local", Limits())
                    if place >= rows:
                        ids.append(event.id)
                bodies = [{"response_id": f"{key}.0", "preferred": f"{key}.1", "user": user}
                          for key in ids]  # fmt: skip
                requests.setdefault(rows, {})[user] = bodies
    opened.close()
    return requests


def _vector(rng: np.random.Generator) -> list[float]:
    found: list[float] = (rng.standard_normal(WIDTH) / np.sqrt(WIDTH)).tolist()
    return found


def _answers(user: str, rng: np.random.Generator) -> Event:
    key, answers = events.new_id(), [{"features": _vector(rng)} for _ in range(2)]
    text = json.dumps(answers)
    return Event(key, events.now(), f"local:{user}", "answers", key, {}, wide_ids().digest,
                 None, text)  # fmt: skip


def _preferred(user: str, place: int, rng: np.random.Generator) -> Event:
    value: dict[str, object] = {"difference": _vector(rng)}
    return Event(events.new_id(), events.now(), f"local:{user}", "preferred", f"{place}", value,
                 wide_ids().digest)  # fmt: skip


# Shown ----------------------------------------------------------------------------------------


def summary(result: dict[str, Any]) -> str:
    """Return the table of a result, which may lack parts."""
    latency = result.get("latency", {})
    lines = []
    for name in ("proxy", "plain", "plain, stored", "member", "member, stored", "best_of"):
        if name in latency:
            lines.append(
                [f"`{name}` over the direct call, ms", f"{latency[name]['over median']:.1f}",
                 f"{latency[name]['over p99']:.1f}"]
            )  # fmt: skip
    for rows, found in result.get("feedback", {}).items():
        lines.append(
            [f"feedback to posterior, {int(rows):,} rows, {WIDTH} features, ms",
             f"{found['median']:.1f}", f"{found['p99']:.1f}"]
        )  # fmt: skip
    text = harness.table(["over loopback", "median", "99th percentile"], lines)
    if latency:
        shown = ", ".join(f"`{name}` {rate:,.0f}" for name, rate in result["throughput"].items())
        spent = ", ".join(f"`{name}` {each:.1f}" for name, each in result["cpu"].items())
        text += f"\nRequests a second of {CLIENTS} clients: {shown}.\n"
        text += f"\nCPU time of the server per request, ms: {spent}.\n"
    if "memory" in result:
        memory = result["memory"]
        text += (
            f"\nResident memory over {memory['requests']:,} requests: {memory['first']:.0f} MB at "
            f"first, {memory['half']:.0f} MB at half, {memory['last']:.0f} MB at the end.\n"
        )
    return text
