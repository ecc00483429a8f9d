"""`jaxalign serve`."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from jaxalign.commands.parser import Commands, command
from jaxalign.errors import InputError
from jaxalign.files import expand_user

if TYPE_CHECKING:
    from jaxalign.serve import ServeConfig

_KEY, _WEBUI = "JAXALIGN_ENGINE_KEY", "JAXALIGN_WEBUI_SECRET"


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands,
        "serve",
        _serve,
        "answer chat applications in the OpenAI protocol, by a taste learned from feedback",
        epilog=f"Secrets come from the environment: {_KEY} is the key of --engine.url, {_WEBUI} "
        "is open-webui's FORWARD_USER_INFO_HEADER_JWT_SECRET. Needs the extra `serve`: "
        "pip install 'jaxalign[serve]'.",
    )
    option = parser.add_argument
    option(
        "--host",
        default="127.0.0.1",
        help="address to bind; others than loopback need --keys (127.0.0.1)",
    )
    option("--port", type=int, default=8080, help="port to bind, 0 for a free one (8080)")
    option(
        "--engine",
        default="local",
        help="local draws answers in this process, openai on a server (local)",
    )
    option("--engine.url", dest="engine_url", help="base address of an OpenAI-compatible server")
    option(
        "--engine.model",
        dest="engine_model",
        help="language model: folder, file or name (SmolLM2-135M-Instruct); for openai its name "
        "there (the first one listed)",
    )
    option(
        "--engine.key-file",
        dest="engine_key_file",
        type=Path,
        help=f"file that holds the key of --engine.url, in place of {_KEY}",
    )
    option(
        "--engine.waiting",
        dest="engine_waiting",
        type=int,
        default=64,
        help="answers (of openai: requests) that may wait or be drawn at once; more are refused "
        "with 429 (64)",
    )
    option(
        "--engine.read-seconds",
        dest="engine_read_seconds",
        type=float,
        default=120.0,
        help="of openai: most seconds until the server sends its next bytes; an answer that is not "
        "streamed comes as a whole, so that it may not take longer to draw (120)",
    )
    option("--dtype", default="float32", help="of --engine local: float32 or bfloat16 (float32)")
    option(
        "--database",
        default="sqlite:///jaxalign.sqlite",
        help="sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME (sqlite:///jaxalign.sqlite)",
    )
    option(
        "--synchronous",
        choices=("FULL", "NORMAL"),
        default="FULL",
        help="of SQLite: FULL survives a loss of power, NORMAL a killed process only (FULL)",
    )
    option(
        "--users",
        help="run of `mrm train` whose rewards and prior are used (rewards by rule, "
        "with the demo's simulated people)",
    )
    option(
        "--reward-model",
        action="append",
        default=[],
        metavar="FOLDER",
        help="folder of a reward model that computes the run's named rewards, or NAME=FOLDER where "
        "`reward score --names` has named its reward; may be repeated",
    )
    option(
        "--portfolio",
        help="output folder of `palm build --policies` whose members answer: adapters in one "
        "batch with --engine local, models of the server of `export vllm` with openai",
    )
    option(
        "--policy",
        help="in place of a portfolio: folder of `moc train`, judged by `moc evaluate`, whose "
        "preferences answer",
    )
    option(
        "--plug",
        help="folder of a run of `pplug train`, or of one plug in it, whose personas answer: made "
        "of what each user chose; a server of --engine openai has to be a vLLM with "
        "--enable-prompt-embeds",
    )
    option(
        "--strategy",
        choices=("auto", "best_of", "member", "conditioned", "persona", "plain"),
        default="auto",
        help="how the model `auto` answers; auto: the best draw, or the best member or "
        "preference, where it is likely to be better; else the persona, where it favours what the "
        "user chose; else the plain one (auto)",
    )
    option("--samples", type=int, default=4, help="answers drawn for one request, 2 to 128 (4)")
    option(
        "--caution",
        type=float,
        default=0.0,
        help="standard deviations of the gain that are "
        "taken off before answers are compared, 0 or more (0)",
    )
    option(
        "--least-probability",
        type=float,
        default=0.8,
        help="give the plain answer where the "
        "best one is better for the user with a lower probability, 0 to 1 (0.8)",
    )
    option(
        "--store",
        dest="store_mode",
        choices=("texts", "features", "none"),
        default="texts",
        help="what is kept of prompts and answers; with none, nothing is learned (texts)",
    )
    option("--retain", type=float, help="days after which rows are deleted (never)")
    option("--keys", type=Path, help="file of hashed keys; see --new-key")
    option("--new-key", metavar="NAME", help="add a key to --keys, print it once, and stop")
    option(
        "--key-user",
        help="with --new-key: the one user that the key speaks for (any that a request names)",
    )
    option(
        "--allowed-host",
        action="append",
        default=[],
        help="name without a port that requests may come to, beside those of loopback; may be "
        "repeated",
    )
    option("--most-rows", type=int, default=100_000, help="stored rows of one user (100000)")
    option("--most-users", type=int, default=100_000, help="users of one key (100000)")


def _serve(arguments: argparse.Namespace, _: list[str]) -> None:
    try:
        from jaxalign.serve import serve
        from jaxalign.serve.identity import add_key
    except ModuleNotFoundError as error:
        raise InputError(
            f"jaxalign serve needs the package {error.name}, which is not installed: "
            "pip install 'jaxalign[serve]'."
        ) from None
    if arguments.new_key is not None:
        if arguments.keys is None:
            raise InputError("--new-key: found no --keys; expected the file to add the key to.")
        print(add_key(arguments.keys, arguments.new_key, arguments.key_user))
        return
    if arguments.key_user is not None:
        raise InputError("--key-user: found no --new-key; expected the name of the key to add.")
    serve(_config(arguments))


def _config(arguments: argparse.Namespace) -> "ServeConfig":
    from jaxalign.personalize import ServingRule
    from jaxalign.serve import EngineConfig, ServeConfig
    from jaxalign.serve.store.events import Limits

    if not 0 <= arguments.port < 2**16:
        raise InputError(f"--port {arguments.port}: expected 0 to 65535.")
    for name in ("engine_waiting", "most_rows", "most_users"):
        if getattr(arguments, name) < 1:
            option = name.replace("engine_", "engine.").replace("_", "-")
            raise InputError(f"--{option} {getattr(arguments, name)}: expected 1 or more.")
    engine = EngineConfig(
        arguments.engine,
        url=arguments.engine_url,
        model=arguments.engine_model,
        key=_secret(arguments.engine_key_file, _KEY),
        portfolio=arguments.portfolio,
        policy=arguments.policy,
        plug=arguments.plug,
        dtype=arguments.dtype,
        most_waiting=arguments.engine_waiting,
        read_seconds=arguments.engine_read_seconds,
    )
    return ServeConfig(
        host=arguments.host,
        port=arguments.port,
        engine=engine,
        database=arguments.database,
        synchronous=arguments.synchronous,
        users=arguments.users,
        reward_models=tuple(arguments.reward_model),
        strategy=arguments.strategy,
        rule=ServingRule(arguments.caution, arguments.least_probability),
        samples=arguments.samples,
        store=arguments.store_mode,
        retain_days=arguments.retain,
        keys=None if arguments.keys is None else str(arguments.keys),
        hosts=tuple(arguments.allowed_host),
        webui_secret=os.environ.get(_WEBUI) or None,
        stored=Limits(arguments.most_rows, arguments.most_users),
    )


def _secret(file: Path | None, variable: str) -> str | None:
    """The secret of a file, else of the environment; never of an argument, which others can see."""
    source, secret = variable, os.environ.get(variable) or None
    if file is not None:
        source = f"--engine.key-file {file}"
        try:
            secret = expand_user(file).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{source} cannot be read ({error}).") from None
    if secret is not None and not (secret and secret.isascii() and secret.isprintable()):
        raise InputError(
            f"{source}: found no key, or one with other characters than the printable ones of "
            "ASCII, expected one line; correct it."
        )
    return secret
