"""What the commands that train a language model share: config, files and resuming."""

import argparse
from collections.abc import Callable
from typing import TypeVar

from jaxalign.config import load_config
from jaxalign.runs.processes import is_first_process

Report = TypeVar("Report")


def train_from(
    arguments: argparse.Namespace,
    rest: list[str],
    config: type,
    run: Callable[..., Report],
    **files: str | None,
) -> Report:
    """Run a training as its command says, and return its report.

    Args:
        arguments: of the command: config, model, data, out and resume.
        rest: options that set fields of the config.
        config: the type of the config.
        run: of the experiment.
        files: further files that `run` takes, by name.
    """
    return run(
        load_config(config, arguments.config, rest),
        arguments.model,
        arguments.data,
        arguments.out,
        resume=arguments.resume,
        show=is_first_process(),
        **files,
    )
