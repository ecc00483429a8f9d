"""`jaxalign import`."""

import argparse
from pathlib import Path

from jaxalign.commands.parser import Commands, add_out, command


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = command(
        commands,
        "import",
        _import,
        "turn feedback of chat applications, annotation tools and data sets into choices and "
        "ratings",
        epilog="`jaxalign import --formats` lists the formats.",
    )
    parser.add_argument("--formats", action=_Formats, nargs=0, help="list the formats and stop")
    parser.add_argument("format", help="name of the format, or auto to recognise it")
    parser.add_argument("files", nargs="+", help="files, or names of Hugging Face data sets")
    add_out(
        parser, "file", "JSON lines to write", endings=(".jsonl",),
        fields=(("user", "chosen", "rejected"), ("user", "answer", "rating")),
    )  # fmt: skip
    parser.add_argument("--user", help="the one user whose feedback all of it is")
    parser.add_argument("--user-column", help="column that names the user of each row")
    parser.add_argument(
        "--scale", nargs=2, type=float, metavar=("LOW", "HIGH"),
        help="lowest and highest rating, where the format does not state them",
    )  # fmt: skip
    parser.add_argument("--score", help="score or question to read, where there are several")
    parser.add_argument(
        "--on-bad-row", choices=("refuse", "drop"), default="refuse",
        help="whether a row that cannot be used ends the import, or is left out and counted",
    )  # fmt: skip
    parser.add_argument(
        "--pseudonyms", type=Path, metavar="FILE",
        help="hash the ids of users with the secret in this file, which is made if missing",
    )  # fmt: skip


class _Formats(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> None:
        from jaxalign.data.importers import formats

        width = max(len(one.name) for one in formats())
        for one in formats():
            print(f"{one.name:<{width}}  {one.title}")
        parser.exit()


def _import(arguments: argparse.Namespace, _: list[str]) -> None:
    from jaxalign.data.importers import ImportOptions, import_feedback
    from jaxalign.errors import InputError

    scale = None if arguments.scale is None else tuple(arguments.scale)
    if scale is not None and not scale[0] < scale[1]:
        raise InputError(f"--scale {scale[0]:g} {scale[1]:g}: expected the lowest value first.")
    options = ImportOptions(arguments.user, arguments.user_column, scale, arguments.score)
    summary = import_feedback(
        arguments.files, arguments.out, arguments.format, options, arguments.on_bad_row,
        arguments.pseudonyms,
    )  # fmt: skip
    for line in [*summary.lines(), f"wrote {arguments.out}"]:
        print(line)
