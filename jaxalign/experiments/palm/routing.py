"""A file of users routed to the members of a portfolio, batch by batch."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxalign.errors import InputError
from jaxalign.files import write_aside
from jaxalign.palm import Portfolio, Usage, best_member, check_weights, usage
from jaxalign.palm.domain import Floats, extend
from jaxalign.palm.users import UserBatch, read_users

_SCHEMA = pa.schema(
    [("user", pa.string()), ("member", pa.int32()), ("value", pa.float32()),
     ("regret_bound", pa.float32())]
)  # fmt: skip


class RoutedUsers(NamedTuple):
    """Summary of a routed file.

    Attributes:
        users: number of users.
        usage: share of users per member, its perplexity, members never used.
        worst_regret: largest bound on what a user loses, in units of reward.
        against: what the bound is relative to.
        unused: names of the file's columns that were not used.
    """

    users: int
    usage: Usage
    worst_regret: float
    against: str
    unused: tuple[str, ...] = ()


def route_users(
    portfolio: Portfolio, users: Path, out: Path, normalise: bool = False
) -> RoutedUsers:
    """Write the member, its value and a bound on the regret of every user of a file.

    Args:
        portfolio: a portfolio whose scale is known.
        users: .parquet or .jsonl, see `jaxalign.palm.users.read_users`.
        out: .parquet or .jsonl to write: `user`, `member` (0 is the reference), `value` in units of
            reward, the price of KL taken off, and `regret_bound`.
        normalise: divide weights by their sum (signed: by the sum of absolute values, where that is
            above 1) instead of refusing those off the domain.

    Returns:
        RoutedUsers.

    Raises:
        InputError: a file that cannot be read, two rows of one user, weights on other rewards or on
            another scale, or a row off the domain.
    """
    if portfolio.scale is None:
        raise InputError(
            "portfolio: found one that does not state the scale of its rewards, expected one of "
            "`jaxalign palm build`; build it with `palm.build(..., scale=...)`."
        )
    counts, worst, unused = np.zeros(len(portfolio.members)), 0.0, dict[str, None]()
    simplex = portfolio.config.weights == "simplex"
    with write_aside(out) as aside, _writer(aside, out.suffix) as write:
        for batch in read_users(users, portfolio.scale, keep_sum=simplex):
            table, regret = _route(portfolio, batch, users, normalise)
            write(table)
            counts += np.bincount(table["member"].to_numpy(), minlength=len(counts))
            worst = max(worst, float(regret.max(initial=0.0)))
            unused |= dict.fromkeys(batch.unused)
        if not counts.sum():
            raise InputError(f"{users} has no rows, expected at least one user.")
    against = portfolio.certificate.scope
    return RoutedUsers(int(counts.sum()), usage(counts), worst, against, tuple(unused))


def _route(
    portfolio: Portfolio, batch: UserBatch, users: Path, normalise: bool
) -> tuple[pa.Table, Floats]:
    """The rows of the output for some users, and their bounds on the regret [n]."""
    best = portfolio.pool_values if portfolio.facets is None else portfolio.facets
    weights = _on_domain(portfolio, batch, normalise, users)
    dtype = jnp.result_type(float)
    points = jnp.asarray(extend(portfolio.config.weights, weights), dtype)
    value, member = (
        np.asarray(x) for x in best_member(points, jnp.asarray(portfolio.values, dtype))
    )
    bound = np.asarray(best_member(points, jnp.asarray(best, dtype))[0])
    # Rounding may place the bound of a solved weight below its value.
    regret = np.maximum(bound - value, 0.0)
    ids = batch.ids
    if ids is None:
        ids = pa.array(np.arange(batch.origin.start, batch.origin.start + len(value)))
    columns = [ids.cast(pa.string()), member, value.astype("f4"), regret.astype("f4")]
    return pa.table(columns, schema=_SCHEMA), regret


def _on_domain(portfolio: Portfolio, batch: UserBatch, normalise: bool, users: Path) -> Floats:
    """Weights on the domain of the portfolio; refuses a row off it, by its number in the file."""
    weights = batch.weights
    if normalise and portfolio.config.weights == "simplex":
        total = weights.sum(axis=1, keepdims=True)
        weights = np.divide(weights, total, out=weights.copy(), where=total > 0)
    elif normalise:
        weights = weights / np.maximum(np.abs(weights).sum(axis=1, keepdims=True), 1.0)
    try:
        return check_weights(portfolio.config.weights, weights, weights.shape[1])
    except InputError as error:
        message = str(error)
        row = message.removeprefix("weights, row ").partition(":")[0]
        if row.isdigit():
            message = f"{batch.origin.place(int(row))}:{message.partition(':')[2]}"
        raise InputError(f"{users}, {message}{_remedy(portfolio, weights, normalise)}") from None


def _remedy(portfolio: Portfolio, weights: Floats, normalised: bool) -> str:
    """What to do about weights off the domain, as far as the message of their row leaves it out."""
    if portfolio.config.weights == "simplex" and (weights < 0).any():
        return (
            " Weights below 0 are dislikes, which `jaxalign palm build --palm.weights signed` "
            "serves, and `palm route --normalise` then scales."
        )
    return "" if normalised else " Or add --normalise."


@contextmanager
def _writer(path: Path, suffix: str) -> Iterator[Callable[[pa.Table], None]]:
    """Yield a function that appends a table to one file, as Parquet or JSON lines."""
    if suffix == ".parquet":
        with pq.ParquetWriter(path, _SCHEMA) as parquet:
            yield parquet.write_table
        return
    with path.open("w", encoding="utf-8") as lines:

        def write(table: pa.Table) -> None:
            for row in table.to_pylist():
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")

        yield write
