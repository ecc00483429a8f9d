"""Many processes, one a host, that train one model together."""

import os
import socket
import time

import jax

from jaxalign.errors import InputError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def start(
    coordinator: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
    timeout: int = 300,
) -> bool:
    """Join the processes of this run; to be called before anything touches a device.

    What is None is read from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. With
    nothing given this is a run of one process, and nothing is done.

    Args:
        coordinator: `host:port` of process 0, a free port there; or `auto`, where a cluster says
            all three itself (TPU, Slurm, Open MPI, Kubernetes).
        processes: how many there are.
        process_id: which of them this is, from 0.
        timeout: seconds to wait for the others.

    Returns:
        Whether there are other processes.

    Raises:
        InputError: for values that are missing or wrong, a coordinator that does not answer, or
            a call after the devices are in use.
    """
    given = (coordinator, processes, process_id)
    address, count, own = (
        os.environ.get(name) if value is None else value
        for name, value in zip(VARIABLES, given, strict=True)
    )
    if address is None and count is None and own is None:
        return False
    if address == "auto":
        _initialize(timeout)
        return jax.process_count() > 1
    host, port = _address(address)
    count, own = _whole(count, VARIABLES[1], 1), _whole(own, VARIABLES[2], 0)
    if own >= count:
        raise InputError(
            f"process {own} of {count} processes; expected a number from 0 to {count - 1}."
        )
    if own:
        # jax ends the whole process, without an exception, when the coordinator does not answer.
        _reach(host, port, timeout)
    _initialize(timeout, f"{host}:{port}", count, own)
    return count > 1


def _initialize(
    timeout: int,
    address: str | None = None,
    count: int | None = None,
    own: int | None = None,
) -> None:
    try:
        jax.distributed.initialize(address, count, own, initialization_timeout=timeout)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"the processes could not join ({reason}): join them once, before any array is made, "
            "and with `auto` only on a cluster that jax knows."
        ) from error


def _address(address: object) -> tuple[str, int]:
    host, colon, port = str(address or "").rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InputError(
            f"coordinator ({VARIABLES[0]}) is {address!r}; expected host:port of process 0."
        )
    return host, int(port)


def _whole(value: object, name: str, least: int) -> int:
    text = str(value)
    if not text.isdigit() or int(text) < least:
        raise InputError(f"{name} is {value!r}; expected a whole number of at least {least}.")
    return int(text)


def _reach(host: str, port: int, timeout: int) -> None:
    end = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host.strip("[]"), port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise InputError(
                    f"no coordinator answers at {host}:{port} after {timeout} s ({error}): start "
                    "process 0 there, and open the port."
                ) from error
        time.sleep(0.2)
