"""Choices on disk, in parts by user: more than memory holds, read a group of parts at a time.

A first pass over the source checks every row and writes it behind those of users with the same
hash. A group of parts then holds all choices of its users, in the order of the source.
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jaxalign.data.bad_rows import BadRows, OnBadRow
from jaxalign.data.columns import Origin
from jaxalign.data.files import BLOCK_ROWS, encode, no_choices, read_blocks
from jaxalign.data.messages import Conversation
from jaxalign.data.numbering import ChoiceColumns, number_choices
from jaxalign.data.preferences import Preferences
from jaxalign.data.ratings import Details
from jaxalign.data.tables import estimate_rows
from jaxalign.files import write_aside, write_json
from jaxalign.progress import track

PARTS = 128
ROWS_AT_ONCE = 2**18
_BLOCK_BYTES = 2**26  # of a block that is written: few large blocks read faster than many small
_TEXTS = ("user", "chosen", "rejected", "prompt", "group")
_ENDS = ("low", "high")
_DETAILS = (*_ENDS, "level", "implicit", "weight")
_SCHEMA = pa.schema(
    [
        ("place", pa.int64()),
        *((name, pa.string()) for name in _TEXTS),
        ("tie", pa.bool_()),
        ("talks", pa.string()),
        *((name, pa.float64()) for name in _ENDS),
        ("level", pa.int32()),
        ("implicit", pa.bool_()),
        ("weight", pa.float32()),
    ]
)


@dataclass(frozen=True)
class ChoiceParts:
    """Checked choices on disk; made by `write_parts` and `open_parts`.

    Attributes:
        path: of the rows, with a JSON file beside it.
        source: that they were read from.
        unit: what places of the source count, `line` or `row`.
        rows: [PARTS] of each part.
        blocks: number of blocks of `PARTS` batches in the file.
        digest: of the choices in their order, as `digest_of` computes it.
        notes: what reading dropped, a sentence each.
    """

    path: Path
    source: str
    unit: str
    rows: tuple[int, ...]
    blocks: int
    digest: str
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return sum(self.rows)

    def groups(self, most: int = ROWS_AT_ONCE) -> list[range]:
        """Return parts that are read together: one, or several with at most so many rows."""
        found: list[range] = []
        for part, count in enumerate(self.rows):
            last = found[-1] if found else range(0)
            if last and sum(self.rows[last.start : last.stop]) + count <= most:
                found[-1] = range(last.start, part + 1)
            else:
                found.append(range(part, part + 1))
        return [group for group in found if sum(self.rows[group.start : group.stop])]

    def read(self, group: range) -> tuple[Preferences, Origin]:
        """Return the choices of some parts in the order of the source, and where they stood."""
        with pa.memory_map(str(self.path)) as file:
            reader = pa.ipc.open_file(file)
            batches = [
                reader.get_batch(block * PARTS + part)
                for block in range(self.blocks)
                for part in group
            ]
            table = pa.Table.from_batches(batches, _SCHEMA)
            table = table.take(np.argsort(table["place"].to_numpy(), kind="stable"))
        origin = Origin(self.source, lines=table["place"].to_numpy(), unit=self.unit)
        user, chosen, rejected, prompt, group_of = (
            table[name].combine_chunks().cast(pa.large_string()) for name in _TEXTS
        )
        tie, talks = table["tie"].to_numpy(), _read_talks(table["talks"])
        details = Details(*(table[name].to_numpy() for name in _DETAILS))
        columns = ChoiceColumns(
            user, chosen, rejected, prompt, group_of, tie, details, talks, origin
        )
        return number_choices(columns), origin


def write_parts(
    path: Path,
    source: str | Path,
    on_bad_row: OnBadRow = "refuse",
    check: Callable[[ChoiceColumns], None] = lambda block: None,
    progress: bool = False,
    ratings: bool = False,
) -> ChoiceParts:
    """Read choices and write them in parts by user, in bounded memory.

    Args:
        path: of the file to write, together with PATH.json, which is there once both are whole.
        source, on_bad_row, ratings: as of `jaxalign.data.load`.
        check: called with every block of choices; raises `InputError` for what cannot be used.
        progress: whether to show a bar on standard error.

    Raises:
        InputError: as `jaxalign.data.load`, or raised by `check`.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from jaxalign.data.choice_parts import write_parts
        >>> folder = Path(tempfile.mkdtemp())
        >>> row = '{"user": "ann", "chosen": "yes", "rejected": "no"}'
        >>> _ = (folder / "choices.jsonl").write_text(row)
        >>> parts = write_parts(folder / "parts", folder / "choices.jsonl")
        >>> [parts.read(group)[0].users for group in parts.groups()]
        [('ann',)]
    """
    bad, rows, digest = BadRows(on_bad_row, source), np.zeros(PARTS, np.int64), hashlib.sha256()
    unit, blocks, waiting = "row", 0, list[pa.Table]()
    found = read_blocks(source, bad, ratings)
    total = estimate_rows(source)
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with write_aside(path) as aside, pa.ipc.new_file(aside, _SCHEMA, options=options) as writer:
        for block in track("reading choices", found, total, len, progress):
            check(block)
            digest.update(_digested(block))
            unit = block.origin.unit if block.origin.lines is not None else "row"
            waiting.append(_as_table(block))
            if sum(table.nbytes for table in waiting) > _BLOCK_BYTES:
                rows += _write_block(writer, pa.concat_tables(waiting))
                blocks, waiting = blocks + 1, []
        if waiting:
            rows += _write_block(writer, pa.concat_tables(waiting))
            blocks += 1
    notes = bad.notes(int(rows.sum()))
    if not rows.any():
        raise no_choices(source, bad)
    counts = tuple(rows.tolist())
    parts = ChoiceParts(path, str(source), unit, counts, blocks, digest.hexdigest(), notes)
    write_json(_about(path), {**asdict(parts), "path": path.name})
    return parts


def open_parts(path: Path) -> ChoiceParts | None:
    """Return what `write_parts` has written, None where it was stopped before the end."""
    if not (path.exists() and _about(path).exists()):
        return None
    about = json.loads(_about(path).read_text())
    lists = {name: tuple(about[name]) for name in ("rows", "notes")}
    return ChoiceParts(**{**about, **lists, "path": path})


def digest_of(choices: Preferences) -> str:
    """Return a digest of users, items, ties, ratings and weights of choices, in their order."""
    texts = pa.array(map(str, choices.texts), pa.large_string())
    users = pa.array(choices.users, pa.large_string())
    digest = hashlib.sha256()
    for start in range(0, len(choices), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        chosen, rejected = (
            texts.take(pa.array(a[rows])) for a in (choices.chosen, choices.rejected)
        )
        user = users.take(pa.array(choices.user[rows]))
        marks = _marks(choices.tie[rows], *_level_of(choices, rows))
        digest.update(_joined_bytes(user, chosen, rejected, marks))
    return digest.hexdigest()


def _level_of(choices: Preferences, rows: slice) -> tuple[np.ndarray, ...]:
    details = choices.details
    if details is None:
        return ()
    return details.scale[rows] >= 0, details.level[rows], details.weight[rows]


def items_of(block: ChoiceColumns) -> set[tuple[str, str]]:
    """Return key and text of the distinct items of choices, see `Preferences`."""
    found: set[tuple[str, str]] = set()
    for answer in (block.chosen, block.rejected):
        table = pa.table({"key": answer, "text": _item_texts(block, answer)})
        distinct = table.group_by(["key", "text"]).aggregate([])
        found |= set(zip(*(distinct[name].to_pylist() for name in ("key", "text")), strict=True))
    return found


def _digested(block: ChoiceColumns) -> bytes:
    chosen, rejected = (_item_texts(block, answer) for answer in (block.chosen, block.rejected))
    details = block.details
    rated: tuple[np.ndarray, ...] = ()
    if details is not None:
        rated = (np.isfinite(details.low), details.level, details.weight)
    return _joined_bytes(block.user, chosen, rejected, _marks(block.tie, *rated))


def _marks(
    tie: np.ndarray,
    rated: np.ndarray | None = None,
    level: np.ndarray | None = None,
    weight: np.ndarray | None = None,
) -> pa.Array:
    """Whether each row is a choice, a tie or a rating, its level and weight, as a short text."""
    marks = pa.array(np.where(tie, "=", ">")).cast(pa.large_string())
    if rated is None or level is None or weight is None:
        return marks
    kinds = pa.array(np.where(rated, "r", "s")).cast(pa.large_string())
    levels = pa.array(level).cast(pa.large_string())
    more = pc.binary_join_element_wise(marks, kinds, levels, _text(""))
    marks = pc.if_else(pa.array(rated | (level > 0)), more, marks)
    weights = pa.array(weight).cast(pa.large_string())
    weighted = pc.binary_join_element_wise(marks, weights, _text("w"))
    return pc.if_else(pa.array(weight != 1), weighted, marks)


def _joined_bytes(user: pa.Array, chosen: pa.Array, rejected: pa.Array, marks: pa.Array) -> bytes:
    joined = pc.binary_join_element_wise(user, chosen, rejected, marks, _text("\0"))
    # The text of an array may begin behind the start of its buffer.
    _, offsets, text = joined.buffers()
    ends = np.frombuffer(offsets, np.int64)[[joined.offset, joined.offset + len(joined)]]
    return memoryview(text)[ends[0] : ends[1]].tobytes()


def _item_texts(block: ChoiceColumns, answer: pa.Array) -> pa.Array:
    if block.prompt is None:
        return answer
    return pc.binary_join_element_wise(block.prompt, answer, _text("\n\n"), null_handling="skip")


def _text(value: str) -> pa.LargeStringScalar:
    return pa.scalar(value, pa.large_string())


def _as_table(block: ChoiceColumns) -> pa.Table:
    count, origin = len(block), block.origin
    places = origin.lines
    if places is None:
        places = np.arange(origin.start + 1, origin.start + 1 + count)
    nothing = pa.nulls(count, pa.string())
    columns = [pa.array(np.asarray(places, np.int64))]
    columns += [nothing if c is None else c.cast(pa.string()) for c in _texts(block)]
    talks = pa.array(_talks(block), pa.string()) if block.talks else nothing
    details = [pa.array(array) for array in _details(block)]
    return pa.table([*columns, pa.array(block.tie), talks, *details], schema=_SCHEMA)


def _details(block: ChoiceColumns) -> Sequence[np.ndarray]:
    found = block.details or Details.plain(len(block))
    return [found.low, found.high, found.level, found.implicit, found.weight]


def _texts(block: ChoiceColumns) -> Sequence[pa.Array | None]:
    return [block.user, block.chosen, block.rejected, block.prompt, block.group]


def _talks(block: ChoiceColumns) -> list[str | None]:
    """For each row, its texts that know their turns, as JSON."""
    columns = [c.to_pylist() for c in (block.chosen, block.rejected, block.prompt) if c is not None]
    rows = []
    for texts in zip(*columns, strict=True):
        known = [block.talks[text] for text in texts if text in block.talks]
        rows.append(json.dumps([(talk.turns, talk.roles) for talk in known]) if known else None)
    return rows


def _read_talks(column: pa.ChunkedArray) -> Mapping[str, Conversation]:
    found: dict[str, Conversation] = {}
    for text in pc.drop_null(column).unique().to_pylist():
        for turns, roles in json.loads(text):
            talk = Conversation(tuple(turns), tuple(roles))
            found[str(talk)] = talk
    return found


def _write_block(writer: pa.RecordBatchFileWriter, table: pa.Table) -> np.ndarray:
    """Write a batch for each part, and return its rows [PARTS]."""
    codes, users = encode(table["user"].cast(pa.large_string()))
    # Not Python's own hash, which is another in every process.
    hashes = np.fromiter(
        (zlib.crc32(user.encode()) % PARTS for user in users), np.int64, len(users)
    )
    part = hashes[codes]
    table = table.take(np.argsort(part, kind="stable"))
    arrays = [column.combine_chunks() for column in table.columns]
    batch = pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA)
    counts = np.bincount(part, minlength=PARTS)
    for start, count in zip(np.cumsum(counts) - counts, counts, strict=True):
        writer.write_batch(batch.slice(int(start), int(count)))
    return counts


def _about(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
