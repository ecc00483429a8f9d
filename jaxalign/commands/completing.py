"""What commands that complete prompts share: options, and where the completions go."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxalign.commands.parser import add_out, check_drawing
from jaxalign.errors import InputError
from jaxalign.progress import counted

if TYPE_CHECKING:
    from jaxalign.data.prompt_rows import PromptRow
    from jaxalign.experiments.generate import GenerateConfig, RowPolicies


def add_completing(parser: argparse.ArgumentParser) -> None:
    """Add the options of how often prompts are completed, and into which file."""
    option = parser.add_argument
    option(
        "--samples",
        type=int,
        default=1,
        help="completions of each prompt, a row each; above 1, with a temperature above 0 (1)",
    )
    option("--seed", type=int, default=0, help="of the sampling, at least 0 (0)")
    option("--batch-size", type=int, default=16, help="prompts completed at once (16)")
    add_out(parser, "file", "file of JSON lines to write (standard output)", required=False)
    option("--resume", action="store_true", help="go on with an --out that was interrupted")


def check_completing(arguments: argparse.Namespace) -> None:
    """Refuse options of `add_completing` that cannot be followed.

    Raises:
        InputError: as `check_drawing`, or there is no file to resume.
    """
    check_drawing(arguments)
    if arguments.resume and arguments.out is None:
        raise InputError(
            "--resume: found no --out, the file to go on with; add --out, or leave --resume out."
        )


def complete(
    arguments: argparse.Namespace,
    policies: "RowPolicies",
    rows: "Sequence[PromptRow]",
    config: "GenerateConfig",
    lone: bool,
) -> None:
    """Complete rows into a file or onto the terminal, and say how fast.

    Args:
        arguments: of a command with `add_completing`.
        policies: of each row.
        rows: X of them.
        config: how they are completed.
        lone: whether they are one prompt of the command line: a single completion of it is shown
            as it is sampled, by each policy.
    """
    from jaxalign.experiments.generate import complete_rows
    from jaxalign.runs.processes import is_first_process

    if lone and config.samples == 1 and arguments.out is None:
        if is_first_process():
            _stream(policies, config)
        return
    done = complete_rows(
        policies,
        rows,
        config,
        batch_size=arguments.batch_size,
        out=arguments.out,
        resume=arguments.resume,
        show=is_first_process(),
    )
    if not is_first_process():
        return
    said = counted(done.completions, "answer")
    if done.new:
        said += f", {done.tokens:,} tokens in {done.seconds:.1f} s"
        said += f" ({done.tokens / done.seconds:,.0f} tokens/s)"
    if arguments.out is not None:
        said += f"; wrote {arguments.out}" if done.new else f": {arguments.out} was finished before"
    print(said, file=sys.stderr)


def _stream(policies: "RowPolicies", config: "GenerateConfig") -> None:
    from jaxalign.experiments.generate import row_key
    from jaxalign.models.stream import stream

    for row, prompt in enumerate(policies.prompts):
        if len(policies.prompts) > 1:
            print(f"[{policies.routes[row]['adapter']}]")
        key, own = row_key(config.seed, row), policies.arguments([row])
        for piece in stream(policies.model, prompt, config.sampling, key, **own):
            print(piece.text, end="", flush=True)
        print()
