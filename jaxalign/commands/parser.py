"""What the commands share: a parser whose refusals are one sentence, and its options."""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal, NoReturn

from jaxalign.errors import InputError
from jaxalign.files import check_output
from jaxalign.recognise import first_fields

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


def imports_user_code(parser: argparse.ArgumentParser) -> None:
    """Mark a command that imports functions of the user, which may need torch: `leave_torch`."""
    parser.set_defaults(imports_user_code=True)


def leave_torch(arguments: argparse.Namespace) -> None:
    """Keep the process of a command from loading torch, which takes seconds.

    transformers imports torch wherever it is installed, and no command computes with it. Only
    functions of the user may: commands that import some are left alone.

    Args:
        arguments: of the command.
    """
    if not getattr(arguments, "imports_user_code", False):
        # An entry of None in sys.modules would do as well, but for libraries that look for the name
        # there and take it for the module.
        sys.meta_path[:] = [_AllButTorch if one is PathFinder else one for one in sys.meta_path]


class _AllButTorch(PathFinder):
    """Finds modules as Python does, and torch never."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return None if fullname == "torch" else super().find_spec(fullname, path, target)


def add_out(
    parser: argparse.ArgumentParser,
    kind: Literal["file", "folder"],
    text: str,
    endings: tuple[str, ...] = (),
    required: bool = True,
    default: Path | None = None,
    fields: tuple[tuple[str, ...], ...] = (),
) -> None:
    """Add `--out`, which `check_out` checks before the command runs.

    Args:
        parser: of the command.
        kind: what the command writes there.
        text: help.
        endings: that the name of a file may have; empty for any.
        required: whether it must be given.
        default: where it is left out.
        fields: what all that the command writes there has, as of `recognise.first_fields`, or the
            alternatives; a file without is not replaced. Empty where the command itself sees to it.
    """
    parser.add_argument("--out", type=Path, required=required, default=default, help=text)
    parser.set_defaults(out_kind=kind, out_endings=endings, out_fields=fields)


def check_out(arguments: argparse.Namespace) -> None:
    """Refuse outputs of a command that cannot be written, before it runs.

    Args:
        arguments: of the command; each of its other paths is read, and not written over.

    Raises:
        InputError: as `jaxalign.files.check_output`, or --out has another ending than it must.
    """
    given = vars(arguments)
    out, store = given.get("out"), given.get("store")
    if store is not None:
        check_output(store, "folder", option="--store")
    if out is None:
        return
    endings = arguments.out_endings
    if endings and out.suffix not in endings:
        raise InputError(f"--out {out} must end in {' or '.join(endings)}.")
    own = ("out", "out_kind", "out_endings", "out_fields")
    others = [value for name, value in given.items() if name not in own]
    values = [one for value in others for one in (value if isinstance(value, list) else [value])]
    check_output(out, arguments.out_kind, [one for one in values if isinstance(one, str | Path)])
    _refuse_foreign(out, arguments.out_fields)


def _refuse_foreign(out: Path, alternatives: tuple[tuple[str, ...], ...]) -> None:
    """Refuse to replace a file that holds something else than the command writes."""
    if not alternatives or not out.is_file() or not out.stat().st_size:
        return
    found = first_fields(out)
    if not any(found.issuperset(fields) for fields in alternatives):
        raise InputError(
            f"--out {out} is there, and this command has not written what it holds, which would be "
            "lost: remove it, or give another --out."
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
