"""A file of JSON lines that is written a part at a time, by a run that may stop at any moment."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jaxalign.errors import InputError
from jaxalign.files import expand_user, read_json, write_aside
from jaxalign.runs.file_run import open_file_run, run_folder
from jaxalign.runs.processes import is_first_process, on_first_process
from jaxalign.runs.run_dir import MARKER, REPORT, Identity, RunDir

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_ROWS = "rows.jsonl"


@dataclass(frozen=True)
class RowFile:
    """An output file whose rows stand in the folder of a run beside it until all are there.

    Of several processes that make one run, all make the same calls, and the first one writes.

    Attributes:
        path: of the file.
        run: which run writes it; its folder stays, so that the file is known again.
    """

    path: Path
    run: RunDir

    @property
    def finished(self) -> bool:
        """Whether the file is whole."""
        return on_first_process(lambda: self.run.finished)

    def kept(self, span: int) -> int:
        """Return how many rows a stopped run has left, and cut off what follows them.

        Args:
            span: rows are kept in whole spans of so many: what was computed together stays so.
        """
        return on_first_process(lambda: _kept(self.run.path / _ROWS, span))

    def rows(self) -> Iterator[dict[str, object]]:
        """Yield the rows that are written so far, all of them after `finish`."""
        part = self.run.path / _ROWS
        with (part if part.exists() else self.path).open("rb") as file:
            yield from map(json.loads, file)

    def append(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Write rows that are not lost from now on."""
        if not is_first_process():
            return
        lines = "".join(map(json_line, rows))
        with (self.run.path / _ROWS).open("ab") as file:
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Give the file its name: call it after the last row."""
        part = self.run.path / _ROWS

        def place() -> str:
            with write_aside(self.path) as aside:
                shutil.copyfile(part, aside)
            return _digest(part)

        self.run.finish({"sha256": on_first_process(place)})
        on_first_process(part.unlink)


def json_line(row: Mapping[str, object]) -> str:
    """Return a row as a line of JSON, whatever stands in the columns that it carries along.

    Args:
        row: by column. What JSON has no form for, such as a time, becomes its text.

    Example:
        >>> from jaxalign.runs.row_file import json_line
        >>> json_line({"prompt": "Zoë", "half": chr(0xD83D)})
        '{"prompt": "Zo\\\\u00eb", "half": "\\\\ud83d"}\\n'
    """
    line = json.dumps(row, ensure_ascii=False, default=_as_json)
    try:
        line.encode()
    except UnicodeEncodeError:  # half of a surrogate pair exists in JSON, and not in UTF-8
        line = json.dumps(row, default=_as_json)
    return f"{line}\n"


def _kept(part: Path, span: int) -> int:
    if not part.exists():
        return 0
    lines = part.read_bytes().split(b"\n")[:-1]  # what follows the last line feed was cut off
    whole = len(lines) // span * span
    os.truncate(part, sum(len(line) + 1 for line in lines[:whole]))
    return whole


def _as_json(value: object) -> object:
    return dict(value) if isinstance(value, Mapping) else str(value)


def open_row_file(
    path: str | Path,
    kind: str,
    config: "DataclassInstance",
    identity: Mapping[str, Identity],
    resume: bool = False,
) -> RowFile:
    """Open an output file of JSON lines to write it anew, or to go on with it.

    Args:
        path: of the file; one that a run has finished is replaced unless `resume` is set.
        kind: of the run, such as "generate".
        config: the settings, all that decide the rows.
        identity: what else decides them, by the name that messages call it.
        resume: go on with the rows that a stopped run of the same kind and settings has left, and
            leave a file alone that such a run has finished.

    Raises:
        InputError: a stopped run of the file is another one, or `resume` is not set; or no run of
            the kind has written what the file holds, but a hand or another command.

    Example:
        >>> import tempfile
        >>> from dataclasses import dataclass
        >>> from pathlib import Path
        >>> from jaxalign.runs import open_row_file
        >>> @dataclass(frozen=True)
        ... class Config:
        ...     seed: int = 0
        >>> path = Path(tempfile.mkdtemp()) / "rows.jsonl"
        >>> file = open_row_file(path, "count", Config(), {"data": "a text"})
        >>> file.append([{"row": 0}, {"row": 1}, {"row": 2}])
        >>> file = open_row_file(path, "count", Config(), {"data": "a text"}, resume=True)
        >>> file.kept(span=2)
        2
        >>> file.finish()
        >>> path.read_text().splitlines()
        ['{"row": 0}', '{"row": 1}']
    """
    path = expand_user(path)
    if not resume:
        on_first_process(lambda: _refuse_foreign(path, kind))
    return RowFile(path, open_file_run(path, kind, config, identity, _is_whole, resume))


def _refuse_foreign(path: Path, kind: str) -> None:
    """Refuse to write a file anew that another hand has made."""
    if path.exists() and not _is_own(path, kind):
        raise InputError(
            f"--out {path} is there, and no run of `{kind}` has written what it holds, which would "
            "be lost: remove it, or give another --out."
        )


def _is_own(path: Path, kind: str) -> bool:
    """Whether a file may be written anew: a run of the same kind has made it as it is."""
    folder = run_folder(path)
    if not (folder / MARKER).exists() or read_json(folder / MARKER).get("kind") != kind:
        return False
    report = folder / REPORT
    return not report.exists() or _is_whole(path, read_json(report))


def _is_whole(path: Path, report: Mapping[str, object]) -> bool:
    """Whether the file is still what the run has written."""
    return report.get("sha256") == _digest(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
