"""Files of candidates, JSON lines or Parquet, every row checked."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxalign.data.columns import Origin
from jaxalign.data.tables import read_table
from jaxalign.errors import InputError
from jaxalign.palm.candidates import Candidates, from_rows
from jaxalign.palm.domain import Floats

_NOT_REWARDS = ("prompt", "answer", "log_ref")


def read_candidates(
    path: str | Path,
    names: Sequence[str] = (),
    reward_range: tuple[float, float] | None = None,
) -> Candidates:
    """Read sampled answers with their rewards, one row per candidate.

    Args:
        path: a file as `jaxalign.data.tables.read_rows` takes it, with `prompt` (an id or a text),
            `answer`, a numeric column per reward and optionally `log_ref` in nats.
        names: columns of the rewards, in order; empty for all numeric ones.
        reward_range: lowest and highest reward that is accepted, None for any.

    Returns:
        Candidates, prompts in order of first appearance. Without `log_ref` the n answers of a
        prompt count as drawn from the reference, 1 / n each.

    Raises:
        InputError: no such file or column, a row without its values, NaN, a reward outside its
            range or the same for all, a prompt with fewer than 2 answers, or log_ref that does not
            sum to 1 over a prompt.
    """
    table = read_table(Path(path))
    table.require(("prompt", "answer", *names))
    rewards = tuple(names) or tuple(
        name for name in table.columns if name not in _NOT_REWARDS and table.is_numeric(name)
    )
    if not rewards:
        raise InputError(f"{path} has no numeric column, expected one per reward; add one.")
    if len(set(rewards)) < len(rewards) or set(rewards) & set(_NOT_REWARDS):
        raise InputError(f"rewards: found {', '.join(rewards)}, expected columns of rewards, once.")
    values = np.stack([table.numbers(name) for name in rewards], axis=1)
    # An answer that the reference never gives has -inf.
    log_ref = table.numbers("log_ref", (-np.inf,)) if "log_ref" in table.columns else None
    _check_rewards(values, rewards, reward_range, table.origin)
    prompts = table.identifiers("prompt").to_pylist()
    return from_rows(prompts, values, rewards, log_ref, table.origin)


def _check_rewards(
    values: Floats,
    names: Sequence[str],
    reward_range: tuple[float, float] | None,
    origin: Origin,
) -> None:
    low, high = reward_range or (-np.inf, np.inf)
    off = (values < low) | (values > high)
    if off.any():
        row, column = (int(i) for i in np.argwhere(off)[0])
        raise InputError(
            f"{origin.at(row)}: `{names[column]}` is {values[row, column]:g}, expected {low:g} to "
            f"{high:g}; normalise it, or state its range with --reward_range."
        )
    flat = np.ptp(values, axis=0) <= 1e-9 * np.abs(values).max(axis=0)
    if flat.any():
        name = names[int(np.argmax(flat))]
        raise InputError(
            f"{origin.source}: `{name}` is {values[0, int(np.argmax(flat))]:g} in every row, "
            "expected a reward that varies; leave it out (--rewards names those to keep)."
        )
