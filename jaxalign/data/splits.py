"""Who is seen and what is known: roles of users, folds of items, support and query choices."""

from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data.preferences import Preferences
from jaxalign.errors import InputError
from jaxalign.files import read_json, write_json
from jaxalign.progress import counted


@dataclass(frozen=True)
class UserSplit:
    """Users by role, no user in two: `train` and `validation` are seen, `test` unseen."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    seed: int

    def save(self, path: str | Path) -> None:
        """Write as JSON, in one step."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> "UserSplit":
        """Read what `save` wrote.

        Raises:
            InputError: the file is missing or damaged.
        """
        remedy = "run `jaxalign mrm train` again"
        found = read_json(path, "the users of a run by role", remedy)
        roles = [found.get(name) for name in ("train", "validation", "test")]
        train, validation, test = (tuple(r) if isinstance(r, list) else None for r in roles)
        seed = found.get("seed")
        if train is None or validation is None or test is None or not isinstance(seed, int):
            raise InputError(f"{path}: lacks `train`, `validation`, `test` or `seed`: {remedy}.")
        return cls(train, validation, test, seed)


def split_users(
    users: tuple[str, ...], seed: int, unseen_share: float = 0.5, validation_share: float = 0.2
) -> UserSplit:
    """Cut users into train, validation and test, the same whatever order they come in.

    Args:
        users: ids.
        seed: of the shuffle of the sorted ids.
        unseen_share: share of users who are test users.
        validation_share: share of the seen users who choose settings and train nothing.

    Raises:
        InputError: a role left without users.

    Example:
        >>> from jaxalign.data.splits import split_users
        >>> split = split_users(tuple("abcdefghij"), seed=0)
        >>> len(split.train), len(split.validation), len(split.test)
        (4, 1, 5)
    """
    ordered = np.array(sorted(users), dtype=object)
    np.random.default_rng(seed).shuffle(ordered)
    unseen = round(len(ordered) * unseen_share)
    seen = len(ordered) - unseen
    validation = round(seen * validation_share)
    cuts = (seen - validation, seen)
    parts = [tuple(part.tolist()) for part in np.split(ordered, cuts)]
    if (
        not parts[0]
        or (validation_share > 0 and not parts[1])
        or (unseen_share > 0 and not parts[2])
    ):
        raise InputError(
            f"found choices of {counted(len(ordered), 'user')}, too few to cut into train, "
            f"validation and test users (shares {unseen_share:g} unseen, {validation_share:g} of "
            "the rest for validation), expected at least 5: what people have in common is learned "
            "from several of them. Train on the choices of other people (`jaxalign demo "
            "--files-only --out data` writes some), and add these with `jaxalign mrm adapt`."
        )
    return UserSplit(parts[0], parts[1], parts[2], seed)


def item_folds(num_items: int, folds: int, seed: int) -> np.ndarray:
    """Fold of every item [num_items], equal in size up to one, by a seeded permutation.

    Example:
        >>> from jaxalign.data.splits import item_folds
        >>> sorted(item_folds(5, 2, seed=0).tolist())
        [0, 0, 0, 1, 1]
    """
    fold = np.empty(num_items, np.int32)
    order = np.random.default_rng(seed).permutation(num_items)
    fold[order] = np.arange(num_items) % folds
    return fold


def redraw(
    key: jax.Array,
    group: jax.Array,
    weight: jax.Array,
    query_share: float,
    most_groups: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Support and query of each user for one epoch, whole groups at a time.

    A user's groups are ranked at random; round(query_share * groups) of them, at least one and
    not all, are query. A user with one group has it as both, as in the authors' code.

    Args:
        key: random key of the epoch.
        group: [U, P] int, each user's groups numbered from 0.
        weight: [U, P] weights of the pairs, 0 for padding.
        query_share: share of groups that are query.
        most_groups: bound on a user's groups, P unless given; the work grows with it.

    Returns:
        support_mask, query_mask [U, P], the weights where a pair takes part and 0 elsewhere.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jaxalign.data.splits import redraw
        >>> group, weight = jnp.array([[0, 0, 1, 1]]), jnp.ones((1, 4))
        >>> support, query = redraw(jax.random.key(0), group, weight, query_share=0.5)
        >>> float(support.sum()), float(query.sum()), float((support * query).sum())
        (2.0, 2.0, 0.0)
    """
    pairs = group.shape[1]
    # Groups are numbered from 0 without gaps, so their number says which are there.
    count = jnp.max(jnp.where(weight > 0, group + 1, 0), axis=1)
    present = jnp.arange(most_groups or pairs)[None, :] < count[:, None]
    draw = jnp.where(present, jax.random.uniform(key, present.shape), jnp.inf)
    rank = jnp.argsort(jnp.argsort(draw, axis=1), axis=1)
    queries = jnp.clip(jnp.round(query_share * count).astype(int), 1, jnp.maximum(count - 1, 1))
    is_query = jnp.take_along_axis(rank < queries[:, None], group, axis=1)
    single = (count <= 1)[:, None]
    query = jnp.where(is_query | single, weight, 0)
    support = jnp.where(~is_query | single, weight, 0)
    return support, query


@dataclass(frozen=True)
class Episodes:
    """Support and query rows of each user, as lists of row numbers of the table.

    Attributes:
        users: ids in order.
        support: a row array for each user.
        query: a row array for each user; strict choices only.
        dropped: users left out for want of choices.
    """

    users: tuple[str, ...]
    support: tuple[np.ndarray, ...]
    query: tuple[np.ndarray, ...]
    dropped: int


def rows_by_user(preferences: Preferences, users: tuple[str, ...]) -> list[np.ndarray]:
    """Row numbers of each named user, in table order; empty for a user without rows.

    Example:
        >>> from jaxalign.data import from_columns
        >>> from jaxalign.data.splits import rows_by_user
        >>> columns = {"user": list("uvu"), "chosen": list("aba"), "rejected": list("bcc")}
        >>> table = from_columns(columns, "memory")
        >>> [rows.tolist() for rows in rows_by_user(table, ("u", "w"))]
        [[0, 2], []]
    """
    number = {name: index for index, name in enumerate(preferences.users)}
    order = np.argsort(preferences.user, kind="stable")
    counts = np.bincount(preferences.user, minlength=len(preferences.users))
    ends = np.cumsum(counts)
    empty = np.zeros(0, np.int64)
    return [
        order[ends[number[u]] - counts[number[u]] : ends[number[u]]] if u in number else empty
        for u in users
    ]


def episodes(
    preferences: Preferences,
    users: tuple[str, ...],
    seed: int,
    support_pairs: int,
    query_pairs: int,
    query_share: float = 0.5,
    min_support: int = 1,
    min_query: int = 1,
) -> Episodes:
    """Cut each user's rows into support and query, once, for validation or test.

    The query is what the source holds out, where it does (`Preferences.held_out`), else a share of
    the user's groups.

    Args:
        preferences: the table.
        users: whose choices.
        seed: of the draws; a user's draw does not depend on who else is there.
        support_pairs: most support choices kept, 0 for all.
        query_pairs: most query choices kept, 0 for all.
        query_share: share of a user's groups that are query.
        min_support: users with fewer are dropped.
        min_query: users with fewer strict query choices are dropped.
    """
    kept, support, query = [], [], []
    strict = preferences.strict
    for user, rows in zip(users, rows_by_user(preferences, users), strict=True):
        rng = np.random.default_rng([seed, *user.encode()])
        if preferences.held_out is not None:
            in_query = preferences.held_out[rows]
        else:
            in_query = _some_groups(rng, preferences.group[rows], query_share)
        if in_query.all() or not in_query.any():
            continue
        ask = rows[in_query & strict[rows]]
        know = rows[~in_query]
        if len(know) < min_support or len(ask) < min_query:
            continue
        kept.append(user)
        support.append(rng.permutation(know)[: support_pairs or None])
        query.append(rng.permutation(ask)[: query_pairs or None])
    return Episodes(tuple(kept), tuple(support), tuple(query), len(users) - len(kept))


def _some_groups(rng: np.random.Generator, group: np.ndarray, share: float) -> np.ndarray:
    """Rows [N] of a random share of their groups [N], of at least one and, of two, not of all."""
    groups = np.unique(group)
    rng.shuffle(groups)
    cut = int(np.clip(round(share * len(groups)), 1, max(len(groups) - 1, 1)))
    return np.isin(group, groups[:cut])


def hold_out_rows(
    count: int, share: float, seed: int, stream: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return a random share of N rows that is held out, and the rows that are not.

    Args:
        count: N, at least 2.
        share: of the rows to hold out; at least one row is, and one row never is.
        seed: of the draw.
        stream: number of the draw among those of the seed.

    Returns:
        The rows to train on and the rows that are held out, ascending.

    Example:
        >>> from jaxalign.data.splits import hold_out_rows
        >>> [len(rows) for rows in hold_out_rows(10, share=0.99, seed=0)]
        [1, 9]
    """
    order = np.random.Generator(np.random.PCG64([seed, stream])).permutation(count)
    held = min(max(round(share * count), 1), count - 1)
    return np.sort(order[held:]), np.sort(order[:held])


def learned_from(preferences: Preferences, users: tuple[str, ...]) -> list[np.ndarray]:
    """Row numbers of each training user's choices, without those that the source holds out."""
    rows = rows_by_user(preferences, users)
    if preferences.held_out is None:
        return rows
    return [user[~preferences.held_out[user]] for user in rows]
