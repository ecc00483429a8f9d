"""Commands that several processes run together: how they join, and how they leave."""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxalign.train.distributed import Peers

_LAST = 2.0  # seconds by which process 0 leaves later: when it ends, jax ends the others


def takes_processes(parser: argparse.ArgumentParser) -> None:
    """Let several processes run a command together; `join_processes` reads the options."""
    options = parser.add_argument_group(
        "several processes", "the same command, started once per host: see docs/distributed.md"
    )
    options.add_argument(
        "--distributed.coordinator",
        dest="coordinator",
        metavar="HOST:PORT",
        help="address of process 0 with a free port; `auto` under Slurm or Kubernetes",
    )
    for name, metavar, text in (
        ("processes", "N", "how many there are"),
        ("process", "I", "which of them this is, from 0"),
    ):
        options.add_argument(
            f"--distributed.{name}", dest=name, type=int, metavar=metavar, help=text
        )
    parser.set_defaults(joins=True)


def join_processes(arguments: argparse.Namespace, until: ExitStack) -> "Peers | None":
    """Join the other processes of a command, before anything touches a device.

    Only process 0 prints what the command prints on standard output.

    Args:
        arguments: of the command.
        until: closed when the command ends; what the others print is discarded until then.

    Returns:
        The other processes; None where there are none.

    Raises:
        InputError: as `jaxalign.train.distributed.start`.
    """
    if not getattr(arguments, "joins", False):
        return None
    from jaxalign.progress import Progress
    from jaxalign.runs.processes import is_first_process
    from jaxalign.train.distributed import DistributedConfig, start

    config = DistributedConfig(arguments.coordinator, arguments.processes, arguments.process)
    peers = start(config, say=Progress().say)
    if not is_first_process():
        until.enter_context(_without_output())
    return peers


@contextmanager
def _without_output() -> Iterator[None]:
    """Discard what is printed on standard output."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


def leave_processes(arguments: argparse.Namespace, code: int) -> int:
    """Return the exit status of a command that failed; one of several processes ends at once.

    The usual end of a process would wait for the others, which wait for this one.
    """
    if not getattr(arguments, "joins", False):
        return code
    from jaxalign.runs.processes import is_first_process, several_processes

    if not several_processes():
        return code
    sys.stderr.flush()
    if is_first_process():
        time.sleep(_LAST)
    os._exit(code)


def explain_failure(peers: "Peers | None") -> None:
    """Print an unexpected exception of one of several processes, unless another process has died.

    The death of another process makes exceptions here, too. The thread that watches the others then
    ends this process with one sentence, within the time that this function waits.
    """
    if peers is None:
        return
    from jaxalign.train.distributed import HEARTBEAT

    time.sleep(HEARTBEAT + _LAST)
    traceback.print_exc()
    sys.stderr.flush()
    os._exit(1)
