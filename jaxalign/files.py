"""Files that are whole or absent: written under another name, then renamed into place.

This module is the only place of the package that renames files into place, checkpoints of
`jaxalign.train.checkpoint` aside. A reader therefore never meets half of a file.
"""

import gzip
import json
import os
import secrets
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from jaxalign.errors import InputError
from jaxalign.recognise import instead


def expand_user(path: str | os.PathLike[str]) -> Path:
    """Return a path whose `~` is the user's own folder, and whose `~NAME` that of a user.

    Raises:
        InputError: there is no such user.

    Example:
        >>> from jaxalign.errors import InputError
        >>> from jaxalign.files import expand_user
        >>> try:
        ...     expand_user("~no-such-user/runs")
        ... except InputError as error:
        ...     print(error)
        ~no-such-user/runs: found no folder of this user, expected one that exists; correct it.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(
            f"{path}: found no folder of this user, expected one that exists; correct it."
        ) from None


def cache_folder() -> Path:
    """Return where jaxalign keeps what can be made again: $JAXALIGN_CACHE, else ~/.cache/jaxalign.

    Models, embeddings and compiled programs are kept there.
    """
    return expand_user(os.environ.get("JAXALIGN_CACHE") or "~/.cache/jaxalign")


@contextmanager
def write_aside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the same folder, which becomes `path` when the block succeeds.

    The data reach the disk before the rename. If the block raises, the temporary file is removed
    and an older `path` stays as it was.

    Args:
        path: file to write. Missing parent folders are created.

    Yields:
        The temporary path, which does not exist yet.

    Raises:
        InputError: the parent folder cannot be created, `path` is a folder, or the disk refuses
            the file, such as when it is full.

    Example:
        >>> from jaxalign.files import write_aside
        >>> import tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "scores.txt"
        >>> with write_aside(path) as aside:
        ...     _ = aside.write_text("0.5")
        >>> path.read_text()
        '0.5'
    """
    path = expand_user(path)
    _make_parent(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder; expected the name of a file to write.")
    aside = _aside(path)
    try:
        with _named(path, aside):
            yield aside
            _flush(aside)
            os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def move_into_place(done: Path, path: str | os.PathLike[str]) -> None:
    """Give a whole file its name, in one step.

    Args:
        done: the file, on the same disk.
        path: its name; an older file is replaced.

    Raises:
        InputError: the disk refuses it.
    """
    path = expand_user(path)
    with _named(path, done):
        _flush(done)
        os.replace(done, path)


@contextmanager
def write_folder_aside(
    folder: str | os.PathLike[str], stale: str | None = None, last: str | None = None
) -> Iterator[Path]:
    """Yield a temporary folder, whose files move to `folder` when the block succeeds.

    The data reach the disk before the first rename. A new folder appears in one step. Into an
    existing folder the files are moved one by one, and its other files stay.

    Args:
        folder: folder to write. Missing parent folders are created.
        stale: glob pattern of old files to delete from an existing folder when new ones arrive.
        last: name of the file that is moved last, such as an index that names the other files.

    Yields:
        The temporary folder, empty.

    Raises:
        InputError: `folder` is a file, its parent cannot be created, or the disk refuses a file.
    """
    folder = expand_user(folder).absolute()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; expected a folder, new or old.")
    _make_parent(folder)
    aside = _aside(folder)
    try:
        with _named(folder, aside):
            aside.mkdir()
            yield aside
            for path in aside.rglob("*"):
                if path.is_file():
                    _flush(path)
            if not folder.exists():
                os.replace(aside, folder)
                return
            for path in folder.glob(stale) if stale else ():
                if not (aside / path.name).exists():
                    path.unlink()
            for path in sorted(aside.iterdir(), key=lambda path: (path.name == last, path.name)):
                os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file in one step.

    Args:
        path: file to write; an older one is replaced.
        text: its content.
    """
    with write_aside(path) as aside:
        aside.write_text(text, "utf-8")


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write a JSON file in one step, keys in their order of insertion.

    Args:
        path: file to write; an older one is replaced.
        value: what `json.dumps` takes.

    Raises:
        ValueError: `value` holds NaN or infinity, which JSON cannot express.
    """
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(
    path: str | os.PathLike[str], expected: str = "a JSON object", remedy: str = "copy it again"
) -> dict[str, object]:
    """Read a JSON file that holds an object.

    Args:
        path: file to read, compressed if its name ends in .gz.
        expected: what the file should hold, for messages.
        remedy: what the user can do about a file that is missing or damaged, for messages.

    Returns:
        The object.

    Raises:
        InputError: the file is missing, cannot be read, is not JSON, or holds no object.
    """
    path = expand_user(path)
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
        content = json.loads(raw.decode("utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{path}: no such file{instead(path.parent)}; expected {expected}: {remedy}."
        ) from None
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); expected {expected}: {remedy}."
        ) from error
    except (ValueError, EOFError, RecursionError, zlib.error) as error:
        raise InputError(f"{path}: is not JSON ({error}); expected {expected}: {remedy}.") from None
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: holds a JSON {type(content).__name__}; expected {expected}: {remedy}."
        )
    return content


def check_new_folder(path: str | os.PathLike[str], option: str = "--out") -> None:
    """Refuse a folder that holds something, where files would be added to what is there.

    Args:
        path: folder that will be written; it may be missing or empty.
        option: that names it, for messages.

    Raises:
        InputError: the folder holds something, which is named where it is known.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from jaxalign.files import check_new_folder
        >>> check_new_folder(tempfile.mkdtemp())
    """
    path = expand_user(path)
    if path.is_dir() and any(path.iterdir()):
        raise InputError(f"{path} is not empty{instead(path)}: give a new folder with {option}.")


def check_output(
    path: str | os.PathLike[str],
    kind: Literal["file", "folder"],
    read: Iterable[str | os.PathLike[str]] = (),
    option: str = "--out",
) -> None:
    """Refuse an output that cannot be written, before any work is done.

    Nothing stays on the disk. Missing parent folders are no mistake: the functions that write
    create them.

    Args:
        path: file or folder that will be written; what it holds already is not looked at.
        kind: what it will be.
        read: files and folders that are read, which must not be written over.
        option: that names it, for messages.

    Raises:
        InputError: `path` is a folder where a file is written, or the other way round, lies below a
            file or where nothing may be written, has an impossible name, or is one of `read`.

    Example:
        >>> from jaxalign.errors import InputError
        >>> from jaxalign.files import check_output
        >>> try:
        ...     check_output("/", "file")
        ... except InputError as error:
        ...     print(error)
        --out / is a folder; expected the name of a file to write: give another --out.
    """
    path = expand_user(path)
    shown, remedy = f"{option} {path}", f"give another {option}"
    try:
        # A name too long for either raises; the root has none.
        exists, _ = path.exists(), path.name and _aside(path).exists()
        above = next(one for one in (path, *path.absolute().parents) if one.exists())
    except OSError as error:
        raise InputError(f"{shown} cannot be written ({error.strerror}): {remedy}.") from None
    if exists and kind == "file" and path.is_dir():
        raise InputError(f"{shown} is a folder; expected the name of a file to write: {remedy}.")
    if exists and kind == "file" and not path.is_file():
        raise InputError(f"{shown} is a device; expected the name of a file to write: {remedy}.")
    if exists and kind == "folder" and not path.is_dir():
        raise InputError(f"{shown} is a file; expected a folder, new or old: {remedy}.")
    if not exists and not above.is_dir():
        raise InputError(f"{shown} lies below the file {above}: {remedy}.")
    for given in map(expand_user, read) if exists else ():
        if given.exists() and given.samefile(path):
            raise InputError(f"{shown} is the {kind} that is read; expected another: {remedy}.")
    folder = above if above.is_dir() else above.absolute().parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"{shown} cannot be written, for nothing can in {folder} ({error.strerror}): {remedy}."
        ) from None


def _make_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{path}: its folder cannot be created ({error.strerror}); give another place."
        ) from None


def _aside(path: Path) -> Path:
    # Threads of one process, and processes of several machines on one disk, may write one file.
    return path.parent / f".{path.name}.{secrets.token_hex(4)}.part"


@contextmanager
def _named(path: Path, aside: Path) -> Iterator[None]:
    """Name the file that was asked for where writing fails, and not the temporary one."""
    try:
        yield
    except InputError as error:  # of a file or folder written inside of this one
        raise InputError(str(error).replace(str(aside), str(path))) from error
    except OSError as error:
        if error.filename is not None and not str(error.filename).startswith(str(aside)):
            raise
        # pyarrow has the name in its message.
        said = error.strerror if error.filename else str(error).replace(str(aside), str(path))
        raise InputError(f"{path} cannot be written ({said}): give another place.") from error


def _flush(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())
