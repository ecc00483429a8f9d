"""`jaxalign merge`."""

import argparse
from pathlib import Path

from jaxalign.commands.parser import Commands, add_out, command


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands,
        "merge",
        _merge,
        "write a base model with LoRA adapters as one whole model",
        epilog="Every command takes the folder as a model, and so does transformers. Several "
        "adapters with weights make a soup: the base plus the weighted sum of their updates.",
    )
    option = parser.add_argument
    option(
        "--adapter",
        type=Path,
        nargs="+",
        default=[],
        help="folders of LoRA adapters, such as model/ of a run of `jaxalign sft`",
    )
    option("--weights", type=float, nargs="+", help="of several adapters, one number for each")
    option(
        "--model",
        help="base model: folder, file or name (the one that the adapters name); or an adapter "
        "in place of --adapter",
    )
    option(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the written weights (that of the base model; float32 for GGUF)",
    )
    option("--shard-gb", type=float, default=5.0, help="largest weight file in GB, above 0 (5)")
    add_out(parser, "folder", "new folder for the model")


def _merge(arguments: argparse.Namespace, _: list[str]) -> None:
    from jaxalign.errors import InputError
    from jaxalign.models.merged import save_merged

    if not arguments.shard_gb > 0:
        raise InputError(f"--shard-gb is {arguments.shard_gb}; expected a number above 0.")
    report = save_merged(
        arguments.out,
        arguments.adapter,
        arguments.weights,
        arguments.model,
        arguments.dtype,
        arguments.shard_gb * 1e9,
    )
    print(f"{report.parameters:,} parameters in {report.dtype}; wrote {arguments.out}")
