"""Files of users' weights, read on the scale of a portfolio's rewards."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from jaxalign.data.columns import Column, Origin
from jaxalign.data.tables import Table, read_metadata, read_tables
from jaxalign.data.values import short
from jaxalign.errors import InputError
from jaxalign.palm.domain import Floats
from jaxalign.rewards.reward_scale import RewardScale

# Users read, routed and written at a time.
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
        origin: where the rows came from, for messages.
    """

    ids: pa.Array | None
    weights: Floats
    origin: Origin


def read_users(path: str | Path, scale: RewardScale, keep_sum: bool = True) -> Iterator[UserBatch]:
    """Read users' weights, a batch at a time.

    A file comes in one of two layouts. Written by hand, in any format: one column per
    reward, by name, and optionally `user` and `scale`. Without `scale`, weights are taken to be in
    the portfolio's own units: per level of each reward, level 0 to 1 being the range that the
    portfolio was built on. With it (the digest of the scale, or its first 12 digits or more),
    weights are per standard deviation of the rewards, and are converted to levels.
    Written by `jaxalign mrm adapt`: Parquet with a column `weights` of lists, in the order that the
    file's metadata state as `rewards`, on the scale that they state as `scale`.

    Args:
        path: a file as `jaxalign.data.tables.read_rows` takes it.
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
    metadata = read_metadata(path)
    if metadata.get(b"kind") == b"user choices":
        raise InputError(
            f"{path}: found users as their choices, of a method without weights, expected weights "
            f"on {', '.join(scale.names)}; adapt the users with a method that has weights, such as "
            "`--select bayes` of `jaxalign mrm train`."
        )
    for table in read_tables(path, ("user", "scale", "weights", *scale.names), BATCH):
        yield _batch(table, metadata, scale, keep_sum)


def _batch(
    table: Table, metadata: Mapping[bytes, bytes], scale: RewardScale, keep_sum: bool
) -> UserBatch:
    """Weights of some users, on the levels of the portfolio's rewards."""
    columns, origin = table.columns, table.origin
    stated = b"scale" in metadata or "scale" in columns
    listed = isinstance(columns.get("weights"), pa.Array | pa.ChunkedArray)
    if listed and not set(scale.names) & set(columns):
        _check_metadata(origin.source, metadata, scale)
        weights, stated = _lists(columns["weights"], len(scale.names), origin), True
    else:
        _check_columns(origin.source, list(columns), scale.names)
        if b"scale" in metadata:
            _check_scale([metadata[b"scale"].decode(errors="replace")], scale, origin)
        weights = np.stack([table.numbers(name) for name in scale.names], axis=1)
    if "scale" in columns:
        _check_scale(table.texts("scale").to_pylist(), scale, origin)
    if stated:
        weights = _on_levels(weights, scale, keep_sum)
    return UserBatch(table.identifiers("user") if "user" in columns else None, weights, origin)


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


def _lists(values: Column, size: int, origin: Origin) -> Floats:
    """A column of lists of numbers as float64 [n, size]."""
    values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
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
            f"{origin.at(row)}: `weights` is {short(values[row].as_py())}, expected {size} numbers."
        )
    flat = values.flatten()
    if not (pa.types.is_floating(flat.type) or pa.types.is_integer(flat.type)):
        raise InputError(f"{origin.source}: `weights` holds {values.type}, expected numbers.")
    return np.asarray(flat.cast(pa.float64()).to_numpy(zero_copy_only=False)).reshape(-1, size)
