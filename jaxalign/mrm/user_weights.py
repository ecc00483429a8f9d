"""What is known of users, in memory and as a Parquet file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.errors import InputError


@dataclass(frozen=True)
class UserWeights:
    """What is known of users: weights [U, K] on the model's base rewards, and how surely.

    Attributes:
        users: ids.
        mean: [U, K].
        cov: [U, K, K]; zeros where the method gives none.
        choices: [U] number of choices seen.
        accuracy: [U] held-out accuracy on the user's own choices, NaN with fewer than 2.
    """

    users: tuple[str, ...]
    mean: np.ndarray
    cov: np.ndarray
    choices: np.ndarray
    accuracy: np.ndarray


def save_users(path: str | Path, users: UserWeights, names: Sequence[str] | None = None) -> None:
    """Write users as Parquet, one row each.

    Columns: user, weights [K], covariance [K * K] row by row (null where the method gives none),
    choices, held_out_accuracy (null where it cannot be had).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    size = users.mean.shape[1]
    has_cov = bool(users.cov.any())
    flat = users.cov.reshape(len(users.users), -1).astype(np.float32)
    columns: dict[str, Any] = {
        "user": pa.array(users.users),
        "weights": pa.array(list(users.mean.astype(np.float32)), pa.list_(pa.float32(), size)),
        "covariance": pa.array(
            list(flat) if has_cov else [None] * len(users.users), pa.list_(pa.float32())
        ),
        "choices": pa.array(users.choices.astype(np.int64)),
        "held_out_accuracy": pa.array(
            [None if np.isnan(value) else float(value) for value in users.accuracy], pa.float64()
        ),
    }
    table = pa.table(columns)
    if names:
        table = table.replace_schema_metadata({"rewards": "\n".join(names)})
    aside = path.with_name(f".{path.name}.part")
    pq.write_table(table, aside)
    aside.replace(path)


def load_users(path: str | Path, size: int) -> UserWeights:
    """Read what `save_users` wrote, for a model of `size` base rewards.

    Raises:
        InputError: no such file, not of `jaxalign mrm adapt`, or made with another model's width.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not Path(path).exists():
        raise InputError(f"{path} does not exist: write it with `jaxalign mrm adapt`")
    try:
        table = pq.read_table(path)
        mean = np.stack([np.asarray(row, np.float32) for row in table["weights"].to_pylist()])
        covariances, counts = table["covariance"].to_pylist(), np.asarray(table["choices"])
        shares = table["held_out_accuracy"].to_pylist()
        users = tuple(table["user"].to_pylist())
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:
        raise InputError(f"{path} is no file of `jaxalign mrm adapt`: {error}") from None
    if mean.shape[1] != size:
        raise InputError(
            f"{path} holds weights on {mean.shape[1]} base rewards but the model has {size}: "
            "adapt the users again with this model"
        )
    zero = np.zeros((size, size), np.float32)
    cov = np.stack(
        [zero if r is None else np.asarray(r, np.float32).reshape(size, size) for r in covariances]
    )
    accuracy = np.array([np.nan if share is None else share for share in shares])
    return UserWeights(users, mean, cov, counts, accuracy)
