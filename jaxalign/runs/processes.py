"""Several processes that make one run: what the first one does for all, and what all agree on.

In a run of one process, the usual case, every function here does its work at once and exchanges
nothing. In a run of several, all processes make the same calls in the same order.
"""

import json
from collections.abc import Callable, Mapping
from typing import TypeVar, cast

import jax
import numpy as np

from jaxalign.errors import InputError

Value = TypeVar("Value")
_SMALLEST = 256  # bytes of an exchange: each of the few sizes is compiled once


def several_processes() -> bool:
    """Return whether this process is one of several; does not touch the devices of one alone."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first_process() -> bool:
    """Return whether this process writes the files of the run and shows its progress.

    Example:
        >>> from jaxalign.runs.processes import is_first_process
        >>> is_first_process()
        True
    """
    return not several_processes() or jax.process_index() == 0


def on_first_process(act: Callable[[], Value]) -> Value:
    """Call a function on the first process, and go on when it is done, on every process.

    Args:
        act: changes files, say; what it returns is what JSON can express.

    Returns:
        What it returned, on every process.

    Raises:
        InputError: the one that `act` raised, on every process.

    Example:
        >>> from jaxalign.runs.processes import on_first_process
        >>> on_first_process(lambda: 1 + 1)
        2
    """
    if not several_processes():
        return act()
    outcome: dict[str, object] = {}
    if is_first_process():
        try:
            outcome = {"value": act()}
        except InputError as error:
            outcome = {"error": str(error)}
    found = cast(dict[str, object], gather_values(outcome)[0])
    if "error" in found:
        raise InputError(str(found["error"]))
    return cast(Value, found["value"])


def gather_values(value: object) -> list[object]:
    """Return the values of all processes, in their order.

    Args:
        value: of this process; what JSON can express.

    Example:
        >>> from jaxalign.runs.processes import gather_values
        >>> gather_values({"rows": 3})
        [{'rows': 3}]
    """
    if not several_processes():
        return [value]
    from jax.experimental import multihost_utils

    own = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([own.size], np.int32))
    room = max(_SMALLEST, 1 << (int(sizes.max()) - 1).bit_length())
    rows = multihost_utils.process_allgather(np.pad(own, (0, room - own.size)))
    pairs = zip(rows, sizes[:, 0], strict=True)
    return [json.loads(row[:size].tobytes().decode()) for row, size in pairs]


def check_same(settings: Mapping[str, object], remedy: str) -> None:
    """Refuse processes that would not compute the same run.

    Args:
        settings: by the name that messages call them; what JSON can express.
        remedy: what to do about a difference, for messages.

    Raises:
        InputError: another process has others; on every process.
    """
    if not several_processes():
        return
    first, *others = cast(list[dict[str, object]], gather_values(settings))
    for number, other in enumerate(others, 1):
        for name in dict.fromkeys((*first, *other)):
            before, after = first.get(name), other.get(name)
            if before != after:
                raise InputError(
                    f"{name} is {after} in process {number} and {before} in process 0; expected "
                    f"the same in all processes of a run: {remedy}."
                )


def agree_on_failure(act: Callable[[], Value]) -> Value:
    """Call a function on every process, and let a failure of one be the failure of all.

    Args:
        act: works on this process's own part, without the other processes.

    Returns:
        What it returned, of this process.

    Raises:
        InputError: `act` raised it, here or on another process.
    """
    if not several_processes():
        return act()
    found: list[Value] = []
    failure = None
    try:
        found.append(act())
    except InputError as error:
        failure = str(error)
    for number, one in enumerate(gather_values(failure)):
        if one is not None:
            raise InputError(f"process {number}: {one}")
    return found[0]


def compute_by_process(compute: Callable[[range], np.ndarray], rows: int) -> np.ndarray:
    """Compute a table, each process its own part of the rows, and return all rows on each.

    Args:
        compute: from numbers of rows, in order, to these rows [n, ...].
        rows: how many there are.

    Returns:
        [rows, ...].

    Raises:
        InputError: `compute` raised it, here or on another process.

    Example:
        >>> import numpy as np
        >>> from jaxalign.runs.processes import compute_by_process
        >>> compute_by_process(lambda part: np.array([[2.0 * row] for row in part]), 2).tolist()
        [[0.0], [2.0]]
    """
    if not several_processes():
        return compute(range(rows))
    count, number = jax.process_count(), jax.process_index()
    own = range(rows * number // count, rows * (number + 1) // count)
    found = agree_on_failure(lambda: compute(own))
    parts = cast(list[list[object]], gather_values(found.tolist()))
    return np.concatenate([np.asarray(part, found.dtype) for part in parts if part])
