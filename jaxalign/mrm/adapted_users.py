"""Adapted users, in memory and as a Parquet file that names their model and their rewards."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxalign.errors import InputError
from jaxalign.files import write_aside
from jaxalign.rewards.reward_scale import RewardIds

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = "2"
REMEDY = "write it with `jaxalign mrm adapt`"


@dataclass(frozen=True)
class UserWeights:
    """Users as weights on base rewards.

    Attributes:
        users: [U] ids.
        choices: [U] number of choices that each was adapted on.
        accuracy: [U] accuracy on held-out choices of the user's own, NaN where there are too few.
        model: digest of the model's file.
        mean: [U, K] weights.
        cov: [U, K, K] their covariance, None where the method has no posterior.
        reward_ids: names and scale of the base rewards, None for learned ones.

    Example:
        >>> import numpy as np
        >>> from jaxalign.mrm import UserWeights
        >>> users = UserWeights(("ann",), np.array([3]), np.array([0.7]), "", np.ones((1, 2)))
        >>> users.mean.shape, users.cov is None
        ((1, 2), True)
    """

    users: tuple[str, ...]
    choices: np.ndarray
    accuracy: np.ndarray
    model: str
    mean: np.ndarray
    cov: np.ndarray | None = None
    reward_ids: RewardIds | None = None


@dataclass(frozen=True)
class UserSupports:
    """Users as the choices that they made, for methods that read these anew for each prediction.

    Attributes:
        users: [U] ids.
        choices: [U] number of choices of each.
        accuracy: as in `UserWeights`.
        model: digest of the model's file.
        chosen: for each user [P, D] the features of the chosen items, as the method takes them.
        rejected: for each user [P, D].
        weight: for each user [P], 1 or, for either order of a tie, 1/2.

    Example:
        >>> import numpy as np
        >>> from jaxalign.mrm import UserSupports
        >>> rows, weight = (np.ones((3, 2)),), (np.ones(3),)
        >>> users = UserSupports(("ann",), np.array([3]), np.array([0.7]), "", rows, rows, weight)
        >>> users.chosen[0].shape
        (3, 2)
    """

    users: tuple[str, ...]
    choices: np.ndarray
    accuracy: np.ndarray
    model: str
    chosen: tuple[np.ndarray, ...]
    rejected: tuple[np.ndarray, ...]
    weight: tuple[np.ndarray, ...]


AdaptedUsers = UserWeights | UserSupports


def place_of(users: AdaptedUsers | None, user: str) -> int:
    """Return the row of a user.

    Raises:
        InputError: the user was not adapted.
    """
    known = users.users if users else ()
    if user in known:
        return known.index(user)
    some = ", ".join(known[:3]) + (", ..." if len(known) > 3 else "")
    have = f"there are {len(known)} ({some})" if known else "there are none"
    raise InputError(
        f"user {user!r} has not been adapted; {have}: run `jaxalign mrm adapt` with this user's "
        "choices, or leave the user out for the population's answer."
    )


def save_users(path: str | Path, users: AdaptedUsers) -> None:
    """Write users as Parquet, one row each.

    Columns of `UserWeights`: user, weights [K], covariance [K * K] row by row (null where the
    method has no posterior), choices, held_out_accuracy (null where there are too few choices). The
    metadata name the rewards and the digest of their scale. Columns of `UserSupports`: user, chosen
    and rejected [P * D], weight [P], choices, held_out_accuracy.

    Args:
        path: file to write.
        users: what to write.

    Example:
        >>> import numpy as np
        >>> from jaxalign.mrm import UserWeights, load_users, save_users
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/users.parquet"
        >>> one = UserWeights(("ann",), np.array([3]), np.array([0.7]), "", np.ones((1, 2)))
        >>> save_users(path, one)
        >>> load_users(path).mean.tolist()
        [[1.0, 1.0]]
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    floats = pa.list_(pa.float32())
    columns = {"user": pa.array(users.users, pa.string())}
    meta = {"format": FORMAT, "model": users.model}
    if isinstance(users, UserWeights):
        size, count = users.mean.shape[1], len(users.users)
        cov: list[np.ndarray | None] = [None] * count
        if users.cov is not None:
            cov = [*users.cov.reshape(count, -1).astype(np.float32)]
        weights = list(users.mean.astype(np.float32))
        columns |= {"weights": pa.array(weights, pa.list_(pa.float32(), size))}
        columns |= {"covariance": pa.array(cov, floats)}
        meta |= {"kind": "user weights"}
        if users.reward_ids is not None:
            meta |= {"rewards": "\n".join(users.reward_ids.names), "scale": users.reward_ids.digest}
    else:
        for name in ("chosen", "rejected", "weight"):
            rows = [np.ravel(row).astype(np.float32) for row in getattr(users, name)]
            columns[name] = pa.array(rows, floats)
        meta |= {"kind": "user choices"}
    columns["choices"] = pa.array(users.choices.astype(np.int64))
    shares = [None if np.isnan(value) else float(value) for value in users.accuracy]
    columns["held_out_accuracy"] = pa.array(shares, pa.float64())
    with write_aside(path) as aside:
        pq.write_table(pa.table(columns).replace_schema_metadata(meta), aside)


def load_users(path: str | Path, model: str | None = None) -> AdaptedUsers:
    """Read what `save_users` wrote.

    Args:
        path: file to read.
        model: digest of the model that the users must have been adapted with; None for any.

    Raises:
        InputError: no such file, not of `jaxalign mrm adapt`, of an older format, or made with
            another model.

    Example:
        >>> from jaxalign.errors import InputError
        >>> from jaxalign.mrm import load_users
        >>> try:
        ...     load_users("nowhere.parquet")
        ... except InputError as error:
        ...     print(error)
        nowhere.parquet does not exist: write it with `jaxalign mrm adapt`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not Path(path).exists():
        raise InputError(f"{path} does not exist: {REMEDY}.")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path} is no file of `jaxalign mrm adapt` ({error}): {REMEDY}."
        ) from None
    meta = {
        name.decode(errors="replace"): text.decode(errors="replace")
        for name, text in (table.schema.metadata or {}).items()
    }
    if meta.get("format") != FORMAT:
        raise InputError(
            f"{path} is no file of `jaxalign mrm adapt`, or of an older version: {REMEDY} anew."
        )
    own = meta.get("model", "")
    if model is not None and own != model:
        raise InputError(
            f"{path} holds users that were adapted with another model ({own[:12]}, this "
            f"is {model[:12]}): adapt the users again with this model."
        )
    try:
        return _read_users(table, meta)
    except (pa.ArrowException, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}): {REMEDY} anew.") from None


def _read_users(table: "pa.Table", meta: dict[str, str]) -> AdaptedUsers:
    def rows(name: str) -> tuple[np.ndarray, ...]:
        return tuple(np.asarray(row, np.float32) for row in table[name].to_pylist())

    users, counts = tuple(table["user"].to_pylist()), np.asarray(table["choices"])
    shares = table["held_out_accuracy"].to_pylist()
    accuracy = np.array([np.nan if share is None else share for share in shares], float)
    if meta["kind"] == "user choices":
        weight = rows("weight")
        chosen, rejected = (
            tuple(
                row.reshape(len(w), -1 if len(w) else 0)
                for row, w in zip(rows(name), weight, strict=True)
            )
            for name in ("chosen", "rejected")
        )
        return UserSupports(users, counts, accuracy, meta["model"], chosen, rejected, weight)
    mean = np.stack(rows("weights"))
    known = table["covariance"].null_count == 0
    square = (-1, mean.shape[1], mean.shape[1])
    cov = np.stack(rows("covariance")).reshape(square) if known else None
    named = "rewards" in meta
    ids = RewardIds(tuple(meta["rewards"].split("\n")), meta["scale"]) if named else None
    return UserWeights(users, counts, accuracy, meta["model"], mean, cov, ids)
