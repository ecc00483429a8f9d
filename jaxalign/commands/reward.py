"""`jaxalign reward train|score`."""

import argparse
from pathlib import Path

from jaxalign.commands.parser import Commands, add_out, command, group, takes_config
from jaxalign.commands.processes import takes_processes
from jaxalign.errors import InputError
from jaxalign.progress import counted


def add(commands: Commands) -> None:
    """Adds the commands."""
    actions = group(commands, "reward", "reward models")
    _add_train(actions)
    _add_score(actions)


def _add_train(actions: Commands) -> None:
    parser = command(
        actions,
        "train",
        _train,
        "train a reward model on choices, and judge it on held-out ones",
        epilog="Any field of the config can be set: --hold_out user",
    )
    parser.add_argument("--model", required=True, help="language model: folder, file or name")
    parser.add_argument(
        "--data",
        required=True,
        help="preference file, with rows of `chosen`, `rejected` and perhaps `prompt`; or a data "
        "set of the Hub",
    )
    add_out(parser, "folder", "folder of the run")
    parser.add_argument("--config", type=Path, help="YAML, or a shipped one such as reward/lora")
    parser.add_argument("--resume", action="store_true", help="go on with an unfinished run")
    takes_config(parser, "jaxalign.rewards.bradley_terry:RewardConfig")
    takes_processes(parser)


def _add_score(actions: Commands) -> None:
    parser = command(actions, "score", _score, "rewards of answers, as JSON lines")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", help="folder of a reward model, or a name")
    source.add_argument(
        "--rewards", metavar="NAME,...", help="registered rewards, such as brevity,warmth"
    )
    parser.add_argument(
        "--data",
        required=True,
        help="rows with `completion` (or `answer`) and perhaps `prompt`, as `jaxalign generate` "
        "writes them; other columns are kept. Or choices, with `chosen` and `rejected`: each of "
        "their answers is scored once",
    )
    add_out(parser, "file", "JSON lines to write", endings=(".jsonl",))
    parser.add_argument(
        "--names",
        metavar="NAME,...",
        help="what to call the rewards in --out (the labels of the model)",
    )
    parser.add_argument(
        "--scale-from",
        metavar="RUN",
        help="folder of a run, or scores, whose scale the rewards are put on, so that weights mean "
        "the same there and here; alone, it does so with the rewards that the rows have (the scale "
        "is estimated on the rows)",
    )
    parser.add_argument("--resume", action="store_true", help="go on with an unfinished --out")


def _train(arguments: argparse.Namespace, rest: list[str]) -> None:
    from jaxalign.commands.training import train_from
    from jaxalign.experiments.reward import run
    from jaxalign.rewards.bradley_terry import RewardConfig

    report = train_from(arguments, rest, RewardConfig, run)
    if report["accuracy"]:
        print(f"accuracy on {counted(report['held_out_choices'], 'held-out choice')}:")
        for label, accuracy in report["accuracy"].items():
            print(f"  {label:20s} {accuracy:.3f}")
    print(f"{counted(report['steps'], 'step')}; wrote {arguments.out}/model")


def _score(arguments: argparse.Namespace, _: list[str]) -> None:
    from jaxalign.experiments.reward_score import score_rows

    if arguments.model is None and arguments.rewards is None and arguments.scale_from is None:
        raise InputError(
            "found none of --model, --rewards and --scale-from, expected what to score the answers "
            "with: add --rewards brevity,warmth, or --model with the folder of a reward model."
        )
    found = score_rows(
        arguments.data,
        arguments.out,
        arguments.model,
        () if arguments.rewards is None else arguments.rewards.split(","),
        names=arguments.names.split(",") if arguments.names else (),
        scale_from=arguments.scale_from,
        resume=arguments.resume,
    )
    done = f"scored by {', '.join(found.names)}" if found.names else "put on another scale"
    print(f"{counted(found.answers, 'answer')} {done}; wrote {arguments.out}")
    if found.scale is not None:
        names, digest = ", ".join(found.scale.names), found.scale.digest[:12]
        print(f"the scale of {names} ({digest}) is beside it; commands that read the scores use it")
    scaled = () if found.scale is None else found.scale.names
    if constant := [name for name in found.names if name not in scaled]:
        print(f"no scale: {', '.join(constant)} is the same for all answers")
