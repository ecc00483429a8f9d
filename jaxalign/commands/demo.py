"""`jaxalign demo`."""

import argparse
from pathlib import Path

from jaxalign.commands.parser import Commands, add_out, command
from jaxalign.errors import InputError


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = command(commands, "demo", _demo, "the whole job on data that ships with the package")
    add_out(parser, "folder", "folder of report and plots", required=False, default=Path("demo"))
    parser.add_argument("--seed", type=int, default=0, help="of the simulated users, at least 0")
    parser.add_argument(
        "--files-only",
        action="store_true",
        help="write the answers and the simulated users' choices as files for other commands, and "
        "stop",
    )


def _demo(arguments: argparse.Namespace, _: list[str]) -> None:
    from jaxalign.demo import run_demo, write_files

    if arguments.seed < 0:
        raise InputError(f"--seed: found {arguments.seed}, expected at least 0; correct it.")
    if arguments.files_only:
        names = write_files(arguments.out, seed=arguments.seed)
        print(f"wrote {', '.join(names)} to {arguments.out}")
        return
    run_demo(arguments.out, seed=arguments.seed)
