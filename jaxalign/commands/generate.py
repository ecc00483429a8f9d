"""`jaxalign generate`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxalign.commands.parser import Commands, add_out, check_drawing, command
from jaxalign.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from jaxalign.models.chat import Chat
    from jaxalign.models.generate import GenerationArguments
    from jaxalign.models.language import LanguageModel
    from jaxalign.models.prompt_file import PromptRow
    from jaxalign.models.sampling import Sampling


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
    option("--max-tokens", type=int, default=256, help="most tokens of a completion (256)")
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
    option("--seed", type=int, default=0, help="of the sampling, at least 0 (0)")
    option(
        "--dtype", default="float32", help="of weights and compute: float32 or bfloat16 (float32)"
    )
    option("--batch-size", type=int, default=16, help="prompts completed at once (16)")
    add_out(parser, "file", "file of JSON lines to write (standard output)", required=False)
    option("--resume", action="store_true", help="go on with an --out that was interrupted")


def _generate(arguments: argparse.Namespace, _: list[str]) -> None:
    from jaxalign.models.prompt_file import prompt_of, read_prompts
    from jaxalign.models.sampling import Sampling

    settings = Sampling(
        max_tokens=arguments.max_tokens,
        min_tokens=arguments.min_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
    )
    check_drawing(arguments)
    weights, count = arguments.weights, len(arguments.adapter)
    if weights is not None and len(weights) != count:
        raise InputError(
            f"--weights has {len(weights)} numbers for {count} adapters: give one each"
        )
    rows: list[PromptRow] = [{"prompt": arguments.prompt}]
    if arguments.prompts:
        rows = read_prompts(arguments.prompts)
    chat = arguments.chat or arguments.chat_template is not None
    prompts = [prompt_of(row, chat, arguments.system) for row in rows]
    if arguments.preference is not None or any("preference" in row for row in rows):
        _with_preferences(arguments, settings, rows, prompts)
    else:
        _with_adapters(arguments, settings, rows, prompts)


def _with_adapters(
    arguments: argparse.Namespace,
    settings: "Sampling",
    rows: "list[PromptRow]",
    prompts: "list[str | Chat]",
) -> None:
    """Complete prompts by a model, or by adapters of it."""
    from jaxalign.data.chat_template import choose_template
    from jaxalign.moc.files import FILE
    from jaxalign.models.adapter_set import adapter_numbers, load_adapter_set
    from jaxalign.models.language import load_language_model

    folder = Path(arguments.model).expanduser()
    if any((place / FILE).is_file() for place in (folder, folder / "model")):
        raise InputError(
            f"{folder} holds a MOC policy, which needs a preference; found none: add --preference, "
            "or give its base model"
        )
    folders, weights = arguments.adapter, arguments.weights
    if arguments.prompts:
        numbers = adapter_numbers(rows, folders, weights is not None, arguments.prompts)
    model = load_language_model(arguments.model, arguments.dtype)
    if arguments.chat_template is not None:
        choose_template(model.tokenizer, arguments.chat_template)
    adapters = load_adapter_set(folders, model.config, weights)
    if arguments.prompts:
        _write(
            arguments,
            model,
            settings,
            prompts,
            lambda rows: adapters.arguments([numbers[row] for row in rows]),
        )
        return
    if len(folders) < 2 or weights is not None:
        _print(arguments, model, settings, prompts[0], adapters.arguments([len(folders) - 1]))
        return
    for number, folder in enumerate(folders):
        print(f"[{folder.name}]")
        _print(arguments, model, settings, prompts[0], adapters.arguments([number]))


def _with_preferences(
    arguments: argparse.Namespace,
    settings: "Sampling",
    rows: "list[PromptRow]",
    prompts: "list[str | Chat]",
) -> None:
    """Complete each prompt under its own preference, by a MOC policy."""
    import numpy as np

    if arguments.adapter:
        raise InputError(
            "--preference and --adapter are both given: a policy that is conditioned on "
            "preferences has an adapter of its own; give one of them"
        )
    from jaxalign.data.chat_template import choose_template
    from jaxalign.experiments.moc._evaluate import policy_folder
    from jaxalign.moc.files import load
    from jaxalign.personalize.policies import Conditioned

    policy = load(policy_folder(arguments.model), dtype=arguments.dtype)
    if arguments.chat_template is not None:
        choose_template(policy.model.tokenizer, arguments.chat_template)
    preferences = np.array(
        [_preference(arguments, number, row, policy.names) for number, row in enumerate(rows, 1)]
    )
    policies = Conditioned(policy, np.eye(len(policy.names)))
    prompts = [policies.prompt(*pair) for pair in zip(prompts, preferences, strict=True)]
    batch = policies.stacked(preferences)
    if arguments.prompts:
        _write(arguments, policy.model, settings, prompts, batch.arguments)
    else:
        _print(arguments, policy.model, settings, prompts[0], batch.arguments([0]))


def _preference(
    arguments: argparse.Namespace, number: int, row: "PromptRow", names: tuple[str, ...]
) -> "np.ndarray":
    """The preference [R] of a row: its own, or else --preference."""
    from jaxalign.moc.preferences import parse_preference

    own = row.get("preference", arguments.preference)
    where = f"{arguments.prompts}, row {number}: " if "preference" in row else ""
    if isinstance(own, dict):
        own = ",".join(f"{name}={share}" for name, share in own.items())
    if not isinstance(own, str):
        raise InputError(
            f"{arguments.prompts}, row {number}: found the preference {own!r}, expected text such "
            f"as {names[0]}=1; add one to each row, or --preference for those without"
        )
    try:
        return parse_preference(own, names)
    except InputError as error:
        raise InputError(f"{where}{error}") from None


def _print(
    arguments: argparse.Namespace,
    model: "LanguageModel",
    settings: "Sampling",
    prompt: "str | Chat",
    policies: "GenerationArguments",
) -> None:
    import jax

    from jaxalign.models.stream import stream

    for piece in stream(model, prompt, settings, jax.random.key(arguments.seed), **policies):
        print(piece, end="", flush=True)
    print()


def _write(
    arguments: argparse.Namespace,
    model: "LanguageModel",
    settings: "Sampling",
    prompts: "list[str | Chat]",
    arguments_of: "Callable[[Sequence[int]], GenerationArguments]",
) -> None:
    from jaxalign.models.prompt_file import complete_prompts

    complete_prompts(
        model,
        prompts,
        settings,
        arguments.seed,
        arguments_of,
        batch_size=arguments.batch_size,
        out=arguments.out,
        resume=arguments.resume,
    )
    if arguments.out:
        print(f"{len(prompts)} answers; wrote {arguments.out}", file=sys.stderr)
