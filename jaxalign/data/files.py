"""Preference files and data sets, read and checked into one table."""

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jaxalign.data.preferences import Conversation, Preferences
from jaxalign.errors import InputError

REQUIRED = ("user", "chosen", "rejected")
OPTIONAL = ("prompt", "group", "time", "tie")
JSON_ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
DATASET = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+){0,2})(:(?P<split>[\w.\-+\[\]%:]+))?")


Column: TypeAlias = Sequence[object] | np.ndarray | pa.Array | pa.ChunkedArray
"""The values of a column."""


@dataclass(frozen=True)
class Origin:
    """Where rows came from, so that a message can point at one of them."""

    source: str
    lines: Sequence[int] | np.ndarray | None = None

    def place(self, row: int) -> str:
        """The row as its reader would count it: a line of a text file, or a row from 1."""
        return f"row {row + 1}" if self.lines is None else f"line {self.lines[row]}"

    def at(self, row: int) -> str:
        """Source and place of one row."""
        return f"{self.source}, {self.place(row)}"


def load(source: str | Path) -> Preferences:
    """Read choices from a file or a Hugging Face data set.

    Args:
        source: a path ending in .jsonl, .json (one object a line; .gz too) or .parquet, or the
            name of a data set: `name`, `name:split` or `name/config:split`, where a name may hold
            its owner (`owner/name`) and the split is `train` unless given. Columns: `user`,
            `chosen`, `rejected` and optionally `prompt`, `group`, `tie`; `time` may be there and
            is not kept, as rows keep the order of the source.

    Returns:
        The table of choices; see `from_columns` for how items and groups are formed.

    Raises:
        InputError: the source cannot be found or read, or a row cannot be used.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from jaxalign.data import load
        >>> path = Path(tempfile.mkdtemp()) / "choices.jsonl"
        >>> _ = path.write_text('{"user": "u", "prompt": "Hi", "chosen": "Yes", "rejected": "Go"}')
        >>> load(path).texts
        ('Hi\\n\\nYes', 'Hi\\n\\nGo')
    """
    path, name = Path(source), str(source)
    if name.endswith(JSON_ENDINGS):
        columns, lines = _json_columns(path)
        return from_columns(columns, name, lines)
    if name.endswith(".parquet"):
        return from_columns(_read_parquet(path), name)
    if path.is_dir():
        raise InputError(f"{name} is a folder, expected a .jsonl or .parquet file; name the file.")
    return from_columns(read_dataset(source), name)


def from_columns(
    columns: Mapping[str, Column],
    source: str = "memory",
    lines: Sequence[int] | np.ndarray | None = None,
) -> Preferences:
    """Build the table of choices from columns of equal length, checking every row.

    An item is a (prompt, answer) pair, or the answer alone where a row has no prompt. Its key in
    `items` is the answer, so one answer under two prompts is two items with one key. Groups are
    (user, group) pairs; a row without a group is one of its own. Exact duplicates are kept.

    Args:
        columns: `user`, `chosen`, `rejected` and optionally `prompt`, `group` (text or whole
            number) and `tie` (bool; a tie has no winner), each [N]: lists, NumPy or Arrow arrays.
        source: what the columns were read from, for messages.
        lines: [N] line number of each row, for messages; without it rows are counted from 1.

    Returns:
        The table, rows in the order given.

    Raises:
        InputError: a column is missing or a row is unusable: a value of the wrong type, an empty
            one, chosen equal to rejected, or one pair chosen both ways by one user.

    Example:
        >>> from jaxalign.data import from_columns
        >>> columns = {"user": ["ann", "ann"], "chosen": ["a", "b"], "rejected": ["b", "c"]}
        >>> table = from_columns(columns, "memory")
        >>> table.items, table.chosen.tolist(), table.rejected.tolist()
        (('a', 'b', 'c'), [0, 1], [1, 2])
    """
    origin = Origin(source, lines)
    if missing := [name for name in REQUIRED if name not in columns]:
        found = ", ".join(f"`{name}`" for name in columns) or "none"
        raise InputError(f"{source} has no column {_ticks(missing)}; found {found}; rename or add.")
    present = {name: columns[name] for name in (*REQUIRED, *OPTIONAL) if name in columns}
    _check_lengths({name: len(values) for name, values in present.items()}, source)
    user_text, chosen_text, rejected_text = (
        _required_text(name, present[name], origin) for name in REQUIRED
    )
    count = len(user_text)
    user, users = encode(user_text)
    prompt, prompts = _optional_codes("prompt", present.get("prompt"), count, origin)
    answer, answers = encode(pa.chunked_array([chosen_text, rejected_text]))
    answer = answer.reshape(2, count)
    if (same := np.flatnonzero(answer[0] == answer[1])).size:
        raise InputError(
            f"{origin.at(same[0])}: `chosen` and `rejected` are the same text, expected two "
            f"different ones; remove {_rows(same.size)}."
        )
    # Row by row, so that items are numbered in the order in which a reader meets them.
    key = ((prompt.astype(np.int64) + 1) * len(answers) + answer).T.ravel()
    item, keys = _encode_numbers(key)
    under, text = np.divmod(keys, len(answers))
    items = tuple(answers[i] for i in text)
    texts = tuple(
        Conversation((prompts[p - 1], key)) if p else key
        for p, key in zip(under, items, strict=True)
    )
    tie = _tie_column(present.get("tie"), count, origin)
    group, groups = _optional_codes("group", present.get("group"), count, origin)
    lone = -1 - np.arange(count)
    whole, _ = _encode_numbers(np.where(group < 0, lone, user * np.int64(len(groups)) + group))
    chosen, rejected = (np.ascontiguousarray(item[side::2]) for side in (0, 1))
    _refuse_reversals(user, chosen, rejected, tie, origin)
    return Preferences(
        users, items, texts, user, chosen, rejected, whole, prompt, tie, source=source
    )


def later_reversals(
    user: np.ndarray, chosen: np.ndarray, rejected: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows that choose against an earlier row of the same user on the same two items.

    Args:
        user: [N] int.
        chosen: [N] int.
        rejected: [N] int.

    Returns:
        The rows [M], ascending, and for each the user's first row on that pair [M].

    Example:
        >>> import numpy as np
        >>> from jaxalign.data.files import later_reversals
        >>> chosen, rejected = np.array([3, 5, 4]), np.array([4, 6, 3])
        >>> [rows.tolist() for rows in later_reversals(np.zeros(3, int), chosen, rejected)]
        [[2], [0]]
    """
    low, high = np.minimum(chosen, rejected), np.maximum(chosen, rejected)
    pair, pairs = _encode_numbers(low.astype(np.int64) * (int(high.max(initial=0)) + 1) + high)
    code, codes = _encode_numbers(user.astype(np.int64) * len(pairs) + pair)
    first = np.zeros(len(codes), np.int64)
    # Written backwards, so that the first row of each pair is the value that stays.
    first[code[::-1]] = np.arange(len(code))[::-1]
    rows = np.flatnonzero(chosen != chosen[first[code]])
    return rows, first[code[rows]]


def read_json_lines(path: Path) -> tuple[list[dict[str, object]], np.ndarray]:
    """Read one JSON object a line (.gz too): the rows and the line number of each, from 1."""
    lines, rows = zip(*_json_lines(path), strict=True)
    return list(rows), np.asarray(lines)


def encode(values: Column) -> tuple[np.ndarray, tuple[str, ...]]:
    """Number distinct texts in order of first appearance: codes [N] int32 (-1 for none), texts.

    Example:
        >>> from jaxalign.data.files import encode
        >>> codes, texts = encode(["b", "a", None, "b"])
        >>> codes.tolist(), texts
        ([0, 1, -1, 0], ('b', 'a'))
    """
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if not isinstance(values, pa.Array):
        values = pa.array(values, type=pa.large_string())
    coded = values.dictionary_encode()
    codes = coded.indices.fill_null(-1).to_numpy().astype(np.int32)
    return codes, tuple(coded.dictionary.to_pylist())


def _encode_numbers(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    coded = pa.array(values).dictionary_encode()
    return coded.indices.to_numpy().astype(np.int32), coded.dictionary.to_numpy()


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Line number and object of every line that is not blank, at least one."""
    opener = gzip.open if path.suffix == ".gz" else open
    number, count = 0, 0
    try:
        # Bytes, because a text reader would also break lines inside strings (U+2028 and others).
        with opener(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if line and not line.isspace():
                    yield number, _json_object(line, path, number)
                    count += 1
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check the path.") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = f"after line {number}" if number else "from its start"
        raise InputError(f"{path} cannot be read {reason}: {error}; restore the file.") from None
    if not count:
        raise InputError(f"{path} is empty, expected one JSON object a line.")


def _json_object(line: bytes, path: Path, number: int) -> dict[str, object]:
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}, line {number}: not readable as JSON ({error}), expected one object; correct "
            "the line."
        ) from None
    if not isinstance(row, dict):
        raise InputError(
            f"{path}, line {number}: found a JSON {type(row).__name__}, expected one object a "
            "line; write one choice a line."
        )
    return row


def _json_columns(path: Path) -> tuple[dict[str, Sequence[object]], list[int]]:
    """Columns by name, None where a row lacks one, and line numbers.

    Straight into columns: a million rows kept as dicts cost more in garbage collection than in
    parsing. Unused columns are named, for a message on missing ones, and left empty.
    """
    kept: dict[str, list[object]] = {name: [] for name in REQUIRED + OPTIONAL}
    found: dict[str, object] = {}
    lines = []
    for number, row in _json_lines(path):
        lines.append(number)
        found.update(row)
        for name, column in kept.items():
            column.append(row.get(name))
    return {name: kept.get(name, ()) for name in found}, lines


def _read_parquet(path: Path) -> "dict[str, Column]":
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path.")
    try:
        names = pq.read_schema(path).names
        wanted = [name for name in names if name in REQUIRED + OPTIONAL]
        # Unused columns may be large; their names still appear in a message on missing ones.
        table = pq.read_table(path, columns=wanted, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a readable Parquet file: {_first_line(error)}.") from None
    return {name: table[name] if name in table.column_names else () for name in names}


def read_dataset(source: str | Path) -> dict[str, pa.ChunkedArray]:
    """Columns of a `datasets` name, `owner/name` or `owner/name:split`.

    Raises:
        InputError: it is no such name, or cannot be loaded.
    """
    import datasets  # slow to import, and only this source needs it

    match = None if Path(source).exists() else DATASET.fullmatch(str(source))
    if match is None or isinstance(source, Path):
        raise InputError(
            f"{source} is neither a file ending in .jsonl, .json or .parquet nor the name of a "
            "data set; check the path, or convert the file to JSON lines."
        )
    split = match["split"] or "train"
    last: Exception | None = None
    for name, config in _readings(match["name"]):
        try:
            table = datasets.load_dataset(name, config, split=split).with_format("arrow")[:]
            return {name: table[name] for name in table.column_names}
        except datasets.exceptions.DatasetNotFoundError as error:
            last = error
        except Exception as error:
            # Loaders raise what they like; whatever it was, the user named the data set.
            last = error
            break
    raise InputError(
        f"{source} is no file here and cannot be loaded as a data set with split `{split}` "
        f"({type(last).__name__}: {_first_line(last)}); check path, name, split and network, or "
        "download it and name the .jsonl or .parquet file."
    )


def _readings(name: str) -> list[tuple[str, str | None]]:
    """Owner/name/config, owner/name or name: `a/b` may also be a name and its config."""
    parts = name.split("/")
    if len(parts) == 3:
        return [("/".join(parts[:2]), parts[2])]
    return [(name, None)] + ([(parts[0], parts[1])] if len(parts) == 2 else [])


def _required_text(name: str, values: Column, origin: Origin) -> pa.Array:
    column = _text_column(name, values, origin)
    blank = pc.equal(pc.binary_length(pc.utf8_trim_whitespace(column)), 0).fill_null(True)
    if (bad := np.flatnonzero(blank.to_numpy(zero_copy_only=False))).size:
        found = "missing" if column[int(bad[0])].as_py() is None else "empty"
        raise InputError(
            f"{origin.at(bad[0])}: `{name}` is {found}, expected text; fill in or remove "
            f"{_rows(bad.size)}."
        )
    return column


def _optional_codes(
    name: str, values: "Column | None", count: int, origin: Origin
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Codes [N] and texts of a column that may be absent or have gaps (-1); empty is a gap."""
    if values is None:
        return np.full(count, -1, np.int32), ()
    column = _text_column(name, values, origin, numbers=name == "group")
    return encode(pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.large_string()), column))


def _text_column(name: str, values: Column, origin: Origin, numbers: bool = False) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values, pa.Array):
        kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
        text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
        if pa.types.is_null(kind) or any(test(kind) for test in text):
            return values.cast(kind).cast(pa.large_string())
        if numbers and pa.types.is_integer(kind):
            return values.cast(kind).cast(pa.large_string())
        values = values.to_pylist()
    values = list(values)
    try:
        return pa.array(values, type=pa.large_string())
    except (pa.ArrowException, TypeError, UnicodeError):
        if numbers and (whole := _whole_numbers(values)) is not None:
            return whole
        return pa.array(_texts(name, values, origin, numbers), type=pa.large_string())


def _whole_numbers(values: Sequence[object]) -> pa.Array | None:
    try:
        column = pa.array(values)
    except (pa.ArrowException, TypeError, OverflowError, UnicodeError):
        return None
    return column.cast(pa.large_string()) if pa.types.is_integer(column.type) else None


def _texts(name: str, values: Iterable[object], origin: Origin, numbers: bool) -> list[str | None]:
    """The slow way, one value at a time, once something in the column is known not to be text."""
    texts: list[str | None] = []
    for row, value in enumerate(values):
        if numbers and isinstance(value, int | np.integer) and not isinstance(value, bool):
            value = str(value)
        if value is not None and not isinstance(value, str):
            expected = "text or a whole number" if numbers else "text"
            raise InputError(
                f"{origin.at(row)}: `{name}` is {_short(value)} ({type(value).__name__}), expected "
                f"{expected}; correct the row."
            )
        if value is not None and not _encodable(value):
            raise InputError(
                f"{origin.at(row)}: `{name}` holds half of a surrogate pair, expected valid "
                "Unicode; correct the row."
            )
        texts.append(value)
    return texts


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeError:
        return False
    return True


def _tie_column(values: "Column | None", count: int, origin: Origin) -> np.ndarray:
    if values is None:
        return np.zeros(count, bool)
    if isinstance(values, pa.Array | pa.ChunkedArray):
        values = values.to_pylist()
    tie = np.zeros(count, bool)
    for row, value in enumerate(values):
        if value is not None and not isinstance(value, bool | np.bool_):
            raise InputError(
                f"{origin.at(row)}: `tie` is {_short(value)}, expected true or false; correct the "
                "row."
            )
        tie[row] = bool(value)
    return tie


def _check_lengths(lengths: dict[str, int], source: str) -> None:
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"`{name}` {length}" for name, length in lengths.items())
        raise InputError(f"{source} has columns of different lengths ({found}), expected equal.")
    if not lengths["user"]:
        raise InputError(f"{source} has no rows, expected at least one choice.")


def _refuse_reversals(
    user: np.ndarray, chosen: np.ndarray, rejected: np.ndarray, tie: np.ndarray, origin: Origin
) -> None:
    strict = np.flatnonzero(~tie)
    later, first = later_reversals(user[strict], chosen[strict], rejected[strict])
    if later.size:
        one, other = origin.place(strict[first[0]]), origin.place(strict[later[0]])
        more = f" ({later.size - 1} more such rows follow)" if later.size > 1 else ""
        raise InputError(
            f"{origin.source}, {one} and {other}: one user chooses the same pair in both "
            f"orders{more}, expected one; keep one of the two, or mark the choice as a tie."
        )


def _rows(count: int) -> str:
    return "the row" if count == 1 else f"the {count} such rows"


def _ticks(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _first_line(error: Exception | None) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")
