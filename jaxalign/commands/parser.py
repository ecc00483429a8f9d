"""What the commands share: a parser whose refusals are one sentence, and its options."""

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from jaxalign.errors import InputError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = argparse._SubParsersAction
Run = Callable[[argparse.Namespace, list[str]], None]


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise InputError(f"{message}: see `{self.prog} --help`")


def command(
    commands: Commands, name: str, run: Run, text: str, epilog: str | None = None
) -> argparse.ArgumentParser:
    """Adds a command that calls `run(arguments, rest)`; returns its parser.

    Args:
        commands: of `add_subparsers`.
        name: what the user types.
        run: called with the parsed arguments and what was left over.
        text: help, lower case, without a full stop.
        epilog: what stands below the options in its help.
    """
    parser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        allow_abbrev=False,
        epilog=epilog,
    )
    parser.set_defaults(run=run)
    return parser


def group(commands: Commands, name: str, text: str) -> Commands:
    """Adds a word that stands before several commands; returns where to add them."""
    parser = commands.add_parser(name, help=text, allow_abbrev=False)
    return parser.add_subparsers(required=True, metavar="ACTION")


def takes_config(parser: argparse.ArgumentParser, config: str) -> None:
    """Let options of a command set fields of a config, and let `--fields` list them.

    Args:
        parser: of the command.
        config: module and class, such as `jaxalign.mrm.config:MRMRunConfig`; imported when used.
    """

    class Fields(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> None:
            from jaxalign.config import describe

            module, _, cls = config.partition(":")
            print(describe(getattr(importlib.import_module(module), cls)))
            parser.exit()

    parser.add_argument(
        "--fields", action=Fields, nargs=0, help="list the config's fields and stop"
    )
    parser.set_defaults(takes_config=True)


def check_out(out: Path | None, *read: str | Path | None) -> None:
    """Refuse an `--out` that cannot be written, before any work is done.

    Args:
        out: file to write; None for standard output.
        read: files that the command reads, which must not be written over.

    Raises:
        InputError: `out` is a folder, lies below a file, or is one of the files that are read.
    """
    if out is None:
        return
    out = out.expanduser()
    if out.is_dir():
        raise InputError(
            f"--out {out} is a folder; expected the name of a file to write: give another --out."
        )
    above = next((folder for folder in out.parents if folder.exists()), None)
    if above is not None and not above.is_dir():
        raise InputError(f"--out {out} lies below the file {above}: give another --out.")
    for given in read:
        if given is not None and out.exists():
            path = Path(given).expanduser()
            if path.exists() and path.samefile(out):
                raise InputError(
                    f"--out {out} is the file that is read; expected another name: give another "
                    "--out."
                )


def check_drawing(arguments: argparse.Namespace) -> None:
    """Refuse a seed or a batch size that nothing can be drawn with.

    Raises:
        InputError: `seed` is below 0 or `batch_size` below 1.
    """
    if arguments.seed < 0 or arguments.batch_size < 1:
        raise InputError(
            f"--seed {arguments.seed}, --batch-size {arguments.batch_size}: expected a seed of at "
            "least 0 and a batch of at least 1"
        )
