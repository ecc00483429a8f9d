"""`jaxalign demo`."""

import argparse
from pathlib import Path

from jaxalign.commands.parser import Commands, command


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = command(commands, "demo", _demo, "the whole job on data that ships with the package")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder of report and plots")
    parser.add_argument("--seed", type=int, default=0, help="of the simulated users")


def _demo(arguments: argparse.Namespace, _: list[str]) -> None:
    from jaxalign.demo import run_demo

    run_demo(arguments.out, seed=arguments.seed)
