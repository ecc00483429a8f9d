"""Embeddings on disk, by the content of what was encoded."""

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from jaxalign.errors import InputError

FILE = "embeddings.sqlite"
_FORMAT = 1
_ROWS = 500  # below SQLite's limit on parameters of one statement


def text_key(text: str, settings: str) -> bytes:
    """The key of a text under an encoder and its settings: 32 bytes."""
    # The settings' own hash has a fixed length, so no two pairs run together.
    prefix = hashlib.sha256(settings.encode()).digest()
    return hashlib.sha256(prefix + text.encode()).digest()


def _refusal(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path}: cannot be used as the cache of embeddings ({error}): free space, make it "
        "writable, delete it, or choose another folder with cache_dir or JAXALIGN_CACHE."
    )


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn an error of SQLite, such as a full disk or a locked file, into one sentence."""
    try:
        yield
    except sqlite3.Error as error:
        raise _refusal(path, error) from error


class EmbeddingCache:
    """One SQLite file of float32 vectors; each write is whole or absent, whatever interrupts."""

    def __init__(self, folder: Path):
        self.path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.path, timeout=60)
            version = self._database.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, _FORMAT):
                self._database.close()
                raise InputError(
                    f"{self.path}: format {version}; this version of jaxalign reads {_FORMAT}: "
                    "delete the file or upgrade."
                )
            with self._database as database:
                database.execute(
                    "CREATE TABLE IF NOT EXISTS vectors"
                    " (key BLOB PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID"
                )
                database.execute(f"PRAGMA user_version = {_FORMAT}")
        except (OSError, sqlite3.Error) as error:
            raise _refusal(self.path, error) from error

    def read(self, keys: Sequence[bytes], width: int) -> dict[bytes, np.ndarray]:
        """The vectors [E] that are kept, by key; one of another width counts as absent."""
        found: dict[bytes, np.ndarray] = {}
        with _refusing(self.path), closing(self._database.cursor()) as cursor:
            for start in range(0, len(keys), _ROWS):
                part = keys[start : start + _ROWS]
                marks = ",".join("?" * len(part))
                rows = cursor.execute(
                    f"SELECT key, vector FROM vectors WHERE key IN ({marks})", part
                )
                found.update((key, np.frombuffer(vector, "<f4")) for key, vector in rows)
        return {key: vector for key, vector in found.items() if vector.size == width}

    def write(self, keys: Iterable[bytes], vectors: np.ndarray) -> None:
        """Keeps vectors [n, E], all of them or, when interrupted, none."""
        rows = zip(keys, (row.astype("<f4").tobytes() for row in vectors), strict=True)
        with _refusing(self.path), self._database as database:
            database.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)

    def close(self) -> None:
        """Closes the file."""
        self._database.close()
