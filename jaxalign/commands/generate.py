"""`jaxalign generate`."""

import argparse
from pathlib import Path

from jaxalign.commands.completing import add_completing, check_completing, complete
from jaxalign.commands.parser import Commands, command
from jaxalign.commands.processes import takes_processes
from jaxalign.errors import InputError


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands, "generate", _generate, "complete one prompt on the terminal, or a file of prompts"
    )
    option = parser.add_argument
    option(
        "--model",
        required=True,
        help="folder, weight file or name of the model; with preferences, folder of a MOC policy",
    )
    option(
        "--adapter",
        type=Path,
        nargs="+",
        default=[],
        help="folders of LoRA adapters in the format of peft; one prompt is completed by each",
    )
    option(
        "--weights",
        type=float,
        nargs="+",
        help="mix all adapters token by token, with one weight for each; 1 in sum is usual",
    )
    option(
        "--preference",
        help="preference that a MOC policy is conditioned on, such as helpful=0.3,humor=0.7",
    )
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", help="one prompt; its completion appears as it is sampled")
    prompts.add_argument(
        "--prompts",
        type=Path,
        help="file of prompts: one per line, or JSON lines with prompt or messages, and adapter or "
        "preference where rows differ in them",
    )
    option("--chat", action="store_true", help="put prompts through the model's chat template")
    option(
        "--chat-template",
        metavar="NAME",
        help="name of the chat template, where the tokenizer has several; implies --chat",
    )
    option("--system", help="system message before every prompt; implies --chat")
    option(
        "--max-tokens",
        type=int,
        help="most tokens of a completion (those that a MOC policy was trained with, else 256)",
    )
    option(
        "--min-tokens", type=int, default=0, help="tokens before a completion may end by itself (0)"
    )
    option(
        "--temperature",
        type=float,
        default=0.0,
        help="divides the logits, at least 0; 0 takes the most likely token, 1 samples from the "
        "model (0)",
    )
    option("--top-k", type=int, help="sample among the k most likely tokens (all)")
    option(
        "--top-p",
        type=float,
        default=1.0,
        help="sample among the most likely tokens that together have this probability, above 0 and "
        "at most 1 (1: all)",
    )
    option(
        "--dtype", default="float32", help="of weights and compute: float32 or bfloat16 (float32)"
    )
    add_completing(parser)
    takes_processes(parser)


def _generate(arguments: argparse.Namespace, _: list[str]) -> None:
    from jaxalign.data.prompt_rows import PromptRow, as_prompt, read_prompt_rows
    from jaxalign.experiments.generate import (
        GenerateConfig,
        adapter_policies,
        preference_policies,
    )
    from jaxalign.models.sampling import Sampling

    sampling = Sampling(
        max_tokens=_most_tokens(arguments),
        min_tokens=arguments.min_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
    )
    check_completing(arguments)
    config = GenerateConfig(sampling, arguments.samples, arguments.seed)
    folders, weights = arguments.adapter, arguments.weights
    if weights is not None and len(weights) != len(folders):
        raise InputError(
            f"--weights has {len(weights)} numbers for {len(folders)} adapters: give one each"
        )
    if arguments.prompts:
        rows = read_prompt_rows(arguments.prompts)
    elif len(folders) > 1 and weights is None:
        rows = [PromptRow(arguments.prompt, columns={"adapter": str(path)}) for path in folders]
    else:
        rows = [PromptRow(arguments.prompt)]
    chat = arguments.chat or arguments.chat_template is not None
    prompts = [as_prompt(row, chat, arguments.system) for row in rows]
    loading = {"dtype": arguments.dtype, "chat_template": arguments.chat_template}
    if arguments.preference is not None or any("preference" in row.columns for row in rows):
        if folders:
            raise InputError(
                "--preference and --adapter are both given: a policy that is conditioned on "
                "preferences has an adapter of its own; give one of them"
            )
        policies = preference_policies(
            arguments.model, rows, prompts, arguments.preference, **loading
        )
    else:
        policies = adapter_policies(arguments.model, rows, prompts, folders, weights, **loading)
    complete(arguments, policies, rows, config, arguments.prompt is not None)


def _most_tokens(arguments: argparse.Namespace) -> int:
    """Return the most tokens of a completion: those given, those of a MOC policy's run, or 256."""
    if arguments.max_tokens is not None:
        return int(arguments.max_tokens)
    from jaxalign.experiments.moc.config import trained_config
    from jaxalign.moc.files import find_policy

    run = None if find_policy(arguments.model) is None else trained_config(arguments.model)
    return 256 if run is None else run.moc.answer_tokens
