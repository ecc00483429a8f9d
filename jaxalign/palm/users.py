"""Files of users' weights, read on the scale of a portfolio's rewards."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from jaxalign.data.columns import Origin
from jaxalign.data.tables import Table, read_metadata, read_tables
from jaxalign.data.values import short
from jaxalign.errors import InputError
from jaxalign.files import expand_user
from jaxalign.palm.domain import Floats
from jaxalign.rewards.reward_scale import RewardScale
from jaxalign.runs.user_store import AboutUsers, is_users_file, open_users

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
        unused: names of the columns that are neither read nor rewards of the portfolio.
    """

    ids: pa.Array | None
    weights: Floats
    origin: Origin
    unused: tuple[str, ...] = ()


def read_users(path: str | Path, scale: RewardScale, keep_sum: bool = True) -> Iterator[UserBatch]:
    """Read users' weights, a batch at a time.

    A file comes in one of two layouts. Written by hand, in any format: one column per
    reward, by name, and optionally `user` and `scale`. Without `scale`, weights are taken to be in
    the portfolio's own units: per level of each reward, level 0 to 1 being the range that the
    portfolio was built on. With it (the digest of the scale, or its first 12 digits or more),
    weights are per standard deviation of the rewards, and are converted to levels.
    Written by `jaxalign mrm adapt`: a database, which names the rewards and their scale.

    Args:
        path: a file as `jaxalign.data.tables.read_rows` takes it.
        scale: scale of the portfolio's rewards.
        keep_sum: whether a conversion keeps the sum of each user's absolute weights, as on the
            simplex, where their size says nothing.

    Yields:
        UserBatch.

    Raises:
        InputError: no such file or column, a row without its numbers, two rows of one user in a
            batch, weights whose rewards are not named or not those of the scale, or weights on
            another scale.
    """
    path = expand_user(path)
    if path.is_file() and is_users_file(path):
        yield from _adapted(path, scale, keep_sum)
        return
    metadata = read_metadata(path)
    for table in read_tables(path, ("user", "scale", "weights", *scale.names), BATCH):
        yield _batch(table, metadata, scale, keep_sum)


def _batch(
    table: Table, metadata: Mapping[bytes, bytes], scale: RewardScale, keep_sum: bool
) -> UserBatch:
    """Weights of some users, on the levels of the portfolio's rewards."""
    columns, origin = table.columns, table.origin
    _check_columns(origin.source, list(columns), scale.names)
    stated = b"scale" in metadata or "scale" in columns
    if b"scale" in metadata:
        _check_scale([metadata[b"scale"].decode(errors="replace")], scale, origin)
    weights = np.stack([table.numbers(name) for name in scale.names], axis=1)
    if "scale" in columns:
        _check_scale(table.texts("scale").to_pylist(), scale, origin)
    if stated:
        weights = _on_levels(weights, scale, keep_sum)
    ids = table.identifiers("user") if "user" in columns else None
    if ids is not None:
        _refuse_repeated(ids, origin)
    unused = tuple(name for name in columns if name not in ("user", "scale", *scale.names))
    return UserBatch(ids, weights, origin, unused)


def _refuse_repeated(ids: pa.Array, origin: Origin) -> None:
    """Refuse two rows of one user, of which the number 7 and the text "7" are one."""
    if len(ids.unique()) == len(ids):
        return
    first: dict[str, int] = {}
    for row, user in enumerate(ids.to_pylist()):
        if first.setdefault(user, row) != row:
            raise InputError(
                f"{origin.at(row)}: found the user {short(user)} of {origin.place(first[user])} "
                "again, expected one row for each user; remove one of the two."
            )


def _adapted(path: Path, scale: RewardScale, keep_sum: bool) -> Iterator[UserBatch]:
    """Weights of the users of `jaxalign mrm adapt`."""
    with closing(open_users(path)) as users:
        about, origin = users.about, Origin(str(path))
        if not about.weights:
            raise InputError(
                f"{path}: found users as their choices, of a method without weights, expected "
                f"weights on {', '.join(scale.names)}; adapt the users with a method that has "
                "weights, such as `--select bayes` of `jaxalign mrm train`."
            )
        _check_rewards(str(path), about, scale)
        for ids, weights in users.weights(BATCH):
            found = _on_levels(weights.astype(np.float64), scale, keep_sum)
            yield UserBatch(pa.array(ids), found, origin)


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


def _check_rewards(source: str, about: AboutUsers, scale: RewardScale) -> None:
    """Refuse weights on rewards without names, on other rewards or on another scale."""
    expected = f"weights on {', '.join(scale.names)} on the scale {scale.digest[:_DIGITS]}"
    if not about.rewards:
        raise InputError(
            f"{source}: found weights on rewards without names, as of learned rewards, expected "
            f"{expected}; {_ONE_SCALE}."
        )
    if about.rewards != scale.names:
        raise InputError(
            f"{source}: found weights of {', '.join(about.rewards)}, expected {expected}; "
            f"{_ONE_SCALE}."
        )
    _check_scale([about.scale], scale, Origin(source))


def _check_scale(stated: Sequence[str], scale: RewardScale, origin: Origin) -> None:
    """Refuse digests that are not those of the scale, nor at least 12 digits of it."""
    for row, digest in enumerate(stated):
        if len(digest) < _DIGITS or not scale.digest.startswith(digest):
            place = origin.source if len(stated) == 1 else origin.at(row)
            raise InputError(
                f"{place}: found weights on the scale {short(digest[:_DIGITS])}, expected "
                f"{scale.digest[:_DIGITS]!r}, that of the portfolio's rewards; {_ONE_SCALE}."
            )
