"""The command line: parses, calls, prints."""

import argparse
import functools
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from types import FrameType
from typing import NoReturn

from jaxalign.commands import (
    answer,
    compile_cache,
    demo,
    embed,
    export,
    generate,
    import_feedback,
    merge,
    moc,
    mrm,
    palm,
    pplug,
    reward,
    serve,
    sft,
)
from jaxalign.commands.parser import Parser, check_out, leave_torch
from jaxalign.commands.processes import explain_failure, join_processes, leave_processes
from jaxalign.errors import InputError
from jaxalign.version import __version__

_SIGNALS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 when it worked, 2 for a user's mistake, 128 + N when stopped by signal N."""
    # Before BLAS loads: its threads inside XLA's make batched small solves a hundred times slower.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # "PyTorch was not found"
    os.environ.update(compile_cache.variables(os.environ))
    arguments, peers = argparse.Namespace(), None
    try:
        for number, usual in _SIGNALS.items() if argv is None else ():
            if signal.getsignal(number) is usual:
                signal.signal(number, functools.partial(_stop, arguments))
        _, rest = _parser().parse_known_args(argv, arguments)
        if rest and not getattr(arguments, "takes_config", False):
            raise InputError(f"unknown option {rest[0]!r}: see `jaxalign --help`")
        check_out(arguments)
        if argv is None:  # else the process is the caller's
            leave_torch(arguments)
        with ExitStack() as until:
            peers = join_processes(arguments, until)
            arguments.run(arguments, rest)
            if peers is not None:
                peers.leave()
    except InputError as error:
        print(f"jaxalign: {error}", file=sys.stderr)
        return leave_processes(arguments, 2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None:
            explain_failure(peers)
            raise
        print(f"jaxalign: {error.filename}: {error.strerror or error}", file=sys.stderr)
        return leave_processes(arguments, 2)
    except KeyboardInterrupt:
        print(_stopped(arguments), file=sys.stderr)
        return 130
    except Exception:
        explain_failure(peers)
        raise
    return 0


def _stop(arguments: argparse.Namespace, number: int, _: FrameType | None) -> NoReturn:
    """End the process at Ctrl-C or SIGTERM: files are whole or absent at any moment.

    Loops of training hold the signal back until their state is written, see `jaxalign.runs.stop`.
    Raised as an exception, a Ctrl-C is lost where libraries catch all or run callbacks.
    """
    os.write(2, f"{_stopped(arguments)}\n".encode())
    os._exit(128 + number)


def _stopped(arguments: argparse.Namespace) -> str:
    again = " Go on with the same command and --resume." if hasattr(arguments, "resume") else ""
    return f"\njaxalign: stopped.{again}"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="jaxalign", description="Personalise language models.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"jaxalign {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (
        demo, import_feedback, embed, mrm, palm, moc, pplug, sft, merge, export, reward, generate,
        answer, serve,
    ):  # fmt: skip
        module.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
