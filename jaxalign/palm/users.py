"""Files of users' weights, read on the scale of a portfolio's rewards."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from jaxalign.data.files import JSON_ENDINGS, Origin
from jaxalign.errors import InputError
from jaxalign.palm._columns import (
    Column,
    first_line,
    is_numeric,
    open_parquet,
    read_columns,
    read_numbers,
    read_texts,
    short,
)
from jaxalign.palm.domain import Floats
from jaxalign.rewards.reward_scale import RewardScale

# Users read from a Parquet file, routed and written at a time.
BATCH = 2**20
# Hexadecimal digits of a digest that messages show, and that a file written by hand may state.
_DIGITS = 12
_ONE_SCALE = (
    "train the user model on the portfolio's scale (`jaxalign mrm train --features.path SCORES "
    "--features.scale PORTFOLIO`), or build the portfolio on the model's scale "
    "(`jaxalign palm build --scale_from RUN`)"
)


class UserBatch(NamedTuple):
    """Some rows of a file of users.

    Attributes:
        ids: [n] ids of the users, None for a file without them.
        weights: [n, R] weights on the levels of the portfolio's rewards.
        start: number of the first row, from 0.
    """

    ids: pa.Array | None
    weights: Floats
    start: int


def read_users(path: str | Path, scale: RewardScale, keep_sum: bool = True) -> Iterator[UserBatch]:
    """Read users' weights, a batch at a time.

    A file comes in one of two layouts. Written by hand: JSON lines or Parquet with one column per
    reward, by name, and optionally `user` and `scale`. Without `scale`, weights are taken to be in
    the portfolio's own units: per level of each reward, level 0 to 1 being the range that the
    portfolio was built on. With it (the digest of the scale, or its first 12 digits or more),
    weights are per standard deviation of the rewards, and are converted to levels.
    Written by `jaxalign mrm adapt`: Parquet with a column `weights` of lists, in the order that the
    file's metadata state as `rewards`, on the scale that they state as `scale`.

    Args:
        path: .parquet, .jsonl or .json (an object per line; .gz too).
        scale: scale of the portfolio's rewards.
        keep_sum: whether a conversion keeps the sum of each user's absolute weights, as on the
            simplex, where their size says nothing.

    Yields:
        UserBatch.

    Raises:
        InputError: no such file or column, a row without its numbers, weights whose rewards are not
            named or not those of the scale, or weights on another scale.
    """
    path = Path(path)
    if path.name.endswith(JSON_ENDINGS):
        columns, origin = read_columns(path)
        _check_columns(str(path), list(columns), scale.names)
        weights = np.stack([read_numbers(n, columns[n], origin) for n in scale.names], axis=1)
        ids = pa.array([str(user) for user in columns["user"]]) if "user" in columns else None
        if "scale" in columns:
            _check_scale(read_texts("scale", columns["scale"], origin), scale, origin)
            weights = _on_levels(weights, scale, keep_sum)
        yield UserBatch(ids, weights, 0)
        return
    source, origin = open_parquet(path), Origin(str(path))
    columns_there = source.schema_arrow.names
    metadata = source.schema_arrow.metadata or {}
    if metadata.get(b"kind") == b"user choices":
        raise InputError(
            f"{path}: found users as their choices, of a method without weights, expected weights "
            f"on {', '.join(scale.names)}; adapt the users with a method that has weights, such as "
            "`--select bayes` of `jaxalign mrm train`."
        )
    listed = "weights" in columns_there and not set(scale.names) & set(columns_there)
    if listed:
        _check_metadata(str(path), metadata, scale)
    else:
        _check_columns(str(path), columns_there, scale.names)
        if b"scale" in metadata:
            _check_scale([metadata[b"scale"].decode(errors="replace")], scale, origin)
    stated = listed or b"scale" in metadata
    wanted = [*(["weights"] if listed else scale.names)]
    wanted += [name for name in ("user", "scale") if name in columns_there]
    start = 0
    try:
        for batch in source.iter_batches(BATCH, columns=wanted):
            if listed:
                weights = _lists(batch["weights"], len(scale.names), origin, start)
            else:
                numbers = [read_numbers(n, batch[n], origin, start) for n in scale.names]
                weights = np.stack(numbers, axis=1)
            if "scale" in wanted:
                _check_scale(read_texts("scale", batch["scale"], origin), scale, origin)
            if stated or "scale" in wanted:
                weights = _on_levels(weights, scale, keep_sum)
            yield UserBatch(batch["user"] if "user" in wanted else None, weights, start)
            start += batch.num_rows
    except pa.ArrowException as error:
        raise InputError(f"{path} is not a readable Parquet file: {first_line(error)}.") from None


def _on_levels(weights: Floats, scale: RewardScale, keep_sum: bool) -> Floats:
    """Weights per level of weights per standard deviation."""
    found = scale.weights_on_levels(weights)
    if not keep_sum:
        return found
    before, after = (np.abs(x).sum(axis=1, keepdims=True) for x in (weights, found))
    return found * np.divide(before, after, out=np.zeros_like(before), where=after > 0)


def _check_columns(source: str, columns: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a file without a column for each reward."""
    missing = [name for name in names if name not in columns]
    if not missing:
        return
    if "weights" in columns and len(missing) == len(names):
        raise InputError(
            f"{source}: found `weights` that do not name their rewards, expected weights on "
            f"{', '.join(names)}; write a column for each of these."
        )
    raise InputError(
        f"{source} has no column {', '.join(f'`{name}`' for name in missing)}; found "
        f"{', '.join(f'`{name}`' for name in columns) or 'none'}, expected a column for each "
        "of the portfolio's rewards."
    )


def _check_metadata(source: str, metadata: Mapping[bytes, bytes], scale: RewardScale) -> None:
    """Refuse lists of weights on rewards without names, on other rewards or on another scale."""
    names, digest = (
        metadata.get(key, b"").decode(errors="replace") for key in (b"rewards", b"scale")
    )
    expected = f"weights on {', '.join(scale.names)} on the scale {scale.digest[:_DIGITS]}"
    if not names:
        raise InputError(
            f"{source}: found weights on rewards without names, as of learned rewards, expected "
            f"{expected}; {_ONE_SCALE}."
        )
    if tuple(names.split("\n")) != scale.names:
        raise InputError(
            f"{source}: found weights of {names.replace(chr(10), ', ')}, expected {expected}; "
            f"{_ONE_SCALE}."
        )
    if not digest:
        raise InputError(
            f"{source}: found weights that state no scale, expected {expected}; write the file "
            "again with `jaxalign mrm adapt`."
        )
    _check_scale([digest], scale, Origin(source))


def _check_scale(stated: Sequence[str], scale: RewardScale, origin: Origin) -> None:
    """Refuse digests that are not those of the scale, nor at least 12 digits of it."""
    for row, digest in enumerate(stated):
        if len(digest) < _DIGITS or not scale.digest.startswith(digest):
            place = origin.source if len(stated) == 1 else origin.at(row)
            raise InputError(
                f"{place}: found weights on the scale {short(digest[:_DIGITS])}, expected "
                f"{scale.digest[:_DIGITS]!r}, that of the portfolio's rewards; {_ONE_SCALE}."
            )


def _lists(values: Column, size: int, origin: Origin, start: int) -> Floats:
    """A column of lists of numbers as float64 [n, size]."""
    if not isinstance(values, pa.Array) or not any(
        test(values.type)
        for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    ):
        raise InputError(f"{origin.source}: `weights` is no column of lists; expected {size} each.")
    wrong = np.asarray(values.is_null())
    if pa.types.is_fixed_size_list(values.type):
        wrong = wrong | (values.type.list_size != size)
    else:
        wrong = wrong | (np.asarray(values.value_lengths().fill_null(-1)) != size)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(
            f"{origin.at(start + row)}: `weights` is {short(values[row].as_py())}, expected {size} "
            "numbers."
        )
    flat = values.flatten()
    if not is_numeric(flat):
        raise InputError(f"{origin.source}: `weights` holds {values.type}, expected numbers.")
    return np.asarray(flat.cast(pa.float64()).to_numpy(zero_copy_only=False)).reshape(-1, size)
