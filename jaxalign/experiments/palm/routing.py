"""A file of users routed to the members of a portfolio, batch by batch."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxalign.errors import InputError
from jaxalign.palm._sweep import best_member
from jaxalign.palm.domain import Floats, check_weights, extend
from jaxalign.palm.files import read_users
from jaxalign.palm.portfolio import Portfolio, Usage


class Routed(NamedTuple):
    """What routing a file came to.

    Attributes:
        users: how many.
        usage: share per member, perplexity, members never used.
        worst_regret: largest bound on what a user loses, in units of reward.
        against: what the bound is against.
    """

    users: int
    usage: Usage
    worst_regret: float
    against: str


def route_file(
    portfolio: Portfolio,
    names: tuple[str, ...],
    users: Path,
    out: Path,
    normalise: bool = False,
) -> Routed:
    """Write every user's member, its value and a bound on the regret.

    Args:
        portfolio: to route to.
        names: [R] of its rewards.
        users: .parquet or .jsonl, see `files.read_users`.
        out: .parquet or .jsonl to write: `user`, `member` (0 is the reference), `value` in units of
            reward, the price of KL taken off, and `regret_bound`.
        normalise: divide weights by their sum (signed: by the sum of absolute values, where that is
            above 1) instead of refusing those off the domain.

    Returns:
        Routed.

    Raises:
        InputError: a file that cannot be read, columns of other names, or a row off the domain.
    """
    if out.suffix not in (".parquet", ".jsonl"):
        raise InputError(f"--out {out} must end in .parquet or .jsonl.")
    if not out.parent.is_dir():
        raise InputError(f"{out.parent} is no folder: make it, or give another --out.")
    counts, worst = np.zeros(len(portfolio.members)), 0.0
    aside = out.with_name(f".{out.name}.{os.getpid()}.part")
    schema = pa.schema(
        [("user", pa.string()), ("member", pa.int32()), ("value", pa.float32()),
         ("regret_bound", pa.float32())]
    )  # fmt: skip
    try:
        with _writer(aside, out.suffix, schema) as write:
            for columns, member, regret in _batches(portfolio, names, users, normalise):
                write(pa.table(columns, schema=schema))
                counts += np.bincount(member, minlength=len(counts))
                worst = max(worst, float(regret.max(initial=0.0)))
        if not counts.sum():
            raise InputError(f"{users} has no rows, expected at least one user.")
        os.replace(aside, out)
    finally:
        aside.unlink(missing_ok=True)
    share = counts / counts.sum()
    used = share[share > 0]
    unused = tuple(int(i) for i in np.flatnonzero(share == 0))
    usage = Usage(share, float(np.exp(-np.sum(used * np.log(used)))), unused)
    return Routed(int(counts.sum()), usage, worst, portfolio.certificate.scope)


def _batches(
    portfolio: Portfolio, names: tuple[str, ...], users: Path, normalise: bool
) -> Iterator[tuple[list[Any], np.ndarray, Floats]]:
    kind, best = portfolio.config.weights, portfolio.facets
    if best is None:
        best = portfolio.pool_values
    for ids, weights, start in read_users(users, names):
        placed = _on_domain(portfolio, weights, normalise, users, start)
        dtype = jnp.result_type(float)
        points = jnp.asarray(extend(kind, placed), dtype)
        value, member = (
            np.asarray(x) for x in best_member(points, jnp.asarray(portfolio.values, dtype))
        )
        bound = np.asarray(best_member(points, jnp.asarray(best, dtype))[0])
        # Rounding may place the bound of a solved weight below its value.
        regret = np.maximum(bound - value, 0.0)
        if ids is None:
            ids = pa.array(np.arange(start, start + len(value))).cast(pa.string())
        columns = [ids.cast(pa.string()), member, value.astype("f4"), regret.astype("f4")]
        yield columns, member, regret


def _on_domain(
    portfolio: Portfolio, weights: Floats, normalise: bool, users: Path, start: int
) -> Floats:
    if normalise and portfolio.config.weights == "simplex":
        total = weights.sum(axis=1, keepdims=True)
        weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    elif normalise:
        weights = weights / np.maximum(np.abs(weights).sum(axis=1, keepdims=True), 1.0)
    try:
        return check_weights(portfolio.config.weights, weights, weights.shape[1])
    except InputError as error:
        words = str(error)
        row = words.removeprefix("weights, row ").partition(":")[0]
        if row.isdigit():
            words = f"row {start + int(row) + 1}:{words.partition(':')[2]}"
        more = "" if normalise else " Or add --normalise."
        raise InputError(f"{users}, {words}{more}") from None


class _writer:
    """Tables appended to one file, as Parquet or JSON lines."""

    def __init__(self, path: Path, suffix: str, schema: pa.Schema) -> None:
        self.path, self.suffix, self.schema = path, suffix, schema

    def __enter__(self) -> Any:
        if self.suffix == ".parquet":
            self.file: Any = pq.ParquetWriter(self.path, self.schema)
            return self.file.write_table
        self.file = open(self.path, "w", encoding="utf-8")
        return self._lines

    def _lines(self, table: pa.Table) -> None:
        for row in table.to_pylist():
            self.file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def __exit__(self, *_: Any) -> None:
        self.file.close()
