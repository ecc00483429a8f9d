"""A run whose output is one file: its folder stands beside the file, so that it can be resumed."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from jaxalign.errors import InputError
from jaxalign.files import read_json
from jaxalign.runs.processes import on_first_process
from jaxalign.runs.run_dir import ANOTHER, MARKER, REPORT, Identity, RunDir, open_run_dir

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def run_folder(path: Path) -> Path:
    """Return the folder of the run that writes a file, `.NAME.run` beside it."""
    return path.with_name(f".{path.name}.run")


def open_file_run(
    path: Path,
    kind: str,
    config: "DataclassInstance",
    identity: Mapping[str, Identity],
    is_whole: Callable[[Path, Mapping[str, object]], bool],
    resume: bool = False,
) -> RunDir:
    """Open the folder of the run that writes a file, see `run_folder`.

    The folder of a finished run stays, so that the file is known again. Of several processes, all
    make the call, and the first one writes.

    Args:
        path: of the file; a finished one is written anew unless `resume` is set.
        kind: of the run, such as "generate".
        config: the settings, all that decide the file.
        identity: what else decides it, by the name that messages call it.
        is_whole: whether a file is still what the run with a report has written.
        resume: go on with a stopped run of the same kind and settings, and leave a file alone that
            such a run has finished.

    Raises:
        InputError: a stopped run of the file is another one, or `resume` is not set; or `resume` is
            set, and nothing says what the file was made from.
    """
    folder = run_folder(path)
    on_first_process(lambda: _make_room(path, folder, is_whole, resume))
    try:
        return open_run_dir(folder, kind, config, identity, resume)
    except InputError as error:
        message = str(error).replace(ANOTHER, "give another --out, or remove that folder")
        raise InputError(message) from None


def _make_room(
    path: Path,
    folder: Path,
    is_whole: Callable[[Path, Mapping[str, object]], bool],
    resume: bool,
) -> None:
    """Remove a folder that is not gone on with; refuse a file that no run has written."""
    finished, begun = (folder / REPORT).exists(), (folder / MARKER).exists()
    whole = resume and finished and path.is_file() and is_whole(path, read_json(folder / REPORT))
    stopped = begun and not finished
    if resume and path.exists() and not (whole or stopped):
        raise InputError(
            f"--out {path} is there, and no run beside it has written what it holds: remove it to "
            "write it anew, or give another --out."
        )
    if folder.exists() and not stopped and not whole:
        shutil.rmtree(folder)
