"""Files of feedback in, one file of choices and ratings out."""

import hashlib
import hmac
import json
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from jaxalign.data.bad_rows import OnBadRow
from jaxalign.data.files import check_choice
from jaxalign.data.importers.registry import FeedbackFormat, ImportOptions, find_format
from jaxalign.data.importers.rows import ChoiceRow, Imported, RatingRow, Skipped
from jaxalign.data.tables import Row, read_each
from jaxalign.data.values import RowError
from jaxalign.errors import InputError
from jaxalign.files import write_aside

_DIGITS = 16


@dataclass
class ImportSummary:
    """What an import read and wrote.

    Attributes:
        format: name of the format.
        rows: rows read.
        choices, ratings: rows written.
        users: number of users.
        skipped: why rows were left out, with how many of each reason and where the first stands.
    """

    format: str
    rows: int = 0
    choices: int = 0
    ratings: int = 0
    users: int = 0
    skipped: dict[str, tuple[int, str]] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return the summary as lines of text."""
        rows, choices, ratings, users = (
            f"{count:,} {word}{'s' * (count != 1)}"
            for count, word in (
                (self.rows, "row"), (self.choices, "choice"), (self.ratings, "rating"),
                (self.users, "user"),
            )
        )  # fmt: skip
        found = [f"{self.format}: {rows} read; {choices} and {ratings} of {users}"]
        for reason, (count, where) in self.skipped.items():
            found.append(f"skipped {count:,}: {reason} (first: {where})")
        return found


def import_feedback(
    sources: Sequence[str | Path],
    out: Path,
    format: str = "auto",
    options: ImportOptions | None = None,
    on_bad_row: OnBadRow = "refuse",
    salt: Path | None = None,
) -> ImportSummary:
    """Read feedback in a known format and write it as rows that jaxalign learns from.

    Args:
        sources: files, or names of Hugging Face data sets, all of one format.
        out: JSON lines to write: choices (`user`, `chosen`, `rejected`) and ratings (`user`,
            `answer`, `rating`, `scale`), with `prompt`, `time`, `group` and `source` where known.
        format: name of the format, or `auto` to recognise it by the first row.
        options: what the files leave open.
        on_bad_row: `drop` leaves rows that cannot be used out and counts them.
        salt: file with the secret that users' ids are hashed with, made where it is missing; the
            same secret gives the same pseudonyms. None keeps the ids.

    Returns:
        What was read, written and skipped.

    Raises:
        InputError: the format is unknown or another, a row cannot be used, or no row says anything
            about a preference. Nothing is written then, a new secret included.

    Example:
        >>> import json, tempfile
        >>> from pathlib import Path
        >>> from jaxalign.data.importers import import_feedback
        >>> folder = Path(tempfile.mkdtemp())
        >>> row = {"user": "ann", "prompt": "Hi", "completion": "Hello!", "label": True}
        >>> _ = (folder / "in.jsonl").write_text(json.dumps(row))
        >>> import_feedback([folder / "in.jsonl"], folder / "out.jsonl").ratings
        1
        >>> json.loads((folder / "out.jsonl").read_text())["rating"]
        1.0
    """
    unreadable, first, rest = _until_first(sources[0], on_bad_row)
    kind = find_format(format, first)
    others = chain.from_iterable(read_each(source) for source in sources[1:])
    every = chain(unreadable, (first,), rest, others)
    secret = None if salt is None else _secret(salt)
    summary, users = ImportSummary(kind.name), set()
    where_first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    with write_aside(out) as aside, aside.open("w", encoding="utf-8") as file:
        for row in _imported(kind, every, options or ImportOptions(), summary):
            if isinstance(row, RowError):
                if on_bad_row == "refuse":
                    raise row
                row = Skipped(row.reason, str(row).partition(": ")[0])
            if isinstance(row, Skipped):
                counts[row.reason] += 1
                where_first.setdefault(row.reason, row.where)
                continue
            if secret is not None:
                row = replace(row, user=_pseudonym(secret, row.user))
            users.add(row.user)
            summary.choices += isinstance(row, ChoiceRow)
            summary.ratings += isinstance(row, RatingRow)
            file.write(json.dumps(row.as_dict(), ensure_ascii=False) + "\n")
        summary.users = len(users)
        summary.skipped = {why: (count, where_first[why]) for why, count in counts.most_common()}
        if not users:
            reasons = "; ".join(f"{count} {why}" for why, (count, _) in summary.skipped.items())
            raise InputError(
                f"{sources[0]}: none of the {summary.rows} rows of {kind.name} says anything about "
                f"a preference ({reasons}); expected at least one."
            )
        if salt is not None and secret is not None and not salt.exists():
            _write_secret(salt, secret)
    return summary


def _imported(
    kind: FeedbackFormat,
    read: Iterator[Row | RowError],
    options: ImportOptions,
    summary: ImportSummary,
) -> Iterator[Imported | RowError]:
    """What the format makes of the rows of all files; unreadable rows as their errors."""
    unreadable: list[RowError] = []
    last: Row | None = None
    more = True

    def rows() -> Iterator[Row]:
        nonlocal last, more
        for row in read:
            summary.rows += 1
            if isinstance(row, RowError):
                unreadable.append(row)
            else:
                last = row
                yield row
        more = False

    for found in kind.read(rows(), options):
        while unreadable:
            yield unreadable.pop(0)
        if last is None or isinstance(found, Skipped | RowError):
            yield found
        elif more:
            yield _readable(found, last.where)
        else:  # the format had to read everything first: this may come from any row
            place = "" if found.source is None else f", source {found.source}"
            yield _readable(found, f"{last.file}{place}")
    yield from unreadable


class _Made(Row):
    """A row that a format made; messages name it as `file` says."""

    __slots__ = ()

    @property
    def where(self) -> str:
        """What messages begin with."""
        return self.file


def _readable(row: ChoiceRow | RatingRow, where: str) -> Imported | RowError:
    """Return a row if `jaxalign.data.load` takes it, else why it is left out or refused.

    Args:
        row: as a format reads it.
        where: file and row, for messages.
    """
    if isinstance(row, ChoiceRow) and row.chosen == row.rejected:
        return Skipped("both answers are the same", where)
    try:
        check_choice(_Made(row.as_dict(), where, 0), True, ratings=True, weights=True)
    except RowError as error:
        return error
    return row


def _until_first(
    source: str | Path, on_bad_row: OnBadRow
) -> tuple[list[RowError], Row, Iterator[Row | RowError]]:
    """The first row, or the first that can be read where others are dropped.

    A data set of the Hub is opened once for this and for the import: the rows before it, which
    cannot be read, and those after it are returned as well.
    """
    rows = iter(read_each(source))
    errors: list[RowError] = []
    for row in rows:
        if isinstance(row, Row):
            return errors, row, rows
        errors.append(row)
        if on_bad_row == "refuse":
            break
    raise errors[0] if errors else InputError(f"{source} is empty, expected at least one row.")


def _secret(path: Path) -> bytes:
    """Return the secret of a file, or a new one where there is no file yet."""
    if not path.exists():
        return secrets.token_hex(32).encode()
    secret = path.read_bytes().strip()
    if len(secret) < _DIGITS:
        raise InputError(
            f"{path}: found {len(secret)} characters, expected a secret of {_DIGITS} or more; "
            "name a file that does not exist, and one is made."
        )
    return secret


def _write_secret(path: Path, secret: bytes) -> None:
    """Write a secret that only its owner may read, at no moment anybody else."""
    with write_aside(path) as aside:
        aside.touch(0o600)
        aside.write_bytes(secret + b"\n")


def _pseudonym(secret: bytes, user: str) -> str:
    return hmac.new(secret, user.encode(), hashlib.sha256).hexdigest()[:_DIGITS]
