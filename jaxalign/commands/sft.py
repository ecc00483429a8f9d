"""`jaxalign sft`."""

import argparse
from pathlib import Path

from jaxalign.commands.parser import Commands, add_out, command, takes_config
from jaxalign.commands.processes import takes_processes
from jaxalign.progress import counted


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = command(
        commands,
        "sft",
        _sft,
        "fine-tune a language model on prompts and completions, or conversations",
        epilog="Any field of the config can be set: --optimiser.rate 2e-4",
    )
    parser.add_argument("--model", required=True, help="folder, file or name")
    parser.add_argument("--data", required=True, help="completions: file or datasets name")
    parser.add_argument("--validation", help="completions to judge by, instead of a share of rows")
    add_out(parser, "folder", "folder of the run")
    parser.add_argument("--config", type=Path, help="YAML, or a shipped one such as sft/lora")
    parser.add_argument("--resume", action="store_true", help="go on with an unfinished run")
    takes_config(parser, "jaxalign.train.sft:SftConfig")
    takes_processes(parser)


def _sft(arguments: argparse.Namespace, rest: list[str]) -> None:
    from jaxalign.commands.training import train_from
    from jaxalign.experiments.sft import run
    from jaxalign.train.sft import SftConfig

    report = train_from(arguments, rest, SftConfig, run, validation=arguments.validation)
    judged = ""
    if report["validation"]:
        before, after = (report[name]["loss"] for name in ("validation_before", "validation"))
        judged = f"validation loss {before:.4f} before, {after:.4f} at step {report['best_step']}; "
    print(f"{counted(report['steps'], 'step')}; {judged}wrote {arguments.out}/model")
