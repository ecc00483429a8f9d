"""Several processes, one or more per host, that train one model together."""

import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
from jax.experimental import multihost_utils

from jaxalign.config_fields import checks_fields
from jaxalign.errors import InputError
from jaxalign.runs.processes import (
    check_same,
    gather_values,
    is_first_process,
    several_processes,
)
from jaxalign.version import __version__

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
HEARTBEAT = 6
"""Seconds without a sign of life after which a process counts as dead."""
LOST = 3
"""Exit status of a process whose run has lost another process."""
_LOOK_EVERY = 1.0  # seconds
_LOST = b"""
jaxalign: another process of this run has ended: look at what it printed, then start all of them \
again with the same command and --resume.
"""


@dataclass(frozen=True)
@checks_fields
class DistributedConfig:
    """Which of the processes of a run this one is.

    What is None is read from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. With
    nothing given there is one process.

    Attributes:
        coordinator: `host:port` of process 0, a free port there; or `auto`, where the cluster says
            all three itself (Slurm, Kubernetes, Open MPI, TPU).
        processes: how many processes there are, at least 1.
        process: which of them this is, from 0.

    Example:
        >>> from jaxalign.train.distributed import DistributedConfig
        >>> DistributedConfig("node1:12345", processes=2, process=0).coordinator
        'node1:12345'
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None


class Peers:
    """The other processes of a run, watched by a thread that ends this one when one of them dies.

    A process that waits for a dead one would wait for ever.
    """

    def __init__(self) -> None:
        """Start to watch."""
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def leave(self) -> None:
        """Leave when the work of all processes is done; process 0 leaves last."""
        gather_values(None)
        self._ended.set()
        self._watcher.join()
        jax.distributed.shutdown()

    def _watch(self) -> None:
        first = is_first_process()
        try:
            # Process 0 holds what connects the others, and watches until they have left.
            while first or not self._ended.is_set():
                with multihost_utils.live_devices(jax.devices()):
                    self._ended.wait(_LOOK_EVERY)
        except (multihost_utils.ProcessFailureError, jax.errors.JaxRuntimeError):
            if not self._ended.is_set():
                os.write(2, _LOST)
                os._exit(LOST)


def start(
    config: DistributedConfig, timeout: int = 300, say: Callable[[str], None] = lambda text: None
) -> Peers | None:
    """Join the processes of this run; to be called before anything touches a device.

    Args:
        config: which of the processes this one is.
        timeout: seconds to wait for the others.
        say: called with one line before it waits.

    Returns:
        The other processes; None in a run of one.

    Raises:
        InputError: for values that are missing or wrong, a coordinator that does not answer, a
            call after the devices are in use, or processes of different versions.

    Example:
        >>> from jaxalign.train.distributed import DistributedConfig, start
        >>> print(start(DistributedConfig()))  # one process
        None
    """
    given = (config.coordinator, config.processes, config.process)
    address, count, own = (
        os.environ.get(name) if value is None else value
        for name, value in zip(VARIABLES, given, strict=True)
    )
    if address is None and count is None and own is None:
        return None
    if address == "auto":
        _initialize(timeout)
    else:
        host, port = _address(address)
        count, own = _whole(count, "processes", 1), _whole(own, "process", 0)
        if own >= count:
            raise InputError(
                f"process {own} of {count} processes; expected a number from 0 to {count - 1} in "
                f"{_option('process')}."
            )
        say(f"process {own} of {count}: waiting for the others at {host}:{port}")
        if own:
            # jax ends the whole process, without an exception, if the coordinator does not answer.
            _reach(host, port, timeout)
        _initialize(timeout, f"{host}:{port}", count, own)
    versions = {"the version of jaxalign": __version__, "the version of jax": jax.__version__}
    check_same(versions, "install the same packages for all of them")
    return Peers() if several_processes() else None


def _initialize(
    timeout: int,
    address: str | None = None,
    count: int | None = None,
    own: int | None = None,
) -> None:
    # Else jax itself ends this process when another dies, with pages of its own messages.
    jax.config.update("jax_enable_recoverability", True)
    try:
        jax.distributed.initialize(
            address,
            count,
            own,
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"the processes could not join ({reason}): join them once, before any array is made, "
            "and with `auto` only on a cluster that jax knows."
        ) from error


def _address(address: object) -> tuple[str, int]:
    host, colon, port = str(address or "").rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(
            f"{_option('coordinator')} is {_found(address)}; expected host:port of process 0, or "
            "`auto` on a cluster."
        )
    return host, int(port)


def _whole(value: object, name: str, least: int) -> int:
    text = str(value)
    if not text.isdecimal() or int(text) < least:
        raise InputError(
            f"{_option(name)} is {_found(value)}; expected a whole number of at least {least}."
        )
    return int(text)


def _found(value: object) -> str:
    """How a message shows what was found for a setting."""
    return "missing" if value is None else repr(value)


def _option(name: str) -> str:
    """How a message calls a setting: the option and the variable that it may come from."""
    variable = dict(zip(("coordinator", "processes", "process"), VARIABLES, strict=True))[name]
    return f"--distributed.{name} ({variable})"


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
