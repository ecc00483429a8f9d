"""`jaxalign export vllm`."""

import argparse
from pathlib import Path

from jaxalign.commands.parser import Commands, add_out, command, group
from jaxalign.progress import counted


def add(commands: Commands) -> None:
    """Add the command."""
    actions = group(commands, "export", "policies in the formats of other servers")
    parser = command(
        actions,
        "vllm",
        _vllm,
        "write the members of a portfolio as LoRA adapters, and the script that serves them",
        epilog="Members that are soups become one adapter each. `sh OUT/start_vllm.sh` starts "
        "vLLM, and `jaxalign serve --engine openai --portfolio DIR` answers each user by the best "
        "member.",
    )
    option = parser.add_argument
    option("--portfolio", type=Path, help="output folder of `palm build --policies`")
    option(
        "--policy",
        type=Path,
        help="in place of a portfolio: folder of `moc train --moc.conditioning adapters`, judged "
        "by `moc evaluate`; each preference of its value table becomes an adapter",
    )
    add_out(parser, "folder", "new folder for adapters, routing.json and start_vllm.sh")


def _vllm(arguments: argparse.Namespace, _: list[str]) -> None:
    from jaxalign.personalize.saved import open_policies
    from jaxalign.personalize.vllm_export import export_vllm

    table = export_vllm(open_policies(arguments.portfolio, arguments.policy), arguments.out)
    print(
        f"{counted(len(table.policies), 'adapter')} of {table.served_base}, of ranks up to "
        f"{table.max_rank}; wrote {arguments.out}: sh {arguments.out}/start_vllm.sh"
    )
