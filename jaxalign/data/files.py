"""Preference files and data sets, read and checked into one table."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jaxalign.data.bad_rows import BadRows, OnBadRow, checked_table, checked_tables
from jaxalign.data.choices import flat_choice, flatten_conversations
from jaxalign.data.columns import (
    Column,
    Origin,
    as_list,
    identifier_column,
    require_values,
    text_column,
)
from jaxalign.data.messages import Conversation
from jaxalign.data.numbering import (
    ChoiceColumns,
    ChoiceNumbers,
    encode_numbers,
    number_choices,
)
from jaxalign.data.preferences import Preferences
from jaxalign.data.ratings import (
    DETAILS,
    RATING,
    check_details,
    check_rating,
    check_strength,
    check_weight,
    rated_rows,
    with_rated_answers,
)
from jaxalign.data.tables import Row, Table, read_table, read_tables
from jaxalign.data.values import RowError, check_flag, check_text
from jaxalign.errors import InputError
from jaxalign.progress import counted

REQUIRED = ("user", "chosen", "rejected")
OPTIONAL = ("prompt", "group", "time", "tie")
BLOCK_ROWS = 2**16
"""Rows that are read at a time."""
COLUMNS = (*REQUIRED, *OPTIONAL, RATING)
"""Columns that a file of choices may have."""


def load(
    source: str | Path,
    require_user: bool = True,
    on_bad_row: OnBadRow = "refuse",
    ratings: bool = False,
) -> Preferences:
    """Read choices from a file or a Hugging Face data set.

    Args:
        source: a file or data set as `jaxalign.data.tables.read_rows` takes it. Columns: `user`
            (text or a whole number), `chosen`, `rejected` and optionally `prompt`, `group`, `tie`;
            `time` may be there and is not kept, as rows keep the order of the source. Prompts and
            answers are texts, or conversations as lists of messages; without `prompt`, the turns
            that `chosen` and `rejected` have in common are the prompt. A row counts by its
            `weight`. Rows of weight 0 are left out and counted in the table's notes; rows with a
            `rating` of one answer are too, unless `ratings` is set.
        require_user: whether there has to be a `user`.
        on_bad_row: `refuse` a file with a row that cannot be used, or `drop` such rows and count
            them in the table's notes; a file most of whose rows are bad is refused all the same.
        ratings: whether to read ratings, strengths and implicit choices too, see `from_columns`.

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
    bad, numbers = BadRows(on_bad_row, source), ChoiceNumbers()
    for block in read_blocks(source, bad, ratings, require_user):
        numbers.add(block)
    notes = bad.notes(numbers.rows)
    if not numbers.rows:
        raise no_choices(source, bad)
    return _with_remarks(numbers.table(), numbers.origin, notes)


def read_blocks(
    source: str | Path, bad: BadRows, ratings: bool = False, require_user: bool = True
) -> Iterator[ChoiceColumns]:
    """Yield checked rows of a file or data set, some ten thousands at a time.

    Args:
        source, ratings, require_user: as of `load`.
        bad: counts or refuses rows that cannot be used.

    Raises:
        InputError: as `load`.
    """
    names = columns_read(ratings)
    if bad.on_bad_row == "refuse":
        tables = read_tables(source, names, BLOCK_ROWS)
    else:
        check = partial(check_choice, require_user=require_user, ratings=ratings, weights=True)
        tables = checked_tables(source, names, check, bad, BLOCK_ROWS)
    for table in tables:
        before = bad.ratings, bad.zero_weight
        kept = without_zero_weight(table if ratings else without_ratings(table, bad), bad)
        if (bad.ratings, bad.zero_weight) == before or any(map(len, kept.columns.values())):
            yield check_columns(kept.columns, kept.origin, require_user)


def read_choices(
    source: str | Path, more: Sequence[str], require_user: bool, on_bad_row: OnBadRow
) -> tuple[Table, BadRows]:
    """Read the columns of choices, and `more` of them, without the rows that are to be dropped."""
    bad, names = BadRows(on_bad_row, source), (*COLUMNS, *more)
    if on_bad_row == "refuse":
        table = read_table(source, names)
    else:
        check = partial(check_choice, require_user=require_user)
        table = checked_table(source, names, check, bad)
    kept = without_ratings(table, bad)
    if bad.ratings and not len(kept.columns.get("chosen", ())):
        raise no_choices(source, bad)
    return kept, bad


def columns_read(ratings: bool) -> tuple[str, ...]:
    """Return the columns that are read of a file, those of ratings and strengths among them."""
    return (*COLUMNS, *(DETAILS if ratings else ("weight",)))


def without_ratings(table: Table, bad: BadRows) -> Table:
    """Leave out rows that rate one answer in place of choosing between two, and count them."""
    if RATING not in table.columns:
        return table
    rated = rated_rows(table.columns)
    rest = {name: column for name, column in table.columns.items() if name != RATING}
    bad.ratings += sum(rated)
    if not any(rated):
        return Table(rest, table.origin)
    return _rows_of(Table(rest, table.origin), np.flatnonzero(~np.array(rated)))


def without_zero_weight(table: Table, bad: BadRows) -> Table:
    """Leave out rows whose weight is 0, and count them.

    Raises:
        RowError: a weight that is not from 0 to 1.
    """
    weights, origin = as_list(table.columns.get("weight", ())), table.origin
    counts = np.array(
        [check_weight(one, origin.at(row), origin.typed) > 0 for row, one in enumerate(weights)],
        bool,
    )
    if counts.all():
        return table
    bad.zero_weight += int(np.count_nonzero(~counts))
    return _rows_of(table, np.flatnonzero(counts))


def _rows_of(table: Table, rows: np.ndarray) -> Table:
    """The table with some of its rows alone."""
    kept, columns = rows.tolist(), dict[str, Column]()
    for name, column in table.columns.items():
        values = as_list(column)
        columns[name] = [values[row] for row in kept] if len(values) else ()
    return Table(columns, table.origin.of(kept))


def no_choices(source: str | Path, bad: BadRows) -> InputError:
    """Return what refuses a source of which nothing is left."""
    if bad.zero_weight and not bad.ratings:
        return InputError(
            f"{source}: {counted(bad.zero_weight, 'row has', 'rows have')} the weight 0 and no "
            "other is left, expected rows that count; correct the weights."
        )
    return only_ratings(source, bad.ratings)


def only_ratings(source: str | Path, ratings: int) -> InputError:
    """Return what refuses a source that has ratings alone."""
    return InputError(
        f"{source} holds {counted(ratings, 'rating')} and no choices, expected choices between two "
        "answers (`user`, `chosen`, `rejected`) among them; write both into one file: `jaxalign "
        "import jaxalign RATINGS CHOICES --out BOTH.jsonl`."
    )


def choices_of(table: Table, bad: BadRows, require_user: bool = True) -> Preferences:
    """Return the choices of `read_choices`, with notes on what was dropped."""
    found = from_columns(table.columns, table.origin, require_user)
    return replace(found, notes=bad.notes(len(found)) + found.notes)


def from_columns(
    columns: Mapping[str, Column], origin: Origin | str = "memory", require_user: bool = True
) -> Preferences:
    """Build the table of choices from columns of equal length, checking every row.

    An item is a (prompt, answer) pair, or the answer alone where a row has no prompt. Its key in
    `items` is the answer, so one answer under two prompts is two items with one key. Groups are
    (user, group) pairs; a row without a group is one of its own. Exact duplicates are
    kept, and so are pairs that one user chooses both ways; `notes` count them.

    Args:
        columns: `user`, `chosen`, `rejected` and optionally `prompt`, `group` (text or whole
            number), `tie` (bool; a tie has no winner), `strength` (steps that the chosen answer is
            ahead), `implicit` (bool) and `weight` (how much the row counts, up to 1), each [N]:
            lists, NumPy or Arrow arrays. Rows without `chosen` may rate one `answer`, with a
            `rating` and its `scale` [lowest, highest].
        origin: what the columns were read from, for messages.
        require_user: whether there has to be a `user`; otherwise rows may all be of one, `anyone`.

    Returns:
        The table, rows in the order given.

    Raises:
        InputError: a column is missing or a row is unusable: a value of the wrong type, an empty
            one, or chosen equal to rejected.

    Example:
        >>> from jaxalign.data import from_columns
        >>> columns = {"user": ["ann", "ann"], "chosen": ["a", "b"], "rejected": ["b", "c"]}
        >>> table = from_columns(columns, "memory")
        >>> table.items, table.chosen.tolist(), table.rejected.tolist()
        (('a', 'b', 'c'), [0, 1], [1, 2])
    """
    origin = Origin(origin) if isinstance(origin, str) else origin
    found = number_choices(check_columns(columns, origin, require_user))
    return _with_remarks(found, origin)


def _with_remarks(choices: Preferences, origin: Origin, notes: tuple[str, ...] = ()) -> Preferences:
    return replace(choices, notes=notes + find_remarks(choices).sentences(origin.place))


def check_columns(
    columns: Mapping[str, Column], origin: Origin, require_user: bool = True
) -> ChoiceColumns:
    """Return columns of choices with every value checked.

    Args:
        columns, require_user: as of `from_columns`.
        origin: what the columns were read from.

    Raises:
        InputError: as `from_columns`.
    """
    columns, rated = with_rated_answers(columns, origin)
    Table(columns, origin).require(REQUIRED if require_user else REQUIRED[1:])
    present = {name: columns[name] for name in (*REQUIRED, *OPTIONAL) if name in columns}
    present = flatten_conversations(present, origin)
    if "user" not in present:
        present["user"] = pa.repeat("anyone", len(present["chosen"]))
    lengths = {name: len(values) for name, values in present.items()}
    more = {name: len(columns[name]) for name in DETAILS if name in columns}
    _check_lengths(
        lengths | {name: length for name, length in more.items() if length}, origin.source
    )
    user, chosen, rejected = (_required(name, present[name], origin) for name in REQUIRED)
    prompt = _optional("prompt", present.get("prompt"), origin)
    equal = pc.equal(chosen, rejected).to_numpy(zero_copy_only=False)
    same = np.flatnonzero(equal if rated is None else equal & ~rated)
    if same.size:
        raise _same_text(origin.at(same[0]), int(same.size))
    tie = _tie_column(present.get("tie"), len(user), origin)
    group = _optional("group", present.get("group"), origin)
    details = check_details(columns, rated, len(user), origin)
    talks = _conversations(present)
    return ChoiceColumns(user, chosen, rejected, prompt, group, tie, details, talks, origin)


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
    pair, pairs = encode_numbers(low.astype(np.int64) * (int(high.max(initial=0)) + 1) + high)
    code, codes = encode_numbers(user.astype(np.int64) * len(pairs) + pair)
    first = np.zeros(len(codes), np.int64)
    # Written backwards, so that the first row of each pair is the value that stays.
    first[code[::-1]] = np.arange(len(code))[::-1]
    rows = np.flatnonzero(chosen != chosen[first[code]])
    return rows, first[code[rows]]


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


def _conversations(columns: Mapping[str, Column]) -> dict[str, Conversation]:
    """Texts that know their turns, by their text."""
    found: dict[str, Conversation] = {}
    for name in ("prompt", "chosen", "rejected"):
        column = columns.get(name)
        if isinstance(column, list) and Conversation in set(map(type, column)):
            found |= {str(value): value for value in column if isinstance(value, Conversation)}
    return found


def _required(name: str, values: Column, origin: Origin) -> pa.LargeStringArray:
    column = (identifier_column if name == "user" else text_column)(name, values, origin)
    require_values(name, column, origin)
    return column


def _optional(name: str, values: Column | None, origin: Origin) -> pa.LargeStringArray | None:
    """Texts [N] of a column that may be absent or have gaps; empty is a gap."""
    if values is None:
        return None
    column = (identifier_column if name == "group" else text_column)(name, values, origin)
    return pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.large_string()), column)


def _tie_column(values: Column | None, count: int, origin: Origin) -> np.ndarray:
    tie = np.zeros(count, bool)
    for row, value in enumerate([] if values is None else as_list(values)):
        if value is not None:
            tie[row] = check_flag(value, "tie", origin.at(row), typed=origin.typed)
    return tie


def _check_lengths(lengths: dict[str, int], source: str) -> None:
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"`{name}` {length}" for name, length in lengths.items())
        raise InputError(f"{source} has columns of different lengths ({found}), expected equal.")
    if not lengths["user"]:
        raise InputError(f"{source} has no rows, expected at least one choice.")


class Remarks(NamedTuple):
    """What is remarkable about choices without ties.

    Attributes:
        repeated: rows that repeat an earlier choice of the same user.
        reversed: rows that choose a pair the other way than the same user did before.
        rows: the first of these rows, behind the row that it reverses; -1 where there is none.
    """

    repeated: int = 0
    reversed: int = 0
    rows: tuple[int, int] = (-1, -1)

    def sentences(self, place: Callable[[int], str]) -> tuple[str, ...]:
        """Return a sentence each.

        Args:
            place: what to call a row.
        """
        found = []
        if self.repeated:
            rows = counted(self.repeated, "row repeats", "rows repeat")
            found.append(f"{rows} an earlier choice of the same user, and count")
        if self.reversed:
            first, later = map(place, self.rows)
            rows = counted(self.reversed, "row chooses", "rows choose")
            found.append(
                f"{rows} a pair the other way than the same user did before "
                f"(first: {first} and {later}); both count, as people change their minds"
            )
        return tuple(found)


def find_remarks(choices: Preferences) -> Remarks:
    """Return what is remarkable about a table of choices."""
    strict = np.flatnonzero(choices.strict)
    user, chosen, rejected = (
        array[strict] for array in (choices.user, choices.chosen, choices.rejected)
    )
    pair, pairs = encode_numbers(
        chosen.astype(np.int64) * (int(rejected.max(initial=0)) + 1) + rejected
    )
    _, distinct = encode_numbers(user.astype(np.int64) * max(len(pairs), 1) + pair)
    later, first = later_reversals(user, chosen, rejected)
    rows = (int(strict[first[0]]), int(strict[later[0]])) if later.size else (-1, -1)
    return Remarks(len(user) - len(distinct), int(later.size), rows)


def _same_text(where: str, count: int = 1) -> RowError:
    rows = "the row" if count == 1 else f"the {count} such rows"
    return RowError(
        f"{where}: `chosen` and `rejected` are the same text, expected two different ones; remove "
        f"{rows}.",
        "`chosen` and `rejected` are the same text",
    )


def check_choice(
    row: Row, require_user: bool, ratings: bool = False, weights: bool = False
) -> None:
    """Refuse a row that is neither a rating nor one that `from_columns` takes.

    Args:
        row: of a file.
        require_user: whether there has to be a user.
        ratings: whether ratings, strengths and implicit choices are checked too.
        weights: whether weights are.
    """
    rated = row.has(RATING) and not row.has("chosen")
    if rated and not ratings:
        return
    if require_user or row.has("user"):
        row.identifier("user")
    values = row.values
    names = ("answer", "answer") if rated else REQUIRED[1:]
    prompt, *answers = flat_choice(
        values.get("prompt"), values.get(names[0]), values.get(names[1]), row.where
    )
    if prompt is not None:
        check_text(prompt, "prompt", row.where, blank=True)
    chosen, rejected = (
        check_text(answer, name, row.where) for name, answer in zip(names, answers, strict=True)
    )
    if chosen == rejected and not rated:
        raise _same_text(row.where)
    if row.has("group") and row.values["group"] != "":
        row.identifier("group")
    if row.has("tie"):
        row.flag("tie")
    if weights:
        check_weight(values.get("weight"), row.where, row.typed)
    if rated:
        check_rating(values[RATING], values.get("scale"), row.where, row.typed)
    elif ratings:
        check_strength(values.get("strength"), row.where, row.typed)
        if row.has("implicit"):
            row.flag("implicit")
