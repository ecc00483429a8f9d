"""Ragged users as padded, masked arrays of item numbers."""

from typing import Any, NamedTuple

import numpy as np

from jaxalign.data.preferences import Preferences, RowDetails

Array = Any  # NumPy on the host, JAX on the device


class Pairs(NamedTuple):
    """Choices of U users, padded to P a user.

    Attributes:
        chosen: [U, P] int32 item numbers (0 in padding).
        rejected: [U, P] int32.
        weight: [U, P] float32; 1 for a choice, or the weight that its row states, half of it for
            each row of a tie, 0 for padding and for a rating, which is no choice (see
            `pad_details`).
        group: [U, P] int32, each user's groups numbered from 0.
    """

    chosen: Array
    rejected: Array
    weight: Array
    group: Array


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
    user, place, row, turned, width = _places(preferences, rows, width)
    chosen, rejected = preferences.chosen[row], preferences.rejected[row]
    stated = 1 if preferences.details is None else preferences.details.weight[row]
    values = (
        np.where(turned, rejected, chosen),
        np.where(turned, chosen, rejected),
        np.where(preferences.tie[row], 0.5, np.where(preferences.rating[row], 0.0, 1.0)) * stated,
        _ranked(user, _choices_first(preferences)[row]),
    )
    kinds = (np.int32, np.int32, np.float32, np.int32)
    arrays = [np.zeros((len(rows), width), kind) for kind in kinds]
    for array, of_rows in zip(arrays, values, strict=True):
        array[user, place] = of_rows
    return Pairs(*arrays)


def pad_details(
    preferences: Preferences, rows: tuple[np.ndarray, ...] | list[np.ndarray], width: int = 0
) -> RowDetails | None:
    """What the rows of each user say, at the places where `pad_pairs` has them.

    Args:
        preferences: the table.
        rows: one array of row numbers a user.
        width: P, as of `pad_pairs`.

    Returns:
        Arrays [len(rows), P], either row of a tie with half its weight; None where all rows of the
        table are plain choices.

    Example:
        >>> import numpy as np
        >>> from jaxalign.data import from_columns
        >>> from jaxalign.data.batching import pad_details
        >>> columns = {"user": ["u"], "answer": ["Hi"], "rating": [4], "scale": [[1, 5]]}
        >>> details = pad_details(from_columns(columns, "memory"), [np.array([0])], width=2)
        >>> details.level.tolist(), details.weight.tolist()
        ([[3, 0]], [[1.0, 0.0]])
    """
    if preferences.details is None:
        return None
    user, place, row, _, width = _places(preferences, rows, width)
    of_rows = preferences.details.take(row)
    tie = preferences.tie[row] & (of_rows.scale < 0)
    weight = (of_rows.weight * np.where(tie, 0.5, 1.0)).astype(np.float32)
    of_rows = of_rows._replace(weight=weight, level=np.where(tie, -1, of_rows.level))
    padded = RowDetails(*(np.zeros((len(rows), width), array.dtype) for array in of_rows))
    padded.scale[:] = -1
    for array, values in zip(padded, of_rows, strict=True):
        array[user, place] = values
    return padded


def _places(
    preferences: Preferences, rows: tuple[np.ndarray, ...] | list[np.ndarray], width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """User, place, row and whether it is turned of every entry [N] of a padded array, its width."""
    counts = np.array([len(user_rows) for user_rows in rows], np.int64)
    row = np.concatenate(rows) if len(rows) else np.zeros(0, np.int64)
    user = np.repeat(np.arange(len(rows)), counts)
    # A tie becomes two rows of weight 1/2, in both orders: the Bradley-Terry loss of a draw. The
    # second ones come behind all other rows of the user.
    tie = preferences.tie[row]
    user, row = np.concatenate([user, user[tie]]), np.concatenate([row, row[tie]])
    turned = np.arange(len(row)) >= len(tie)
    order = np.argsort(user, kind="stable")
    user, row, turned = user[order], row[order], turned[order]
    lengths = np.bincount(user, minlength=len(rows))
    longest = int(lengths.max(initial=0))
    width = width or max(longest, 1)
    if longest > width:
        raise ValueError(f"a user has {longest} pairs, more than the width {width}")
    place = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return user, place, row, turned, width


def _choices_first(preferences: Preferences) -> np.ndarray:
    """Groups [N], renumbered so that those of ratings alone come behind all others.

    The groups of a user's choices are then numbered without gaps, as `splits.redraw` wants them.
    """
    group = preferences.group
    if preferences.details is None or not len(group):
        return group
    chosen = np.zeros(int(group.max()) + 1, bool)
    chosen[group[~preferences.rating]] = True
    return np.where(chosen[group], group, group + len(chosen))


def _ranked(user: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Number the groups [N] of each user [N], which is ascending, from 0 without gaps."""
    order = np.lexsort((group, user))
    user, group = user[order], group[order]
    new = np.ones(len(user), np.int64)
    new[1:] = (user[1:] != user[:-1]) | (group[1:] != group[:-1])
    number = np.cumsum(new) - 1
    starts = np.flatnonzero(np.diff(user, prepend=-1))
    lengths = np.diff(np.append(starts, len(user)))
    found = np.empty(len(user), np.int64)
    found[order] = number - np.repeat(number[starts], lengths)
    return found


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
