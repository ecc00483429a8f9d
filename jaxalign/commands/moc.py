"""`jaxalign moc train|evaluate|export`."""

import argparse
from pathlib import Path

from jaxalign.commands.parser import (
    Commands,
    add_out,
    command,
    group,
    imports_user_code,
    takes_config,
)
from jaxalign.commands.processes import takes_processes
from jaxalign.progress import counted


def add(commands: Commands) -> None:
    """Adds the commands."""
    actions = group(commands, "moc", "one policy for every preference")
    _add_train(actions)
    _add_evaluate(actions)
    _add_export(actions)


def _add_train(actions: Commands) -> None:
    parser = command(
        actions,
        "train",
        _train,
        "train one language model for every preference over rewards",
        epilog="Any field of the config can be set: --moc.steps 300. A baseline is one too: "
        "--baseline morlhf --weight helpful=1,harmless=0",
    )
    parser.add_argument(
        "--model", required=True, help="language model: folder, file or Hugging Face name"
    )
    parser.add_argument("--data", required=True, help="prompts: file or Hugging Face dataset")
    add_out(parser, "folder", "folder of the run")
    parser.add_argument(
        "--config",
        type=Path,
        required=True,
        help="YAML file, or a shipped config such as moc/smollm2_traits",
    )
    parser.add_argument("--resume", action="store_true", help="continue an unfinished run")
    takes_config(parser, "jaxalign.experiments.moc:MocRunConfig")
    imports_user_code(parser)
    takes_processes(parser)


def _add_evaluate(actions: Commands) -> None:
    parser = command(
        actions,
        "evaluate",
        _evaluate,
        "judge a trained policy under many preferences, beside baselines",
        epilog="Any field of the config can be set: --samples 4",
    )
    parser.add_argument(
        "--model", type=Path, required=True, help="folder of a finished `jaxalign moc train`"
    )
    parser.add_argument(
        "--with",
        dest="others",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="folders of other runs; soups and MOD where each reward has a run of its own",
    )
    parser.add_argument(
        "--data", help="prompts to judge on, instead of those that the run held out"
    )
    add_out(parser, "folder", "folder of the report")
    parser.add_argument("--resume", action="store_true", help="continue an unfinished evaluation")
    takes_config(parser, "jaxalign.experiments.moc:MocEvaluateConfig")
    imports_user_code(parser)


def _add_export(actions: Commands) -> None:
    parser = command(
        actions,
        "export",
        _export,
        "write what answers under one preference as a LoRA adapter of peft",
        epilog="The policy must have been trained with --moc.conditioning adapters. peft, vLLM and "
        "`jaxalign generate --model` load the folder; a corner, such as warmth=1, is the adapter "
        "of that reward.",
    )
    parser.add_argument(
        "--model", type=Path, required=True, help="folder of a finished `jaxalign moc train`"
    )
    parser.add_argument(
        "--preference", required=True, help="weights that sum to 1: helpful=0.3,humor=0.7"
    )
    add_out(parser, "folder", "new folder for the adapter")


def _export(arguments: argparse.Namespace, _: list[str]) -> None:
    from jaxalign import moc
    from jaxalign.files import check_new_folder
    from jaxalign.moc.files import policy_folder
    from jaxalign.moc.preferences import parse_preference

    policy = moc.load(policy_folder(arguments.model))
    preference = parse_preference(arguments.preference, policy.names)
    check_new_folder(arguments.out)
    moc.save_preference(arguments.out, policy, preference)
    rank = policy.lora.rank * int((preference > 0).sum())
    print(f"an adapter of rank {rank} for {policy.model.name}; wrote {arguments.out}")


def _train(arguments: argparse.Namespace, rest: list[str]) -> None:
    from jaxalign.commands.training import train_from
    from jaxalign.experiments.moc import MocRunConfig, run

    report = train_from(arguments, rest, MocRunConfig, run)
    first, last = report["first"], report["last"]
    if not last:
        print(f"a warm start without PPO; wrote {arguments.out}/model")
        return
    for name in report["rewards"]:
        before, after = (part[f"reward_{name}"] for part in (first, last))
        print(f"  {name:20s} level {before:.3f} in the first steps, {after:.3f} in the last")
    if report["kl_above"]:
        print(f"in {counted(report['kl_above'], 'step')} the KL was more than twice its target")
    print(
        f"{counted(report['steps'], 'step')}; error to the preference {first['error']:.4f} in the "
        f"first, {last['error']:.4f} in the last; KL {last['kl']:.2f} nats; "
        f"wrote {arguments.out}/model"
    )


def _evaluate(arguments: argparse.Namespace, rest: list[str]) -> None:
    from rich.console import Console

    from jaxalign.config import load_config
    from jaxalign.experiments.moc import MocEvaluateConfig, evaluate
    from jaxalign.experiments.moc.report import terminal

    config = load_config(MocEvaluateConfig, None, rest)
    report = evaluate(
        config,
        arguments.model,
        arguments.out,
        arguments.others,
        arguments.data,
        resume=arguments.resume,
    )
    Console().print(terminal(report))
    print(f"wrote {arguments.out}/report.md, and the value table beside the policy")
