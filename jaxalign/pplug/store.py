"""Stores of the vectors of everything that users wrote, each text once: on disk, and in memory."""

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np

from jaxalign.errors import InputError
from jaxalign.files import expand_user
from jaxalign.models.embed import Encoder, encode_unkept
from jaxalign.progress import track
from jaxalign.runs.processes import on_first_process, several_processes

Encode = Callable[[Sequence[str]], np.ndarray]
VECTORS, INDEX = "vectors.f16", "index.sqlite"
_FORMAT = 1
_ROWS = 500  # below SQLite's limit on parameters of one statement
_CHUNK = 8_192  # texts that are encoded and written together: what an interrupt may cost


class VectorStore(Protocol):
    """Vectors of texts, each known by its row."""

    @property
    def width(self) -> int:
        """E, the width of the vectors."""
        ...

    def add(self, texts: Sequence[str], encode: Encode, progress: bool = False) -> np.ndarray:
        """Encode the texts that are not there yet, and return the row of each text, [N] int64."""
        ...

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return the vectors of rows, zeros for -1: [...] int -> [..., E] float16."""
        ...


class MemoryStore:
    """The vectors of a few texts in memory, as a `HistoryStore` keeps them on disk.

    Example:
        >>> import numpy as np
        >>> from jaxalign.pplug.store import MemoryStore
        >>> store = MemoryStore(width=2)
        >>> rows = store.add(["a", "b", "a"], lambda texts: np.ones((len(texts), 2)))
        >>> rows.tolist(), store.read(rows).dtype
        ([0, 1, 0], dtype('float16'))
    """

    def __init__(self, width: int):
        self._width = width
        self._rows: dict[str, int] = {}
        self._vectors = np.zeros((1, width), np.float16)  # last, the zeros of row -1

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def width(self) -> int:
        """E, the width of the vectors."""
        return self._width

    def add(self, texts: Sequence[str], encode: Encode, progress: bool = False) -> np.ndarray:
        """Encode the texts that are not there yet, and return the row of each text.

        Raises:
            InputError: Vectors have another shape, or float16 cannot hold them.
        """
        absent = [text for text in dict.fromkeys(texts) if text not in self._rows]
        if absent:
            vectors = _checked(encode(absent), len(absent), self._width)
            first = len(self._rows)
            self._vectors = np.concatenate([self._vectors[:-1], vectors, self._vectors[-1:]])
            self._rows |= {text: first + number for number, text in enumerate(absent)}
        return np.fromiter((self._rows[text] for text in texts), np.int64, len(texts))

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return the vectors of rows, zeros for -1: [...] int -> [..., E] float16."""
        return self._vectors[np.asarray(rows, np.int64)]


class HistoryStore:
    """A folder of float16 vectors, found by the hash of their texts; it may exceed the memory.

    Vectors stand one after another in a memory-mapped file; an SQLite database holds the row of
    each text. A row counts once its transaction is complete: what a killed process wrote behind the
    last one is cut off by the next. Several processes can read, and add one after another.

    Attributes:
        folder: The folder.
        encoder: Digest of everything besides the text that the vectors depend on.
        width: E.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from jaxalign.pplug import HistoryStore
        >>> with HistoryStore(tempfile.mkdtemp(), "an encoder", width=2) as store:
        ...     rows = store.add(["a", "b", "a"], lambda texts: np.ones((len(texts), 2)))
        ...     vectors = store.read(rows)
        >>> rows.tolist(), vectors.shape
        ([0, 1, 0], (3, 2))
    """

    def __init__(self, folder: str | Path, encoder: str, width: int):
        self.folder, self.encoder, self.width = expand_user(folder), encoder, width
        self._map: np.ndarray = np.zeros((0, width), np.float16)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.folder / INDEX, timeout=600, isolation_level=None)
            try:
                self._begin()
            except BaseException:
                self._database.close()
                raise
        except (OSError, sqlite3.Error) as error:
            raise InputError(
                f"{self.folder}: cannot be used as a history store ({error}): delete it, or choose "
                "another folder."
            ) from error

    def __len__(self) -> int:
        return int(self._database.execute("SELECT count FROM about").fetchone()[0])

    def find(self, texts: Sequence[str]) -> np.ndarray:
        """Return the row of each text, -1 for an unknown one: [N] int64."""
        keys = [_key(text) for text in texts]
        known: dict[bytes, int] = {}
        distinct = list(dict.fromkeys(keys))
        for first in range(0, len(distinct), _ROWS):
            part = distinct[first : first + _ROWS]
            marks = ",".join("?" * len(part))
            known.update(
                self._database.execute(f"SELECT key, row FROM rows WHERE key IN ({marks})", part)
            )
        return np.fromiter((known.get(key, -1) for key in keys), np.int64, len(keys))

    def add(self, texts: Sequence[str], encode: Encode, progress: bool = False) -> np.ndarray:
        """Encode the texts that are not in the store yet, and return the row of each text.

        Args:
            texts: N texts, which may repeat.
            encode: Function from n texts to vectors [n, E].
            progress: Show a bar on standard error if it takes more than a few seconds.

        Returns:
            [N] int64.

        Raises:
            InputError: Vectors have another shape, float16 cannot hold them, or they cannot be
                written; vectors that were added before are kept.
        """
        rows = self.find(texts)
        if (rows >= 0).all() and not several_processes():
            return rows

        def add() -> None:
            known = zip(texts, self.find(texts), strict=True)
            absent = list(dict.fromkeys(text for text, row in known if row < 0))
            chunks = (absent[first : first + _CHUNK] for first in range(0, len(absent), _CHUNK))
            for chunk in track("encoding histories", chunks, len(absent), len, progress):
                vectors = _checked(encode(chunk), len(chunk), self.width)
                try:
                    self._append(chunk, vectors)
                except (OSError, sqlite3.Error) as error:
                    raise InputError(
                        f"{self.folder}: vectors cannot be written ({error}); what was encoded "
                        "before is kept: free space or permissions, and go on."
                    ) from None

        on_first_process(add)
        return self.find(texts)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return the vectors of rows, zeros for -1: [...] int -> [..., E] float16.

        Raises:
            InputError: A row is not in the store.
        """
        rows = np.asarray(rows, np.int64)
        if rows.max(initial=-1) >= len(self._map):
            self._remap()
        if rows.max(initial=-1) >= len(self._map) or rows.min(initial=0) < -1:
            raise InputError(
                f"{self.folder}: row {rows.max()} of {len(self._map)}; expected rows that `find` "
                "or `add` gave."
            )
        if not len(self._map):
            return np.zeros((*rows.shape, self.width), np.float16)
        vectors = self._map[np.maximum(rows, 0)]
        vectors[rows < 0] = 0
        return vectors

    def close(self) -> None:
        """Close the files."""
        self._map = np.zeros((0, self.width), np.float16)
        self._database.close()

    def __enter__(self) -> "HistoryStore":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _begin(self) -> None:
        with self._transaction():
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS about"
                " (format INTEGER, encoder TEXT, width INTEGER, count INTEGER)"
            )
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS rows (key BLOB PRIMARY KEY, row INTEGER NOT NULL)"
                " WITHOUT ROWID"
            )
            found = self._database.execute("SELECT format, encoder, width FROM about").fetchone()
            mine = (_FORMAT, self.encoder, self.width)
            if found is None:
                self._database.execute("INSERT INTO about VALUES (?, ?, ?, 0)", mine)
            elif found[0] != _FORMAT:
                raise InputError(
                    f"{self.folder}: format {found[0]}; this version of jaxalign reads {_FORMAT}: "
                    "choose another folder or upgrade."
                )
            elif found != mine:
                raise InputError(
                    f"{self.folder} holds vectors of encoder {found[1]:.12}.. of width {found[2]}; "
                    f"expected {self.encoder:.12}.. of width {self.width}: choose another folder, "
                    "or the encoder that filled this one."
                )
        self._remap()

    def _append(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        with self._transaction():  # one process at a time
            new = np.flatnonzero(self.find(texts) < 0)
            count, width = len(self), 2 * self.width
            with open(self.folder / VECTORS, "ab") as file:
                if file.tell() < count * width:
                    raise self._damaged(count)
                file.truncate(count * width)
                file.seek(0, os.SEEK_END)
                file.write(vectors[new].tobytes())
                file.flush()
                os.fsync(file.fileno())
            pairs = ((_key(texts[int(at)]), count + number) for number, at in enumerate(new))
            self._database.executemany("INSERT INTO rows VALUES (?, ?)", pairs)
            self._database.execute("UPDATE about SET count = ?", (count + len(new),))

    def _remap(self) -> None:
        count, path = len(self), self.folder / VECTORS
        if not count:
            return
        if not path.exists() or path.stat().st_size < count * 2 * self.width:
            raise self._damaged(count)
        self._map = np.memmap(path, "<f2", "r", shape=(count, self.width))

    def _damaged(self, count: int) -> InputError:
        return InputError(
            f"{self.folder / VECTORS} is shorter than the {count} vectors that {INDEX} knows: "
            "delete the folder, or copy it again."
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Write to the index inside completely or not at all."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:  # SQLite itself has gone back where a disk is full
                self._database.execute("ROLLBACK")
            raise


def history_store(folder: str | Path, encoder: Encoder) -> HistoryStore:
    """Open the store of an encoder's vectors, with the encoder's own pooling and normalisation.

    Args:
        folder: Folder of the store; created if it does not exist.
        encoder: The history encoder.

    Raises:
        InputError: The folder holds the vectors of another encoder, or cannot be used.
    """
    settings = f"{encoder.identity} {encoder.pooling} {encoder.normalise}"
    digest = hashlib.sha256(settings.encode()).hexdigest()
    return HistoryStore(folder, digest, encoder.config.width)


def encode_with(encoder: Encoder) -> Encode:
    """Return the function that `HistoryStore.add` encodes texts with."""
    return partial(encode_unkept, encoder, progress=False)


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _checked(vectors: np.ndarray, count: int, width: int) -> np.ndarray:
    if vectors.shape != (count, width):
        raise InputError(
            f"the encoder gave vectors of shape {vectors.shape} for {count} texts; expected "
            f"{(count, width)}."
        )
    with np.errstate(over="ignore"):
        half = vectors.astype("<f2")
    if not np.isfinite(half).all():
        raise InputError(
            "the encoder gives vectors that are not finite in float16: choose one that gives "
            "vectors of length 1."
        )
    return half
