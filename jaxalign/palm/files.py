"""Files of candidates, every row checked."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxalign.data.columns import Origin, as_list
from jaxalign.data.features import scale_file
from jaxalign.data.messages import check_messages, is_messages, prompt_text
from jaxalign.data.tables import ANSWERS, Table, read_table
from jaxalign.errors import InputError
from jaxalign.files import read_json
from jaxalign.palm.candidates import Candidates, from_rows
from jaxalign.palm.domain import Floats
from jaxalign.palm.reward_columns import reward_columns
from jaxalign.progress import counted
from jaxalign.rewards.reward_scale import stated_scale


def read_candidates(
    path: str | Path,
    names: Sequence[str] = (),
    reward_range: tuple[float, float] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Candidates:
    """Read sampled answers with their rewards, one row per candidate.

    Args:
        path: a file as `jaxalign.data.tables.read_rows` takes it, with `prompt` (an id, a text or a
            conversation), `answer` or `completion`, the rewards as `reward_columns` takes them, and
            optionally `log_ref` in nats.
        names: names of the rewards, in order; empty for those that the file has.
        reward_range: lowest and highest reward that is accepted, None for any.
        say: called with a line on each reward that is taken, and one on what is left out.

    Returns:
        Candidates, prompts in order of first appearance, with the scale that `jaxalign reward
        score` has written beside the file. Without `log_ref` the n answers of a prompt count as
        drawn from the reference, 1 / n each.

    Raises:
        InputError: no such file or column, a row without its values, NaN, a reward outside its
            range or the same for all, a prompt with fewer than 2 answers, or log_ref that does not
            sum to 1 over a prompt.
    """
    table = read_table(Path(path))
    table.require(["prompt"])
    answer = next((name for name in ANSWERS if name in table.columns), ANSWERS[0])
    table.require([answer])
    found = reward_columns(table, names)
    for name, values in zip(found.names, found.values.T, strict=True):
        many = counted(len(values), "value")
        say(f"reward `{name}`: {values.min():.6g} to {values.max():.6g}, {many}")
    if found.left_out:
        say(f"no rewards: {', '.join(found.left_out)}")
    # An answer that the reference never gives has -inf.
    log_ref = table.numbers("log_ref", (-np.inf,)) if "log_ref" in table.columns else None
    _check_rewards(found.values, found.names, reward_range, table.origin)
    answers = table.texts(answer, blank=True).to_pylist()
    rows = from_rows(_prompts(table), found.values, found.names, log_ref, table.origin, answers)
    if not any(isinstance(value, str | list | tuple) for value in as_list(table.columns["prompt"])):
        rows = replace(rows, numbered=True)
    beside = scale_file(path)
    if not beside.exists():
        return rows
    stated = read_json(beside, "the scale of the rewards")
    return replace(rows, scale=stated_scale(stated, found.names, path))


def _prompts(table: Table) -> list[str]:
    """The prompts as rewards read them."""
    values = as_list(table.columns["prompt"])
    if not any(is_messages(value) for value in values):
        return [str(prompt) for prompt in table.identifiers("prompt").to_pylist()]
    where = table.origin.at
    return [
        prompt_text(check_messages(value, "prompt", where(row))) for row, value in enumerate(values)
    ]


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
