"""`jaxalign mrm train|adapt|rank|describe|evaluate|convert`."""

import argparse
import json
import sys
from pathlib import Path

from jaxalign.commands.parser import Commands, add_out, command, group, takes_config
from jaxalign.data.tables import read_rows
from jaxalign.errors import InputError
from jaxalign.progress import counted


def add(commands: Commands) -> None:
    """Adds the commands."""
    actions = group(commands, "mrm", "user reward models")
    _add_train(actions)
    _add_adapt(actions)
    _add_rank(actions)
    _add_describe(actions)
    _add_evaluate(actions)
    _add_convert(actions)


def _add_train(actions: Commands) -> None:
    text = "train on choices and ratings, let validation users choose, judge test users once"
    parser = command(
        actions,
        "train",
        _train,
        text,
        epilog="Any field of the config can be set: --bayes.em_steps 12",
    )
    parser.add_argument("--config", type=Path, help="YAML, or a shipped one such as mrm/compare")
    parser.add_argument(
        "--data",
        required=True,
        help="preference file, with rows of `user`, `chosen`, `rejected` and perhaps `prompt`, or "
        "of `user`, `answer`, `rating` and `scale`; or a folder of a known data set, or a data set "
        "of the Hub",
    )
    add_out(parser, "folder", "folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on with an unfinished run")
    parser.add_argument(
        "--from",
        dest="start",
        type=Path,
        metavar="RUN",
        help="finished run whose model is where the fit starts; users keep their roles",
    )
    takes_config(parser, "jaxalign.experiments.mrm.config:MRMRunConfig")


def _add_adapt(actions: Commands) -> None:
    parser = command(actions, "adapt", _adapt, "users from their choices and ratings, in one file")
    parser.add_argument("--model", type=Path, required=True, help="folder of a run")
    parser.add_argument(
        "--data",
        required=True,
        help="preference file, with rows of `user`, `chosen`, `rejected` and perhaps `prompt`; for "
        "a run that was trained on ratings, also of `user`, `answer`, `rating` and `scale`",
    )
    parser.add_argument(
        "--features", type=Path, help="features or scores of the items, if not from text"
    )
    parser.add_argument(
        "--on-bad-row",
        choices=("refuse", "drop"),
        default="refuse",
        help="refuse a file with a row that cannot be used, or drop such rows and say why (refuse)",
    )
    parser.add_argument(
        "--update",
        action="store_true",
        help="add these choices to users who are in the file already, as if all had come together",
    )
    parser.add_argument(
        "--skip-accuracy",
        action="store_true",
        help="do not measure each user's held-out accuracy, which takes most of the time",
    )
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    add_out(parser, "file", "file of the users (MODEL/users.sqlite)", required=False)


def _add_rank(actions: Commands) -> None:
    parser = command(actions, "rank", _rank, "answers scored and ordered for a user")
    _add_user(parser)
    parser.add_argument(
        "--texts",
        type=Path,
        required=True,
        help="an answer a line, or rows with `text`, `completion` or `answer`",
    )
    parser.add_argument("--prompt", help="what the answers are to, where the choices had prompts")
    parser.add_argument(
        "--features", type=Path, help="features or scores of the answers, by their texts"
    )
    parser.add_argument("--json", action="store_true", help="JSON lines instead of a table")


def _add_user(parser: argparse.ArgumentParser) -> None:
    """Adds the model, and whose weights of it are wanted."""
    parser.add_argument("--model", type=Path, required=True, help="folder of a run")
    parser.add_argument("--user", help="whose taste; without it the population's")
    parser.add_argument("--users", type=Path, help="file of adapt (MODEL/users.sqlite)")


def _add_evaluate(actions: Commands) -> None:
    parser = command(actions, "evaluate", _evaluate, "judge a saved model on its own test users")
    parser.add_argument("--model", type=Path, required=True, help="folder of a run")
    parser.add_argument("--data", required=True, help="the choices the run was made from, or more")
    add_out(parser, "file", "JSON file to write", required=False, fields=(("method",),))


def _add_describe(actions: Commands) -> None:
    parser = command(
        actions, "describe", _describe, "what is believed of a user, in words",
        epilog="The run must have named rewards: trained with --features.path on scores of "
        "`jaxalign reward score`, or on other features with names.",
    )  # fmt: skip
    _add_user(parser)
    parser.add_argument("--json", action="store_true", help="JSON instead of text")


def _add_convert(actions: Commands) -> None:
    parser = command(
        actions, "convert", _convert, "a checkpoint of MRM's authors as a model for adapt and rank",
        epilog="`mrm adapt` and `mrm rank` then need --features of the encoder that the checkpoint "
        "was trained on.",
    )  # fmt: skip
    parser.add_argument("--checkpoint", type=Path, required=True, help=".pt file of their code")
    add_out(parser, "folder", "new folder for the model")


def _convert(arguments: argparse.Namespace, _: list[str]) -> None:
    from jaxalign import mrm
    from jaxalign.files import check_new_folder

    check_new_folder(arguments.out)
    model = mrm.from_authors(arguments.checkpoint)
    mrm.save(arguments.out, model)
    width, rewards = model.projection.matrix.shape[0], model.population()[0].size
    base = counted(rewards, "base reward")
    print(f"{base} of features that are {width} wide; wrote {arguments.out}")


def _train(arguments: argparse.Namespace, rest: list[str]) -> None:
    from rich.console import Console

    from jaxalign.config import load_config
    from jaxalign.experiments.mrm import MRMRunConfig, run
    from jaxalign.experiments.mrm.report import table_regimes
    from jaxalign.experiments.mrm.tables import terminal_tables

    config = load_config(MRMRunConfig, arguments.config, rest)
    report = run(
        config, arguments.data, arguments.out, resume=arguments.resume, start=arguments.start
    )
    Console().print(terminal_tables({r: report[r] for r in table_regimes(report)}))
    chosen = "validation chose" if config.select == "validation" else "saved, as the config says:"
    selected = report["selected"]["new_users"]
    print(f"{chosen} {selected}; wrote {arguments.out}/report.md")
    if not report["adaptation"][selected]["adapts"]:
        print(
            f"{selected} adapts to no user here, so that all users are served by the weights of "
            "the population; more users, or more choices per user, may show that users differ"
        )


def _adapt(arguments: argparse.Namespace, _: list[str]) -> None:
    from jaxalign import mrm
    from jaxalign.data import load_features
    from jaxalign.files import check_output
    from jaxalign.mrm.gate import count_left_alone
    from jaxalign.runs.user_store import refuse_foreign_file

    out = arguments.out or arguments.model / mrm.USERS_FILE
    if arguments.out or arguments.model.is_dir():  # else it is the model that is refused
        check_output(out, "file")
        refuse_foreign_file(out)
    model = mrm.load(arguments.model, with_users=False)
    if arguments.update:
        mrm.open_users(out, model.digest).close()
    features = load_features(arguments.features) if arguments.features else None
    config = mrm.AdaptConfig(arguments.update, not arguments.skip_accuracy, arguments.on_bad_row)
    users, notes = mrm.adapt_file(
        model, arguments.data, out, features, config, arguments.resume, progress=True
    )
    for note in notes:
        print(note, file=sys.stderr)
    # With --update the accuracies of earlier users are still in the file.
    mean = None if arguments.skip_accuracy else users.mean_accuracy()
    held_out = "" if mean is None else f", held-out accuracy {mean:.3f} on average"
    print(f"{counted(len(users), 'user')}{held_out}; wrote {out}")
    alone = count_left_alone(model, users)
    if alone:
        share = "1 of them is" if alone == 1 else f"{alone:,} of them are"
        print(f"{share} left alone by the gate, with the weights of the population")
    name, able = model.method.name, model.method.capabilities
    if "weights" not in able:
        print(f"{name} declares no weights: the file keeps each user's choices instead")
    elif "posterior" not in able:
        print(f"{name} declares no posterior: the weights are without a covariance")


def _rank(arguments: argparse.Namespace, _: list[str]) -> None:
    from dataclasses import asdict, replace

    from jaxalign import mrm
    from jaxalign.data import load_features
    from jaxalign.mrm.serving import known_texts

    stored = arguments.user is not None and arguments.users is None
    model = mrm.load(arguments.model, with_users=stored)
    texts, prompt = _answers(arguments.texts, arguments.prompt, model.with_prompts)
    if arguments.users is not None:
        model = replace(model, users=mrm.open_users(arguments.users, model.digest))
    features = None
    if arguments.features:
        known, scores = known_texts(texts, prompt), load_features(arguments.features)
        features = mrm.item_features(model, texts, known, scores)
    if features is None and model.with_prompts != (prompt is not None):
        found = "had prompts: give" if model.with_prompts else "had no prompts: leave out"
        print(f"the choices of the run {found} --prompt, or the order may be wrong",
              file=sys.stderr)  # fmt: skip
    ranked = mrm.rank(model, arguments.user, texts, features, prompt)
    if arguments.json:
        for entry in ranked:
            print(json.dumps(asdict(entry), ensure_ascii=False))
        return
    print(" rank   score  chosen  answer")
    for place, entry in enumerate(ranked, 1):
        print(f"{place:5d} {entry.score:+7.3f}   {entry.probability:.2f}   {_shown(entry.text)}")


def _shown(text: str) -> str:
    """A text as a line of a table has room for it."""
    line = " ".join(text.split())
    return line if len(line) <= 90 else line[:87] + "..."


def _answers(path: Path, prompt: str | None, with_prompts: bool) -> tuple[list[str], str | None]:
    """Texts to rank, and the prompt that they answer: the one given, else that of the rows."""
    texts = []
    for row in read_rows(path, "text"):
        texts.append(row.any_text())
        if not with_prompts or not row.has("prompt"):
            continue
        own = row.conversation("prompt", "user")
        prompt = own if prompt is None else prompt
        if own != prompt:
            raise InputError(
                f"{row.where}: found an answer to {own!r:.60}, expected answers to one prompt, "
                f"{prompt!r:.60}: keep the rows of one prompt, or correct --prompt."
            )
    return texts, prompt


def _describe(arguments: argparse.Namespace, _: list[str]) -> None:
    from dataclasses import asdict

    from jaxalign.experiments.answer import load_user_model
    from jaxalign.personalize import describe_user

    model = load_user_model(arguments.model, arguments.users, "jaxalign mrm describe")
    taste = describe_user(model, arguments.user)
    print(json.dumps(asdict(taste)) if arguments.json else "\n".join(taste.lines()))


def _evaluate(arguments: argparse.Namespace, _: list[str]) -> None:
    from jaxalign.experiments.mrm import evaluate
    from jaxalign.files import write_json

    judged = evaluate(arguments.model, arguments.data)
    print(json.dumps(judged, indent=1))
    if arguments.out:
        write_json(arguments.out, judged)
