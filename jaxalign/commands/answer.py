"""`jaxalign answer`."""

import argparse
import sys
from pathlib import Path

from jaxalign.commands.completing import check_completing
from jaxalign.commands.parser import Commands, add_out, command
from jaxalign.errors import InputError
from jaxalign.progress import counted


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands,
        "answer",
        _answer,
        "answer a prompt for one user, as that user's choices say",
        epilog="The answers come from a model or a file of candidates (the best one for the user "
        "is chosen), from a portfolio (the best member answers) or from a MOC policy (which is "
        "given the best preference). With several, the largest gain less --caution standard "
        "deviations decides.",
    )
    option = parser.add_argument
    option(
        "--run",
        dest="user_run",
        type=Path,
        required=True,
        help="folder of the `mrm train` run of the users",
    )
    option("--users", type=Path, help="file of `mrm adapt` (RUN/users.sqlite)")
    option(
        "--user",
        help="whose prompt it is; left out, or without choices: the taste of the whole population",
    )
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", help="one prompt")
    prompts.add_argument(
        "--prompts",
        type=Path,
        help="file of prompts: one per line, or JSON lines with prompt or messages, and user where "
        "rows differ in it",
    )
    option("--model", help="language model: folder, file or name; draws the answers to choose from")
    option(
        "--candidates",
        help="file of answers to choose from instead: rows of prompt and completion (or answer), "
        "the plain answer of each prompt first",
    )
    option("--portfolio", help="folder of `palm build` over policies")
    option("--policy", help="folder of `moc train`, after `moc evaluate`")
    option(
        "--reward-model",
        action="append",
        default=[],
        metavar="FOLDER",
        help="folder of a reward model that computes the users' named rewards, or NAME=FOLDER "
        "where `reward score --names` has named its reward; may be repeated; registered rewards "
        "need none",
    )
    option(
        "--strategy",
        choices=("auto", "best_of", "member", "conditioned", "plain"),
        default="auto",
        help="how to answer; auto: the one of the largest gain (auto)",
    )
    option(
        "--caution",
        type=float,
        default=0.0,
        help="standard deviations of the gain that are taken off before answers are compared, 0 or "
        "more; 1 to 2 prefers answers that are sure to help; above 0, the run's method must have a "
        "posterior, as bayes has (0)",
    )
    option(
        "--least-probability",
        type=float,
        default=0.5,
        help="give the plain answer where the best one is better for the user with a lower "
        "probability, 0 to 1; above 0.5, the run's method must have a posterior (0.5)",
    )
    option("--samples", type=int, help="answers drawn from --model for each prompt (8)")
    option("--chat", action="store_true", help="put prompts through the model's chat template")
    option("--system", help="system message before every prompt; implies --chat")
    option(
        "--max-tokens",
        type=int,
        help="most tokens of an answer (those that --policy was trained with and --portfolio was "
        "built with, else 256)",
    )
    option(
        "--temperature",
        type=float,
        default=0.8,
        help="divides the logits, above 0; 1 samples from the model (0.8)",
    )
    option("--top-k", type=int, help="sample among the k most likely tokens (all)")
    option(
        "--top-p",
        type=float,
        default=0.95,
        help="sample among the most likely tokens that together have this probability, above 0 and "
        "at most 1 (0.95)",
    )
    option("--seed", type=int, default=0, help="of the sampling, at least 0 (0)")
    option("--dtype", default="float32", help="float32 or bfloat16 (float32)")
    option("--batch-size", type=int, default=16, help="prompts answered at once (16)")
    add_out(parser, "file", "JSON lines to write (standard output)", required=False)
    option("--resume", action="store_true", help="go on with an --out that was interrupted")


def _answer(arguments: argparse.Namespace, _: list[str]) -> None:
    import jax

    from jaxalign.data.prompt_rows import PromptRow, read_prompt_rows
    from jaxalign.experiments.answer import (
        AnswerConfig,
        check_rule,
        load_user_model,
        user_prompts,
        write_answers,
    )
    from jaxalign.experiments.answer_sources import AnswerSources, load_strategy
    from jaxalign.models.sampling import Sampling
    from jaxalign.personalize import ServingRule

    check_completing(arguments)
    if arguments.samples is not None and not arguments.model:
        raise InputError(
            "--samples: found no --model, from which answers are drawn; leave out --samples, or "
            "add --model."
        )
    rule = ServingRule(arguments.caution, arguments.least_probability)
    settings = Sampling(
        max_tokens=256 if arguments.max_tokens is None else arguments.max_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
    )
    sources = AnswerSources(
        arguments.model,
        arguments.candidates,
        arguments.portfolio,
        arguments.policy,
        tuple(arguments.reward_model),
        8 if arguments.samples is None else arguments.samples,
        settings,
        arguments.dtype,
        arguments.batch_size,
        own_length=arguments.max_tokens is None,
    )
    rows = [PromptRow(arguments.prompt)]
    if arguments.prompts:
        rows = read_prompt_rows(arguments.prompts)
    model = load_user_model(arguments.user_run, arguments.users)
    check_rule(model, rule)
    batch = user_prompts(model, rows, arguments.user, arguments.chat, arguments.system)
    strategy = load_strategy(arguments.strategy, sources, model)
    strategy.check(batch.prompts, [row.where for row in rows])
    if arguments.prompt is not None and arguments.out is None:
        key = jax.random.key(arguments.seed)
        (answer,) = strategy.answer(batch.requests(), rule, key)
        print(answer.text)
        print(batch.reason(0, answer), file=sys.stderr)
        return
    config = AnswerConfig(arguments.strategy, sources, rule, arguments.seed)
    plain = write_answers(model.digest, batch, strategy, config, arguments.out, arguments.resume)
    if arguments.out is not None:
        print(
            f"{counted(len(rows), 'answer')}, {plain} of them plain; wrote {arguments.out}",
            file=sys.stderr,
        )
