"""Commands that several processes run together: how they join, and how they leave."""

import argparse
import os
import sys
import time
import traceback
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


def join_processes(arguments: argparse.Namespace) -> "Peers | None":
    """Join the other processes of a command, before anything touches a device.

    Only process 0 prints what the command prints on standard output.

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
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    return peers


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
    """Let an unexpected exception of one of several processes be told from another's death.

    Where another process has died, the watching thread ends this one, with one sentence.
    """
    if peers is None:
        return
    from jaxalign.train.distributed import HEARTBEAT

    time.sleep(HEARTBEAT + _LAST)
    traceback.print_exc()
    sys.stderr.flush()
    os._exit(1)
