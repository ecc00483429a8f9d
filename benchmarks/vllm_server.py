"""A real vLLM on this machine, started for a benchmark and stopped after it."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx

from jaxalign.errors import InputError

_START_SECONDS = 900.0  # of vLLM on two busy cores
SMALL = ("--dtype", "float32", "--max-model-len", "512", "--enforce-eager")
"""Options of a vLLM whose answers are compared: float32, and a quick start."""


def check_vllm(program: Path) -> None:
    """Raise unless there is a program.

    Raises:
        InputError: There is none.
    """
    if not program.is_file():
        raise InputError(
            f"--vllm {program}: no such file; expected the program of an installed vLLM."
        )


def free_port() -> int:
    """Return a port of this machine that nothing listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@contextlib.contextmanager
def vllm_server(
    program: Path,
    command: Sequence[str],
    log: Path,
    port: int | None = None,
    options: Sequence[str] = SMALL,
    variables: Mapping[str, str] | None = None,
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Start vLLM, and yield its process and its address; it may not answer yet.

    Args:
        program: `vllm` in its own environment.
        command: What starts it, to which options follow.
        log: File of its output.
        port: Its port; None for a free one.
        options: What follows the command and the port.
        variables: Of its environment, besides those of this process.
    """
    port = port or free_port()
    environment = {
        **os.environ,
        "PATH": f"{program.parent.absolute()}:{os.environ['PATH']}",
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        **(variables or {}),
    }
    environment.pop("PYTHONPATH", None)  # it has a Python of its own
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--port", str(port), *options],
            stdout=out, stderr=out, env=environment, start_new_session=True,
        )  # fmt: skip
    try:
        yield process, f"http://127.0.0.1:{port}/v1"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)  # its engine is a process of its own
        process.wait()


def wait_for_vllm(process: subprocess.Popen[bytes], address: str, log: Path) -> str:
    """Wait until vLLM answers, and return its version.

    Raises:
        RuntimeError: It ended, or took too long.
    """
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{address}/models", timeout=5).status_code == httpx.codes.OK:
                found = httpx.get(address.replace("/v1", "/version")).json()
                return str(found["version"])
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise RuntimeError(f"vLLM did not start: {log.read_text(errors='replace')[-2000:]}")
