"""Ragged users as padded, masked arrays of item numbers."""

from typing import Any, NamedTuple

import numpy as np

from jaxalign.data.preferences import Preferences

Array = Any  # NumPy on the host, JAX on the device


class Pairs(NamedTuple):
    """Choices of U users, padded to P a user.

    Attributes:
        chosen: [U, P] int32 item numbers (0 in padding).
        rejected: [U, P] int32.
        weight: [U, P] float32; 1 for a choice, 1/2 for each row of a tie, 0 for padding.
        group: [U, P] int32, each user's groups numbered from 0.
    """

    chosen: Array
    rejected: Array
    weight: Array
    group: Array


def _expand_ties(preferences: Preferences, rows: np.ndarray) -> tuple[np.ndarray, ...]:
    """A tie becomes two rows of weight 1/2, in both orders: the Bradley-Terry loss of a draw."""
    tie = preferences.tie[rows]
    both = np.concatenate([rows, rows[tie]])
    chosen = np.concatenate([preferences.chosen[rows], preferences.rejected[rows[tie]]])
    rejected = np.concatenate([preferences.rejected[rows], preferences.chosen[rows[tie]]])
    weight = np.where(preferences.tie[both], 0.5, 1.0)
    return chosen, rejected, weight, preferences.group[both]


def pad_pairs(
    preferences: Preferences, rows: tuple[np.ndarray, ...] | list[np.ndarray], width: int = 0
) -> Pairs:
    """Rows of each user as one padded array.

    Args:
        preferences: the table.
        rows: one array of row numbers a user.
        width: P, 0 for the longest user (at least 1); longer users are an error.

    Returns:
        Pairs of shape [len(rows), P].

    Example:
        >>> import numpy as np
        >>> from jaxalign.data import from_columns
        >>> from jaxalign.data.batching import pad_pairs
        >>> columns = {"user": list("uvu"), "chosen": list("aba"), "rejected": list("bcc")}
        >>> pairs = pad_pairs(from_columns(columns, "memory"), [np.array([0, 2]), np.array([1])])
        >>> pairs.chosen.tolist(), pairs.weight.tolist()
        ([[0, 0], [1, 0]], [[1.0, 1.0], [1.0, 0.0]])
    """
    ragged = [_expand_ties(preferences, user_rows) for user_rows in rows]
    longest = max([len(user[0]) for user in ragged], default=0)
    width = width or max(longest, 1)
    if longest > width:
        raise ValueError(f"a user has {longest} pairs, more than the width {width}")
    arrays = [np.zeros((len(rows), width), dtype) for dtype in (np.int32, np.int32, np.float32)]
    group = np.zeros((len(rows), width), np.int32)
    for index, (chosen, rejected, weight, groups) in enumerate(ragged):
        for array, values in zip(arrays, (chosen, rejected, weight), strict=True):
            array[index, : len(values)] = values
        group[index, : len(groups)] = np.unique(groups, return_inverse=True)[1]
    return Pairs(arrays[0], arrays[1], arrays[2], group)


def bucket_users(lengths: np.ndarray, smallest: int = 8) -> dict[int, np.ndarray]:
    """Users by padded length: powers of two from `smallest`, so that shapes stay few.

    Args:
        lengths: [U] pairs of each user.
        smallest: the least width.

    Returns:
        Width -> user numbers, in order; widths without users are absent.

    Example:
        >>> import numpy as np
        >>> from jaxalign.data.batching import bucket_users
        >>> {width: users.tolist() for width, users in bucket_users(np.array([3, 20, 8])).items()}
        {8: [0, 2], 32: [1]}
    """
    width = np.maximum(smallest, 2 ** np.ceil(np.log2(np.maximum(lengths, 1))).astype(int))
    return {int(w): np.flatnonzero(width == w) for w in np.unique(width)}
