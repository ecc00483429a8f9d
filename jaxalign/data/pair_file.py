"""Choices with their features on disk, user after user: memory-mapped, read a block at a time."""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import ml_dtypes
import numpy as np

from jaxalign.data.batching import Array, Pairs, pad_pairs
from jaxalign.data.preferences import Preferences
from jaxalign.data.splits import learned_from
from jaxalign.errors import InputError
from jaxalign.files import expand_user, read_json, write_folder_aside, write_json
from jaxalign.progress import counted

FORMAT = 2
_USERS_AT_ONCE = 256


class Block(NamedTuple):
    """Some users in a row.

    Attributes:
        features: [U, P, 2, E] bfloat16, chosen then rejected; 0 in padding.
        weight: [U, P] float32, as in `Pairs`.
        group: [U, P] int32, as in `Pairs`.
        bytes: of features that were read for it.
    """

    features: Array
    weight: Array
    group: Array
    bytes: int


@dataclass(frozen=True)
class PairFile:
    """A folder of choices as `PairWriter` leaves it; only the index is held in memory.

    Attributes:
        path: the folder.
        users: [U] ids.
        first: [U + 1] int64; the choices of user u are the rows first[u] to first[u + 1].
        group: [N] int32, each user's groups numbered from 0.
        weight: [N] float32.
        rows: [N, 2, E] bfloat16 on disk, memory-mapped: chosen, rejected.
        digest: sha256 of all of it, in hexadecimal, as `PairWriter` has computed it.
    """

    path: Path
    users: tuple[str, ...]
    first: np.ndarray
    group: np.ndarray
    weight: np.ndarray
    rows: np.ndarray
    digest: str

    @property
    def width(self) -> int:
        """E."""
        return int(self.rows.shape[2])

    @property
    def longest(self) -> int:
        """The most choices of a user."""
        return int(np.diff(self.first).max())

    def read(self, start: int, stop: int) -> Block:
        """Users `start` to `stop`, padded to the longest user of the whole file."""
        begin, end = int(self.first[start]), int(self.first[stop])
        counts = np.diff(self.first[start : stop + 1])
        mapped = self.rows[begin:end]
        shape = (stop - start, self.longest)
        if (counts == shape[1]).all():
            return Block(
                np.array(mapped).reshape(*shape, 2, self.width),
                self.weight[begin:end].reshape(shape),
                self.group[begin:end].reshape(shape),
                mapped.nbytes,
            )
        there = np.arange(shape[1]) < counts[:, None]
        features = np.zeros((*shape, 2, self.width), self.rows.dtype)
        weight, group = np.zeros(shape, np.float32), np.zeros(shape, np.int32)
        features[there], weight[there], group[there] = (
            mapped, self.weight[begin:end], self.group[begin:end]
        )  # fmt: skip
        return Block(features, weight, group, mapped.nbytes)


class PairWriter:
    """Writes a folder for `open_pairs` a block of users at a time; whole or absent.

    >>> import tempfile
    >>> import numpy as np
    >>> from jaxalign.data.pair_file import PairWriter, open_pairs
    >>> folder = tempfile.mkdtemp() + "/pairs"
    >>> with PairWriter(folder, width=4) as writer:
    ...     writer.add(["ann"], [3], np.zeros((3, 2, 4)), np.arange(3))
    >>> open_pairs(folder).rows.shape
    (3, 2, 4)
    """

    def __init__(self, path: str | Path, width: int) -> None:
        self.path, self.width = expand_user(path), width
        if self.path.exists():
            raise InputError(f"{self.path} is there already: give a new folder, or remove it.")
        self._users: list[str] = []
        self._counts: list[int] = []
        self._group: list[np.ndarray] = []
        self._weight: list[np.ndarray] = []
        self._digest = hashlib.sha256()

    def __enter__(self) -> "PairWriter":
        self._stack = ExitStack()
        self._aside = self._stack.enter_context(write_folder_aside(self.path))
        self._file = open(self._aside / "features.bf16", "wb")
        return self

    def add(
        self,
        users: Sequence[str],
        counts: Sequence[int],
        features: np.ndarray,
        group: np.ndarray,
        weight: np.ndarray | None = None,
    ) -> None:
        """Append users.

        Args:
            users: [B] ids.
            counts: [B] choices of each, at least 1.
            features: [M, 2, E] of chosen and rejected, user after user, M the sum of the counts.
            group: [M] each user's groups, numbered from 0 without gaps.
            weight: [M], 1 unless given.

        Raises:
            InputError: sizes that disagree, users without choices, NaN or infinity.
        """
        total = int(np.sum(counts))
        if features.shape != (total, 2, self.width) or len(group) != total or min(counts) < 1:
            raise InputError(
                f"{self.path}: features {features.shape} and {len(group)} groups for {total} "
                f"choices; expected ({total}, 2, {self.width}), and a choice at least of each user."
            )
        if not np.isfinite(features).all():
            raise InputError(
                f"{self.path}: features of {users[0]!r} or of one of the {len(users) - 1} users "
                "after hold NaN or infinity, expected finite numbers; compute them again."
            )
        stored = np.ascontiguousarray(features, ml_dtypes.bfloat16).view(np.uint16)
        stored.tofile(self._file)
        self._digest.update(stored.data)
        self._users += users
        self._counts += counts
        self._group.append(np.asarray(group, np.int32))
        self._weight.append(
            np.ones(total, np.float32) if weight is None else np.asarray(weight, np.float32)
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        with self._stack:  # removes the temporary folder where this raises
            if error is not None:
                raise error
            self._finish()

    def _finish(self) -> None:
        if not self._users:
            raise InputError(f"{self.path}: no user was added; expected at least one.")
        first = np.concatenate([[0], np.cumsum(self._counts)]).astype(np.int64)
        group, weight = np.concatenate(self._group), np.concatenate(self._weight)
        np.savez(self._aside / "index.npz", first=first, group=group, weight=weight)
        for array in (first, group, weight):
            self._digest.update(array.data)
        about = {"format": FORMAT, "width": self.width, "users": self._users}
        self._digest.update(json.dumps(about).encode())
        about["digest"] = self._digest.hexdigest()
        write_json(self._aside / "about.json", about)


def open_pairs(path: str | Path) -> PairFile:
    """Open what `PairWriter` wrote, without reading its features.

    Raises:
        InputError: no such folder, another format version, or files that do not fit together.
    """
    path = expand_user(path)
    remedy = "write it with data.pair_file.write_pairs"
    about = read_json(path / "about.json", "a folder of choices", remedy)
    if about.get("format") != FORMAT:
        raise InputError(
            f"{path}: format version {about.get('format')}; this jaxalign reads version "
            f"{FORMAT}: {remedy}."
        )
    width, users, digest = (about.get(name) for name in ("width", "users", "digest"))
    if not isinstance(width, int) or not isinstance(users, list) or not isinstance(digest, str):
        raise InputError(f"{path / 'about.json'}: lacks `width`, `users` or `digest`: {remedy}.")
    try:
        with np.load(path / "index.npz", allow_pickle=False) as index:
            first, group, weight = (index[name] for name in ("first", "group", "weight"))
        shape = (int(first[-1]), 2, width)
        found = (path / "features.bf16").stat().st_size
    except Exception as error:  # zipfile and NumPy each have their own
        raise InputError(f"{path} is no readable folder of choices ({error}): {remedy}.") from error
    if found != 2 * int(np.prod(shape)) or len(users) + 1 != len(first):
        raise InputError(
            f"{path}: features.bf16 has {found} bytes, expected {2 * int(np.prod(shape))} for "
            f"{counted(shape[0], 'choice')}: it is not whole, write it again."
        )
    # Mapped as bytes: a memory map of bfloat16 itself would need NumPy to know the type by name.
    rows = np.memmap(path / "features.bf16", np.uint16, "r", shape=shape).view(ml_dtypes.bfloat16)
    return PairFile(path, tuple(map(str, users)), first, group, weight, rows, digest)


def write_pairs(
    path: str | Path,
    preferences: Preferences,
    features: np.ndarray,
    users: tuple[str, ...] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> PairFile:
    """Put users' choices on disk, each user's features in one piece.

    Args:
        path: a new folder.
        preferences: the choices; a tie becomes two rows of weight 1/2, as in `pad_pairs`. Rows that
            the source holds out are left out.
        features: [I, E], a row for each of `preferences.items`; may itself be memory-mapped.
        users: whose choices, all unless given; users without choices are left out.
        say: receives a line of progress now and then.

    Returns:
        The open folder.

    Raises:
        InputError: as `PairWriter`.
    """
    named = preferences.users if users is None else users
    rows = learned_from(preferences, named)
    known = [i for i, mine in enumerate(rows) if len(mine)]
    with PairWriter(path, features.shape[1]) as writer:
        for start in range(0, len(known), _USERS_AT_ONCE):
            members = known[start : start + _USERS_AT_ONCE]
            pairs = pad_pairs(preferences, [rows[i] for i in members])
            there = pairs.weight > 0
            writer.add(
                [named[i] for i in members],
                there.sum(axis=1).tolist(),
                np.stack([features[pairs.chosen[there]], features[pairs.rejected[there]]], axis=1),
                pairs.group[there],
                pairs.weight[there],
            )
            say(f"{start + len(members):,} of {counted(len(known), 'user')} written to {path}")
    return open_pairs(path)


def block_pairs(block: Block) -> Pairs:
    """The block's choices as `Pairs`, features numbered as they lie in [U * P * 2, E]."""
    number = 2 * np.arange(block.weight.size, dtype=np.int32).reshape(block.weight.shape)
    return Pairs(number, number + 1, block.weight, block.group)
