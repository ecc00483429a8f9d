"""`jaxalign pplug train|evaluate|generate|export`."""

import argparse
from pathlib import Path

from jaxalign.commands.completing import add_completing, check_completing, complete
from jaxalign.commands.parser import (
    Commands,
    add_out,
    command,
    group,
    takes_config,
)
from jaxalign.commands.processes import takes_processes
from jaxalign.errors import InputError
from jaxalign.progress import counted


def add(commands: Commands) -> None:
    """Adds the commands."""
    actions = group(commands, "pplug", "a persona plug for a frozen language model")
    _add_train(actions)
    _add_evaluate(actions)
    _add_generate(actions)
    _add_export(actions)


def _add_train(actions: Commands) -> None:
    parser = command(
        actions,
        "train",
        _train,
        "train a plug on users' histories, and the baselines that it is compared with",
        epilog="Any field of the config can be set: --pplug.loop.epochs 1. Trainings can be added "
        "to a folder later, by --resume with --baselines, or more --trainings or --seeds.",
    )
    parser.add_argument("--model", required=True, help="language model: folder, file or name")
    parser.add_argument("--encoder", required=True, help="encoder of histories: folder or name")
    parser.add_argument(
        "--data", required=True, help="LaMP's folder, JSON lines, HuffPost or Jester"
    )
    add_out(parser, "folder", "folder of the run")
    parser.add_argument(
        "--config", type=Path, required=True, help="YAML, or one such as pplug/lamp_1"
    )
    parser.add_argument("--store", type=Path, help="folder of item vectors, which runs may share")
    parser.add_argument("--baselines", action="store_true", help="train every baseline too")
    parser.add_argument("--resume", action="store_true", help="go on with a run, or add to it")
    takes_config(parser, "jaxalign.experiments.pplug.config:PPlugRunConfig")
    takes_processes(parser)


def _add_evaluate(actions: Commands) -> None:
    parser = command(
        actions,
        "evaluate",
        _evaluate,
        "evaluate a run's plugs beside every baseline",
        epilog="Any field of the config's evaluate can be set: --evaluate.samples 300",
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of a run")
    parser.add_argument("--split", help="validation, test or test_new (the config's)")
    parser.add_argument(
        "--methods", nargs="+", metavar="NAME", help='such as "persona of another" (all)'
    )
    parser.add_argument("--data", help="data, where they lie elsewhere now")
    parser.add_argument("--store", type=Path, help="folder of item vectors (the run's)")
    add_out(parser, "folder", "folder of the report")
    parser.add_argument("--resume", action="store_true", help="go on with an evaluation")
    parser.set_defaults(takes_config=True)


def _add_generate(actions: Commands) -> None:
    parser = command(actions, "generate", _generate, "answer for users, each with their history")
    parser.add_argument(
        "--model", type=Path, required=True, help="folder of a run, or of one of its plugs"
    )
    question = parser.add_mutually_exclusive_group(required=True)
    question.add_argument("--input", help="text of one question, or the article that it is about")
    question.add_argument(
        "--requests", type=Path, help="JSON lines with user, input and history, one batch"
    )
    parser.add_argument(
        "--history", type=Path, help="JSON lines, an item or a choice each (none: a new user)"
    )
    parser.add_argument("--store", type=Path, help="folder of item vectors (the run's)")
    parser.add_argument("--max-tokens", type=int, help="of an answer (text.answer_tokens)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest (0)")
    parser.add_argument("--top-p", type=float, default=1.0)
    add_completing(parser)


def _add_export(actions: Commands) -> None:
    parser = command(
        actions,
        "export",
        _export,
        "write a question with its persona as the embeddings of a prompt",
        epilog="The file is what torch.save writes of a tensor [T, D]. vLLM, started with "
        "--enable-prompt-embeds, takes it in base64 as prompt_embeds of /v1/completions.",
    )
    parser.add_argument(
        "--model", type=Path, required=True, help="folder of a run, or of one of its plugs"
    )
    parser.add_argument(
        "--input", required=True, help="text of the question, or the article that it is about"
    )
    parser.add_argument(
        "--history", type=Path, help="JSON lines, an item or a choice each (none: a new user)"
    )
    parser.add_argument("--store", type=Path, help="folder of item vectors (the run's)")
    add_out(
        parser, "file", "file of the embeddings, such as prompt.pt", (".pt",),
        fields=(("tensor/data.pkl", "tensor/data/0"),),
    )  # fmt: skip


def _train(arguments: argparse.Namespace, rest: list[str]) -> None:
    from dataclasses import replace

    from jaxalign.config import load_config
    from jaxalign.experiments.pplug import run
    from jaxalign.experiments.pplug.baselines import TRAININGS
    from jaxalign.experiments.pplug.config import PPlugRunConfig
    from jaxalign.runs.processes import is_first_process

    config = load_config(PPlugRunConfig, arguments.config, rest)
    if arguments.baselines:
        config = replace(config, trainings=tuple(TRAININGS))
    report = run(
        config,
        arguments.model,
        arguments.encoder,
        arguments.data,
        arguments.out,
        arguments.store,
        resume=arguments.resume,
        show=is_first_process(),
    )
    for name, one in report.trainings.items():
        losses = ""
        if one.validation:
            before, after = one.validation_before["loss"], one.validation["loss"]
            losses = f", validation loss {before:.4f} at first, {after:.4f} at step {one.best_step}"
        print(f"  {name:20s} {one.parameters:,} parameters, {counted(one.steps, 'step')}{losses}")
    print(f"wrote {arguments.out}/plugs")


def _evaluate(arguments: argparse.Namespace, rest: list[str]) -> None:
    from rich.console import Console

    from jaxalign.experiments.pplug import evaluate
    from jaxalign.experiments.pplug.report import terminal

    if arguments.split is not None:
        rest = [*rest, "--evaluate.split", arguments.split]
    if arguments.methods is not None:
        rest = [*rest, "--evaluate.methods", *arguments.methods]
    report = evaluate(
        arguments.model,
        arguments.out,
        rest,
        arguments.data,
        arguments.store,
        resume=arguments.resume,
    )
    if report["statistics"] is None:
        print(f"no right answers to evaluate by; wrote {arguments.out}/predictions")
        return
    Console().print(terminal(report["statistics"]))
    for note in report["notes"]:
        print(f"  {note}")
    print(f"wrote {arguments.out}/report.md and predictions in LaMP's format")


def _generate(arguments: argparse.Namespace, _: list[str]) -> None:
    if arguments.requests is not None and arguments.history is not None:
        raise InputError(
            "--requests and --history are both given: rows of --requests have their own history; "
            "give --history with --input"
        )
    check_completing(arguments)
    from jaxalign.data.histories import load_histories
    from jaxalign.experiments.generate import GenerateConfig
    from jaxalign.experiments.pplug import ask
    from jaxalign.models.sampling import Sampling

    opened = ask.open_plug(arguments.model)
    task = opened.run.rules
    if arguments.requests is not None:
        histories = load_histories(arguments.requests, task)
    else:
        histories = ask.read_history(arguments.history, task, arguments.input)
    most = arguments.max_tokens
    sampling = Sampling(
        max_tokens=opened.plug.text.answer_tokens if most is None else most,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
    )
    config = GenerateConfig(sampling, arguments.samples, arguments.seed)
    with ask.question_policies(opened, histories, arguments.store) as (policies, rows):
        complete(arguments, policies, rows, config, arguments.input is not None)


def _export(arguments: argparse.Namespace, _: list[str]) -> None:
    from jaxalign.data.torch_files import tensor_bytes
    from jaxalign.experiments.pplug import ask
    from jaxalign.files import write_aside

    opened = ask.open_plug(arguments.model)
    histories = ask.read_history(arguments.history, opened.run.rules, arguments.input)
    values = ask.embed_question(opened, histories, arguments.store)
    with write_aside(arguments.out) as aside:
        aside.write_bytes(tensor_bytes(values))
    print(f"wrote {arguments.out}: {counted(len(values), 'embedding')} of width {values.shape[1]}")
