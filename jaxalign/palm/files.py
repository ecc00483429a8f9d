"""Candidates and users in, routes out: JSON lines and Parquet, every row looked at."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxalign.data.files import JSON_ENDINGS, Origin, read_json_lines
from jaxalign.errors import InputError
from jaxalign.palm.candidates import Candidates, from_rows, short
from jaxalign.palm.domain import Floats

_NOT_REWARDS = ("prompt", "answer", "log_ref")
# Users read from a Parquet file, routed and written at a time.
BATCH = 2**20


def read_candidates(
    path: str | Path,
    names: Sequence[str] = (),
    reward_range: tuple[float, float] | None = None,
) -> Candidates:
    """Read sampled answers with their rewards, one row a candidate.

    Args:
        path: .jsonl, .json (an object a line; .gz too) or .parquet, with `prompt` (an id or a
            text), `answer`, a numeric column a reward and optionally `log_ref` in nats.
        names: columns of the rewards, in order; empty for all numeric ones.
        reward_range: what every reward must lie in, None for any.

    Returns:
        Candidates, prompts in order of first appearance. Without `log_ref` the n answers of a
        prompt count as drawn from the reference, 1 / n each.

    Raises:
        InputError: no such file or column, a row without its values, NaN, a reward outside its
            range or the same for all, a prompt with fewer than 2 answers, or log_ref that does not
            sum to 1 over a prompt.
    """
    columns, origin = _read(Path(path))
    for name in ("prompt", "answer", *names):
        if name not in columns:
            found = ", ".join(f"`{column}`" for column in columns) or "none"
            raise InputError(f"{path} has no column `{name}`; found {found}; rename or add it.")
    rewards = tuple(names) or tuple(
        name for name, values in columns.items() if name not in _NOT_REWARDS and _numeric(values)
    )
    if not rewards:
        raise InputError(f"{path} has no numeric column, expected one a reward; add one.")
    if len(set(rewards)) < len(rewards) or set(rewards) & set(_NOT_REWARDS):
        raise InputError(f"rewards: found {', '.join(rewards)}, expected columns of rewards, once.")
    values = np.stack([_numbers(name, columns[name], origin) for name in rewards], axis=1)
    log_ref = _numbers("log_ref", columns["log_ref"], origin) if "log_ref" in columns else None
    _check_rewards(values, rewards, reward_range, origin)
    return from_rows(_texts(columns["prompt"], origin), values, rewards, log_ref, origin)


def read_users(
    path: str | Path, names: Sequence[str]
) -> Iterator[tuple[pa.Array | None, Floats, int]]:
    """Read users' weights, a batch at a time.

    Args:
        path: .parquet, .jsonl or .json; a column a reward, by name, or `weights`, a list in the
            portfolio's order; optionally `user`.
        names: [R] of the portfolio's rewards.

    Yields:
        ids of the users (None without a column `user`), weights [n, R] float64 and the number of
        the first row, from 0.

    Raises:
        InputError: no such file or column, or a row without its numbers.
    """
    path = Path(path)
    if path.name.endswith(JSON_ENDINGS):
        columns, origin = _read(path)
        listed = _layout(str(path), list(columns), names)
        if listed:
            weights = _lists(columns["weights"], len(names), origin)
        else:
            weights = np.stack([_numbers(name, columns[name], origin) for name in names], axis=1)
        ids = pa.array([str(user) for user in columns["user"]]) if "user" in columns else None
        yield ids, weights, 0
        return
    source = _parquet(path)
    listed = _layout(str(path), source.schema_arrow.names, names)
    metadata = source.schema_arrow.metadata or {}
    stated = metadata.get(b"rewards", b"").decode()
    if listed and stated and tuple(stated.split("\n")) != tuple(names):
        raise InputError(
            f"{path}: found weights of {stated.replace(chr(10), ', ')}, expected those of the "
            f"portfolio's rewards, {', '.join(names)}."
        )
    wanted = [*(["weights"] if listed else names)]
    if "user" in source.schema_arrow.names:
        wanted.append("user")
    start = 0
    try:
        for batch in source.iter_batches(BATCH, columns=wanted):
            if listed:
                weights = _arrow_lists(batch["weights"], len(names), str(path), start)
            else:
                weights = np.stack(
                    [_arrow_numbers(n, batch[n], str(path), start) for n in names], axis=1
                )
            yield (batch["user"] if "user" in wanted else None), weights, start
            start += batch.num_rows
    except pa.ArrowException as error:
        raise InputError(f"{path} is not a readable Parquet file: {_line(error)}.") from None


def _layout(source: str, columns: list[str], names: Sequence[str]) -> bool:
    """Whether the weights are one list; refuses columns of other names."""
    missing = [name for name in names if name not in columns]
    if not missing:
        return False
    if "weights" in columns and len(missing) == len(names):
        return True
    raise InputError(
        f"{source} has no column {', '.join(f'`{name}`' for name in missing)}; found "
        f"{', '.join(f'`{name}`' for name in columns) or 'none'}, expected a column for each "
        "of the portfolio's rewards, or `weights`."
    )


def _read(path: Path) -> tuple[dict[str, Any], Origin]:
    """All columns by name, and where the rows came from."""
    if path.name.endswith(JSON_ENDINGS):
        rows, lines = read_json_lines(path)
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: [row.get(name) for row in rows] for name in names}, Origin(str(path), lines)
    table = _parquet(path).read()
    if not table.num_rows:
        raise InputError(f"{path} has no rows, expected at least one.")
    return {name: table[name].combine_chunks() for name in table.column_names}, Origin(str(path))


def _parquet(path: Path) -> pq.ParquetFile:
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path.")
    if path.suffix != ".parquet":
        raise InputError(f"{path} ends in neither .jsonl, .json nor .parquet; convert the file.")
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a readable Parquet file: {_line(error)}.") from None


def _numeric(values: Any) -> bool:
    if isinstance(values, pa.Array):
        return pa.types.is_floating(values.type) or pa.types.is_integer(values.type)
    first = next((value for value in values if value is not None), None)
    return isinstance(first, int | float) and not isinstance(first, bool)


def _numbers(name: str, values: Any, origin: Origin) -> Floats:
    """A column as float64 [N]; -inf stays (an answer the reference never gives), NaN does not."""
    if isinstance(values, pa.Array):
        found, bad = _from_arrow(name, values, origin.source)
    else:
        right = [isinstance(v, int | float) and not isinstance(v, bool) for v in values]
        found = np.array([v if ok else np.nan for v, ok in zip(values, right, strict=True)], float)
        bad = ~np.isfinite(found)
    if name == "log_ref":
        bad &= found != -np.inf
    if bad.any():
        row = int(np.argmax(bad))
        value = values[row].as_py() if isinstance(values, pa.Array) else values[row]
        raise InputError(
            f"{origin.at(row)}: `{name}` is {short(value)}, expected a finite number; correct or "
            "remove the row."
        )
    return found


def _from_arrow(name: str, values: pa.Array, source: str) -> tuple[Floats, np.ndarray]:
    if not _numeric(values):
        raise InputError(f"{source}: `{name}` holds {values.type}, expected numbers; convert it.")
    found = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return found, ~np.isfinite(found)


def _arrow_numbers(name: str, values: pa.Array, source: str, start: int) -> Floats:
    found, bad = _from_arrow(name, values, source)
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(
            f"{source}, row {start + row + 1}: `{name}` is {short(values[row].as_py())}, expected "
            "a finite number; correct or remove the row."
        )
    return found


def _arrow_lists(values: pa.Array, size: int, source: str, start: int) -> Floats:
    kind = values.type
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(test(kind) for test in lists):
        raise InputError(f"{source}: `weights` holds {kind}, expected a list of {size} numbers.")
    if pa.types.is_fixed_size_list(kind):
        wrong = np.full(len(values), kind.list_size != size) | np.asarray(values.is_null())
    else:
        wrong = np.asarray(values.value_lengths().fill_null(-1)) != size
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(
            f"{source}, row {start + row + 1}: `weights` is {short(values[row].as_py())}, "
            f"expected {size} numbers."
        )
    flat = values.flatten()
    if not (pa.types.is_floating(flat.type) or pa.types.is_integer(flat.type)):
        raise InputError(f"{source}: `weights` holds {kind}, expected a list of {size} numbers.")
    return flat.cast(pa.float64()).to_numpy(zero_copy_only=False).reshape(-1, size)


def _lists(values: list[Any], size: int, origin: Origin) -> Floats:
    for row, value in enumerate(values):
        right = isinstance(value, list) and len(value) == size
        if not right or not all(isinstance(v, int | float) for v in value):
            raise InputError(
                f"{origin.at(row)}: `weights` is {short(value)}, expected {size} numbers."
            )
    return np.asarray(values, np.float64)


def _texts(values: Any, origin: Origin) -> list[str]:
    listed = values.to_pylist() if isinstance(values, pa.Array) else values
    for row, value in enumerate(listed):
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise InputError(
                f"{origin.at(row)}: `prompt` is {short(value)}, expected an id or a text."
            )
    return [str(value) for value in listed]


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
    flat = np.ptp(values, axis=0) <= 1e-9 * np.maximum(np.abs(values).max(axis=0), 1e-9)
    if flat.any():
        name = names[int(np.argmax(flat))]
        raise InputError(
            f"{origin.source}: `{name}` is {values[0, int(np.argmax(flat))]:g} in every row, "
            "expected a reward that varies; leave it out (--rewards names those to keep)."
        )


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")
