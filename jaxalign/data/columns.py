"""Named columns of a file or a data set, as plain Python values."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jaxalign.data import files
from jaxalign.data.files import Origin
from jaxalign.errors import InputError


def read_columns(
    source: str | Path, names: Sequence[str]
) -> tuple[dict[str, list[object]], Origin]:
    """Read those of the named columns that are there.

    Args:
        source: a path ending in .jsonl, .json (one object a line; .gz too) or .parquet, or the name
            of a Hugging Face data set, as `jaxalign.data.load` takes it.
        names: of the columns that are wanted.

    Returns:
        Name -> values [N], None where a JSON row lacks one; a column that no row has is absent.
        And where the rows came from, for messages.

    Raises:
        InputError: the source cannot be found or read, or holds no rows.
    """
    path, name = Path(source), str(source)
    if name.endswith(files.JSON_ENDINGS):
        rows, lines = files.read_json_lines(path)
        present = [wanted for wanted in names if any(wanted in row for row in rows)]
        return {wanted: [row.get(wanted) for row in rows] for wanted in present}, Origin(
            name, lines
        )
    if name.endswith(".parquet"):
        columns = _parquet(path, names)
    else:
        table = files.read_dataset(source)
        columns = {wanted: table[wanted].to_pylist() for wanted in names if wanted in table}
    if columns and not len(next(iter(columns.values()))):
        raise InputError(f"{name} has no rows, expected at least one.")
    return columns, Origin(name)


def _parquet(path: Path, names: Sequence[str]) -> dict[str, list[object]]:
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path.")
    try:
        wanted = [name for name in pq.read_schema(path).names if name in names]
        table = pq.read_table(path, columns=wanted, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"{path} is not a readable Parquet file: {reason}.") from None
    return {name: table[name].to_pylist() for name in wanted}
