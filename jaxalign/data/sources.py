"""Public data sets of people's choices, recognised by their files."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxalign.data import feedback, files
from jaxalign.data.bad_rows import OnBadRow
from jaxalign.data.feedback import prism, reddit
from jaxalign.data.preferences import ChoiceSource, Preferences
from jaxalign.data.tables import Row, read_rows, read_table
from jaxalign.errors import InputError
from jaxalign.files import expand_user
from jaxalign.progress import counted

_JESTER = ("jokes.jsonl", "ratings.csv.gz")
_UKP = ("arguments.jsonl.gz", "judgments.jsonl.gz")
_USERS_AT_ONCE = 512  # bounds the [users, pairs of jokes] arrays to tens of megabytes


def load_source(
    source: str | Path,
    kind: str = "auto",
    on_bad_row: OnBadRow = "refuse",
    ratings: bool = False,
    **options: object,
) -> ChoiceSource:
    """Read a folder of a known data set, a preference file, or a Hugging Face data set.

    Args:
        source: a folder, a file or a name, as `files.load` takes it.
        kind: `jester`, `ukpconvarg1`, `prism`, `reddit`, `file`, or `auto` to recognise a folder
            by its files and a data set by its name.
        on_bad_row: as of `files.load`, for a file.
        ratings: as of `files.load`, for a file.
        **options: keyword arguments of the function of that name; a file takes none.

    Returns:
        The choices, with item folds where the data set has them.

    Raises:
        InputError: the kind is unknown, the folder holds no known data set, or reading it fails.
    """
    readers: dict[str, Callable[..., ChoiceSource]] = {
        "jester": jester,
        "ukpconvarg1": ukpconvarg1,
        "prism": prism,
        "reddit": reddit,
    }
    if kind not in ("auto", "file", *readers):
        raise InputError(f"kind is {kind!r}, expected auto, file or one of {', '.join(readers)}.")
    if kind == "auto":
        kind = recognise(source)
    if kind == "file":
        if options:
            raise InputError(f"{source} is read as a preference file, which takes no {[*options]}.")
        return ChoiceSource(files.load(source, on_bad_row=on_bad_row, ratings=ratings))
    try:
        return readers[kind](source, **options)
    except TypeError as error:
        if unknown := [name for name in options if f"'{name}'" in str(error)]:
            raise InputError(f"{kind} has no option {unknown[0]!r}; remove it.") from None
        raise


def jester(
    folder: str | Path,
    margin: float = 3.0,
    pairs_per_half: int = 40,
    item_folds: int = 10,
    fold_pairs: bool = True,
    seed: int = 0,
) -> ChoiceSource:
    """Turn ratings of jokes into choices (Goldberg et al., Information Retrieval 4(2), 2001).

    Each user's rated jokes are cut at random into two halves, so that a model may adapt on pairs
    of the one (group 2u) and be judged on pairs of the other (group 2u + 1). Draws depend on the
    seed, the sorted user ids and the order of jokes, not on the order of the ratings.

    Args:
        folder: holds jokes.jsonl (id, text) and ratings.csv.gz (user, joke, rating).
        margin: least difference of two ratings that counts as a choice.
        pairs_per_half: pairs drawn of each half without replacement, fewer where there are fewer.
        item_folds: number of folds that the jokes are cut into.
        fold_pairs: also return every pair within a fold (`fold_choices`, group = fold).
        seed: of halves, draws and folds.

    Returns:
        The choices; within a user's half they are in random order.

    Raises:
        InputError: a file is missing or unreadable, or an argument is out of range.
    """
    folder = expand_user(folder)
    jokes = _read_texts(_part(folder, "jokes.jsonl"), ("text",))
    if not margin > 0 or pairs_per_half < 1 or not 1 <= item_folds <= len(jokes):
        raise InputError(
            f"jester got margin {margin}, pairs_per_half {pairs_per_half}, item_folds "
            f"{item_folds}; expected margin > 0, pairs_per_half >= 1 and item_folds from 1 to "
            f"{len(jokes)} (the jokes)."
        )
    users, ratings = _read_ratings(_part(folder, "ratings.csv.gz"), tuple(jokes))
    texts = tuple(text for (text,) in jokes.values())

    def table(user: np.ndarray, one: np.ndarray, two: np.ndarray, group: np.ndarray) -> Preferences:
        better = ratings[user, one] > ratings[user, two]
        chosen, rejected = np.where(better, one, two), np.where(better, two, one)
        return _strict(users, tuple(jokes), texts, user, chosen, rejected, group, str(folder))

    choices = table(*_half_pairs(ratings, margin, pairs_per_half, seed))
    folds = _folds(len(jokes), item_folds, seed)
    inside = table(*_fold_pairs(ratings, folds, margin)) if fold_pairs else None
    return ChoiceSource(choices, inside, folds)


def jester_ratings(folder: str | Path) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the users of Jester, sorted, and their ratings [users, jokes], NaN where none is.

    Args:
        folder: as of `jester`.

    Raises:
        InputError: a file is missing or unreadable.
    """
    folder = expand_user(folder)
    jokes = _read_texts(_part(folder, "jokes.jsonl"), ("text",))
    return _read_ratings(_part(folder, "ratings.csv.gz"), tuple(jokes))


def jester_jokes(folder: str | Path) -> tuple[tuple[str, str], ...]:
    """Return the id and text of each joke of Jester, in the order of the ratings' columns.

    Args:
        folder: as of `jester`.

    Raises:
        InputError: the file is missing or unreadable.
    """
    jokes = _read_texts(_part(expand_user(folder), "jokes.jsonl"), ("text",))
    return tuple((name, text) for name, (text,) in jokes.items())


def ukpconvarg1(
    folder: str | Path, ties: bool = True, item_folds: int = 10, seed: int = 0
) -> ChoiceSource:
    """Read votes on which of two arguments convinces more (Habernal and Gurevych, ACL 2016).

    A user's group is the topic, which is also the row's prompt. A vote against an earlier one of
    the same user on the same pair is left out and counted.

    Args:
        folder: holds arguments.jsonl.gz (id `topic/arg`, title, text) and judgments.jsonl.gz
            (user, topic, a1, a2, label a1, a2 or equal, time).
        ties: keep the votes for `equal`, marked as ties.
        item_folds: number of folds; both sides of one debate (one title) share a fold.
        seed: of the folds.

    Returns:
        The choices in file order, the fold of each argument, and how many votes were dropped.

    Raises:
        InputError: a file is missing or unreadable, or a vote names an unknown argument or label.
    """
    folder = expand_user(folder)
    arguments, votes, pair = argument_votes(folder, ties)
    columns = {name: [vote.text(name) for vote in votes] for name in _VOTE_FIELDS}
    label = np.asarray(columns["label"])
    chosen = np.where(label == "a2", pair[1], pair[0]).astype(np.int32)
    rejected = np.where(label == "a2", pair[0], pair[1]).astype(np.int32)
    user, users = files.encode(columns["user"])
    topic, topics = files.encode(columns["topic"])
    group, _ = np.unique(user * np.int64(len(topics)) + topic, return_inverse=True)[::-1]
    tie = label == "equal"
    texts = tuple(text for _, text in arguments.values())
    everything = Preferences(
        users, tuple(arguments), texts, user, chosen, rejected, group.astype(np.int32), topic, tie,
        source=str(folder),
    )  # fmt: skip
    time = np.argsort(np.asarray(columns["time"]), kind="stable")
    by_time = time[~tie[time]]
    later, _ = files.later_reversals(user[by_time], chosen[by_time], rejected[by_time])
    keep = np.ones(len(votes), bool)
    keep[by_time[later]] = False
    title, titles = files.encode([title for title, _ in arguments.values()])
    folds = _folds(len(titles), item_folds, seed)[title]
    choices = everything.take(keep)
    if later.size:
        dropped = counted(int(later.size), "vote")
        note = f"{dropped} left out: the same user had voted the other way before"
        choices = replace(choices, notes=(note,))
    return ChoiceSource(choices, None, folds, int(later.size))


def argument_votes(
    folder: str | Path, ties: bool
) -> tuple[dict[str, tuple[str, ...]], list[Row], np.ndarray]:
    """Return UKPConvArg1's arguments and the votes on pairs of them.

    Args:
        folder: As of `ukpconvarg1`.
        ties: Keep the votes for `equal`.

    Returns:
        The title and the text of each argument by its id, the N votes in file order, and the
        places [2, N] of their arguments.

    Raises:
        InputError: As `ukpconvarg1`.
    """
    path = _part(expand_user(folder), "judgments.jsonl.gz")
    arguments = _read_texts(_part(expand_user(folder), "arguments.jsonl.gz"), ("title", "text"))
    votes = [row for row in read_rows(path) if ties or row.values.get("label") != "equal"]
    columns = {name: [vote.text(name) for vote in votes] for name in _VOTE_FIELDS[1:5]}
    return (
        arguments,
        votes,
        _argument_pairs(columns, {key: i for i, key in enumerate(arguments)}, votes),
    )


_VOTE_FIELDS = ("user", "topic", "a1", "a2", "label", "time")


def recognise(source: str | Path) -> str:
    """The kind of a source: of a folder by its files, of a data set by its name, else `file`.

    Raises:
        InputError: a folder that holds no known data set.
    """
    if kind := feedback.recognise(source):
        return kind
    folder = expand_user(source)
    if not folder.is_dir():
        return "file"
    for kind, parts in (("jester", _JESTER), ("ukpconvarg1", _UKP)):
        if all((folder / part).exists() for part in parts):
            return kind
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing"
    raise InputError(
        f"{folder} holds {found}; expected {' and '.join(_JESTER)} (Jester), {' and '.join(_UKP)} "
        "(UKPConvArg1), conversations.jsonl (PRISM) or train.jsonl and validation.jsonl (Reddit "
        "TL;DR); name a preference file instead."
    )


def _part(folder: Path, name: str) -> Path:
    if not (folder / name).exists():
        raise InputError(f"{folder} has no {name}; check the folder.")
    return folder / name


def _read_texts(path: Path, fields: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Fields of each row by its `id`, in file order."""
    rows = [*read_rows(path)]
    ids, *columns = ([row.text(name) for row in rows] for name in ("id", *fields))
    by_id = dict(zip(ids, zip(*columns, strict=True), strict=True))
    if len(by_id) < len(rows):
        raise InputError(f"{path} has {len(rows)} rows with {len(by_id)} ids, expected unique ids.")
    return by_id


def _argument_pairs(
    columns: dict[str, list[str]], index: dict[str, int], votes: Sequence[Row]
) -> np.ndarray:
    """The two arguments of every vote, [2, N]."""
    pairs = np.empty((2, len(votes)), np.int32)
    for row, topic in enumerate(columns["topic"]):
        keys = [f"{topic}/{columns[side][row]}" for side in ("a1", "a2")]
        if unknown := [key for key in keys if key not in index]:
            raise InputError(f"{votes[row].where}: {unknown[0]!r} is no known argument.")
        pairs[:, row] = [index[key] for key in keys]
    if (bad := np.flatnonzero(~np.isin(columns["label"], ("a1", "a2", "equal")))).size:
        raise InputError(
            f"{votes[bad[0]].where}: `label` is {columns['label'][bad[0]]!r}, expected a1, "
            "a2 or equal."
        )
    return pairs


def _read_ratings(path: Path, jokes: tuple[str, ...]) -> tuple[tuple[str, ...], np.ndarray]:
    """Users, sorted, and their ratings [users, jokes], NaN where there is none."""
    table = read_table(path, ("user", "joke", "rating"))
    rating = table.numbers("rating")
    user, users = files.encode(table.identifiers("user"))
    joke, names = files.encode(table.identifiers("joke"))
    known = {name: i for i, name in enumerate(jokes)}
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"{path} rates {unknown[0]!r}, which is not an id in jokes.jsonl.")
    order = np.argsort(users)
    ratings = np.full((len(users), len(jokes)), np.nan)
    column = np.array([known[name] for name in names])[joke]
    ratings[np.argsort(order)[user], column] = rating
    if (count := np.isfinite(ratings).sum()) < rating.size:
        raise InputError(
            f"{path} has {rating.size} ratings of {count} (user, joke) pairs, expected each once."
        )
    return tuple(users[i] for i in order), ratings


def _half_pairs(
    ratings: np.ndarray, margin: float, limit: int, seed: int
) -> tuple[np.ndarray, ...]:
    """User, two jokes and group of the pairs drawn within each half, by group then draw."""
    rng = np.random.Generator(np.random.PCG64([seed, 0]))
    one, two = np.triu_indices(ratings.shape[1], 1)
    drawn = []
    for start in range(0, len(ratings), _USERS_AT_ONCE):
        block = ratings[start : start + _USERS_AT_ONCE]
        half = _random_halves(block, rng)
        lot = rng.random((len(block), len(one)), dtype=np.float32)
        wide = _apart(block[:, one], block[:, two], margin) & (half[:, one] == half[:, two])
        for side in (0, 1):
            lots = np.where(wide & (half[:, one] == side), lot, np.inf)
            first = np.argpartition(lots, min(limit, len(one)) - 1, axis=1)[:, :limit]
            first = np.take_along_axis(
                first, np.argsort(np.take_along_axis(lots, first, 1), axis=1), 1
            )
            user, rank = np.nonzero(np.isfinite(np.take_along_axis(lots, first, 1)))
            pair = first[user, rank]
            drawn.append((user + start, one[pair], two[pair], 2 * (user + start) + side))
    user, left, right, group = (np.concatenate(part) for part in zip(*drawn, strict=True))
    rows = np.argsort(group, kind="stable")
    return user[rows], left[rows], right[rows], group[rows]


def _random_halves(ratings: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """0 or 1 for each rated joke, -1 for the others; the first half is never the larger."""
    rated = np.isfinite(ratings)
    lot = np.where(rated, rng.random(ratings.shape), np.inf)
    rank = np.argsort(np.argsort(lot, axis=1), axis=1)
    return np.where(rated, rank >= rated.sum(axis=1, keepdims=True) // 2, -1)


def _fold_pairs(ratings: np.ndarray, folds: np.ndarray, margin: float) -> tuple[np.ndarray, ...]:
    """User, two jokes and fold of every wide enough pair within a fold, by user."""
    found = []
    for fold in range(int(folds.max()) + 1):
        members = np.flatnonzero(folds == fold)
        one, two = members[np.stack(np.triu_indices(len(members), 1))]
        user, pair = np.nonzero(_apart(ratings[:, one], ratings[:, two], margin))
        found.append((user, one[pair], two[pair], np.full(len(user), fold)))
    user, left, right, group = (np.concatenate(part) for part in zip(*found, strict=True))
    rows = np.argsort(user, kind="stable")
    return user[rows], left[rows], right[rows], group[rows]


def _apart(one: np.ndarray, two: np.ndarray, margin: float) -> np.ndarray:
    # Ratings have two decimals: 5.1 - 2.1 must count as 3, and falls just short in binary.
    return np.abs(one - two) >= margin - 1e-9


def _folds(count: int, folds: int, seed: int) -> np.ndarray:
    """A seeded cut of `count` things into folds whose sizes differ by at most one."""
    rng = np.random.Generator(np.random.PCG64([seed, 1]))
    fold = np.empty(count, np.int32)
    fold[rng.permutation(count)] = np.arange(count) % folds
    return fold


def _strict(
    users: tuple[str, ...], items: tuple[str, ...], texts: tuple[str, ...],
    user: np.ndarray, chosen: np.ndarray, rejected: np.ndarray, group: np.ndarray, source: str,
) -> Preferences:  # fmt: skip
    """A table without prompts and ties."""
    one, two, three, four = (np.asarray(a, np.int32) for a in (user, chosen, rejected, group))
    none, never = np.full(len(user), -1, np.int32), np.zeros(len(user), bool)
    return Preferences(users, items, texts, one, two, three, four, none, never, source)
