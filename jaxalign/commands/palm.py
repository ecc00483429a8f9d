"""`jaxalign palm build|certify|route`."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jaxalign.commands.parser import (
    Commands,
    add_out,
    command,
    group,
    imports_user_code,
    takes_config,
)
from jaxalign.errors import InputError
from jaxalign.files import expand_user
from jaxalign.progress import counted

if TYPE_CHECKING:
    from jaxalign.palm.candidates import Candidates

DEMO = "demo"


def add(commands: Commands) -> None:
    """Adds the commands."""
    actions = group(commands, "palm", "small portfolios of policies, certified for every user")
    _add_build(actions)
    _add_certify(actions)
    _add_route(actions)


def _add_build(actions: Commands) -> None:
    text = "select few policies on some prompts and certify them on others"
    parser = command(
        actions,
        "build",
        _build,
        text,
        epilog="Any field of the config can be set: --palm.size 5",
    )
    parser.add_argument("--config", type=Path, help="YAML, or a shipped one such as palm/demo")
    parser.add_argument(
        "--data",
        required=True,
        help="file of candidates (answers with their rewards), or `demo` for the shipped answers; "
        "with --policies, prompts that the policies answer",
    )
    parser.add_argument(
        "--policies",
        type=Path,
        nargs="+",
        default=[],
        help="folders of LoRA adapters or of whole models, or of one MOC policy: choose among "
        "these, their soups or mixtures, in place of candidates",
    )
    parser.add_argument(
        "--model",
        help="base model of --policies (the one that adapters name; needed for whole models)",
    )
    add_out(parser, "folder", "new folder for the portfolio and its report")
    parser.add_argument("--resume", action="store_true", help="continue an unfinished build")
    parser.add_argument(
        "--export",
        action="store_true",
        help="write each member's best candidates to OUT/train, to fine-tune on with `sft`",
    )
    parser.add_argument("--confirm", action="store_true", help="build the grid whatever its size")
    takes_config(parser, "jaxalign.palm.config:BuildConfig")
    imports_user_code(parser)


def _add_certify(actions: Commands) -> None:
    text = "certify a portfolio on other prompts: worst gaps over all users, with a band"
    parser = command(actions, "certify", _certify, text)
    parser.add_argument(
        "--portfolio", type=Path, required=True, help="output folder of `palm build`"
    )
    parser.add_argument(
        "--data",
        required=True,
        help="file of candidates, or `demo` for the shipped answers; prompts for a portfolio of "
        "trained policies, which answer them",
    )
    add_out(
        parser, "file", "JSON file to write", required=False,
        fields=(("additive", "share_lost", "level"),),
    )  # fmt: skip
    imports_user_code(parser)


def _add_route(actions: Commands) -> None:
    text = "route a file of users: each user's member, its value and a bound on the regret"
    parser = command(actions, "route", _route, text)
    parser.add_argument(
        "--portfolio", type=Path, required=True, help="output folder of `palm build`"
    )
    parser.add_argument(
        "--users",
        type=Path,
        required=True,
        help="file of weights: .jsonl or .parquet with one column per reward, or of `mrm adapt`",
    )
    add_out(
        parser, "file", ".parquet or .jsonl file to write", endings=(".parquet", ".jsonl"),
        fields=(("user", "member", "value", "regret_bound"),),
    )  # fmt: skip
    parser.add_argument(
        "--normalise",
        action="store_true",
        help="divide each user's weights by their sum instead of refusing those off the domain",
    )


def _build(arguments: argparse.Namespace, rest: list[str]) -> None:
    from rich.console import Console

    from jaxalign.config import load_config
    from jaxalign.experiments.palm import report, run, run_policies
    from jaxalign.palm.config import BuildConfig
    from jaxalign.rewards.reward_scale import load_scale
    from jaxalign.runs.tables import TerminalTable

    config = load_config(BuildConfig, arguments.config, rest)
    if arguments.export and arguments.policies:
        raise InputError(
            "--export and --policies are both given: the export is for candidates, to train "
            "policies on; leave one out."
        )
    if arguments.policies:
        built = run_policies(
            config,
            arguments.policies,
            arguments.model,
            arguments.data,
            arguments.out,
            resume=arguments.resume,
            confirm=arguments.confirm,
        )
    else:
        names = config.rewards
        if config.scale_from and not names:
            names = load_scale(config.scale_from).names
        candidates = _candidates(arguments.data, names, config.checked_range)
        built = run(
            config,
            candidates,
            Path(arguments.data).name,
            arguments.out,
            resume=arguments.resume,
            confirm=arguments.confirm,
            export=arguments.export,
        )
    console = Console()
    certificate = report.certificate_rows(built.portfolio.certificate, built.held_out)
    console.print(TerminalTable(*certificate))
    console.print(TerminalTable(*report.member_rows(built)))
    if fewer := report.selection_sentence(built.portfolio):
        print(fewer)
    if built.sizes:
        console.print(TerminalTable(*report.size_rows(built.sizes)))
        sentence = report.size_sentence(built.sizes)
        console.print(f"{report.SIZES_CAPTION} {sentence}", highlight=False)
    more = "" if arguments.policies else "; report.md ends with what to train next"
    print(f"wrote {arguments.out}/report.md and the portfolio beside it{more}")


def _certify(arguments: argparse.Namespace, _: list[str]) -> None:
    from rich.console import Console

    from jaxalign.experiments.palm import certify_policies, evaluate, load_built, report
    from jaxalign.experiments.palm.policy_run import built_config
    from jaxalign.files import write_json
    from jaxalign.palm.config import BuildConfig
    from jaxalign.personalize.saved_members import FILE
    from jaxalign.runs.tables import TerminalTable

    folder = expand_user(arguments.portfolio)
    portfolio = load_built(folder)
    if (folder / FILE).is_file():
        held_out = certify_policies(folder, arguments.data)
    else:
        candidates = _candidates(arguments.data, report.reward_names(portfolio), None)
        config = built_config(folder) or BuildConfig()
        held_out = evaluate(portfolio, candidates, arguments.data, config.band_draws, config.level)
    Console().print(TerminalTable(*report.certificate_rows(None, held_out)))
    if arguments.out:
        write_json(arguments.out, held_out.as_dict())
        print(f"wrote {arguments.out}")


def _route(arguments: argparse.Namespace, _: list[str]) -> None:
    from rich.console import Console

    from jaxalign.experiments.palm import load_built, report, route_users
    from jaxalign.runs.tables import TerminalTable

    portfolio = load_built(arguments.portfolio)
    routed = route_users(portfolio, arguments.users, arguments.out, arguments.normalise)
    Console().print(TerminalTable(*report.usage_rows(routed.usage)))
    if routed.unused:
        names = ", ".join(f"`{name}`" for name in routed.unused)
        print(
            f"not used, since the portfolio has no such rewards: {names} of {arguments.users}",
            file=sys.stderr,
        )
    never = ", ".join(map(str, routed.usage.unused)) or "none"
    print(
        f"{counted(routed.users, 'user')}; perplexity {routed.usage.perplexity:.2f}; "
        f"never used: {never}; no user loses more than {routed.worst_regret:.4f} "
        f"({routed.against}); wrote {arguments.out}"
    )


def _candidates(
    data: str, names: tuple[str, ...], reward_range: tuple[float, float] | None
) -> "Candidates":
    """Candidates of a file, or of the answers that ship with the package."""
    from jaxalign.palm.files import read_candidates
    from jaxalign.progress import Progress

    if data != DEMO:
        return read_candidates(data, names, reward_range, Progress().say)
    return demo_candidates(names)


def demo_candidates(names: tuple[str, ...]) -> "Candidates":
    """Candidates of the answers that ship with the package.

    Args:
        names: traits, in order; empty for the first three.

    Returns:
        Candidates, their rewards standardised traits.

    Raises:
        InputError: a trait that does not exist.
    """
    from jaxalign.demo.answers import read_answers
    from jaxalign.palm.candidates import from_rows
    from jaxalign.rewards.rules import TRAITS

    names, traits = names or tuple(TRAITS)[:3], list(TRAITS)
    for name in names:
        if name not in TRAITS:
            raise InputError(
                f"rewards: found {name!r}, expected some of {', '.join(TRAITS)} for the demo."
            )
    answers = read_answers()
    columns = answers.traits[:, [traits.index(name) for name in names]].astype("float64")
    prompts = [answers.prompts[i] for i in answers.prompt]
    return from_rows(prompts, columns, names, answers=answers.texts)
