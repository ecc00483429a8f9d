"""`jaxalign reward train|score`."""

import argparse
from pathlib import Path
from typing import Any

from jaxalign.commands.parser import command, group, takes_config
from jaxalign.errors import InputError


def add(commands: Any) -> None:
    """Adds the commands."""
    actions = group(commands, "reward", "reward models")
    _add_train(actions)
    _add_score(actions)


def _add_train(actions: Any) -> None:
    parser = command(
        actions,
        "train",
        _train,
        "train a reward model on choices, and judge it on held-out ones",
        epilog="Any field of the config can be set: --hold_out user",
    )
    parser.add_argument("--model", required=True, help="language model: folder, file or name")
    parser.add_argument("--data", required=True, help="preference file or datasets name")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--config", type=Path, help="YAML, see configs/reward")
    parser.add_argument("--resume", action="store_true", help="go on with an unfinished run")
    takes_config(parser, "jaxalign.rewards.bradley_terry:RewardConfig")


def _add_score(actions: Any) -> None:
    parser = command(actions, "score", _score, "rewards of answers, as JSON lines")
    parser.add_argument("--model", required=True, help="folder of a reward model, or a name")
    parser.add_argument("--data", required=True, help="`answer` and optionally `prompt` a row")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines to write")


def _train(arguments: argparse.Namespace, rest: list[str]) -> None:
    from jaxalign.config import load_config
    from jaxalign.experiments.reward import run
    from jaxalign.rewards.bradley_terry import RewardConfig

    config = load_config(RewardConfig, arguments.config, rest)
    report = run(config, arguments.model, arguments.data, arguments.out, resume=arguments.resume)
    if report["accuracy"]:
        print(f"accuracy on {report['held_out_choices']} held-out choices:")
        for label, accuracy in report["accuracy"].items():
            print(f"  {label:20s} {accuracy:.3f}")
    print(f"{report['steps']} steps; wrote {arguments.out}/model")


def _score(arguments: argparse.Namespace, _: list[str]) -> None:
    import json

    from jaxalign.data.columns import read_columns
    from jaxalign.files import write_text
    from jaxalign.rewards.reward_model import load_reward_model, score

    columns, origin = read_columns(arguments.data, ("prompt", "answer"))
    if "answer" not in columns:
        raise InputError(f"{arguments.data} has no column `answer`, expected text to score; add.")
    for name, values in columns.items():
        for row, value in enumerate(values):
            if not isinstance(value, str):
                raise InputError(
                    f"{origin.at(row)}: `{name}` is {value!r:.40}, expected text; fill in or "
                    "remove the row."
                )
    if not arguments.out.parent.is_dir():
        raise InputError(f"{arguments.out.parent} is no folder: make it, or give another --out.")
    model = load_reward_model(arguments.model)
    rewards = score(model, columns.get("prompt"), columns["answer"])
    lines = []
    for row, values in enumerate(rewards):
        line = {name: column[row] for name, column in columns.items()}
        line["rewards"] = dict(zip(model.labels, map(float, values), strict=True))
        lines.append(json.dumps(line, ensure_ascii=False))
    write_text(arguments.out, "\n".join(lines) + "\n")
    print(f"{len(lines)} answers scored by {', '.join(model.labels)}; wrote {arguments.out}")
