"""The command line: parses, calls, prints."""

import argparse
import functools
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jaxalign.errors import InputError
from jaxalign.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 when it worked, 2 for a user's mistake, 130 when interrupted."""
    # Before BLAS loads: its threads inside XLA's make batched small solves a hundred times slower.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    arguments = argparse.Namespace()
    try:
        if argv is None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, functools.partial(_stop, arguments))
        _, rest = _parser().parse_known_args(argv, arguments)
        if rest and not getattr(arguments, "takes_config", False):
            raise InputError(f"unknown option {rest[0]!r}: see `jaxalign --help`")
        arguments.run(arguments, rest)
    except InputError as error:
        print(f"jaxalign: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None:
            raise
        print(f"jaxalign: {error.filename}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(_stopped(arguments), file=sys.stderr)
        return 130
    return 0


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise InputError(f"{message}: see `{self.prog} --help`")


class _Fields(argparse.Action):
    """Lists the config's fields and stops, whatever else is missing."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from jaxalign.config import describe
        from jaxalign.mrm.config import RunConfig

        print(describe(RunConfig))
        parser.exit()


def _stop(arguments: argparse.Namespace, *_: Any) -> NoReturn:
    """End the process at Ctrl-C: files are whole or absent at any moment.

    Raised as an exception, a Ctrl-C is lost where libraries catch all or run callbacks.
    """
    os.write(2, f"{_stopped(arguments)}\n".encode())
    os._exit(130)


def _stopped(arguments: argparse.Namespace) -> str:
    again = " Go on with the same command and --resume." if hasattr(arguments, "resume") else ""
    return f"\njaxalign: stopped.{again}"


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="jaxalign", description="Personalise language models.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"jaxalign {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_embed(commands)
    mrm = commands.add_parser("mrm", help="user reward models", allow_abbrev=False)
    actions = mrm.add_subparsers(required=True, metavar="ACTION")
    _add_train(actions)
    _add_adapt(actions)
    _add_rank(actions)
    _add_evaluate(actions)
    return parser


def _command(commands: Any, name: str, run: Any, text: str, **options: Any) -> Any:
    parser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False, **options
    )
    parser.set_defaults(run=run)
    return parser


def _add_demo(commands: Any) -> None:
    parser = _command(commands, "demo", _demo, "the whole job on data that ships with the package")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder of report and plots")
    parser.add_argument("--seed", type=int, default=0, help="of the simulated users")


def _add_embed(commands: Any) -> None:
    parser = _command(commands, "embed", _embed, "encode the texts of choices, or lines of a file")
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--pooling", choices=("auto", "mean", "cls", "last"), default="auto")
    parser.add_argument("--data", help="preference file, folder or datasets name")
    parser.add_argument("--texts", type=Path, help="a text a line")
    parser.add_argument("--out", type=Path, required=True, help=".npz to write")


def _add_train(actions: Any) -> None:
    text = "train on choices, let validation users choose, judge test users once"
    parser = _command(
        actions,
        "train",
        _train,
        text,
        epilog="Any field of the config can be set: --bayes.em_steps 12",
    )
    parser.add_argument("--config", type=Path, help="YAML, see configs/mrm")
    parser.add_argument("--data", required=True, help="preference file, folder or datasets name")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on with an unfinished run")
    parser.add_argument(
        "--fields", action=_Fields, nargs=0, help="list the config's fields and stop"
    )
    parser.set_defaults(takes_config=True)


def _add_adapt(actions: Any) -> None:
    parser = _command(actions, "adapt", _adapt, "users' weights from their choices, as Parquet")
    parser.add_argument("--model", type=Path, required=True, help="folder of a run")
    parser.add_argument("--data", required=True, help="preference file of the users")
    parser.add_argument("--features", type=Path, help="features of the items, if not from text")
    parser.add_argument("--out", type=Path, help="Parquet file (MODEL/users.parquet)")


def _add_rank(actions: Any) -> None:
    parser = _command(actions, "rank", _rank, "answers scored and ordered for a user")
    parser.add_argument("--model", type=Path, required=True, help="folder of a run")
    parser.add_argument("--user", help="whose taste; without it the population's")
    parser.add_argument(
        "--texts", type=Path, required=True, help="an answer a line, or .jsonl with `text`"
    )
    parser.add_argument("--users", type=Path, help="Parquet file of adapt (MODEL/users.parquet)")
    parser.add_argument("--features", type=Path, help="features of the answers, ids = the texts")
    parser.add_argument("--json", action="store_true", help="JSON lines instead of a table")


def _add_evaluate(actions: Any) -> None:
    parser = _command(actions, "evaluate", _evaluate, "judge a saved model on its own test users")
    parser.add_argument("--model", type=Path, required=True, help="folder of a run")
    parser.add_argument("--data", required=True, help="the choices the run was made from, or more")
    parser.add_argument("--out", type=Path, help="JSON file to write")


def _demo(arguments: argparse.Namespace, _: list[str]) -> None:
    from jaxalign.demo import run_demo

    run_demo(arguments.out, seed=arguments.seed)


def _embed(arguments: argparse.Namespace, _: list[str]) -> None:
    from jaxalign.data import Features, load_source, save_features
    from jaxalign.models.embed import encode_with_stats, load_encoder

    if (arguments.data is None) == (arguments.texts is None):
        raise InputError("embed takes either --data or --texts")
    if arguments.out.suffix != ".npz":
        raise InputError(f"--out {arguments.out} must end in .npz")
    if arguments.texts is not None:
        texts = list(dict.fromkeys(read_lines(arguments.texts)))
        keys = texts
    else:
        choices = load_source(arguments.data).choices
        keys, texts = list(choices.items), list(choices.texts)
        if len(set(keys)) < len(keys):
            raise InputError(
                f"{arguments.data}: the same answer stands under two prompts, so ids are not "
                "unique: let `jaxalign mrm train` encode it (it keeps what it encodes)"
            )
    pooling = None if arguments.pooling == "auto" else arguments.pooling
    values, stats = encode_with_stats(load_encoder(arguments.model), texts, pooling=pooling)
    save_features(arguments.out, Features(tuple(keys), values))
    print(f"{stats.encoded} texts encoded, {stats.cached} known; wrote {arguments.out}")


def _train(arguments: argparse.Namespace, rest: list[str]) -> None:
    from jaxalign.config import load_config
    from jaxalign.mrm.config import RunConfig

    config = load_config(RunConfig, arguments.config, rest)
    from rich.console import Console

    from jaxalign.metrics.table import terminal_table
    from jaxalign.mrm.report import table_regimes
    from jaxalign.mrm.run import run

    report = run(config, arguments.data, arguments.out, resume=arguments.resume)
    Console().print(terminal_table({r: report[r] for r in table_regimes(report)}))
    print(f"validation chose {report['selected']['new_users']}; wrote {arguments.out}/report.md")


def _adapt(arguments: argparse.Namespace, _: list[str]) -> None:
    import numpy as np

    from jaxalign.data import load_features, load_source
    from jaxalign.mrm.model import load
    from jaxalign.mrm.use import adapt_users
    from jaxalign.mrm.user_weights import save_users

    model = load(arguments.model)
    choices = load_source(arguments.data).choices
    features = load_features(arguments.features) if arguments.features else None
    users = adapt_users(model, choices, features)
    out = arguments.out or arguments.model / "users.parquet"
    save_users(out, users, model.names)
    known = users.accuracy[np.isfinite(users.accuracy)]
    held_out = f", held-out accuracy {known.mean():.3f} on average" if len(known) else ""
    print(f"{len(users.users)} users{held_out}; wrote {out}")


def _rank(arguments: argparse.Namespace, _: list[str]) -> None:
    from dataclasses import asdict, replace

    from jaxalign.data import load_features, lookup
    from jaxalign.mrm.model import load
    from jaxalign.mrm.use import rank
    from jaxalign.mrm.user_weights import load_users

    model = load(arguments.model)
    texts = read_lines(arguments.texts)
    if arguments.users is not None:
        model = replace(model, users=load_users(arguments.users, len(model.population()[0])))
    features = lookup(load_features(arguments.features), texts) if arguments.features else None
    ranked = rank(model, arguments.user, texts, features)
    if arguments.json:
        for entry in ranked:
            print(json.dumps(asdict(entry), ensure_ascii=False))
        return
    print(" rank   score  chosen  answer")
    for place, entry in enumerate(ranked, 1):
        shown = entry.text if len(entry.text) <= 90 else entry.text[:87] + "..."
        print(f"{place:5d} {entry.score:+7.3f}   {entry.probability:.2f}   {shown}")


def _evaluate(arguments: argparse.Namespace, _: list[str]) -> None:
    from jaxalign.mrm.evaluate import evaluate
    from jaxalign.train.files import write_json

    judged = evaluate(arguments.model, arguments.data)
    print(json.dumps(judged, indent=1))
    if arguments.out:
        write_json(arguments.out, judged)


def read_lines(path: Path) -> list[str]:
    """Texts of a file: one a line, or the `text` of each row of a .jsonl file.

    Raises:
        InputError: no such file, nothing in it, or a row without `text`.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist")
    try:
        lines = [line for line in path.read_text("utf-8").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error})") from None
    if not lines:
        raise InputError(f"{path} is empty: expected one text a line")
    if path.suffix != ".jsonl":
        return lines
    texts = []
    for number, line in enumerate(lines, 1):
        try:
            texts.append(str(json.loads(line)["text"]))
        except (json.JSONDecodeError, KeyError, TypeError):
            raise InputError(
                f'{path}, line {number}: expected a JSON object with "text", found {line[:60]!r}'
            ) from None
    return texts


if __name__ == "__main__":
    sys.exit(main())
